//! What a client asks of a model: one typed request for chats and completions, whichever way it came in.
//!
//! The text is read twice, once for what both kinds say the same way and once for what only one has: no derived type can
//! hold both without keeping every unknown field as well. A further API adds its own fields in a file of `request/`; a
//! further field of all of them goes to [`CommonFields`].

mod chat;
mod completion;
mod tools;

use super::json::{self, Count, Decimal, List, Object, Seed, TokenId, TopK};
use super::parameters::{self, Route};
use crate::error::{ApiError, ApiResult, shown};
use realm_engine::text::{TextError, TextModel};
use realm_engine::{LOGPROBS_MAX, Policy, STOP_TOKENS_MAX, STOPS_MAX};
use realm_sandbox::{Prompt, RequestKind};
use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// Answers of one request at most.
const CHOICES_MAX: u32 = 8;
/// Entries of `logit_bias`, as many as the policy of a component can have.
const BIASES_MAX: usize = 4_096;

/// Which of OpenAI's two kinds of request, and so of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// `chat.completion` and its chunks.
    Chat,
    /// `text_completion`.
    Completion,
}

impl Family {
    fn route(self) -> Route {
        match self {
            Family::Chat => Route::Chat,
            Family::Completion => Route::Completion,
        }
    }
}

/// What a request means where it does not say.
#[derive(Clone, Debug, Default)]
pub(super) struct Defaults {
    /// The model; without one, `model` is required.
    pub(super) model: Option<String>,
    /// Whether the answer is streamed.
    pub(super) stream: bool,
}

/// A request for text.
#[derive(Clone, Debug)]
pub(super) struct GenerationRequest {
    /// Chat or completion.
    pub(super) family: Family,
    /// What the client calls the model.
    pub(super) model: String,
    /// The messages or the prompt.
    pub(super) kind: RequestKind,
    /// Sampling, stops and limits.
    pub(super) policy: Policy,
    /// How many alternatives to each token of the prompt are asked for.
    pub(super) prompt_logprobs: Option<u32>,
    /// How many answers.
    pub(super) choices: u32,
    /// Whether to send text as it is made.
    pub(super) stream: bool,
    /// Whether a stream of HTTP ends with the token counts.
    pub(super) include_usage: bool,
}

impl GenerationRequest {
    /// Reads a request. `what` names the text in messages.
    ///
    /// # Errors
    /// The client's 400, with the path of the field as its `param`.
    pub(super) fn parse(
        text: &[u8],
        what: &str,
        family: Family,
        defaults: Defaults,
    ) -> ApiResult<GenerationRequest> {
        let common: CommonFields = json::parse(text, what)?;
        parameters::check(text, what, family.route())?;
        let model = common.model.clone().or(defaults.model);
        let model = model.ok_or_else(|| ApiError::field("model", "is required"))?;
        let stream = common.stream.unwrap_or(defaults.stream);
        let include_usage = match &common.stream_options {
            Some(_) if !stream => {
                let what = "can only be used when stream is true";
                return Err(ApiError::field("stream_options", what));
            }
            options => options
                .as_ref()
                .and_then(|options| options.0.include_usage)
                .unwrap_or(false),
        };
        let choices = common.n.map_or(1, |n| n.0);
        if !(1..=CHOICES_MAX).contains(&choices) {
            let what = format!("must be from 1 to {CHOICES_MAX}, not {choices}");
            return Err(ApiError::field("n", what));
        }
        let prompt_logprobs = common.prompt_logprobs(stream)?;
        let mut policy = common.policy();
        let kind = match family {
            Family::Chat => chat::read(json::parse(text, what)?, &mut policy)?,
            Family::Completion => completion::read(json::parse(text, what)?, &mut policy, choices)?,
        };
        let echo = matches!(kind, RequestKind::Completion { echo: true, .. });
        if policy.max_tokens == Some(0) && !echo && prompt_logprobs.is_none() {
            let what = "must be at least 1, unless echo or prompt_logprobs is asked for";
            return Err(ApiError::field(common.max_tokens().0, what));
        }
        Ok(GenerationRequest {
            family,
            model,
            kind,
            policy,
            prompt_logprobs,
            choices,
            stream,
            include_usage,
        })
    }

    /// Bytes that the request holds on the heap: what its tenant is charged.
    pub(super) fn heap_bytes(&self) -> usize {
        let stops = self.policy.stop.iter().map(|stop| stop.capacity() + 24);
        let biases = self.policy.logit_bias.capacity() * 8;
        let stop_tokens = self.policy.stop_token_ids.capacity() * 4;
        self.model.capacity()
            + stops.sum::<usize>()
            + biases
            + stop_tokens
            + kind_heap_bytes(&self.kind)
    }

