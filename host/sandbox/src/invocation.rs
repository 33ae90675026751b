//! One call: its task, its store, its limits, and the events that come out of it.

use crate::bindings::Workflow as Bindings;
use crate::component::Workflow;
use crate::cpu::{self, CpuBudgetSpent};
use crate::engine_config::BACKTRACE_FRAMES;
use crate::imports::exchange::{Exchange, ReplyHandle, RequestHandle, no_prompt_logprobs};
use crate::log::{LogLevel, LogSink, printable};
use crate::memory::{Held, NoMemory};
use crate::prompt_tokens::PromptTokens;
use crate::request::{CallRequest, RequestKind};
use crate::state::{Charges, State};
use crate::ticker::Ticker;
use crate::{CallError, Inner, Tenant, describe};
use realm_engine::{Account, StopReason, TokenLogprob, Usage};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::task::JoinHandle;
use wasmtime::component::{Resource, ResourceTableError};
use wasmtime::{Store, Trap, WasmBacktrace};

/// Events on their way to a client. Full, it makes the component wait.
const EVENTS_MAX: usize = 16;
/// A hint: instances come free as calls end.
const BUSY_RETRY_MS: u32 = 250;

/// What a client gets to see of a call.
#[derive(Clone, Debug, PartialEq)]
pub enum ReplyEvent {
    /// More of an answer.
    Delta {
        /// Which answer, from 0.
        choice: u32,
        /// Its next text; may be empty when a token ends inside a character.
        text: String,
        /// The tokens behind it; empty for text that the component wrote itself.
        tokens: Vec<u32>,
        /// Their log-probabilities, when the policy asks for them.
        logprobs: Vec<TokenLogprob>,
    },
    /// The prompt's text in front of an answer, with its tokens where their log-probabilities were asked for.
    Echo {
        /// Which answer, from 0.
        choice: u32,
        /// The text.
        text: String,
        /// Its tokens.
        tokens: PromptTokens,
    },
    /// The prompt's tokens, for a client that asked for their log-probabilities.
    Prompt(PromptTokens),
    /// A JSON value of a function.
    Json(String),
    /// An answer is complete.
    ChoiceFinished {
        /// Which answer.
        choice: u32,
        /// Why it ended.
        reason: StopReason,
    },
    /// The call has ended. Always the last event, and there is exactly one.
    End(Result<Usage, CallError>),
}

/// A call under way. Dropping it is hanging up: the store goes, and with it memory, sequences and KV blocks.
pub struct Invocation {
    events: mpsc::Receiver<Queued>,
    task: Option<JoinHandle<Result<(), CallError>>>,
    account: Arc<Account>,
    accepted: watch::Receiver<bool>,
}

/// An event on its way to the client, and what it takes of the host's memory until it is taken.
pub(crate) struct Queued {
    pub(crate) event: ReplyEvent,
    pub(crate) _held: Held,
}

/// The way from a call to its [`Invocation`].
pub(crate) struct Outbox {
    pub(crate) events: mpsc::Sender<Queued>,
    /// Whether the engine has taken a prompt of the call.
    pub(crate) accepted: watch::Sender<bool>,
}

impl Invocation {
    /// The next event; `None` after the end. Safe to drop and call again.
    pub async fn next(&mut self) -> Option<ReplyEvent> {
        if let Some(queued) = self.events.recv().await {
            return Some(queued.event);
        }
        // The store is gone and with it the sender: the task has its result, or is about to.
        let ended = self.task.as_mut()?.await;
        self.task = None;
        let ended = ended.unwrap_or_else(|error| {
            tracing::error!(%error, "the task of a call failed");
            Err(CallError::Internal {
                detail: error.to_string(),
            })
        });
        Some(ReplyEvent::End(ended.map(|()| self.usage())))
    }

    /// Waits until the engine has taken a prompt of the call, and for ever where it never does: from then on the model is at
    /// work, and what comes next may take a while.
    pub fn accepted(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut accepted = self.accepted.clone();
        async move {
            if accepted.wait_for(|accepted| *accepted).await.is_err() {
                std::future::pending().await
            }
        }
    }

    /// Tokens that the call has used so far, as the engine counts them: whatever the component reads or writes, and also of
    /// a call that has failed.
    pub fn usage(&self) -> Usage {
        self.account.usage()
    }
}

