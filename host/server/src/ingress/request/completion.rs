//! The fields of a completion.

use super::super::json::{Count, Inputs, TextOrTokens};
use crate::error::{ApiError, ApiResult};
use realm_engine::Policy;
use realm_sandbox::{Prompt, RequestKind};
use serde::Deserialize;

/// What OpenAI generates when a completion does not say how much.
const MAX_TOKENS: u32 = 16;
/// Alternatives that a completion may ask for, as OpenAI has it.
const LOGPROBS_MAX: u32 = 5;
/// Prompts that are read before they are refused for being several.
const PROMPTS_MAX: usize = 2_048;

/// A completion as clients write it.
#[derive(Deserialize)]
pub(super) struct CompletionFields {
    prompt: Inputs<PROMPTS_MAX>,
    #[serde(default)]
    echo: Option<bool>,
    #[serde(default)]
    best_of: Option<Count>,
    #[serde(default)]
    logprobs: Option<Count>,
}

/// The request that a completion is.
///
/// # Errors
/// The client's 400.
pub(super) fn read(
    fields: CompletionFields,
    policy: &mut Policy,
    choices: u32,
) -> ApiResult<RequestKind> {
    policy
        .max_tokens
        .get_or_insert(MAX_TOKENS.max(policy.min_tokens));
    policy.logprobs = match fields.logprobs.map(|top| top.0) {
        Some(top) if top > LOGPROBS_MAX => {
            let what = format!("must be from 0 to {LOGPROBS_MAX}, not {top}");
            return Err(ApiError::field("logprobs", what));
        }
        top => top,
    };
    let prompt = prompt(fields.prompt.0)?;
    let echo = fields.echo.unwrap_or(false);
    if fields.best_of.is_some_and(|best_of| best_of.0 != choices) {
        let what = "a value other than n";
        return Err(ApiError::unsupported("best_of", what));
    }
    Ok(RequestKind::Completion { prompt, echo })
}

fn prompt(mut prompts: Vec<TextOrTokens>) -> ApiResult<Prompt> {
    if prompts.len() > 1 {
        let what = "more than one prompt in a request";
        return Err(ApiError::unsupported("prompt", what));
    }
    match prompts.pop() {
        Some(TextOrTokens::Text(text)) if !text.is_empty() => Ok(Prompt::Text(text)),
        Some(TextOrTokens::Tokens(tokens)) if !tokens.is_empty() => Ok(Prompt::Tokens(tokens)),
        _ => Err(ApiError::field("prompt", "must not be empty")),
    }
}