    /// Refuses text that cannot fit whatever its tokens are, since none is longer than `token_bytes_max`.
    ///
    /// # Errors
    /// The client's 400 `context_length_exceeded`, with both numbers.
    pub(super) fn check_length(
        &self,
        context_tokens: u32,
        token_bytes_max: usize,
    ) -> ApiResult<()> {
        // An answer must have room for a token of its own, where one is wanted.
        let answer = self.policy.max_tokens.unwrap_or(1).min(1);
        let tokens_max = context_tokens.saturating_sub(answer) as usize;
        let bytes_max = tokens_max.saturating_mul(token_bytes_max);
        let (param, found, unit, max) = match &self.kind {
            RequestKind::Completion { prompt, .. } => match prompt {
                Prompt::Tokens(tokens) => ("prompt", tokens.len(), "tokens", tokens_max),
                Prompt::Text(text) => ("prompt", text.len(), "bytes", bytes_max),
            },
            RequestKind::Chat(chat) => {
                let tools = chat::tool_bytes(&chat.tools);
                let all = chat::message_bytes(&chat.messages).saturating_add(tools);
                let param = if tools > bytes_max {
                    "tools"
                } else {
                    "messages"
                };
                (param, all, "bytes", bytes_max)
            }
            RequestKind::Function { .. } => return Ok(()), // a component's own matter
        };
        if found <= max {
            return Ok(());
        }
        let what = format!(
            "this model's maximum context length is {context_tokens} tokens, which leaves room for {max} {unit} of a prompt at the very most, not {found}"
        );
        Err(ApiError {
            code: "context_length_exceeded".into(),
            ..ApiError::field(param, what)
        })
    }

    /// Refuses a chat of which the model's chat template would pass over something.
    ///
    /// # Errors
    /// The client's 400, with the path of the field.
    pub(super) fn check_chat(&self, text: &TextModel) -> ApiResult<()> {
        let RequestKind::Chat(chat) = &self.kind else {
            return Ok(());
        };
        text.check_chat(chat).map_err(|error| match &error {
            TextError::NoPlace { field, .. } | TextError::NothingToContinue { field } => ApiError {
                param: Some(field.clone()),
                ..ApiError::invalid(error.to_string())
            },
            other => ApiError::invalid(other.to_string()),
        })
    }

    /// Refuses a prompt of tokens that the model does not have.
    ///
    /// # Errors
    /// The client's 400, with the path of the first one.
    pub(super) fn check_tokens(&self, vocab_size: u32) -> ApiResult<()> {
        let RequestKind::Completion {
            prompt: Prompt::Tokens(tokens),
            ..
        } = &self.kind
        else {
            return Ok(());
        };
        match tokens.iter().position(|token| *token >= vocab_size) {
            None => Ok(()),
            Some(index) => {
                let what = format!(
                    "must be a token of the model's vocabulary, from 0 to {}, not {}",
                    vocab_size.saturating_sub(1),
                    tokens[index]
                );
                Err(ApiError::field(&format!("prompt[{index}]"), what))
            }
        }
    }
}

fn kind_heap_bytes(kind: &RequestKind) -> usize {
    match kind {
        RequestKind::Chat(chat) => chat::heap_bytes(chat),
        RequestKind::Completion {
            prompt: Prompt::Text(text),
            ..
        } => text.capacity(),
        RequestKind::Completion {
            prompt: Prompt::Tokens(tokens),
            ..
        } => tokens.capacity() * 4,
        RequestKind::Function {
            name,
            parameters_json,
        } => name.capacity() + parameters_json.capacity(),
    }
}

/// What chats and completions say the same way.
#[derive(Default, Deserialize)]
#[serde(default)]
struct CommonFields {
    model: Option<String>,
    max_tokens: Option<Count>,
    max_completion_tokens: Option<Count>,
    n_predict: Option<Count>,
    min_tokens: Option<Count>,
    ignore_eos: Option<bool>,
    temperature: Option<Decimal>,
    top_p: Option<Decimal>,
    top_k: Option<TopK>,
    min_p: Option<Decimal>,
    repetition_penalty: Option<Decimal>,
    repeat_penalty: Option<Decimal>,
    presence_penalty: Option<Decimal>,
    frequency_penalty: Option<Decimal>,
    n: Option<Count>,
    seed: Option<Seed>,
    stop: Option<Stops>,
    stop_token_ids: Option<List<TokenId, STOP_TOKENS_MAX>>,
    logit_bias: Option<LogitBias>,
    prompt_logprobs: Option<Count>,
    stream: Option<bool>,
    stream_options: Option<Object<StreamOptions>>,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: Option<bool>,
}

impl CommonFields {
    /// Tokens to generate at most, and the name they are given under.
    fn max_tokens(&self) -> (&'static str, Option<u32>) {
        let named = [
            ("max_completion_tokens", self.max_completion_tokens),
            ("max_tokens", self.max_tokens),
            ("n_predict", self.n_predict),
        ];
        let given = named
            .iter()
            .find_map(|(name, count)| Some((*name, Some((*count)?.0))));
        given.unwrap_or(("max_tokens", None))
    }

