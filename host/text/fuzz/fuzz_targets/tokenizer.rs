//! Any vocabulary is refused or gives a tokenizer that takes any text. Run with `cargo +nightly fuzz run tokenizer` in
//! `host/text`.
#![no_main]

#[allow(dead_code, reason = "the other target uses the rest")]
#[path = "../../tests/common/properties.rs"]
mod properties;

use libfuzzer_sys::fuzz_target;
use properties::is_refused_or_works;
use realm_text::TextSource;

/// Which algorithm; tokens with type and score; merges; special tokens; flags; the text.
type Input = (
    u8,
    Vec<(String, i8, f32)>,
    Vec<String>,
    [Option<u16>; 6],
    [Option<bool>; 2],
    String,
);

fuzz_target!(|input: Input| {
    let (model, tokens, merges, ids, flags, text) = input;
    let pre = [
        "smollm",
        "llama-bpe",
        "qwen2",
        "tekken",
        "gpt-4o",
        "deepseek-v3",
        "bloom",
    ];
    let [bos, eos, eot, sep, unk, pad] = ids.map(|id| id.map(u32::from));
    let source = TextSource {
        model: ["gpt2", "llama", "bert"][usize::from(model) % 3].to_owned(),
        pre: Some(pre[usize::from(model) / 3 % pre.len()].to_owned()),
        scores: tokens.iter().map(|(_, _, score)| *score).collect(),
        token_types: tokens.iter().map(|(_, kind, _)| i32::from(*kind)).collect(),
        tokens: tokens.into_iter().map(|(token, _, _)| token).collect(),
        merges,
        bos,
        eos,
        eot,
        sep,
        unk,
        pad,
        add_bos: flags[0],
        add_space_prefix: flags[1],
        ..TextSource::default()
    };
    is_refused_or_works(source, &text);
});
