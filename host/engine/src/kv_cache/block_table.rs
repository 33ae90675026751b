//! The blocks of one sequence, in order of position, shared with its forks until one of them writes.

use super::BlockPool;

/// Blocks that hold `tokens` positions of `block_tokens` each.
pub(crate) fn blocks_for(tokens: u32, block_tokens: u32) -> u32 {
    tokens.div_ceil(block_tokens)
}

/// Block `i` holds positions `i * block_tokens .. (i + 1) * block_tokens`.
#[derive(Debug, Default)]
pub(crate) struct BlockTable {
    blocks: Vec<u32>,
}

/// A block of the table that its sequence wants to write but does not hold alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shared {
    pub(crate) index: usize,
    pub(crate) block: u32,
}

impl BlockTable {
    pub(crate) fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    pub(crate) fn len(&self) -> usize {
        self.blocks.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Appends a block that [`BlockPool::take`] gave.
    pub(crate) fn push(&mut self, block: u32) {
        self.blocks.push(block);
    }

    /// The block at `index` if a write to it needs a copy first.
    pub(crate) fn shared_at(&self, index: usize, pool: &BlockPool) -> Option<Shared> {
        let block = *self.blocks.get(index)?;
        pool.is_shared(block).then_some(Shared { index, block })
    }

    /// Puts the private copy in place of the shared block.
    pub(crate) fn replace(&mut self, shared: Shared, copy: u32, pool: &mut BlockPool) {
        debug_assert_eq!(self.blocks[shared.index], shared.block);
        self.blocks[shared.index] = copy;
        pool.release(shared.block);
    }

    /// A table that shares the first `count` blocks of this one.
    pub(crate) fn fork(&self, count: usize, pool: &mut BlockPool) -> BlockTable {
        let blocks = self.blocks[..count].to_vec();
        for &block in &blocks {
            pool.share(block);
        }
        BlockTable { blocks }
    }

    /// Gives back all but the first `count` blocks.
    pub(crate) fn truncate(&mut self, count: usize, pool: &mut BlockPool) {
        while self.blocks.len() > count {
            let block = self.blocks.pop().expect("longer than count");
            pool.release(block);
        }
    }

    /// Whether giving this table back would free anything.
    pub(crate) fn holds_alone(&self, pool: &BlockPool) -> bool {
        self.blocks.iter().any(|&block| !pool.is_shared(block))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fork_shares_blocks_until_it_replaces_one() {
        let mut pool = BlockPool::new(4);
        let mut parent = BlockTable::default();
        for _ in 0..2 {
            parent.push(pool.take(0).unwrap());
        }
        let mut child = parent.fork(2, &mut pool);
        assert_eq!(pool.held(), 2);
        let shared = child.shared_at(1, &pool).unwrap();
        let copy = pool.take(0).unwrap();
        child.replace(shared, copy, &mut pool);
        assert_eq!(child.shared_at(1, &pool), None);
        assert_eq!(parent.shared_at(1, &pool), None);
        assert!(parent.shared_at(0, &pool).is_some());
        pool.assert_matches([(0, parent.blocks()), (0, child.blocks())].into_iter());
        child.truncate(0, &mut pool);
        parent.truncate(1, &mut pool);
        assert_eq!(pool.held(), 1);
    }

    #[test]
    fn a_partial_block_counts_as_one() {
        assert_eq!(blocks_for(0, 16), 0);
        assert_eq!(blocks_for(1, 16), 1);
        assert_eq!(blocks_for(16, 16), 1);
        assert_eq!(blocks_for(17, 16), 2);
    }
}
