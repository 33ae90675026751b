//! What a step costs beside the model: the real step loop with as many idle sequences as a busy server holds, and as many
//! that decode as a step takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::{Bench, BenchError, ROWS_MAX, Work, Workload, median, some_token};
use crate::account::Account;
use crate::client::{Client, Owner};
use crate::clock::{Clock, SystemClock};
use crate::engine::{EngineConfig, assemble};
use crate::error::EngineError;
use crate::executor::{Executor, ExecutorError, ImportError, StepBatch};
use crate::outlet::Event;
use crate::policy::Policy;
use crate::run::{Job, Run};
use crate::sequence::Sequence;
use crate::step::StepLoop;

/// Sequences that hold tokens, and blocks as far as there are some, and do nothing.
pub const IDLE_SEQUENCES: u32 = 16_000;
/// They belong to tenants of so many each, the first of which decode as well.
const TENANT_SEQUENCES: u32 = 64;
/// Steps before those that count.
const WARM_UP: u32 = 16;

/// Where the time of a decoding step goes: medians over some steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Overhead {
    /// Sequences that decode, one row each.
    pub rows: u32,
    /// Sequences that are idle.
    pub idle_sequences: u32,
    /// Tenants of all these.
    pub tenants: u32,
    /// Steps that were measured.
    pub steps: u32,
    /// Seconds of the whole step.
    pub step_s: f64,
    /// Seconds of [`Executor::forward`].
    pub forward_s: f64,
    /// Seconds of choosing the tokens.
    pub sampling_s: f64,
    /// Seconds of all else: commands, schedule, blocks, text, events.
    pub rest_s: f64,
}

/// An executor whose work is timed.
struct Timed {
    executor: Box<dyn Executor>,
    clock: Arc<SystemClock>,
    times: Arc<Times>,
}

/// Nanoseconds of one step.
#[derive(Default)]
struct Times {
    forward: AtomicU64,
    sampling: AtomicU64,
}

impl Timed {
    fn since(&self, began: Duration, time: &AtomicU64) {
        let nanos = (self.clock.now() - began).as_nanos() as u64;
        time.fetch_add(nanos, Relaxed);
    }
}

impl Executor for Timed {
    fn forward(
        &mut self,
        batch: &StepBatch<'_>,
        logits: &mut Vec<f32>,
    ) -> Result<(), ExecutorError> {
        let began = self.clock.now();
        let computed = self.executor.forward(batch, logits);
        self.since(began, &self.times.forward);
        computed
    }

    fn copy_block(&mut self, from: u32, to: u32) {
        self.executor.copy_block(from, to);
    }

    fn export_blocks(&self, blocks: &[u32], out: &mut Vec<u8>) {
        self.executor.export_blocks(blocks, out);
    }

    fn import_blocks(&mut self, bytes: &[u8], blocks: &[u32]) -> Result<(), ImportError> {
        self.executor.import_blocks(bytes, blocks)
    }

    /// The step loop has only the choices of tokens done like this.
    fn for_each(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let began = self.clock.now();
        self.executor.for_each(tasks, task);
        self.since(began, &self.times.sampling);
    }
}

impl Bench {
    /// Says whether [`Bench::overhead`] can be measured with this model, before anything is.
    ///
    /// # Errors
    /// As [`Bench::check`].
    pub fn check_overhead(&self, load: &Workload) -> Result<(), BenchError> {
        let longest = Workload {
            decode: load.decode.saturating_add(WARM_UP + 1),
            ..*load
        };
        self.check(&longest, Work::Decode { rows: ROWS_MAX })
    }

    /// Where the time of a step goes in which [`ROWS_MAX`] sequences decode and [`IDLE_SEQUENCES`] do nothing, over
    /// `load.decode` steps. The model is not needed for anything else any more.
    ///
    /// # Errors
    /// As [`Bench::check`], and what the engine refuses.
    pub fn overhead(self, load: &Workload) -> Result<Overhead, BenchError> {
        self.check_overhead(load)?;
        let times = Arc::new(Times::default());
        let timed = Timed {
            executor: self.executor,
            clock: Arc::clone(&self.clock),
            times: Arc::clone(&times),
        };
        let config = EngineConfig {
            step_tokens_max: load.step_tokens_max.max(ROWS_MAX),
            sequences_running_max: ROWS_MAX,
            step_ms_target: 0,
            clock: self.clock.clone(),
            ..EngineConfig::default()
        };
        let (client, mut engine) = assemble(Box::new(timed), self.facts, self.text, config);
        let _idle = idle_sequences(&client, &mut engine)?;
        let mut decoding = Decoding::start(&client, load)?;
        for _ in 0..WARM_UP {
            decoding.step(&mut engine)?;
        }
        let mut steps = Steps::default();
        for _ in 0..load.decode {
            times.forward.store(0, Relaxed);
            times.sampling.store(0, Relaxed);
            let decoded = client.stats().tokens_decode_total;
            let began = self.clock.now();
            engine.step()?;
            steps.add(self.clock.now() - began, &times);
            if client.stats().tokens_decode_total - decoded != u64::from(ROWS_MAX) {
                return Err(EngineError::Internal("not all sequences decode".to_owned()).into());
            }
            decoding.read()?;
        }
        Ok(steps.overhead())
    }
}

