//! Numeric operations of Realm: block formats, reference operations and CPU kernels.

pub mod quant;

pub use quant::{BlockType, MatrixView};
