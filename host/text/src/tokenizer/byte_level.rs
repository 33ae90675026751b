//! Byte-level BPE (`gpt2`): text is cut into words, words into bytes, and bytes are merged by the `tokenizers` crate.
//!
//! The crate's own cutting keeps some fifty bytes for each byte of the text, so words are cut here, one at a time.

use super::TextSource;
use super::sink::{Full, Sink};
use super::vocabulary::{Kind, kind_of};
use super::windows::{Symbol, WINDOW_BYTES, merge_in_windows};
use super::words::{self, Cut};
use crate::TextError;
use std::sync::LazyLock;
use tokenizers::Model;
use tokenizers::models::bpe::{BPE, BpeBuilder};

/// GPT-2's letters for the bytes that have no printable ASCII or Latin-1 letter of their own.
static CHARS: LazyLock<[char; 256]> = LazyLock::new(|| {
    let mut chars = ['\0'; 256];
    let mut stand_in = 0x100_u32;
    for byte in 0..=255_u8 {
        let printable = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        chars[byte as usize] = if printable {
            char::from(byte)
        } else {
            stand_in += 1;
            char::from_u32(stand_in - 1).unwrap_or(char::REPLACEMENT_CHARACTER)
        };
    }
    chars
});

/// Appends the bytes that a token's letters stand for; a letter that stands for none is kept as it is.
pub(super) fn append_bytes(token: &str, out: &mut Vec<u8>) {
    for letter in token.chars() {
        let byte = match letter {
            '!'..='~' | '\u{a1}'..='\u{ac}' | '\u{ae}'..='\u{ff}' => u8::try_from(letter).ok(),
            _ => CHARS
                .iter()
                .position(|other| *other == letter)
                .and_then(|at| u8::try_from(at).ok()),
        };
        match byte {
            Some(byte) => out.push(byte),
            None => out.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// Byte-level BPE with its rule for words.
pub(super) struct ByteLevel {
    words: Vec<Cut>,
    whole_words: bool,
    bpe: BPE,
    /// Bytes that have a token.
    known: [bool; 256],
}

impl std::fmt::Debug for ByteLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ByteLevel").finish_non_exhaustive()
    }
}

impl ByteLevel {
    pub(super) fn new(source: TextSource) -> Result<ByteLevel, TextError> {
        let rule = words::rule(source.pre.as_deref())?;
        let words = rule.expressions.iter().map(Cut::new);
        let words = words.collect::<Result<_, _>>()?;
        let bpe = bpe(source)?;
        let known = CHARS.map(|letter| bpe.token_to_id(letter.encode_utf8(&mut [0; 4])).is_some());
        Ok(ByteLevel {
            words,
            whole_words: rule.whole_words,
            bpe,
            known,
        })
    }

    /// Which bytes have a token; the others are left out of a text.
    pub(super) fn known_bytes(&self) -> &[bool; 256] {
        &self.known
    }

    /// Appends the tokens of `text`. Takes n log n steps for the n bytes of a word, and memory for a window of it.
    pub(super) fn encode(&self, text: &str, sink: &mut Sink) -> Result<(), Full> {
        words::each_word(&self.words, text, &mut |word| {
            self.encode_word(word.as_bytes(), sink)
        })
    }

    pub(super) fn encode_word(&self, word: &[u8], sink: &mut Sink) -> Result<(), Full> {
        if word.len() <= WINDOW_BYTES {
            if self.whole_words
                && let Some(id) = self.bpe.token_to_id(&letters(word))
            {
                return sink.push(id);
            }
            return sink.extend(self.merge(word).into_iter().filter_map(|symbol| symbol.id));
        }
        // Bytes without a token are left out before merging, so that those beside them are neighbours.
        let known: Vec<u8>;
        let word = match word.iter().all(|byte| self.known[*byte as usize]) {
            true => word,
            false => {
                let bytes = word.iter().copied();
                known = bytes.filter(|byte| self.known[*byte as usize]).collect();
                &known
            }
        };
        merge_in_windows(
            word,
            WINDOW_BYTES,
            |_, part| self.merge(part),
            |sink, symbol, _| sink.extend(symbol.id),
            sink,
        )
    }

    /// What merging leaves of `bytes`.
    pub(super) fn merge(&self, bytes: &[u8]) -> Vec<Symbol> {
        let tokens = self.bpe.tokenize(&letters(bytes));
        debug_assert!(
            tokens.is_ok(),
            "only an unknown token could be missing, and none is set"
        );
        let symbols = tokens.unwrap_or_default().into_iter().map(|token| Symbol {
            id: Some(token.id),
            bytes: token.value.chars().count(),
        });
        symbols.collect()
    }
}

/// GPT-2's letters for `bytes`.
fn letters(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| CHARS[*byte as usize]).collect()
}

/// The merges as the `tokenizers` crate wants them, checked here because it names a missing token without its place.
///
/// Control tokens are kept out, so that no text of a stranger can spell one.
fn bpe(source: TextSource) -> Result<BPE, TextError> {
    let mut control = ahash::AHashSet::new();
    // The first of two equal tokens is the one that merges make.
    let mut vocabulary = ahash::AHashMap::with_capacity(source.tokens.len());
    for id in 0..source.tokens.len() {
        if kind_of(&source, id) == Kind::Control {
            control.insert(source.tokens[id].clone());
        }
    }
    for (id, token) in (0_u32..).zip(source.tokens) {
        if !control.contains(&token) {
            vocabulary.entry(token).or_insert(id);
        }
    }
    let mut merges = Vec::with_capacity(source.merges.len());
    for (index, merge) in source.merges.into_iter().enumerate() {
        let Some((left, right)) = halves(&merge) else {
            return Err(TextError::BadMerge { index, merge });
        };
        let parts = [left.to_owned(), right.to_owned(), format!("{left}{right}")];
        if parts.iter().any(|part| control.contains(part)) {
            continue;
        }
        if !parts.iter().all(|part| vocabulary.contains_key(part)) {
            return Err(TextError::BadMerge { index, merge });
        }
        let [left, right, _] = parts;
        merges.push((left, right));
    }
    // No cache: it would be shared by all tenants, and its timing would tell one what another has typed.
    BpeBuilder::new()
        .vocab_and_merges(vocabulary, merges)
        .cache_capacity(0)
        .build()
        .map_err(|error| TextError::Vocabulary(error.to_string()))
}

/// The two tokens of `a b`. The space is not at the start: a token may itself begin with one.
fn halves(merge: &str) -> Option<(&str, &str)> {
    let first = merge.chars().next()?.len_utf8();
    let cut = first + merge[first..].find(' ')?;
    Some((&merge[..cut], &merge[cut + 1..]))
}
