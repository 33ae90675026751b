//! A plan in the making: what the batch will look like once it is carried out, counted without changing the batch.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::Shares;
use super::plan::{Plan, Reason, Shortage, Span};
use crate::batch::{Batch, SequenceState};

/// Changes on top of a batch. Costs what is changed and what runs, not what there is.
#[derive(Clone)]
pub(super) struct Draft<'a> {
    batch: &'a Batch,
    plan: Plan,
    running: BTreeMap<u64, u64>,    // arrival -> sequence
    running_by: BTreeMap<u32, u32>, // tenant -> places
    blocks: HashMap<u32, Change>,   // where they change
    tenants: HashMap<u32, Change>,  // blocks by tenant, where they change
    free: u32,
    pinned: u32,
    dropped: BTreeSet<u64>, // sequences whose blocks are given up
    scored_rows: u32,       // that may still be planned
}

/// What is held and pinned more than before; negative is less.
#[derive(Clone, Copy, Default)]
struct Change {
    held: i64,
    pinned: i64,
}

fn changed(before: u32, change: i64) -> u32 {
    u32::try_from(i64::from(before) + change).expect("nothing is given up that is not held")
}

impl<'a> Draft<'a> {
    pub(super) fn new(batch: &'a Batch, scored_rows_max: u32) -> Draft<'a> {
        Draft {
            batch,
            plan: Plan::default(),
            running: batch.lines().running().clone(),
            running_by: batch.lines().running_by().clone(),
            blocks: HashMap::new(),
            tenants: HashMap::new(),
            free: batch.pool().free(),
            pinned: batch.pool().pinned(),
            dropped: BTreeSet::new(),
            scored_rows: scored_rows_max,
        }
    }

    pub(super) fn into_plan(self) -> Plan {
        self.plan
    }

    pub(super) fn plan(&self) -> &Plan {
        &self.plan
    }

    pub(super) fn get(&self, id: u64) -> &'a SequenceState {
        self.batch
            .get(id)
            .expect("whoever is in a line is in the batch")
    }

