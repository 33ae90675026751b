//! What the engine knows of each sequence and of the job that decodes it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use realm_text::{Detokenizer, StopMatcher};
use tokio::sync::oneshot;

use crate::client::Face;
use crate::error::EngineError;
use crate::kv_cache::{BlockTable, blocks_for};
use crate::policy::Policy;
use crate::sampler::Sampler;

/// Where a sequence stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// Nothing to compute; its blocks may be dropped and computed again when they are needed.
    Idle,
    /// Has work, waits to be admitted; its blocks may be dropped too.
    Waiting,
    /// Admitted: its blocks are safe until it is preempted.
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

/// One sequence.
///
/// Positions: `0..computed` have keys and values in `table`, `computed..tokens.len()` have not. Without a job the
/// last token is left uncomputed, because whoever decodes next wants its logits, and forks share all but that row.
#[derive(Debug)]
pub(crate) struct SequenceState {
    pub(crate) face: Arc<Face>,
    pub(crate) tokens: Vec<u32>,
    pub(crate) computed: u32,
    pub(crate) table: BlockTable,
    pub(crate) status: Status,
    /// Order among those with work: smaller came earlier. Kept over preemption.
    pub(crate) arrival: u64,
    /// The step that last computed for it or shared it.
    pub(crate) used_step: u64,
    pub(crate) job: Option<JobState>,
    pub(crate) forks: Vec<Fork>,
    /// Appended tokens that no run has counted as its prompt yet.
    pub(crate) uncounted: Vec<Uncounted>,
    /// Why its prefix could not be computed, until somebody is told; nothing is computed before.
    pub(crate) failure: Option<EngineError>,
    /// The handle is gone: it is removed once it has no job.
    pub(crate) released: bool,
}

impl SequenceState {
    pub(crate) fn new(face: Arc<Face>) -> SequenceState {
        SequenceState {
            face,
            tokens: Vec::new(),
            computed: 0,
            table: BlockTable::default(),
            status: Status::Idle,
            arrival: 0,
            used_step: 0,
            job: None,
            forks: Vec::new(),
            uncounted: Vec::new(),
            failure: None,
            released: false,
        }
    }

    pub(crate) fn tenant(&self) -> u32 {
        self.face.owner.tenant
    }

    pub(crate) fn length(&self) -> u32 {
        self.tokens.len() as u32
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
}

/// A job on its sequence.
#[derive(Debug)]
pub(crate) struct JobState {
    pub(crate) run: u64,
    pub(crate) job: u32, // index in its run
    pub(crate) policy: Policy,
    pub(crate) sampler: Sampler,
    pub(crate) detokenizer: Detokenizer,
    pub(crate) stops: StopMatcher,
    pub(crate) generated: u32,
}

/// Positions `start..end` of one append, shared with the forks taken since.
#[derive(Clone, Debug)]
pub(crate) struct Uncounted {
    start: u32,
    end: u32,
    counted_to: Arc<AtomicU32>, // positions before it are in some run's usage
}

impl Uncounted {
    pub(crate) fn new(start: u32, end: u32) -> Uncounted {
        Uncounted {
            start,
            end,
            counted_to: Arc::new(AtomicU32::new(start)),
        }
    }

    /// Marks them counted and returns how many were not.
    pub(crate) fn count(&self) -> u32 {
        let before = self.counted_to.fetch_max(self.end, Ordering::Relaxed);
        self.end.saturating_sub(before)
    }

    /// Grows by an append that follows at once. False when a fork shares it, which must not see the new end, or when
    /// it does not follow.
    pub(crate) fn grow(&mut self, start: u32, end: u32) -> bool {
        let grows = self.end == start && Arc::strong_count(&self.counted_to) == 1;
        if grows {
            self.end = end;
        }
        grows
    }

    /// Cuts it to `length` positions; false when nothing is left.
    pub(crate) fn truncate(&mut self, length: u32) -> bool {
        self.end = self.end.min(length);
        self.start < self.end
    }
}
