//! Long texts by windows against the same texts at once, on the vocabularies of real models.

#[path = "../../tests/common/mod.rs"]
mod common;

use super::byte_level::ByteLevel;
use super::sentence_piece::SentencePiece;
use super::sink::{Full, Sink};
use super::windows::WINDOW_BYTES;
use common::{cached, fixtures, source};

/// Several windows of each.
const BYTES: usize = 9 * WINDOW_BYTES + 1234;

fn next(state: &mut u64, below: usize) -> usize {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as usize % below
}

/// Texts without a place where anything cuts for certain, and some with: by name.
fn hostile() -> Vec<(String, String)> {
    let units = [
        "a",
        "ab",
        "aab",
        "A",
        " ",
        "  a",
        "\n",
        "\r\n",
        "\t",
        "0",
        "1234567890",
        "'",
        "'s",
        "<",
        "<|im_start|",
        "=-",
        "é",
        "e\u{301}",
        "\u{301}",
        "日",
        "日本語中文",
        "한국어",
        "👩\u{200d}👩\u{200d}👧",
        "🚀",
        "\u{200d}",
        "\0",
        "▁",
        "▁a",
        "Ġ",
        "the",
        "Donaudampfschiff",
        "ACGT",
        "ا",
    ];
    let repeat = |unit: &str| (format!("{unit:?}"), unit.repeat(BYTES / unit.len()));
    let mut texts: Vec<(String, String)> = units.iter().map(|unit| repeat(unit)).collect();
    let mut state = 17;
    let alphabets: [(&str, &[char]); 5] = [
        ("two letters", &['a', 'b']),
        ("bases", &['A', 'C', 'G', 'T']),
        (
            "letters",
            &[
                'e', 't', 'a', 'o', 'i', 'n', 's', 'h', 'r', 'd', 'l', 'u', 'Z', 'q',
            ],
        ),
        (
            "base64",
            &['A', 'b', 'C', 'd', '1', '9', '/', '+', 'x', 'Y', 'z', '0'],
        ),
        (
            "everything",
            &['a', ' ', '\n', '日', 'é', '🚀', '\u{301}', '1', '.', '_'],
        ),
    ];
    for (name, alphabet) in alphabets {
        let text = (0..BYTES / 2).map(|_| alphabet[next(&mut state, alphabet.len())]);
        texts.push((name.to_owned(), text.collect()));
    }
    let ideographs =
        (0..BYTES / 3).filter_map(|_| char::from_u32(0x4e00 + next(&mut state, 0x5000) as u32));
    texts.push(("ideographs".to_owned(), ideographs.collect()));
    texts
}

fn tokens(encode: impl FnOnce(&mut Sink) -> Result<(), Full>) -> Vec<u32> {
    let mut sink = Sink::new(usize::MAX, 0);
    assert_eq!(encode(&mut sink), Ok(()));
    sink.into_ids()
}

#[test]
fn byte_level_words_by_windows_are_those_at_once() {
    let models = [
        cached("SmolLM2-135M-Instruct.Q4_1.gguf"),
        fixtures().join("zoo/llama.gguf"),
    ];
    for path in models {
        let bpe = ByteLevel::new(source(&path)).unwrap();
        for (name, text) in hostile() {
            // As one word, whatever it is.
            let windows = tokens(|sink| bpe.encode_word(text.as_bytes(), sink));
            let once = bpe.merge(text.as_bytes());
            let once: Vec<u32> = once.iter().filter_map(|symbol| symbol.id).collect();
            assert!(windows == once, "{name}, {}", path.display());
        }
    }
}

#[test]
fn sentence_pieces_by_windows_are_those_at_once() {
    for has_prefix in [true, false] {
        let mut source = source(&cached("gemma-3-270m-q4_k_m.gguf"));
        source.add_space_prefix = Some(has_prefix);
        let pieces = SentencePiece::new(source).unwrap();
        for (name, text) in hostile() {
            let windows = tokens(|sink| pieces.encode(&text, true, sink));
            let once = tokens(|sink| pieces.encode_by(usize::MAX, &text, true, sink));
            assert!(windows == once, "{name}, {has_prefix}");
        }
    }
}

#[test]
fn a_window_of_a_few_bytes_changes_nothing() {
    let gemma = SentencePiece::new(source(&cached("gemma-3-270m-q4_k_m.gguf"))).unwrap();
    for (name, text) in hostile() {
        let end = text.floor_char_boundary(3_000);
        for window_bytes in [8, 33, 100] {
            let windows = tokens(|sink| gemma.encode_by(window_bytes, &text[..end], true, sink));
            let once = tokens(|sink| gemma.encode_by(usize::MAX, &text[..end], true, sink));
            assert!(windows == once, "{name} by {window_bytes}");
        }
    }
}
