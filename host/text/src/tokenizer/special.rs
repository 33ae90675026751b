//! Tokens that are found in the text before any algorithm sees it: control tokens and user-defined ones.

use super::Specials;
use super::vocabulary::{Kind, Vocabulary};
use crate::TextError;
use aho_corasick::{AhoCorasick, MatchKind};

/// A part of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece<'t> {
    Special(u32),
    Text(&'t str),
}

/// All special tokens together, in bytes; the largest known vocabulary has some 100 KB. Bounds the automatons.
const SPECIAL_BYTES_MAX: usize = 16 << 20;

/// Finders of special tokens: the leftmost, and of those the longest. Linear in the text.
#[derive(Debug)]
pub(super) struct SpecialTokens {
    all: Finder,
    user_defined: Finder,
}

#[derive(Debug)]
struct Finder {
    automaton: AhoCorasick,
    ids: Vec<u32>,
}

impl Finder {
    fn new(tokens: &[String], ids: Vec<u32>) -> Result<Finder, TextError> {
        let bytes: usize = ids.iter().map(|id| tokens[*id as usize].len()).sum();
        if bytes > SPECIAL_BYTES_MAX {
            let why = format!(
                "its special tokens take {bytes} bytes; at most {SPECIAL_BYTES_MAX} are allowed"
            );
            return Err(TextError::Vocabulary(why));
        }
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(ids.iter().map(|id| tokens[*id as usize].as_bytes()))
            .map_err(|error| TextError::Vocabulary(error.to_string()))?;
        Ok(Finder { automaton, ids })
    }
}

impl SpecialTokens {
    pub(super) fn new(
        tokens: &[String],
        vocabulary: &Vocabulary,
    ) -> Result<SpecialTokens, TextError> {
        let of = |wanted: &[Kind]| {
            let ids = (0..vocabulary.len()).filter(|id| {
                wanted.contains(&vocabulary.kind(*id)) && !tokens[*id as usize].is_empty()
            });
            Finder::new(tokens, ids.collect())
        };
        Ok(SpecialTokens {
            all: of(&[Kind::Control, Kind::UserDefined])?,
            user_defined: of(&[Kind::UserDefined])?,
        })
    }

    /// Cuts `text` at special tokens. User-defined ones count always, control tokens only with [`Specials::Parse`].
    pub(super) fn split<'t>(
        &self,
        text: &'t str,
        specials: Specials,
    ) -> impl Iterator<Item = Piece<'t>> {
        let finder = match specials {
            Specials::Parse => &self.all,
            Specials::Literal => &self.user_defined,
        };
        let found = finder.automaton.find_iter(text).map(|found| {
            let id = finder.ids[found.pattern().as_usize()];
            (found.range(), Some(id))
        });
        let end = std::iter::once((text.len()..text.len(), None));
        let mut start = 0;
        found.chain(end).flat_map(move |(range, id)| {
            let before = &text[start..range.start];
            start = range.end;
            let before = (!before.is_empty()).then_some(Piece::Text(before));
            before.into_iter().chain(id.map(Piece::Special))
        })
    }
}