    fn prompt_logprobs(&self, stream: bool) -> ApiResult<Option<u32>> {
        const FIELD: &str = "prompt_logprobs";
        match self.prompt_logprobs.map(|count| count.0) {
            Some(top) if top > LOGPROBS_MAX => {
                let what = format!("must be from 0 to {LOGPROBS_MAX}, not {top}");
                Err(ApiError::field(FIELD, what))
            }
            // They belong to the whole answer; the events of a stream have no place for them.
            Some(_) if stream => {
                let what = "can only be used when stream is false";
                Err(ApiError::field(FIELD, what))
            }
            top => Ok(top),
        }
    }

    fn policy(&self) -> Policy {
        let standard = Policy::default();
        let repetition_penalty = self.repetition_penalty.or(self.repeat_penalty);
        let stop_tokens = self.stop_token_ids.as_ref().map_or(&[][..], |it| &it.0);
        let decimal = |value: Option<Decimal>, standard: f32| value.map_or(standard, |it| it.0);
        Policy {
            max_tokens: self.max_tokens().1,
            min_tokens: self.min_tokens.map_or(0, |count| count.0),
            ignore_eos: self.ignore_eos.unwrap_or(standard.ignore_eos),
            temperature: decimal(self.temperature, standard.temperature),
            top_p: decimal(self.top_p, standard.top_p),
            top_k: self.top_k.map_or(0, |top_k| top_k.0),
            min_p: decimal(self.min_p, standard.min_p),
            repetition_penalty: decimal(repetition_penalty, standard.repetition_penalty),
            presence_penalty: decimal(self.presence_penalty, standard.presence_penalty),
            frequency_penalty: decimal(self.frequency_penalty, standard.frequency_penalty),
            seed: self.seed.map(|seed| seed.0),
            logit_bias: self
                .logit_bias
                .as_ref()
                .map_or_else(Vec::new, |it| it.0.clone()),
            stop: self
                .stop
                .as_ref()
                .map_or_else(Vec::new, |stops| stops.0.clone()),
            stop_token_ids: stop_tokens.iter().map(|token| token.0).collect(),
            ..standard
        }
    }
}

/// One string or several; where one is empty nothing is meant.
struct Stops(Vec<String>);

impl<'de> Deserialize<'de> for Stops {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Stops, D::Error> {
        struct StopsVisitor;
        impl<'de> Visitor<'de> for StopsVisitor {
            type Value = Stops;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a string or a list of strings")
            }
            fn visit_str<E: de::Error>(self, stop: &str) -> Result<Stops, E> {
                let stops = [stop].into_iter().filter(|stop| !stop.is_empty());
                Ok(Stops(stops.map(str::to_owned).collect()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Stops, A::Error> {
                let stops: Vec<Option<String>> = json::entries(seq, Vec::new(), STOPS_MAX)?;
                let stops = stops.into_iter().flatten();
                Ok(Stops(stops.filter(|stop| !stop.is_empty()).collect()))
            }
        }
        deserializer.deserialize_any(StopsVisitor)
    }
}

/// Token ids as an object's names, each with a number.
struct LogitBias(Vec<(u32, f32)>);

impl<'de> Deserialize<'de> for LogitBias {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<LogitBias, D::Error> {
        struct BiasVisitor;
        impl<'de> Visitor<'de> for BiasVisitor {
            type Value = LogitBias;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an object of token ids and numbers")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<LogitBias, A::Error> {
                let mut biases = Vec::new();
                while let Some((key, bias)) = map.next_entry::<String, Option<Decimal>>()? {
                    let token = key.parse().map_err(|_| {
                        let key = shown(&key);
                        de::Error::custom(format!("must have token ids as its names, not {key:?}"))
                    })?;
                    let Some(bias) = bias else { continue };
                    if biases.len() >= BIASES_MAX {
                        let what =
                            format!("has more than {BIASES_MAX} entries, which is the limit");
                        return Err(de::Error::custom(what));
                    }
                    biases.push((token, bias.0));
                }
                Ok(LogitBias(biases))
            }
        }
        deserializer.deserialize_map(BiasVisitor)
    }
}

/// The field of a policy that the engine refuses; its messages begin with the field's name.
pub(super) fn refused_policy(family: Family, message: String) -> ApiError {
    let name = message.split(' ').next().unwrap_or_default();
    let param = match name {
        "a" | "stop" => "stop",
        "logprobs" if family == Family::Chat => "top_logprobs",
        name => name,
    };
    ApiError {
        param: Some(param.to_owned()),
        ..ApiError::invalid(message)
    }
}

#[cfg(test)]
mod tests;
