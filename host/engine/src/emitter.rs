//! The emitter: logits become tokens, tokens text, and text events. A job ends here, exactly where its text or its model
//! says so.
//!
//! It knows jobs by the sequences they decode and runs by where their events go; blocks and places are not its concern.

mod generation;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub(crate) use generation::Generation;
use generation::Said;
use realm_text::TextModel;

use crate::batch::{Batch, JobId, Tokens};
use crate::clock::Clock;
use crate::error::EngineError;
use crate::executor::Executor;
use crate::outlet::{Event, Finish, Outlet, StopReason};
use crate::sampler::{BadLogits, Rng, TokenLogprob};
use crate::scheduler::Span;

/// What was chosen for one sequence, and how long choosing took.
pub(crate) struct Choice {
    pub(crate) sequence: u64,
    pub(crate) took: Duration,
    chosen: Result<(u32, Option<TokenLogprob>), BadLogits>,
}

/// Jobs and runs, from logits to events.
pub(crate) struct Emitter {
    text: Arc<TextModel>,
    vocab: usize,
    seeds: Rng,                                  // for jobs without a seed of their own
    generations: BTreeMap<u64, Box<Generation>>, // by sequence
    outlets: BTreeMap<u64, Outlet>,              // by run
}

impl Emitter {
    pub(crate) fn new(text: Arc<TextModel>, vocab: u32, seed: u64) -> Emitter {
        Emitter {
            text,
            vocab: vocab as usize,
            seeds: Rng::new(seed),
            generations: BTreeMap::new(),
            outlets: BTreeMap::new(),
        }
    }

    /// Takes on where a run's events go. Its prompts have `prompt` tokens that no run has counted before.
    pub(crate) fn start(&mut self, run: u64, outlet: Outlet, prompt: u32) {
        outlet.set_prompt(prompt, 0);
        self.outlets.insert(run, outlet);
    }

    /// Takes on job `index` of a run, whose sequence has `prompt` already. Returns how many tokens it may make.
    pub(crate) fn begin(
        &mut self,
        sequence: u64,
        index: u32,
        mut generation: Box<Generation>,
        prompt: Tokens,
    ) -> Option<u32> {
        generation.begin(index, prompt, self.seeds.next_u64(), &self.text);
        let max_tokens = generation.max_tokens();
        self.generations.insert(sequence, generation);
        max_tokens
    }

    /// Chooses a token for every span whose logits were wanted, by those after its last row, all at once on the executor's
    /// threads: a choice depends on its own logits only.
    pub(crate) fn choose(
        &mut self,
        spans: &[Span],
        logits: &mut [f32],
        executor: &dyn Executor,
        clock: &dyn Clock,
    ) -> Vec<Choice> {
        struct Task<'a> {
            logits: &'a mut [f32],
            generation: Box<Generation>,
            choice: Choice,
        }
        let mut rows = logits.chunks_exact_mut(self.vocab);
        let last_of = |span: &Span| {
            Some((
                span.sequence,
                rows.by_ref().take(span.logits as usize).last()?,
            ))
        };
        let tasks: Vec<Mutex<Task<'_>>> = spans
            .iter()
            .filter_map(last_of)
            .filter_map(|(sequence, logits)| {
                let choice = Choice {
                    sequence,
                    took: Duration::ZERO,
                    chosen: Err(BadLogits),
                };
                let generation = self.generations.remove(&sequence)?;
                Some(Mutex::new(Task {
                    logits,
                    generation,
                    choice,
                }))
            })
            .collect();
        executor.for_each(tasks.len(), &|index| {
            let mut task = tasks[index].lock().unwrap_or_else(PoisonError::into_inner);
            let began = clock.now();
            let Task {
                logits,
                generation,
                choice,
            } = &mut *task;
            choice.chosen = generation.choose(logits);
            choice.took = clock.now().saturating_sub(began);
        });
        let tasks = tasks
            .into_iter()
            .map(|task| task.into_inner().unwrap_or_else(PoisonError::into_inner));
        tasks
            .map(|task| {
                self.generations
                    .insert(task.choice.sequence, task.generation);
                task.choice
            })
            .collect()
    }

    /// Gives a chosen token to its sequence, and what it says to the run.
    pub(crate) fn emit(&mut self, batch: &mut Batch, choice: Choice) {
        let id = choice.sequence;
        let Some(generation) = self.generations.get_mut(&id) else {
            return;
        };
        let Ok((token, logprob)) = choice.chosen else {
            let what = "the model gave logits that are not numbers".to_owned();
            self.fail(batch, id, &EngineError::Internal(what));
            return;
        };
        let said = if let Some(reason) = generation.end_before(token, &self.text) {
            generation.end(reason)
        } else if batch.push_token(id, token) {
            let bytes = self.text.token_bytes(token);
            generation.one_more(token, logprob, bytes, batch.room(id))
        } else {
            Said {
                event: generation.event(),
                finish: Some(Finish::Stopped(StopReason::Cancelled)),
            }
        };
        match said.finish {
            Some(finish) => self.finish(batch, id, said.event, finish),
            None => {
                let run = batch.job(id).map(|job| job.run);
                let outlet = run.and_then(|run| self.outlets.get(&run));
                if outlet.is_some_and(|outlet| outlet.push(said.event)) {
                    batch.pause(id);
                }
            }
        }
    }

    /// Ends a job that nothing more is asked of.
    pub(crate) fn stop(&mut self, batch: &mut Batch, id: u64, finish: Finish) {
        let event = self
            .generations
            .get(&id)
            .map(|generation| generation.event());
        self.finish(batch, id, event.unwrap_or_default(), finish);
    }

    /// Ends whatever a sequence was doing with an error.
    pub(crate) fn fail(&mut self, batch: &mut Batch, id: u64, error: &EngineError) {
        batch.fail(id, error);
        self.stop(batch, id, Finish::Failed(error.clone()));
    }

    /// Ends a sequence for which there are no more blocks: what its job has said stands. Its blocks are free at once, since
    /// the plan that ends it gives them to others.
    pub(crate) fn finish_full(&mut self, batch: &mut Batch, id: u64) {
        batch.truncate_blocks(id, 0);
        match self.generations.get_mut(&id) {
            Some(generation) if generation.has_spoken() => {
                let mut event = generation.event();
                generation.flush(&mut event);
                let finish = Finish::Stopped(StopReason::ContextFull);
                self.finish(batch, id, event, finish);
            }
            _ => self.fail(batch, id, &EngineError::ContextFull { room: 0 }),
        }
    }

    fn finish(&mut self, batch: &mut Batch, id: u64, event: Event, finish: Finish) {
        // Before the event: who reads that the job ended may use the sequence.
        let Some(JobId { run, .. }) = batch.end_job(id) else {
            return;
        };
        self.generations.remove(&id);
        let Some(outlet) = self.outlets.get(&run) else {
            return;
        };
        outlet.push(Event {
            finished: Some(finish),
            ..event
        });
        if batch.jobs_live(run) == 0 {
            self.outlets.remove(&run);
        }
    }

    /// Ends all jobs without a word of the batch, which is not to be trusted any more.
    pub(crate) fn fail_all(&mut self, error: &EngineError) {
        for outlet in self.outlets.values() {
            outlet.fail(error);
        }
    }
}
