//! What the batch knows of one sequence.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::oneshot;

use super::tokens::Tokens;
use crate::error::EngineError;
use crate::kv_cache::{BlockTable, blocks_for};
use crate::sequence::SharedSequence;

/// Where a sequence stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// Nothing to compute; its blocks may be dropped and computed again when they are needed.
    Idle,
    /// Has work, waits for a place; its blocks may be dropped too.
    Waiting,
    /// Has a place: its blocks are safe until it is preempted.
    Running,
    /// Its job waits for the reader; like idle.
    Paused,
}

/// A fork that waits until its parent's prefix is computed.
#[derive(Debug)]
pub(crate) struct Fork {
    pub(crate) child: u64,
    pub(crate) length: u32, // tokens of the parent when it was asked for
    pub(crate) reply: oneshot::Sender<Result<(), EngineError>>,
}

/// Which job decodes a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct JobId {
    pub(crate) run: u64,
    pub(crate) index: u32, // in its run
}

/// The order in which sequences lose their blocks; the smallest goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EvictionKey {
    pub(super) shared: bool, // giving up its blocks would free none
    pub(super) waiting: bool,
    pub(super) used_step: u64,
    pub(crate) sequence: u64,
}

/// One sequence.
///
/// Positions: `0..computed` have keys and values in `table`, `computed..tokens.len()` have not. Without a job the
/// last token is left uncomputed, because whoever decodes next wants its logits, and forks share all but that row.
#[derive(Debug)]
pub(crate) struct SequenceState {
    pub(super) shared: Arc<SharedSequence>,
    pub(super) tokens: Tokens,
    pub(super) computed: u32,
    pub(super) table: BlockTable,
    pub(super) status: Status,
    /// Order among those with work: smaller came earlier. Kept over preemption.
    pub(super) arrival: u64,
    /// The step that last computed for it or shared it.
    pub(super) used_step: u64,
    /// Its place in the order of eviction, while it has one.
    pub(super) eviction: Option<EvictionKey>,
    pub(super) job: Option<JobId>,
    /// The first row whose logits are still wanted for the token after it, where the job asks for those of its prompt.
    pub(super) unscored: Option<u32>,
    pub(super) forks: Vec<Fork>,
    /// Appended tokens that no run has counted as its prompt yet.
    pub(super) uncounted: Vec<Uncounted>,
    /// Why its prefix could not be computed, until somebody is told; nothing is computed before.
    pub(super) failure: Option<EngineError>,
    /// The handle is gone: it is removed once it has no job.
    pub(super) released: bool,
}

impl SequenceState {
    pub(super) fn new(shared: Arc<SharedSequence>) -> SequenceState {
        SequenceState {
            shared,
            tokens: Tokens::default(),
            computed: 0,
            table: BlockTable::default(),
            status: Status::Idle,
            arrival: 0,
            used_step: 0,
            eviction: None,
            job: None,
            unscored: None,
            forks: Vec::new(),
            uncounted: Vec::new(),
            failure: None,
            released: false,
        }
    }

    pub(crate) fn tenant(&self) -> u32 {
        self.shared.owner.tenant
    }

    pub(crate) fn arrival(&self) -> u64 {
        self.arrival
    }

    pub(crate) fn computed(&self) -> u32 {
        self.computed
    }

    pub(crate) fn table(&self) -> &BlockTable {
        &self.table
    }

    pub(crate) fn length(&self) -> u32 {
        self.tokens.len() as u32
    }

    /// Whether a job wants the logits after its last token.
    pub(crate) fn has_job(&self) -> bool {
        self.job.is_some()
    }

    /// The first row whose logits are still wanted for the token after it.
    pub(crate) fn unscored(&self) -> Option<u32> {
        self.unscored
    }

    /// The token at a position.
    pub(crate) fn token(&self, position: u32) -> Option<u32> {
        let position = position as usize;
        let mut piece = self.tokens.pieces(position, position + 1).flatten();
        piece.next().copied()
    }

    /// Whether it lacks just the row of its last token.
    pub(crate) fn decodes(&self) -> bool {
        self.has_job() && self.rows() == 1
    }

    /// The length up to which rows are to be computed.
    pub(crate) fn target(&self) -> u32 {
        if self.failure.is_some() {
            return self.computed;
        }
        let last = u32::from(self.job.is_none());
        self.length().saturating_sub(last)
    }

    /// Rows still to compute.
    pub(crate) fn rows(&self) -> u32 {
        self.target().saturating_sub(self.computed)
    }

    /// Blocks its table will have once [`SequenceState::target`] is reached, with room for one token more.
    pub(crate) fn blocks_wanted(&self, block_tokens: u32) -> u32 {
        let next = u32::from(self.job.is_some());
        blocks_for(self.target() + next, block_tokens).max(self.table.len() as u32)
    }

    /// The tokens that no run has counted yet, counted from now on.
    pub(super) fn count_prompt(&mut self) -> u32 {
        self.uncounted.drain(..).map(|part| part.count()).sum()
    }

    /// Adds tokens at the end.
    pub(super) fn append(&mut self, tokens: Vec<u32>) {
        let start = self.length();
        self.tokens.append(tokens);
        let end = self.length();
        let last = self.uncounted.last_mut();
        if !last.is_some_and(|last| last.grow(start, end)) {
            self.uncounted.push(Uncounted::new(start, end));
        }
    }
}

/// Positions `start..end` of one append, shared with the forks taken since.
#[derive(Clone, Debug)]
pub(crate) struct Uncounted {
    start: u32,
    end: u32,
    counted_to: Arc<AtomicU32>, // positions before it are in some run's usage
}

impl Uncounted {
    fn new(start: u32, end: u32) -> Uncounted {
        Uncounted {
            start,
            end,
            counted_to: Arc::new(AtomicU32::new(start)),
        }
    }

    /// Marks them counted and returns how many were not.
    fn count(&self) -> u32 {
        let before = self.counted_to.fetch_max(self.end, Ordering::Relaxed);
        self.end.saturating_sub(before)
    }

    /// Grows by an append that follows at once. False when a fork shares it, which must not see the new end, or when
    /// it does not follow.
    fn grow(&mut self, start: u32, end: u32) -> bool {
        let grows = self.end == start && Arc::strong_count(&self.counted_to) == 1;
        if grows {
            self.end = end;
        }
        grows
    }

    /// Cuts it to `length` positions; false when nothing is left.
    pub(super) fn truncate(&mut self, length: u32) -> bool {
        self.end = self.end.min(length);
        self.start < self.end
    }
}
