//! Stop strings across the borders of chunks.

/// Looks for stop strings in a text that comes in pieces, and holds back only what could still be the start of one.
///
/// The stop string that is complete first wins; of those complete at the same character, the longest. So the result
/// does not depend on how the text is cut. One step a byte and stop string, whatever they are.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<Stop>,
    /// Text not passed on yet: between pushes, the longest suffix of the text that starts a stop string.
    held: String,
    matched: bool,
}

/// What a [`StopMatcher`] makes of a piece.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StopOutput {
    /// Text that is safe to pass on: before any stop string, and no start of one.
    pub text: String,
    /// The stop string that was found. Nothing comes after it.
    pub matched: Option<String>,
}

impl StopMatcher {
    /// A matcher for `stops`. Empty strings are left out: they would stop every text before it began.
    pub fn new(stops: Vec<String>) -> StopMatcher {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty());
        StopMatcher {
            stops: stops.map(Stop::new).collect(),
            held: String::new(),
            matched: false,
        }
    }

    /// Adds a piece of text. After a match it returns nothing any more.
    pub fn push(&mut self, text: &str) -> StopOutput {
        if self.matched {
            return StopOutput::default();
        }
        let before = self.held.len();
        self.held.push_str(text);
        for (at, byte) in text.bytes().enumerate() {
            let complete = self.stops.iter_mut().filter_map(|stop| stop.step(byte));
            if let Some(stop) = complete.max_by_key(|stop| stop.len()) {
                let matched = Some(stop.to_owned());
                self.held.truncate(before + at + 1 - stop.len());
                self.matched = true;
                return StopOutput {
                    text: std::mem::take(&mut self.held),
                    matched,
                };
            }
        }
        let started = self.stops.iter().map(|stop| stop.seen).max().unwrap_or(0);
        // What stays starts a stop string, so it starts at a character.
        let safe = self.held.len() - started;
        StopOutput {
            text: self.held.drain(..safe).collect(),
            matched: None,
        }
    }

    /// The text still held back when the input ends without a stop string.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// One stop string and how much of its start ends the text so far (Knuth, Morris and Pratt).
#[derive(Debug, Clone)]
struct Stop {
    text: String,
    borders: Vec<usize>, // [bytes], longest proper prefix of text[..=i] that is its suffix too
    seen: usize,         // < bytes
}

impl Stop {
    fn new(text: String) -> Stop {
        let mut stop = Stop {
            borders: Vec::with_capacity(text.len()),
            text,
            seen: 0,
        };
        // The borders of the string are what matching it against itself, one byte later, sees.
        stop.borders.push(0);
        for at in 1..stop.text.len() {
            stop.seen = stop.longer(stop.text.as_bytes()[at]);
            stop.borders.push(stop.seen);
        }
        stop.seen = 0;
        stop
    }

    /// Length of the longest start of the string that ends the text once `byte` is added.
    fn longer(&self, byte: u8) -> usize {
        let mut seen = self.seen;
        loop {
            if self.text.as_bytes()[seen] == byte {
                return seen + 1;
            }
            if seen == 0 {
                return 0;
            }
            seen = self.borders[seen - 1];
        }
    }

