//! The seam between the engine and whatever computes: a step batch in, logits for the rows that asked out.
//!
//! The step loop knows nothing of weights, and an executor nothing of tenants, sampling or time. Token ids and
//! positions come from our own scheduler, which has already refused what does not fit; an executor still
//! checks a batch before it touches memory and answers a bad one with an error instead of a panic.

mod batch;
mod blocks;
pub(crate) mod cpu;

use thiserror::Error;

pub use batch::{SequenceRows, StepBatch};
pub use blocks::{BlockElement, BlockLayout, ImportError};

/// Computes steps over KV blocks that it owns and that the engine numbers.
pub trait Executor: Send {
    /// Runs one step; `logits` becomes `[rows that asked, vocab]` in row order.
    ///
    /// # Errors
    /// [`ExecutorError`] when the batch does not fit the model or the cache; nothing was computed then.
    fn forward(
        &mut self,
        batch: &StepBatch<'_>,
        logits: &mut Vec<f32>,
    ) -> Result<(), ExecutorError>;

    /// Copies the K and V of block `from` to block `to` in every layer (copy-on-write of a fork).
    ///
    /// # Panics
    /// When a block id is not below the number of blocks the executor was made with.
    fn copy_block(&mut self, from: u32, to: u32);

    /// Appends the K and V of `blocks`, in this order, to `out`: bytes for [`Executor::import_blocks`] of an executor of
    /// the same model and type of cache.
    ///
    /// # Panics
    /// As [`Executor::copy_block`].
    fn export_blocks(&self, blocks: &[u32], out: &mut Vec<u8>);

    /// Fills `blocks` with what was exported, in the order of the export. Sequences that have them in their tables go on
    /// as those did whose blocks they were.
    ///
    /// The layout is checked, the values are not: other values make other logits, of these sequences only.
    ///
    /// # Errors
    /// [`ImportError`] when the bytes are not blocks of this cache's layout, or not as many.
    ///
    /// # Panics
    /// As [`Executor::copy_block`].
    fn import_blocks(&mut self, bytes: &[u8], blocks: &[u32]) -> Result<(), ImportError>;

    /// Runs `task(0)` to `task(tasks - 1)`, each once, on the threads that compute, and returns when all have ended.
    fn for_each(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..tasks).for_each(task);
    }
}

/// Why a step was not run.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExecutorError {
    /// A token id that the model does not have.
    #[error("row {row} has token {token}, but the vocabulary has {vocab} tokens")]
    TokenOutOfVocabulary {
        /// Index of the row in the batch.
        row: usize,
        /// The id found.
        token: u32,
        /// Number of ids the model has.
        vocab: u32,
    },
    /// A position past the context the executor was made for.
    #[error("row {row} is at position {position}, but the context ends at {context}")]
    PositionOutOfContext {
        /// Index of the row in the batch.
        row: usize,
        /// The position found.
        position: u32,
        /// Positions the executor was made for.
        context: u32,
    },
    /// A row names a table the batch does not have, or one too short for its position.
    #[error("row {row} at position {position} has no block in table {table}")]
    NoBlock {
        /// Index of the row in the batch.
        row: usize,
        /// Its position.
        position: u32,
        /// The table it names.
        table: u32,
    },
    /// A block id that the cache does not have.
    #[error("table {table} holds block {block}, but the cache has {blocks}")]
    BlockOutOfCache {
        /// Index of the table in the batch.
        table: usize,
        /// The id found.
        block: u32,
        /// Number of blocks of the cache.
        blocks: u32,
    },
    /// A row asks for an adapter this executor has not loaded.
    #[error("row {row} asks for adapter {adapter}, which is not loaded")]
    NoAdapter {
        /// Index of the row in the batch.
        row: usize,
        /// The adapter asked for.
        adapter: u32,
    },
}

/// What the engine and its users may know of a loaded model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFacts {
    /// `general.name` of the file, or its architecture where it has none.
    pub name: String,
    /// `general.architecture`, for example `llama`.
    pub architecture: String,
    /// Longest sequence in tokens: the model's training context, lowered by the options or by the KV budget.
    pub context_length: u32,
    /// Number of token ids, equal to the width of a row of logits.
    pub vocab_size: u32,
    /// Transformer blocks.
    pub layers: u32,
    /// Weights in the file, norms included.
    pub parameters: u64,
    /// Size of the file.
    pub file_bytes: u64,
    /// KV blocks the executor was made with.
    pub kv_blocks: u32,
    /// Bytes of these blocks, over all layers.
    pub kv_bytes: u64,
    /// Tokens of one KV block.
    pub block_tokens: u32,
    /// Whether a sequence can be cut back to an earlier length (false for recurrent state).
    pub can_rewind: bool,
    /// What computes it, for example `avx512-vnni`.
    pub isa: String,
}
