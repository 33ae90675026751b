//! The one driver of a generation: starts the component, meters what it does, and gives its events in an order that a
//! framer of `framing/` can write down as they come.

use super::route::Target;
use crate::error::{ApiError, ApiResult};
use crate::metrics::Metrics;
use crate::state::{Admission, App, TenantEntry};
use realm_engine::text::{TextModel, TextOffsets};
use realm_engine::{Policy, StopReason, TokenLogprob, Usage};
use realm_sandbox::{
    CallError, CallRequest, GuestError, Invocation, MemoryCharge, PromptToken, PromptTokens,
    ReplyEvent, RequestKind, SharedKind,
};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A generation under way. Dropping it is hanging up.
pub(super) struct Generation {
    invocation: Invocation,
    choices: Vec<ChoiceState>,
    /// The model's words for its tokens.
    text: Arc<TextModel>,
    /// The tokens of the prompt, once they have come.
    prompt: Option<PromptTokens>,
    /// What the call used, once it has ended.
    usage: Usage,
    /// What follows from an event and has not been given yet.
    pending: VecDeque<GenerationEvent>,
    /// The prompt in front of an answer, as far as it has not been given yet.
    echo: Option<Echo>,
    /// The field of the prompt, if it has one, and the tokens that it and an answer can have.
    context: (Option<&'static str>, u32),
    meter: Meter,
    _admission: Admission,
}

/// What a generation is started with.
pub(super) struct Start {
    /// The id the client sees.
    pub(super) id: String,
    /// What is asked.
    pub(super) kind: RequestKind,
    /// Sampling, stops and limits.
    pub(super) policy: Policy,
    /// How many alternatives to each token of the prompt are asked for.
    pub(super) prompt_logprobs: Option<u32>,
    /// How many answers.
    pub(super) choices: u32,
    /// When the request came in.
    pub(super) started: Instant,
    /// Its route, for the metrics.
    pub(super) route: &'static str,
    /// What the request holds of its tenant's memory.
    pub(super) charge: MemoryCharge,
    /// Its place among the tenant's requests.
    pub(super) admission: Admission,
}

/// What happens in a generation. Every choice finishes once, before `Ended`, which comes last.
#[derive(Debug)]
pub(super) enum GenerationEvent {
    /// More of a choice.
    Delta(Delta),
    /// A JSON value that a function answers with.
    Value(String),
    /// A choice is complete.
    Finished {
        /// Which one.
        choice: u32,
        /// Why it ended.
        reason: StopReason,
    },
    /// All is said.
    Ended(Usage),
}

/// More of a choice; the text may be empty where there are log-probabilities.
#[derive(Debug)]
pub(super) struct Delta {
    /// Which one, from 0, below the number that was asked for.
    pub(super) choice: u32,
    /// Its next text.
    pub(super) text: String,
    /// The tokens behind it, where their log-probabilities were asked for.
    pub(super) tokens: Vec<TokenEntry>,
}

/// A token of an answer, or of the prompt in front of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TokenEntry {
    /// Its id.
    pub(super) token: u32,
    /// Its log-probability; `None` for the first of a prompt.
    pub(super) logprob: Option<f32>,
    /// The likeliest tokens in its place, with theirs.
    pub(super) top: Vec<(u32, f32)>,
    /// Where its text begins in that of the choice, in characters.
    pub(super) offset: usize,
}

/// How an answer of text ended.
#[derive(Debug)]
pub(super) struct Ending {
    /// Why each choice did.
    pub(super) reasons: Vec<StopReason>,
    /// Tokens.
    pub(super) usage: Usage,
    /// The tokens of the prompt, where their log-probabilities were asked for.
    pub(super) prompt: Option<PromptTokens>,
}

#[derive(Clone, Default)]
struct ChoiceState {
    /// Why it ended, once it has.
    finished: Option<StopReason>,
    /// Where its tokens begin in its text.
    places: Places,
}

/// Where the tokens of an answer begin in its text. Text comes later than its tokens, when a character or a stop string has
/// to be waited for, and some comes without any: what a component writes itself, and an echoed prompt.
#[derive(Clone, Default)]
struct Places {
    tokens: TextOffsets,
    /// Characters that came with tokens, or after them as what was held back.
    shown: usize,
    /// Characters that are no token's.
    own: usize,
}

impl Places {
    /// Sees a piece of the answer, of `chars` characters, after its tokens.
    fn text(&mut self, chars: usize, has_tokens: bool) {
        let held_back = self.tokens.chars().saturating_sub(self.shown);
        let of_tokens = if has_tokens {
            chars
        } else {
            chars.min(held_back)
        };
        self.shown += of_tokens;
        self.own += chars - of_tokens;
    }

