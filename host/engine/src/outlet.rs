//! The way out of the engine: what jobs of one run said since their reader last looked.
//!
//! The engine never waits for a reader. Events of a job that were not read yet grow together, and the job is paused
//! when there are too many. Every job ends with exactly one `finished`, also when the engine dies: the engine's end
//! says so when it is dropped.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::error::EngineError;
use crate::sampler::{PromptLogprob, TokenLogprob};

/// What one job said since the last look.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Event {
    /// Index in the jobs the run was started with.
    pub job: u32,
    /// Text that is certain: whole characters, and no part of a stop string.
    pub text: String,
    /// The tokens, without the end-of-generation token. Text may come later than its tokens.
    pub tokens: Vec<u32>,
    /// One for each of `tokens` if the policy asked, else empty; and one for an end-of-generation token that came first.
    pub logprobs: Vec<TokenLogprob>,
    /// One for each token that the sequence had when the job began, but the first, if the policy asked.
    pub prompt_logprobs: Vec<PromptLogprob>,
    /// The first token ended the job: the answer is empty, and yet a token was made.
    pub ended_at_once: bool,
    /// Set in the last event of the job.
    pub finished: Option<Finish>,
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Finish {
    /// As asked, or because it had to.
    Stopped(StopReason),
    /// By an error; what was said before stands.
    Failed(EngineError),
}

/// Why a job stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The model ended its turn.
    EndOfTurn,
    /// One of the policy's stop strings or stop tokens came up.
    StopString,
    /// The policy's number of tokens was made.
    MaxTokens,
    /// The sequence is as long as the context, or as long as the KV blocks there are allow.
    ContextFull,
    /// The run was dropped or the job cancelled.
    Cancelled,
}

/// Tokens a run has used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens appended to the jobs' sequences. A token counts once, in the first run that decodes its sequence or a
    /// fork of it, so adding up the runs of a request gives the request's prompt. Known once the engine saw the run.
    pub prompt: u32,
    /// How many of those came from the prefix cache.
    pub cached: u32,
    /// Tokens made and given out as events: the end-of-generation token does not count, unless it came first.
    pub completion: u32,
}

/// The reader's end.
pub(crate) struct Reader {
    shared: Arc<RunShared>,
}

/// The engine's end. Dropping it fails the jobs that have not finished.
pub(crate) struct Outlet {
    shared: Arc<RunShared>,
}

struct RunShared {
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    pending: Vec<Event>,  // [jobs]
    ended: Vec<bool>,     // [jobs]
    cancelled: Vec<bool>, // [jobs], asked by the reader
    fresh: bool,          // something in `pending` was not read
    paused: bool,         // some job waits for the reader
    usage: Usage,
    unread_tokens_max: usize, // of one job
}

/// What a look at the pending events gives.
pub(crate) struct Taken {
    /// `None` when nothing new is there.
    pub(crate) events: Option<Vec<Event>>,
    /// Every job has ended and every event was read.
    pub(crate) ended: bool,
    /// Some job was paused for this reader and should go on.
    pub(crate) resume: bool,
}

impl RunShared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Both ends for a run of `jobs`.
pub(crate) fn outlet(jobs: u32, unread_tokens_max: usize) -> (Outlet, Reader) {
    let event = |job| Event {
        job,
        ..Event::default()
    };
    let shared = Arc::new(RunShared {
        state: Mutex::new(State {
            pending: (0..jobs).map(event).collect(),
            ended: vec![false; jobs as usize],
            cancelled: vec![false; jobs as usize],
            fresh: false,
            paused: false,
            usage: Usage::default(),
            unread_tokens_max,
        }),
        changed: Notify::new(),
    });
    let outlet = Outlet {
        shared: Arc::clone(&shared),
    };
    (outlet, Reader { shared })
}

