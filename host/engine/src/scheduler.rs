//! Which rows the next step computes: decoding sequences first, then chunks of prompts, smallest-served tenant first.
//!
//! Lines: *waiting* sequences have work, *running* ones are admitted and have a row in every step. Blocks of
//! sequences that are not running may be dropped at any time, because tokens can always be computed again; a running
//! one loses its blocks only when nothing else can run.

mod admit;
mod fair;
mod place;
mod reclaim;

pub(crate) use fair::Tenants;

use crate::executor::BatchRow;
use crate::stats::StepReport;
use crate::step::StepLoop;

/// Positions `start..end` of one sequence, consecutive rows of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) sequence: u64,
    pub(crate) start: u32,
    pub(crate) end: u32,
    /// Whether the last row's logits are wanted. Speculation would want those of its draft rows, too.
    pub(crate) logits: bool,
}

/// What could not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shortage {
    /// The pool has no block.
    Pool,
    /// The tenant holds all it may.
    Tenant,
}

/// The rows of one step. Span `i` uses table `i` of the batch.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) rows: Vec<BatchRow>,
    pub(crate) spans: Vec<Span>,
    /// Running sequences that got no row, for want of a block.
    blocked: Vec<(u64, Shortage)>,
    decode_rows: u32,
    sequences: u32,
}

impl Plan {
    fn clear(&mut self) {
        self.rows.clear();
        self.spans.clear();
        self.blocked.clear();
        self.decode_rows = 0;
        self.sequences = 0;
    }

    fn rows_left(&self, step_tokens_max: u32) -> u32 {
        let planned: u32 = self.spans.iter().map(|span| span.end - span.start).sum();
        step_tokens_max.saturating_sub(planned)
    }

    /// The numbers of the planned step, without its time.
    pub(crate) fn report(&self) -> StepReport {
        let rows = self.rows.len() as u32;
        StepReport {
            rows,
            prefill_rows: rows.saturating_sub(self.decode_rows),
            decode_rows: self.decode_rows,
            sequences: self.sequences,
            seconds: 0.0,
        }
    }
}

impl StepLoop {
    /// Fills the plan. It is empty only when nothing can be computed.
    pub(crate) fn schedule(&mut self) {
        self.plan.clear();
        self.admit();
        loop {
            self.plan.clear();
            self.place_decodes();
            self.place_prefills();
            if !self.unblock() {
                break;
            }
        }
        self.charge_and_write_rows();
    }

    /// Turns spans into rows and charges their tenants.
    fn charge_and_write_rows(&mut self) {
        let plan = &mut self.plan;
        plan.sequences = plan.spans.len() as u32;
        for (table, span) in plan.spans.iter().enumerate() {
            let Some(sequence) = self.sequences.get(&span.sequence) else {
                continue;
            };
            let count = span.end - span.start;
            self.tenants.charge(sequence.tenant(), count);
            for position in span.start..span.end {
                plan.rows.push(BatchRow {
                    token: sequence.tokens[position as usize],
                    position,
                    table: table as u32,
                    logits: span.logits && position + 1 == span.end,
                    adapter: None,
                });
            }
        }
    }
}
