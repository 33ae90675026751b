//! SentencePiece as `llama` files mean it: neighbours are joined, best score first, while the result is a token.
//!
//! Written here because GGUF files carry scores and no merge list, which is what the `tokenizers` crate would need.

use super::TextSource;
use super::sink::{Full, Sink};
use super::vocabulary::{Kind, byte_of, kind_of};
use super::windows::{self, WINDOW_BYTES, merge_in_windows};
use crate::TextError;
use ahash::AHashMap;
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// What stands for a space in the vocabulary.
const SPACE: &str = "\u{2581}";

/// The vocabulary by text, with scores.
#[derive(Debug)]
pub(super) struct SentencePiece {
    ids: AHashMap<String, u32>,
    scores: Vec<f32>,
    bytes: [Option<u32>; 256],
    unknown: Option<u32>,
    space_prefix: bool,
    longest: usize, // bytes of a token in `ids`
}

/// A part of the text; parts form a doubly linked list in the order of the text.
struct Symbol {
    start: usize,
    bytes: usize, // 0: joined to its left neighbour
    before: Option<usize>,
    after: Option<usize>,
}

/// Two neighbours that may be joined.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// Length of both when the pair was found; another length now means that it is out of date.
    bytes: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Pair) -> Ordering {
        self.score
            .total_cmp(&other.score)
            .then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Pair) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Pair) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

impl SentencePiece {
    pub(super) fn new(source: TextSource) -> Result<SentencePiece, TextError> {
        let mut bytes = [None; 256];
        let mut ids = AHashMap::with_capacity(source.tokens.len());
        let kinds: Vec<Kind> = (0..source.tokens.len())
            .map(|id| kind_of(&source, id))
            .collect();
        for ((id, token), kind) in (0_u32..).zip(source.tokens).zip(kinds) {
            match kind {
                // Joining characters never makes one, so no text of a stranger can spell it.
                Kind::Control => {}
                Kind::Byte => {
                    if let Some(byte) = byte_of(&token) {
                        bytes[byte as usize] = Some(id);
                    }
                }
                Kind::Normal | Kind::UserDefined => {
                    ids.entry(token).or_insert(id);
                }
            }
        }
        if source.unk.is_none() && bytes.iter().any(Option::is_none) {
            let why = "it has neither a token for every byte nor an unknown token";
            return Err(TextError::Vocabulary(why.into()));
        }
        Ok(SentencePiece {
            scores: source.scores,
            bytes,
            unknown: source.unk,
            longest: ids.keys().map(String::len).max().unwrap_or(0),
            ids,
            space_prefix: source.add_space_prefix.unwrap_or(true),
        })
    }

    /// Appends the tokens of `text`. `first`: it begins the whole text or follows a special token.
    /// Takes n log n steps for n characters, and memory for a window of them.
    pub(super) fn encode(&self, text: &str, first: bool, sink: &mut Sink) -> Result<(), Full> {
        self.encode_by(WINDOW_BYTES, text, first, sink)
    }

    pub(super) fn encode_by(
        &self,
        window_bytes: usize,
        text: &str,
        first: bool,
        sink: &mut Sink,
    ) -> Result<(), Full> {
        let has_prefix = first && self.space_prefix;
        merge_in_windows(
            text.as_bytes(),
            window_bytes,
            |start, part| self.merge(&String::from_utf8_lossy(part), has_prefix && start == 0),
            |sink, symbol, part| match symbol.id {
                Some(id) => sink.push(id),
                None => {
                    // The prefix has no bytes in the text.
                    let part = match part {
                        b"" | b" " => SPACE.as_bytes(),
                        part => part,
                    };
                    let ids = part
                        .iter()
                        .map(|byte| self.bytes[*byte as usize].or(self.unknown));
                    sink.extend(ids.flatten())
                }
            },
            sink,
        )
    }

