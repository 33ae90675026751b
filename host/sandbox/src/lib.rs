//! The sandbox: compiles, limits and runs tenant components; the only crate that names wasmtime.
//!
//! One store per call. A call ends by returning, by a limit or by being dropped, and then everything it held is gone:
//! memory, sequences, KV blocks. Models are reached through `realm_engine::Client` and nothing else; what a component
//! says about itself reaches the server through [`Hooks`].

#![deny(unsafe_code)]

mod bindings;
mod blocking;
mod compile_worker;
mod component;
mod compute;
mod config;
mod cpu;
mod describe;
mod engine_config;
mod error;
mod imports;
mod invocation;
mod limits;
mod log;
mod memory;
mod priority;
mod prompt_tokens;
mod request;
mod state;
mod tenant;
mod ticker;
mod tokens;
mod validate;
mod wasi;

use component::Loader;
use std::sync::Arc;
use std::time::Duration;
use ticker::Ticker;
use tokio::sync::Semaphore;

pub use compile_worker::compile_worker_main;
pub use component::{Artifact, Workflow};
pub use compute::{Allowance, ComputeThreads};
pub use config::{Compiler, SandboxConfig};
pub use describe::{Description, FunctionDescription};
pub use error::{CallError, GuestError, Rejected, SandboxError};
pub use invocation::{Invocation, ReplyEvent};
pub use limits::Limits;
pub use log::LogLevel;
pub use memory::{Charge, Memory, NoMemory};
pub use priority::give_way;
pub use prompt_tokens::{PromptToken, PromptTokens};
pub use realm_engine as engine;
pub use request::{CallRequest, Prompt, RequestKind, SharedKind};
pub use tenant::{MemoryCharge, ModelSet, Tenant, TenantMemory};
pub use validate::COMPONENT_BYTES_MAX;

/// What the sandbox asks of the server.
pub trait Hooks: Send + Sync {
    /// One line for the tenant's log: bounded, without control characters. Called on async tasks: must not block.
    fn log(&self, tenant: &Tenant, workflow: &str, level: LogLevel, message: &str);
}

/// Runs components. Cloning is cheap and shares everything.
#[derive(Clone)]
pub struct Sandbox {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    loader: Loader,
    ticker: Arc<Ticker>,
    compute: Arc<ComputeThreads>,
    config: SandboxConfig,
    hooks: Arc<dyn Hooks>,
    /// One permit per pool slot: a full pool is an answer at once and not a wait.
    instances: Arc<Semaphore>,
}

impl Sandbox {
    /// Reserves the instance pool and starts its threads: those for components that compute, and the one that makes
    /// running components look at their budgets.
    ///
    /// # Errors
    /// When the limits contradict each other or the pool's address space cannot be had.
    pub fn new(config: SandboxConfig, hooks: Arc<dyn Hooks>) -> Result<Sandbox, SandboxError> {
        config.check()?;
        let loader = Loader::new(&config)?;
        let engine = loader.engine().clone();
        let tick = Duration::from_millis(config.epoch_tick_ms);
        let ticker = Arc::new(Ticker::start(tick, move || engine.increment_epoch())?);
        let instances = Arc::new(Semaphore::new(config.instances_max as usize));
        Ok(Sandbox {
            inner: Arc::new(Inner {
                loader,
                ticker,
                compute: Arc::new(ComputeThreads::start()?),
                config,
                hooks,
                instances,
            }),
        })
    }

    /// Validates a component and compiles it in a limited process of its own.
    ///
    /// # Errors
    /// Everything is the uploader's to mend, except [`Rejected::Host`].
    pub async fn compile(&self, wasm: Vec<u8>) -> Result<Artifact, Rejected> {
        component::compile(&self.inner, wasm).await
    }

    /// Makes a compiled component ready to run. `name` stands in logs and errors.
    ///
    /// # Errors
    /// When the artifact was not made by this sandbox configuration with this key, or is damaged.
    pub fn load(&self, name: &str, artifact: &Artifact) -> Result<Workflow, SandboxError> {
        self.inner.loader.load(name, artifact)
    }

    /// The name under which to keep the artifact of a component with this digest. It changes with everything that
    /// makes old artifacts useless: the runtime's version, its settings and the processor.
    pub fn artifact_key(&self, wasm_sha256: &str) -> String {
        self.inner.loader.artifact_key(wasm_sha256)
    }

    /// Asks a component what it serves, within tight limits and without access to a model.
    ///
    /// # Errors
    /// Those of a call; [`CallError::BadDescription`] when it answers with something else.
    pub async fn describe(
        &self,
        workflow: &Workflow,
        tenant: &Tenant,
    ) -> Result<Description, CallError> {
        let (inner, workflow) = (Arc::clone(&self.inner), workflow.clone());
        let (allowance, tenant) = (Arc::clone(tenant.memory.allowance()), tenant.clone());
        let asked = async move { describe::describe(&inner, &workflow, &tenant).await };
        self.inner.compute.run(&allowance, asked).await
    }

    /// The threads for what computes.
    pub fn compute_threads(&self) -> &Arc<ComputeThreads> {
        &self.inner.compute
    }

    /// Starts one call on the current tokio runtime.
    pub fn invoke(&self, workflow: &Workflow, tenant: &Tenant, request: CallRequest) -> Invocation {
        invocation::start(
            Arc::clone(&self.inner),
            workflow.clone(),
            tenant.clone(),
            request,
        )
    }
}
