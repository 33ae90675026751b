//! Numeric operations of Realm: block formats, reference operations and CPU kernels.
//!
//! `quant` knows the block formats, `reference` is the truth in plain loops, `cpu` has the same operations with
//! run-time dispatch. Nothing here opens a file, reads a clock or logs; the only threads are a [`cpu::Cpu`]'s own.

pub mod cpu;
pub mod quant;
pub mod reference;
mod shapes;
mod sync;

pub use cpu::{Activations, Cpu, KvLayer, KvType, LayerNorm, Matrix, Precision, Rounding, Turn};
pub use quant::{BlockType, MatrixView};
pub use shapes::{Activation, AttentionRow, AttentionShape, BLOCK_TOKENS, Rope, RopeLayout};
