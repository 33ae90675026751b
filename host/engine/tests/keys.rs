//! What files state beyond the zoo's: how rotary embeddings are scaled, which layers see a window of positions, and what
//! would be another model if it were ignored.

mod common;

use common::files::Stated::{Bool, Bools, F32, Raw, Text, U32};
use common::files::{Stated, patched, refused, restated, with_keys};
use common::{Model, threads};
use realm_engine::Gguf;
use realm_engine::model::{ModelOptions, load};
use realm_engine::text::Specials;
use realm_kernels::Cpu;

const TABLES: [[u32; 8]; 2] = [[11, 2, 9, 4, 7, 6, 5, 8], [3, 10, 1, 12, 15, 0, 13, 14]];

fn ids() -> Vec<u32> {
    (0..90).map(|i| i * 37 % 500).collect()
}

/// The logits of all positions of [`ids`].
fn logits(gguf: &Gguf) -> Vec<Vec<f32>> {
    let mut model = Model::of(gguf, Cpu::new(threads()), ModelOptions::default());
    model.prefill(&TABLES[0], &ids(), ids().len())
}

fn of(name: &str, keys: &[(&str, Stated<'_>)]) -> Vec<Vec<f32>> {
    logits(&with_keys(name, keys))
}

#[test]
fn a_factor_without_a_type_is_linear_under_either_name() {
    let plain = of("llama", &[]);
    let linear = [
        ("llama.rope.scaling.type", Text("linear")),
        ("llama.rope.scaling.factor", F32(4.0)),
    ];
    let scaled = of("llama", &linear);
    assert!(scaled != plain);
    assert!(of("llama", &linear[1..]) == scaled);
    assert!(of("llama", &[("llama.rope.scale_linear", F32(4.0))]) == scaled);
    let none = [("llama.rope.scaling.type", Text("none")), linear[1]];
    assert!(of("llama", &none) == plain);
}

#[test]
fn long_factors_need_no_type() {
    let ty = b"phi3.rope.scaling.type";
    let without = patched("phi3-longrope", ty, b"phi3.rope.scaling.xxxx");
    assert!(logits(&without) == of("phi3-longrope", &[]));
    // Their magnitude cannot be guessed.
    let attn_factor = b"phi3.rope.scaling.attn_factor";
    refused(
        &patched(
            "phi3-longrope",
            attn_factor,
            b"phi3.rope.scaling.attn_xxxxxx",
        ),
        "key phi3.rope.scaling.attn_factor is missing",
    );
    refused(
        &with_keys("phi3-longrope", &[("phi3.rope.scaling.factor", F32(2.0))]),
        "a factor beside LongRoPE's (key phi3.rope.scaling.factor is 2) is not supported",
    );
}

#[test]
fn yarn_states_its_magnitude_or_not() {
    let yarn = [
        ("qwen2.rope.scaling.type", Text("yarn")),
        ("qwen2.rope.scaling.factor", F32(4.0)),
        ("qwen2.rope.scaling.original_context_length", U32(128)),
    ];
    let with = |more: &[(&'static str, Stated<'static>)]| of("qwen2", &[&yarn, more].concat());
    let scaled = with(&[]);
    assert!(scaled != of("qwen2", &[]));
    let magnitude = 1.0 + 0.1 * 4f32.ln();
    assert!(with(&[("qwen2.rope.scaling.yarn_attn_factor", F32(magnitude))]) == scaled);
    assert!(with(&[("qwen2.rope.scaling.yarn_ext_factor", F32(1.0))]) == scaled);
    assert!(with(&[("qwen2.rope.scaling.yarn_beta_fast", F32(32.0))]) == scaled);
    assert!(with(&[("qwen2.rope.scaling.yarn_beta_fast", F32(8.0))]) != scaled);
    // One comes on top of the own magnitude, the other replaces it.
    let on_top = with(&[("qwen2.rope.scaling.attn_factor", F32(1.5))]);
    let instead = F32(1.5 * magnitude);
    assert!(with(&[("qwen2.rope.scaling.yarn_attn_factor", instead)]) == on_top);
    refused(
        &with_keys(
            "qwen2",
            &[
                &yarn[..],
                &[("qwen2.rope.scaling.yarn_ext_factor", F32(0.5))],
            ]
            .concat(),
        ),
        "an extrapolation factor of YaRN (key qwen2.rope.scaling.yarn_ext_factor is 0.5) is not supported",
    );
}

#[test]
fn the_factors_of_a_file_and_those_of_yarn_multiply() {
    // A factor of 1 leaves only the magnitude, which is 1 then.
    let yarn = [
        ("llama.rope.scaling.type", Text("yarn")),
        ("llama.rope.scaling.factor", F32(1.0)),
    ];
    assert!(of("llama3-rope", &yarn) == of("llama3-rope", &[]));
}

#[test]
fn numbers_are_read_in_whichever_type_they_are_stored() {
    let twice = |ty: u32, number: &[u8]| {
        let head = [&ty.to_le_bytes()[..], &2u64.to_le_bytes()].concat();
        [&head, number, number].concat()
    };
    let heads = twice(5, &8i32.to_le_bytes());
    let kv_heads = twice(10, &2u64.to_le_bytes());
    let inner = twice(12, &512f64.to_le_bytes());
    let keys = [
        ("llama.attention.head_count", Raw(9, &heads)),
        ("llama.attention.head_count_kv", Raw(9, &kv_heads)),
        ("llama.feed_forward_length", Raw(9, &inner)),
        ("llama.block_count", Raw(0, &[2])),
        ("llama.context_length", Raw(12, &512f64.to_le_bytes())),
        ("llama.embedding_length", Raw(11, &256i64.to_le_bytes())),
        ("llama.rope.dimension_count", Raw(3, &32i16.to_le_bytes())),
        ("llama.rope.freq_base", Raw(4, &10_000u32.to_le_bytes())),
        (
            "tokenizer.ggml.bos_token_id",
            Raw(10, &504u64.to_le_bytes()),
        ),
        ("tokenizer.ggml.add_bos_token", Raw(0, &[1])),
        ("tokenizer.ggml.add_eos_token", Raw(6, &0f32.to_le_bytes())),
    ];
    let gguf = restated("llama", &keys);
    assert!(logits(&gguf) == of("llama", &[]));
    let (_, _, text) = load(&gguf, ModelOptions::default()).expect("a good file");
    let prompt = text.encode("a", Specials::Parse, true, 100).unwrap();
    assert_eq!(prompt[0], 504);
    // Layers that differ are another architecture.
    let mut mixed = heads.clone();
    mixed.truncate(heads.len() - 4);
    mixed.extend(4i32.to_le_bytes());
    refused(
        &restated("llama", &[("llama.attention.head_count", Raw(9, &mixed))]),
        "key llama.attention.head_count is an array of values that differ, but it must be the same for every layer",
    );
}

#[test]
fn special_tokens_that_the_vocabulary_lacks_are_none() {
    let beyond = 512u32.to_le_bytes();
    let none = (-1i32).to_le_bytes();
    let keys = [
        ("tokenizer.ggml.bos_token_id", Raw(4, &beyond)),
        ("tokenizer.ggml.eos_token_id", Raw(5, &none)),
        ("tokenizer.ggml.padding_token_id", Raw(5, &none)),
        ("tokenizer.ggml.unknown_token_id", Raw(4, &beyond)),
        ("tokenizer.ggml.add_bos_token", Bool(true)),
    ];
    let gguf = restated("llama", &keys);
    let (_, _, text) = load(&gguf, ModelOptions::default()).expect("a good file");
    let plain = of("llama", &[]);
    assert!(logits(&gguf) == plain);
    let prompt = text.encode("a", Specials::Parse, true, 100).unwrap();
    assert_eq!(prompt.len(), 1, "{prompt:?}");
}

#[test]
fn a_factor_of_0_is_none() {
    let plain = of("llama", &[]);
    let linear = ("llama.rope.scaling.type", Text("linear"));
    for zero in ["llama.rope.scaling.factor", "llama.rope.scale_linear"] {
        assert!(of("llama", &[linear, (zero, F32(0.0))]) == plain, "{zero}");
        assert!(of("llama", &[(zero, U32(0))]) == plain, "{zero}");
    }
    let yarn = |factor: f32, original: u32| {
        let keys = [
            ("qwen2.rope.scaling.type", Text("yarn")),
            ("qwen2.rope.scaling.factor", F32(factor)),
            ("qwen2.rope.scaling.original_context_length", U32(original)),
        ];
        of("qwen2", &keys)
    };
    assert!(yarn(0.0, 128) == yarn(1.0, 128));
    // What the file says of the training is its context, where it says nothing more.
    assert!(yarn(4.0, 0) == yarn(4.0, 512) && yarn(4.0, 0) != yarn(4.0, 128));
    let longrope = of("phi3-longrope", &[]);
    assert!(of("phi3-longrope", &[("phi3.rope.scaling.factor", F32(0.0))]) == longrope);
    let scales = |value: f32| {
        let keys = ["embedding_scale", "residual_scale", "logit_scale"];
        let keys = keys.map(|key| format!("granite.{key}"));
        let keys: Vec<_> = keys.iter().map(|key| (key.as_str(), F32(value))).collect();
        logits(&restated("granite", &keys))
    };
    assert!(scales(0.0) == scales(1.0));
    assert!(of("llama", &[("llama.logit_scale", F32(0.0))]) == plain);
}

const WINDOW: (&str, Stated<'static>) = ("olmo2.attention.sliding_window", U32(20));
const PATTERN: &str = "olmo2.attention.sliding_window_pattern";

#[test]
fn olmo_3_has_windows_in_the_layers_it_lists() {
    let whole = of("olmo2", &[]);
    let listed = |layers: &'static [bool]| of("olmo2", &[WINDOW, (PATTERN, Bools(layers))]);
    assert!(listed(&[false, false]) == whole);
    let [first, second, both] = [
        listed(&[true, false]),
        listed(&[false, true]),
        listed(&[true, true]),
    ];
    for windowed in [&first, &second, &both] {
        assert!(
            windowed[..20] == whole[..20],
            "20 positions are all there are"
        );
        assert!((20..whole.len()).all(|position| windowed[position] != whole[position]));
    }
    assert!(first != second && second != both && both != first);
    // Three of four, where nothing is said; and a period that is.
    assert!(of("olmo2", &[WINDOW]) == both);
    assert!(of("olmo2", &[WINDOW, (PATTERN, U32(2))]) == first);
    assert!(of("olmo2", &[WINDOW, (PATTERN, U32(1))]) == whole);
    // Without a window there is nothing to list.
    assert!(of("olmo2", &[(PATTERN, Bools(&[true, true]))]) == whole);
}

#[test]
fn layers_of_olmo_3_with_a_window_are_not_scaled() {
    let scaling = [
        ("olmo2.rope.scaling.type", Text("yarn")),
        ("olmo2.rope.scaling.factor", F32(8.0)),
        ("olmo2.rope.scaling.original_context_length", U32(64)),
    ];
    let of_layers = |layers: &'static [bool], scaling: &[(&'static str, Stated<'static>)]| {
        of(
            "olmo2",
            &[&[WINDOW, (PATTERN, Bools(layers))], scaling].concat(),
        )
    };
    assert!(of_layers(&[true, true], &scaling) == of_layers(&[true, true], &[]));
    assert!(of_layers(&[true, false], &scaling) != of_layers(&[true, false], &[]));
}

#[test]
fn a_window_is_the_same_fed_in_any_way() {
    let gguf = with_keys("olmo2", &[WINDOW, (PATTERN, Bools(&[true, false]))]);
    let mut model = Model::of(&gguf, Cpu::new(threads()), ModelOptions::default());
    let ids = ids();
    let whole = model.prefill(&TABLES[0], &ids, ids.len());
    for piece in [1, 7, 16, 33] {
        assert!(model.prefill(&TABLES[1], &ids, piece) == whole, "{piece}");
    }
    // A sequence that shares the first blocks of another, as after a fork: they are read where they lie.
    let mut shared = TABLES[1];
    shared[..3].copy_from_slice(&TABLES[0][..3]);
    let rest = common::Piece {
        table: &shared,
        start: 48,
        tokens: &ids[48..],
    };
    assert!(model.step(&[rest]) == whole[48..]);
}

#[test]
fn patterns_that_make_no_sense_are_refused() {
    let refused = |pattern, message: &str| {
        refused(&with_keys("olmo2", &[WINDOW, (PATTERN, pattern)]), message);
    };
    refused(
        Bools(&[true]),
        "key olmo2.attention.sliding_window_pattern is 1 values, but it must be one for each of 2 layers",
    );
    refused(
        U32(0),
        "key olmo2.attention.sliding_window_pattern is 0, but it must be a positive number",
    );
    // However many layers the file says it has, nothing is made for them before their tensors were seen.
    let count = |n: u32| [b"olmo2.block_count\x04\0\0\0".as_slice(), &n.to_le_bytes()].concat();
    common::files::refused(
        &patched("olmo2", &count(2), &count(u32::MAX)),
        "tensor blk.2.attn_q.weight is missing",
    );
}

#[test]
fn what_would_be_ignored_is_refused() {
    for (name, key, value, message) in [
        (
            "llama",
            "llama.attention.causal",
            Bool(false),
            "attention to later positions (key llama.attention.causal is false)",
        ),
        (
            "llama",
            "llama.final_logit_softcapping",
            F32(30.0),
            "soft-capping of logits (key llama.final_logit_softcapping is 30)",
        ),
        (
            "llama",
            "llama.attention.sliding_window_pattern",
            Bools(&[true, false]),
            "a window of positions in some of the layers \
             (key llama.attention.sliding_window_pattern is [2 elements])",
        ),
        (
            "qwen3",
            "qwen3.attention.scale",
            F32(0.2),
            "a scale of attention scores (key qwen3.attention.scale is 0.2)",
        ),
        (
            "qwen2",
            "qwen2.embedding_scale",
            F32(12.0),
            "a scale of the embedding (key qwen2.embedding_scale is 12)",
        ),
        (
            "gptneox",
            "gptneox.attention.sliding_window",
            U32(64),
            "a window of positions (key gptneox.attention.sliding_window is 64)",
        ),
    ] {
        let message = format!("{message} is not supported");
        refused(&with_keys(name, &[(key, value)]), &message);
    }
}

#[test]
fn what_is_off_is_not_refused() {
    let plain = of("llama", &[]);
    let off = [
        ("llama.attention.causal", Bool(true)),
        ("llama.attention.sliding_window", U32(0)),
        ("llama.attention.clamp_kqv", F32(0.0)),
        ("llama.logit_scale", F32(1.0)),
        ("llama.use_parallel_residual", Bool(false)),
    ];
    assert!(of("llama", &off) == plain);
}
