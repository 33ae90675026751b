//! The engine: one owner thread of the weights in use, the KV blocks and the batch.

mod executor;
pub mod model;

pub use executor::{BatchRow, Executor, ExecutorError, ModelFacts, StepBatch};
pub use model::{LoadError, ModelOptions};
pub use realm_weights::{Gguf, GgufError};
