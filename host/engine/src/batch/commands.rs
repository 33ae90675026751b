//! What callers ask of the batch. It was checked when it was asked, so nothing here is refused.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::sequence::{Fork, JobId, SequenceState, Status};
use super::{Batch, RunState, Tokens, Wanted};
use crate::error::EngineError;
use crate::kv_cache::blocks_for;
use crate::outlet::{Finish, StopReason};
use crate::sequence::SharedSequence;

impl Batch {
    pub(crate) fn append(&mut self, shared: &Arc<SharedSequence>, tokens: Vec<u32>) {
        self.sequences.of(shared).append(tokens);
        self.wake(shared.id);
    }

    pub(crate) fn read(&mut self, shared: &Arc<SharedSequence>, start: u32, end: u32) -> Vec<u32> {
        let tokens = &self.sequences.of(shared).tokens;
        tokens.copy(start as usize, end as usize)
    }

    pub(crate) fn rewind(&mut self, shared: &Arc<SharedSequence>, length: u32) {
        self.sequences.of(shared);
        // Forks that wait were asked for before: they keep what they have seen and compute the rest themselves.
        self.settle_forks(shared.id, true);
        let Some(sequence) = self.sequences.get_mut(shared.id) else {
            return;
        };
        sequence.tokens.truncate(length as usize);
        sequence.uncounted.retain_mut(|part| part.truncate(length));
        sequence.failure = None;
        self.truncate_blocks(shared.id, length);
        self.rest_if_done(shared.id);
    }

    pub(crate) fn fork(
        &mut self,
        parent: &Arc<SharedSequence>,
        child: Arc<SharedSequence>,
        reply: oneshot::Sender<Result<(), EngineError>>,
    ) {
        let id = parent.id;
        let parent = self.sequences.of(parent);
        if let Some(error) = parent.failure.take() {
            // Nobody waits any more when the caller gave up.
            let _ = reply.send(Err(error));
            return;
        }
        let mut child = SequenceState::new(child);
        child.tokens = parent.tokens.fork();
        child.uncounted.clone_from(&parent.uncounted);
        child.shared.set_length(child.length());
        parent.forks.push(Fork {
            child: child.shared.id,
            length: child.length(),
            reply,
        });
        // A paused job may never go on, so nothing waits for it: the child computes what is missing itself.
        let paused = parent.status == Status::Paused;
        self.sequences.insert(child);
        self.settle_forks(id, paused);
        self.wake(id);
    }

    /// Begins the jobs of a run. Returns how many tokens of their prompts no run has counted before.
    pub(crate) fn start(&mut self, run: u64, sequences: &[Arc<SharedSequence>]) -> u32 {
        let mut prompt = 0;
        for (index, shared) in sequences.iter().enumerate() {
            let sequence = self.sequences.of(shared);
            assert!(sequence.job.is_none(), "a claimed sequence has no job");
            prompt += sequence.count_prompt();
            // The last token's logits are wanted, so it is computed again if it was.
            sequence.computed = sequence.computed.min(sequence.length().saturating_sub(1));
            sequence.job = Some(JobId {
                run,
                index: index as u32,
            });
        }
        let state = RunState {
            sequences: sequences.iter().map(|shared| shared.id).collect(),
            live: sequences.len() as u32,
        };
        self.runs.insert(run, state);
        prompt
    }

    /// The tokens of a sequence, which cost nothing to hold on to.
    pub(crate) fn tokens(&mut self, id: u64) -> Tokens {
        let sequence = self.sequences.get_mut(id);
        sequence.map_or_else(Tokens::default, |sequence| sequence.tokens.fork())
    }

    /// Puts a job that [`Batch::start`] began in line, or says why it ends at once.
    pub(crate) fn begin(&mut self, id: u64, wanted: Wanted) -> Option<Finish> {
        let sequence = self.sequences.get_mut(id)?;
        if let Some(error) = sequence.failure.take() {
            return Some(Finish::Failed(error));
        }
        let generates = wanted.max_tokens != Some(0);
        if !generates && !wanted.scores {
            return Some(Finish::Stopped(StopReason::MaxTokens));
        }
        if generates && sequence.length() >= self.context_length {
            // An answer without a word would look as if the model had nothing to say.
            return Some(Finish::Failed(EngineError::ContextFull { room: 0 }));
        }
        if wanted.scores {
            // All rows once more: their keys and values may be there, their logits are not.
            sequence.unscored = Some(0);
            self.truncate_blocks(id, 0);
        }
        self.wake(id);
        None
    }

