//! Bytes of tokens to text, a token at a time, without ever splitting a character.

/// Turns the bytes of successive tokens into text. What is not UTF-8 becomes U+FFFD exactly as
/// [`String::from_utf8_lossy`] has it, so the pieces joined equal the lossy text of all bytes joined.
#[derive(Debug, Default, Clone)]
pub struct Detokenizer {
    /// The start of a character whose rest may still come: at most 3 bytes.
    pending: Vec<u8>,
}

impl Detokenizer {
    /// A detokenizer at the start of a text.
    pub fn new() -> Detokenizer {
        Detokenizer::default()
    }

    /// Adds a token's bytes; returns the text that is complete now.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        let kept = loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    break 0;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    match error.error_len() {
                        Some(bad) => {
                            text.push(char::REPLACEMENT_CHARACTER);
                            rest = &after[bad..];
                        }
                        None => break after.len(),
                    }
                }
            }
        };
        self.pending.drain(..self.pending.len() - kept);
        text
    }

    /// Whether the rest of a character may still come.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.pending.is_empty()
    }

    /// The text of a character that was never completed; empty in well-formed text.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small generator with a period of 2^64, enough to place cuts.
    fn next(state: &mut u64) -> u64 {
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        *state >> 33
    }

    fn check(bytes: &[u8], state: &mut u64) {
        let mut detokenizer = Detokenizer::new();
        let mut text = String::new();
        let mut start = 0;
        while start < bytes.len() {
            let end = (start + 1 + next(state) as usize % 5).min(bytes.len());
            text.push_str(&detokenizer.push(&bytes[start..end]));
            start = end;
        }
        text.push_str(&detokenizer.finish());
        assert_eq!(text, String::from_utf8_lossy(bytes), "{bytes:?}");
    }

    #[test]
    fn pieces_joined_equal_the_lossy_whole() {
        let mut state = 1;
        for text in ["", "plain", "naïve — “quotes” …", "日本語", "👩‍👩‍👧‍👦 🚀"]
        {
            for _ in 0..20 {
                check(text.as_bytes(), &mut state);
            }
        }
        for _ in 0..3000 {
            let length = next(&mut state) as usize % 12;
            // Lead and continuation bytes are likely, so that broken characters of every kind come up.
            let bytes: Vec<u8> = (0..length)
                .map(|_| match next(&mut state) % 4 {
                    0 => b'a',
                    1 => 0x80 | (next(&mut state) % 64) as u8,
                    _ => 0xc0 | (next(&mut state) % 64) as u8,
                })
                .collect();
            check(&bytes, &mut state);
        }
    }

    #[test]
    fn a_character_waits_for_its_last_byte() {
        let mut detokenizer = Detokenizer::new();
        let bytes = "🚀".as_bytes();
        assert_eq!(detokenizer.push(&bytes[..3]), "");
        assert_eq!(detokenizer.push(&bytes[3..]), "🚀");
        assert_eq!(detokenizer.finish(), "");
    }
}
