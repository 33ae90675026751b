//! What OpenAI requests have in common: fields by name, sampling, stream options. Unknown fields are passed over, as
//! clients send many; a known field of the wrong type or range is refused by its name.

use crate::error::{ApiError, ApiResult};
use realm_engine::{LOGPROBS_MAX, Policy};
use serde_json::{Map, Value};

/// Answers of one request at most.
const CHOICES_MAX: u32 = 8;
/// Alternatives that a completion may ask for, as OpenAI has it.
const COMPLETION_LOGPROBS_MAX: u32 = 5;

/// The fields of a request's object. `null` is the same as absent.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// Takes the object apart.
    ///
    /// # Errors
    /// When it is none.
    pub(super) fn of(value: &'a Value) -> ApiResult<Fields<'a>> {
        value
            .as_object()
            .map(Fields)
            .ok_or_else(|| ApiError::invalid("the request must be a JSON object"))
    }

    /// A field of any type.
    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// A text.
    ///
    /// # Errors
    /// When it is something else.
    pub(super) fn string(&self, name: &str) -> ApiResult<Option<&'a str>> {
        self.typed(name, "a string", Value::as_str)
    }

    /// A truth value.
    ///
    /// # Errors
    /// When it is something else.
    pub(super) fn boolean(&self, name: &str) -> ApiResult<Option<bool>> {
        self.typed(name, "true or false", Value::as_bool)
    }

    /// A whole number from 0.
    ///
    /// # Errors
    /// When it is something else, negative or too large.
    pub(super) fn count(&self, name: &str) -> ApiResult<Option<u32>> {
        let count = |value: &Value| value.as_u64().and_then(|count| u32::try_from(count).ok());
        self.typed(name, "a whole number, not negative", count)
    }

    /// A number.
    ///
    /// # Errors
    /// When it is something else.
    pub(super) fn number(&self, name: &str) -> ApiResult<Option<f32>> {
        self.typed(name, "a number", |value| {
            value.as_f64().map(|number| number as f32)
        })
    }

    /// A list.
    ///
    /// # Errors
    /// When it is something else.
    pub(super) fn list(&self, name: &str) -> ApiResult<Option<&'a Vec<Value>>> {
        self.typed(name, "a list", Value::as_array)
    }

    fn typed<T>(
        &self,
        name: &str,
        wanted: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> ApiResult<Option<T>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        read(value)
            .map(Some)
            .ok_or_else(|| ApiError::field(name, format!("must be {wanted}, not {}", shown(value))))
    }
}

/// A value for an error's message: short, whatever a client sent.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::String(text) if text.len() > 40 => "a long string".to_owned(),
        other => other.to_string(),
    }
}

/// Token ids in a field.
///
/// # Errors
/// When one of them is none.
pub(super) fn token_ids(name: &str, list: &[Value]) -> ApiResult<Vec<u32>> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    list.iter()
        .map(|value| {
            id(value)
                .ok_or_else(|| ApiError::field(name, format!("{} is no token id", shown(value))))
        })
        .collect()
}

/// What both kinds of request say the same way.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Common {
    /// What the client calls the model.
    pub model: String,
    /// Sampling, stops and limits, `logprobs` excepted.
    pub policy: Policy,
    /// How many answers.
    pub choices: u32,
    /// Whether to stream.
    pub stream: bool,
    /// Whether a stream ends with the token counts.
    pub include_usage: bool,
}

impl Common {
    /// Reads the common fields.
    ///
    /// # Errors
    /// The client's 400, which names the field.
    pub(super) fn parse(fields: Fields<'_>) -> ApiResult<Common> {
        let model = fields
            .string("model")?
            .ok_or_else(|| ApiError::field("model", "is missing"))?;
        let stream = fields.boolean("stream")?.unwrap_or(false);
        let include_usage = match fields.get("stream_options") {
            Some(_) if !stream => {
                return Err(ApiError::field("stream_options", "is only for streams"));
            }
            Some(options) => {
                let options = Fields::of(options)
                    .map_err(|_| ApiError::field("stream_options", "must be an object"))?;
                options.boolean("include_usage")?.unwrap_or(false)
            }
            None => false,
        };
        let choices = fields.count("n")?.unwrap_or(1);
        if !(1..=CHOICES_MAX).contains(&choices) {
            return Err(ApiError::field(
                "n",
                format!("must be from 1 to {CHOICES_MAX}, not {choices}"),
            ));
        }
        Ok(Common {
            model: model.to_owned(),
            policy: policy(fields)?,
            choices,
            stream,
            include_usage,
        })
    }
}

