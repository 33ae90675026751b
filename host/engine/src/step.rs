//! The step loop: receive, schedule, forward, sample, emit. It owns everything a step touches and waits for nobody.
//!
//! It has no thread of its own: `engine.rs` runs it on the owner thread, `sim.rs` step by step.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::client::Shared;
use crate::clock::Clock;
use crate::error::EngineError;
use crate::executor::{Executor, StepBatch};
use crate::kv_cache::BlockPool;
use crate::outlet::Outlet;
use crate::request::SequenceState;
use crate::sampler::Rng;
use crate::scheduler::{Plan, Tenants};
use crate::stats::{Observer, StepReport};

/// The limits of the step loop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) step_tokens_max: u32,
    pub(crate) sequences_running_max: u32,
}

/// A run whose jobs have not all ended.
pub(crate) struct RunState {
    pub(crate) outlet: Outlet,
    pub(crate) sequences: Vec<u64>, // [jobs]
    pub(crate) live: u32,           // jobs that have not ended
}

/// The engine's state, owned by one thread.
pub(crate) struct StepLoop {
    pub(crate) shared: Arc<Shared>,
    pub(crate) executor: Box<dyn Executor>,
    pub(crate) limits: Limits,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) observer: Option<Arc<dyn Observer>>,
    pub(crate) seeds: Rng, // for jobs without a seed of their own

    pub(crate) sequences: BTreeMap<u64, SequenceState>,
    pub(crate) runs: BTreeMap<u64, RunState>,
    pub(crate) waiting: BTreeMap<u64, u64>, // arrival -> sequence, has work
    pub(crate) running: BTreeMap<u64, u64>, // arrival -> sequence, admitted
    pub(crate) tenants: Tenants,
    pub(crate) pool: BlockPool,
    pub(crate) arrivals: u64,
    pub(crate) steps: u64,

    pub(crate) plan: Plan,
    pub(crate) logits: Vec<f32>, // [rows that asked, vocab]
}

impl StepLoop {
    pub(crate) fn new(
        shared: Arc<Shared>,
        executor: Box<dyn Executor>,
        limits: Limits,
        clock: Arc<dyn Clock>,
        observer: Option<Arc<dyn Observer>>,
        seed: u64,
    ) -> StepLoop {
        let step_tokens_max = limits.step_tokens_max.max(1);
        let pool = BlockPool::new(shared.facts.kv_blocks);
        let step_loop = StepLoop {
            executor,
            limits: Limits {
                step_tokens_max,
                // Every running sequence gets a row in every step, so none of them can starve.
                sequences_running_max: limits.sequences_running_max.clamp(1, step_tokens_max),
            },
            clock,
            observer,
            seeds: Rng::new(seed),
            sequences: BTreeMap::new(),
            runs: BTreeMap::new(),
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            tenants: Tenants::default(),
            pool,
            arrivals: 0,
            steps: 0,
            plan: Plan::default(),
            logits: Vec::new(),
            shared,
        };
        step_loop.publish();
        step_loop
    }

    /// One step. `Err` when the executor cannot be trusted any more.
    pub(crate) fn step(&mut self) -> Result<(), EngineError> {
        let began = self.clock.now();
        self.receive();
        self.schedule();
        if !self.plan.rows.is_empty() {
            self.forward()?;
            self.emit();
            self.steps += 1;
        }
        self.publish();
        self.observe(began);
        Ok(())
    }

    /// Whether another step would do something even if nothing comes in.
    pub(crate) fn has_work(&self) -> bool {
        !self.running.is_empty() || !self.waiting.is_empty()
    }

    /// Computes the planned rows. A batch the executor refuses costs its own sequences only; a panic, the engine.
    fn forward(&mut self) -> Result<(), EngineError> {
        let tables: Vec<&[u32]> = self
            .plan
            .spans
            .iter()
            .map(|span| self.sequences[&span.sequence].table.blocks())
            .collect();
        let batch = StepBatch {
            rows: &self.plan.rows,
            tables: &tables,
        };
        let executor = &mut self.executor;
        let logits = &mut self.logits;
        // Unwind safe: after a panic neither executor nor logits are used again.
        match catch_unwind(AssertUnwindSafe(|| executor.forward(&batch, logits))) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                self.refuse_plan(&EngineError::Internal(error.to_string()));
                return Ok(());
            }
            Err(_) => return Err(EngineError::Internal("the executor panicked".to_owned())),
        }
        let wanted = self.plan.rows.iter().filter(|row| row.logits).count();
        if self.logits.len() != wanted * self.shared.facts.vocab_size as usize {
            let what = format!("{} logits for {wanted} rows", self.logits.len());
            self.refuse_plan(&EngineError::Internal(what));
        }
        Ok(())
    }

    /// Fails everything that was to be computed in this step.
    fn refuse_plan(&mut self, error: &EngineError) {
        self.plan.rows.clear();
        for span in std::mem::take(&mut self.plan.spans) {
            self.fail(span.sequence, error);
        }
    }

    /// Ends all jobs; what else waits is told when this is dropped.
    pub(crate) fn stop(&mut self, error: &EngineError) {
        self.shared.inbox.close();
        for run in self.runs.values() {
            run.outlet.fail(error);
        }
    }

    fn publish(&self) {
        if !self.has_work() {
            self.pool.assert_conserved();
        }
        let counters = &self.shared.counters;
        let store = |counter: &std::sync::atomic::AtomicU64, value: usize| {
            counter.store(value as u64, Relaxed);
        };
        store(&counters.sequences_running, self.running.len());
        store(&counters.sequences_waiting, self.waiting.len());
        store(&counters.blocks_total, self.pool.total() as usize);
        store(&counters.blocks_free, self.pool.free() as usize);
        store(&counters.blocks_cached, self.pool.cached() as usize);
        store(&counters.blocks_held, self.pool.held() as usize);
    }

    fn observe(&self, began: std::time::Duration) {
        let report = self.plan.report();
        if report.rows == 0 {
            return;
        }
        let counters = &self.shared.counters;
        counters.steps.fetch_add(1, Relaxed);
        counters
            .tokens_prefill
            .fetch_add(report.prefill_rows.into(), Relaxed);
        counters
            .tokens_decode
            .fetch_add(report.decode_rows.into(), Relaxed);
        counters.batch_rows_last.store(report.rows.into(), Relaxed);
        if let Some(observer) = &self.observer {
            observer.step(&StepReport {
                seconds: (self.clock.now().saturating_sub(began)).as_secs_f64(),
                ..report
            });
        }
    }
}
