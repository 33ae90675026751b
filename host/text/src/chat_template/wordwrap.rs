//! The `wordwrap` filter, which is Python's `textwrap`.

use super::arguments::{Arguments, invalid};
use minijinja::value::Value;
use minijinja::{Error, State};

/// `text | wordwrap(width=79, break_long_words=true, wrapstring="\n", break_on_hyphens=true)`.
pub(super) fn wordwrap(state: &State, text: &str, args: &[Value]) -> Result<Value, Error> {
    let names = [
        "width",
        "break_long_words",
        "wrapstring",
        "break_on_hyphens",
    ];
    let args = Arguments::bind(args, names)?;
    let width = usize::try_from(args.number(0)?.unwrap_or(79)).unwrap_or(0);
    if width == 0 {
        return Err(invalid("'width' must be at least 1"));
    }
    let wrap = Wrap {
        width,
        breaks_words: args.truth(1, true),
        breaks_hyphens: args.truth(3, true),
    };
    let between = args.text_or(2, "\n")?;
    // Every letter may become a line.
    let bytes = text.len().saturating_mul(32 + between.len());
    state.consume_fuel(bytes as u64 / 64)?;
    let lines: Vec<String> = text
        .lines()
        .map(|line| wrap.line(line).join(between))
        .collect();
    Ok(lines.join(between).into())
}

struct Wrap {
    width: usize,
    /// Cuts words that are longer than a line.
    breaks_words: bool,
    /// Cuts words after their hyphens.
    breaks_hyphens: bool,
}

impl Wrap {
    /// The lines that one becomes.
    fn line(&self, line: &str) -> Vec<String> {
        let letters: Vec<char> = line.chars().collect();
        let mut chunks = self.chunks(&letters);
        chunks.reverse();
        let mut lines: Vec<String> = Vec::new();
        while let Some(chunk) = chunks.pop() {
            if is_space(chunk) && !lines.is_empty() {
                continue;
            }
            chunks.push(chunk);
            let mut current: Vec<char> = Vec::new();
            while let Some(chunk) = chunks.pop_if(|chunk| current.len() + chunk.len() <= self.width)
            {
                current.extend(chunk);
            }
            if chunks.last().is_some_and(|chunk| chunk.len() > self.width) {
                self.long_word(&mut chunks, &mut current);
            }
            let line: String = current.iter().collect();
            let kept = line.trim_end();
            if !kept.is_empty() {
                lines.push(kept.to_owned());
            }
        }
        lines
    }

    /// As much of a word as fits, where it would not fit on a line of its own.
    fn long_word(&self, chunks: &mut Vec<&[char]>, current: &mut Vec<char>) {
        let Some(word) = chunks.pop() else { return };
        if !self.breaks_words {
            match current.is_empty() {
                true => current.extend(word),
                false => chunks.push(word),
            }
            return;
        }
        let mut room = self.width - current.len();
        if self.breaks_hyphens && word.len() > room {
            let hyphen = word[..room].iter().rposition(|letter| *letter == '-');
            let hyphen = hyphen.filter(|at| word[..*at].iter().any(|letter| *letter != '-'));
            room = hyphen.map_or(room, |at| at + 1);
        }
        let (fits, rest) = word.split_at(room);
        current.extend(fits);
        chunks.push(rest);
    }

    /// Runs of white space and words, or the parts of words that end with a hyphen between letters.
    fn chunks<'l>(&self, letters: &'l [char]) -> Vec<&'l [char]> {
        let mut chunks = Vec::new();
        let mut begin = 0;
        for at in 1..=letters.len() {
            let is_end = at == letters.len()
                || letters[at].is_whitespace() != letters[begin].is_whitespace()
                || self.ends_part(letters, at);
            if is_end {
                chunks.push(&letters[begin..at]);
                begin = at;
            }
        }
        chunks
    }

    /// Whether a part ends before `at`.
    fn ends_part(&self, letters: &[char], at: usize) -> bool {
        let is_letter = |at: Option<usize>| {
            at.and_then(|at| letters.get(at))
                .is_some_and(|letter| letter.is_alphabetic())
        };
        let follows_hyphen = at
            .checked_sub(1)
            .is_some_and(|before| letters[before] == '-');
        self.breaks_hyphens
            && follows_hyphen
            && is_letter(at.checked_sub(2))
            && is_letter(Some(at))
            && is_letter(Some(at + 1))
    }
}

fn is_space(chunk: &[char]) -> bool {
    chunk.first().is_some_and(|letter| letter.is_whitespace())
}
