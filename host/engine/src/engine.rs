//! The owner thread: made with an executor, ended by shutdown, by dropping the engine, or by a panic of either.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::thread::JoinHandle;
use std::time::Duration;

use realm_kernels::Cpu;
use realm_text::TextModel;
use realm_weights::ModelSource;

use crate::account::Ledger;
use crate::client::{Client, EngineShared};
use crate::clock::{Clock, SystemClock};
use crate::error::EngineError;
use crate::executor::{Executor, ModelFacts};
use crate::inbox::Inbox;
use crate::model::{self, LoadError, ModelOptions};
use crate::scheduler::Limits;
use crate::stats::{Counters, Observer};
use crate::step::StepLoop;

/// Tokens that a job may leave unread before it makes no more, unless an engine is made with another number.
pub const UNREAD_TOKENS_MAX: usize = 1024;

/// How an engine works.
#[derive(Clone)]
pub struct EngineConfig {
    /// Rows of one step at most; more makes prompts faster and the time between tokens longer. At least 1.
    pub step_tokens_max: u32,
    /// Sequences in one step at most; more wait. 1 to `step_tokens_max`.
    pub sequences_running_max: u32,
    /// How long a step in which somebody decodes should take at most, in ms: prompts are computed in pieces that fit. 0 is
    /// no matter how long.
    pub step_ms_target: u32,
    /// Commands that may wait for the next step; one tenant gets half of them at most.
    pub queue_max: usize,
    /// Sequences that may be alive, over all tenants.
    pub sequences_max: usize,
    /// Sequences of one tenant that may be alive.
    pub tenant_sequences_max: usize,
    /// Percent of the KV blocks that a tenant may hold which has no number of its own, and at least as many as the longest
    /// sequence takes.
    pub tenant_kv_percent_max: u32,
    /// Logits of one step at most that are computed for log-probabilities of prompts; a row of a model has as many as its
    /// vocabulary. One row is computed in any case.
    pub scored_logits_max: usize,
    /// A job whose reader has left this many of its tokens unread makes no more until it is read.
    pub unread_tokens_max: usize,
    /// What to call the model; empty is the name in its file.
    pub model_name: String,
    /// Seeds jobs that bring no seed.
    pub seed: u64,
    /// Told of every step.
    pub observer: Option<Arc<dyn Observer>>,
    /// Measures steps.
    pub clock: Arc<dyn Clock>,
}

impl Default for EngineConfig {
    fn default() -> EngineConfig {
        EngineConfig {
            step_tokens_max: 256,
            sequences_running_max: 64,
            step_ms_target: 50,
            queue_max: 256,
            sequences_max: 16_384,
            tenant_sequences_max: 2_048,
            tenant_kv_percent_max: 100,
            // 32 MiB of floats.
            scored_logits_max: 8 << 20,
            unread_tokens_max: UNREAD_TOKENS_MAX,
            model_name: String::new(),
            // The standard library's hash keys are the randomness at hand without a dependency.
            seed: RandomState::new().hash_one("unseeded jobs"),
            observer: None,
            clock: Arc::new(SystemClock::default()),
        }
    }
}

impl std::fmt::Debug for EngineConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineConfig")
            .field("step_tokens_max", &self.step_tokens_max)
            .field("sequences_running_max", &self.sequences_running_max)
            .field("step_ms_target", &self.step_ms_target)
            .field("queue_max", &self.queue_max)
            .field("sequences_max", &self.sequences_max)
            .field("tenant_kv_percent_max", &self.tenant_kv_percent_max)
            .field("tenant_sequences_max", &self.tenant_sequences_max)
            .field("scored_logits_max", &self.scored_logits_max)
            .field("unread_tokens_max", &self.unread_tokens_max)
            .field("model_name", &self.model_name)
            .finish_non_exhaustive()
    }
}

