//! How fast a model runs here: prefill, decoding of one and of many sequences, and where the time of a step goes.
//!
//! It drives the executor as the step loop does, without scheduler, tokenizer or tenants: tokens are chosen by the
//! largest logit, and that is part of the time. Figures of one machine and one quarter of an hour can be compared.

mod ceilings;
mod fidelity;
mod ops;
mod overhead;

use std::collections::TryReserveError;
use std::hint::black_box;
use std::sync::Arc;

use realm_kernels::Cpu;
use realm_text::{TextError, TextModel};
use realm_weights::ModelSource;
use thiserror::Error;

use crate::clock::{Clock, SystemClock};
use crate::error::EngineError;
use crate::executor::{Executor, ExecutorError, ModelFacts, SequenceRows, StepBatch};
use crate::model::{self, LoadError, ModelOptions};
use crate::sampler::arg_max;
pub use ceilings::Ceilings;
pub use fidelity::{FIDELITY_PROMPTS, FIDELITY_STEPS, Fidelity, fidelity};
use ops::Recorder;
pub use ops::{OpTime, Profile};
pub use overhead::{IDLE_SEQUENCES, Overhead};
pub use realm_kernels::cpu::{Unit, Weights};

/// Sequences that decode together at most.
pub const ROWS_MAX: u32 = 64;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Tokens of the prompt.
    pub prefill: u32,
    /// Tokens that every sequence decodes.
    pub decode: u32,
    /// Tokens behind a sequence before it decodes.
    pub context: u32,
    /// Tokens of a prompt that go into one step at most.
    pub step_tokens_max: u32,
    /// How often each thing is measured.
    pub reps: u32,
}

impl Default for Workload {
    fn default() -> Workload {
        Workload {
            prefill: 512,
            decode: 64,
            context: 16,
            step_tokens_max: 512,
            reps: 5,
        }
    }
}

/// What one measurement runs over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// The prompt of one sequence; the last token asks for logits.
    Prefill,
    /// So many sequences decode together.
    Decode {
        /// Rows of a step: 1 to [`ROWS_MAX`].
        rows: u32,
    },
}

/// Tokens per second of some measurements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// The one in the middle.
    pub median: f64,
    /// The slowest.
    pub min: f64,
    /// The fastest.
    pub max: f64,
}

