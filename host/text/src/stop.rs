//! Stop strings across the borders of chunks.

/// Looks for stop strings in a text that comes in pieces. Holds back only what could still be the start of one.
///
/// The earliest match wins; of matches that start at the same place, the longest that is complete by then.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<String>,
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
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        StopMatcher {
            stops,
            held: String::new(),
            matched: false,
        }
    }

    /// Adds a piece of text.
    pub fn push(&mut self, text: &str) -> StopOutput {
        if self.matched {
            return StopOutput::default();
        }
        if self.stops.is_empty() {
            return StopOutput {
                text: text.to_owned(),
                matched: None,
            };
        }
        self.held.push_str(text);
        let found = self
            .stops
            .iter()
            .filter_map(|stop| {
                self.held
                    .find(stop)
                    .map(|at| (at, std::cmp::Reverse(stop.len()), stop))
            })
            .min();
        if let Some((at, _, stop)) = found {
            let matched = Some(stop.clone());
            self.held.truncate(at);
            self.matched = true;
            return StopOutput {
                text: std::mem::take(&mut self.held),
                matched,
            };
        }
        let rest = self.held.split_off(self.safe_bytes());
        StopOutput {
            text: std::mem::replace(&mut self.held, rest),
            matched: None,
        }
    }

    /// The text still held back when the input ends without a stop string.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Length of the held text without its longest suffix that starts a stop string.
    fn safe_bytes(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest.saturating_sub(1));
        (from..self.held.len())
            .filter(|at| self.held.is_char_boundary(*at))
            .find(|at| {
                self.stops
                    .iter()
                    .any(|stop| stop.starts_with(&self.held[*at..]))
            })
            .unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same over the whole text at once.
    fn naive(stops: &[&str], text: &str) -> (String, bool) {
        match stops.iter().filter_map(|stop| text.find(stop)).min() {
            Some(at) => (text[..at].to_owned(), true),
            None => (text.to_owned(), false),
        }
    }

    fn check(stops: &[&str], text: &str, piece: usize) {
        let mut matcher = StopMatcher::new(stops.iter().map(ToString::to_string).collect());
        let (mut out, mut matched) = (String::new(), false);
        let characters: Vec<char> = text.chars().collect();
        for piece in characters.chunks(piece) {
            let output = matcher.push(&piece.iter().collect::<String>());
            assert!(
                !matched || output == StopOutput::default(),
                "nothing comes after a match"
            );
            out.push_str(&output.text);
            matched |= output.matched.is_some();
        }
        if !matched {
            out.push_str(&matcher.finish());
        }
        assert_eq!(
            (out, matched),
            naive(stops, text),
            "{stops:?} in {text:?} by {piece}"
        );
    }

    #[test]
    fn pieces_give_what_the_whole_gives() {
        let texts = [
            "",
            "a",
            "abab",
            "abcabcabd",
            "xx\n\nyy",
            "aaaab",
            "né\u{301}né",
            "stop",
            "sstosstop!",
            "🚀🚀a",
        ];
        let stops: [&[&str]; 8] = [
            &[],
            &["b"],
            &["abd"],
            &["\n\n"],
            &["aab", "ab"],
            &["né"],
            &["stop", "top"],
            &["🚀a", "🚀🚀🚀"],
        ];
        for text in texts {
            for stops in stops {
                for piece in 1..=text.chars().count().max(1) {
                    check(stops, text, piece);
                }
            }
        }
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
