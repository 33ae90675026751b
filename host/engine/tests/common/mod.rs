//! Drives an executor without the engine around it: block tables, prompts in pieces, log-probabilities.

#![allow(
    dead_code,
    reason = "each test binary uses its own part of this module"
)]

pub(crate) mod files;

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use realm_engine::model::{ModelOptions, load_on};
use realm_engine::text::TextModel;
use realm_engine::{Executor, Gguf, ModelFacts, SequenceRows, StepBatch};
use realm_kernels::Cpu;

/// One sequence of a batch: a table of blocks, some tokens and where they start.
pub(crate) struct Piece<'a> {
    pub(crate) table: &'a [u32],
    pub(crate) start: u32,
    pub(crate) tokens: &'a [u32],
}

/// A loaded model that computes batches at the test's wish.
pub(crate) struct Model {
    pub(crate) executor: Box<dyn Executor>,
    pub(crate) facts: ModelFacts,
    pub(crate) text: Arc<TextModel>,
}

impl Model {
    pub(crate) fn open(path: &Path, cpu: Cpu) -> Model {
        Model::open_with(path, cpu, ModelOptions::default())
    }

    pub(crate) fn open_with(path: &Path, cpu: Cpu, options: ModelOptions) -> Model {
        Model::of(
            &Gguf::open(path).expect("the model file is good"),
            cpu,
            options,
        )
    }

    pub(crate) fn of(gguf: &Gguf, cpu: Cpu, options: ModelOptions) -> Model {
        let options = ModelOptions {
            kv_bytes_max: 64 << 20,
            ..options
        };
        let (executor, facts, text) = load_on(cpu, gguf, options).expect("the model loads");
        Model {
            executor,
            facts,
            text,
        }
    }

    /// Runs the pieces as one step and returns the logits of every row.
    pub(crate) fn step(&mut self, pieces: &[Piece<'_>]) -> Vec<Vec<f32>> {
        let mut batch = StepBatch::default();
        for piece in pieces {
            let rows = SequenceRows {
                blocks: piece.table,
                start: piece.start,
                logits: piece.tokens.len() as u32,
                adapter: None,
            };
            let tokens = piece.tokens.iter().copied();
            batch
                .push(rows, tokens)
                .expect("a block for every position");
        }
        let mut logits = Vec::new();
        self.executor
            .forward(&batch, &mut logits)
            .expect("the batch fits");
        let vocab = self.facts.vocab_size as usize;
        logits.chunks_exact(vocab).map(<[f32]>::to_vec).collect()
    }

    /// Feeds `tokens` in pieces of `piece` tokens to an empty sequence and returns the logits of every position.
    pub(crate) fn prefill(&mut self, table: &[u32], tokens: &[u32], piece: usize) -> Vec<Vec<f32>> {
        let mut logits = Vec::new();
        for (index, tokens) in tokens.chunks(piece).enumerate() {
            logits.extend(self.step(&[Piece {
                table,
                start: (index * piece) as u32,
                tokens,
            }]));
        }
        logits
    }

    /// Continues a sequence of `length` tokens by arg-max; the first choice is that of `logits`.
    pub(crate) fn greedy(
        &mut self,
        table: &[u32],
        length: u32,
        mut logits: Vec<f32>,
        count: usize,
    ) -> Vec<u32> {
        let mut ids = Vec::new();
        while ids.len() < count {
            let token = argmax(&logits);
            ids.push(token);
            let piece = Piece {
                table,
                start: length + ids.len() as u32 - 1,
                tokens: &[token],
            };
            logits = self.step(&[piece]).remove(0);
        }
        ids
    }
}

/// Threads for tests: more than one, so that work is split.
pub(crate) fn threads() -> usize {
    2
}

/// Where the real models are; tests that need a missing one fail and say how to get it.
pub(crate) fn model_path(file: &str) -> PathBuf {
    let folder = std::env::var_os("REALM_MODELS").map_or_else(
        || {
            let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
            let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
            cache
                .or(home)
                .expect("HOME is set")
                .join("realm")
                .join("models")
        },
        PathBuf::from,
    );
    let path = folder.join(file);
    assert!(
        path.is_file(),
        "{} is missing: run `cargo xtask models`, or set REALM_MODELS to the folder that has it",
        path.display()
    );
    path
}

pub(crate) fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (index, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = index;
        }
    }
    best as u32
}

/// Natural-log probabilities.
pub(crate) fn logprobs(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let max = f64::from(max);
    let sum: f64 = logits
        .iter()
        .map(|logit| (f64::from(*logit) - max).exp())
        .sum();
    let log_sum = max + sum.ln();
    logits
        .iter()
        .map(|logit| f64::from(*logit) - log_sum)
        .collect()
}

/// Waits on the calling thread.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}
