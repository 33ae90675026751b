//! Where tokens go: a list that refuses to grow beyond what the caller has room for.

/// There is no room for another token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

/// The tokens of a text so far.
#[derive(Debug)]
pub(super) struct Sink {
    ids: Vec<u32>,
    tokens_max: usize,
}

impl Sink {
    /// Room for `tokens_max` tokens, of which memory is taken for `expected` at once.
    pub(super) fn new(tokens_max: usize, expected: usize) -> Sink {
        Sink {
            ids: Vec::with_capacity(expected.min(tokens_max)),
            tokens_max,
        }
    }

    pub(super) fn push(&mut self, id: u32) -> Result<(), Full> {
        if self.ids.len() >= self.tokens_max {
            return Err(Full);
        }
        self.ids.push(id);
        Ok(())
    }

    pub(super) fn extend(&mut self, ids: impl IntoIterator<Item = u32>) -> Result<(), Full> {
        ids.into_iter().try_for_each(|id| self.push(id))
    }

    /// Tokens so far.
    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    /// Takes tokens back, down to the first `tokens`.
    pub(super) fn truncate(&mut self, tokens: usize) {
        self.ids.truncate(tokens);
    }

    pub(super) fn into_ids(self) -> Vec<u32> {
        self.ids
    }
}
