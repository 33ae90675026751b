//! How to decode, and decoding.

use crate::bindings::realm::llm::generation;
use crate::{Error, Event, Finish, Sequence, Token, Usage};

/// How to decode. [`Request::policy`](crate::Request::policy) is the client's; change only what matters.
#[derive(Debug)]
pub struct Policy(pub(crate) generation::Policy);

impl Policy {
    /// Samples at temperature 1 with nothing cut off.
    pub fn new() -> Policy {
        Policy(generation::Policy::new())
    }

    /// At most this many tokens.
    #[must_use]
    pub fn max_tokens(self, n: u32) -> Policy {
        self.0.max_tokens(n);
        self
    }

    /// At least this many tokens: until then no token that would end the answer is chosen and no stop string is looked for.
    #[must_use]
    pub fn min_tokens(self, n: u32) -> Policy {
        self.0.min_tokens(n);
        self
    }

    /// 0 takes the likeliest token.
    #[must_use]
    pub fn temperature(self, value: f32) -> Policy {
        self.0.temperature(value);
        self
    }

    /// Only the `k` likeliest tokens; 0 turns it off.
    #[must_use]
    pub fn top_k(self, k: u32) -> Policy {
        self.0.top_k(k);
        self
    }

    /// Only the likeliest tokens that make up this much probability.
    #[must_use]
    pub fn top_p(self, p: f32) -> Policy {
        self.0.top_p(p);
        self
    }

    /// Only tokens at least `p` times as likely as the likeliest.
    #[must_use]
    pub fn min_p(self, p: f32) -> Policy {
        self.0.min_p(p);
        self
    }

    /// Makes sampling repeatable. Job `i` of a run draws from `seed + i`.
    #[must_use]
    pub fn seed(self, seed: u64) -> Policy {
        self.0.seed(seed);
        self
    }

    /// `repetition` divides (1 is off); `presence` and `frequency` subtract (0 is off).
    #[must_use]
    pub fn penalties(self, repetition: f32, presence: f32, frequency: f32) -> Policy {
        self.0.penalties(repetition, presence, frequency);
        self
    }

    /// Adds to the logits of the tokens named.
    #[must_use]
    pub fn bias(self, biases: &[(Token, f32)]) -> Policy {
        self.0.bias(biases);
        self
    }

    /// Ends before any of these strings.
    #[must_use]
    pub fn stop(self, strings: &[String]) -> Policy {
        self.0.stop(strings);
        self
    }

    /// Ends before any of these tokens.
    #[must_use]
    pub fn stop_tokens(self, tokens: &[Token]) -> Policy {
        self.0.stop_tokens(tokens);
        self
    }

    /// Whether to go on when the model ends its turn.
    #[must_use]
    pub fn ignore_end(self, on: bool) -> Policy {
        self.0.ignore_end(on);
        self
    }

    /// Reports log-probabilities: of the chosen token, and of the `top` likeliest. Never less than was asked before.
    #[must_use]
    pub fn logprobs(self, top: u32) -> Policy {
        self.0.logprobs(top);
        self
    }
}

impl Default for Policy {
    fn default() -> Policy {
        Policy::new()
    }
}

impl Clone for Policy {
    fn clone(&self) -> Policy {
        Policy(self.0.copy())
    }
}

/// A group of sequences being decoded in one batch. Dropping it cancels what still decodes.
#[derive(Debug)]
pub struct Run(pub(crate) generation::Run);

impl Run {
    /// Starts decoding; job `i` is the pair at `jobs[i]`.
    ///
    /// # Errors
    /// `Invalid` names the setting that is wrong; `Overloaded` when the host's queue is full.
    pub fn start(jobs: &[(&Sequence, &Policy)]) -> Result<Run, Error> {
        let jobs: Vec<_> = jobs
            .iter()
            .map(|(sequence, policy)| (&sequence.0, &policy.0))
            .collect();
        generation::Run::start(&jobs).map(Run)
    }

    /// Starts decoding all of them the same way; job `i` is `sequences[i]`.
    ///
    /// # Errors
    /// Those of [`Run::start`].
    pub fn start_all(sequences: &[Sequence], policy: &Policy) -> Result<Run, Error> {
        let jobs: Vec<_> = sequences
            .iter()
            .map(|sequence| (sequence, policy))
            .collect();
        Run::start(&jobs)
    }

    /// Events so far, after waiting up to `wait_ms` for the first. An empty list: none came in time. `None`: every
    /// job has ended.
    ///
    /// # Errors
    /// `Deadline` or `Internal`; what befalls a single job comes as its [`Finish::Failed`].
    pub fn next(&self, wait_ms: u32) -> Result<Option<Vec<Event>>, Error> {
        self.0.next(wait_ms)
    }

    /// Reads one job's text to its end, for runs of one job.
    ///
    /// # Errors
    /// Those of [`Run::next`], and the job's failure.
    pub fn text(&self) -> Result<String, Error> {
        let mut text = String::new();
        while let Some(events) = self.next(u32::MAX)? {
            for event in events {
                text.push_str(&event.text);
                if let Some(Finish::Failed(error)) = event.finish {
                    return Err(error);
                }
            }
        }
        Ok(text)
    }

    /// Ends a job at the next step.
    pub fn cancel(&self, job: u32) {
        self.0.cancel(job);
    }

    /// Tokens so far.
    pub fn usage(&self) -> Usage {
        self.0.usage()
    }
}
