//! Merging a long text a window at a time, with exactly the result of merging it at once.
//!
//! Both kinds of byte-pair merging join, again and again, the best pair of neighbours there is, the leftmost of equals,
//! and what a pair is worth depends on the pair alone. It follows that a row of symbols is what merging its text gives
//! if and only if every two neighbours in it are what merging *their* text gives: as long as nothing is joined across a
//! symbol's edge, the stretches evolve as they would alone; and the first such joining would happen for its two symbols
//! alone as well. So two results that overlap in one symbol can be put together there.

use super::sink::{Full, Sink};

/// Bytes merged at once.
pub(super) const WINDOW_BYTES: usize = 16 << 10;
/// Bytes of memory that merging takes for each of them, beside the tokens.
pub(super) const MERGE_BYTES: usize = 160;

/// A part of a text that merging leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Symbol {
    /// Its token; none for a character that the vocabulary lacks.
    pub(super) id: Option<u32>,
    /// Its length in the text.
    pub(super) bytes: usize,
}

/// Appends the tokens of `text` that `merge(0, text)` would give. `append` adds those of one symbol, given with its text.
///
/// `merge` gets a stretch of the text, whose edges are never inside a character unless symbols are, and where it starts.
/// Windows are made larger only where the right edge of one is felt over a quarter of it, which takes a vocabulary made
/// for it.
pub(super) fn merge_in_windows(
    text: &[u8],
    mut window_bytes: usize,
    mut merge: impl FnMut(usize, &[u8]) -> Vec<Symbol>,
    append: impl Fn(&mut Sink, Symbol, &[u8]) -> Result<(), Full>,
    sink: &mut Sink,
) -> Result<(), Full> {
    let before = sink.len();
    loop {
        let mut append_all = |mut start: usize, symbols: &[Symbol]| {
            symbols.iter().try_for_each(|symbol| {
                let end = start + symbol.bytes;
                let part = &text[start..end];
                start = end;
                append(sink, *symbol, part)
            })
        };
        if merge_by(text, window_bytes, &mut merge, &mut append_all)? {
            return Ok(());
        }
        sink.truncate(before);
        window_bytes = window_bytes.saturating_mul(4);
    }
}

/// The same with windows of one size; `false` if two of them do not share a symbol.
fn merge_by(
    text: &[u8],
    window_bytes: usize,
    merge: &mut impl FnMut(usize, &[u8]) -> Vec<Symbol>,
    append: &mut impl FnMut(usize, &[Symbol]) -> Result<(), Full>,
) -> Result<bool, Full> {
    let (mut start, mut end) = (0, window_end(text, window_bytes));
    let mut symbols = merge(start, &text[start..end]);
    while end < text.len() {
        let (shared, shared_start) = symbol_at(&symbols, start, start + (end - start) / 4 * 3);
        // A symbol over half a window would make for slow progress.
        if shared_start <= start + (end - start) / 2 {
            return Ok(false);
        }
        let next_end = window_end(text, shared_start.saturating_add(window_bytes));
        let next = merge(shared_start, &text[shared_start..next_end]);
        if next.first() != symbols.get(shared) {
            return Ok(false);
        }
        append(start, &symbols[..shared])?;
        (start, end, symbols) = (shared_start, next_end, next);
    }
    append(start, &symbols)?;
    Ok(true)
}

/// The first place at or after `at` that is not inside a UTF-8 character.
fn window_end(text: &[u8], at: usize) -> usize {
    let is_continuation = |byte: &&u8| **byte & 0xc0 == 0x80;
    let inside = text
        .get(at..)
        .unwrap_or(&[])
        .iter()
        .take(3)
        .take_while(is_continuation);
    at.saturating_add(inside.count()).min(text.len())
}

/// The symbol that reaches over `at`, and where it starts; the first starts at `start`.
fn symbol_at(symbols: &[Symbol], mut start: usize, at: usize) -> (usize, usize) {
    for (index, symbol) in symbols.iter().enumerate() {
        if start + symbol.bytes > at {
            return (index, start);
        }
        start += symbol.bytes;
    }
    (0, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Joins the pair of neighbours with the least rank, the leftmost of equals, until none has a rank.
    fn merge_naively(rank: &dyn Fn(&[u8]) -> Option<u32>, text: &[u8]) -> Vec<Symbol> {
        let mut ends: Vec<usize> = (0..=text.len()).collect();
        loop {
            let pairs = ends.windows(3).enumerate();
            let ranked = pairs.filter_map(|(at, e)| rank(&text[e[0]..e[2]]).map(|r| (r, at)));
            let Some((_, at)) = ranked.min() else {
                let symbol = |pair: &[usize]| Symbol {
                    id: Some(0),
                    bytes: pair[1] - pair[0],
                };
                return ends.windows(2).map(symbol).collect();
            };
            ends.remove(at + 1);
        }
    }

    fn next(state: &mut u64, below: usize) -> usize {
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) as usize % below
    }

    /// Vocabularies drawn at random on two letters and windows of a few bytes: the edges matter everywhere.
    #[test]
    fn windows_give_what_the_whole_gives() {
        let mut state = 5;
        let mut windows = 0;
        for _ in 0..3_000 {
            let mut ranks = std::collections::HashMap::new();
            for rank in 0..2 + next(&mut state, 12) {
                let bytes = 2 + next(&mut state, 5);
                let token: Vec<u8> = (0..bytes).map(|_| b"ab"[next(&mut state, 2)]).collect();
                ranks.entry(token).or_insert(rank as u32);
            }
            let rank = |text: &[u8]| ranks.get(text).copied();
            let bytes = next(&mut state, 80);
            let text: Vec<u8> = (0..bytes).map(|_| b"ab"[next(&mut state, 2)]).collect();
            let whole = merge_naively(&rank, &text);
            for window_bytes in [4, 7, 16, 32] {
                let merge = |start: usize, part: &[u8]| {
                    windows += 1;
                    assert_eq!(&text[start..start + part.len()], part);
                    merge_naively(&rank, part)
                };
                // The lengths of the symbols stand for their tokens.
                let append = |sink: &mut Sink, symbol: Symbol, part: &[u8]| {
                    assert_eq!(symbol.bytes, part.len());
                    sink.push(symbol.bytes as u32)
                };
                let mut sink = Sink::new(usize::MAX, 0);
                let ended = merge_in_windows(&text, window_bytes, merge, append, &mut sink);
                assert_eq!(ended, Ok(()));
                let expected: Vec<u32> = whole.iter().map(|symbol| symbol.bytes as u32).collect();
                assert_eq!(
                    sink.into_ids(),
                    expected,
                    "{ranks:?} on {text:?} by {window_bytes}"
                );
            }
        }
        assert!(windows > 30_000, "{windows} windows: nothing was cut");
    }

    #[test]
    fn a_window_does_not_end_inside_a_character() {
        let text = "aé日🚀".as_bytes();
        let ends: Vec<usize> = (0..12).map(|at| window_end(text, at)).collect();
        assert_eq!(ends, [0, 1, 3, 3, 6, 6, 6, 10, 10, 10, 10, 10]);
    }
}
