//! OpenAI's answer bodies: whole ones and the chunks of streams, for chats and completions.

use super::whole::Whole;
use crate::ingress::generation::Delta;
use crate::ingress::request::Family;
use realm_engine::text::TextModel;
use realm_engine::{StopReason, Usage};
use serde_json::{Value, json};
use std::sync::Arc;

/// Writes the bodies of one answer.
pub(in crate::ingress) struct Renderer {
    /// Chat or completion.
    pub(in crate::ingress) family: Family,
    /// The answer's id.
    pub(in crate::ingress) id: String,
    /// What the client called the model.
    pub(in crate::ingress) model: String,
    /// Seconds since 1970.
    pub(in crate::ingress) created: i64,
    /// How many alternatives to each token of the answer were asked for.
    pub(in crate::ingress) logprobs: Option<u32>,
    /// The same of the prompt.
    pub(in crate::ingress) prompt_logprobs: Option<u32>,
    /// Whether chunks have a place for the token counts.
    pub(in crate::ingress) include_usage: bool,
    /// The model's words for its tokens.
    pub(in crate::ingress) text: Arc<TextModel>,
}

impl Renderer {
    /// The body of a whole answer.
    pub(in crate::ingress) fn whole(&self, whole: &Whole) -> Value {
        let choices = whole.choices.iter().enumerate().map(|(index, choice)| {
            let logprobs = self.logprobs(&choice.tokens);
            let reason = finish_reason(choice.reason);
            let mut body = match self.family {
                Family::Chat => json!({
                    "index": index,
                    "message": {"role": "assistant", "content": choice.text, "refusal": null},
                    "logprobs": logprobs,
                    "finish_reason": reason,
                }),
                Family::Completion => {
                    json!({"index": index, "text": choice.text, "logprobs": logprobs, "finish_reason": reason})
                }
            };
            if self.family == Family::Completion {
                self.add_prompt(&mut body, whole);
            }
            body
        });
        let object = match self.family {
            Family::Chat => "chat.completion",
            Family::Completion => "text_completion",
        };
        let mut body = self.envelope(object, choices.collect());
        body["usage"] = usage(&whole.usage);
        if self.family == Family::Chat {
            self.add_prompt(&mut body, whole);
        }
        body
    }

    /// Adds the log-probabilities of the prompt where they were asked for. vLLM has them once in a chat, and in every
    /// choice of a completion.
    fn add_prompt(&self, body: &mut Value, whole: &Whole) {
        if self.prompt_logprobs.is_some() {
            body["prompt_logprobs"] = self.prompt_logprobs(whole.prompt.as_deref());
        }
    }

    /// The chunk that opens a choice of a chat; completions have none.
    pub(in crate::ingress) fn opening(&self, choice: u32) -> Option<Value> {
        let delta = json!({"role": "assistant", "content": "", "refusal": null});
        (self.family == Family::Chat).then(|| {
            self.chunk(json!([{
                "index": choice, "delta": delta, "logprobs": null, "finish_reason": null,
            }]))
        })
    }

    /// The chunk of a piece of text.
    pub(in crate::ingress) fn delta(&self, delta: &Delta) -> Value {
        let Delta { choice, text, .. } = delta;
        let logprobs = match delta.tokens.as_slice() {
            [] => Value::Null,
            some => self.logprobs(some),
        };
        self.chunk(match self.family {
            Family::Chat => json!([{
                "index": choice, "delta": {"content": text}, "logprobs": logprobs, "finish_reason": null,
            }]),
            Family::Completion => json!([{
                "index": choice, "text": text, "logprobs": logprobs, "finish_reason": null,
            }]),
        })
    }

    /// The chunk that ends a choice.
    pub(in crate::ingress) fn finish(&self, choice: u32, reason: StopReason) -> Value {
        let reason = finish_reason(reason);
        self.chunk(match self.family {
            Family::Chat => {
                json!([{"index": choice, "delta": {}, "logprobs": null, "finish_reason": reason}])
            }
            Family::Completion => {
                json!([{"index": choice, "text": "", "logprobs": null, "finish_reason": reason}])
            }
        })
    }

    /// The last chunk, with the token counts.
    pub(in crate::ingress) fn usage(&self, counts: &Usage) -> Value {
        let mut chunk = self.chunk(json!([]));
        chunk["usage"] = usage(counts);
        chunk
    }

    fn chunk(&self, choices: Value) -> Value {
        let object = match self.family {
            Family::Chat => "chat.completion.chunk",
            Family::Completion => "text_completion",
        };
        let mut chunk = self.envelope(object, choices);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn envelope(&self, object: &str, choices: Value) -> Value {
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices,
            "system_fingerprint": null,
        })
    }
}

/// Token counts as OpenAI writes them.
pub(in crate::ingress) fn usage(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": u64::from(usage.prompt) + u64::from(usage.completion),
        "prompt_tokens_details": {"cached_tokens": usage.cached},
    })
}

/// OpenAI knows two ways for plain text to end.
pub(in crate::ingress) fn finish_reason(reason: StopReason) -> &'static str {
    match reason {
        StopReason::EndOfTurn | StopReason::StopString | StopReason::Cancelled => "stop",
        StopReason::MaxTokens | StopReason::ContextFull => "length",
    }
}
