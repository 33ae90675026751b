//! OpenAI's answer bodies: whole ones and the chunks of streams, for chats and completions.

use super::whole::Whole;
use crate::ingress::generation::Delta;
use crate::ingress::request::Family;
use realm_engine::text::TextModel;
use realm_engine::{StopReason, TokenLogprob, Usage};
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
    /// Whether log-probabilities were asked for.
    pub(in crate::ingress) logprobs: bool,
    /// Whether chunks have a place for the token counts.
    pub(in crate::ingress) include_usage: bool,
    /// The model's words for its tokens.
    pub(in crate::ingress) text: Arc<TextModel>,
}

impl Renderer {
    /// The body of a whole answer.
    pub(in crate::ingress) fn whole(&self, whole: &Whole) -> Value {
        let choices = whole.choices.iter().enumerate().map(|(index, choice)| {
            let logprobs = self.logprobs(&choice.logprobs, 0);
            let reason = finish_reason(choice.reason);
            match self.family {
                Family::Chat => json!({
                    "index": index,
                    "message": {"role": "assistant", "content": choice.text, "refusal": null},
                    "logprobs": logprobs,
                    "finish_reason": reason,
                }),
                Family::Completion => {
                    json!({"index": index, "text": choice.text, "logprobs": logprobs, "finish_reason": reason})
                }
            }
        });
        let object = match self.family {
            Family::Chat => "chat.completion",
            Family::Completion => "text_completion",
        };
        let mut body = self.envelope(object, choices.collect());
        body["usage"] = usage(&whole.usage);
        body
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
        let logprobs = match delta.logprobs.as_slice() {
            [] => Value::Null,
            some => self.logprobs(some, delta.offset),
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

    /// Log-probabilities of tokens whose text begins `offset` characters into the choice's; null unless asked for.
    pub(in crate::ingress) fn logprobs(&self, entries: &[TokenLogprob], offset: usize) -> Value {
        if !self.logprobs {
            return Value::Null;
        }
        match self.family {
            Family::Chat => {
                let entry = |token: u32, logprob: f32| {
                    let bytes = self.text.token_bytes(token);
                    json!({"token": self.text.token_text(token), "logprob": logprob, "bytes": bytes})
                };
                let content: Vec<Value> = entries
                    .iter()
                    .map(|chosen| {
                        let mut value = entry(chosen.token, chosen.logprob);
                        value["top_logprobs"] = chosen
                            .top
                            .iter()
                            .map(|&(token, logprob)| entry(token, logprob))
                            .collect();
                        value
                    })
                    .collect();
                json!({"content": content, "refusal": null})
            }
            Family::Completion => self.completion_logprobs(entries, offset),
        }
    }

    fn completion_logprobs(&self, entries: &[TokenLogprob], mut offset: usize) -> Value {
        let (mut tokens, mut values, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
        for entry in entries {
            let text = self.text.token_text(entry.token);
            let top = entry
                .top
                .iter()
                .map(|&(token, logprob)| (self.text.token_text(token), json!(logprob)));
            tops.push(Value::Object(top.collect()));
            offsets.push(offset);
            offset += text.chars().count();
            tokens.push(text);
            values.push(entry.logprob);
        }
        json!({"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets})
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
