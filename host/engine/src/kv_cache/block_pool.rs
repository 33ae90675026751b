//! The blocks of the cache with their reference counts, and how many each tenant holds.
//!
//! Invariant: `free + cached + held = total`. A block belongs to one tenant, since forks stay with their owner,
//! so a block shared by several sequences counts once for it.

use std::collections::BTreeMap;

/// All blocks of one executor.
#[derive(Debug)]
pub(crate) struct BlockPool {
    refs: Vec<u32>,              // [blocks], sequences that hold the block
    tenants: Vec<u32>,           // [blocks], who holds it, where refs > 0
    free: Vec<u32>,              // block ids, the last is taken first
    held_by: BTreeMap<u32, u32>, // tenant -> blocks
}

impl BlockPool {
    pub(crate) fn new(blocks: u32) -> BlockPool {
        BlockPool {
            refs: vec![0; blocks as usize],
            tenants: vec![0; blocks as usize],
            free: (0..blocks).rev().collect(),
            held_by: BTreeMap::new(),
        }
    }

    pub(crate) fn total(&self) -> u32 {
        self.refs.len() as u32
    }

    pub(crate) fn free(&self) -> u32 {
        self.free.len() as u32
    }

    /// Blocks that no sequence holds but whose content a prefix cache still knows. There is none yet: this is its
    /// place in the law, [`BlockPool::release`] is where a block would go to it, and [`BlockPool::take`] where it
    /// would give one back.
    pub(crate) fn cached(&self) -> u32 {
        0
    }

    pub(crate) fn held(&self) -> u32 {
        self.held_by.values().sum()
    }

    pub(crate) fn held_by(&self, tenant: u32) -> u32 {
        self.held_by.get(&tenant).copied().unwrap_or(0)
    }

    /// A free block with one reference, or `None` when there is none.
    pub(crate) fn take(&mut self, tenant: u32) -> Option<u32> {
        let block = self.free.pop()?;
        self.refs[block as usize] = 1;
        self.tenants[block as usize] = tenant;
        *self.held_by.entry(tenant).or_insert(0) += 1;
        Some(block)
    }

    /// One more sequence holds `block`.
    pub(crate) fn share(&mut self, block: u32) {
        assert!(self.refs[block as usize] > 0, "a free block is not shared");
        self.refs[block as usize] += 1;
    }

    pub(crate) fn is_shared(&self, block: u32) -> bool {
        self.refs[block as usize] > 1
    }

    /// One sequence less holds `block`; the last one frees it.
    pub(crate) fn release(&mut self, block: u32) {
        let refs = &mut self.refs[block as usize];
        assert!(*refs > 0, "a block is released once by each holder");
        *refs -= 1;
        if *refs > 0 {
            return;
        }
        let tenant = self.tenants[block as usize];
        let held = self
            .held_by
            .get_mut(&tenant)
            .expect("a held block is counted for its tenant");
        *held -= 1;
        if *held == 0 {
            self.held_by.remove(&tenant);
        }
        self.free.push(block);
    }

    /// Holds the pool to its law.
    ///
    /// # Panics
    /// When blocks were lost or made up: continuing could give one tenant's context to another.
    pub(crate) fn assert_conserved(&self) {
        assert_eq!(
            self.free() + self.cached() + self.held(),
            self.total(),
            "free + cached + held blocks are all blocks"
        );
    }

    /// The whole truth, for tests: reference counts are exactly what the tables say.
    #[cfg(test)]
    pub(crate) fn assert_matches<'a>(&self, tables: impl Iterator<Item = (u32, &'a [u32])>) {
        let mut refs = vec![0; self.refs.len()];
        for (tenant, table) in tables {
            for &block in table {
                refs[block as usize] += 1;
                assert_eq!(self.tenants[block as usize], tenant, "owner of {block}");
            }
        }
        assert_eq!(refs, self.refs, "reference counts");
        let mut free = self.free.clone();
        free.sort_unstable();
        let unheld: Vec<u32> = (0..self.total())
            .filter(|&block| refs[block as usize] == 0)
            .collect();
        assert_eq!(free, unheld, "free blocks");
        self.assert_conserved();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_block_is_free_after_its_last_holder() {
        let mut pool = BlockPool::new(2);
        let block = pool.take(7).unwrap();
        pool.share(block);
        pool.release(block);
        assert_eq!((pool.free(), pool.held(), pool.held_by(7)), (1, 1, 1));
        pool.release(block);
        assert_eq!((pool.free(), pool.held(), pool.held_by(7)), (2, 0, 0));
        pool.assert_conserved();
    }

    #[test]
    fn an_empty_pool_gives_none() {
        let mut pool = BlockPool::new(1);
        assert!(pool.take(0).is_some());
        assert!(pool.take(0).is_none());
    }

    #[test]
    #[should_panic(expected = "released once")]
    fn a_double_release_is_a_bug() {
        let mut pool = BlockPool::new(1);
        let block = pool.take(0).unwrap();
        pool.release(block);
        pool.release(block);
    }
}
