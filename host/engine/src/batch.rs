//! The batch: sequences, runs, block tables and the pool, with their laws.
//!
//! This is state and what may be done to it. Who gets a place, rows or blocks is the scheduler's to say, which reads this
//! and returns a plan; what a token means is the emitter's. Three files: here what others read and how a sequence changes
//! its line, in `commands.rs` what callers ask, in `compute.rs` what a step does.

mod commands;
mod compute;
mod lines;
mod sequence;
mod sequences;
mod tokens;

use std::collections::BTreeMap;

pub(crate) use lines::Lines;
use sequence::{EvictionKey, Status};
pub(crate) use sequence::{JobId, SequenceState};
use sequences::Sequences;
pub(crate) use tokens::Tokens;

use crate::executor::ModelFacts;
use crate::kv_cache::BlockPool;

/// A run whose jobs have not all ended.
#[derive(Debug)]
struct RunState {
    sequences: Vec<u64>, // [jobs]
    live: u32,           // jobs that have not ended
}

/// What a job asks of its sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) max_tokens: Option<u32>, // `None` is as many as fit
    pub(crate) scores: bool,            // log-probabilities of the tokens it has
}

/// What is decoded, what waits for it, and the blocks behind both.
pub(crate) struct Batch {
    block_tokens: u32,
    context_length: u32,
    sequences: Sequences,
    runs: BTreeMap<u64, RunState>,
    lines: Lines,
    pool: BlockPool,
    arrivals: u64,
    step: u64,
}

impl Batch {
    pub(crate) fn new(facts: &ModelFacts) -> Batch {
        Batch {
            block_tokens: facts.block_tokens,
            context_length: facts.context_length,
            sequences: Sequences::default(),
            runs: BTreeMap::new(),
            lines: Lines::default(),
            pool: BlockPool::new(facts.kv_blocks),
            arrivals: 0,
            step: 0,
        }
    }

    /// Tokens of a block.
    pub(crate) fn block_tokens(&self) -> u32 {
        self.block_tokens
    }

    pub(crate) fn get(&self, id: u64) -> Option<&SequenceState> {
        self.sequences.get(id)
    }

    pub(crate) fn lines(&self) -> &Lines {
        &self.lines
    }

    pub(crate) fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// Tenants that may have come to work or run out of it since this was asked the last time, and whether they have some.
    pub(crate) fn take_changed_tenants(&mut self) -> Vec<(u32, bool)> {
        self.lines.take_changed()
    }

    /// Whether a step would do something even if nothing comes in.
    pub(crate) fn has_work(&self) -> bool {
        !self.lines.running().is_empty() || !self.lines.waiting().is_empty()
    }

    /// Tokens that still fit into a sequence.
    pub(crate) fn room(&self, id: u64) -> u32 {
        let length = self.get(id).map_or(0, SequenceState::length);
        self.context_length.saturating_sub(length)
    }

    /// An idle sequence with rows to compute gets in line.
    fn wake(&mut self, id: u64) {
        let Some(sequence) = self.sequences.get_mut(id) else {
            return;
        };
        if sequence.status != Status::Idle || sequence.rows() == 0 {
            return;
        }
        if sequence.arrival == 0 {
            self.arrivals += 1;
            sequence.arrival = self.arrivals;
        }
        self.set_status(id, Status::Waiting);
    }

    /// The one place where a sequence changes its line, and its blocks whether they are pinned.
    fn set_status(&mut self, id: u64, status: Status) {
        let Some(sequence) = self.sequences.get_mut(id) else {
            return;
        };
        let (tenant, arrival) = (sequence.tenant(), sequence.arrival);
        match std::mem::replace(&mut sequence.status, status) {
            Status::Waiting => self.lines.remove_waiting(tenant, arrival),
            Status::Running => self.lines.remove_running(tenant, arrival),
            Status::Idle | Status::Paused => {}
        }
        match status {
            Status::Waiting => self.lines.add_waiting(tenant, arrival, id),
            Status::Running => self.lines.add_running(tenant, arrival, id),
            Status::Idle => sequence.arrival = 0,
            Status::Paused => {}
        }
        let pinned = status == Status::Running;
        sequence.table.set_pinned(pinned, &mut self.pool);
        self.set_eviction(id);
    }

    /// Puts a sequence where it belongs in the order of eviction. After every change of its status, its table or its use.
    fn set_eviction(&mut self, id: u64) {
        let Some(sequence) = self.sequences.get_mut(id) else {
            return;
        };
        let evictable = sequence.status != Status::Running && !sequence.table.is_empty();
        let key = evictable.then(|| EvictionKey {
            shared: !sequence.table.holds_alone(&self.pool),
            waiting: sequence.status == Status::Waiting,
            used_step: sequence.used_step,
            sequence: id,
        });
        let old = std::mem::replace(&mut sequence.eviction, key);
        self.lines.set_eviction(sequence.tenant(), old, key);
    }

    /// Gives back all but the blocks of the first `tokens` positions; the tokens stay.
    pub(crate) fn truncate_blocks(&mut self, id: u64, tokens: u32) {
        let Some(sequence) = self.sequences.get_mut(id) else {
            return;
        };
        sequence.computed = sequence.computed.min(tokens);
        let blocks = sequence.computed.div_ceil(self.block_tokens);
        sequence.table.truncate(blocks as usize, &mut self.pool);
        self.set_eviction(id);
    }

    /// Holds the batch to its laws, as far as that is quick.
    ///
    /// # Panics
    /// When blocks were lost or made up.
    pub(crate) fn assert_conserved(&self) {
        self.pool.assert_conserved();
        assert!(
            self.pool.pinned() <= self.pool.held(),
            "what is pinned is held"
        );
    }

    /// Holds the batch to all its laws.
    #[cfg(test)]
    pub(crate) fn assert_lawful(&self) {
        let tables = self.sequences.all().values();
        self.pool
            .assert_matches(tables.map(|sequence| (sequence.tenant(), &sequence.table)));
        let mut evictable = Vec::new();
        for (&id, sequence) in self.sequences.all() {
            let (tenant, arrival) = (sequence.tenant(), sequence.arrival);
            let waits = self.lines.waiting().get(&tenant);
            let waits = waits.is_some_and(|line| line.get(&arrival) == Some(&id));
            assert_eq!(waits, sequence.status == Status::Waiting);
            let runs = self.lines.running().get(&arrival) == Some(&id);
            assert_eq!(runs, sequence.status == Status::Running);
            assert_eq!(runs, sequence.table.is_pinned());
            if !runs && !sequence.table.is_empty() {
                evictable.push(id);
            }
        }
        let mut listed: Vec<u64> = self.lines.evictable(None).collect();
        listed.sort_unstable();
        assert_eq!(listed, evictable);
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.sequences.all().is_empty() && self.runs.is_empty()
    }

    /// How often a sequence was looked up, so far.
    #[cfg(test)]
    pub(crate) fn visits(&self) -> u64 {
        self.sequences.visits()
    }

    #[cfg(test)]
    pub(crate) fn sequences(&self) -> impl Iterator<Item = &SequenceState> {
        self.sequences.all().values()
    }
}
