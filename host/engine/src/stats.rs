//! Numbers about the engine that anybody may read at any time without asking the engine thread.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A reading of the engine's counters, taken at the end of its last step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Sequences admitted to the batch.
    pub sequences_running: u64,
    /// Sequences with work that wait for a place or for blocks.
    pub sequences_waiting: u64,
    /// Commands in the queue now.
    pub queue_depth: u64,
    /// KV blocks of the model; `free + cached + held = total`.
    pub blocks_total: u64,
    /// KV blocks nobody holds.
    pub blocks_free: u64,
    /// KV blocks held only by the prefix cache (0: there is none yet).
    pub blocks_cached: u64,
    /// KV blocks held by sequences; one shared by forks counts once.
    pub blocks_held: u64,
    /// Forward passes so far.
    pub steps_total: u64,
    /// Prompt rows computed so far, replays included.
    pub tokens_prefill_total: u64,
    /// Decode rows computed so far.
    pub tokens_decode_total: u64,
    /// Sequences whose blocks were dropped to make room while they had work.
    pub preemptions_total: u64,
    /// Sequences that lost their place to another tenant's, whose share it was.
    pub yields_total: u64,
    /// Rows of the last forward pass.
    pub batch_rows_last: u64,
}

/// One forward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct StepReport {
    /// Tokens computed.
    pub rows: u32,
    /// Of those, prompt tokens.
    pub prefill_rows: u32,
    /// Of those, one for each decoding job.
    pub decode_rows: u32,
    /// Sequences in the batch.
    pub sequences: u32,
    /// Time of the whole step, from receiving to emitting.
    pub seconds: f64,
}

/// Told of every forward pass, on the engine thread: it must not block.
pub trait Observer: Send + Sync {
    /// A step is done.
    fn step(&self, report: &StepReport);
}

/// Written by the engine thread only, each number on its own.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) sequences_running: AtomicU64,
    pub(crate) sequences_waiting: AtomicU64,
    pub(crate) blocks_total: AtomicU64,
    pub(crate) blocks_free: AtomicU64,
    pub(crate) blocks_cached: AtomicU64,
    pub(crate) blocks_held: AtomicU64,
    pub(crate) steps: AtomicU64,
    pub(crate) tokens_prefill: AtomicU64,
    pub(crate) tokens_decode: AtomicU64,
    pub(crate) preemptions: AtomicU64,
    pub(crate) yields: AtomicU64,
    pub(crate) batch_rows_last: AtomicU64,
}

impl Counters {
    pub(crate) fn read(&self, queue_depth: usize) -> Stats {
        Stats {
            sequences_running: self.sequences_running.load(Relaxed),
            sequences_waiting: self.sequences_waiting.load(Relaxed),
            queue_depth: queue_depth as u64,
            blocks_total: self.blocks_total.load(Relaxed),
            blocks_free: self.blocks_free.load(Relaxed),
            blocks_cached: self.blocks_cached.load(Relaxed),
            blocks_held: self.blocks_held.load(Relaxed),
            steps_total: self.steps.load(Relaxed),
            tokens_prefill_total: self.tokens_prefill.load(Relaxed),
            tokens_decode_total: self.tokens_decode.load(Relaxed),
            preemptions_total: self.preemptions.load(Relaxed),
            yields_total: self.yields.load(Relaxed),
            batch_rows_last: self.batch_rows_last.load(Relaxed),
        }
    }
}
