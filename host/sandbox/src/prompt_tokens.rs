//! The tokens of a prompt with their log-probabilities, on their way from the engine to a client.

use crate::memory::Held;
use realm_engine::PromptLogprob;
use std::ops::Deref;
use std::sync::Arc;

/// A token of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptToken {
    /// Its id.
    pub token: u32,
    /// Where it begins in the prompt's text, in characters.
    pub offset: usize,
    /// What the model made of it; `None` of the first, before which there is nothing.
    pub scored: Option<PromptLogprob>,
}

/// The tokens of a prompt, in their order. All answers that begin with it share them, and the call pays for them once, as
/// long as anybody has them.
#[derive(Clone, Debug, Default)]
pub struct PromptTokens(Arc<Paid>);

#[derive(Debug, Default)]
struct Paid {
    tokens: Vec<PromptToken>,
    _held: Option<Held>,
}

impl PromptTokens {
    /// These, which `held` pays for.
    pub(crate) fn paid(tokens: Vec<PromptToken>, held: Held) -> PromptTokens {
        let _held = Some(held);
        PromptTokens(Arc::new(Paid { tokens, _held }))
    }
}

/// Tokens that nobody pays for.
impl FromIterator<PromptToken> for PromptTokens {
    fn from_iter<T: IntoIterator<Item = PromptToken>>(tokens: T) -> PromptTokens {
        PromptTokens(Arc::new(Paid {
            tokens: tokens.into_iter().collect(),
            _held: None,
        }))
    }
}

impl Deref for PromptTokens {
    type Target = [PromptToken];

    fn deref(&self) -> &[PromptToken] {
        &self.0.tokens
    }
}

impl PartialEq for PromptTokens {
    fn eq(&self, other: &PromptTokens) -> bool {
        **self == **other
    }
}

/// What they take of the host's memory.
pub(crate) fn bytes(tokens: &[PromptToken]) -> usize {
    let scored = tokens.iter().filter_map(|token| token.scored.as_ref());
    let top = scored.map(|scored| size_of_val(scored.logprob.top.as_slice()));
    size_of_val(tokens) + top.sum::<usize>()
}
