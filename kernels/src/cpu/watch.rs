//! Tells a caller who measures of every operation: what it was and what it had to move and compute.
//!
//! Nobody watches by default, and then it costs one check an operation. Kernels read no clock; the watcher does.

use super::{Activations, Cpu, Matrix, Rounding};
use crate::quant::{BlockType, GROUP};
use std::sync::Arc;

/// Is told when an operation of a [`Cpu`] begins and ends, on the thread that called it.
pub trait Watcher: Send + Sync {
    /// An operation begins.
    fn begins(&self);
    /// It has ended.
    fn ends(&self, op: &Op);
}

/// What one operation had to do at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// Which operation, for example `"matmul"`.
    pub name: &'static str,
    /// The weights it multiplied with.
    pub weights: Option<Weights>,
    /// Bytes to bring in and to write: weights of a matrix operation, keys and values of attention, else inputs and
    /// outputs. Some of them may be in a cache.
    pub bytes: u64,
    /// Multiplications and additions.
    pub arithmetic: u64,
    /// What these work on.
    pub unit: Unit,
}

/// What the multiplications of an operation work on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// 8-bit integers.
    Int8,
    /// 32-bit floats.
    Float,
}

/// Type and shape of a weight matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weights {
    /// How the file stores them; the first, where matrices of several types are multiplied together.
    pub ty: BlockType,
    /// Output width, of all matrices of the operation together.
    pub rows: usize,
    /// Input width.
    pub cols: usize,
}

impl Op {
    /// Activations times matrices of one width.
    pub(crate) fn product(
        name: &'static str,
        matrices: &[&Matrix],
        x: &Activations,
        rounding: Rounding,
    ) -> Op {
        let first = matrices[0];
        let rows: usize = matrices.iter().map(|matrix| matrix.rows()).sum();
        let bytes: usize = matrices.iter().map(|matrix| matrix.bytes()).sum();
        let is_int8 = first.layout().is_some() && rounding != Rounding::Exact;
        let codes = x.cols() + if is_int8 { GROUP * x.fine().len() } else { 0 };
        Op {
            name,
            weights: Some(Weights {
                ty: first.block_type(),
                rows,
                cols: first.cols(),
            }),
            bytes: bytes as u64,
            arithmetic: 2 * (rows * codes * x.rows()) as u64,
            unit: if is_int8 { Unit::Int8 } else { Unit::Float },
        }
    }

    /// An operation without a matrix.
    pub(crate) fn plain(name: &'static str, bytes: usize, arithmetic: usize) -> Op {
        Op {
            name,
            weights: None,
            bytes: bytes as u64,
            arithmetic: arithmetic as u64,
            unit: Unit::Float,
        }
    }
}

/// An operation in progress that is watched; it ends where this is dropped.
pub(crate) struct Watched<'a> {
    watcher: &'a dyn Watcher,
    op: Op,
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        self.watcher.ends(&self.op);
    }
}

impl Cpu {
    /// The same CPU, whose operations `watcher` is told of. It shares the threads.
    pub fn with_watcher(self, watcher: Arc<dyn Watcher>) -> Cpu {
        Cpu {
            watcher: Some(watcher),
            ..self
        }
    }

    /// Begins an operation; held until it ends. `op` is asked only when somebody watches.
    #[must_use]
    pub(crate) fn watch(&self, op: impl FnOnce() -> Op) -> Option<Watched<'_>> {
        let watcher = self.watcher.as_deref()?;
        let op = op();
        watcher.begins();
        Some(Watched { watcher, op })
    }
}