impl Drop for Invocation {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Starts the task of one call.
pub(crate) fn start(
    inner: Arc<Inner>,
    workflow: Workflow,
    tenant: Tenant,
    request: CallRequest,
) -> Invocation {
    let (sender, events) = mpsc::channel(EVENTS_MAX);
    let (accept, accepted) = watch::channel(false);
    let charges = Charges::new(&tenant);
    let account = Arc::clone(&charges.account);
    let allowance = Arc::clone(tenant.memory.allowance());
    let call = serve(
        Arc::clone(&inner),
        workflow,
        tenant,
        request,
        Outbox {
            events: sender,
            accepted: accept,
        },
        charges,
    );
    let task = tokio::spawn(async move { inner.compute.run(&allowance, call).await });
    Invocation {
        events,
        task: Some(task),
        account,
        accepted,
    }
}

/// Runs one call to its end.
async fn serve(
    inner: Arc<Inner>,
    workflow: Workflow,
    tenant: Tenant,
    request: CallRequest,
    out: Outbox,
    charges: Charges,
) -> Result<(), CallError> {
    let request = checked(request, &tenant).await?;
    if let RequestKind::Function { name, .. } = &*request.kind {
        let description = describe::known(&inner, &workflow, &tenant).await?;
        if !description
            .functions
            .iter()
            .any(|function| function.name == *name)
        {
            let available = description
                .functions
                .iter()
                .map(|function| function.name.clone())
                .collect();
            // A client can ask for a name of any length.
            return Err(CallError::NoFunction {
                name: printable(name),
                available,
            });
        }
    }
    let wall = request
        .deadline
        .min(Duration::from_millis(tenant.limits.wall_ms_max));
    let exchange = Exchange::new(request, out, Arc::clone(&charges.memory));
    let store = LimitedStore::new(&inner, &workflow, tenant, wall, Some(exchange), charges)?;
    store.run(handle).await
}

/// The request, if the contract can express it.
async fn checked(request: CallRequest, tenant: &Tenant) -> Result<CallRequest, CallError> {
    let json_bytes_max = tenant.limits.json_bytes_max;
    if !request.is_long() {
        return request.check(json_bytes_max).map(|()| request);
    }
    let check = move || request.check(json_bytes_max).map(|()| request);
    match tenant.memory.run_blocking((), check).await {
        Ok((checked, ())) => checked,
        Err(error) => Err(CallError::Internal {
            detail: error.to_string(),
        }),
    }
}

/// Calls `handle` and closes what it left open.
async fn handle(
    store: &mut Store<State>,
    component: Bindings,
) -> wasmtime::Result<Result<(), CallError>> {
    let request: Resource<RequestHandle> = store.data_mut().table.push(RequestHandle)?;
    let reply: Resource<ReplyHandle> = store.data_mut().table.push(ReplyHandle)?;
    if let Err(error) = component.call_handle(&mut *store, request, reply).await? {
        return Ok(Err(store.data().returned(error.into())));
    }
    let Some(exchange) = store.data_mut().exchange.as_mut() else {
        return Ok(Err(CallError::Internal {
            detail: "a call without a request".to_owned(),
        }));
    };
    if !exchange.has_answered() {
        return Ok(Err(CallError::NoReply));
    }
    if exchange.owes_prompt() {
        return Ok(Err(CallError::Guest(no_prompt_logprobs())));
    }
    exchange.end_open().await?;
    Ok(Ok(()))
}

/// A store with its limits, before it runs.
pub(crate) struct LimitedStore<'a> {
    workflow: &'a Workflow,
    store: Store<State>,
    wall: Duration,
    log: LogSink,
    ticker: Arc<Ticker>,
    // After the store: the slot is free when the memory is.
    _permit: OwnedSemaphorePermit,
}