    fn token(&mut self, bytes: &[u8]) -> usize {
        self.own + self.tokens.push(bytes)
    }
}

impl Generation {
    /// Starts the component.
    pub(super) fn start(
        app: &Arc<App>,
        tenant: &TenantEntry,
        target: &Target,
        start: Start,
    ) -> Generation {
        let caller = app.tenant_of(tenant);
        let context = target.base.client.length_max(caller.owner());
        let prompt = match start.kind {
            RequestKind::Chat { .. } => Some("messages"),
            RequestKind::Completion { .. } => Some("prompt"),
            RequestKind::Function { .. } => None,
        };
        let request = CallRequest {
            id: start.id,
            kind: SharedKind::charged(start.kind, start.charge),
            model: target.base.name.clone(),
            policy: start.policy,
            prompt_logprobs: start.prompt_logprobs,
            choices: start.choices,
            deadline: Duration::from_millis(caller.limits.wall_ms_max),
        };
        let meter = Meter {
            metrics: Arc::clone(&app.metrics),
            tenant: tenant.row.name.clone(),
            route: start.route,
            started: start.started,
            last_delta: None,
            measured: 0,
        };
        Generation {
            invocation: app.sandbox.invoke(&target.workflow, &caller, request),
            choices: vec![ChoiceState::default(); start.choices as usize],
            text: Arc::clone(target.base.client.text()),
            prompt: None,
            usage: Usage::default(),
            pending: VecDeque::new(),
            echo: None,
            context: (prompt, context),
            meter,
            _admission: start.admission,
        }
    }

    /// The next event. Safe to drop and call again.
    ///
    /// # Errors
    /// What the call ended with; nothing follows.
    pub(super) async fn next(&mut self) -> ApiResult<GenerationEvent> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Ok(event);
            }
            if let Some(delta) = self.echo.as_mut().and_then(Echo::next) {
                return Ok(GenerationEvent::Delta(delta));
            }
            let event = self
                .invocation
                .next()
                .await
                .ok_or_else(|| ApiError::internal("a call ended without its end"))?;
            self.meter.see(&event, self.invocation.usage().completion);
            self.take(event)?;
        }
    }

    /// Waits until the model is at work on it.
    pub(super) fn accepted(&self) -> impl Future<Output = ()> + Send + use<> {
        self.invocation.accepted()
    }

    /// How many answers were asked for.
    pub(super) fn choices(&self) -> usize {
        self.choices.len()
    }

    /// The next piece of an answer of text; `None` once all is said. Values are passed over: they are a function's way to
    /// answer. Safe to drop and call again.
    ///
    /// # Errors
    /// What the call ended with; nothing follows.
    pub(super) async fn next_delta(&mut self) -> ApiResult<Option<Delta>> {
        loop {
            match self.next().await? {
                GenerationEvent::Delta(delta) => return Ok(Some(delta)),
                GenerationEvent::Value(_) | GenerationEvent::Finished { .. } => {}
                GenerationEvent::Ended(usage) => {
                    self.usage = usage;
                    return Ok(None);
                }
            }
        }
    }

    /// How the answer ended, after its last piece.
    pub(super) fn ending(self) -> Ending {
        let reason = |choice: &ChoiceState| choice.finished.unwrap_or(StopReason::EndOfTurn);
        Ending {
            reasons: self.choices.iter().map(reason).collect(),
            usage: self.usage,
            prompt: self.prompt,
        }
    }

    /// Counts the call among those that failed, for a reason that the component does not know.
    pub(super) fn fail(&self, error: &ApiError) {
        self.meter.failed(&error.code);
    }

    /// Turns an event of the component, which writes what it likes, into those of a well-formed answer.
    fn take(&mut self, event: ReplyEvent) -> ApiResult<()> {
        match event {
            ReplyEvent::Delta {
                choice,
                text,
                logprobs,
                ..
            } => {
                let model = &self.text;
                let entries = |places: &mut Places| {
                    let entry = |said: TokenLogprob| TokenEntry {
                        offset: places.token(model.token_bytes(said.token)),
                        token: said.token,
                        logprob: Some(said.logprob),
                        top: said.top,
                    };
                    let entries: Vec<TokenEntry> = logprobs.into_iter().map(entry).collect();
                    places.text(text.chars().count(), !entries.is_empty());
                    entries
                };
                if let Some(places) = open_places(&mut self.choices, choice) {
                    let tokens = entries(places);
                    self.push_delta(choice, text, tokens);
                }
            }
            ReplyEvent::Echo {
                choice,
                text,
                tokens,
            } => {
                if let Some(places) = open_places(&mut self.choices, choice) {
                    let before = places.own + places.tokens.chars();
                    places.text(text.chars().count(), false);
                    self.echo = Some(Echo {
                        choice,
                        text,
                        tokens,
                        before,
                        chars: 0,
                        told: 0,
                    });
                }
            }
            ReplyEvent::Prompt(tokens) => self.prompt = Some(tokens),
            ReplyEvent::Json(value) => self.pending.push_back(GenerationEvent::Value(value)),
            ReplyEvent::ChoiceFinished { choice, reason } => self.finish(choice, reason),
            ReplyEvent::End(Ok(usage)) => {
                // Every choice a client asked for ends, also one the component did not write to.
                for choice in 0..self.choices.len() {
                    self.finish(choice as u32, StopReason::EndOfTurn);
                }
                self.pending.push_back(GenerationEvent::Ended(usage));
            }
            ReplyEvent::End(Err(CallError::Guest(GuestError::ContextFull(_)))) => {
                let (prompt, context_tokens) = self.context;
                return Err(ApiError::context_full(prompt, context_tokens));
            }
            ReplyEvent::End(Err(error)) => return Err(error.into()),
        }
        Ok(())
    }

    fn push_delta(&mut self, choice: u32, text: String, tokens: Vec<TokenEntry>) {
        if !(text.is_empty() && tokens.is_empty()) {
            self.pending.push_back(GenerationEvent::Delta(Delta {
                choice,
                text,
                tokens,
            }));
        }
    }

    fn finish(&mut self, choice: u32, reason: StopReason) {
        let open = self.choices.get_mut(choice as usize);
        if let Some(state) = open.filter(|state| state.finished.is_none()) {
            state.finished = Some(reason);
            self.pending
                .push_back(GenerationEvent::Finished { choice, reason });
        }
    }
}

