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

use crate::batch::{Batch, JobId, Tokens, Wanted};
use crate::clock::Clock;
use crate::error::EngineError;
use crate::executor::Executor;
use crate::outlet::{Event, Finish, Outlet, StopReason};
use crate::sampler::{BadLogits, PromptLogprob, Rng, TokenLogprob};
use crate::scheduler::Span;

/// What was chosen for one sequence, and how long choosing took.
pub(crate) struct Choice {
    pub(crate) sequence: u64,
    pub(crate) took: Duration,
    chosen: Result<(u32, Option<TokenLogprob>), BadLogits>,
}

/// What was found of one sequence's prompt, and how long that took.
pub(crate) struct Score {
    pub(crate) sequence: u64,
    pub(crate) took: Duration,
    found: Result<Vec<PromptLogprob>, BadLogits>,
}

impl Score {
    fn of(sequence: u64) -> Score {
        Score {
            sequence,
            took: Duration::ZERO,
            found: Ok(Vec::new()),
        }
    }

    fn add(&mut self, next: Result<PromptLogprob, BadLogits>, took: Duration) {
        self.took += took;
        match (&mut self.found, next) {
            (Ok(found), Ok(next)) => found.push(next),
            (found, _) => *found = Err(BadLogits),
        }
    }
}

fn bad_logits() -> EngineError {
    EngineError::Internal("the model gave logits that are not numbers".to_owned())
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

    /// Takes on job `index` of a run, whose sequence has `prompt` already. Returns what it asks of that.
    pub(crate) fn begin(
        &mut self,
        sequence: u64,
        index: u32,
        mut generation: Box<Generation>,
        prompt: Tokens,
    ) -> Wanted {
        generation.begin(index, prompt, self.seeds.next_u64(), &self.text);
        let wanted = generation.wanted();
        self.generations.insert(sequence, generation);
        wanted
    }

    /// Finds the log-probabilities of the tokens after a step's rows, of jobs that want those of their prompts. All at once
    /// on the executor's threads, a row at a time: what is kept of a row is a few numbers.
    pub(crate) fn score(
        &self,
        batch: &Batch,
        spans: &[Span],
        logits: &[f32],
        executor: &dyn Executor,
        clock: &dyn Clock,
    ) -> Vec<Score> {
        struct Row<'a> {
            span: &'a Span,
            logits: &'a [f32],
            token: u32,
            scored: Result<PromptLogprob, BadLogits>,
            took: Duration,
        }
        if spans.iter().all(|span| span.scored == 0) {
            return Vec::new();
        }
        let mut rows: Vec<Mutex<Row<'_>>> = Vec::new();
        let mut all = logits.chunks_exact(self.vocab);
        for span in spans {
            let of_span = all.by_ref().take(span.logits as usize);
            for (place, logits) in of_span.enumerate() {
                let after = span.first_logits() + place as u32 + 1;
                let is_scored = place < span.scored as usize;
                let sequence = batch.get(span.sequence).filter(|_| is_scored);
                rows.extend(sequence.and_then(|it| it.token(after)).map(|token| {
                    Mutex::new(Row {
                        span,
                        logits,
                        token,
                        scored: Err(BadLogits),
                        took: Duration::ZERO,
                    })
                }));
            }
        }
        executor.for_each(rows.len(), &|index| {
            let mut row = rows[index].lock().unwrap_or_else(PoisonError::into_inner);
            let began = clock.now();
            if let Some(generation) = self.generations.get(&row.span.sequence) {
                row.scored = generation.score(row.logits, row.token);
            }
            row.took = clock.now().saturating_sub(began);
        });
        let mut scores: Vec<Score> = Vec::new();
        for row in rows {
            let row = row.into_inner().unwrap_or_else(PoisonError::into_inner);
            let sequence = row.span.sequence;
            if scores.last().is_none_or(|last| last.sequence != sequence) {
                scores.push(Score::of(sequence));
            }
            if let Some(score) = scores.last_mut() {
                score.add(row.scored, row.took);
            }
        }
        scores
    }

    /// Gives the log-probabilities of a prompt's tokens to the run.
    pub(crate) fn emit_score(&mut self, batch: &mut Batch, score: Score) {
        let id = score.sequence;
        let Ok(found) = score.found else {
            self.fail(batch, id, &bad_logits());
            return;
        };
        let run = batch.job(id).map(|job| job.run);
        let outlet = run.and_then(|run| self.outlets.get(&run));
        if let (Some(generation), Some(outlet)) = (self.generations.get(&id), outlet) {
            outlet.push(generation.scored(found));
        }
    }

    /// Chooses a token for every span that ends with its sequence, by the logits after its last row, all at once on the
    /// executor's threads: a choice depends on its own logits only.
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
        let last_of = |span: &Span| Some((*span, rows.by_ref().take(span.logits as usize).last()?));
        let tasks: Vec<Mutex<Task<'_>>> = spans
            .iter()
            .filter_map(last_of)
            .filter(|(span, _)| span.logits > span.scored)
            .filter_map(|(span, logits)| {
                let sequence = span.sequence;
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
            self.fail(batch, id, &bad_logits());
            return;
        };
        let said = if generation.wanted().max_tokens == Some(0) {
            // The job was there for its prompt's log-probabilities, which are out.
            Said {
                event: generation.event(),
                finish: Some(Finish::Stopped(StopReason::MaxTokens)),
            }
        } else if let Some(reason) = generation.end_before(token, &self.text) {
            let said = generation.end(reason, logprob);
            if said.event.ended_at_once {
                batch.count_end(id);
            }
            said
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
