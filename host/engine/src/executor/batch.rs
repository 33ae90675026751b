//! The rows of one step, as the columns that executors and kernels read.

use realm_kernels::{AttentionRow, BLOCK_TOKENS};

use super::ExecutorError;

/// Tokens of a KV block, as positions count.
pub(super) const BLOCK: u32 = BLOCK_TOKENS as u32;

/// Consecutive positions of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceRows<'a> {
    /// Its KV blocks in order, long enough for the last of the positions.
    pub blocks: &'a [u32],
    /// The first position, from 0; the K and V of position `p` go to block `p / 16` of these.
    pub start: u32,
    /// After how many of the rows, counted from the last one back, the logits are wanted.
    pub logits: u32,
    /// Which adapter shapes the rows; `None` is the base model.
    pub adapter: Option<u32>,
}

/// The rows of one step, ragged over sequences.
///
/// Every earlier position of a sequence is in the cache or in this batch, and blocks that rows of this batch write are in
/// no other table. A row is an entry of each column; the tables are those of the sequences.
#[derive(Clone, Debug, Default)]
pub struct StepBatch<'a> {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    attention: Vec<AttentionRow>,
    adapters: Vec<Option<u32>>,
    outputs: Vec<u32>,
    tables: Vec<&'a [u32]>,
}

impl<'a> StepBatch<'a> {
    /// No rows yet, and memory for so many.
    pub fn with_capacity(rows: usize) -> StepBatch<'a> {
        StepBatch {
            tokens: Vec::with_capacity(rows),
            positions: Vec::with_capacity(rows),
            slots: Vec::with_capacity(rows),
            attention: Vec::with_capacity(rows),
            ..StepBatch::default()
        }
    }

    /// Adds a row for each of `tokens`.
    ///
    /// # Errors
    /// [`ExecutorError::NoBlock`] when the table is too short for a position; the batch is not to be used then.
    pub fn push(
        &mut self,
        sequence: SequenceRows<'a>,
        tokens: impl IntoIterator<Item = u32>,
    ) -> Result<(), ExecutorError> {
        let table = self.tables.len() as u32;
        let first = self.rows();
        self.tables.push(sequence.blocks);
        for (position, token) in (sequence.start..).zip(tokens) {
            let Some(&block) = sequence.blocks.get((position / BLOCK) as usize) else {
                return Err(ExecutorError::NoBlock {
                    row: self.rows(),
                    position,
                    table,
                });
            };
            self.tokens.push(token);
            self.positions.push(position);
            // A block beyond every cache is for the executor to refuse.
            self.slots
                .push(block.saturating_mul(BLOCK) | (position % BLOCK));
            self.attention.push(AttentionRow { table, position });
        }
        let end = self.rows();
        let wanted = (sequence.logits as usize).min(end - first);
        self.outputs
            .extend((end - wanted..end).map(|row| row as u32));
        if sequence.adapter.is_some() || !self.adapters.is_empty() {
            self.adapters.resize(first, None);
            self.adapters.resize(end, sequence.adapter);
        }
        Ok(())
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// The token of each row.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The position of each row in its sequence.
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// Where the K and V of each row go: its block times 16, plus the place in the block.
    pub fn slots(&self) -> &[u32] {
        &self.slots
    }

    /// The table of each row, and its position again.
    pub fn attention(&self) -> &[AttentionRow] {
        &self.attention
    }

    /// The adapter of each row; empty when no row has one.
    pub fn adapters(&self) -> &[Option<u32>] {
        &self.adapters
    }

    /// The rows whose logits are wanted, in ascending order.
    pub fn outputs(&self) -> &[u32] {
        &self.outputs
    }

    /// The KV blocks of each sequence.
    pub fn tables(&self) -> &[&'a [u32]] {
        &self.tables
    }
}