/// Where the tokens of a choice begin that has not ended.
fn open_places(choices: &mut [ChoiceState], choice: u32) -> Option<&mut Places> {
    let open = choices.get_mut(choice as usize);
    open.filter(|state| state.finished.is_none())
        .map(|state| &mut state.places)
}

/// Tokens of an echoed prompt that are given at once: of a long one all entries together would take many times what its
/// tokens do.
const ECHO_TOKENS_MAX: usize = 256;

/// A prompt in front of an answer, which is given in pieces.
struct Echo {
    choice: u32,
    text: String, // that has not been given
    tokens: PromptTokens,
    before: usize, // characters of the answer in front of it
    chars: usize,  // given
    told: usize,   // tokens given
}

impl Echo {
    /// Its next piece. The text of a piece ends where the next one's first token begins.
    fn next(&mut self) -> Option<Delta> {
        let rest = &self.tokens[self.told..];
        if self.text.is_empty() && rest.is_empty() {
            return None;
        }
        let (piece, later) = rest.split_at(rest.len().min(ECHO_TOKENS_MAX));
        let entries = piece.iter().map(|token| prompt_entry(token, self.before));
        let tokens: Vec<TokenEntry> = entries.collect();
        self.told += tokens.len();
        let end = later.first().and_then(|next| {
            let chars = next.offset.saturating_sub(self.chars);
            Some((chars, self.text.char_indices().nth(chars)?.0))
        });
        let text = match end {
            Some((chars, bytes)) => {
                self.chars += chars;
                self.text.drain(..bytes).collect()
            }
            None => std::mem::take(&mut self.text),
        };
        Some(Delta {
            choice: self.choice,
            text,
            tokens,
        })
    }
}

/// The entry of a prompt's token, whose text begins `before` characters into that of the choice.
fn prompt_entry(prompt: &PromptToken, before: usize) -> TokenEntry {
    let scored = prompt.scored.as_ref().map(|scored| &scored.logprob);
    TokenEntry {
        token: prompt.token,
        logprob: scored.map(|scored| scored.logprob),
        top: scored.map_or_else(Vec::new, |scored| scored.top.clone()),
        offset: before + prompt.offset,
    }
}

/// Measures what goes by. Tokens are counted by the engine, not here: a component could say anything.
struct Meter {
    metrics: Arc<Metrics>,
    tenant: String,
    route: &'static str,
    started: Instant,
    last_delta: Option<Instant>,
    /// Tokens whose time has been measured.
    measured: u32,
}

impl Meter {
    /// `made` is how many tokens the engine has made for the call so far.
    fn see(&mut self, event: &ReplyEvent, made: u32) {
        match event {
            ReplyEvent::Delta { tokens, .. } => {
                let unmeasured = made.saturating_sub(self.measured);
                self.delta(unmeasured.min(u32::try_from(tokens.len()).unwrap_or(u32::MAX)));
            }
            ReplyEvent::End(Err(error)) => self.failed(error.code()),
            ReplyEvent::End(Ok(_))
            | ReplyEvent::Json(_)
            | ReplyEvent::Echo { .. }
            | ReplyEvent::Prompt(_)
            | ReplyEvent::ChoiceFinished { .. } => {}
        }
    }

