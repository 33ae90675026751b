//! What a store holds for one call. Dropping it frees the call's sequences, runs and memory.

use crate::bindings::realm::llm::types::Error;
use crate::blocking::Worker;
use crate::cpu::CpuMeter;
use crate::imports::exchange::Exchange;
use crate::limits::Limiter;
use crate::log::{LogSink, printable};
use crate::memory::{CallMemory, Held, NoMemory};
use crate::{CallError, GuestError, Hooks, Tenant, wasi};
use realm_engine::{Account, Client, EngineError};
use std::sync::Arc;
use std::time::Instant;
use wasmtime::component::ResourceTable;
use wasmtime::{Engine, Store, UpdateDeadline};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

/// What a call is charged for, beside processor time.
#[derive(Clone)]
pub(crate) struct Charges {
    pub(crate) memory: Arc<CallMemory>,
    pub(crate) account: Arc<Account>,
}

impl Charges {
    /// Of a call that begins.
    pub(crate) fn new(tenant: &Tenant) -> Charges {
        let bytes_max = tenant.limits.memory_bytes_max;
        Charges {
            memory: CallMemory::new(bytes_max, Arc::clone(&tenant.memory)),
            account: Account::new(),
        }
    }
}

/// The data of one store.
pub(crate) struct State {
    pub(crate) tenant: Tenant,
    pub(crate) table: ResourceTable,
    pub(crate) limiter: Limiter,
    /// What the component and the host for it hold.
    pub(crate) memory: Arc<CallMemory>,
    /// What the host gave the component last: it is there until it is copied, so the next one takes its place.
    pub(crate) handed_over: Held,
    pub(crate) log: LogSink,
    pub(crate) cpu: Arc<CpuMeter>,
    /// Where the engine counts the tokens of the call.
    pub(crate) account: Arc<Account>,
    /// Absent while a component describes itself: it can then open no model.
    pub(crate) exchange: Option<Exchange>,
    pub(crate) deadline: Instant,
    /// What the component was told of the host's own troubles.
    told: Told,
    wasi: WasiCtx,
}

/// Troubles of the host that a component has been told of. It may pass them on, and it may make them up.
#[derive(Clone, Copy, Default)]
struct Told {
    internal: bool,
    overloaded: bool,
}

impl State {
    /// Makes the store of one call, with every limit in force.
    pub(crate) fn store(
        engine: &Engine,
        hooks: Arc<dyn Hooks>,
        tenant: Tenant,
        workflow: Arc<str>,
        exchange: Option<Exchange>,
        deadline: Instant,
        charges: Charges,
    ) -> Store<State> {
        let Charges { memory, account } = charges;
        let log = LogSink::new(hooks, tenant.clone(), workflow);
        let cpu = CpuMeter::new(tenant.limits.cpu_ms_max);
        let mut table = ResourceTable::new();
        table.set_max_capacity(tenant.limits.handles_max as usize);
        let state = State {
            limiter: Limiter::new(&tenant.limits, Arc::clone(&memory)),
            handed_over: Held::nothing(&memory),
            memory,
            wasi: wasi::inert(&log),
            account,
            cpu: Arc::clone(&cpu),
            tenant,
            table,
            log,
            exchange,
            deadline,
            told: Told::default(),
        };
        let (handles, hostcall_bytes) = (
            state.tenant.limits.handles_max,
            state.tenant.limits.hostcall_bytes_max,
        );
        let mut store = Store::new(engine, state);
        store.limiter(|state| &mut state.limiter);
        store.set_max_component_handles(handles as usize);
        store.set_hostcall_fuel(hostcall_bytes);
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(move |_| {
            cpu.check_running()?;
            // Others get the thread, and a call that was hung up on ends here.
            Ok(UpdateDeadline::YieldCustom(
                1,
                Box::pin(tokio::task::yield_now()),
            ))
        });
        store
    }

    /// Who does the call's long work.
    pub(crate) fn worker(&self) -> Worker {
        Worker {
            cpu: Arc::clone(&self.cpu),
            memory: Arc::clone(&self.memory),
        }
    }

    /// Charges what goes to the component as `bytes`, of which `held` was taken for making it.
    pub(crate) fn hand_over(&mut self, mut held: Held, bytes: usize) -> Result<(), NoMemory> {
        held.resize(bytes)?;
        self.handed_over = held;
        Ok(())
    }

    /// A model of the tenant, by name.
    pub(crate) fn client(&self, name: &str) -> Result<Client, GuestError> {
        if self.exchange.is_none() {
            return Err(GuestError::Denied(
                "a workflow cannot use models while it describes itself".to_owned(),
            ));
        }
        self.tenant.models.by_name(name).cloned().ok_or_else(|| {
            // A component can ask for a name of any length.
            let name = printable(name);
            GuestError::Denied(format!("this tenant has no model named {name:?}"))
        })
    }

    /// The engine's error in the contract's words.
    pub(crate) fn engine_error(&self, error: EngineError) -> GuestError {
        GuestError::of_engine(
            error,
            self.exchange
                .as_ref()
                .map_or("describe", |exchange| exchange.id()),
        )
    }

    /// An error on its way to the component.
    pub(crate) fn given(&mut self, error: GuestError) -> Error {
        match error {
            GuestError::Internal(_) => self.told.internal = true,
            GuestError::Overloaded { .. } => self.told.overloaded = true,
            _ => {}
        }
        error.into()
    }

    /// What a call ends with whose component returned this error: only what the host said is the host's fault.
    pub(crate) fn returned(&self, error: GuestError) -> CallError {
        let is_ours = match error {
            GuestError::Internal(_) => self.told.internal,
            GuestError::Overloaded { .. } => self.told.overloaded,
            _ => false,
        };
        match is_ours {
            true => CallError::Host(error),
            false => CallError::Guest(error),
        }
    }

    /// What the call gets to know about a limit it ran into, whatever trap it made of it.
    pub(crate) fn denied(&self) -> Option<CallError> {
        use crate::limits::Denied;
        self.limiter.denied.map(|denied| match denied {
            Denied::Memory { bytes_max } => CallError::MemoryLimit { bytes_max },
            Denied::Table { elements_max } => CallError::TableLimit { elements_max },
        })
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}
