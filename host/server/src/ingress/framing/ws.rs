//! Answers as frames of `/ws`: text streams as it comes, and the data of the last frame completes the call.

use super::openai::{Renderer, finish_reason, usage};
use super::whole;
use crate::error::{ApiError, ApiResult};
use crate::ingress::generation::{Delta, Ending, Generation, GenerationEvent};
use crate::ingress::ws::Outgoing;
use crate::state::TenantEntry;
use realm_engine::Usage;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::timeout;

/// Sends text as it comes, and a piece without any whenever there was none for as long as `keep_alive`; the data that
/// completes the call.
///
/// # Errors
/// What the call ended with.
pub(in crate::ingress) async fn stream(
    mut generation: Generation,
    renderer: &Renderer,
    out: &Outgoing,
    keep_alive: Duration,
) -> ApiResult<Value> {
    loop {
        let Ok(delta) = timeout(keep_alive, generation.next_delta()).await else {
            out.streaming(&json!({"choice": 0, "text": ""})).await?;
            continue;
        };
        let Some(delta) = delta? else {
            break;
        };
        let mut data = json!({"choice": delta.choice, "text": delta.text});
        if renderer.logprobs.is_some() {
            data["logprobs"] = renderer.logprobs(&delta.tokens);
        }
        out.streaming(&data).await?;
    }
    let Ending { reasons, usage, .. } = generation.ending();
    let choices = reasons.into_iter().enumerate();
    let choices = choices
        .map(|(index, reason)| json!({"index": index, "finish_reason": finish_reason(reason)}));
    Ok(last(renderer, choices.collect(), &usage))
}

/// The data of a whole answer.
///
/// # Errors
/// What the call ended with, or that it wrote too much.
pub(in crate::ingress) async fn whole(
    generation: Generation,
    renderer: &Renderer,
    tenant: &TenantEntry,
) -> ApiResult<Value> {
    let whole = whole::collect(generation, tenant).await?;
    let choices = whole.choices.iter().enumerate().map(|(index, choice)| {
        let reason = finish_reason(choice.reason);
        let mut data = json!({"index": index, "text": choice.text, "finish_reason": reason});
        if renderer.logprobs.is_some() {
            data["logprobs"] = renderer.logprobs(&choice.tokens);
        }
        data
    });
    let mut data = last(renderer, choices.collect(), &whole.usage);
    if renderer.prompt_logprobs.is_some() {
        data["prompt_logprobs"] = renderer.prompt_logprobs(whole.prompt.as_deref());
    }
    Ok(data)
}

/// What completes a call for text.
fn last(renderer: &Renderer, choices: Value, counts: &Usage) -> Value {
    json!({"model": renderer.model, "choices": choices, "usage": usage(counts)})
}

/// Of several values that a function answers with, the last completes the call and the others stream, as its text does.
///
/// # Errors
/// What the call ended with.
pub(in crate::ingress) async fn function(
    mut generation: Generation,
    out: &Outgoing,
) -> ApiResult<Box<RawValue>> {
    let mut last = None;
    loop {
        match generation.next().await? {
            GenerationEvent::Value(value) => {
                let value = RawValue::from_string(value).map_err(|error| {
                    ApiError::internal(&format!("the sandbox passed on bad JSON: {error}"))
                })?;
                if let Some(before) = last.replace(value) {
                    out.streaming(&before).await?;
                }
            }
            GenerationEvent::Delta(Delta { choice, text, .. }) if !text.is_empty() => {
                out.streaming(&json!({"choice": choice, "text": text}))
                    .await?;
            }
            GenerationEvent::Delta(_) | GenerationEvent::Finished { .. } => {}
            GenerationEvent::Ended(_) => return Ok(last.unwrap_or_default()),
        }
    }
}
