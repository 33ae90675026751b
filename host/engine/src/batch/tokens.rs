//! The tokens of one sequence, shared with its forks: a fork costs a reference for each part and copies no text.

use std::sync::Arc;

/// Parts shorter than this are put together, so that a sequence of many small appends and forks has few parts.
const PART_TOKENS_MIN: usize = 256;

/// Tokens in order of position: parts that forks share, then a tail of its own.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tokens {
    parts: Vec<Part>,
    tail: Vec<u32>,
}

/// The first `length` of `tokens`, which stand at `start..start + length` of the sequence.
#[derive(Clone, Debug)]
struct Part {
    start: usize,
    length: usize,
    tokens: Arc<Vec<u32>>,
}

impl Part {
    fn end(&self) -> usize {
        self.start + self.length
    }

    fn as_slice(&self) -> &[u32] {
        &self.tokens[..self.length]
    }
}

impl Tokens {
    pub(crate) fn len(&self) -> usize {
        self.tail_start() + self.tail.len()
    }

    fn tail_start(&self) -> usize {
        self.parts.last().map_or(0, Part::end)
    }

    pub(crate) fn push(&mut self, token: u32) {
        self.tail.push(token);
    }

    /// Adds tokens at the end; many of them are taken over as they are.
    pub(crate) fn append(&mut self, tokens: Vec<u32>) {
        if tokens.len() < PART_TOKENS_MIN {
            self.tail.extend_from_slice(&tokens);
            return;
        }
        self.freeze();
        self.add_part(tokens);
    }

    /// The same tokens again. The tail becomes a part that both have.
    pub(crate) fn fork(&mut self) -> Tokens {
        self.freeze();
        self.clone()
    }

    fn freeze(&mut self) {
        let mut tail = std::mem::take(&mut self.tail);
        if tail.is_empty() {
            return;
        }
        if tail.len() < PART_TOKENS_MIN
            && let Some(last) = self.parts.pop_if(|last| last.length < PART_TOKENS_MIN)
        {
            let mut joined = last.as_slice().to_vec();
            joined.append(&mut tail);
            tail = joined;
        }
        self.add_part(tail);
    }

    fn add_part(&mut self, tokens: Vec<u32>) {
        self.parts.push(Part {
            start: self.tail_start(),
            length: tokens.len(),
            tokens: Arc::new(tokens),
        });
    }

    /// Keeps the first `length` tokens.
    pub(crate) fn truncate(&mut self, length: usize) {
        let tail = length.saturating_sub(self.tail_start());
        self.tail.truncate(tail);
        while let Some(last) = self.parts.pop_if(|last| last.start >= length) {
            drop(last);
        }
        if let Some(last) = self.parts.last_mut()
            && last.end() > length
        {
            last.length = length - last.start;
            // A part keeps all its tokens in memory, also those that nobody sees any more.
            if last.length * 2 < last.tokens.len() {
                last.tokens = Arc::new(last.as_slice().to_vec());
            }
        }
    }

    /// The tokens of positions `start..end`, cut to what there is, in pieces.
    pub(crate) fn pieces(&self, start: usize, end: usize) -> impl Iterator<Item = &[u32]> {
        let end = end.min(self.len());
        let start = start.min(end);
        let first = self.parts.partition_point(|part| part.end() <= start);
        let parts = self.parts[first..]
            .iter()
            .map(|part| (part.start, part.as_slice()))
            .chain([(self.tail_start(), self.tail.as_slice())]);
        parts
            .take_while(move |(at, _)| *at < end)
            .map(move |(at, tokens)| {
                &tokens[start.saturating_sub(at).min(tokens.len())..(end - at).min(tokens.len())]
            })
    }

    /// The tokens of positions `start..end`, cut to what there is, in one piece.
    pub(crate) fn copy(&self, start: usize, end: usize) -> Vec<u32> {
        self.pieces(start, end).flatten().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::Rng;

    #[test]
    fn tokens_are_those_of_a_plain_list_whatever_is_done() {
        let mut rng = Rng::new(5);
        let mut all: Vec<(Tokens, Vec<u32>)> = vec![Default::default()];
        for next in 0..4000u32 {
            let index = rng.below(all.len() as u32) as usize;
            let (tokens, plain) = &mut all[index];
            match rng.below(10) {
                0..4 => {
                    tokens.push(next);
                    plain.push(next);
                }
                4..7 => {
                    let more: Vec<u32> = (0..rng.below(600)).collect();
                    plain.extend(&more);
                    tokens.append(more);
                }
                7 => {
                    let length = rng.below(plain.len() as u32 + 1) as usize;
                    tokens.truncate(length);
                    plain.truncate(length);
                }
                _ => {
                    let fork = (tokens.fork(), plain.clone());
                    all.push(fork);
                }
            }
            let (tokens, plain) = &all[index];
            assert_eq!(tokens.len(), plain.len());
            let start = rng.below(plain.len() as u32 + 1) as usize;
            let end = start + rng.below(700) as usize;
            let expected = &plain[start..end.min(plain.len())];
            assert_eq!(tokens.copy(start, end), expected);
        }
        for (tokens, plain) in &all {
            assert_eq!(tokens.copy(0, usize::MAX), *plain);
            assert!(tokens.parts.len() <= 2 + 2 * plain.len() / PART_TOKENS_MIN);
        }
    }

    #[test]
    fn a_fork_copies_nothing_and_a_cut_part_keeps_little() {
        let mut tokens = Tokens::default();
        tokens.append(vec![1; 10_000]);
        let fork = tokens.fork();
        assert!(Arc::ptr_eq(&tokens.parts[0].tokens, &fork.parts[0].tokens));
        tokens.truncate(3);
        assert_eq!(tokens.parts[0].tokens.len(), 3);
        assert_eq!(fork.len(), 10_000);
    }
}
