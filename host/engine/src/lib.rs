//! The engine: one owner thread of the weights in use, the KV blocks and the batch.

mod executor;

pub use executor::{BatchRow, Executor, ExecutorError, ModelFacts, StepBatch};
