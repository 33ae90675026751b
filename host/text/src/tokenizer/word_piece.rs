//! WordPiece (`bert`): text is cleaned and cut into words, a word into the longest pieces there are.
//!
//! All of it goes a character at a time, on the tables of the `tokenizers` crate. What that crate itself does for it keeps
//! some fifty bytes for each byte of the text, and needs the square of a word's length.

use super::TextSource;
use super::sink::{Full, Sink};
use super::vocabulary::{Kind, kind_of};
use crate::TextError;
use ahash::AHashMap;
use unicode_categories::UnicodeCategories;
use unicode_normalization_alignments::UnicodeNormalization;

/// What a piece at the beginning of a word has in front of it in GGUF files; the others have nothing.
const WORD: &str = "\u{2581}";
/// Characters of a word at most; a longer one is unknown, as in BERT.
const WORD_CHARS_MAX: usize = 100;

/// The pieces by text, those that begin a word apart from those that go on with one.
pub(super) struct WordPiece {
    is_cased: bool,
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
            is_cased,
            begin,
            go_on,
            longest,
            unknown,
        })
    }

    /// Appends the tokens of `text`.
    pub(super) fn encode(&self, text: &str, sink: &mut Sink) -> Result<(), Full> {
        let mut each = |word: Option<&str>| match word {
            Some(word) => self.encode_word(word, sink),
            None => sink.push(self.unknown),
        };
        match self.is_cased {
            true => each_word(cleaned(text), &mut each),
            false => each_word(folded(cleaned(text)), &mut each),
        }
    }

    /// The longest piece that begins the word, then the longest that goes on, until nothing is left; one unknown token
    /// where there is none.
    fn encode_word(&self, word: &str, sink: &mut Sink) -> Result<(), Full> {
        // Only a whole word is given out: one that ends unknown is a single token, and may fit where its pieces do not.
        let mut ids = Vec::new();
        let mut rest = word;
        while !rest.is_empty() {
            let known = match rest.len() == word.len() {
                true => &self.begin,
                false => &self.go_on,
            };
            let longest = (1..=rest.len().min(self.longest)).rev();
            let found = longest
                .filter_map(|bytes| rest.split_at_checked(bytes))
                .find_map(|(piece, rest)| known.get(piece).map(|id| (*id, rest)));
            let Some((id, left)) = found else {
                return sink.push(self.unknown);
            };
            ids.push(id);
            rest = left;
        }
        sink.extend(ids)
    }
}

/// The text without control characters, with one kind of space, and with spaces around ideographs.
fn cleaned(text: &str) -> impl Iterator<Item = char> {
    let is_removed = |c: &char| match c {
        '\t' | '\n' | '\r' => false,
        '\0' | '\u{fffd}' => true,
        c => c.is_other(),
    };
    let kept = text.chars().filter(move |c| !is_removed(c));
    kept.flat_map(|c| {
        let around = is_ideograph(c).then_some(' ');
        let c = if c.is_whitespace() { ' ' } else { c };
        around.into_iter().chain([c]).chain(around)
    })
}

/// Small letters without accents.
fn folded(characters: impl Iterator<Item = char>) -> impl Iterator<Item = char> {
    let letters = characters.nfd().map(|(c, _)| c);
    letters
        .filter(|c| !c.is_mark_nonspacing())
        .flat_map(char::to_lowercase)
}

/// What BERT calls Chinese: the ideographs that are written without spaces.
fn is_ideograph(c: char) -> bool {
    matches!(
        c,
        '\u{4e00}'..='\u{9fff}'
            | '\u{3400}'..='\u{4dbf}'
            | '\u{20000}'..='\u{2a6df}'
            | '\u{2a700}'..='\u{2b73f}'
            | '\u{2b740}'..='\u{2b81f}'
            | '\u{2b920}'..='\u{2ceaf}'
            | '\u{f900}'..='\u{faff}'
            | '\u{2f800}'..='\u{2fa1f}'
    )
}

