//! How a sequence moves between its states, and how jobs and forks end. Every change of a status is here.

use std::sync::atomic::Ordering;

use crate::error::EngineError;
use crate::kv_cache::blocks_for;
use crate::outlet::{Event, Finish};
use crate::request::{Fork, SequenceState, Status};
use crate::step::StepLoop;

impl StepLoop {
    /// An idle sequence with rows to compute, or with forks to serve, gets in line.
    pub(crate) fn wake(&mut self, id: u64) {
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return;
        };
        if sequence.status != Status::Idle || sequence.rows() == 0 {
            return;
        }
        let tenant = sequence.tenant();
        sequence.status = Status::Waiting;
        if sequence.arrival == 0 {
            self.arrivals += 1;
            sequence.arrival = self.arrivals;
        }
        self.waiting.insert(sequence.arrival, id);
        self.tenants.activate(tenant);
    }

    pub(crate) fn admit_sequence(&mut self, id: u64) {
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return;
        };
        sequence.status = Status::Running;
        self.waiting.remove(&sequence.arrival);
        self.running.insert(sequence.arrival, id);
    }

    /// Takes a sequence out of its line.
    fn leave(&mut self, id: u64, status: Status) {
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return;
        };
        let was = std::mem::replace(&mut sequence.status, status);
        let left = match was {
            Status::Waiting => self.waiting.remove(&sequence.arrival),
            Status::Running => self.running.remove(&sequence.arrival),
            Status::Idle | Status::Paused => None,
        };
        if status == Status::Idle {
            sequence.arrival = 0;
        }
        if left.is_some() {
            let tenant = sequence.tenant();
            self.tenants.deactivate(tenant);
        }
    }

    /// A job whose reader is too far behind; it keeps its place in time but not in the batch.
    pub(crate) fn pause(&mut self, id: u64) {
        self.leave(id, Status::Paused);
    }

    /// Drops the blocks of an admitted sequence: it waits, and is computed again.
    pub(crate) fn preempt(&mut self, id: u64) {
        self.drop_blocks(id);
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return;
        };
        sequence.status = Status::Waiting;
        self.running.remove(&sequence.arrival);
        self.waiting.insert(sequence.arrival, id);
        self.shared
            .counters
            .preemptions
            .fetch_add(1, Ordering::Relaxed);
    }

    /// Gives back every block; the tokens stay.
    pub(crate) fn drop_blocks(&mut self, id: u64) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.computed = 0;
            sequence.table.truncate(0, &mut self.pool);
        }
    }

    /// Lets a sequence without rows to compute rest.
    pub(crate) fn rest_if_done(&mut self, id: u64) {
        let done = self
            .sequences
            .get(&id)
            .is_some_and(|sequence| sequence.job.is_none() && sequence.rows() == 0);
        if done {
            self.leave(id, Status::Idle);
        }
    }

    /// Answers the forks whose prefix is computed, or all of them with what there is when `all`.
    pub(crate) fn settle_forks(&mut self, id: u64, all: bool) {
        let Some(parent) = self.sequences.get_mut(&id) else {
            return;
        };
        if parent.forks.is_empty() {
            return;
        }
        let computed = parent.computed;
        let (ready, not_yet) = std::mem::take(&mut parent.forks)
            .into_iter()
            .partition(|fork| all || computed >= fork.length.saturating_sub(1));
        parent.forks = not_yet;
        parent.used_step = self.steps;
        let ready: Vec<Fork> = ready;
        for fork in ready {
            self.share_blocks(id, fork.child);
            // Nobody waits any more when the caller gave up; then the child's handle has released it.
            let _ = fork.reply.send(Ok(()));
            self.wake(fork.child);
        }
    }

    /// Gives `child` the computed prefix it has in common with `parent`, by reference.
    fn share_blocks(&mut self, parent: u64, child: u64) {
        let block_tokens = self.shared.facts.block_tokens;
        let Some(state) = self.sequences.get(&parent) else {
            return;
        };
        let Some(length) = self.sequences.get(&child).map(SequenceState::length) else {
            return; // given up before it was made
        };
        let computed = state.computed.min(length);
        let count = blocks_for(computed, block_tokens) as usize;
        let table = state.table.fork(count, &mut self.pool);
        if let Some(child) = self.sequences.get_mut(&child) {
            child.computed = computed;
            child.table = table;
            child.used_step = self.steps;
        }
    }

    /// Ends the job of a sequence with its last event.
    pub(crate) fn finish(&mut self, id: u64, said: Event, finish: Finish) {
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return;
        };
        let Some(job) = sequence.job.take() else {
            return;
        };
        let length = sequence.length();
        sequence.face.length.store(length, Ordering::Release);
        // Before the event: who reads that the job ended may use the sequence.
        sequence.face.decoding.store(false, Ordering::Release);
        self.leave(id, Status::Idle);
        if let Some(run) = self.runs.get_mut(&job.run) {
            run.outlet.push(Event {
                job: job.job,
                finished: Some(finish),
                ..said
            });
            run.live -= 1;
            if run.live == 0 {
                self.runs.remove(&job.run);
            }
        }
        self.settle_forks(id, false);
        // A fork may still wait for a prefix that the job did not get to.
        if self
            .sequences
            .get(&id)
            .is_some_and(|sequence| !sequence.forks.is_empty())
        {
            self.wake(id);
        }
        self.remove_if_released(id);
    }

    /// Ends whatever a sequence was doing with an error; it keeps its tokens and no blocks.
    ///
    /// Who waits for it is told. A background prefill nobody waits for keeps the error for whoever asks next.
    pub(crate) fn fail(&mut self, id: u64, error: &EngineError) {
        self.drop_blocks(id);
        let Some(sequence) = self.sequences.get_mut(&id) else {
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
        self.leave(id, Status::Idle);
        self.finish(id, Event::default(), Finish::Failed(error.clone()));
    }

    /// Forgets a sequence that nobody holds and no job decodes.
    pub(crate) fn remove_if_released(&mut self, id: u64) {
        let unused = self
            .sequences
            .get(&id)
            .is_some_and(|sequence| sequence.released && sequence.job.is_none());
        if !unused {
            return;
        }
        self.leave(id, Status::Idle);
        if let Some(mut sequence) = self.sequences.remove(&id) {
            sequence.table.truncate(0, &mut self.pool);
            for fork in sequence.forks {
                let _ = fork.reply.send(Err(EngineError::Cancelled));
            }
        }
    }
}
