//! The blocks of the cache with their reference counts, and how many each tenant holds.
//!
//! A block is *held* by every sequence whose table names it, and *pinned* by those of them that have a place in the batch:
//! a pinned block is not given up for another. Invariant: `free + cached + held = total`, and what is pinned is held. A block belongs to one tenant, since forks stay with their owner,
//! so a block shared by several sequences counts once for it.

use std::collections::BTreeMap;

/// All blocks of one executor.
#[derive(Debug)]
pub(crate) struct BlockPool {
    refs: Vec<u32>,    // [blocks], sequences that hold the block
    pins: Vec<u32>,    // [blocks], running sequences that hold the block
    tenants: Vec<u32>, // [blocks], who holds it, where refs > 0
    free: Vec<u32>,    // block ids, the last is taken first
    held_by: Tally,
    pinned_by: Tally,
}

/// Blocks by tenant, and all together.
#[derive(Debug, Default)]
struct Tally {
    by_tenant: BTreeMap<u32, u32>,
    total: u32,
}

impl Tally {
    fn add(&mut self, tenant: u32) {
        *self.by_tenant.entry(tenant).or_insert(0) += 1;
        self.total += 1;
    }

    fn take(&mut self, tenant: u32) {
        let blocks = self
            .by_tenant
            .get_mut(&tenant)
            .expect("a block is taken from the tenant it was added to");
        *blocks -= 1;
        if *blocks == 0 {
            self.by_tenant.remove(&tenant);
        }
        self.total -= 1;
    }

    fn of(&self, tenant: u32) -> u32 {
        self.by_tenant.get(&tenant).copied().unwrap_or(0)
    }
}

impl BlockPool {
    pub(crate) fn new(blocks: u32) -> BlockPool {
        BlockPool {
            refs: vec![0; blocks as usize],
            pins: vec![0; blocks as usize],
            tenants: vec![0; blocks as usize],
            free: (0..blocks).rev().collect(),
            held_by: Tally::default(),
            pinned_by: Tally::default(),
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
        self.held_by.total
    }

    pub(crate) fn held_by(&self, tenant: u32) -> u32 {
        self.held_by.of(tenant)
    }

    pub(crate) fn pinned(&self) -> u32 {
        self.pinned_by.total
    }

    pub(crate) fn pinned_by(&self, tenant: u32) -> u32 {
        self.pinned_by.of(tenant)
    }

    /// Sequences that hold `block`.
    pub(crate) fn refs(&self, block: u32) -> u32 {
        self.refs[block as usize]
    }

    /// Sequences with a place in the batch that hold `block`.
    pub(crate) fn pins(&self, block: u32) -> u32 {
        self.pins[block as usize]
    }

    /// A free block with one reference, or `None` when there is none.
    pub(crate) fn take(&mut self, tenant: u32) -> Option<u32> {
        let block = self.free.pop()?;
        self.refs[block as usize] = 1;
        self.tenants[block as usize] = tenant;
        self.held_by.add(tenant);
        Some(block)
    }

    /// One more sequence holds `block`.
    pub(crate) fn share(&mut self, block: u32) {
        assert!(self.refs[block as usize] > 0, "a free block is not shared");
        self.refs[block as usize] += 1;
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
        self.held_by.take(tenant);
        self.free.push(block);
    }

    /// One more sequence that has a place in the batch holds `block`.
    pub(super) fn pin(&mut self, block: u32) {
        assert!(self.refs[block as usize] > 0, "a free block is not pinned");
        self.pins[block as usize] += 1;
        if self.pins[block as usize] == 1 {
            self.pinned_by.add(self.tenants[block as usize]);
        }
    }

    /// One sequence that has a place in the batch less holds `block`. Before it is released.
    pub(super) fn unpin(&mut self, block: u32) {
        let pins = &mut self.pins[block as usize];
        assert!(*pins > 0, "a block is unpinned once by each that pinned it");
        *pins -= 1;
        if *pins == 0 {
            self.pinned_by.take(self.tenants[block as usize]);
        }
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
    pub(crate) fn assert_matches<'a>(
        &self,
        tables: impl Iterator<Item = (u32, &'a super::BlockTable)>,
    ) {
        let mut refs = vec![0; self.refs.len()];
        let mut pins = vec![0; self.refs.len()];
        for (tenant, table) in tables {
            for &block in table.blocks() {
                refs[block as usize] += 1;
                pins[block as usize] += u32::from(table.is_pinned());
                assert_eq!(self.tenants[block as usize], tenant, "owner of {block}");
            }
        }
        assert_eq!(refs, self.refs, "reference counts");
        assert_eq!(pins, self.pins, "pins");
        let pinned = pins.iter().filter(|&&pins| pins > 0).count();
        assert_eq!(pinned, self.pinned() as usize, "pinned blocks");
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
