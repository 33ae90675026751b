//! The executor that computes on the CPU: checks a batch, runs the model over it, keeps the blocks.

use realm_kernels::{Cpu, KvLayer, KvType};

use super::batch::BLOCK;
use super::{BlockElement, BlockLayout, Executor, ExecutorError, ImportError, StepBatch};
use crate::model::{Decoder, Scratch};

/// A model with its cache; see the module header.
pub(crate) struct CpuExecutor {
    cpu: Cpu,
    decoder: Decoder<Cpu>,
    kv: Vec<KvLayer>, // one per layer
    layout: BlockLayout,
    blocks: u32,
    context: u32,
    scratch: Scratch<Cpu>,
}

impl CpuExecutor {
    /// `kv` holds `blocks` blocks for every layer of `decoder`; positions lie below `context`.
    pub(crate) fn new(
        cpu: Cpu,
        decoder: Decoder<Cpu>,
        kv: Vec<KvLayer>,
        blocks: u32,
        context: u32,
    ) -> CpuExecutor {
        CpuExecutor {
            layout: layout(&kv),
            cpu,
            decoder,
            kv,
            blocks,
            context,
            scratch: Scratch::default(),
        }
    }

    fn check(&self, batch: &StepBatch<'_>) -> Result<(), ExecutorError> {
        for (table, blocks) in batch.tables().iter().enumerate() {
            if let Some(&block) = blocks.iter().find(|block| **block >= self.blocks) {
                return Err(ExecutorError::BlockOutOfCache {
                    table,
                    block,
                    blocks: self.blocks,
                });
            }
        }
        let vocab = self.decoder.shape().vocab;
        if let Some((row, token)) = first(batch.tokens(), |token| token >= vocab) {
            return Err(ExecutorError::TokenOutOfVocabulary { row, token, vocab });
        }
        let context = self.context;
        if let Some((row, position)) = first(batch.positions(), |position| position >= context) {
            return Err(ExecutorError::PositionOutOfContext {
                row,
                position,
                context,
            });
        }
        match first(batch.adapters(), |adapter| adapter.is_some()) {
            Some((row, Some(adapter))) => Err(ExecutorError::NoAdapter { row, adapter }),
            _ => Ok(()),
        }
    }

    /// # Panics
    /// When one of the blocks is not in the cache.
    fn assert_blocks(&self, blocks: &[u32]) {
        assert!(
            blocks.iter().all(|&block| block < self.blocks),
            "blocks {blocks:?} lie in a cache of {}",
            self.blocks
        );
    }
}

/// The first entry of a column that is wrong, and its row.
fn first<T: Copy>(column: &[T], is_wrong: impl Fn(T) -> bool) -> Option<(usize, T)> {
    let row = column.iter().position(|&entry| is_wrong(entry))?;
    Some((row, column[row]))
}

/// What a cache of these layers, which are alike, is made of.
fn layout(kv: &[KvLayer]) -> BlockLayout {
    let (kv_heads, head_dim, ty) = kv.first().map_or((0, 0, KvType::F16), |layer| {
        (layer.kv_heads(), layer.head_dim(), layer.ty())
    });
    BlockLayout {
        layers: kv.len() as u32,
        kv_heads: kv_heads as u32,
        head_dim: head_dim as u32,
        block_tokens: BLOCK,
        element: match ty {
            KvType::F16 => BlockElement::F16,
            KvType::Q8_0 => BlockElement::Q8_0,
        },
        block_bytes: (kv.len() * KvLayer::block_bytes(kv_heads, head_dim, ty)) as u64,
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
        if batch.rows() > 0 {
            let _turn = self.cpu.turn();
            let (kv, scratch) = (&mut self.kv, &mut self.scratch);
            self.decoder.run(&self.cpu, batch, kv, scratch, logits);
        }
        Ok(())
    }

    fn copy_block(&mut self, from: u32, to: u32) {
        self.assert_blocks(&[from, to]);
        for layer in &mut self.kv {
            layer.copy_block(from, to);
        }
    }

    fn export_blocks(&self, blocks: &[u32], out: &mut Vec<u8>) {
        self.assert_blocks(blocks);
        self.layout.begin(blocks.len(), out);
        for &block in blocks {
            for layer in &self.kv {
                layer.export_block(block, out);
            }
        }
    }

    fn import_blocks(&mut self, bytes: &[u8], blocks: &[u32]) -> Result<(), ImportError> {
        self.assert_blocks(blocks);
        let exported = self.layout.blocks(bytes, blocks.len())?;
        for (bytes, &block) in exported.zip(blocks) {
            let of_layer = bytes.len() / self.kv.len();
            for (layer, bytes) in self.kv.iter_mut().zip(bytes.chunks_exact(of_layer)) {
                layer.import_block(block, bytes);
            }
        }
        Ok(())
    }

    fn for_each(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        self.cpu.for_each(tasks, task);
    }
}