/// Hands every word to `each`, in order: what is between spaces, and each punctuation character. None for one that is
/// too long to be known.
fn each_word<E>(
    characters: impl Iterator<Item = char>,
    each: &mut impl FnMut(Option<&str>) -> Result<(), E>,
) -> Result<(), E> {
    let mut word = Word::default();
    for c in characters {
        let is_punctuation = c.is_ascii_punctuation() || c.is_punctuation();
        if !is_punctuation && !c.is_whitespace() {
            word.push(c);
            continue;
        }
        word.end(each)?;
        if is_punctuation {
            each(Some(c.encode_utf8(&mut [0; 4])))?;
        }
    }
    word.end(each)
}

/// A word so far. Of one that is too long only the length is kept.
#[derive(Default)]
struct Word {
    text: String,
    chars: usize,
}

impl Word {
    fn push(&mut self, c: char) {
        self.chars += 1;
        if self.chars <= WORD_CHARS_MAX {
            self.text.push(c);
        }
    }

    fn end<E>(&mut self, each: &mut impl FnMut(Option<&str>) -> Result<(), E>) -> Result<(), E> {
        let ended = match self.chars {
            0 => Ok(()),
            1..=WORD_CHARS_MAX => each(Some(&self.text)),
            _ => each(None),
        };
        self.text.clear();
        self.chars = 0;
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::normalizers::bert::BertNormalizer;
    use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
    use tokenizers::tokenizer::{
        Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
    };

    /// The words by the `tokenizers` crate.
    fn reference(text: &str, is_cased: bool) -> Vec<Option<String>> {
        let normalizer = BertNormalizer::new(true, true, None, !is_cased);
        let mut words = PreTokenizedString::from(text);
        words.normalize(|text| normalizer.normalize(text)).unwrap();
        BertPreTokenizer.pre_tokenize(&mut words).unwrap();
        let words = words.get_splits(OffsetReferential::Normalized, OffsetType::None);
        let kept = |word: &str| (word.chars().count() <= WORD_CHARS_MAX).then(|| word.to_owned());
        words.into_iter().map(|(word, _, _)| kept(word)).collect()
    }

    #[test]
    fn words_are_those_of_the_tokenizers_crate() {
        // Every assigned plane, and what normalising moves, grows, shrinks or removes.
        let units = [
            "a",
            "É",
            "e\u{301}\u{323}",
            "\u{301}",
            "\u{302e}",
            "İ",
            "ǅ",
            "ß",
            "日",
            "\u{2f800}",
            "한",
            "각",
            "ﬁ",
            "!",
            "。",
            "$",
            "\u{2014}",
            " ",
            "\t",
            "\u{a0}",
            "\u{85}",
            "\u{2028}",
            "\0",
            "\u{200d}",
            "\u{fffd}",
            "\u{e000}",
            "\u{34f}",
            "\u{1d165}",
            "🚀",
            "Σ",
            "\u{f900}",
        ];
        let mut state = 3_u64;
        let mut next = |below: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        for _ in 0..20_000 {
            let mut text = String::new();
            for _ in 0..next(8) {
                let any = char::from_u32(next(0x30000) as u32)
                    .unwrap_or('a')
                    .to_string();
                let unit = if next(4) == 0 {
                    any.as_str()
                } else {
                    units[next(units.len())]
                };
                let run = if next(9) == 0 {
                    99 + next(4)
                } else {
                    1 + next(2)
                };
                text.push_str(&unit.repeat(run));
            }
            for is_cased in [true, false] {
                let mut words = Vec::new();
                let mut each = |word: Option<&str>| {
                    words.push(word.map(str::to_owned));
                    Ok::<(), ()>(())
                };
                let ended = match is_cased {
                    true => each_word(cleaned(&text), &mut each),
                    false => each_word(folded(cleaned(&text)), &mut each),
                };
                assert_eq!(ended, Ok(()));
                assert_eq!(words, reference(&text, is_cased), "{text:?}");
            }
        }
    }
}