impl Reader {
    /// Takes what is pending.
    pub(crate) fn take(&self) -> Taken {
        let mut state = self.shared.lock();
        if !state.fresh {
            let ended = state.ended.iter().all(|&ended| ended);
            return Taken {
                events: None,
                ended,
                resume: false,
            };
        }
        state.fresh = false;
        let events = state
            .pending
            .iter_mut()
            .filter(|event| {
                !event.tokens.is_empty()
                    || !event.text.is_empty()
                    || !event.prompt_logprobs.is_empty()
                    || event.finished.is_some()
            })
            .map(|event| {
                let empty = Event {
                    job: event.job,
                    ..Event::default()
                };
                std::mem::replace(event, empty)
            })
            .collect();
        Taken {
            events: Some(events),
            ended: false,
            resume: std::mem::take(&mut state.paused),
        }
    }

    /// Waits until something changed since the last wait.
    pub(crate) async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    /// Whether cancelling the job is news: it is there, has not ended and was not cancelled before.
    pub(crate) fn cancel(&self, job: u32) -> bool {
        let mut state = self.shared.lock();
        let job = job as usize;
        let is_live = state.ended.get(job) == Some(&false);
        is_live && !std::mem::replace(&mut state.cancelled[job], true)
    }

    /// Whether every job has ended, read or not.
    pub(crate) fn has_ended(&self) -> bool {
        self.shared.lock().ended.iter().all(|&ended| ended)
    }

    pub(crate) fn usage(&self) -> Usage {
        self.shared.lock().usage
    }
}

impl Outlet {
    /// Adds to the pending event of a job. True when the job should pause: its reader is too far behind.
    pub(crate) fn push(&self, said: Event) -> bool {
        let mut state = self.shared.lock();
        let job = said.job as usize;
        if state.ended[job] {
            return false;
        }
        state.usage.completion += said.tokens.len() as u32 + u32::from(said.ended_at_once);
        state.fresh = true;
        state.ended[job] = said.finished.is_some();
        let unread_tokens_max = state.unread_tokens_max;
        let pending = &mut state.pending[job];
        pending.text.push_str(&said.text);
        pending.tokens.extend(said.tokens);
        pending.logprobs.extend(said.logprobs);
        pending.prompt_logprobs.extend(said.prompt_logprobs);
        pending.ended_at_once |= said.ended_at_once;
        pending.finished = said.finished;
        let pause = pending.finished.is_none() && pending.tokens.len() >= unread_tokens_max;
        state.paused |= pause;
        drop(state);
        self.shared.changed.notify_one();
        pause
    }

    pub(crate) fn set_prompt(&self, prompt: u32, cached: u32) {
        let mut state = self.shared.lock();
        state.usage.prompt = prompt;
        state.usage.cached = cached;
    }

    /// Ends every job that has not ended.
    pub(crate) fn fail(&self, error: &EngineError) {
        let mut state = self.shared.lock();
        for job in 0..state.ended.len() {
            if !state.ended[job] {
                state.ended[job] = true;
                state.fresh = true;
                state.pending[job].finished = Some(Finish::Failed(error.clone()));
            }
        }
        drop(state);
        self.shared.changed.notify_one();
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        self.fail(&EngineError::Stopped);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(job: u32, tokens: usize, finished: Option<Finish>) -> Event {
        Event {
            job,
            text: "x".repeat(tokens),
            tokens: vec![1; tokens],
            finished,
            ..Event::default()
        }
    }

    #[test]
    fn what_is_not_read_grows_together_and_pauses_the_job() {
        let (outlet, reader) = outlet(2, 10);
        assert!(!outlet.push(said(1, 9, None)));
        assert!(outlet.push(said(1, 1, None)));
        let taken = reader.take();
        let events = taken.events.unwrap();
        assert_eq!(events.len(), 1);
        assert_eq!((events[0].job, events[0].tokens.len()), (1, 10));
        assert!(taken.resume);
        assert!(!outlet.push(said(1, 1, None)));
    }

    #[test]
    fn a_lost_engine_fails_only_what_had_not_finished() {
        let (outlet, reader) = outlet(2, 10);
        outlet.push(said(0, 1, Some(Finish::Stopped(StopReason::EndOfTurn))));
        drop(outlet);
        let events = reader.take().events.unwrap();
        assert_eq!(
            events[0].finished,
            Some(Finish::Stopped(StopReason::EndOfTurn))
        );
        assert_eq!(
            events[1].finished,
            Some(Finish::Failed(EngineError::Stopped))
        );
        assert!(reader.take().ended);
        assert_eq!(reader.usage().completion, 1);
    }
}