    /// Adds a byte of the text; returns the string when it is complete with it.
    fn step(&mut self, byte: u8) -> Option<&str> {
        self.seen = self.longer(byte);
        if self.seen < self.text.len() {
            return None;
        }
        self.seen = self.borders[self.seen - 1];
        Some(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same over the whole text at once: of all places where a stop string ends, the first.
    fn naive(stops: &[String], text: &str) -> (String, Option<String>) {
        let ends = (1..=text.len()).filter(|end| text.is_char_boundary(*end));
        for end in ends {
            let ending = stops.iter().filter(|stop| text[..end].ends_with(*stop));
            if let Some(stop) = ending.max_by_key(|stop| stop.len()) {
                return (text[..end - stop.len()].to_owned(), Some(stop.clone()));
            }
        }
        (text.to_owned(), None)
    }

    /// The longest end of `text` that starts a stop string, in bytes.
    fn held_back(stops: &[String], text: &str) -> usize {
        let starts = (0..text.len()).filter(|at| text.is_char_boundary(*at));
        let mut starts = starts.filter(|at| stops.iter().any(|s| s.starts_with(&text[*at..])));
        starts.next().map_or(0, |at| text.len() - at)
    }

    fn check(stops: &[String], text: &str, pieces: &[&str]) {
        let mut matcher = StopMatcher::new(stops.to_vec());
        let (mut out, mut matched, mut pushed) = (String::new(), None, String::new());
        for piece in pieces {
            let output = matcher.push(piece);
            pushed.push_str(piece);
            out.push_str(&output.text);
            if matched.is_none() && output.matched.is_none() {
                let held = held_back(stops, &pushed);
                assert_eq!(out.len(), pushed.len() - held, "{stops:?} in {pieces:?}");
            } else {
                let nothing = output == StopOutput::default();
                assert!(matched.is_none() || nothing, "nothing follows a match");
                matched = matched.or(output.matched);
            }
        }
        out.push_str(&matcher.finish());
        let expected = naive(stops, text);
        assert_eq!((out, matched), expected, "{stops:?} in {pieces:?}");
    }

    /// A small generator with a period of 2^64, enough to draw texts and cuts.
    fn next(state: &mut u64, below: usize) -> usize {
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) as usize % below
    }

    fn text(state: &mut u64, length: usize) -> String {
        let letters = ['a', 'b', 'é', '🚀'];
        (0..length)
            .map(|_| letters[next(state, 4).min(next(state, 4))])
            .collect()
    }

    #[test]
    fn pieces_give_what_the_whole_gives() {
        let mut state = 7;
        for _ in 0..20_000 {
            let stops = (0..next(&mut state, 4)).map(|_| {
                let length = 1 + next(&mut state, 5);
                text(&mut state, length)
            });
            let stops: Vec<String> = stops.collect();
            let length = next(&mut state, 16);
            let text = text(&mut state, length);
            let mut pieces = Vec::new();
            let mut rest = text.as_str();
            while !rest.is_empty() {
                let characters = 1 + next(&mut state, 4);
                let cut = rest
                    .char_indices()
                    .nth(characters)
                    .map_or(rest.len(), |(at, _)| at);
                pieces.push(&rest[..cut]);
                rest = &rest[cut..];
            }
            check(&stops, &text, &pieces);
        }
    }

    #[test]
    fn the_stop_that_is_complete_first_wins_however_the_text_is_cut() {
        let stops = ["abcd".to_owned(), "bc".to_owned()];
        check(&stops, "xabcd", &["xabcd"]);
        check(&stops, "xabcd", &["xab", "c", "d"]);
        assert_eq!(StopMatcher::new(stops.to_vec()).push("xabcd").text, "xa");
    }

    #[test]
    fn long_stops_and_long_texts_take_linear_time() {
        // 10^12 steps if every byte were compared with every byte of the stop string.
        let stop = "a".repeat(1 << 20) + "b";
        let mut matcher = StopMatcher::new(vec![stop]);
        let piece = "a".repeat(1 << 10);
        for _ in 0..1 << 11 {
            matcher.push(&piece);
        }
        assert_eq!(matcher.finish().len(), 1 << 20);
    }

    #[test]
    fn only_the_start_of_a_stop_is_held_back() {
        let mut matcher = StopMatcher::new(vec!["</s>".into()]);
        assert_eq!(matcher.push("hello <").text, "hello ");
        assert_eq!(matcher.push("b>").text, "<b>");
        assert_eq!(matcher.push("</s").text, "");
        assert_eq!(
            matcher.push("> more"),
            StopOutput {
                text: String::new(),
                matched: Some("</s>".into())
            }
        );
    }

    #[test]
    fn empty_stops_stop_nothing() {
        let mut matcher = StopMatcher::new(vec![String::new()]);
        assert_eq!(
            matcher.push("text"),
            StopOutput {
                text: "text".into(),
                matched: None
            }
        );
    }
}
