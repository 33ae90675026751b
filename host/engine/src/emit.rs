//! The last part of a step: logits become tokens, tokens text, and text events. A job ends here, exactly where its
//! text or its model says so.

use std::sync::atomic::Ordering;

use crate::error::EngineError;
use crate::outlet::{Event, Finish, StopReason};
use crate::request::JobState;
use crate::sampler::BadLogits;
use crate::scheduler::Span;
use crate::step::StepLoop;

/// What one more token did to a job.
struct Said {
    event: Event,
    finish: Option<Finish>,
}

impl StepLoop {
    /// Samples and emits for every computed span, in batch order.
    pub(crate) fn emit(&mut self) {
        let vocab = self.shared.facts.vocab_size as usize;
        let mut logits = std::mem::take(&mut self.logits);
        let mut rows = logits.chunks_exact_mut(vocab);
        for span in std::mem::take(&mut self.plan.spans) {
            if let Some(sequence) = self.sequences.get_mut(&span.sequence) {
                sequence.computed = span.end;
                sequence.used_step = self.steps;
            }
            if span.logits
                && let Some(row) = rows.next()
            {
                self.emit_token(&span, row);
            }
            self.settle_forks(span.sequence, false);
            self.rest_if_done(span.sequence);
        }
        self.logits = logits;
    }

    fn emit_token(&mut self, span: &Span, logits: &mut [f32]) {
        let Some(sequence) = self.sequences.get_mut(&span.sequence) else {
            return;
        };
        let Some(job) = &mut sequence.job else { return };
        let (token, logprob) = match job.sampler.choose(&job.policy, logits) {
            Ok(chosen) => chosen,
            Err(BadLogits) => {
                let what = "the model gave logits that are not numbers".to_owned();
                self.fail(span.sequence, &EngineError::Internal(what));
                return;
            }
        };
        let text = &self.shared.text;
        let said = if text.is_end_of_generation(token) && !job.policy.ignore_eos {
            end_of_turn(job)
        } else {
            sequence.tokens.push(token);
            sequence.face.charge.completion(1);
            let length = sequence.tokens.len() as u32;
            sequence.face.length.store(length, Ordering::Release);
            let room = self.shared.facts.context_length.saturating_sub(length);
            let mut said = one_more(job, token, text.token_bytes(token), room);
            said.event.logprobs.extend(logprob);
            said
        };
        match said.finish {
            Some(finish) => self.finish(span.sequence, said.event, finish),
            None => {
                let (run, event) = (job.run, said.event);
                let pause = self
                    .runs
                    .get(&run)
                    .is_some_and(|run| run.outlet.push(event));
                if pause {
                    self.pause(span.sequence);
                }
            }
        }
    }
}

impl StepLoop {
    /// Ends a job that cannot go on, with what it has said.
    pub(crate) fn finish_full(&mut self, id: u64) {
        let Some(job) = self
            .sequences
            .get_mut(&id)
            .and_then(|sequence| sequence.job.as_mut())
        else {
            return;
        };
        let mut event = Event::default();
        flush(job, &mut event);
        let finish = Finish::Stopped(StopReason::ContextFull);
        self.finish(id, event, finish);
    }
}

/// The model ended its turn: what was held back comes out.
fn end_of_turn(job: &mut JobState) -> Said {
    let mut event = Event {
        job: job.job,
        ..Event::default()
    };
    let matched = flush(job, &mut event);
    let reason = if matched {
        StopReason::StopString
    } else {
        StopReason::EndOfTurn
    };
    Said {
        event,
        finish: Some(Finish::Stopped(reason)),
    }
}

/// A token of `bytes` was added and `room` more would fit.
fn one_more(job: &mut JobState, token: u32, bytes: &[u8], room: u32) -> Said {
    job.sampler.accept(token);
    job.generated += 1;
    let text = job.detokenizer.push(bytes);
    let out = job.stops.push(&text);
    let mut event = Event {
        job: job.job,
        text: out.text,
        tokens: vec![token],
        ..Event::default()
    };
    let mut reason = None;
    if out.matched.is_some() {
        reason = Some(StopReason::StopString);
    } else if job.policy.max_tokens == Some(job.generated) {
        reason = Some(StopReason::MaxTokens);
    } else if room == 0 {
        reason = Some(StopReason::ContextFull);
    }
    if reason.is_some() && reason != Some(StopReason::StopString) && flush(job, &mut event) {
        reason = Some(StopReason::StopString);
    }
    Said {
        event,
        finish: reason.map(Finish::Stopped),
    }
}

/// Adds the text that waited for more bytes or could have become a stop string. True when it did become one.
fn flush(job: &mut JobState, event: &mut Event) -> bool {
    let rest = job.detokenizer.finish();
    let out = job.stops.push(&rest);
    event.text.push_str(&out.text);
    if out.matched.is_none() {
        event.text.push_str(&job.stops.finish());
    }
    out.matched.is_some()
}
