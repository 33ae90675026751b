//! Spans of the plan: one row for each decoding sequence, then chunks of prompts in what is left of the step.

use super::{Shortage, Span};
use crate::request::SequenceState;
use crate::step::StepLoop;

impl StepLoop {
    /// A row for every running sequence that lacks just the last token, oldest first.
    pub(crate) fn place_decodes(&mut self) {
        for id in self.running_where(|sequence| sequence.job.is_some() && sequence.rows() == 1) {
            self.place(id, 1);
        }
        self.plan.decode_rows = self.plan.spans.len() as u32;
    }

    /// Chunks for the others: the least served tenant first, its oldest sequence first.
    pub(crate) fn place_prefills(&mut self) {
        let mut ids = self.running_where(|sequence| sequence.job.is_none() || sequence.rows() > 1);
        ids.sort_by_key(|id| {
            let sequence = &self.sequences[id];
            (self.tenants.served(sequence.tenant()), sequence.arrival)
        });
        for id in ids {
            let rows_left = self.plan.rows_left(self.limits.step_tokens_max);
            if rows_left == 0 {
                return;
            }
            self.place(id, rows_left);
        }
    }

    fn running_where(&self, wanted: impl Fn(&SequenceState) -> bool) -> Vec<u64> {
        self.running
            .values()
            .copied()
            .filter(|id| wanted(&self.sequences[id]))
            .collect()
    }

    /// Plans up to `rows_max` rows of a sequence, as far as there are blocks.
    fn place(&mut self, id: u64, rows_max: u32) {
        let sequence = &self.sequences[&id];
        let start = sequence.computed;
        let target = sequence.target();
        let wanted = target.min(start + rows_max);
        let (end, shortage) = self.make_writable(id, start, wanted);
        if start < end {
            let has_job = self.sequences[&id].job.is_some();
            self.plan.spans.push(Span {
                sequence: id,
                start,
                end,
                logits: has_job && end == target,
            });
        } else if let Some(shortage) = shortage {
            self.plan.blocked.push((id, shortage));
        }
    }

    /// Gives a sequence blocks of its own for positions `start..end`, copying one it shares before it is written.
    /// Returns the end of what it got.
    fn make_writable(&mut self, id: u64, start: u32, end: u32) -> (u32, Option<Shortage>) {
        let block_tokens = self.shared.facts.block_tokens;
        let mut at = start;
        while at < end {
            let index = (at / block_tokens) as usize;
            let Some(sequence) = self.sequences.get(&id) else {
                return (at, None);
            };
            let shared = sequence.table.shared_at(index, &self.pool);
            if index >= sequence.table.len() || shared.is_some() {
                match self.take_block(sequence.tenant()) {
                    Ok(block) => self.put_block(id, index, block),
                    Err(_) if self.owns(id, index) => {} // the others who shared it lost it
                    Err(shortage) => return (at, Some(shortage)),
                }
            }
            at = end.min((index as u32 + 1) * block_tokens);
        }
        (end, None)
    }

    fn owns(&self, id: u64, index: usize) -> bool {
        let table = &self.sequences[&id].table;
        index < table.len() && table.shared_at(index, &self.pool).is_none()
    }

    /// Puts a fresh block at `index` of the table, with the content of the shared one that may be there.
    fn put_block(&mut self, id: u64, index: usize, block: u32) {
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return;
        };
        // Looked up again: taking the block may have dropped the other holders.
        match sequence.table.shared_at(index, &self.pool) {
            Some(shared) => {
                self.executor.copy_block(shared.block, block);
                sequence.table.replace(shared, block, &mut self.pool);
            }
            None if index < sequence.table.len() => self.pool.release(block),
            None => sequence.table.push(block),
        }
    }
}
