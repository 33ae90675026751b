//! A whole answer: all choices, collected to the end.

use crate::error::{ApiError, ApiResult};
use crate::ingress::generation::{Ending, Generation, TokenEntry};
use crate::state::TenantEntry;
use axum::http::StatusCode;
use realm_engine::{StopReason, Usage};
use realm_sandbox::{MemoryCharge, PromptToken, PromptTokens};

/// Text of a whole answer, all choices together. A component could write without end; a stream need not hold it.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// The charge for an answer grows by this much at a time.
const CHARGE_STEP: usize = 64 << 10;
/// What a byte of text takes until it is sent: as text, as a value of JSON, and as JSON.
const TEXT_FACTOR: usize = 3;
/// What a log-probability takes likewise: an object with a token's text, a number, and its bytes or its rank. Measured as what
/// 60,000 of them added to the process.
const LOGPROB_BYTES: usize = 1280;

/// A whole answer.
#[derive(Debug)]
pub(in crate::ingress) struct Whole {
    /// As many as were asked for.
    pub(in crate::ingress) choices: Vec<Choice>,
    /// Tokens.
    pub(in crate::ingress) usage: Usage,
    /// The tokens of the prompt, where their log-probabilities were asked for.
    pub(in crate::ingress) prompt: Option<PromptTokens>,
    /// What it holds of its tenant's memory, and what is made of it will.
    pub(in crate::ingress) charge: MemoryCharge,
}

/// One answer of several.
#[derive(Debug)]
pub(in crate::ingress) struct Choice {
    /// All of its text.
    pub(in crate::ingress) text: String,
    /// Its tokens, where their log-probabilities were asked for.
    pub(in crate::ingress) tokens: Vec<TokenEntry>,
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
        let entries = delta.tokens.iter().map(|token| 1 + token.top.len());
        held += delta.text.len() * TEXT_FACTOR + entries.sum::<usize>() * LOGPROB_BYTES;
        if bytes > ANSWER_BYTES_MAX {
            let error = too_large();
            generation.fail(&error);
            return Err(error);
        }
        pay(&mut charge, held)?;
        let (text, tokens) = &mut texts[delta.choice as usize];
        text.push_str(&delta.text);
        tokens.extend(delta.tokens);
    }
    let Ending {
        reasons,
        usage,
        prompt,
    } = generation.ending();
    if let Some(prompt) = &prompt {
        // Completions repeat it in every choice.
        held += reasons.len() * prompt.iter().map(prompt_entry_bytes).sum::<usize>();
        pay(&mut charge, held)?;
    }
    let choices = texts.into_iter().zip(reasons);
    let choices = choices.map(|((text, tokens), reason)| Choice {
        text,
        tokens,
        reason,
    });
    Ok(Whole {
        choices: choices.collect(),
        usage,
        prompt,
        charge,
    })
}

/// Has the tenant's memory hold so much.
///
/// # Errors
/// The client's: a 429 where others have the memory, and a 400 where it would not be enough for this answer alone.
fn pay(charge: &mut MemoryCharge, bytes: usize) -> ApiResult<()> {
    if bytes <= charge.bytes() {
        return Ok(());
    }
    let refused = charge.resize(bytes + CHARGE_STEP).err();
    refused.map_or(Ok(()), |error| {
        if !error.is_for_good() {
            return Err(ApiError::memory_in_use());
        }
        let bytes_max = error.bytes_max;
        let what = format!(
            "the answer would take {bytes} bytes until it is sent, and this tenant's memory has {bytes_max}; ask for fewer answers, tokens or log-probabilities"
        );
        Err(ApiError {
            code: "reply_too_large".into(),
            ..ApiError::invalid(what)
        })
    })
}

/// What a token of a prompt takes until it is sent: an object for itself and one for each alternative.
fn prompt_entry_bytes(token: &PromptToken) -> usize {
    let top = token.scored.as_ref().map_or(0, |it| it.logprob.top.len());
    (1 + top) * LOGPROB_BYTES
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
