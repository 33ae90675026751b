//! The checked vocabulary: what bytes each token stands for, which are control tokens, which end a generation.

use super::{Family, TextSource, byte_level};
use crate::TextError;
use std::collections::BTreeSet;

/// The largest vocabulary that is accepted; the largest known has 262,144 tokens.
const TOKENS_MAX: usize = 1 << 24;

/// Names of tokens that end a turn or a text in the models people run. They are control tokens even where the file does
/// not say so: nobody means them otherwise.
const END_NAMES: [&str; 16] = [
    "<|im_end|>",
    "<end_of_turn>",
    "<|eot_id|>",
    "<|eom_id|>",
    HARMONY_END,
    HARMONY_RETURN,
    HARMONY_CALL,
    "<|calls|>",
    "<|flush|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end_of_turn|>",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
    "<turn|>",
    "<|tool_response>",
];
/// The same for names that count only if the token is a control token: some vocabularies have `</s>` as the HTML tag.
const END_NAMES_OF_CONTROL: [&str; 6] = ["</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"];
// With both of the others in the vocabulary, the first ends a message within a turn and not the turn.
const HARMONY_END: &str = "<|end|>";
const HARMONY_RETURN: &str = "<|return|>";
const HARMONY_CALL: &str = "<|call|>";

pub(super) const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
pub(super) const UNKNOWN: i32 = 2;
const BYTE: i32 = 6;

/// How a token is met in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    /// One byte, for what no other token has.
    Byte,
    /// Part of the text, but never built by merges.
    UserDefined,
    /// No part of the text.
    Control,
}

/// How the token at `id` is met. `bos`, `eos`, `eot` and `sep` are control tokens whatever their type says.
pub(super) fn kind_of(source: &TextSource, id: usize) -> Kind {
    let named = [source.bos, source.eos, source.eot, source.sep];
    if named
        .into_iter()
        .flatten()
        .any(|named| named as usize == id)
    {
        return Kind::Control;
    }
    let token = source.tokens[id].as_str();
    match source.token_types.get(id) {
        Some(&(CONTROL | UNKNOWN)) => Kind::Control,
        _ if END_NAMES.contains(&token) => Kind::Control,
        Some(&USER_DEFINED) => Kind::UserDefined,
        Some(&BYTE) => Kind::Byte,
        // Files without types are old SentencePiece ones.
        None if source.model == "llama" && byte_of(token).is_some() => Kind::Byte,
        _ => Kind::Normal,
    }
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
    pub(super) fn new(source: &TextSource, family: Family) -> Result<Vocabulary, TextError> {
        let tokens = source.tokens.len();
        if tokens == 0 || tokens > TOKENS_MAX {
            return Err(TextError::VocabularySize { tokens });
        }
        let lengths = [
            ("types", source.token_types.len()),
            ("scores", source.scores.len()),
        ];
        for (what, found) in lengths {
            // Only SentencePiece needs scores, and files without types have normal tokens only.
            let is_needed = what == "scores" && family == Family::SentencePiece;
            if found != tokens && (found != 0 || is_needed) {
                return Err(TextError::LengthMismatch {
                    what,
                    found,
                    tokens,
                });
            }
        }
        let mut vocabulary = Vocabulary {
            bytes: Vec::new(),
            ends: Vec::with_capacity(tokens),
            kinds: Vec::with_capacity(tokens),
            names: Vec::new(),
            end: [source.eos, source.eot].into_iter().flatten().collect(),
        };
        for (id, token) in source.tokens.iter().enumerate() {
            vocabulary.push(token, kind_of(source, id), family);
        }
        vocabulary.end_after_calls();
        Ok(vocabulary)
    }

    fn push(&mut self, token: &str, kind: Kind, family: Family) {
        match kind {
            Kind::Control => {
                let id = self.len();
                self.names.push((id, token.to_owned()));
                if END_NAMES.contains(&token) || END_NAMES_OF_CONTROL.contains(&token) {
                    self.end.insert(id);
                }
            }
            Kind::Byte => self.bytes.extend(byte_of(token)),
            Kind::UserDefined => self.bytes.extend_from_slice(token.as_bytes()),
            Kind::Normal if family == Family::ByteLevel => {
                byte_level::append_bytes(token, &mut self.bytes)
            }
            Kind::Normal => self
                .bytes
                .extend_from_slice(token.replace('\u{2581}', " ").as_bytes()),
        }
        self.kinds.push(kind);
        // A vocabulary of 4 GiB cannot come from a file we accept; saturating keeps the lookup in bounds all the same.
        self.ends
            .push(u32::try_from(self.bytes.len()).unwrap_or(u32::MAX));
    }

    /// Takes `<|end|>` back where `<|return|>` and `<|call|>` end turns.
    fn end_after_calls(&mut self) {
        let named = |wanted| self.names.iter().find(move |(_, name)| name == wanted);
        if named(HARMONY_RETURN).and(named(HARMONY_CALL)).is_some()
            && let Some((id, _)) = named(HARMONY_END)
        {
            self.end.remove(id);
        }
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

    pub(super) fn ends_of_generation(&self) -> impl Iterator<Item = u32> {
        self.end.iter().copied()
    }
}

/// The byte of a token like `<0x0A>`.
pub(super) fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let two = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    two.then(|| u8::from_str_radix(digits, 16).ok())?
}
