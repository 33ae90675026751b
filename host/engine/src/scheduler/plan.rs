//! A plan: what the next step is to do, and why, as data.

use std::collections::BTreeSet;

/// Positions `start..end` of one sequence, consecutive rows of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) sequence: u64,
    pub(crate) start: u32,
    pub(crate) end: u32,
    /// After how many of the rows, counted from the last one back, the logits are wanted.
    pub(crate) logits: u32,
    /// How many of those rows, counted from the first one on, have a token after them whose log-probability is wanted. What
    /// is left, one row at most, is what the next token is chosen by.
    pub(crate) scored: u32,
}

impl Span {
    pub(crate) fn rows(&self) -> u32 {
        self.end - self.start
    }

    /// The first row whose logits are wanted.
    pub(crate) fn first_logits(&self) -> u32 {
        self.end - self.logits
    }
}

/// What could not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shortage {
    /// The pool has no block.
    Pool,
    /// The tenant holds all it may.
    Tenant,
}

/// Why a sequence lost its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Its tenant had more places than its weight gives it, and another tenant waited with fewer.
    Places,
    /// The same of blocks.
    Blocks,
    /// Its tenant's time was up: there are more tenants than places.
    Turn,
    /// Nobody could go on for want of blocks, and it was the youngest.
    Shortage,
}

/// What the next step does. Everything is carried out in the order of the fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Sequences that can never go on, because they alone need more blocks than there are or than their tenant may hold.
    pub(crate) ended: Vec<u64>,
    /// Sequences that lose their place to another tenant's and keep their blocks.
    pub(crate) yielded: Vec<(u64, Reason)>,
    /// Sequences that lose their place and their blocks; they are computed again.
    pub(crate) preempted: Vec<(u64, Reason)>,
    /// Sequences without a place that lose their blocks.
    pub(crate) evicted: Vec<u64>,
    /// Sequences that get a place.
    pub(crate) admitted: Vec<u64>,
    /// Blocks that are copied before they are written, by sequence and index in its table.
    pub(crate) copied: BTreeSet<(u64, usize)>,
    /// What is computed: decoding sequences first, then pieces of prompts.
    pub(crate) spans: Vec<Span>,
    /// How many of the spans decode.
    pub(crate) decode_rows: u32,
}

impl Plan {
    /// Rows that are computed.
    pub(crate) fn rows(&self) -> u32 {
        self.spans.iter().map(Span::rows).sum()
    }
}