/// Why something cannot be measured.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BenchError {
    /// Nothing to do.
    #[error("{what} is 0, but must be at least 1")]
    Zero {
        /// Which number.
        what: &'static str,
    },
    /// More sequences than a step is measured with.
    #[error("{rows} rows are too many: the most is {ROWS_MAX}")]
    TooManyRows {
        /// Rows asked for.
        rows: u32,
    },
    /// A sequence longer than the model or the cache allows.
    #[error("{what} makes a sequence of {tokens} tokens, but the context holds {context}")]
    ContextTooShort {
        /// Which work.
        what: &'static str,
        /// Tokens of its sequence.
        tokens: u64,
        /// Tokens there may be.
        context: u32,
    },
    /// More sequences than the cache has room for.
    #[error(
        "{rows} sequences of {tokens} tokens take {blocks} KV blocks, but the cache has {kv_blocks}"
    )]
    KvTooSmall {
        /// Sequences asked for.
        rows: u32,
        /// Tokens of each.
        tokens: u64,
        /// Blocks they take.
        blocks: u64,
        /// Blocks there are.
        kv_blocks: u32,
    },
    /// The machine does not give the memory for the ceilings.
    #[error("cannot allocate {bytes} bytes to measure the read bandwidth")]
    OutOfMemory {
        /// How much was asked.
        bytes: usize,
        /// The allocator's answer.
        #[source]
        source: TryReserveError,
    },
    /// Nothing to compare.
    #[error("the file has no prompt, or the model's context is too short for one")]
    NoPrompt,
    /// The model cannot be run.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The text cannot be made tokens.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The executor refused a step.
    #[error(transparent)]
    Executor(#[from] ExecutorError),
    /// The engine refused or failed what the measurement asked of it.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// A loaded model under measurement.
pub struct Bench {
    executor: Box<dyn Executor>,
    facts: ModelFacts,
    text: Arc<TextModel>,
    cpu: Cpu,
    clock: Arc<SystemClock>,
    recorder: Arc<Recorder>,
    logits: Vec<f32>,
}

impl Bench {
    /// Loads a model. Operations are watched only when `with_ops` says so; else [`Bench::profile`] finds none.
    ///
    /// # Errors
    /// As [`model::load`].
    pub fn load(
        source: &dyn ModelSource,
        options: ModelOptions,
        with_ops: bool,
    ) -> Result<Bench, LoadError> {
        let clock = Arc::new(SystemClock::default());
        let recorder = Arc::new(Recorder::new(clock.clone()));
        let cpu = model::cpu(&options);
        let watched = match with_ops {
            true => cpu.clone().with_watcher(recorder.clone()),
            false => cpu.clone(),
        };
        let (executor, facts, text) = model::load_on(watched, source, options)?;
        Ok(Bench {
            executor,
            facts,
            text,
            cpu,
            clock,
            recorder,
            logits: Vec::new(),
        })
    }

    /// What is known of the model.
    pub fn facts(&self) -> &ModelFacts {
        &self.facts
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.cpu.threads()
    }

    /// Says whether `work` can be measured with this model, before anything is.
    ///
    /// # Errors
    /// [`BenchError`], naming what does not fit.
    pub fn check(&self, load: &Workload, work: Work) -> Result<(), BenchError> {
        let counts = [
            ("the prompt", load.prefill),
            ("the number of tokens to decode", load.decode),
            ("the number of tokens before", load.context),
            ("the number of tokens of a step", load.step_tokens_max),
            ("the number of measurements", load.reps),
        ];
        if let Some((what, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return Err(BenchError::Zero { what });
        }
        let (what, rows, tokens) = match work {
            Work::Prefill => ("the prompt", 1, u64::from(load.prefill)),
            Work::Decode { rows: 0 } => {
                return Err(BenchError::Zero {
                    what: "the number of rows",
                });
            }
            Work::Decode { rows } => (
                "decoding",
                rows,
                u64::from(load.context) + u64::from(load.decode),
            ),
        };
        if rows > ROWS_MAX {
            return Err(BenchError::TooManyRows { rows });
        }
        if tokens > u64::from(self.facts.context_length) {
            return Err(BenchError::ContextTooShort {
                what,
                tokens,
                context: self.facts.context_length,
            });
        }
        let blocks = u64::from(rows) * tokens.div_ceil(u64::from(self.facts.block_tokens));
        if blocks > u64::from(self.facts.kv_blocks) {
            return Err(BenchError::KvTooSmall {
                rows,
                tokens,
                blocks,
                kv_blocks: self.facts.kv_blocks,
            });
        }
        Ok(())
    }

    /// Tokens per second of `work`; one run that does not count warms up.
    ///
    /// # Errors
    /// As [`Bench::check`].
    pub fn rate(&mut self, load: &Workload, work: Work) -> Result<Rate, BenchError> {
        self.check(load, work)?;
        let sequences = self.begin(load, work)?;
        self.run(load, work, &sequences)?;
        let mut rates = Vec::new();
        for _ in 0..load.reps {
            let start = self.clock.now();
            let tokens = self.run(load, work, &sequences)?;
            rates.push(tokens as f64 / (self.clock.now() - start).as_secs_f64());
        }
        rates.sort_by(f64::total_cmp);
        Ok(Rate {
            median: median(&rates),
            min: rates[0],
            max: rates[rates.len() - 1],
        })
    }

    /// Where the time of `work` goes, over as many runs as [`Bench::rate`] makes.
    ///
    /// # Errors
    /// As [`Bench::check`].
    pub fn profile(&mut self, load: &Workload, work: Work) -> Result<Profile, BenchError> {
        self.check(load, work)?;
        let sequences = self.begin(load, work)?;
        self.run(load, work, &sequences)?;
        self.recorder.start();
        let start = self.clock.now();
        for _ in 0..load.reps {
            self.run(load, work, &sequences)?;
        }
        let total = self.clock.now() - start;
        let steps = match work {
            Work::Prefill => load.prefill.div_ceil(load.step_tokens_max),
            Work::Decode { .. } => load.decode,
        };
        Ok(self
            .recorder
            .finish(total, u64::from(load.reps) * u64::from(steps)))
    }

    /// The limits of this machine, measured now.
    ///
    /// # Errors
    /// [`BenchError::OutOfMemory`].
    pub fn ceilings(&self) -> Result<Ceilings, BenchError> {
        Ceilings::measure(&self.cpu, &*self.clock)
    }

    /// The sequences of `work`, with what lies behind them computed.
    fn begin(&mut self, load: &Workload, work: Work) -> Result<Sequences, BenchError> {
        let (rows, tokens) = match work {
            Work::Prefill => (1, load.prefill),
            Work::Decode { rows } => (rows, load.context + load.decode),
        };
        let blocks = tokens.div_ceil(self.facts.block_tokens);
        let tables = (0..rows)
            .map(|row| (row * blocks..(row + 1) * blocks).collect())
            .collect();
        let sequences = Sequences(tables);
        if let Work::Decode { rows } = work {
            for row in 0..rows {
                self.prompt(load, row, load.context, &sequences)?;
            }
        }
        Ok(sequences)
    }

    /// One measurement; returns its tokens.
    fn run(&mut self, load: &Workload, work: Work, all: &Sequences) -> Result<u64, BenchError> {
        match work {
            Work::Prefill => {
                self.prompt(load, 0, load.prefill, all)?;
                black_box(arg_max(&self.logits));
                Ok(u64::from(load.prefill))
            }
            Work::Decode { rows } => {
                self.decode(load, rows, all)?;
                Ok(u64::from(rows) * u64::from(load.decode))
            }
        }
    }

    /// A prompt of `tokens` tokens for sequence `table`, in steps.
    fn prompt(
        &mut self,
        load: &Workload,
        table: u32,
        tokens: u32,
        all: &Sequences,
    ) -> Result<(), BenchError> {
        let mut position = 0;
        while position < tokens {
            let end = tokens.min(position.saturating_add(load.step_tokens_max));
            let mut batch = StepBatch::default();
            let rows = SequenceRows {
                blocks: &all.0[table as usize],
                start: position,
                logits: u32::from(end == tokens),
                adapter: None,
            };
            let vocab = self.facts.vocab_size;
            let ids = (position..end).map(|position| some_token(position, table, vocab));
            batch.push(rows, ids)?;
            self.executor.forward(&batch, &mut self.logits)?;
            position = end;
        }
        Ok(())
    }

    /// Every sequence decodes from behind its context; the next token is the likeliest.
    fn decode(&mut self, load: &Workload, rows: u32, all: &Sequences) -> Result<(), BenchError> {
        let vocab = self.facts.vocab_size;
        let mut tokens: Vec<u32> = (0..rows)
            .map(|table| some_token(load.context, table, vocab))
            .collect();
        for start in load.context..load.context + load.decode {
            let mut batch = StepBatch::with_capacity(tokens.len());
            for (blocks, &token) in all.0.iter().zip(&tokens) {
                let rows = SequenceRows {
                    blocks,
                    start,
                    logits: 1,
                    adapter: None,
                };
                batch.push(rows, [token])?;
            }
            self.executor.forward(&batch, &mut self.logits)?;
            let logits = self.logits.chunks_exact(vocab as usize);
            for (token, logits) in tokens.iter_mut().zip(logits) {
                *token = arg_max(logits);
            }
        }
        Ok(())
    }
}

/// The blocks of each sequence.
struct Sequences(Vec<Vec<u32>>);

/// Some token or other: the time does not depend on which.
fn some_token(position: u32, sequence: u32, vocab: u32) -> u32 {
    ((u64::from(position) * 7919 + u64::from(sequence) * 104_729) % u64::from(vocab)) as u32
}

/// Of sorted values, at least one.
fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        0 => (sorted[middle - 1] + sorted[middle]) / 2.0,
        _ => sorted[middle],
    }
}
