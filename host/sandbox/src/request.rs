//! What a client asks, as the server hands it over.

use crate::{CallError, GuestError};
use realm_engine::Policy;
use realm_engine::text::ChatMessage;
use serde::de::IgnoredAny;
use std::sync::Arc;
use std::time::Duration;

/// One call.
#[derive(Clone, Debug)]
pub struct Request {
    /// The id the client sees as well.
    pub id: String,
    /// What is asked. Shared, because it can be long.
    pub kind: Arc<RequestKind>,
    /// The base model the client means.
    pub model: String,
    /// The client's sampling, stops and token limits.
    pub policy: Policy,
    /// How many answers, from 1.
    pub choices: u32,
    /// From now on; the tenant's wall limit applies as well.
    pub deadline: Duration,
}

/// What is asked.
#[derive(Clone, Debug)]
pub enum RequestKind {
    /// Continue a chat.
    Chat {
        /// Oldest first.
        messages: Vec<ChatMessage>,
        /// As OpenAI writes them: `{"type": "function", "function": {...}}`.
        tools: Vec<serde_json::Value>,
    },
    /// Continue a text.
    Completion {
        /// What to continue.
        prompt: Prompt,
        /// Whether the prompt's text goes out in front. The component does it.
        echo: bool,
    },
    /// Call a function of the component.
    Function {
        /// One its description names.
        name: String,
        /// A JSON value.
        parameters_json: String,
    },
}

/// A raw prompt.
#[derive(Clone, Debug)]
pub enum Prompt {
    /// Text, in which names of control tokens mean those.
    Text(String),
    /// Token ids, checked when they are appended.
    Tokens(Vec<u32>),
}

/// The most answers one call can ask for; the runs of the shipped components hold that many jobs.
pub(crate) const CHOICES_MAX: u32 = 64;

impl Request {
    /// What the contract cannot express is refused here, before anything runs.
    pub(crate) fn check(&self, json_bytes_max: usize) -> Result<(), CallError> {
        let invalid = |what: String| Err(CallError::Guest(GuestError::Invalid(what)));
        if self.choices == 0 || self.choices > CHOICES_MAX {
            return invalid(format!(
                "{} choices were asked for, 1 to {CHOICES_MAX} are possible",
                self.choices
            ));
        }
        match &*self.kind {
            RequestKind::Chat { messages, .. } => {
                for message in messages {
                    if !matches!(
                        message.role.as_str(),
                        "system" | "developer" | "user" | "assistant" | "tool"
                    ) {
                        return invalid(format!("no such role: {:?}", message.role));
                    }
                }
                Ok(())
            }
            RequestKind::Completion { .. } => Ok(()),
            RequestKind::Function {
                parameters_json, ..
            } => {
                if parameters_json.len() > json_bytes_max {
                    return invalid(format!(
                        "the parameters are larger than {json_bytes_max} bytes"
                    ));
                }
                match serde_json::from_str::<IgnoredAny>(parameters_json) {
                    Ok(_) => Ok(()),
                    Err(error) => invalid(format!("the parameters are not valid JSON: {error}")),
                }
            }
        }
    }
}
