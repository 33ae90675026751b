//! What a step does to the batch: a plan is carried out, rows are computed, tokens added, jobs ended.

use super::Batch;
use super::sequence::{JobId, Status};
use crate::error::EngineError;
use crate::executor::{ExecutorError, SequenceRows, StepBatch};
use crate::kv_cache::BlockPool;
use crate::scheduler::{Plan, Span};

impl Batch {
    /// Carries out what a plan says of places and blocks. Returns the blocks to copy, `(from, to)` in order.
    ///
    /// Jobs that the plan ends are ended before, because their ends are events.
    pub(crate) fn carry_out(&mut self, plan: &Plan) -> Vec<(u32, u32)> {
        self.step += 1;
        for &(id, _) in &plan.yielded {
            self.set_status(id, Status::Waiting);
        }
        for &(id, _) in &plan.preempted {
            self.set_status(id, Status::Waiting);
            self.truncate_blocks(id, 0);
        }
        for &id in &plan.evicted {
            self.truncate_blocks(id, 0);
        }
        for &id in &plan.admitted {
            self.set_status(id, Status::Running);
        }
        let mut copies = Vec::new();
        for span in &plan.spans {
            self.give_blocks(span, plan, &mut copies);
        }
        copies
    }

    /// Gives a span blocks of its own to write to.
    fn give_blocks(&mut self, span: &Span, plan: &Plan, copies: &mut Vec<(u32, u32)>) {
        let Some(sequence) = self.sequences.get_mut(span.sequence) else {
            return;
        };
        let tenant = sequence.shared.owner.tenant;
        let take = |pool: &mut BlockPool| {
            pool.take(tenant)
                .expect("the scheduler counts every block that it plans")
        };
        let first = (span.start / self.block_tokens) as usize;
        let last = ((span.end - 1) / self.block_tokens) as usize;
        for index in first..=last {
            if index >= sequence.table.len() {
                let block = take(&mut self.pool);
                sequence.table.push(block, &mut self.pool);
            } else if plan.copied.contains(&(span.sequence, index)) {
                let block = take(&mut self.pool);
                let old = sequence.table.replace(index, block, &mut self.pool);
                copies.push((old, block));
            }
        }
    }

    /// The rows of a plan, in the order of its spans. Span `i` uses table `i`.
    pub(crate) fn rows(&self, plan: &Plan) -> Result<StepBatch<'_>, ExecutorError> {
        let mut batch = StepBatch::with_capacity(plan.rows() as usize);
        for span in &plan.spans {
            let Some(sequence) = self.get(span.sequence) else {
                continue;
            };
            let rows = SequenceRows {
                blocks: sequence.table.blocks(),
                start: span.start,
                logits: span.logits,
                adapter: None,
            };
            let (start, end) = (span.start as usize, span.end as usize);
            let tokens = sequence.tokens.pieces(start, end).flatten();
            batch.push(rows, tokens.copied())?;
        }
        Ok(batch)
    }

    /// The rows of a span have their keys and values now.
    pub(crate) fn computed(&mut self, span: &Span) {
        if let Some(sequence) = self.sequences.get_mut(span.sequence) {
            sequence.computed = span.end;
            sequence.unscored = sequence.unscored.map(|row| row.max(span.end));
            sequence.used_step = self.step;
        }
    }

    /// After a span and what its logits said: forks that waited for it are answered, and who has no more work rests.
    pub(crate) fn settle(&mut self, id: u64) {
        self.settle_forks(id, false);
        self.rest_if_done(id);
    }

    /// Adds a token that a job was given. False when its run has lost the sequence; then there is no such token.
    pub(crate) fn push_token(&mut self, id: u64, token: u32) -> bool {
        let Some(sequence) = self.sequences.get_mut(id) else {
            return false;
        };
        let grown = sequence
            .job
            .is_some_and(|job| sequence.shared.grow(job.run));
        if grown {
            sequence.tokens.push(token);
        }
        grown
    }

    /// Counts a token that a job was given and that became no part of its sequence.
    pub(crate) fn count_end(&self, id: u64) {
        if let Some(sequence) = self.get(id) {
            sequence.shared.charge.completion(1);
        }
    }

    /// A job whose reader is too far behind; it keeps its place in time but not in the batch.
    pub(crate) fn pause(&mut self, id: u64) {
        self.set_status(id, Status::Paused);
    }

    /// Ends the job of a sequence, which it then may be used without. Returns which it was.
    pub(crate) fn end_job(&mut self, id: u64) -> Option<JobId> {
        let sequence = self.sequences.get_mut(id)?;
        let job = sequence.job.take()?;
        sequence.unscored = None;
        sequence.shared.unclaim(job.run);
        self.set_status(id, Status::Idle);
        if let Some(run) = self.runs.get_mut(&job.run) {
            run.live -= 1;
            if run.live == 0 {
                self.runs.remove(&job.run);
            }
        }
        self.settle_forks(id, false);
        // A fork may still wait for a prefix that the job did not get to.
        if self.get(id).is_some_and(|s| !s.forks.is_empty()) {
            self.wake(id);
        }
        self.remove_if_released(id);
        Some(job)
    }

    /// Ends whatever a sequence was doing with an error; it keeps its tokens and no blocks.
    ///
    /// Forks that wait for it are told. A background prefill nobody waits for keeps the error for whoever asks next. The
    /// job, if there is one, is the caller's to end.
    pub(crate) fn fail(&mut self, id: u64, error: &EngineError) {
        self.truncate_blocks(id, 0);
        let Some(sequence) = self.sequences.get_mut(id) else {
            return;
        };
        let forks = std::mem::take(&mut sequence.forks);
        if forks.is_empty() && sequence.job.is_none() {
            sequence.failure = Some(error.clone());
        }
        for fork in forks {
            // The child's handle goes with the failed call, and releases it.
            let _ = fork.reply.send(Err(error.clone()));
        }
        self.set_status(id, Status::Idle);
    }
}
