//! The step loop: receive, schedule, forward, sample, emit. It owns the three that own the state, and waits for nobody.
//!
//! [`Batch`] is what there is, [`Scheduler`] says what happens next, [`Emitter`] says what came of it. The loop has no thread
//! of its own: `engine.rs` runs it on the owner thread, `sim.rs` step by step.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::batch::Batch;
use crate::client::EngineShared;
use crate::clock::Clock;
use crate::emitter::Emitter;
use crate::error::EngineError;
use crate::executor::Executor;
use crate::inbox::{Command, StartedJob};
use crate::outlet::{Finish, Outlet, StopReason};
use crate::scheduler::{Limits, Plan, Scheduler};
use crate::stats::{Observer, StepReport};

/// The engine's state, owned by one thread.
pub(crate) struct StepLoop {
    pub(crate) shared: Arc<EngineShared>,
    executor: Box<dyn Executor>,
    clock: Arc<dyn Clock>,
    observer: Option<Arc<dyn Observer>>,
    pub(crate) batch: Batch,
    pub(crate) scheduler: Scheduler,
    emitter: Emitter,
    logits: Vec<f32>, // [rows that asked, vocab]
}

impl StepLoop {
    pub(crate) fn new(
        shared: Arc<EngineShared>,
        executor: Box<dyn Executor>,
        limits: Limits,
        clock: Arc<dyn Clock>,
        observer: Option<Arc<dyn Observer>>,
        seed: u64,
    ) -> StepLoop {
        let text = Arc::clone(&shared.text);
        let step_loop = StepLoop {
            executor,
            clock,
            observer,
            batch: Batch::new(&shared.facts),
            scheduler: Scheduler::new(limits),
            emitter: Emitter::new(text, shared.facts.vocab_size, seed),
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
        self.scheduler.change(&self.batch.take_changed_tenants());
        let plan = self.scheduler.plan(&self.batch);
        self.carry_out(&plan);
        if !plan.spans.is_empty() {
            match self.forward(&plan)? {
                Ok(took) => self.emit(&plan, took),
                Err(refused) => self.refuse(&plan, &refused),
            }
        }
        self.publish();
        self.observe(&plan, began);
        Ok(())
    }

    /// Whether another step would do something even if nothing comes in.
    pub(crate) fn has_work(&self) -> bool {
        self.batch.has_work()
    }

    /// Applies what came in, in order, each on its tenant's account.
    fn receive(&mut self) {
        for command in self.shared.inbox.take() {
            let tenant = command.owner().map(|owner| {
                self.scheduler.know(owner);
                owner.tenant
            });
            let began = self.clock.now();
            self.apply(command);
            if let Some(tenant) = tenant {
                let took = self.clock.now().saturating_sub(began);
                self.scheduler.charge_time(tenant, took);
            }
        }
    }

    fn apply(&mut self, command: Command) {
        let batch = &mut self.batch;
        match command {
            Command::Append { sequence, tokens } => batch.append(&sequence, tokens),
            Command::Rewind { sequence, length } => batch.rewind(&sequence, length),
            Command::Fork {
                parent,
                child,
                reply,
            } => batch.fork(&parent, child, reply),
            Command::Read {
                sequence,
                start,
                end,
                reply,
            } => {
                // The reader may be gone; then nobody wants the answer.
                let _ = reply.send(batch.read(&sequence, start, end));
            }
            Command::Start { run, jobs, outlet } => self.start(run, jobs, outlet),
            Command::Release { sequence } => batch.release(sequence),
            Command::CancelRun { run } => self.cancel(run, None),
            Command::CancelJob { run, job } => self.cancel(run, Some(job)),
            Command::Resume { run } => batch.resume(run),
        }
    }

    fn start(&mut self, run: u64, jobs: Vec<StartedJob>, outlet: Outlet) {
        let (sequences, generations): (Vec<_>, Vec<_>) = jobs.into_iter().unzip();
        let uncounted = self.batch.start(run, &sequences);
        self.emitter.start(run, outlet, uncounted);
        let mut ended = Vec::new();
        for (index, (sequence, generation)) in sequences.iter().zip(generations).enumerate() {
            let id = sequence.id;
            let prompt = self.batch.tokens(id);
            let wanted = self.emitter.begin(id, index as u32, generation, prompt);
            ended.extend(self.batch.begin(id, wanted).map(|finish| (id, finish)));
        }
        // Once all are there: the end of the last live job is the end of the run.
        for (id, finish) in ended {
            self.emitter.stop(&mut self.batch, id, finish);
        }
    }

    fn cancel(&mut self, run: u64, job: Option<u32>) {
        for id in self.batch.jobs(run, job) {
            let finish = Finish::Stopped(StopReason::Cancelled);
            self.emitter.stop(&mut self.batch, id, finish);
        }
    }

    /// Carries out all of a plan but its rows.
    fn carry_out(&mut self, plan: &Plan) {
        for &id in &plan.ended {
            self.emitter.finish_full(&mut self.batch, id);
        }
        for (from, to) in self.batch.carry_out(plan) {
            self.executor.copy_block(from, to);
        }
        let counters = &self.shared.counters;
        let add = |counter: &AtomicU64, count: usize| {
            counter.fetch_add(count as u64, Relaxed);
        };
        add(&counters.preemptions, plan.preempted.len());
        add(&counters.yields, plan.yielded.len());
    }

    /// Computes the planned rows, and says how long that took. A batch the executor refuses costs its own sequences only; a
    /// panic, the engine.
    fn forward(&mut self, plan: &Plan) -> Result<Result<Duration, EngineError>, EngineError> {
        let batch = match self.batch.rows(plan) {
            Ok(batch) => batch,
            Err(error) => return Ok(Err(EngineError::Internal(error.to_string()))),
        };
        let (executor, logits) = (&mut self.executor, &mut self.logits);
        let began = self.clock.now();
        // Unwind safe: after a panic neither executor nor logits are used again.
        let computed = catch_unwind(AssertUnwindSafe(|| executor.forward(&batch, logits)))
            .map_err(|_| EngineError::Internal("the executor panicked".to_owned()))?;
        if let Err(error) = computed {
            return Ok(Err(EngineError::Internal(error.to_string())));
        }
        let wanted = batch.outputs().len();
        if self.logits.len() != wanted * self.shared.facts.vocab_size as usize {
            let what = format!(
                "the executor gave {} logits for {wanted} rows",
                self.logits.len()
            );
            return Ok(Err(EngineError::Internal(what)));
        }
        Ok(Ok(self.clock.now().saturating_sub(began)))
    }

    /// Fails everything that was to be computed in this step.
    fn refuse(&mut self, plan: &Plan, error: &EngineError) {
        for span in &plan.spans {
            self.emitter.fail(&mut self.batch, span.sequence, error);
        }
    }

    /// Samples and emits for every span, in batch order. The rows took so long to compute.
    fn emit(&mut self, plan: &Plan, computing: Duration) {
        for span in &plan.spans {
            self.batch.computed(span);
        }
        let (executor, clock) = (&*self.executor, &*self.clock);
        let (spans, logits) = (&plan.spans, &mut self.logits);
        let began = clock.now();
        let scores = (self.emitter).score(&self.batch, spans, logits, executor, clock);
        // Scoring is a part of what the rows of such a prompt cost.
        let scoring = clock.now().saturating_sub(began);
        self.scheduler.observe(plan, computing + scoring);
        let choices = self.emitter.choose(spans, logits, executor, clock);
        for score in scores {
            if let Some(sequence) = self.batch.get(score.sequence) {
                self.scheduler.charge_time(sequence.tenant(), score.took);
            }
            self.emitter.emit_score(&mut self.batch, score);
        }
        for choice in choices {
            if let Some(sequence) = self.batch.get(choice.sequence) {
                self.scheduler.charge_time(sequence.tenant(), choice.took);
            }
            self.emitter.emit(&mut self.batch, choice);
        }
        for span in &plan.spans {
            self.batch.settle(span.sequence);
        }
    }

    /// Ends all jobs; what else waits is told when this is dropped.
    pub(crate) fn stop(&mut self, error: &EngineError) {
        self.shared.inbox.close();
        self.emitter.fail_all(error);
    }

    fn publish(&self) {
        if !self.has_work() {
            self.batch.assert_conserved();
        }
        let counters = &self.shared.counters;
        let store = |counter: &AtomicU64, value: usize| {
            counter.store(value as u64, Relaxed);
        };
        let (lines, pool) = (self.batch.lines(), self.batch.pool());
        store(&counters.sequences_running, lines.running().len());
        store(&counters.sequences_waiting, lines.waiting_count());
        store(&counters.blocks_total, pool.total() as usize);
        store(&counters.blocks_free, pool.free() as usize);
        store(&counters.blocks_cached, pool.cached() as usize);
        store(&counters.blocks_held, pool.held() as usize);
    }

    fn observe(&self, plan: &Plan, began: Duration) {
        let rows = plan.rows();
        if rows == 0 {
            return;
        }
        let prefill_rows = rows - plan.decode_rows;
        let counters = &self.shared.counters;
        counters.steps.fetch_add(1, Relaxed);
        counters
            .tokens_prefill
            .fetch_add(prefill_rows.into(), Relaxed);
        counters
            .tokens_decode
            .fetch_add(plan.decode_rows.into(), Relaxed);
        counters.batch_rows_last.store(rows.into(), Relaxed);
        if let Some(observer) = &self.observer {
            observer.step(&StepReport {
                rows,
                prefill_rows,
                decode_rows: plan.decode_rows,
                sequences: plan.spans.len() as u32,
                seconds: (self.clock.now().saturating_sub(began)).as_secs_f64(),
            });
        }
    }
}
