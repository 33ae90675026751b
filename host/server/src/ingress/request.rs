//! What a client asks of a model: one typed request for chats and completions, whichever way it came in.
//!
//! The text is read twice, once for what both kinds say the same way and once for what only one has: no derived type can
//! hold both without keeping every unknown field as well. A further API adds its own fields in a file of `request/`; a
//! further field of all of them goes to [`CommonFields`].

mod chat;
mod completion;

use super::json::{self, Count, Decimal, Object, Seed, TopK};
use crate::error::{ApiError, ApiResult};
use realm_engine::{Policy, STOPS_MAX};
use realm_sandbox::{Prompt, RequestKind};
use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// Answers of one request at most.
const CHOICES_MAX: u32 = 8;
/// Entries of `logit_bias`: more than any vocabulary has tokens.
const BIASES_MAX: usize = 1 << 20;

/// Which of OpenAI's two kinds of request, and so of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// `chat.completion` and its chunks.
    Chat,
    /// `text_completion`.
    Completion,
}

/// What a request means where it does not say.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Defaults<'a> {
    /// The model; without one, `model` is required.
    pub(super) model: Option<&'a str>,
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
        defaults: Defaults<'_>,
    ) -> ApiResult<GenerationRequest> {
        let common: CommonFields = json::parse(text, what)?;
        let model = match (&common.model, defaults.model) {
            (Some(model), _) => model.clone(),
            (None, Some(model)) => model.to_owned(),
            (None, None) => return Err(ApiError::field("model", "is required")),
        };
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
        let mut policy = common.policy()?;
        let kind = match family {
            Family::Chat => chat::read(json::parse(text, what)?, &mut policy)?,
            Family::Completion => completion::read(json::parse(text, what)?, &mut policy, choices)?,
        };
        Ok(GenerationRequest {
            family,
            model,
            kind,
            policy,
            choices,
            stream,
            include_usage,
        })
    }

    /// Bytes that the request holds on the heap: what its tenant is charged.
    pub(super) fn heap_bytes(&self) -> usize {
        let stops = self.policy.stop.iter().map(|stop| stop.capacity() + 24);
        let biases = self.policy.logit_bias.capacity() * 8;
        self.model.capacity() + stops.sum::<usize>() + biases + kind_heap_bytes(&self.kind)
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
        let (param, found, unit, max) = match &self.kind {
            RequestKind::Completion {
                prompt: Prompt::Tokens(tokens),
                ..
            } => ("prompt", tokens.len(), "tokens", context_tokens as usize),
            kind => {
                let (param, bytes) = match kind {
                    RequestKind::Completion {
                        prompt: Prompt::Text(text),
                        ..
                    } => ("prompt", text.len()),
                    kind => ("messages", chat::text_bytes(kind)),
                };
                let max = (context_tokens as usize).saturating_mul(token_bytes_max);
                (param, bytes, "bytes", max)
            }
        };
        if found <= max {
            return Ok(());
        }
        let what = format!(
            "is {found} {unit} long, which cannot fit: the model's context is {context_tokens} tokens, {max} {unit} at the very most"
        );
        Err(ApiError {
            code: "context_length_exceeded".into(),
            ..ApiError::field(param, what)
        })
    }
}