    /// Sequences that wait for a place, by tenant and arrival; those admitted since among them, those that lost their
    /// place since not.
    pub(super) fn waiting(&self) -> &'a BTreeMap<u32, BTreeMap<u64, u64>> {
        self.batch.lines().waiting()
    }

    /// Sequences with a place, by arrival.
    pub(super) fn running(&self) -> &BTreeMap<u64, u64> {
        &self.running
    }

    /// Places by tenant; none of them 0.
    pub(super) fn running_by(&self) -> &BTreeMap<u32, u32> {
        &self.running_by
    }

    pub(super) fn places(&self, tenant: u32) -> u32 {
        self.running_by.get(&tenant).copied().unwrap_or(0)
    }

    /// Blocks that sequences with a place hold, of all tenants together, and those they still need.
    pub(super) fn committed(&self) -> u32 {
        let missing = self.running.values().map(|&id| self.missing(id));
        self.pinned + missing.sum::<u32>()
    }

    /// The same of one tenant.
    pub(super) fn committed_by(&self, tenant: u32) -> u32 {
        let change = self.tenants.get(&tenant).map_or(0, |change| change.pinned);
        let pinned = changed(self.batch.pool().pinned_by(tenant), change);
        let running = self.running.values().copied();
        let own = running.filter(|&id| self.get(id).tenant() == tenant);
        pinned + own.map(|id| self.missing(id)).sum::<u32>()
    }

    /// The sequence of a tenant that came last among those with a place.
    pub(super) fn youngest(&self, of_tenant: Option<u32>) -> Option<u64> {
        let mut running = self.running.values().rev().copied();
        running.find(|&id| of_tenant.is_none_or(|tenant| tenant == self.get(id).tenant()))
    }

    fn held_by(&self, tenant: u32) -> u32 {
        let change = self.tenants.get(&tenant).map_or(0, |change| change.held);
        changed(self.batch.pool().held_by(tenant), change)
    }

    fn refs(&self, block: u32) -> u32 {
        let change = self.blocks.get(&block).map_or(0, |change| change.held);
        changed(self.batch.pool().refs(block), change)
    }

    fn pins(&self, block: u32) -> u32 {
        let change = self.blocks.get(&block).map_or(0, |change| change.pinned);
        changed(self.batch.pool().pins(block), change)
    }

    /// Blocks that a sequence adds to the pinned ones when it gets a place: its own, and those it still needs.
    pub(super) fn cost(&self, id: u64) -> u32 {
        let table = self.get(id).table();
        let unpinned = table
            .blocks()
            .iter()
            .filter(|&&block| self.pins(block) == 0);
        unpinned.count() as u32 + self.missing(id)
    }

    /// Blocks that a sequence needs beside those of its table.
    fn missing(&self, id: u64) -> u32 {
        let sequence = self.get(id);
        let block_tokens = self.batch.block_tokens();
        let next_block = (sequence.computed() / block_tokens) as usize;
        let copy = u32::from(self.is_shared_at(id, next_block));
        sequence.blocks_wanted(block_tokens) - sequence.table().len() as u32 + copy
    }

    fn is_shared_at(&self, id: u64, index: usize) -> bool {
        let block = self.get(id).table().blocks().get(index);
        block.is_some_and(|&block| self.refs(block) > 1)
    }

    /// Gives a waiting sequence a place.
    pub(super) fn admit(&mut self, id: u64) {
        let sequence = self.get(id);
        self.running.insert(sequence.arrival(), id);
        *self.running_by.entry(sequence.tenant()).or_insert(0) += 1;
        for &block in sequence.table().blocks() {
            self.pin(sequence.tenant(), block, 1);
        }
        self.plan.admitted.push(id);
    }

    /// Takes a place away; the blocks stay, as long as nobody needs them.
    pub(super) fn give_up_place(&mut self, id: u64, why: Reason) {
        self.leave(id);
        self.plan.yielded.push((id, why));
    }

    /// Takes place and blocks away.
    pub(super) fn preempt(&mut self, id: u64, why: Reason) {
        self.leave(id);
        self.drop_blocks(id);
        self.plan.preempted.push((id, why));
    }

    /// Ends a sequence for want of blocks.
    pub(super) fn end(&mut self, id: u64) {
        self.leave(id);
        self.drop_blocks(id);
        self.plan.ended.push(id);
    }

    fn leave(&mut self, id: u64) {
        let sequence = self.get(id);
        if self.running.remove(&sequence.arrival()).is_none() {
            return;
        }
        self.plan.admitted.retain(|&admitted| admitted != id);
        let places = self.running_by.entry(sequence.tenant()).or_insert(1);
        *places -= 1;
        if *places == 0 {
            self.running_by.remove(&sequence.tenant());
        }
        for &block in sequence.table().blocks() {
            self.pin(sequence.tenant(), block, -1);
        }
    }

    fn pin(&mut self, tenant: u32, block: u32, change: i64) {
        let before = self.pins(block);
        self.blocks.entry(block).or_default().pinned += change;
        let after = self.pins(block);
        let change = i64::from(after > 0) - i64::from(before > 0);
        self.tenants.entry(tenant).or_default().pinned += change;
        self.pinned = changed(self.pinned, change);
    }

    fn drop_blocks(&mut self, id: u64) {
        if !self.dropped.insert(id) {
            return;
        }
        let sequence = self.get(id);
        for &block in sequence.table().blocks() {
            self.release(sequence.tenant(), block);
        }
    }

    fn release(&mut self, tenant: u32, block: u32) {
        self.blocks.entry(block).or_default().held -= 1;
        if self.refs(block) == 0 {
            self.free += 1;
            self.tenants.entry(tenant).or_default().held -= 1;
        }
    }

    /// A block for a tenant, at the cost of sequences without a place if need be.
    fn take_block(&mut self, tenant: u32, kv_blocks_max: u32) -> Result<(), Shortage> {
        while self.held_by(tenant) >= kv_blocks_max {
            if !self.evict_one(Some(tenant)) {
                return Err(Shortage::Tenant);
            }
        }
        while self.free == 0 {
            if !self.evict_one(None) {
                return Err(Shortage::Pool);
            }
        }
        self.free -= 1;
        self.tenants.entry(tenant).or_default().held += 1;
        Ok(())
    }

    /// Drops the blocks of the next sequence without a place. False when there is none.
    fn evict_one(&mut self, of_tenant: Option<u32>) -> bool {
        let evictable = |id: &u64| {
            !self.dropped.contains(id) && !self.running.contains_key(&self.get(*id).arrival())
        };
        // Those that lost their place in this plan are in no list yet.
        let yielded = self.plan.yielded.iter().map(|&(id, _)| id).rev();
        let yielded =
            yielded.filter(|&id| of_tenant.is_none_or(|tenant| tenant == self.get(id).tenant()));
        let listed = self.batch.lines().evictable(of_tenant);
        let Some(victim) = listed.chain(yielded).find(evictable) else {
            return false;
        };
        self.drop_blocks(victim);
        self.plan.evicted.push(victim);
        true
    }

    /// Plans up to `rows_max` rows of a sequence, as far as there are blocks. Says what it lacks when it gets no row.
    pub(super) fn place(
        &mut self,
        id: u64,
        rows_max: u32,
        shares: &Shares,
    ) -> Result<u32, Shortage> {
        let sequence = self.get(id);
        let (start, target) = (sequence.computed(), sequence.target());
        let unscored = sequence.unscored().unwrap_or(u32::MAX).max(start);
        let rows_max = rows_max.min((unscored - start).saturating_add(self.scored_rows));
        let (end, shortage) = self.make_writable(id, target.min(start + rows_max), shares);
        if start == end {
            return shortage.map_or(Ok(0), Err);
        }
        let chosen = u32::from(sequence.has_job() && end == target);
        let scored = (end - chosen).saturating_sub(unscored);
        self.scored_rows = self.scored_rows.saturating_sub(scored);
        self.plan.spans.push(Span {
            sequence: id,
            start,
            end,
            logits: scored + chosen,
            scored,
        });
        Ok(end - start)
    }

    /// Plans blocks of its own for the positions of a sequence from where it stands to `end`; one that it shares is copied
    /// before it is written. Returns the end of what it got.
    fn make_writable(&mut self, id: u64, end: u32, shares: &Shares) -> (u32, Option<Shortage>) {
        let sequence = self.get(id);
        let (tenant, block_tokens) = (sequence.tenant(), self.batch.block_tokens());
        let kv_blocks_max = shares.kv_blocks_max(tenant);
        let mut at = sequence.computed();
        while at < end {
            let index = (at / block_tokens) as usize;
            let is_new = index >= sequence.table().len();
            if is_new || self.is_shared_at(id, index) {
                match self.take_block(tenant, kv_blocks_max) {
                    Ok(()) if is_new => self.pin_new(tenant),
                    Ok(()) if self.is_shared_at(id, index) => self.plan_copy(id, index),
                    // Taking the block may have dropped the others who shared it.
                    Ok(()) => {
                        self.free += 1;
                        self.tenants.entry(tenant).or_default().held -= 1;
                    }
                    Err(_) if !is_new && !self.is_shared_at(id, index) => {}
                    Err(shortage) => return (at, Some(shortage)),
                }
            }
            at = end.min((index as u32 + 1) * block_tokens);
        }
        (end, None)
    }

    fn plan_copy(&mut self, id: u64, index: usize) {
        let sequence = self.get(id);
        let (tenant, block) = (sequence.tenant(), sequence.table().blocks()[index]);
        self.pin(tenant, block, -1);
        self.release(tenant, block);
        self.pin_new(tenant);
        self.plan.copied.insert((id, index));
    }

    fn pin_new(&mut self, tenant: u32) {
        self.pinned += 1;
        self.tenants.entry(tenant).or_default().pinned += 1;
    }

    /// The spans so far are those that decode.
    pub(super) fn end_decodes(&mut self) {
        self.plan.decode_rows = self.plan.spans.len() as u32;
    }
}
