//! Texts that may also be given as tokens, one or several.

use super::entries;
use super::number::{Number, TokenId};
use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Unexpected, Visitor};
use std::fmt;

/// Text, or the ids of its tokens.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::ingress) enum TextOrTokens {
    Text(String),
    Tokens(Vec<u32>),
}

impl TextOrTokens {
    pub(in crate::ingress) fn is_empty(&self) -> bool {
        match self {
            TextOrTokens::Text(text) => text.is_empty(),
            TextOrTokens::Tokens(tokens) => tokens.is_empty(),
        }
    }
}

/// Text, token ids, or a list of at most `MAX` of either.
#[derive(Debug)]
pub(in crate::ingress) struct Inputs<const MAX: usize>(pub(in crate::ingress) Vec<TextOrTokens>);

impl<'de, const MAX: usize> Deserialize<'de> for Inputs<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InputsVisitor<const MAX: usize>;
        impl<'de, const MAX: usize> Visitor<'de> for InputsVisitor<MAX> {
            type Value = Inputs<MAX>;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("text, a list of token ids, or a list of these")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                self.visit_string(text.to_owned())
            }
            fn visit_string<E: de::Error>(self, text: String) -> Result<Self::Value, E> {
                Ok(Inputs(vec![TextOrTokens::Text(text)]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                Ok(Inputs(match seq.next_element()? {
                    None => Vec::new(),
                    Some(Entry::Token(id)) => {
                        let ids: Vec<TokenId> = entries(seq, vec![TokenId(id)], usize::MAX)?;
                        let ids = ids.into_iter().map(|id| id.0).collect();
                        vec![TextOrTokens::Tokens(ids)]
                    }
                    Some(Entry::Input(first)) => {
                        let inputs: Vec<Input> = entries(seq, vec![Input(first)], MAX)?;
                        inputs.into_iter().map(|input| input.0).collect()
                    }
                }))
            }
        }
        deserializer.deserialize_any(InputsVisitor::<MAX>)
    }
}

/// The first entry of a list decides what the list is of.
enum Entry {
    Token(u32),
    Input(TextOrTokens),
}

struct Input(TextOrTokens);

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Input, D::Error> {
        deserializer
            .deserialize_any(EntryVisitor {
                wanted: "text or a list of token ids",
                takes_ids: false,
            })
            .map(|entry| match entry {
                Entry::Input(input) => Input(input),
                Entry::Token(id) => Input(TextOrTokens::Tokens(vec![id])), // not with `takes_ids` off
            })
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Entry, D::Error> {
        deserializer.deserialize_any(EntryVisitor {
            wanted: "text, a token id or a list of token ids",
            takes_ids: true,
        })
    }
}

struct EntryVisitor {
    wanted: &'static str,
    takes_ids: bool,
}

impl<'de> Visitor<'de> for EntryVisitor {
    type Value = Entry;
    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.wanted)
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<Entry, E> {
        self.visit_string(text.to_owned())
    }
    fn visit_string<E: de::Error>(self, text: String) -> Result<Entry, E> {
        Ok(Entry::Input(TextOrTokens::Text(text)))
    }
    fn visit_u64<E: de::Error>(self, id: u64) -> Result<Entry, E> {
        match u32::try_from(id) {
            Ok(id) if self.takes_ids => Ok(Entry::Token(id)),
            _ => Err(E::invalid_type(Unexpected::Unsigned(id), &self)),
        }
    }
    fn visit_f64<E: de::Error>(self, id: f64) -> Result<Entry, E> {
        let wrong = || E::invalid_type(Unexpected::Float(id), &self);
        let id = Number::of(id).count().ok_or_else(wrong)?;
        self.visit_u64(id.into())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Entry, A::Error> {
        let ids: Vec<TokenId> = entries(seq, Vec::new(), usize::MAX)?;
        let ids = ids.into_iter().map(|id| id.0).collect();
        Ok(Entry::Input(TextOrTokens::Tokens(ids)))
    }
}
