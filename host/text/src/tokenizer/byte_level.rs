//! Byte-level BPE (`gpt2`), by the `tokenizers` crate: text is cut into words, words into bytes, bytes are merged.

use super::TextSource;
use super::vocabulary::{Kind, kind_of};
use super::words;
use crate::TextError;
use std::sync::LazyLock;
use tokenizers::Model;
use tokenizers::models::bpe::{BPE, BpeBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel as BytesToChars;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::{
    OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior,
};

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
    words: Vec<Split>,
    letters: BytesToChars,
    bpe: BPE,
}

impl std::fmt::Debug for ByteLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ByteLevel").finish_non_exhaustive()
    }
}

impl ByteLevel {
    pub(super) fn new(source: TextSource) -> Result<ByteLevel, TextError> {
        let rule = words::rule(source.pre.as_deref())?;
        let words = rule.expressions.iter().map(|expression| {
            Split::new(
                SplitPattern::Regex((*expression).to_owned()),
                SplitDelimiterBehavior::Isolated,
                false,
            )
            .map_err(|error| TextError::Vocabulary(error.to_string()))
        });
        Ok(ByteLevel {
            words: words.collect::<Result<_, _>>()?,
            letters: BytesToChars::new(false, false, false),
            bpe: bpe(source, rule.whole_words)?,
        })
    }

    /// Appends the tokens of `text`.
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) {
        let mut words = PreTokenizedString::from(text);
        let cut = self
            .words
            .iter()
            .try_for_each(|split| split.pre_tokenize(&mut words))
            .and_then(|()| self.letters.pre_tokenize(&mut words))
            .and_then(|()| words.tokenize(|word| self.bpe.tokenize(word.get())));
        match cut {
            Ok(()) => ids.extend(
                words
                    .get_splits(OffsetReferential::Original, OffsetType::Byte)
                    .into_iter()
                    .flat_map(|(_, _, tokens)| tokens.iter().flatten())
                    .map(|token| token.id),
            ),
            // Not seen to happen: the expressions are ours and the merges were checked. Single bytes are always right,
            // if long.
            Err(_) => ids.extend(text.bytes().filter_map(|byte| {
                self.bpe
                    .token_to_id(CHARS[byte as usize].encode_utf8(&mut [0; 4]))
            })),
        }
    }
}

/// The merges as the `tokenizers` crate wants them, checked here because it names a missing token without its place.
///
/// Control tokens are kept out, so that no text of a stranger can spell one.
fn bpe(source: TextSource, whole_words: bool) -> Result<BPE, TextError> {
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
        .ignore_merges(whole_words)
        .build()
        .map_err(|error| TextError::Vocabulary(error.to_string()))
}

/// The two tokens of `a b`. The space is not at the start: a token may itself begin with one.
fn halves(merge: &str) -> Option<(&str, &str)> {
    let first = merge.chars().next()?.len_utf8();
    let cut = first + merge[first..].find(' ')?;
    Some((&merge[..cut], &merge[cut + 1..]))
}
