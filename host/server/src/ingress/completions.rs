//! `POST /v1/completions`: what the client asks.

use super::openai::{Common, Fields, completion_logprobs, shown, token_ids};
use crate::error::{ApiError, ApiResult};
use realm_sandbox::{Prompt, RequestKind};
use serde_json::Value;

/// What OpenAI generates when a completion does not say how much.
pub(super) const MAX_TOKENS: u32 = 16;

/// Reads a completion.
///
/// # Errors
/// The client's 400, which names the field.
pub(super) fn parse(body: &Value) -> ApiResult<(Common, RequestKind)> {
    let fields = Fields::of(body)?;
    let mut common = Common::parse(fields)?;
    common.policy.logprobs = completion_logprobs(fields)?;
    let prompt = prompt(
        fields
            .get("prompt")
            .ok_or_else(|| ApiError::field("prompt", "is missing"))?,
    )?;
    let echo = fields.boolean("echo")?.unwrap_or(false);
    if echo && common.policy.logprobs.is_some() {
        return Err(ApiError::unsupported(
            "logprobs",
            "the log-probability of an echoed prompt",
        ));
    }
    if fields
        .string("suffix")?
        .is_some_and(|suffix| !suffix.is_empty())
    {
        return Err(ApiError::unsupported(
            "suffix",
            "filling in before a suffix",
        ));
    }
    if fields
        .count("best_of")?
        .is_some_and(|best_of| best_of != common.choices)
    {
        return Err(ApiError::unsupported(
            "best_of",
            "choosing among more answers than n",
        ));
    }
    Ok((common, RequestKind::Completion { prompt, echo }))
}

fn prompt(value: &Value) -> ApiResult<Prompt> {
    let prompt = match value {
        Value::String(text) => Prompt::Text(text.clone()),
        Value::Array(list) => match list.as_slice() {
            [Value::String(text)] => Prompt::Text(text.clone()),
            [Value::Array(tokens)] => Prompt::Tokens(token_ids("prompt", tokens)?),
            [Value::String(_) | Value::Array(_), ..] => {
                return Err(ApiError::unsupported(
                    "prompt",
                    "more than one prompt in a request",
                ));
            }
            tokens => Prompt::Tokens(token_ids("prompt", tokens)?),
        },
        other => {
            return Err(ApiError::field(
                "prompt",
                format!("must be text or token ids, not {}", shown(other)),
            ));
        }
    };
    match &prompt {
        Prompt::Text(text) if text.is_empty() => {
            Err(ApiError::field("prompt", "must not be empty"))
        }
        Prompt::Tokens(tokens) if tokens.is_empty() => {
            Err(ApiError::field("prompt", "must not be empty"))
        }
        _ => Ok(prompt),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(more: Value) -> Result<(Option<u32>, Prompt), ApiError> {
        let mut body = json!({"model": "m", "prompt": "once"});
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        match parse(&body)? {
            (common, RequestKind::Completion { prompt, .. }) => {
                Ok((common.policy.max_tokens, prompt))
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_prompt_is_text_or_token_ids() {
        let prompt = |value: Value| match check(json!({"prompt": value})).unwrap().1 {
            Prompt::Text(text) => (text, vec![]),
            Prompt::Tokens(tokens) => (String::new(), tokens),
        };
        assert_eq!(prompt(json!("a")).0, "a");
        assert_eq!(prompt(json!(["a"])).0, "a");
        assert_eq!(prompt(json!([1, 2])).1, [1, 2]);
        assert_eq!(prompt(json!([[1, 2]])).1, [1, 2]);
        assert_eq!(check(json!({"max_tokens": 3})).unwrap().0, Some(3));
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        for (more, name) in [
            (json!({"prompt": ["a", "b"]}), "prompt"),
            (json!({"prompt": []}), "prompt"),
            (json!({"prompt": ""}), "prompt"),
            (json!({"prompt": [1, -2]}), "prompt"),
            (json!({"prompt": {}}), "prompt"),
            (json!({"suffix": "x"}), "suffix"),
            (json!({"best_of": 3}), "best_of"),
            (json!({"echo": true, "logprobs": 1}), "logprobs"),
        ] {
            assert_eq!(
                check(more.clone()).unwrap_err().param.as_deref(),
                Some(name),
                "{more}"
            );
        }
    }
}
