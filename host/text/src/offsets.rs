//! Where tokens begin in a text, in characters: in the one that they make, and in the one that they were made of.

use crate::Detokenizer;

/// Offsets of tokens in the text that they make, as a [`Detokenizer`] would give it.
///
/// ```
/// let mut offsets = realm_text::TextOffsets::default();
/// let crab = "🦀".as_bytes();
/// let tokens: [&[u8]; 4] = [b"a", &crab[..2], &crab[2..], b"b"];
/// assert_eq!(tokens.map(|bytes| offsets.push(bytes)), [0, 1, 1, 2]);
/// ```
#[derive(Debug, Default, Clone)]
pub struct TextOffsets {
    detokenizer: Detokenizer,
    chars: usize, // complete ones
}

impl TextOffsets {
    /// Characters that are complete.
    pub fn chars(&self) -> usize {
        self.chars
    }

    /// Adds a token's bytes. Returns the place of the character that the first of them belongs to.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        let Some((first, rest)) = bytes.split_first() else {
            return self.chars;
        };
        self.complete(&[*first]);
        // Either it is the last byte of a character, or one that waits for more has it.
        let offset = self.chars - usize::from(!self.detokenizer.is_waiting());
        self.complete(rest);
        offset
    }

    fn complete(&mut self, bytes: &[u8]) {
        self.chars += self.detokenizer.push(bytes).chars().count();
    }
}

/// What a token has to do with the text that it was made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Its bytes are in the text, perhaps but for a space in front.
    Text,
    /// Its name may be in the text.
    Control,
    /// It stands for one byte of the text, whichever it is.
    Unknown,
}

/// A place in a text, which moves on with every token made of it.
#[derive(Debug)]
pub(crate) struct Cursor<'t> {
    text: &'t [u8],
    at: usize,
    chars: usize, // that begin before `at`
}

impl<'t> Cursor<'t> {
    /// At the start.
    pub(crate) fn new(text: &'t str) -> Cursor<'t> {
        Cursor {
            text: text.as_bytes(),
            at: 0,
            chars: 0,
        }
    }

    /// Moves on past a token's bytes. Returns the place of the character that it begins in.
    pub(crate) fn pass(&mut self, bytes: &[u8], origin: Origin) -> usize {
        /// Bytes without a token that may lie between two tokens; to look further would take the square of the text.
        const SKIPPED_MAX: usize = 64;
        let rest = &self.text[self.at..];
        let unspaced = bytes.strip_prefix(b" ").filter(|it| rest.starts_with(it));
        let length = match origin {
            _ if rest.starts_with(bytes) => bytes.len(),
            Origin::Unknown => rest.len().min(1),
            Origin::Control => 0,
            Origin::Text => match unspaced {
                Some(unspaced) => unspaced.len(),
                None => {
                    let places = rest.windows(bytes.len()).take(SKIPPED_MAX);
                    let found = places.enumerate().find(|(_, place)| *place == bytes);
                    let skipped = found.map(|(skipped, _)| skipped);
                    self.advance(skipped.unwrap_or(0));
                    skipped.map_or(0, |_| bytes.len())
                }
            },
        };
        let is_inside = self.text.get(self.at).is_some_and(|byte| !begins(*byte));
        let offset = self.chars - usize::from(is_inside);
        self.advance(length);
        offset
    }

    fn advance(&mut self, bytes: usize) {
        let passed = &self.text[self.at..self.at + bytes];
        self.chars += passed.iter().filter(|byte| begins(**byte)).count();
        self.at += bytes;
    }
}

/// Whether a byte of UTF-8 is the first of a character.
fn begins(byte: u8) -> bool {
    byte & 0xc0 != 0x80
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_character_begin_where_it_does() {
        let mut offsets = TextOffsets::default();
        let bytes = "é🚀x".as_bytes();
        let tokens = [&bytes[..1], &bytes[1..4], &bytes[4..6], &bytes[6..]];
        assert_eq!(tokens.map(|token| offsets.push(token)), [0, 0, 1, 2]);
        assert_eq!(offsets.chars(), 3);
    }

    #[test]
    fn a_broken_character_is_one_that_counts() {
        let mut offsets = TextOffsets::default();
        // The start of a character that never ends, then a letter, then a byte that begins nothing, then a token without text.
        let tokens: [&[u8]; 5] = [b"a", b"\xf0\x9f", b"b", b"\x80", b""];
        assert_eq!(tokens.map(|token| offsets.push(token)), [0, 1, 2, 3, 4]);
        assert_eq!(offsets.chars(), "a\u{fffd}b\u{fffd}".chars().count());
    }

    fn places(text: &str, tokens: &[(&[u8], Origin)]) -> Vec<usize> {
        let mut cursor = Cursor::new(text);
        let places = tokens
            .iter()
            .map(|(bytes, origin)| cursor.pass(bytes, *origin));
        places.collect()
    }

    #[test]
    fn a_text_is_followed_past_what_it_does_not_have() {
        use Origin::{Control, Text, Unknown};
        let e = "é".as_bytes();
        let tokens: [(&[u8], Origin); 7] = [
            (b"<s>", Control),
            (b" na", Text),
            (&e[..1], Text),
            (&e[1..], Text),
            (b"<|end|>", Control),
            (b"<unk>", Unknown),
            (b" x", Text),
        ];
        assert_eq!(
            places("naé<|end|>? x", &tokens),
            [0, 0, 2, 2, 3, 10, 11],
            "the first token and the space before the second are not in the text, the name of the fifth is"
        );
        // Bytes without a token are left out by some tokenizers.
        assert_eq!(
            places("a\u{0}\u{0}b", &[(b"a", Text), (b"b", Text)]),
            [0, 3]
        );
        // Tokens of another text are no reason to leave this one.
        assert_eq!(
            places("ab", &[(b"z", Text), (b"a", Text), (b"zz", Text)]),
            [0, 0, 1]
        );
        assert_eq!(places("", &[(b"z", Text), (b"", Text)]), [0, 0]);
    }
}
