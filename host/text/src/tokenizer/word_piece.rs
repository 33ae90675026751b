//! WordPiece (`bert`): text is cleaned and cut into words by the `tokenizers` crate, a word into the longest pieces there are.
//!
//! The cutting of a word is written here: its cost is bounded by the longest piece, where the crate's grows with the
//! square of the word.

use super::TextSource;
use super::vocabulary::{Kind, kind_of};
use crate::TextError;
use ahash::AHashMap;
use tokenizers::normalizers::bert::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::tokenizer::{
    Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
};

/// What a piece at the beginning of a word has in front of it in GGUF files; the others have nothing.
const WORD: &str = "\u{2581}";
/// Characters of a word at most; a longer one is unknown, as in BERT.
const WORD_CHARS_MAX: usize = 100;

/// The pieces by text, those that begin a word apart from those that go on with one.
pub(super) struct WordPiece {
    normalizer: BertNormalizer,
    begin: AHashMap<String, u32>,
    go_on: AHashMap<String, u32>,
    longest: usize, // bytes
    unknown: u32,
}

impl std::fmt::Debug for WordPiece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WordPiece").finish_non_exhaustive()
    }
}

impl WordPiece {
    pub(super) fn new(source: &TextSource) -> Result<WordPiece, TextError> {
        let Some(unknown) = source.unk else {
            let why = "it has no unknown token";
            return Err(TextError::Vocabulary(why.into()));
        };
        let (mut begin, mut go_on) = (AHashMap::new(), AHashMap::new());
        let mut longest = 0;
        for (id, token) in (0_u32..).zip(&source.tokens) {
            if kind_of(source, id as usize) != Kind::Normal {
                continue;
            }
            let (pieces, piece) = match token.strip_prefix(WORD) {
                Some(piece) => (&mut begin, piece),
                None => (&mut go_on, token.as_str()),
            };
            longest = longest.max(piece.len());
            pieces.entry(piece.to_owned()).or_insert(id);
        }
        // Files do not say whether case counts. A vocabulary without a capital letter could not tell.
        let is_cased = begin
            .keys()
            .any(|piece| piece.contains(|c: char| c.is_ascii_uppercase()));
        Ok(WordPiece {
            normalizer: BertNormalizer::new(true, true, None, !is_cased),
            begin,
            go_on,
            longest,
            unknown,
        })
    }

    /// Appends the tokens of `text`.
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) {
        let mut words = PreTokenizedString::from(text);
        let cut = words
            .normalize(|text| self.normalizer.normalize(text))
            .and_then(|()| BertPreTokenizer.pre_tokenize(&mut words));
        debug_assert!(cut.is_ok(), "neither of them has an error to give");
        let words = words.get_splits(OffsetReferential::Normalized, OffsetType::None);
        for (word, _, _) in words {
            self.encode_word(word, ids);
        }
    }

    /// The longest piece that begins the word, then the longest that goes on, until nothing is left; one unknown token
    /// where there is none.
    fn encode_word(&self, word: &str, ids: &mut Vec<u32>) {
        let before = ids.len();
        let mut rest = word;
        if word.chars().count() > WORD_CHARS_MAX {
            return ids.push(self.unknown);
        }
        while !rest.is_empty() {
            let pieces = match rest.len() == word.len() {
                true => &self.begin,
                false => &self.go_on,
            };
            let longest = (1..=rest.len().min(self.longest)).rev();
            let found = longest
                .filter_map(|bytes| rest.split_at_checked(bytes))
                .find_map(|(piece, rest)| pieces.get(piece).map(|id| (*id, rest)));
            let Some((id, left)) = found else {
                ids.truncate(before);
                return ids.push(self.unknown);
            };
            ids.push(id);
            rest = left;
        }
    }
}
