//! The seam between the engine and whatever computes: a step batch in, logits for the rows that asked out.
//!
//! The step loop knows nothing of weights, and an executor nothing of tenants, sampling or time. Token ids and
//! positions come from our own scheduler, which has already refused what does not fit; an executor still
//! checks a batch before it touches memory and answers a bad one with an error instead of a panic.

pub(crate) mod cpu;

use thiserror::Error;

/// One token to compute at one position of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchRow {
    /// Token id, below the vocabulary size.
    pub token: u32,
    /// Position in its sequence, from 0; its K and V go to block `position / 16` of the table.
    pub position: u32,
    /// Index into [`StepBatch::tables`].
    pub table: u32,
    /// Whether the logits after this token are wanted.
    pub logits: bool,
    /// Which adapter shapes this row; `None` is the base model.
    pub adapter: Option<u32>,
}

/// The rows of one step, ragged over sequences.
///
/// Rows of one sequence are consecutive with ascending positions, and every earlier position of that
/// sequence is in the cache or in this batch. A table lists the KV blocks of a sequence in order; blocks that
/// rows of this batch write are in no other table.
#[derive(Clone, Copy, Debug)]
pub struct StepBatch<'a> {
    /// The tokens to compute.
    pub rows: &'a [BatchRow],
    /// Block ids of each sequence, long enough for its last position.
    pub tables: &'a [&'a [u32]],
}

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
    #[error("row {row} has token {token}, the vocabulary ends at {vocab}")]
    TokenOutOfVocabulary {
        /// Index of the row in the batch.
        row: usize,
        /// The id found.
        token: u32,
        /// Number of ids the model has.
        vocab: u32,
    },
    /// A position past the context the executor was made for.
    #[error("row {row} is at position {position}, the context ends at {context}")]
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
    #[error("table {table} holds block {block}, the cache ends at {blocks}")]
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