fn policy(fields: Fields<'_>) -> ApiResult<Policy> {
    let standard = Policy::default();
    let max_tokens = match fields.count("max_completion_tokens")? {
        Some(count) => Some(count),
        None => fields.count("max_tokens")?,
    };
    if max_tokens == Some(0) {
        return Err(ApiError::field("max_tokens", "must be at least 1"));
    }
    // Elsewhere -1 is a way to write "off"; 0 means it here.
    let top_k = match fields.get("top_k").and_then(Value::as_i64) {
        Some(-1) => 0,
        _ => fields.count("top_k")?.unwrap_or(0),
    };
    Ok(Policy {
        max_tokens,
        temperature: fields
            .number("temperature")?
            .unwrap_or(standard.temperature),
        top_p: fields.number("top_p")?.unwrap_or(standard.top_p),
        top_k,
        min_p: fields.number("min_p")?.unwrap_or(standard.min_p),
        repetition_penalty: fields
            .number("repetition_penalty")?
            .unwrap_or(standard.repetition_penalty),
        presence_penalty: fields
            .number("presence_penalty")?
            .unwrap_or(standard.presence_penalty),
        frequency_penalty: fields
            .number("frequency_penalty")?
            .unwrap_or(standard.frequency_penalty),
        seed: seed(fields)?,
        logit_bias: logit_bias(fields)?,
        stop: stop(fields)?,
        ..standard
    })
}

fn seed(fields: Fields<'_>) -> ApiResult<Option<u64>> {
    let Some(value) = fields.get("seed") else {
        return Ok(None);
    };
    // A negative seed is as good as any other: its bits count.
    let seed = value
        .as_u64()
        .or_else(|| value.as_i64().map(i64::cast_unsigned));
    seed.map(Some).ok_or_else(|| {
        ApiError::field(
            "seed",
            format!("must be a whole number, not {}", shown(value)),
        )
    })
}

fn stop(fields: Fields<'_>) -> ApiResult<Vec<String>> {
    let wrong = || ApiError::field("stop", "must be a string or a list of strings");
    match fields.get("stop") {
        None => Ok(Vec::new()),
        Some(Value::String(stop)) => Ok(vec![stop.clone()]),
        Some(Value::Array(stops)) => stops
            .iter()
            .map(|stop| stop.as_str().map(str::to_owned).ok_or_else(wrong))
            .collect(),
        Some(_) => Err(wrong()),
    }
}

fn logit_bias(fields: Fields<'_>) -> ApiResult<Vec<(u32, f32)>> {
    let wrong = || ApiError::field("logit_bias", "must be an object of token ids and numbers");
    let Some(value) = fields.get("logit_bias") else {
        return Ok(Vec::new());
    };
    let entry = |(token, bias): (&String, &Value)| {
        let token = token.parse().map_err(|_| wrong())?;
        Ok((token, bias.as_f64().ok_or_else(wrong)? as f32))
    };
    value
        .as_object()
        .ok_or_else(wrong)?
        .iter()
        .map(entry)
        .collect()
}

/// A chat's `logprobs` and `top_logprobs`.
///
/// # Errors
/// The client's 400.
pub(super) fn chat_logprobs(fields: Fields<'_>) -> ApiResult<Option<u32>> {
    let top = fields.count("top_logprobs")?;
    if top.is_some_and(|top| top > LOGPROBS_MAX) {
        return Err(ApiError::field(
            "top_logprobs",
            format!("must be from 0 to {LOGPROBS_MAX}"),
        ));
    }
    match (fields.boolean("logprobs")?.unwrap_or(false), top) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(ApiError::field("top_logprobs", "needs logprobs to be true")),
    }
}

