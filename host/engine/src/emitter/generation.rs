//! One job's way from logits to text: its policy, and the sampler, detokenizer and stop strings that follow it.

use realm_text::{Detokenizer, StopMatcher, TextModel};

use crate::batch::{Tokens, Wanted};
use crate::outlet::{Event, Finish, StopReason};
use crate::policy::Policy;
use crate::sampler::{BadLogits, PromptLogprob, Sampler, TokenLogprob};

/// A job as the emitter follows it.
#[derive(Debug)]
pub(crate) struct Generation {
    policy: Policy,
    sampler: Sampler,
    detokenizer: Detokenizer,
    stops: StopMatcher,
    generated: u32,
    index: u32, // in its run
}

/// What one more token did to a job.
pub(super) struct Said {
    pub(super) event: Event,
    pub(super) finish: Option<Finish>,
}

impl Generation {
    /// Of a valid policy.
    pub(crate) fn new(policy: Policy) -> Generation {
        Generation {
            sampler: Sampler::new(&policy),
            detokenizer: Detokenizer::new(),
            stops: StopMatcher::new(policy.stop.clone()),
            policy,
            generated: 0,
            index: 0,
        }
    }

    /// Begins job `index` of its run. `prompt` is what the sequence has already; `seed` is used when the policy has none.
    pub(super) fn begin(&mut self, index: u32, prompt: Tokens, seed: u64, text: &TextModel) {
        self.index = index;
        self.sampler.begin(&self.policy, prompt, seed);
        if self.policy.min_tokens > 0 {
            let mut ends = self.policy.stop_token_ids.clone();
            if !self.policy.ignore_eos {
                ends.extend(text.ends_of_generation());
            }
            self.sampler.forbid(ends);
        }
    }

    pub(super) fn wanted(&self) -> Wanted {
        Wanted {
            max_tokens: self.policy.max_tokens,
            scores: self.policy.prompt_logprobs.is_some(),
        }
    }

    /// The log-probability of a token that the sequence has, by logits `[vocab]` after the tokens before it.
    pub(super) fn score(&self, logits: &[f32], token: u32) -> Result<PromptLogprob, BadLogits> {
        let top = self.policy.prompt_logprobs.unwrap_or(0);
        PromptLogprob::of(logits, token, top)
    }

    /// Says the log-probabilities of tokens that the sequence has.
    pub(super) fn scored(&self, prompt_logprobs: Vec<PromptLogprob>) -> Event {
        Event {
            prompt_logprobs,
            ..self.event()
        }
    }

    pub(super) fn has_spoken(&self) -> bool {
        self.generated > 0
    }

    /// Why the job ends before a token that was chosen, if it does.
    pub(super) fn end_before(&self, token: u32, text: &TextModel) -> Option<StopReason> {
        if self.policy.stop_token_ids.contains(&token) {
            return Some(StopReason::StopString);
        }
        let is_end = text.is_end_of_generation(token) && !self.policy.ignore_eos;
        is_end.then_some(StopReason::EndOfTurn)
    }

    pub(super) fn event(&self) -> Event {
        Event {
            job: self.index,
            ..Event::default()
        }
    }

    /// Chooses a token from logits `[vocab]`, which are changed.
    pub(super) fn choose(
        &mut self,
        logits: &mut [f32],
    ) -> Result<(u32, Option<TokenLogprob>), BadLogits> {
        self.sampler.choose(&self.policy, logits)
    }

    /// The job ends before a token: what was held back comes out. A token that ends it before it said anything is told of as
    /// others are, so that whoever asked for the likeliest ones is not left without them.
    pub(super) fn end(&mut self, reason: StopReason, logprob: Option<TokenLogprob>) -> Said {
        let mut event = self.event();
        if !self.has_spoken() {
            event.ended_at_once = true;
            event.logprobs = logprob.into_iter().collect();
        }
        let reason = if self.flush(&mut event) {
            StopReason::StopString
        } else {
            reason
        };
        Said {
            event,
            finish: Some(Finish::Stopped(reason)),
        }
    }

    /// A token of `bytes` was added and `room` more would fit.
    pub(super) fn one_more(
        &mut self,
        token: u32,
        logprob: Option<TokenLogprob>,
        bytes: &[u8],
        room: u32,
    ) -> Said {
        self.sampler.accept(token);
        self.generated += 1;
        let text = self.detokenizer.push(bytes);
        let (text, matched) = self.before_stop(text);
        let mut event = Event {
            text,
            tokens: vec![token],
            logprobs: logprob.into_iter().collect(),
            ..self.event()
        };
        let mut reason = None;
        if matched {
            reason = Some(StopReason::StopString);
        } else if self.policy.max_tokens == Some(self.generated) {
            reason = Some(StopReason::MaxTokens);
        } else if room == 0 {
            reason = Some(StopReason::ContextFull);
        }
        if reason.is_some() && reason != Some(StopReason::StopString) && self.flush(&mut event) {
            reason = Some(StopReason::StopString);
        }
        Said {
            event,
            finish: reason.map(Finish::Stopped),
        }
    }

    /// What of a token's text is certain, and whether a stop string has come up. The least that was asked for is not searched.
    fn before_stop(&mut self, text: String) -> (String, bool) {
        let least = self.policy.min_tokens;
        if self.generated == least {
            self.sampler.forbid(Vec::new());
        }
        if self.generated <= least {
            return (text, false);
        }
        let out = self.stops.push(&text);
        (out.text, out.matched.is_some())
    }

    /// Adds the text that waited for more bytes or could have become a stop string. True when it did become one.
    pub(super) fn flush(&mut self, event: &mut Event) -> bool {
        let rest = self.detokenizer.finish();
        let out = self.stops.push(&rest);
        event.text.push_str(&out.text);
        if out.matched.is_none() {
            event.text.push_str(&self.stops.finish());
        }
        out.matched.is_some()
    }
}
