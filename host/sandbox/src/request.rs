//! What a client asks, as the server hands it over.

use crate::{CallError, GuestError, MemoryCharge};
use realm_engine::Policy;
use realm_engine::text::Chat;
use serde::de::IgnoredAny;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

/// JSON of more bytes than this is read where it may take a while.
pub(crate) const JSON_AT_ONCE_MAX: usize = 64 << 10;

/// One call.
#[derive(Clone, Debug)]
pub struct CallRequest {
    /// The id the client sees as well.
    pub id: String,
    /// What is asked.
    pub kind: SharedKind,
    /// The base model the client means.
    pub model: String,
    /// The client's sampling, stops and token limits.
    pub policy: Policy,
    /// How many alternatives to each token of the prompt the client wants to see; `None` where it wants to know nothing of
    /// them. A completion that is echoed with log-probabilities wants as many as its policy says, too.
    pub prompt_logprobs: Option<u32>,
    /// How many answers, from 1.
    pub choices: u32,
    /// From now on; the tenant's wall limit applies as well.
    pub deadline: Duration,
}

/// What is asked, with what it takes of its tenant's memory. Clones share both, because it can be long: the memory is given
/// back with the last of them, which may belong to work that outlives the call.
#[derive(Clone, Debug)]
pub struct SharedKind(Arc<ChargedKind>);

#[derive(Debug)]
struct ChargedKind {
    kind: RequestKind,
    _charge: Option<MemoryCharge>,
}

impl SharedKind {
    /// What is asked, and its charge.
    pub fn charged(kind: RequestKind, charge: MemoryCharge) -> SharedKind {
        SharedKind(Arc::new(ChargedKind {
            kind,
            _charge: Some(charge),
        }))
    }
}

impl From<RequestKind> for SharedKind {
    /// What nobody is charged for.
    fn from(kind: RequestKind) -> SharedKind {
        SharedKind(Arc::new(ChargedKind {
            kind,
            _charge: None,
        }))
    }
}

impl Deref for SharedKind {
    type Target = RequestKind;

    fn deref(&self) -> &RequestKind {
        &self.0.kind
    }
}

/// What is asked.
#[derive(Clone, Debug)]
pub enum RequestKind {
    /// Continue a chat.
    Chat(Chat),
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

impl CallRequest {
    /// How many alternatives the client wants to see beside the tokens of an echoed prompt.
    pub(crate) fn echo_logprobs(&self) -> Option<u32> {
        let is_echoed = matches!(*self.kind, RequestKind::Completion { echo: true, .. });
        self.policy.logprobs.filter(|_| is_echoed)
    }

    /// How many alternatives to each token of the prompt are wanted, for whichever purpose.
    pub(crate) fn scored_alternatives(&self) -> Option<u32> {
        self.prompt_logprobs.max(self.echo_logprobs())
    }

    /// Whether checking it takes a while.
    pub(crate) fn is_long(&self) -> bool {
        match &*self.kind {
            RequestKind::Function {
                parameters_json, ..
            } => parameters_json.len() > JSON_AT_ONCE_MAX,
            RequestKind::Chat { .. } | RequestKind::Completion { .. } => false,
        }
    }

    /// What the contract cannot express is refused here, before anything runs.
    pub(crate) fn check(&self, json_bytes_max: usize) -> Result<(), CallError> {
        let invalid = |what: String| Err(CallError::Guest(GuestError::Invalid(what)));
        if self.choices == 0 || self.choices > CHOICES_MAX {
            return invalid(format!(
                "{} answers were asked for: a call can have 1 to {CHOICES_MAX}",
                self.choices
            ));
        }
        match &*self.kind {
            RequestKind::Chat(_) | RequestKind::Completion { .. } => Ok(()),
            RequestKind::Function {
                parameters_json, ..
            } => {
                if parameters_json.len() > json_bytes_max {
                    return invalid(format!(
                        "the parameters have {} bytes, at most {json_bytes_max} are allowed",
                        parameters_json.len()
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
