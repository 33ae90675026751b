//! The blocks of one sequence, in order of position, shared with its forks until one of them writes.

use super::BlockPool;

/// Blocks that hold `tokens` positions of `block_tokens` each.
pub(crate) fn blocks_for(tokens: u32, block_tokens: u32) -> u32 {
    tokens.div_ceil(block_tokens)
}

/// Block `i` holds positions `i * block_tokens .. (i + 1) * block_tokens`.
///
/// A sequence shares a prefix with its forks, so of its blocks those before some index are shared and the others are not.
#[derive(Debug, Default)]
pub(crate) struct BlockTable {
    blocks: Vec<u32>,
    pinned: bool, // its sequence has a place in the batch
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

    #[cfg(test)]
    pub(crate) fn is_pinned(&self) -> bool {
        self.pinned
    }

    /// Pins its blocks, those to come included, or no longer.
    pub(crate) fn set_pinned(&mut self, pinned: bool, pool: &mut BlockPool) {
        if std::mem::replace(&mut self.pinned, pinned) == pinned {
            return;
        }
        for &block in &self.blocks {
            if pinned {
                pool.pin(block);
            } else {
                pool.unpin(block);
            }
        }
    }

    /// Appends a block that [`BlockPool::take`] gave.
    pub(crate) fn push(&mut self, block: u32, pool: &mut BlockPool) {
        if self.pinned {
            pool.pin(block);
        }
        self.blocks.push(block);
    }

    /// Puts a block that [`BlockPool::take`] gave in place of the one at `index`, which it returns.
    pub(crate) fn replace(&mut self, index: usize, block: u32, pool: &mut BlockPool) -> u32 {
        let old = std::mem::replace(&mut self.blocks[index], block);
        if self.pinned {
            pool.pin(block);
            pool.unpin(old);
        }
        pool.release(old);
        old
    }

    /// A table that shares the first `count` blocks of this one.
    pub(crate) fn fork(&self, count: usize, pool: &mut BlockPool) -> BlockTable {
        let blocks = self.blocks[..count].to_vec();
        for &block in &blocks {
            pool.share(block);
        }
        BlockTable {
            blocks,
            pinned: false,
        }
    }

    /// Gives back all but the first `count` blocks.
    pub(crate) fn truncate(&mut self, count: usize, pool: &mut BlockPool) {
        while self.blocks.len() > count {
            let block = self.blocks.pop().expect("longer than count");
            if self.pinned {
                pool.unpin(block);
            }
            pool.release(block);
        }
    }

    /// Whether giving this table back would free anything: its last block is the last that forks share.
    pub(crate) fn holds_alone(&self, pool: &BlockPool) -> bool {
        self.blocks
            .last()
            .is_some_and(|&block| pool.refs(block) == 1)
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
            let block = pool.take(0).unwrap();
            parent.push(block, &mut pool);
        }
        let mut child = parent.fork(2, &mut pool);
        assert_eq!(pool.held(), 2);
        assert!(pool.refs(child.blocks()[1]) > 1 && !child.holds_alone(&pool));
        child.set_pinned(true, &mut pool);
        let copy = pool.take(0).unwrap();
        child.replace(1, copy, &mut pool);
        assert!(pool.refs(child.blocks()[1]) == 1 && child.holds_alone(&pool));
        assert!(pool.refs(parent.blocks()[1]) == 1);
        assert!(pool.refs(parent.blocks()[0]) > 1);
        pool.assert_matches([(0, &parent), (0, &child)].into_iter());
        assert_eq!((pool.pinned(), pool.pinned_by(0)), (2, 2));
        child.set_pinned(false, &mut pool);
        assert_eq!(pool.pinned(), 0);
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