/// A tenant's budget is not what is measured.
fn owner(tenant: u32) -> Owner {
    Owner {
        tenant,
        weight: 1,
        kv_blocks_max: u32::MAX,
    }
}

/// Sequences of two tokens, the first of which is computed.
fn idle_sequences(client: &Client, engine: &mut StepLoop) -> Result<Vec<Sequence>, EngineError> {
    let vocab = client.facts().vocab_size;
    let mut idle = Vec::new();
    for tenant in 0..IDLE_SEQUENCES / TENANT_SEQUENCES {
        for number in 0..TENANT_SEQUENCES {
            let sequence = client.sequence(owner(tenant), &Account::new())?;
            sequence.append([tenant, number].map(|seed| some_token(seed, number, vocab)))?;
            idle.push(sequence);
        }
        engine.step()?;
        while engine.has_work() {
            engine.step()?;
        }
    }
    Ok(idle)
}

/// Sequences of as many tenants, one each, that decode for as long as they are asked to.
struct Decoding {
    _sequences: Vec<Sequence>,
    runs: Vec<Run>,
}

impl Decoding {
    fn start(client: &Client, load: &Workload) -> Result<Decoding, EngineError> {
        let vocab = client.facts().vocab_size;
        let (mut sequences, mut runs) = (Vec::new(), Vec::new());
        for tenant in 0..ROWS_MAX {
            let sequence = client.sequence(owner(tenant), &Account::new())?;
            let prompt = (0..load.context).map(|position| some_token(position, tenant, vocab));
            sequence.append(prompt.collect::<Vec<u32>>())?;
            let policy = Policy {
                ignore_eos: true,
                ..Policy::default()
            };
            let job = Job {
                sequence: &sequence,
                policy,
            };
            runs.push(client.start(vec![job])?);
            sequences.push(sequence);
        }
        Ok(Decoding {
            _sequences: sequences,
            runs,
        })
    }

    fn step(&mut self, engine: &mut StepLoop) -> Result<(), EngineError> {
        engine.step()?;
        self.read()
    }

    /// Takes what the jobs have said, as clients would.
    fn read(&mut self) -> Result<(), EngineError> {
        for run in &mut self.runs {
            while let Some(events) = run.try_next() {
                let ended = |events: &Vec<Event>| events.iter().any(|e| e.finished.is_some());
                if events.as_ref().is_none_or(ended) {
                    let what = "a sequence ended before the measurement did";
                    return Err(EngineError::Internal(what.to_owned()));
                }
            }
        }
        Ok(())
    }
}

/// Seconds of each step.
#[derive(Default)]
struct Steps {
    step: Vec<f64>,
    forward: Vec<f64>,
    sampling: Vec<f64>,
    rest: Vec<f64>,
}

impl Steps {
    fn add(&mut self, step: Duration, times: &Times) {
        let seconds = |time: &AtomicU64| Duration::from_nanos(time.load(Relaxed)).as_secs_f64();
        let (forward, sampling) = (seconds(&times.forward), seconds(&times.sampling));
        self.step.push(step.as_secs_f64());
        self.forward.push(forward);
        self.sampling.push(sampling);
        self.rest.push(step.as_secs_f64() - forward - sampling);
    }

    fn overhead(self) -> Overhead {
        let middle = |mut seconds: Vec<f64>| {
            seconds.sort_by(f64::total_cmp);
            median(&seconds)
        };
        Overhead {
            rows: ROWS_MAX,
            idle_sequences: IDLE_SEQUENCES,
            tenants: IDLE_SEQUENCES / TENANT_SEQUENCES,
            steps: self.step.len() as u32,
            step_s: middle(self.step),
            forward_s: middle(self.forward),
            sampling_s: middle(self.sampling),
            rest_s: middle(self.rest),
        }
    }
}
