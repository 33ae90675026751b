//! The first part of a step: what came in is applied to the sequences, in order.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use realm_text::{Detokenizer, StopMatcher};
use tokio::sync::oneshot;

use crate::client::Face;
use crate::error::EngineError;
use crate::inbox::{Command, Signal};
use crate::kv_cache::blocks_for;
use crate::outlet::{Event, Finish, Outlet, StopReason};
use crate::policy::Policy;
use crate::request::{Fork, JobState, SequenceState, Status, Uncounted};
use crate::sampler::Sampler;
use crate::step::{RunState, StepLoop};

impl StepLoop {
    pub(crate) fn receive(&mut self) {
        let received = self.shared.inbox.take();
        for command in received.commands {
            match command {
                Command::Append { sequence, tokens } => self.append(&sequence, &tokens),
                Command::Rewind { sequence, length } => self.rewind(&sequence, length),
                Command::Fork {
                    parent,
                    child,
                    reply,
                } => self.fork(&parent, child, reply),
                Command::Read {
                    sequence,
                    start,
                    end,
                    reply,
                } => {
                    let tokens = &self.sequence(&sequence).tokens;
                    let end = (end as usize).min(tokens.len());
                    let start = (start as usize).min(end);
                    // The reader may be gone; then nobody wants the answer.
                    let _ = reply.send(tokens[start..end].to_vec());
                }
                Command::Start { run, jobs, outlet } => self.start(run, jobs, outlet),
            }
        }
        for signal in received.signals {
            match signal {
                Signal::Release { sequence } => self.release(sequence),
                Signal::CancelRun { run } => self.cancel(run, None),
                Signal::CancelJob { run, job } => self.cancel(run, Some(job)),
                Signal::Resume { run } => self.resume(run),
            }
        }
    }

    /// The state behind a handle, made when the engine first hears of it.
    fn sequence(&mut self, face: &Arc<Face>) -> &mut SequenceState {
        self.tenants.know(&face.owner);
        self.sequences
            .entry(face.id)
            .or_insert_with(|| SequenceState::new(Arc::clone(face)))
    }

    fn append(&mut self, face: &Arc<Face>, tokens: &[u32]) {
        let sequence = self.sequence(face);
        let start = sequence.length();
        sequence.tokens.extend_from_slice(tokens);
        let end = sequence.length();
        let grown = sequence
            .uncounted
            .last_mut()
            .is_some_and(|last| last.grow(start, end));
        if !grown {
            sequence.uncounted.push(Uncounted::new(start, end));
        }
        self.wake(face.id);
    }

    fn rewind(&mut self, face: &Arc<Face>, length: u32) {
        self.sequence(face);
        // Forks that wait were asked for before: they keep what they have seen and compute the rest themselves.
        self.settle_forks(face.id, true);
        let block_tokens = self.shared.facts.block_tokens;
        let pool = &mut self.pool;
        let Some(sequence) = self.sequences.get_mut(&face.id) else {
            return;
        };
        sequence.tokens.truncate(length as usize);
        sequence.uncounted.retain_mut(|part| part.truncate(length));
        sequence.computed = sequence.computed.min(length);
        let blocks = blocks_for(sequence.computed, block_tokens);
        sequence.table.truncate(blocks as usize, pool);
        sequence.failure = None;
        self.rest_if_done(face.id);
    }

    fn fork(
        &mut self,
        parent: &Arc<Face>,
        child_face: Arc<Face>,
        reply: oneshot::Sender<Result<(), EngineError>>,
    ) {
        let id = parent.id;
        let parent = self.sequence(parent);
        if let Some(error) = parent.failure.take() {
            let _ = reply.send(Err(error));
            return;
        }
        let mut child = SequenceState::new(child_face);
        child.tokens.clone_from(&parent.tokens);
        child.uncounted.clone_from(&parent.uncounted);
        child.face.length.store(child.length(), Ordering::Release);
        parent.forks.push(Fork {
            child: child.face.id,
            length: child.length(),
            reply,
        });
        // A paused job may never go on, so nothing waits for it: the child computes what is missing itself.
        let paused = parent.status == Status::Paused;
        self.sequences.insert(child.face.id, child);
        self.settle_forks(id, paused);
        self.wake(id);
    }

    fn start(&mut self, run: u64, jobs: Vec<(Arc<Face>, Policy)>, outlet: Outlet) {
        let mut prompt = 0;
        let sequences: Vec<u64> = jobs.iter().map(|(face, _)| face.id).collect();
        for (index, (face, policy)) in jobs.into_iter().enumerate() {
            let seed = self.seeds.next_u64();
            let sequence = self.sequence(&face);
            prompt += sequence
                .uncounted
                .drain(..)
                .map(|part| part.count())
                .sum::<u32>();
            // The last token's logits are wanted, so it is computed again if it was.
            sequence.computed = sequence.computed.min(sequence.length().saturating_sub(1));
            sequence.job = Some(JobState {
                run,
                job: index as u32,
                sampler: Sampler::new(&policy, &sequence.tokens, seed),
                detokenizer: Detokenizer::new(),
                stops: StopMatcher::new(policy.stop.clone()),
                policy,
                generated: 0,
            });
        }
        outlet.set_prompt(prompt, 0);
        let live = sequences.len() as u32;
        let started = sequences.clone();
        let state = RunState {
            outlet,
            sequences,
            live,
        };
        self.runs.insert(run, state);
        for id in started {
            self.begin(id);
        }
    }

    /// A job that has nothing to do ends here, the others get in line.
    fn begin(&mut self, id: u64) {
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return;
        };
        let Some(job) = &sequence.job else { return };
        let finish = if let Some(error) = sequence.failure.take() {
            Some(Finish::Failed(error))
        } else if job.policy.max_tokens == Some(0) {
            Some(Finish::Stopped(StopReason::MaxTokens))
        } else if sequence.length() >= self.shared.facts.context_length {
            Some(Finish::Stopped(StopReason::ContextFull))
        } else {
            None
        };
        match finish {
            Some(finish) => self.finish(id, Event::default(), finish),
            None => self.wake(id),
        }
    }

    fn release(&mut self, id: u64) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.released = true;
            self.remove_if_released(id);
        }
    }

    fn cancel(&mut self, run: u64, only: Option<u32>) {
        let Some(state) = self.runs.get(&run) else {
            return;
        };
        let sequences: Vec<u64> = match only {
            None => state.sequences.clone(),
            Some(job) => state
                .sequences
                .get(job as usize)
                .copied()
                .into_iter()
                .collect(),
        };
        for id in sequences {
            // The sequence may be decoded by a later run already.
            let is_ours = self
                .sequences
                .get(&id)
                .and_then(|sequence| sequence.job.as_ref())
                .is_some_and(|job| job.run == run);
            if is_ours {
                let finish = Finish::Stopped(StopReason::Cancelled);
                self.finish(id, Event::default(), finish);
            }
        }
    }

    fn resume(&mut self, run: u64) {
        let Some(state) = self.runs.get(&run) else {
            return;
        };
        for id in state.sequences.clone() {
            if let Some(sequence) = self.sequences.get_mut(&id)
                && sequence.status == Status::Paused
            {
                sequence.status = Status::Idle;
                self.wake(id);
            }
        }
    }
}