    /// A piece of the answer with so many tokens that the engine has made and that were not measured yet.
    fn delta(&mut self, tokens: u32) {
        let (tenant, now) = ([self.tenant.as_str()], Instant::now());
        self.measured += tokens;
        match self.last_delta.replace(now) {
            None => {
                let seconds = (now - self.started).as_secs_f64();
                let histogram = &self.metrics.first_token_seconds;
                histogram.with_label_values(&tenant).observe(seconds);
            }
            Some(last) if tokens > 0 => {
                // A piece of several tokens was late by its first; the others came with it.
                let seconds = (now - last).as_secs_f64() / f64::from(tokens);
                let histogram = self.metrics.inter_token_seconds.with_label_values(&tenant);
                (0..tokens).for_each(|_| histogram.observe(seconds));
            }
            Some(_) => {}
        }
    }

    fn failed(&self, code: &str) {
        let labels = [self.tenant.as_str(), code];
        self.metrics.guest_errors.with_label_values(&labels).inc();
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        let seconds = self.started.elapsed().as_secs_f64();
        self.metrics
            .request_seconds
            .with_label_values(&[self.route])
            .observe(seconds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_begin_where_their_text_does_however_late_it_comes() {
        let mut places = Places::default();
        let letter = "é".as_bytes();
        // A prompt that is echoed, then tokens whose text waits for a stop string that does not come, or for a byte.
        places.text(5, false);
        assert_eq!(places.token(b"ab"), 5);
        places.text(0, true);
        assert_eq!(places.token(&letter[..1]), 7);
        places.text(2, true);
        assert_eq!(places.token(&letter[1..]), 7);
        places.text(0, true);
        // What was held back, and then what the component says itself.
        places.text(1, false);
        places.text(3, false);
        assert_eq!(places.token(b"x"), 11);
    }

    #[test]
    fn a_long_prompt_is_echoed_in_pieces_that_add_up() {
        // Two tokens a character, so that the text of a piece could end in the middle of one.
        let text = "é".repeat(400) + "!";
        let token = |index: usize| PromptToken {
            token: index as u32,
            offset: index.div_ceil(2),
            scored: None,
        };
        let mut echo = Echo {
            choice: 1,
            text: text.clone(),
            tokens: (0..801).map(token).collect(),
            before: 3,
            chars: 0,
            told: 0,
        };
        let pieces: Vec<Delta> = std::iter::from_fn(|| echo.next()).collect();
        let sizes: Vec<usize> = pieces.iter().map(|piece| piece.tokens.len()).collect();
        assert_eq!(sizes, [256, 256, 256, 33]);
        let joined: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
        assert_eq!(joined, text);
        let mut before = 3;
        for piece in &pieces {
            assert_eq!((piece.choice, piece.tokens[0].offset), (1, before));
            before += piece.text.chars().count();
        }
        let tokens = pieces.iter().flat_map(|piece| &piece.tokens);
        let offsets: Vec<usize> = tokens.map(|token| token.offset).collect();
        let expected: Vec<usize> = (0..801_usize).map(|index| 3 + index.div_ceil(2)).collect();
        assert_eq!(offsets, expected);
        // Without log-probabilities it is only a text.
        let mut echo = Echo {
            choice: 0,
            text: text.clone(),
            tokens: PromptTokens::default(),
            before: 0,
            chars: 0,
            told: 0,
        };
        assert_eq!(echo.next().map(|piece| piece.text), Some(text));
        assert!(echo.next().is_none());
    }

    #[test]
    fn the_time_between_tokens_is_that_of_tokens_the_engine_made() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let mut meter = Meter {
            metrics: Arc::clone(&metrics),
            tenant: "acme".to_owned(),
            route: "chat_completions",
            started: Instant::now(),
            last_delta: None,
            measured: 0,
        };
        let claimed = |tokens: usize| ReplyEvent::Delta {
            choice: 0,
            text: "x".to_owned(),
            tokens: vec![1; tokens],
            logprobs: Vec::new(),
        };
        let histogram = metrics.inter_token_seconds.with_label_values(&["acme"]);
        // What is claimed, and what was made by then: the first piece is the first token's.
        for (tokens, made, measured) in [
            (1, 1, 0),
            (500_000, 1, 0),
            (3, 4, 3),
            (500_000, 6, 5),
            (0, 9, 5),
            (2, 9, 7),
        ] {
            meter.see(&claimed(tokens), made);
            let count = histogram.get_sample_count();
            assert_eq!(count, measured, "{tokens} claimed, {made} made");
        }
    }
}