/// An engine and its thread. Dropping it shuts it down.
#[derive(Debug)]
pub struct Engine {
    client: Client,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Makes a model ready and starts an engine for it. The source is not needed any more then.
    ///
    /// # Errors
    /// What is wrong with the model, or that its cache does not fit memory.
    pub fn load(
        source: impl ModelSource,
        options: ModelOptions,
        config: EngineConfig,
    ) -> Result<Engine, LoadError> {
        Engine::load_on(model::cpu(&options), source, options, config)
    }

    /// [`Engine::load`] on a given CPU back end, whose threads it may share with other models.
    ///
    /// # Errors
    /// As [`Engine::load`].
    pub fn load_on(
        cpu: Cpu,
        source: impl ModelSource,
        options: ModelOptions,
        config: EngineConfig,
    ) -> Result<Engine, LoadError> {
        let (executor, facts, text) = model::load_on(cpu, &source, options)?;
        Ok(Engine::spawn(executor, facts, text, config))
    }

    /// Starts an engine on any executor. `facts` must be true of it.
    ///
    /// When the system gives no thread, the engine is there but has stopped.
    pub fn spawn(
        executor: Box<dyn Executor>,
        facts: ModelFacts,
        text: Arc<TextModel>,
        config: EngineConfig,
    ) -> Engine {
        let (client, step_loop) = assemble(executor, facts, text, config);
        let own = OwnerThread { step_loop };
        let thread = std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || own.run())
            .ok();
        Engine { client, thread }
    }

    /// A handle to it.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Ends the engine after the step it is in. Jobs fail with [`EngineError::Stopped`], and so does every later call.
    pub fn shutdown(self) {
        drop(self);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.client.shared.inbox.close();
        if let Some(thread) = self.thread.take() {
            // The thread catches its panics, so there is nothing to learn from its end.
            let _ = thread.join();
        }
    }
}

/// A client and the loop it speaks to, without a thread.
pub(crate) fn assemble(
    executor: Box<dyn Executor>,
    mut facts: ModelFacts,
    text: Arc<TextModel>,
    config: EngineConfig,
) -> (Client, StepLoop) {
    if !config.model_name.is_empty() {
        facts.name = config.model_name;
    }
    let shared = Arc::new(EngineShared {
        inbox: Inbox::new(config.queue_max),
        counters: Counters::default(),
        facts,
        text,
        ledger: Ledger::default(),
        sequences_max: config.sequences_max,
        tenant_sequences_max: config.tenant_sequences_max,
        tenant_kv_percent_max: config.tenant_kv_percent_max,
        unread_tokens_max: config.unread_tokens_max.max(1),
        sequences: AtomicUsize::new(0),
        ids: AtomicU64::new(1),
    });
    let limits = Limits {
        step_tokens_max: config.step_tokens_max,
        sequences_running_max: config.sequences_running_max,
        step_target: Duration::from_millis(config.step_ms_target.into()),
        scored_rows_max: scored_rows_max(config.scored_logits_max, shared.facts.vocab_size),
    };
    let step_loop = StepLoop::new(
        Arc::clone(&shared),
        executor,
        limits,
        config.clock,
        config.observer,
        config.seed,
    );
    (Client { shared }, step_loop)
}

/// Rows of so many logits together.
fn scored_rows_max(logits_max: usize, vocab: u32) -> u32 {
    u32::try_from(logits_max / vocab.max(1) as usize).unwrap_or(u32::MAX)
}

/// Closes the inbox however its thread ends, so that no caller waits for an engine that is gone.
struct OwnerThread {
    step_loop: StepLoop,
}

impl OwnerThread {
    fn run(mut self) {
        let shared = Arc::clone(&self.step_loop.shared);
        while shared.inbox.wait(self.step_loop.has_work()) {
            // Unwind safe: after a panic the loop only tells its callers and is dropped.
            let ended = match catch_unwind(AssertUnwindSafe(|| self.step_loop.step())) {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error,
                Err(_) => EngineError::Internal("the engine panicked".to_owned()),
            };
            self.step_loop.stop(&ended);
            return;
        }
        self.step_loop.stop(&EngineError::Stopped);
    }
}

impl Drop for OwnerThread {
    fn drop(&mut self) {
        self.step_loop.shared.inbox.close();
    }
}
