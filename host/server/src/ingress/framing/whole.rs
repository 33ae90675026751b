//! A whole answer: all choices, collected to the end.

use crate::error::{ApiError, ApiResult};
use crate::ingress::generation::{Ending, Generation};
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
#[derive(Debug)]
pub(in crate::ingress) struct Choice {
    /// All of its text.
    pub(in crate::ingress) text: String,
    /// One for each token, when asked for.
    pub(in crate::ingress) logprobs: Vec<TokenLogprob>,
    /// Why it ended.
    pub(in crate::ingress) reason: StopReason,
}

/// Reads a generation to its end.
///
/// # Errors
/// What the call ended with, or that it wrote too much.
pub(in crate::ingress) async fn collect(
    mut generation: Generation,
    tenant: &TenantEntry,
) -> ApiResult<Whole> {
    let mut charge = tenant.charge(CHARGE_STEP)?;
    let mut texts = vec![(String::new(), Vec::new()); generation.choices()];
    let (mut bytes, mut held) = (0, 0);
    while let Some(delta) = generation.next_delta().await? {
        bytes += delta.text.len();
        let entries = delta.logprobs.iter().map(|logprob| 1 + logprob.top.len());
        held += delta.text.len() * TEXT_FACTOR + entries.sum::<usize>() * LOGPROB_BYTES;
        if bytes > ANSWER_BYTES_MAX {
            let error = too_large();
            generation.fail(&error);
            return Err(error);
        }
        if held > charge.bytes() {
            charge.resize(held + CHARGE_STEP)?;
        }
        let (text, logprobs) = &mut texts[delta.choice as usize];
        text.push_str(&delta.text);
        logprobs.extend(delta.logprobs);
    }
    let Ending { reasons, usage } = generation.ending();
    let choices = texts.into_iter().zip(reasons);
    let choices = choices.map(|((text, logprobs), reason)| Choice {
        text,
        logprobs,
        reason,
    });
    Ok(Whole {
        choices: choices.collect(),
        usage,
        charge,
    })
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
