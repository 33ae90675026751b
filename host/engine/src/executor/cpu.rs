//! The executor that computes on the CPU: checks a batch, lays it out for the kernels, runs the model.

use realm_kernels::{AttentionRow, BLOCK_TOKENS, Cpu, KvLayer};

use super::{BatchRow, Executor, ExecutorError, StepBatch};
use crate::model::{Decoder, Scratch, Step};

/// Tokens of a block, as positions count.
const BLOCK: u32 = BLOCK_TOKENS as u32;

/// A model with its cache; see the module header.
pub(crate) struct CpuExecutor {
    cpu: Cpu,
    decoder: Decoder,
    kv: Vec<KvLayer>, // one per layer
    blocks: u32,
    context: u32,
    layout: Layout,
    scratch: Scratch,
}

/// The rows of a step as columns, kept for its memory.
#[derive(Default)]
struct Layout {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    attention: Vec<AttentionRow>,
    outputs: Vec<usize>,
}

impl CpuExecutor {
    /// `kv` holds `blocks` blocks for every layer of `decoder`; positions lie below `context`.
    pub(crate) fn new(
        cpu: Cpu,
        decoder: Decoder,
        kv: Vec<KvLayer>,
        blocks: u32,
        context: u32,
    ) -> CpuExecutor {
        CpuExecutor {
            cpu,
            decoder,
            kv,
            blocks,
            context,
            layout: Layout::default(),
            scratch: Scratch::default(),
        }
    }

    fn check(&self, batch: &StepBatch<'_>) -> Result<(), ExecutorError> {
        let vocab = self.decoder.shape().vocab;
        for (table, blocks) in batch.tables.iter().enumerate() {
            if let Some(&block) = blocks.iter().find(|block| **block >= self.blocks) {
                return Err(ExecutorError::BlockOutOfCache {
                    table,
                    block,
                    blocks: self.blocks,
                });
            }
        }
        for (row, asked) in batch.rows.iter().enumerate() {
            self.check_row(row, asked, vocab)?;
            let table = batch.tables.get(asked.table as usize);
            if table.is_none_or(|blocks| (asked.position / BLOCK) as usize >= blocks.len()) {
                return Err(ExecutorError::NoBlock {
                    row,
                    position: asked.position,
                    table: asked.table,
                });
            }
        }
        Ok(())
    }

    fn check_row(&self, row: usize, asked: &BatchRow, vocab: u32) -> Result<(), ExecutorError> {
        if asked.token >= vocab {
            return Err(ExecutorError::TokenOutOfVocabulary {
                row,
                token: asked.token,
                vocab,
            });
        }
        if asked.position >= self.context {
            return Err(ExecutorError::PositionOutOfContext {
                row,
                position: asked.position,
                context: self.context,
            });
        }
        match asked.adapter {
            None => Ok(()),
            Some(adapter) => Err(ExecutorError::NoAdapter { row, adapter }),
        }
    }

    /// Logits of the rows that asked; prefill rows mostly do not.
    fn head(&mut self, logits: &mut Vec<f32>) {
        let shape = self.decoder.shape();
        let scratch = &mut self.scratch;
        scratch.branch.clear();
        for row in &self.layout.outputs {
            let row = row * shape.hidden..(row + 1) * shape.hidden;
            scratch.branch.extend_from_slice(&scratch.x[row]);
        }
        logits.resize(self.layout.outputs.len() * shape.vocab as usize, 0.0);
        self.decoder.head(&self.cpu, scratch, logits);
    }
}

impl Executor for CpuExecutor {
    fn forward(
        &mut self,
        batch: &StepBatch<'_>,
        logits: &mut Vec<f32>,
    ) -> Result<(), ExecutorError> {
        logits.clear();
        self.check(batch)?;
        if batch.rows.is_empty() {
            return Ok(());
        }
        let _turn = self.cpu.turn();
        self.layout.fill(batch);
        self.scratch.resize(self.decoder.shape(), batch.rows.len());
        let step = Step {
            tokens: &self.layout.tokens,
            positions: &self.layout.positions,
            slots: &self.layout.slots,
            attention: &self.layout.attention,
            tables: batch.tables,
        };
        self.decoder
            .layers(&self.cpu, &step, &mut self.kv, &mut self.scratch);
        if !self.layout.outputs.is_empty() {
            self.head(logits);
        }
        Ok(())
    }

    fn copy_block(&mut self, from: u32, to: u32) {
        assert!(
            from < self.blocks && to < self.blocks,
            "blocks {from} and {to} lie in a cache of {}",
            self.blocks
        );
        for layer in &mut self.kv {
            layer.copy_block(from, to);
        }
    }

    fn for_each(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        self.cpu.for_each(tasks, task);
    }
}

impl Layout {
    /// `batch` was checked: every position has its block.
    fn fill(&mut self, batch: &StepBatch<'_>) {
        self.tokens.clear();
        self.positions.clear();
        self.slots.clear();
        self.attention.clear();
        self.outputs.clear();
        for (index, row) in batch.rows.iter().enumerate() {
            let block = batch.tables[row.table as usize][(row.position / BLOCK) as usize];
            self.tokens.push(row.token);
            self.positions.push(row.position);
            self.slots.push(block * BLOCK + row.position % BLOCK);
            self.attention.push(AttentionRow {
                table: row.table,
                position: row.position,
            });
            if row.logits {
                self.outputs.push(index);
            }
        }
    }
}
