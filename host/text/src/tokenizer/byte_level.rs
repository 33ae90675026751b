//! Byte-level BPE (`gpt2`), by the `tokenizers` crate: text is cut into words, words into bytes, bytes are merged.

use super::TextSource;
use crate::TextError;
use std::sync::LazyLock;
use tokenizers::Model;
use tokenizers::models::bpe::{BPE, BpeBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel as BytesToChars;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::{
    OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior,
};

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A rule: names in files, expressions applied one after the other, and whether a word that is itself a token is taken
/// whole without merging.
struct Rule {
    names: &'static [&'static str],
    expressions: &'static [&'static str],
    whole_words: bool,
}

/// The rules by the names that GGUF files give them.
const RULES: [Rule; 6] = [
    Rule {
        names: &[
            "default", "gpt-2", "gpt2", "phi-2", "jina-es", "jina-de", "mpt", "olmo", "jais",
            "exaone",
        ],
        expressions: &[GPT2],
        whole_words: false,
    },
    Rule {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell"],
        expressions: &[r"\p{N}", GPT2],
        whole_words: false,
    },
    Rule {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "dbrx",
            "smaug-bpe",
        ],
        expressions: &[LLAMA3],
        whole_words: true,
    },
    Rule {
        names: &["qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan"],
        expressions: &[QWEN2],
        whole_words: false,
    },
    Rule {
        names: &["tekken"],
        expressions: &[TEKKEN],
        whole_words: true,
    },
    Rule {
        names: &["gpt-4o", "llama4"],
        expressions: &[GPT4O],
        whole_words: false,
    },
];

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
        let pre = source.pre.as_deref().unwrap_or("default");
        let rule = RULES
            .iter()
            .find(|rule| rule.names.contains(&pre))
            .ok_or_else(|| {
                let supported = RULES
                    .iter()
                    .flat_map(|rule| rule.names)
                    .copied()
                    .collect::<Vec<_>>()
                    .join(", ");
                TextError::UnknownPreTokenizer {
                    found: pre.to_owned(),
                    supported,
                }
            })?;
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
            // An expression gave up on a text made to exhaust it. Single bytes are always right, if long.
            Err(_) => ids.extend(text.bytes().filter_map(|byte| {
                self.bpe
                    .token_to_id(CHARS[byte as usize].encode_utf8(&mut [0; 4]))
            })),
        }
    }
}

/// The merges as the `tokenizers` crate wants them, checked here because it names a missing token without its place.
fn bpe(source: TextSource, whole_words: bool) -> Result<BPE, TextError> {
    // The first of two equal tokens is the one that merges make.
    let mut vocabulary = ahash::AHashMap::with_capacity(source.tokens.len());
    for (id, token) in (0_u32..).zip(source.tokens) {
        vocabulary.entry(token).or_insert(id);
    }
    let mut merges = Vec::with_capacity(source.merges.len());
    for (index, merge) in source.merges.into_iter().enumerate() {
        // The space of `a b` follows a first letter: a token may itself begin with one.
        let cut = merge
            .char_indices()
            .skip(1)
            .find(|(_, letter)| *letter == ' ')
            .map(|(at, _)| at);
        let parts = cut.map(|at| (merge[..at].to_owned(), merge[at + 1..].to_owned()));
        match parts {
            Some((left, right))
                if vocabulary.contains_key(&left)
                    && vocabulary.contains_key(&right)
                    && vocabulary.contains_key(&format!("{left}{right}")) =>
            {
                merges.push((left, right));
            }
            _ => return Err(TextError::BadMerge { index, merge }),
        }
    }
    // No cache: it would be shared by all tenants, and its timing would tell one what another has typed.
    BpeBuilder::new()
        .vocab_and_merges(vocabulary, merges)
        .cache_capacity(0)
        .ignore_merges(whole_words)
        .build()
        .map_err(|error| TextError::Vocabulary(error.to_string()))
}