/// A completion's `logprobs`, which is a number.
///
/// # Errors
/// The client's 400.
pub(super) fn completion_logprobs(fields: Fields<'_>) -> ApiResult<Option<u32>> {
    match fields.count("logprobs")? {
        Some(top) if top > COMPLETION_LOGPROBS_MAX => Err(ApiError::field(
            "logprobs",
            format!("must be from 0 to {COMPLETION_LOGPROBS_MAX}"),
        )),
        top => Ok(top),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(mut more: Value) -> Result<Common, ApiError> {
        more["model"] = json!("m");
        Common::parse(Fields::of(&more)?)
    }

    #[test]
    fn nothing_said_is_the_default() {
        let common = parse(json!({"temperature": null, "unknown": {"a": 1}})).unwrap();
        assert_eq!(common.policy, Policy::default());
        assert_eq!(
            (common.choices, common.stream, common.include_usage),
            (1, false, false)
        );
        assert!(
            Common::parse(Fields::of(&json!({})).unwrap())
                .unwrap_err()
                .message
                .contains("model")
        );
    }

    #[test]
    fn every_field_arrives() {
        let common = parse(json!({
            "max_tokens": 5, "max_completion_tokens": 7, "temperature": 0, "top_p": 0.5, "top_k": 3, "min_p": 0.1,
            "n": 2, "seed": -1, "stop": "x", "presence_penalty": 1, "frequency_penalty": -1,
            "repetition_penalty": 1.5, "logit_bias": {"7": -100}, "stream": true,
            "stream_options": {"include_usage": true},
        }))
        .unwrap();
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
            ..Policy::default()
        };
        assert_eq!(common.policy, expected);
        assert_eq!(
            (common.choices, common.stream, common.include_usage),
            (2, true, true)
        );
        assert_eq!(
            parse(json!({"top_k": -1, "stop": ["a", "b"]}))
                .unwrap()
                .policy
                .stop,
            ["a", "b"]
        );
    }

    #[test]
    fn a_wrong_field_is_named() {
        for (fields, name) in [
            (json!({"max_tokens": -3}), "max_tokens"),
            (json!({"max_tokens": 0}), "max_tokens"),
            (json!({"max_tokens": 1e40}), "max_tokens"),
            (json!({"temperature": "hot"}), "temperature"),
            (json!({"n": 0}), "n"),
            (json!({"n": 9}), "n"),
            (json!({"stop": [1]}), "stop"),
            (json!({"seed": 1.5}), "seed"),
            (json!({"logit_bias": {"a": 1}}), "logit_bias"),
            (json!({"logit_bias": []}), "logit_bias"),
            (json!({"stream": 1}), "stream"),
            (json!({"stream_options": {}}), "stream_options"),
            (json!({"top_k": -2}), "top_k"),
        ] {
            let error = parse(fields.clone()).unwrap_err();
            assert_eq!(
                (error.param.as_deref(), error.status.as_u16()),
                (Some(name), 400),
                "{fields}"
            );
        }
    }

    #[test]
    fn logprobs_are_asked_for_in_two_ways() {
        let chat = |value: Value| {
            chat_logprobs(Fields::of(&value).unwrap()).map_err(|error| error.param.unwrap())
        };
        assert_eq!(chat(json!({})), Ok(None));
        assert_eq!(chat(json!({"logprobs": true})), Ok(Some(0)));
        assert_eq!(
            chat(json!({"logprobs": true, "top_logprobs": 3})),
            Ok(Some(3))
        );
        assert_eq!(
            chat(json!({"logprobs": true, "top_logprobs": 100})),
            Err("top_logprobs".to_owned())
        );
        assert_eq!(
            chat(json!({"top_logprobs": 3})),
            Err("top_logprobs".to_owned())
        );
        let completion = |value: Value| completion_logprobs(Fields::of(&value).unwrap()).ok();
        assert_eq!(completion(json!({"logprobs": 2})), Some(Some(2)));
        assert_eq!(completion(json!({"logprobs": 6})), None);
    }
}