impl<'a> LimitedStore<'a> {
    /// Takes an instance, or says that there is none.
    pub(crate) fn new(
        inner: &Inner,
        workflow: &'a Workflow,
        tenant: Tenant,
        wall: Duration,
        exchange: Option<Exchange>,
        charges: Charges,
    ) -> Result<LimitedStore<'a>, CallError> {
        let permit = Arc::clone(&inner.instances)
            .try_acquire_owned()
            .map_err(|_| CallError::Busy {
                retry_after_ms: BUSY_RETRY_MS,
            })?;
        let store = State::store(
            inner.loader.engine(),
            Arc::clone(&inner.hooks),
            tenant,
            workflow.name(),
            exchange,
            Instant::now() + wall,
            charges,
        );
        let log = store.data().log.clone();
        Ok(LimitedStore {
            workflow,
            store,
            wall,
            log,
            ticker: Arc::clone(&inner.ticker),
            _permit: permit,
        })
    }

    /// Instantiates and runs `body` under the processor budget and the wall deadline.
    ///
    /// Whatever happens, the store is gone when this returns, and also when it is dropped half way.
    pub(crate) async fn run<T>(
        self,
        body: impl AsyncFnOnce(&mut Store<State>, Bindings) -> wasmtime::Result<Result<T, CallError>>,
    ) -> Result<T, CallError> {
        let LimitedStore {
            workflow,
            mut store,
            wall,
            log,
            ticker,
            _permit,
            ..
        } = self;
        let cpu = Arc::clone(&store.data().cpu);
        let limited = async {
            let component = workflow.pre().instantiate_async(&mut store).await?;
            body(&mut store, component).await
        };
        let ended = tokio::time::timeout(wall, cpu::Metered::new(limited, cpu, ticker)).await;
        let result = match ended {
            Err(_) => Err(CallError::deadline(wall)),
            Ok(Err(CpuBudgetSpent)) => Err(cpu_budget(store.data())),
            Ok(Ok(Ok(result))) => result,
            Ok(Ok(Err(error))) => Err(classify(&error, store.data())),
        };
        drop(store);
        if let Err(error) = &result {
            log.host(
                LogLevel::Error,
                &printable(&format!("the call failed: {error}")),
            );
        }
        result
    }
}

/// Compilers put a program's own stack at the start of its memory, so running out of it is an access out of bounds.
/// Told from others by where it happened: as deep as can be seen, in a function that keeps calling itself.
fn is_recursion(error: &wasmtime::Error) -> bool {
    let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() else {
        return false;
    };
    let frames = backtrace.frames();
    let again = |frame: &wasmtime::FrameInfo| {
        frames
            .iter()
            .filter(|other| other.func_index() == frame.func_index())
            .count()
            > BACKTRACE_FRAMES / 8
    };
    frames.len() >= BACKTRACE_FRAMES && frames.iter().any(again)
}

fn cpu_budget(state: &State) -> CallError {
    CallError::CpuBudget {
        ms: state.tenant.limits.cpu_ms_max,
    }
}

/// What a trap or a failed host call means. Specific causes first; the rest is a trap with its public name.
fn classify(error: &wasmtime::Error, state: &State) -> CallError {
    let limits = &state.tenant.limits;
    if error.is::<CpuBudgetSpent>() {
        return cpu_budget(state);
    }
    if error.is::<wasmtime::PoolConcurrencyLimitError>() {
        return CallError::Busy {
            retry_after_ms: BUSY_RETRY_MS,
        };
    }
    if let Some(ResourceTableError::Full) = error.downcast_ref::<ResourceTableError>() {
        return CallError::HandleLimit {
            handles_max: limits.handles_max,
        };
    }
    if let Some(&NoMemory { bytes_max, .. }) = error.downcast_ref::<NoMemory>() {
        return CallError::MemoryLimit { bytes_max };
    }
    let trap = error.downcast_ref::<Trap>();
    if trap == Some(&Trap::StackOverflow)
        || (trap == Some(&Trap::MemoryOutOfBounds) && is_recursion(error))
    {
        return CallError::StackOverflow;
    }
    // Without memory a program panics, which is a trap like others: the limiter remembers the reason.
    if let Some(denied) = state.denied() {
        return denied;
    }
    if let Some(trap) = trap {
        state
            .log
            .host(LogLevel::Error, &printable(&format!("trap: {error:?}")));
        return CallError::Trap {
            public: trap.to_string(),
        };
    }
    if let Some(exit) = error.downcast_ref::<wasmtime_wasi::I32Exit>() {
        return CallError::Trap {
            public: format!("it exited with status {}", exit.0),
        };
    }
    host_call_failed(error, state)
}

/// What a host call failed with that has no type of ours.
fn host_call_failed(error: &wasmtime::Error, state: &State) -> CallError {
    let limits = &state.tenant.limits;
    let text = format!("{error:#}");
    // wasmtime has no types for these two; a test holds each to its text.
    if text.contains("store handle limit exceeded") {
        return CallError::HandleLimit {
            handles_max: limits.handles_max,
        };
    }
    if text.contains("too much data is being copied")
        || text.contains("fuel allocated for hostcalls")
    {
        return CallError::ArgumentLimit {
            bytes_max: limits.hostcall_bytes_max,
        };
    }
    state.log.host(
        LogLevel::Error,
        &printable(&format!("failed host call: {text}")),
    );
    CallError::Trap {
        public: "a call to the host was refused".to_owned(),
    }
}