fn kind_heap_bytes(kind: &RequestKind) -> usize {
    match kind {
        RequestKind::Chat { .. } => chat::heap_bytes(kind),
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
    temperature: Option<Decimal>,
    top_p: Option<Decimal>,
    top_k: Option<TopK>,
    min_p: Option<Decimal>,
    repetition_penalty: Option<Decimal>,
    presence_penalty: Option<Decimal>,
    frequency_penalty: Option<Decimal>,
    n: Option<Count>,
    seed: Option<Seed>,
    stop: Option<Stops>,
    logit_bias: Option<LogitBias>,
    stream: Option<bool>,
    stream_options: Option<Object<StreamOptions>>,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: Option<bool>,
}

impl CommonFields {
    fn policy(&self) -> ApiResult<Policy> {
        let standard = Policy::default();
        let (name, max_tokens) = match self.max_completion_tokens {
            Some(count) => ("max_completion_tokens", Some(count.0)),
            None => ("max_tokens", self.max_tokens.map(|count| count.0)),
        };
        if max_tokens == Some(0) {
            return Err(ApiError::field(name, "must be at least 1"));
        }
        let decimal = |value: Option<Decimal>, standard: f32| value.map_or(standard, |it| it.0);
        Ok(Policy {
            max_tokens,
            temperature: decimal(self.temperature, standard.temperature),
            top_p: decimal(self.top_p, standard.top_p),
            top_k: self.top_k.map_or(0, |top_k| top_k.0),
            min_p: decimal(self.min_p, standard.min_p),
            repetition_penalty: decimal(self.repetition_penalty, standard.repetition_penalty),
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
            ..standard
        })
    }
}

/// One string or several.
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
                Ok(Stops(vec![stop.to_owned()]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Stops, A::Error> {
                json::entries(seq, Vec::new(), STOPS_MAX).map(Stops)
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
                while let Some((token, bias)) = map.next_entry::<String, Decimal>()? {
                    let token = token.parse().map_err(|_| {
                        de::Error::custom("must be an object of token ids and numbers")
                    })?;
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
mod tests {
    use super::*;
    use realm_engine::text::ChatMessage;
    use serde_json::{Value, json};

    fn parse(family: Family, more: &Value) -> ApiResult<GenerationRequest> {
        let mut body = match family {
            Family::Chat => json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]}),
            Family::Completion => json!({"model": "m", "prompt": "once"}),
        };
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        let text = body.to_string();
        let what = "the request body";
        GenerationRequest::parse(text.as_bytes(), what, family, Defaults::default())
    }

    fn messages(more: &Value) -> Vec<ChatMessage> {
        match parse(Family::Chat, more).unwrap().kind {
            RequestKind::Chat { messages, .. } => messages,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn nothing_said_is_the_default() {
        let request = parse(
            Family::Chat,
            &json!({"temperature": null, "unknown": {"a": 1}}),
        )
        .unwrap();
        assert_eq!(request.policy, Policy::default());
        assert_eq!(
            (request.choices, request.stream, request.include_usage),
            (1, false, false)
        );
        let request = parse(Family::Completion, &json!({})).unwrap();
        assert_eq!(request.policy.max_tokens, Some(16), "as OpenAI has it");
        let defaults = Defaults {
            model: Some("first"),
            stream: true,
        };
        let text = br#"{"prompt":"a","stream_options":{"include_usage":true}}"#;
        let request =
            GenerationRequest::parse(text, "params", Family::Completion, defaults).unwrap();
        assert_eq!(
            (&*request.model, request.stream, request.include_usage),
            ("first", true, true),
            "what is the default counts as said"
        );
    }

    #[test]
    fn every_field_arrives() {
        let more = json!({
            "max_tokens": 5, "max_completion_tokens": 7, "temperature": 0, "top_p": 0.5, "top_k": 3, "min_p": 0.1,
            "n": 2, "seed": -1, "stop": "x", "presence_penalty": 1, "frequency_penalty": -1,
            "repetition_penalty": 1.5, "logit_bias": {"7": -100}, "stream": true,
            "stream_options": {"include_usage": true}, "logprobs": true, "top_logprobs": 3,
        });
        let request = parse(Family::Chat, &more).unwrap();
        let expected = Policy {
            max_tokens: Some(7),
            temperature: 0.0,
            top_p: 0.5,
            top_k: 3,
            min_p: 0.1,
            seed: Some(u64::MAX),
            stop: vec!["x".to_owned()],
            presence_penalty: 1.0,
            frequency_penalty: -1.0,
            repetition_penalty: 1.5,
            logit_bias: vec![(7, -100.0)],
            logprobs: Some(3),
            ..Policy::default()
        };
        assert_eq!(request.policy, expected);
        assert_eq!(
            (request.choices, request.stream, request.include_usage),
            (2, true, true)
        );
        let more = json!({"top_k": -1, "stop": ["a", "b"], "logprobs": 2, "seed": u64::MAX});
        let policy = parse(Family::Completion, &more).unwrap().policy;
        assert_eq!(
            (
                policy.top_k,
                policy.stop.len(),
                policy.logprobs,
                policy.seed
            ),
            (0, 2, Some(2), Some(u64::MAX))
        );
        let policy = parse(Family::Chat, &json!({"logprobs": true}))
            .unwrap()
            .policy;
        assert_eq!(policy.logprobs, Some(0));
    }

    #[test]
    fn messages_come_in_many_forms() {
        let messages = messages(&json!({"messages": [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b", "type": "text"}], "name": "Ada"},
            {"role": "assistant", "content": null,
             "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "content": "3", "tool_call_id": "1"},
        ]}));
        let role_and_content = |index: usize| {
            let message: &ChatMessage = &messages[index];
            (message.role.as_str(), message.content.as_str())
        };
        assert_eq!(role_and_content(0), ("system", "be brief"));
        assert_eq!(role_and_content(1), ("user", "ab"));
        assert_eq!(messages[1].name.as_deref(), Some("Ada"));
        assert_eq!(role_and_content(2), ("assistant", ""));
        assert_eq!(messages[2].tool_calls[0].name, "f");
        assert_eq!(messages[3].tool_call_id.as_deref(), Some("1"));
    }

    #[test]
    fn a_prompt_is_text_or_token_ids() {
        let prompt = |value: Value| {
            let request = parse(Family::Completion, &json!({"prompt": value})).unwrap();
            match request.kind {
                RequestKind::Completion {
                    prompt: Prompt::Text(text),
                    ..
                } => (text, vec![]),
                RequestKind::Completion {
                    prompt: Prompt::Tokens(tokens),
                    ..
                } => (String::new(), tokens),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(prompt(json!("a")).0, "a");
        assert_eq!(prompt(json!(["a"])).0, "a");
        assert_eq!(prompt(json!([1, 2])).1, [1, 2]);
        assert_eq!(prompt(json!([[1, 2]])).1, [1, 2]);
    }

    #[test]
    fn tools_reach_the_template_unless_the_client_wants_none() {
        let tools = |more: Value| match parse(Family::Chat, &more).unwrap().kind {
            RequestKind::Chat { tools, .. } => tools,
            other => panic!("{other:?}"),
        };
        let some =
            json!([{"type": "function", "function": {"name": "f", "parameters": {"a": [1]}}}]);
        let auto = tools(json!({"tools": some, "tool_choice": "auto"}));
        assert_eq!(json!(auto), some);
        assert!(tools(json!({"tools": some, "tool_choice": "none"})).is_empty());
        assert!(tools(json!({"tools": null, "response_format": {"type": "text"}})).is_empty());
    }

    /// A wrong field, the path it is named by, and the code.
    fn refusals(family: Family, cases: &[(Value, &str, &str)]) {
        for (more, path, code) in cases {
            let error = parse(family, more).unwrap_err();
            assert_eq!(
                (error.param.as_deref(), &*error.code, error.status.as_u16()),
                (Some(*path), *code, 400),
                "{more}: {}",
                error.message
            );
            assert!(error.message.starts_with(path), "{}", error.message);
        }
    }

    #[test]
    fn a_wrong_field_is_named_by_its_path() {
        const INVALID: &str = "invalid_request";
        const UNSUPPORTED: &str = "unsupported";
        let common = [
            (json!({"model": 1}), "model", INVALID),
            (json!({"max_tokens": -3}), "max_tokens", INVALID),
            (json!({"max_tokens": 0}), "max_tokens", INVALID),
            (
                json!({"max_completion_tokens": 0}),
                "max_completion_tokens",
                INVALID,
            ),
            (json!({"max_tokens": 1e40}), "max_tokens", INVALID),
            (json!({"max_tokens": 2.0}), "max_tokens", INVALID),
            (json!({"temperature": "hot"}), "temperature", INVALID),
            (json!({"n": 0}), "n", INVALID),
            (json!({"n": 9}), "n", INVALID),
            (json!({"stop": [1]}), "stop[0]", INVALID),
            (json!({"stop": vec!["a"; STOPS_MAX + 1]}), "stop", INVALID),
            (json!({"seed": 1.5}), "seed", INVALID),
            (json!({"logit_bias": {"a": 1}}), "logit_bias", INVALID),
            (json!({"logit_bias": []}), "logit_bias", INVALID),
            (json!({"stream": 1}), "stream", INVALID),
            (json!({"stream_options": {}}), "stream_options", INVALID),
            (
                json!({"stream": true, "stream_options": {"include_usage": 1}}),
                "stream_options.include_usage",
                INVALID,
            ),
            (
                json!({"stream": true, "stream_options": [true]}),
                "stream_options",
                INVALID,
            ),
            (json!({"top_k": -2}), "top_k", INVALID),
        ];
        refusals(Family::Chat, &common);
        refusals(Family::Completion, &common);
        let message =
            |message: Value| json!({"messages": [{"role": "user", "content": "a"}, message]});
        refusals(
            Family::Chat,
            &[
                (json!({"messages": []}), "messages", INVALID),
                (json!({"messages": null}), "messages", INVALID),
                (json!({"messages": "hi"}), "messages", INVALID),
                (message(json!(1)), "messages[1]", INVALID),
                (message(json!(["user", "hi"])), "messages[1]", INVALID),
                (
                    message(json!({"role": "user"})),
                    "messages[1].content",
                    INVALID,
                ),
                (
                    message(json!({"content": "x"})),
                    "messages[1].role",
                    INVALID,
                ),
                (
                    message(json!({"role": "robot", "content": "x"})),
                    "messages[1].role",
                    INVALID,
                ),
                (
                    message(json!({"role": "user", "content": 7})),
                    "messages[1].content",
                    INVALID,
                ),
                (
                    message(json!({"role": "user", "content": [{"type": "image_url"}]})),
                    "messages[1].content[0].type",
                    INVALID,
                ),
                (
                    message(json!({"role": "user", "content": "x", "name": 1})),
                    "messages[1].name",
                    INVALID,
                ),
                (
                    message(json!({"role": "assistant", "tool_calls": [{"id": "1"}]})),
                    "messages[1].tool_calls[0].function",
                    INVALID,
                ),
                (
                    json!({"tools": [{"type": "retrieval"}]}),
                    "tools[0].type",
                    INVALID,
                ),
                (
                    json!({"tools": [{"type": "function"}]}),
                    "tools[0].function",
                    INVALID,
                ),
                (json!({"tools": [7]}), "tools[0]", INVALID),
                (json!({"tools": {}}), "tools", INVALID),
                (
                    json!({"tools": [{"type": "function", "function": {"name": "f", "description": "x".repeat(600_000)}}]}),
                    "tools",
                    INVALID,
                ),
                (
                    json!({"tool_choice": "required"}),
                    "tool_choice",
                    UNSUPPORTED,
                ),
                (
                    json!({"tool_choice": {"type": "function"}}),
                    "tool_choice",
                    UNSUPPORTED,
                ),
                (
                    json!({"response_format": {"type": "json_object"}}),
                    "response_format.type",
                    UNSUPPORTED,
                ),
                (json!({"top_logprobs": 3}), "top_logprobs", INVALID),
                (
                    json!({"logprobs": true, "top_logprobs": 100}),
                    "top_logprobs",
                    INVALID,
                ),
                (json!({"logprobs": 2}), "logprobs", INVALID),
            ],
        );
        refusals(
            Family::Completion,
            &[
                (json!({"prompt": ["a", "b"]}), "prompt", UNSUPPORTED),
                (json!({"prompt": []}), "prompt", INVALID),
                (json!({"prompt": ""}), "prompt", INVALID),
                (json!({"prompt": [1, -2]}), "prompt[1]", INVALID),
                (json!({"prompt": {}}), "prompt", INVALID),
                (json!({"suffix": "x"}), "suffix", UNSUPPORTED),
                (json!({"best_of": 3}), "best_of", UNSUPPORTED),
                (json!({"logprobs": 6}), "logprobs", INVALID),
                (
                    json!({"echo": true, "logprobs": 1}),
                    "logprobs",
                    UNSUPPORTED,
                ),
            ],
        );
    }

    #[test]
    fn text_that_can_never_fit_is_refused_by_its_length_whatever_field_it_is_in() {
        let check = |family, more: Value| {
            parse(family, &more)
                .unwrap()
                .check_length(10, 4)
                .err()
                .map(|error| {
                    assert!(error.message.contains("10 tokens"), "{}", error.message);
                    (error.code.into_owned(), error.param.unwrap())
                })
        };
        let long = "x".repeat(41);
        let call = json!([{"id": "1", "function": {"name": "f", "arguments": long}}]);
        let spaces = format!("x{}", " ".repeat(100));
        for (message, fits) in [
            (json!({"role": "user", "content": "x".repeat(40)}), true),
            (json!({"role": "user", "content": spaces}), true),
            (json!({"role": "user", "content": long}), false),
            (json!({"role": "user", "content": "", "name": long}), false),
            (
                json!({"role": "tool", "content": "", "tool_call_id": long}),
                false,
            ),
            (json!({"role": "assistant", "tool_calls": call}), false),
        ] {
            let refused = check(Family::Chat, json!({"messages": [message]}));
            let expected = ("context_length_exceeded".to_owned(), "messages".to_owned());
            assert_eq!(refused, (!fits).then_some(expected), "{message}");
        }
        let prompt = |value: Value| check(Family::Completion, json!({"prompt": value})).is_none();
        assert!(prompt(json!("x".repeat(40))) && !prompt(json!(long)));
        assert!(prompt(json!(vec![1; 10])) && !prompt(json!(vec![1; 11])));
    }

    #[test]
    fn what_a_request_holds_is_counted_in_every_field() {
        let held = |more: Value| parse(Family::Chat, &more).unwrap().heap_bytes();
        let text = "x".repeat(1000);
        let plain = held(json!({}));
        for more in [
            json!({"model": text}),
            json!({"stop": [text]}),
            json!({"messages": [{"role": "user", "content": text}]}),
            json!({"messages": [{"role": "user", "content": [{"type": "text", "text": text}]}]}),
            json!({"messages": [{"role": "user", "content": "", "name": text}]}),
            json!({"messages": [{"role": "tool", "content": "", "tool_call_id": text}]}),
            json!({"messages": [{"role": "assistant", "tool_calls": [{"id": text, "function": {"name": "", "arguments": ""}}]}]}),
            json!({"messages": [{"role": "assistant", "tool_calls": [{"id": "", "function": {"name": "", "arguments": text}}]}]}),
            json!({"messages": vec![json!({"role": "user", "content": ""}); 20]}),
            json!({"tools": [{"type": "function", "function": {"name": text}}]}),
        ] {
            assert!(held(more.clone()) >= plain + 900, "{more}");
        }
    }

    #[test]
    fn a_policy_that_the_engine_refuses_names_its_field() {
        for (family, change, path) in [
            (Family::Chat, json!({"temperature": -1}), "temperature"),
            (Family::Chat, json!({"stop": [""]}), "stop"),
            (Family::Chat, json!({"logit_bias": {"99": 1}}), "logit_bias"),
            (Family::Completion, json!({"top_p": 0}), "top_p"),
            (Family::Completion, json!({"min_p": 2}), "min_p"),
        ] {
            let request = parse(family, &change).unwrap();
            let message = request.policy.validate(50).unwrap_err();
            let error = refused_policy(family, message);
            assert_eq!(error.param.as_deref(), Some(path), "{}", error.message);
        }
    }
}
