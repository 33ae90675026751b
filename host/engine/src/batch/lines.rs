//! Where sequences stand: those that wait for a place, those that have one, and the order in which the others lose their
//! blocks. Everything here costs what changes, whatever number of sequences there is.

use std::collections::{BTreeMap, BTreeSet};

use super::sequence::EvictionKey;

/// The lines of all sequences. Who is idle or paused is only in the order of eviction, and only with blocks.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    waiting: BTreeMap<u32, BTreeMap<u64, u64>>, // tenant -> arrival -> sequence
    waiting_count: usize,
    running: BTreeMap<u64, u64>,    // arrival -> sequence
    running_by: BTreeMap<u32, u32>, // tenant -> running sequences
    changed: BTreeSet<u32>,         // tenants that entered or left one of these maps
    evictable: BTreeSet<EvictionKey>,
    evictable_of: BTreeMap<u32, BTreeSet<EvictionKey>>,
}

impl Lines {
    /// Tenants with a sequence that waits, and their sequences by arrival.
    pub(crate) fn waiting(&self) -> &BTreeMap<u32, BTreeMap<u64, u64>> {
        &self.waiting
    }

    pub(crate) fn waiting_count(&self) -> usize {
        self.waiting_count
    }

    /// Sequences with a place, by arrival.
    pub(crate) fn running(&self) -> &BTreeMap<u64, u64> {
        &self.running
    }

    /// Places by tenant; none of them 0.
    pub(crate) fn running_by(&self) -> &BTreeMap<u32, u32> {
        &self.running_by
    }

    /// Sequences that may lose their blocks, of one tenant or of all, in the order in which they do.
    pub(crate) fn evictable(&self, of_tenant: Option<u32>) -> impl Iterator<Item = u64> + '_ {
        let keys = match of_tenant {
            None => Some(&self.evictable),
            Some(tenant) => self.evictable_of.get(&tenant),
        };
        keys.into_iter().flatten().map(|key| key.sequence)
    }

    /// See [`Batch::take_changed_tenants`](super::Batch::take_changed_tenants).
    pub(super) fn take_changed(&mut self) -> Vec<(u32, bool)> {
        let works = |tenant: &u32| {
            self.waiting.contains_key(tenant) || self.running_by.contains_key(tenant)
        };
        let changed = std::mem::take(&mut self.changed).into_iter();
        changed.map(|tenant| (tenant, works(&tenant))).collect()
    }

    pub(super) fn add_waiting(&mut self, tenant: u32, arrival: u64, sequence: u64) {
        let line = self.waiting.entry(tenant).or_default();
        if line.is_empty() {
            self.changed.insert(tenant);
        }
        line.insert(arrival, sequence);
        self.waiting_count += 1;
    }

    pub(super) fn remove_waiting(&mut self, tenant: u32, arrival: u64) {
        let Some(line) = self.waiting.get_mut(&tenant) else {
            return;
        };
        self.waiting_count -= usize::from(line.remove(&arrival).is_some());
        if line.is_empty() {
            self.waiting.remove(&tenant);
            self.changed.insert(tenant);
        }
    }

    pub(super) fn add_running(&mut self, tenant: u32, arrival: u64, sequence: u64) {
        self.running.insert(arrival, sequence);
        let places = self.running_by.entry(tenant).or_insert(0);
        if *places == 0 {
            self.changed.insert(tenant);
        }
        *places += 1;
    }

    pub(super) fn remove_running(&mut self, tenant: u32, arrival: u64) {
        if self.running.remove(&arrival).is_none() {
            return;
        }
        let places = self.running_by.entry(tenant).or_insert(1);
        *places -= 1;
        if *places == 0 {
            self.running_by.remove(&tenant);
            self.changed.insert(tenant);
        }
    }

    /// Moves a sequence in the order of eviction; `None` is outside of it.
    pub(super) fn set_eviction(
        &mut self,
        tenant: u32,
        old: Option<EvictionKey>,
        new: Option<EvictionKey>,
    ) {
        if old == new {
            return;
        }
        if let Some(old) = old {
            self.evictable.remove(&old);
            if let Some(own) = self.evictable_of.get_mut(&tenant) {
                own.remove(&old);
                if own.is_empty() {
                    self.evictable_of.remove(&tenant);
                }
            }
        }
        if let Some(new) = new {
            self.evictable.insert(new);
            self.evictable_of.entry(tenant).or_default().insert(new);
        }
    }
}
