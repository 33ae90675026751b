//! The checked vocabulary: what bytes each token stands for, which are control tokens, which end a generation.

use super::{TextSource, byte_level};
use crate::TextError;
use std::collections::BTreeSet;

/// The largest vocabulary that is accepted; the largest known has 262,144 tokens.
const TOKENS_MAX: usize = 1 << 24;

/// Control tokens that end a turn or a text in the models people run, whatever the file calls its `eos`.
const END_NAMES: [&str; 12] = [
    "<|im_end|>",
    "<end_of_turn>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end_of_turn|>",
    "<|return|>",
    "<EOT>",
    "</s>",
    "<eos>",
];

const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNKNOWN: i32 = 2;
const BYTE: i32 = 6;

/// How a token is met in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    /// Part of the text, but never built by merges.
    UserDefined,
    /// No part of the text.
    Control,
}

/// Tokens by id.
#[derive(Debug)]
pub(super) struct Vocabulary {
    bytes: Vec<u8>,            // of all tokens, one after the other
    ends: Vec<u32>,            // [tokens], where each token's bytes end
    kinds: Vec<Kind>,          // [tokens]
    names: Vec<(u32, String)>, // control tokens by id, ascending
    end: BTreeSet<u32>,
}

impl Vocabulary {
    /// Checks the lists of `source` against each other.
    pub(super) fn new(source: &TextSource, byte_level: bool) -> Result<Vocabulary, TextError> {
        let tokens = source.tokens.len();
        if tokens == 0 || tokens > TOKENS_MAX {
            return Err(TextError::VocabularySize { tokens });
        }
        let lengths = [
            ("types", source.token_types.len()),
            ("scores", source.scores.len()),
        ];
        for (what, found) in lengths {
            // gpt2 files need no scores, and files without types have normal tokens only.
            if found != tokens && (found != 0 || (what == "scores" && !byte_level)) {
                return Err(TextError::LengthMismatch {
                    what,
                    found,
                    tokens,
                });
            }
        }
        let named = [
            ("bos", source.bos),
            ("eos", source.eos),
            ("eot", source.eot),
            ("unk", source.unk),
            ("pad", source.pad),
        ];
        for (what, id) in named {
            if let Some(id) = id.filter(|id| *id as usize >= tokens) {
                return Err(TextError::SpecialOutOfRange { what, id, tokens });
            }
        }

        let mut vocabulary = Vocabulary {
            bytes: Vec::new(),
            ends: Vec::with_capacity(tokens),
            kinds: Vec::with_capacity(tokens),
            names: Vec::new(),
            end: [source.eos, source.eot].into_iter().flatten().collect(),
        };
        for (id, token) in (0_u32..).zip(&source.tokens) {
            let kind = source.token_types.get(id as usize).copied().unwrap_or(1);
            vocabulary.push(id, token, kind, byte_level);
        }
        Ok(vocabulary)
    }

    fn push(&mut self, id: u32, token: &str, kind: i32, byte_level: bool) {
        self.kinds.push(match kind {
            CONTROL | UNKNOWN => Kind::Control,
            USER_DEFINED => Kind::UserDefined,
            _ => Kind::Normal,
        });
        match kind {
            CONTROL | UNKNOWN => {
                self.names.push((id, token.to_owned()));
                if END_NAMES.contains(&token) {
                    self.end.insert(id);
                }
            }
            BYTE => self.bytes.extend(byte_of(token)),
            USER_DEFINED => self.bytes.extend_from_slice(token.as_bytes()),
            _ if byte_level => byte_level::append_bytes(token, &mut self.bytes),
            _ => self
                .bytes
                .extend_from_slice(token.replace('\u{2581}', " ").as_bytes()),
        }
        // A vocabulary of 4 GiB cannot come from a file we accept; saturating keeps the lookup in bounds all the same.
        self.ends
            .push(u32::try_from(self.bytes.len()).unwrap_or(u32::MAX));
    }

    pub(super) fn len(&self) -> u32 {
        self.ends.len() as u32
    }

    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(end) = self.ends.get(id) else {
            return &[];
        };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        self.bytes.get(start as usize..*end as usize).unwrap_or(&[])
    }

    pub(super) fn kind(&self, id: u32) -> Kind {
        self.kinds
            .get(id as usize)
            .copied()
            .unwrap_or(Kind::Control)
    }

    pub(super) fn control_name(&self, id: u32) -> Option<&str> {
        let at = self.names.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(&self.names[at].1)
    }

    pub(super) fn is_end(&self, id: u32) -> bool {
        self.end.contains(&id)
    }
}

/// The byte of a token like `<0x0A>`.
pub(super) fn byte_of(token: &str) -> Option<u8> {
    u8::from_str_radix(token.strip_prefix("<0x")?.strip_suffix('>')?, 16).ok()
}
