//! From waiting to running: in the order of fair shares, and only as many as the blocks are enough for.

use std::collections::{BTreeMap, BTreeSet};

use crate::step::StepLoop;

/// Blocks that running sequences have or will need, in all and by tenant.
struct Committed {
    seen: Vec<bool>, // [blocks]
    total: u32,
    by_tenant: BTreeMap<u32, u32>,
}

impl StepLoop {
    pub(crate) fn admit(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let mut committed = self.committed();
        let mut full = BTreeSet::new(); // tenants that wait for their own blocks
        while self.running.len() < self.limits.sequences_running_max as usize {
            let Some(id) = self.next_waiting(&full) else {
                return;
            };
            let tenant = self.sequences[&id].tenant();
            let blocks = committed.cost(self, id);
            let own = committed.by_tenant.get(&tenant).copied().unwrap_or(0);
            // Whoever is alone is admitted in any case: it fits, or it fails with the reason.
            if own > 0 && own + blocks > self.tenants.kv_blocks_max(tenant) {
                full.insert(tenant);
                continue;
            }
            // A block to grow for each running sequence, or admitting this one would soon preempt another. Nobody
            // smaller is let in instead: the first in line would never get its blocks.
            let growth = self.running.len() as u32;
            let fits = committed.total + blocks + growth <= self.pool.total();
            if !self.running.is_empty() && !fits {
                return;
            }
            committed.add(self, id);
            self.admit_sequence(id);
        }
    }

    /// The oldest sequence of the least served tenant.
    fn next_waiting(&self, except: &BTreeSet<u32>) -> Option<u64> {
        self.waiting
            .iter()
            .map(|(&arrival, &id)| (arrival, id, self.sequences[&id].tenant()))
            .filter(|(_, _, tenant)| !except.contains(tenant))
            .min_by_key(|&(arrival, _, tenant)| (self.tenants.served(tenant), arrival))
            .map(|(_, id, _)| id)
    }

    fn committed(&self) -> Committed {
        let mut committed = Committed {
            seen: vec![false; self.pool.total() as usize],
            total: 0,
            by_tenant: BTreeMap::new(),
        };
        for &id in self.running.values() {
            committed.add(self, id);
        }
        committed
    }
}

impl Committed {
    /// Blocks that running `id` adds: its own that nobody running shares, and those it still needs.
    fn cost(&self, step: &StepLoop, id: u64) -> u32 {
        let sequence = &step.sequences[&id];
        let table = sequence.table.blocks();
        let unseen = table
            .iter()
            .filter(|&&block| !self.seen[block as usize])
            .count() as u32;
        let block_tokens = step.shared.facts.block_tokens;
        let missing = sequence.blocks_wanted(block_tokens) - table.len() as u32;
        let next_block = (sequence.computed / block_tokens) as usize;
        let copy = u32::from(sequence.table.shared_at(next_block, &step.pool).is_some());
        unseen + missing + copy
    }

    fn add(&mut self, step: &StepLoop, id: u64) {
        let blocks = self.cost(step, id);
        let sequence = &step.sequences[&id];
        for &block in sequence.table.blocks() {
            self.seen[block as usize] = true;
        }
        self.total += blocks;
        *self.by_tenant.entry(sequence.tenant()).or_insert(0) += blocks;
    }
}
