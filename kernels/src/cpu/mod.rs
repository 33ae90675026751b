//! The operations on this machine's CPU: one kernel source for every instruction set, threads of our own.
//!
//! Two promises hold for every operation: a row's result does not depend on the rows beside it, and no result depends on
//! the number of threads. Both come from one rule: an output element is computed by one task, in one order of additions.

mod activations;
mod attention;
mod ceiling;
mod elementwise;
mod embed;
mod exp_sums;
mod gated_act;
mod isa;
mod kv;
mod matmul;
mod matrix;
mod norm;
mod rope;
mod shared;
mod simd;
mod threads;
mod turns;
mod watch;

pub use crate::shapes::{Activation, AttentionRow, AttentionShape, BLOCK_TOKENS, Rope, RopeLayout};
pub use activations::{Activations, Precision};
pub use exp_sums::EXP_SUM_PIECE;
pub use isa::{Isa, isas};
pub use kv::{KvLayer, KvType};
pub use matrix::Matrix;
pub use norm::LayerNorm;
pub use watch::{Op, Unit, Watcher, Weights};

use std::sync::Arc;
use threads::Pool;
use turns::Turns;

/// Elements worth a task of their own, a microsecond or so of work; below that a fork costs more than it saves.
const TASK_ELEMENTS: usize = 64 * 1024;

/// An instruction set and the threads that use it. Clones share the threads.
#[derive(Clone)]
pub struct Cpu {
    isa: Isa,
    pool: Arc<Pool>,
    turns: Arc<Turns>,
    rounding: Rounding,
    watcher: Option<Arc<dyn Watcher>>,
}

/// A turn at the threads; see [`Cpu::turn`].
#[derive(Debug)]
pub struct Turn(Arc<Turns>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// What becomes of activations before they meet quantised weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// An int8 code each, with a scale for every 32.
    Int8,
    /// Each input as its [`Precision`] says.
    Mixed,
    /// 16 bits: an int8 code and an int8 code of what that left over. Twice the work of a matrix operation, and the
    /// rounding of activations all but vanishes.
    Int16,
    /// Nothing: matrix operations take f32 activations and dequantised weights. Several times slower; it separates errors
    /// of a model's graph from those of rounding.
    Exact,
}

impl Cpu {
    /// The fastest instruction set of this machine, on `threads` threads (the calling one is among them).
    pub fn new(threads: usize) -> Cpu {
        Cpu::with_isa(Isa::best(), threads)
    }

    /// A given instruction set of [`isas`].
    pub fn with_isa(isa: Isa, threads: usize) -> Cpu {
        Cpu {
            isa,
            pool: Arc::new(Pool::new(threads.max(1))),
            turns: Arc::default(),
            rounding: Rounding::Int8,
            watcher: None,
        }
    }

    /// The same with another rounding of activations than int8.
    pub fn with_rounding(self, rounding: Rounding) -> Cpu {
        Cpu { rounding, ..self }
    }

    /// What becomes of activations.
    pub fn rounding(&self) -> Rounding {
        self.rounding
    }

    /// Runs `task(0)` to `task(tasks - 1)`, each once, on the threads of the operations, and returns when all have ended.
    ///
    /// # Panics
    /// With the first task's panic.
    pub fn for_each(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        self.pool.run(tasks, task);
    }

    /// Waits for a turn at the threads, which lasts until it is dropped. Models that share threads take one for each step;
    /// operations outside of a turn work, but may find the threads taken and run on the caller's alone.
    pub fn turn(&self) -> Turn {
        self.turns.begin();
        Turn(Arc::clone(&self.turns))
    }

    /// Threads that work on an operation.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The instruction set's name.
    pub fn isa_name(&self) -> &'static str {
        self.isa.name()
    }

    /// Calls `task` on consecutive ranges that cover `0..count`, where an item is `cost` elements of work.
    fn split(&self, count: usize, cost: usize, task: impl Fn(std::ops::Range<usize>) + Sync) {
        // A few tasks a thread, so that a thread that was held up takes fewer.
        let tasks = (count.saturating_mul(cost) / TASK_ELEMENTS)
            .clamp(1, self.threads() * 4)
            .min(count.max(1));
        let bound = |i: usize| count * i / tasks;
        self.pool.run(tasks, &|i| task(bound(i)..bound(i + 1)));
    }
}