    /// What joining leaves of `text`. A space of `text` is one byte of a symbol, the prefix is none.
    fn merge(&self, text: &str, has_prefix: bool) -> Vec<windows::Symbol> {
        let mut spaced = String::with_capacity(text.len() + SPACE.len());
        if has_prefix {
            spaced.push_str(SPACE);
        }
        spaced.push_str(&text.replace(' ', SPACE));
        let mut symbols = symbols(&spaced);
        self.join(&spaced, &mut symbols);
        let mut characters = text.chars();
        let mut after_prefix = !has_prefix;
        let whole = symbols.iter().filter(|symbol| symbol.bytes > 0);
        let whole = whole.map(|symbol| {
            let part = &spaced[symbol.start..symbol.start + symbol.bytes];
            let count = part.chars().count() - usize::from(!after_prefix);
            after_prefix = true;
            windows::Symbol {
                id: self.ids.get(part).copied(),
                bytes: characters.by_ref().take(count).map(char::len_utf8).sum(),
            }
        });
        whole.collect()
    }

    /// Joins neighbours until no pair is a token; returns how many pairs it looked at.
    fn join(&self, text: &str, symbols: &mut [Symbol]) -> usize {
        let mut pairs = BinaryHeap::new();
        let mut seen = 0;
        for right in 1..symbols.len() {
            self.consider(text, symbols, right - 1, right, &mut pairs);
        }
        while let Some(pair) = pairs.pop() {
            seen += 1;
            let (left, right) = (&symbols[pair.left], &symbols[pair.right]);
            if left.bytes == 0 || right.bytes == 0 || left.bytes + right.bytes != pair.bytes {
                continue;
            }
            let after = right.after;
            symbols[pair.right].bytes = 0;
            symbols[pair.left].bytes = pair.bytes;
            symbols[pair.left].after = after;
            if let Some(after) = after {
                symbols[after].before = Some(pair.left);
                self.consider(text, symbols, pair.left, after, &mut pairs);
            }
            if let Some(before) = symbols[pair.left].before {
                self.consider(text, symbols, before, pair.left, &mut pairs);
            }
        }
        seen
    }

    fn consider(
        &self,
        text: &str,
        symbols: &[Symbol],
        left: usize,
        right: usize,
        pairs: &mut BinaryHeap<Pair>,
    ) {
        let bytes = symbols[left].bytes + symbols[right].bytes;
        let start = symbols[left].start;
        if bytes > self.longest {
            return;
        }
        if let Some(id) = self.ids.get(&text[start..start + bytes]) {
            let score = self.scores.get(*id as usize).copied().unwrap_or(0.0);
            pairs.push(Pair {
                score,
                left,
                right,
                bytes,
            });
        }
    }
}

/// One symbol a character.
fn symbols(text: &str) -> Vec<Symbol> {
    let mut symbols: Vec<Symbol> = text
        .char_indices()
        .enumerate()
        .map(|(index, (start, character))| Symbol {
            start,
            bytes: character.len_utf8(),
            before: index.checked_sub(1),
            after: Some(index + 1),
        })
        .collect();
    if let Some(last) = symbols.last_mut() {
        last.after = None;
    }
    symbols
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joining_looks_at_a_few_pairs_a_character() {
        let mut tokens: Vec<String> = (0..16).map(|log| "a".repeat(1 << log)).collect();
        tokens.extend((0..=255_u8).map(|byte| format!("<0x{byte:02X}>")));
        // Both orders: long tokens first, and short ones first.
        for sign in [1.0, -1.0] {
            let pieces = SentencePiece::new(TextSource {
                model: "llama".into(),
                scores: (0..tokens.len()).map(|id| sign * id as f32).collect(),
                tokens: tokens.clone(),
                ..TextSource::default()
            });
            let text = "a".repeat(200_000);
            let seen = pieces.unwrap().join(&text, &mut symbols(&text));
            assert!(seen < 4 * text.len(), "{seen} pairs");
        }
    }
}
