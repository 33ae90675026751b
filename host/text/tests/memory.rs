//! What tokenising takes of the host's memory, counted in bytes at the allocator. One test: it counts the whole process.

#![allow(clippy::unwrap_used, reason = "in a test it is an assertion")]

mod common;

use common::{cached, fixtures, source};
use peak_alloc::PeakAlloc;
use realm_text::{Specials, TextModel};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Bytes that `work` had allocated at most, beside what was there before.
fn peak<T>(work: impl FnOnce() -> T) -> (usize, T) {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let result = work();
    (ALLOCATOR.peak_usage() - before, result)
}

const BYTES: usize = 1 << 20;

#[test]
fn memory_is_bounded_by_a_window_and_not_by_the_text() {
    let models = [
        cached("SmolLM2-135M-Instruct.Q4_1.gguf"),
        cached("gemma-3-270m-q4_k_m.gguf"),
        fixtures().join("zoo/llama.gguf"),
        fixtures().join("embedding/bert.gguf"),
    ];
    let units = [
        "a",
        " ",
        "\n",
        "1",
        "'",
        "<",
        "ab ",
        "日",
        "é",
        "e\u{301}",
        "🚀\u{200d}",
        "<|im_start|>",
        "<|im_sta",
        "word. ",
        "\0",
    ];
    for path in models {
        let model = TextModel::new(source(&path)).unwrap();
        // What is built on first use, such as a regex's automaton.
        for unit in units {
            let warm = unit.repeat(1_000);
            model
                .encode(&warm, Specials::Parse, true, usize::MAX)
                .unwrap();
        }
        for unit in units {
            let text = unit.repeat(BYTES / unit.len());
            let what = format!("{unit:?}, {}", path.display());

            // All of it.
            let (bytes, ids) = peak(|| model.encode(&text, Specials::Parse, true, usize::MAX));
            let tokens = ids.unwrap().len();
            let bytes_max = model.encode_bytes_max(text.len(), usize::MAX);
            assert!(bytes <= bytes_max, "{what}: {bytes} of {bytes_max} bytes");
            let without_tokens =
                bytes.saturating_sub(3 * size_of::<u32>() * (BYTES / 4).max(tokens));
            assert!(
                without_tokens < 6 << 20,
                "{what}: {without_tokens} bytes beside the tokens"
            );

            // As much of it as there is room for, and exactly all of it.
            let fits = model.encode(&text, Specials::Parse, true, tokens);
            assert!(fits.is_ok(), "{what}: {fits:?}");
            if tokens == 0 {
                continue;
            }
            let room = (tokens - 1).min(500);
            let (bytes, refused) = peak(|| model.encode(&text, Specials::Parse, true, room));
            assert!(
                refused.as_ref().unwrap_err().is_too_long(),
                "{what}: {refused:?}"
            );
            assert!(bytes < 6 << 20, "{what}: {bytes} bytes to refuse it");
        }
    }
}