    /// Which job decodes a sequence.
    pub(crate) fn job(&self, id: u64) -> Option<JobId> {
        self.get(id)?.job
    }

    /// Jobs of a run that have not ended.
    pub(crate) fn jobs_live(&self, run: u64) -> u32 {
        self.runs.get(&run).map_or(0, |run| run.live)
    }

    /// The sequences of a run that its jobs still decode: all, or that of one job.
    pub(crate) fn jobs(&self, run: u64, only: Option<u32>) -> Vec<u64> {
        let Some(state) = self.runs.get(&run) else {
            return Vec::new();
        };
        let asked = |job: &JobId| job.run == run && only.is_none_or(|index| job.index == index);
        // A sequence may be decoded by a later run already.
        let is_ours = |id: &u64| {
            self.get(*id)
                .and_then(|s| s.job.as_ref())
                .is_some_and(asked)
        };
        let sequences = match only {
            None => state.sequences.as_slice(),
            Some(index) => state
                .sequences
                .get(index as usize)
                .map_or(&[][..], std::slice::from_ref),
        };
        sequences.iter().copied().filter(is_ours).collect()
    }

    /// Lets the paused jobs of a run go on.
    pub(crate) fn resume(&mut self, run: u64) {
        for id in self.jobs(run, None) {
            if self.get(id).is_some_and(|s| s.status == Status::Paused) {
                self.set_status(id, Status::Waiting);
            }
        }
    }

    /// The handle is gone; the sequence goes when no job decodes it.
    pub(crate) fn release(&mut self, id: u64) {
        if let Some(sequence) = self.sequences.get_mut(id) {
            sequence.released = true;
            self.remove_if_released(id);
        }
    }

    /// Forgets a sequence that nobody holds and no job decodes.
    pub(super) fn remove_if_released(&mut self, id: u64) {
        let unused = |sequence: &SequenceState| sequence.released && sequence.job.is_none();
        if !self.get(id).is_some_and(unused) {
            return;
        }
        self.set_status(id, Status::Idle);
        self.truncate_blocks(id, 0);
        if let Some(sequence) = self.sequences.remove(id) {
            for fork in sequence.forks {
                let _ = fork.reply.send(Err(EngineError::Cancelled));
            }
        }
    }

    /// Answers the forks whose prefix is computed, or all of them with what there is when `all`.
    pub(super) fn settle_forks(&mut self, id: u64, all: bool) {
        let Some(parent) = self.sequences.get_mut(id) else {
            return;
        };
        if parent.forks.is_empty() {
            return;
        }
        let computed = parent.computed;
        let (ready, not_yet): (Vec<Fork>, Vec<Fork>) = std::mem::take(&mut parent.forks)
            .into_iter()
            .partition(|fork| all || computed >= fork.length.saturating_sub(1));
        parent.forks = not_yet;
        parent.used_step = self.step;
        for fork in ready {
            self.share_blocks(id, fork.child);
            // Nobody waits any more when the caller gave up; then the child's handle has released it.
            let _ = fork.reply.send(Ok(()));
            self.wake(fork.child);
        }
        self.set_eviction(id);
    }

    /// Gives `child` the computed prefix it has in common with `parent`, by reference.
    fn share_blocks(&mut self, parent: u64, child: u64) {
        let Some(length) = self.get(child).map(SequenceState::length) else {
            return; // given up before it was made
        };
        let Some(parent) = self.sequences.get(parent) else {
            return;
        };
        let computed = parent.computed.min(length);
        let count = blocks_for(computed, self.block_tokens) as usize;
        let table = parent.table.fork(count, &mut self.pool);
        if let Some(child) = self.sequences.get_mut(child) {
            child.computed = computed;
            child.table = table;
            child.used_step = self.step;
        }
        self.set_eviction(child);
    }

    /// Lets a sequence without rows to compute rest.
    pub(super) fn rest_if_done(&mut self, id: u64) {
        let done = |sequence: &SequenceState| sequence.job.is_none() && sequence.rows() == 0;
        if self.get(id).is_some_and(done) {
            self.set_status(id, Status::Idle);
        }
    }
}
