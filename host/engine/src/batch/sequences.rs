//! All sequences by id, for as many as there are: a step looks up those that it works on. There is no way to walk over all
//! of them, except in tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::sequence::SequenceState;
use crate::sequence::SharedSequence;

#[derive(Default)]
pub(super) struct Sequences {
    by_id: BTreeMap<u64, SequenceState>,
    /// How often one was looked up.
    #[cfg(test)]
    visits: std::cell::Cell<u64>,
}

impl Sequences {
    pub(super) fn get(&self, id: u64) -> Option<&SequenceState> {
        self.visit();
        self.by_id.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut SequenceState> {
        self.visit();
        self.by_id.get_mut(&id)
    }

    /// The state behind a handle, made when it is first asked for.
    pub(super) fn of(&mut self, shared: &Arc<SharedSequence>) -> &mut SequenceState {
        self.visit();
        self.by_id
            .entry(shared.id)
            .or_insert_with(|| SequenceState::new(Arc::clone(shared)))
    }

    pub(super) fn insert(&mut self, sequence: SequenceState) {
        self.visit();
        self.by_id.insert(sequence.shared.id, sequence);
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<SequenceState> {
        self.visit();
        self.by_id.remove(&id)
    }

    fn visit(&self) {
        #[cfg(test)]
        self.visits.update(|visits| visits + 1);
    }
}

#[cfg(test)]
impl Sequences {
    pub(super) fn visits(&self) -> u64 {
        self.visits.get()
    }

    pub(super) fn all(&self) -> &BTreeMap<u64, SequenceState> {
        &self.by_id
    }
}
