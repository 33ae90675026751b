//! A whole answer: all choices, collected to the end.

use crate::error::{ApiError, ApiResult};
use crate::ingress::generation::{Generation, GenerationEvent};
use crate::state::TenantEntry;
use axum::http::StatusCode;
use realm_engine::{StopReason, TokenLogprob, Usage};
use realm_sandbox::MemoryCharge;

/// Text of a whole answer, all choices together. A component could write without end; a stream need not hold it.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// The charge for an answer grows by this much at a time.
const CHARGE_STEP: usize = 64 << 10;
/// What a byte of text takes until it is sent: as text, as a value of JSON, and as JSON.
const TEXT_FACTOR: usize = 3;
/// What a log-probability takes likewise: an object with a token's text, a number, and a list of bytes.
const LOGPROB_BYTES: usize = 768;

/// A whole answer.
#[derive(Debug)]
pub(in crate::ingress) struct Whole {
    /// As many as were asked for.
    pub(in crate::ingress) choices: Vec<Choice>,
    /// Tokens.
    pub(in crate::ingress) usage: Usage,
    /// What it holds of its tenant's memory, and what is made of it will.
    pub(in crate::ingress) charge: MemoryCharge,
}

/// One answer of several.
#[derive(Clone, Debug, Default)]
pub(in crate::ingress) struct Choice {
    /// All of its text.
    pub(in crate::ingress) text: String,
    /// One for each token, when asked for.
    pub(in crate::ingress) logprobs: Vec<TokenLogprob>,
    /// Why it ended.
    pub(in crate::ingress) reason: Option<StopReason>,
}

/// Reads a generation to its end.
///
/// # Errors
/// What the call ended with, or that it wrote too much.
pub(in crate::ingress) async fn collect(
    mut generation: Generation,
    tenant: &TenantEntry,
    choices: u32,
) -> ApiResult<Whole> {
    let mut charge = tenant.charge(CHARGE_STEP)?;
    let mut choices = vec![Choice::default(); choices as usize];
    let (mut bytes, mut held) = (0, 0);
    loop {
        match generation.next().await? {
            GenerationEvent::Delta {
                choice,
                text,
                logprobs,
                ..
            } => {
                bytes += text.len();
                let entries = logprobs.iter().map(|logprob| 1 + logprob.top.len());
                held += text.len() * TEXT_FACTOR + entries.sum::<usize>() * LOGPROB_BYTES;
                if bytes > ANSWER_BYTES_MAX {
                    let error = too_large();
                    generation.fail(&error);
                    return Err(error);
                }
                if held > charge.bytes() && !charge.resize(held + CHARGE_STEP) {
                    return Err(ApiError::memory_in_use());
                }
                let choice = &mut choices[choice as usize];
                choice.text.push_str(&text);
                choice.logprobs.extend(logprobs);
            }
            GenerationEvent::Finished { choice, reason } => {
                choices[choice as usize].reason = Some(reason);
            }
            GenerationEvent::Value(_) => {} // a function's way to answer; chats and completions are text
            GenerationEvent::Ended(usage) => {
                return Ok(Whole {
                    choices,
                    usage,
                    charge,
                });
            }
        }
    }
}

fn too_large() -> ApiError {
    let message = format!("the workflow's answer is larger than {ANSWER_BYTES_MAX} bytes");
    ApiError::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        "workflow_error",
        "reply_too_large",
        message,
    )
}
