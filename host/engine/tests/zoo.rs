//! Tiny models of every architecture and quantisation against float32 references, fed in every way an engine may:
//! at once, in chunks, token by token, and side by side in one ragged batch.

mod common;

use common::files::{folder, patched, refused, with_key};
use common::{Model, Piece, argmax, logprobs, threads};
use realm_engine::model::{KvType, LoadError, ModelOptions, load, load_on};
use realm_engine::{ExecutorError, Gguf, ImportError, SequenceRows, StepBatch};
use realm_kernels::cpu::{Cpu, Isa, Rounding};
use serde::Deserialize;

#[derive(Deserialize)]
struct Zoo {
    prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
struct Prompt {
    ids: Vec<u32>,
    argmax: Vec<u32>,
    argmax_gap: Vec<f64>,
    next_logprob: Vec<f64>,
    mean_nll: f64,
    last: Last,
    greedy: Greedy,
}

#[derive(Deserialize)]
struct Last {
    ids: Vec<u32>,
    logprobs: Vec<f64>,
}

#[derive(Deserialize)]
struct Greedy {
    ids: Vec<u32>,
    gaps: Vec<f64>,
}

/// How close to be.
struct Tolerance {
    worst: f64,    // of any log-probability
    mean: f64,     // over all of them
    mean_nll: f64, // of a prompt
    gap: f64,      // arg-max and greedy ids are equal where the two best logits are further apart
}

/// Float weights are multiplied with f32 activations; K and V are rounded to f16.
const FLOAT: Tolerance = Tolerance {
    worst: 0.02,
    mean: 0.004,
    mean_nll: 0.004,
    gap: 0.05,
};

/// Quantised weights with int8 activations.
const QUANTISED: Tolerance = Tolerance {
    worst: 0.5,
    mean: 0.09,
    mean_nll: 0.04,
    gap: 0.4,
};

fn zoo(name: &str) -> Zoo {
    let path = folder().join(format!("{name}.json"));
    let text = std::fs::read_to_string(path).expect("the fixture is in the repository");
    serde_json::from_str(&text).expect("the fixture is JSON")
}

fn open(name: &str, cpu: Cpu) -> Model {
    // No reference is longer; it is what lets phi3-longrope take its factors for short contexts.
    let options = ModelOptions {
        context_max: Some(512),
        ..ModelOptions::default()
    };
    Model::open_with(&folder().join(format!("{name}.gguf")), cpu, options)
}

/// Two sequences whose blocks are scattered and interleaved.
const TABLES: [[u32; 8]; 2] = [[11, 2, 9, 4, 7, 6, 5, 8], [3, 10, 1, 12, 15, 0, 13, 14]];

/// Every way of feeding gives the same bits; the result agrees with the reference.
#[track_caller]
fn check(name: &str, tolerance: &Tolerance, cpu: Cpu) {
    let zoo = zoo(name);
    let mut model = open(name, cpu);
    let mut worst = 0.0f64;
    let (mut sum, mut count) = (0.0, 0);
    for (prompt, table) in zoo.prompts.iter().zip(&TABLES) {
        let whole = model.prefill(table, &prompt.ids, prompt.ids.len());
        let mut nll = 0.0;
        for (position, logits) in whole.iter().enumerate() {
            let ours = logprobs(logits);
            if prompt.argmax_gap[position] > tolerance.gap {
                assert_eq!(
                    argmax(logits),
                    prompt.argmax[position],
                    "position {position}"
                );
            }
            if let Some(expected) = prompt.next_logprob.get(position) {
                let next = prompt.ids[position + 1] as usize;
                nll -= ours[next];
                let off = (ours[next] - expected).abs();
                worst = worst.max(off);
                sum += off;
                count += 1;
            }
        }
        let last = logprobs(whole.last().expect("a prompt has tokens"));
        for (id, expected) in prompt.last.ids.iter().zip(&prompt.last.logprobs) {
            let off = (last[*id as usize] - expected).abs();
            worst = worst.max(off);
            sum += off;
            count += 1;
        }
        let nll_off = nll / (prompt.ids.len() - 1) as f64 - prompt.mean_nll;
        println!("{name}: mean NLL off by {nll_off:+.5}");
        assert!(
            nll_off.abs() < tolerance.mean_nll,
            "mean NLL is off by {nll_off}"
        );
        check_greedy(&mut model, prompt, table, &whole, tolerance);
    }
    let mean = sum / f64::from(count);
    println!("{name}: log-probabilities off by {worst:.5} at worst, {mean:.5} on average");
    assert!(worst < tolerance.worst, "off by {worst}");
    assert!(mean < tolerance.mean, "off by {mean} on average");
    check_feeding(&mut model, &zoo);
}

fn check_greedy(
    model: &mut Model,
    prompt: &Prompt,
    table: &[u32],
    whole: &[Vec<f32>],
    tolerance: &Tolerance,
) {
    let last = whole.last().expect("a prompt has tokens").clone();
    let expected = &prompt.greedy;
    let ids = model.greedy(table, prompt.ids.len() as u32, last, expected.ids.len());
    let split = ids
        .iter()
        .zip(&expected.ids)
        .position(|(ours, theirs)| ours != theirs);
    if let Some(step) = split {
        let gap = expected.gaps[step];
        println!("leaves the reference at step {step}, gap {gap:.3}");
        assert!(
            gap <= tolerance.gap,
            "leaves the reference at step {step}, gap {gap}"
        );
    }
}

/// Chunks, single tokens, other blocks and company in the batch change no bit of the logits.
fn check_feeding(model: &mut Model, zoo: &Zoo) {
    let [short, long] = [&zoo.prompts[0].ids, &zoo.prompts[1].ids];
    let whole = [
        model.prefill(&TABLES[0], short, short.len()),
        model.prefill(&TABLES[1], long, long.len()),
    ];
    for piece in [1, 2, 5, 16, 17, 33] {
        assert!(
            model.prefill(&TABLES[0], short, piece) == whole[0],
            "pieces of {piece}"
        );
        assert!(
            model.prefill(&TABLES[1], long, piece) == whole[1],
            "pieces of {piece}"
        );
    }
    assert!(
        model.prefill(&TABLES[0], long, long.len()) == whole[1],
        "other blocks"
    );

    let together = model.step(&[
        Piece {
            table: &TABLES[0],
            start: 0,
            tokens: short,
        },
        Piece {
            table: &TABLES[1],
            start: 0,
            tokens: long,
        },
    ]);
    assert!(together[..short.len()] == whole[0], "side by side");
    assert!(together[short.len()..] == whole[1], "side by side");

    // The short prompt decodes token by token beside chunks of the long one, as in a busy engine.
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for (index, tokens) in long.chunks(7).enumerate() {
        let start = index * 7;
        let beside = Piece {
            table: &TABLES[1],
            start: start as u32,
            tokens,
        };
        let mut pieces = vec![beside];
        if index < short.len() {
            pieces.push(Piece {
                table: &TABLES[0],
                start: index as u32,
                tokens: &short[index..index + 1],
            });
        }
        let mut logits = model.step(&pieces);
        first.extend(logits.split_off(tokens.len()));
        second.extend(logits);
    }
    assert!(first == whole[0][..first.len()], "decode beside prefill");
    assert!(second == whole[1], "prefill beside decode");
}

macro_rules! zoo_tests {
    ($($test:ident: $name:literal, $tolerance:ident;)*) => {
        $(
            #[test]
            fn $test() {
                check($name, &$tolerance, Cpu::new(threads()));
            }
        )*
    };
}

zoo_tests! {
    llama_agrees_with_float32: "llama", FLOAT;
    llama3_rope_agrees_with_float32: "llama3-rope", FLOAT;
    mistral_head_dim_agrees_with_float32: "mistral-headdim", FLOAT;
    mixtral_agrees_with_float32: "mixtral", FLOAT;
    qwen2_agrees_with_float32: "qwen2", FLOAT;
    qwen3_agrees_with_float32: "qwen3", FLOAT;
    qwen3moe_agrees_with_float32: "qwen3moe", FLOAT;
    gemma2_agrees_with_float32: "gemma2", FLOAT;
    gemma3_agrees_with_float32: "gemma3", FLOAT;
    phi3_agrees_with_float32: "phi3", FLOAT;
    phi3_longrope_agrees_with_float32: "phi3-longrope", FLOAT;
    olmo2_agrees_with_float32: "olmo2", FLOAT;
    granite_agrees_with_float32: "granite", FLOAT;
    starcoder2_agrees_with_float32: "starcoder2", FLOAT;
    gptneox_agrees_with_float32: "gptneox", FLOAT;
    q4_0_agrees_with_float32: "llama-q4_0", QUANTISED;
    q4_1_agrees_with_float32: "llama-q4_1", QUANTISED;
    q5_0_agrees_with_float32: "llama-q5_0", QUANTISED;
    q5_1_agrees_with_float32: "llama-q5_1", QUANTISED;
    q8_0_agrees_with_float32: "llama-q8_0", QUANTISED;
    q1_0_agrees_with_float32: "llama-q1_0", QUANTISED;
    q2_0_agrees_with_float32: "llama-q2_0", QUANTISED;
    q2_k_agrees_with_float32: "llama-q2_k", QUANTISED;
    q3_k_agrees_with_float32: "llama-q3_k", QUANTISED;
    iq3_s_agrees_with_float32: "llama-iq3_s", QUANTISED;
    iq4_nl_agrees_with_float32: "llama-iq4_nl", QUANTISED;
    iq4_xs_agrees_with_float32: "llama-iq4_xs", QUANTISED;
    tq1_0_agrees_with_float32: "llama-tq1_0", QUANTISED;
    tq2_0_agrees_with_float32: "llama-tq2_0", QUANTISED;
    mxfp4_agrees_with_float32: "llama-mxfp4", QUANTISED;
    q4_k_agrees_with_float32: "llama-q4_k", QUANTISED;
    q5_k_agrees_with_float32: "llama-q5_k", QUANTISED;
    q6_k_agrees_with_float32: "llama-q6_k", QUANTISED;
    q4_k_m_agrees_with_float32: "llama-q4_k_m", QUANTISED;
}

/// With exact activations only the f16 cache rounds, whatever the weights are stored as.
#[test]
fn exact_activations_agree_closely_for_every_type() {
    let types = [
        "q1_0", "q2_0", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k",
        "q6_k", "q4_k_m", "iq3_s", "iq4_nl", "iq4_xs", "tq1_0", "tq2_0", "mxfp4",
    ];
    for ty in types {
        let cpu = Cpu::with_isa(Isa::best(), threads()).with_rounding(Rounding::Exact);
        check(&format!("llama-{ty}"), &FLOAT, cpu);
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for name in ["llama-q4_k_m", "gemma3", "qwen3moe", "gptneox"] {
        let ids = &zoo(name).prompts[1].ids;
        let one = open(name, Cpu::new(1)).prefill(&TABLES[0], ids, 40);
        for threads in [2, 3, 5] {
            let many = open(name, Cpu::new(threads)).prefill(&TABLES[0], ids, 40);
            assert!(one == many, "{name} with {threads} threads");
        }
    }
}

#[test]
fn a_span_gets_the_logits_of_as_many_of_its_last_rows_as_it_asks_for() {
    let mut model = open("llama", Cpu::new(threads()));
    let ids = &zoo("llama").prompts[0].ids;
    let one_by_one = model.prefill(&TABLES[0], ids, 1);
    let span = |blocks, logits| SequenceRows {
        blocks,
        start: 0,
        logits,
        adapter: None,
    };
    for (first, second) in [(3, 1), (0, 5), (1, 0), (ids.len() as u32, 2)] {
        let mut batch = StepBatch::default();
        for (table, logits) in [(&TABLES[0], first), (&TABLES[1], second)] {
            let pushed = batch.push(span(&table[..], logits), ids.iter().copied());
            pushed.expect("a block for every position");
        }
        let mut logits = vec![7.0; 5];
        let computed = model.executor.forward(&batch, &mut logits);
        computed.expect("the batch fits");
        let expected =
            [first, second].map(|count| one_by_one[ids.len() - count as usize..].concat());
        assert!(logits == expected.concat(), "{first} and {second}");
    }
}

#[test]
fn a_copied_block_carries_on_as_the_original() {
    let mut model = open("gemma3", Cpu::new(threads()));
    let ids = &zoo("gemma3").prompts[0].ids;
    let whole = model.prefill(&TABLES[0], ids, ids.len());
    // A fork after 20 tokens shares the full block and copies the open one.
    model.prefill(&[0, 1], &ids[..20], 20);
    model.executor.copy_block(1, 9);
    let piece = |table| Piece {
        table,
        start: 20,
        tokens: &ids[20..],
    };
    assert!(model.step(&[piece(&[0, 9])]) == whole[20..]);
    assert!(model.step(&[piece(&[0, 1])]) == whole[20..]);
}

#[test]
fn exported_blocks_carry_on_in_another_executor() {
    let ids = &zoo("gemma3").prompts[0].ids;
    for kv_type in [KvType::F16, KvType::Q8_0] {
        let options = ModelOptions {
            kv_type,
            ..ModelOptions::default()
        };
        let path = folder().join("gemma3.gguf");
        let [mut model, mut other] =
            [(); 2].map(|()| Model::open_with(&path, Cpu::new(threads()), options.clone()));
        let whole = model.prefill(&TABLES[0], ids, ids.len());
        model.prefill(&[0, 1], &ids[..20], 20);
        let mut bytes = Vec::new();
        model.executor.export_blocks(&[0, 1], &mut bytes);
        let imported = other.executor.import_blocks(&bytes, &[7, 3]);
        imported.expect("the same layout");
        let rest = Piece {
            table: &[7, 3],
            start: 20,
            tokens: &ids[20..],
        };
        assert!(other.step(&[rest]) == whole[20..], "{kv_type:?}");
    }
}

#[test]
fn bytes_that_are_not_such_blocks_are_refused() {
    let mut model = open("llama", Cpu::new(1));
    let ids = &zoo("llama").prompts[0].ids;
    let expected = model.prefill(&TABLES[0], ids, ids.len());
    let mut good = Vec::new();
    model.executor.export_blocks(&TABLES[0][..2], &mut good);
    let block_bytes = (good.len() - 32) / 2;
    let mut refused = |bytes: &[u8], blocks: &[u32]| {
        let error = model.executor.import_blocks(bytes, blocks);
        error.expect_err("other bytes")
    };
    assert_eq!(refused(&[], &TABLES[0][..2]), ImportError::NotBlocks);
    assert_eq!(refused(&[7; 100], &TABLES[0][..2]), ImportError::NotBlocks);
    let wrong_count = ImportError::WrongCount {
        found: 2,
        expected: 1,
    };
    assert_eq!(refused(&good, &TABLES[0][..1]), wrong_count);
    let wrong_length = ImportError::WrongLength {
        found: 2 * block_bytes - 1,
        expected: 2 * block_bytes as u64,
    };
    assert_eq!(
        refused(&good[..good.len() - 1], &TABLES[0][..2]),
        wrong_length
    );
    let mut of_other = Vec::new();
    let options = ModelOptions {
        kv_type: KvType::Q8_0,
        ..ModelOptions::default()
    };
    let other = Model::open_with(&folder().join("llama.gguf"), Cpu::new(1), options);
    other.executor.export_blocks(&[0, 1], &mut of_other);
    let message = refused(&of_other, &TABLES[0][..2]).to_string();
    assert!(
        message.contains("(q8_0)") && message.contains("(f16)"),
        "{message}"
    );
    // Nothing was written by any of these.
    let piece = Piece {
        table: &TABLES[0],
        start: ids.len() as u32 - 1,
        tokens: &ids[ids.len() - 1..],
    };
    assert!(model.step(&[piece])[0] == expected[ids.len() - 1]);
}

#[test]
fn a_batch_that_does_not_fit_is_refused() {
    let mut model = open("llama", Cpu::new(1));
    let blocks = model.facts.kv_blocks;
    let many: Vec<u32> = (0..33).collect();
    let mut refused = |token: u32, position: u32, table: &[u32], adapter: Option<u32>| {
        let rows = SequenceRows {
            blocks: table,
            start: position,
            logits: 1,
            adapter,
        };
        let mut batch = StepBatch::default();
        let mut logits = vec![1.0];
        let error = match batch.push(rows, [token]) {
            Err(error) => return error,
            Ok(()) => model.executor.forward(&batch, &mut logits),
        };
        assert!(logits.is_empty());
        error.expect_err("a bad batch")
    };
    let token = ExecutorError::TokenOutOfVocabulary {
        row: 0,
        token: 512,
        vocab: 512,
    };
    assert_eq!(refused(512, 0, &[0], None), token);
    let position = ExecutorError::PositionOutOfContext {
        row: 0,
        position: 512,
        context: 512,
    };
    assert_eq!(refused(1, 512, &many, None), position);
    let no_block = ExecutorError::NoBlock {
        row: 0,
        position: 16,
        table: 0,
    };
    assert_eq!(refused(1, 16, &[0], None), no_block);
    for block in [blocks, u32::MAX] {
        let out_of_cache = ExecutorError::BlockOutOfCache {
            table: 0,
            block,
            blocks,
        };
        assert_eq!(refused(1, 0, &[block], None), out_of_cache);
    }
    let no_adapter = ExecutorError::NoAdapter { row: 0, adapter: 2 };
    assert_eq!(refused(1, 0, &[0], Some(2)), no_adapter);
}

#[test]
fn the_kv_budget_and_the_options_bound_the_context() {
    let gguf = Gguf::open(&folder().join("llama.gguf")).expect("a good file");
    // 2 KV heads of 32, K and V in f16, 16 tokens, in each of the layers.
    let open = |kv_bytes_max, context_max| {
        let options = ModelOptions {
            threads: 1,
            kv_bytes_max,
            context_max,
            ..ModelOptions::default()
        };
        load(&gguf, options).map(|(_, facts, _)| facts)
    };
    let facts = open(1 << 20, None).expect("it fits");
    let block_bytes = u64::from(facts.layers) * 2 * 32 * 2 * 2 * 16;
    assert_eq!(u64::from(facts.kv_blocks), (1 << 20) / block_bytes);
    assert_eq!(facts.context_length, (facts.kv_blocks * 16).min(512));
    assert_eq!(
        open(3 * block_bytes, None).expect("it fits").context_length,
        48
    );
    assert_eq!(
        open(1 << 24, Some(100)).expect("it fits").context_length,
        100
    );
    assert_eq!(
        open(1 << 24, Some(4096)).expect("it fits").context_length,
        512
    );
    let error = open(block_bytes - 1, None).expect_err("too small");
    assert!(
        matches!(error, LoadError::KvTooSmall { block_bytes: needed, .. } if needed == block_bytes)
    );
    // More than the machine has: an error, not an abort.
    let error = open(u64::MAX / 2, None).expect_err("too large");
    assert!(matches!(error, LoadError::OutOfMemory { .. }), "{error}");
}

#[test]
fn a_model_that_cannot_be_computed_is_refused_by_name() {
    refused(
        &patched(
            "llama",
            b"\x05\0\0\0\0\0\0\0llama",
            b"\x05\0\0\0\0\0\0\0nosuc",
        ),
        "architecture nosuc is not supported; supported are gemma2, gemma3, gptneox, granite, llama, olmo2, \
         phi3, qwen2, qwen3, qwen3moe, starcoder2 for text and bert for embeddings",
    );
    refused(
        &patched("llama", b"blk.1.attn_k.", b"blk.1.attn_x."),
        "tensor blk.1.attn_k.weight is missing",
    );
    refused(
        &patched("llama", b"llama.block_count", b"llama.block_xount"),
        "key llama.block_count is missing",
    );
    refused(
        &with_key(
            "llama",
            "llama.rope.scaling.type",
            8,
            b"\x04\0\0\0\0\0\0\0ntkx",
        ),
        "this scaling of rotary embeddings (key llama.rope.scaling.type is ntkx) is not supported",
    );
    refused(
        &patched("phi3-longrope", b"rope_factors_long", b"rope_factors_lxng"),
        "tensor rope_factors_long.weight is missing",
    );
    let cap = 30f32.to_le_bytes();
    refused(
        &with_key("gemma3", "gemma3.final_logit_softcapping", 6, &cap),
        "soft-capping of logits (key gemma3.final_logit_softcapping is 30) is not supported",
    );
}

#[test]
fn a_mixture_that_cannot_be_computed_is_refused_by_name() {
    refused(
        &with_key("llama", "llama.expert_count", 4, &4u32.to_le_bytes()),
        "key llama.expert_used_count is missing",
    );
    refused(
        &with_key("qwen2", "qwen2.expert_count", 4, &4u32.to_le_bytes()),
        "mixture of experts (key qwen2.expert_count is 4) is not supported",
    );
    refused(
        &with_key(
            "mixtral",
            "llama.expert_gating_func",
            4,
            &2u32.to_le_bytes(),
        ),
        "key llama.expert_gating_func is 2, but it must be 1 (softmax)",
    );
    refused(
        &with_key("mixtral", "llama.expert_weights_norm", 7, &[0]),
        "key llama.expert_weights_norm is false, but it must be true",
    );
    let scale = 2.5f32.to_le_bytes();
    refused(
        &with_key("mixtral", "llama.expert_weights_scale", 6, &scale),
        "key llama.expert_weights_scale is 2.5, but it must be 1",
    );
    let shared = 1u32.to_le_bytes();
    refused(
        &with_key("mixtral", "llama.expert_shared_count", 4, &shared),
        "shared experts (key llama.expert_shared_count is 1) is not supported",
    );
    refused(
        &patched("mixtral", b"blk.1.ffn_up_exps", b"blk.1.ffn_ux_exps"),
        "tensor blk.1.ffn_up_exps.weight is missing",
    );
}

#[test]
fn a_tensor_nobody_would_use_is_refused() {
    // With one layer fewer than the file has, the last layer's tensors are left over.
    let count = |n: u8| [b"llama.block_count\x04\0\0\0".as_slice(), &[n, 0, 0, 0]].concat();
    let mut bytes = std::fs::read(folder().join("llama.gguf")).expect("a fixture");
    let prefix = &count(0)[..21];
    let at = bytes
        .windows(prefix.len())
        .position(|window| window == prefix)
        .expect("the key")
        + 21;
    bytes[at] -= 1;
    let gguf = Gguf::from_bytes(bytes).expect("still a good file");
    let error = load_on(Cpu::new(1), &gguf, ModelOptions::default())
        .err()
        .expect("refused");
    assert!(
        matches!(error, LoadError::UnusedTensor { count: 9, .. }),
        "{error}"
    );
}

#[test]
fn a_window_of_llama_hides_what_is_before_it() {
    let ids = &zoo("llama").prompts[1].ids;
    let whole = open("llama", Cpu::new(1)).prefill(&TABLES[0], ids, ids.len());
    let gguf = with_key(
        "llama",
        "llama.attention.sliding_window",
        4,
        &20u32.to_le_bytes(),
    );
    let mut windowed = Model::of(&gguf, Cpu::new(threads()), ModelOptions::default());
    let logits = windowed.prefill(&TABLES[0], ids, ids.len());
    assert!(
        logits[..20] == whole[..20],
        "20 positions are all there are"
    );
    assert!((20..ids.len()).all(|position| logits[position] != whole[position]));
    // Two layers of 20 positions: what lies further back than 38 positions cannot be seen.
    let mut others = ids.clone();
    others[..30].fill(7);
    let of_others = windowed.prefill(&TABLES[1], &others, others.len());
    assert!(of_others[30 + 38..] == logits[30 + 38..]);
    assert!(of_others[30 + 36] != logits[30 + 36]);
}

#[test]
fn the_long_factors_are_for_contexts_longer_than_those_of_the_training() {
    let path = folder().join("phi3-longrope.gguf");
    let ids = &zoo("phi3-longrope").prompts[0].ids;
    let logits = |context_max| {
        let options = ModelOptions {
            context_max,
            ..ModelOptions::default()
        };
        Model::open_with(&path, Cpu::new(1), options).prefill(&TABLES[0], ids, ids.len())
    };
    assert!(logits(Some(512)) == logits(Some(100)));
    assert!(logits(Some(512)) != logits(Some(513)));
    assert!(logits(None) == logits(Some(513)));
}

#[test]
fn more_experts_used_than_there_are_is_refused() {
    let used = |count: u32| {
        let key = b"llama.expert_used_count\x04\0\0\0".as_slice();
        [key, &count.to_le_bytes()].concat()
    };
    let set = |count| patched("mixtral", &used(2), &used(count));
    refused(
        &set(5),
        "key llama.expert_used_count is 5, but it must be a number up to 4 experts",
    );
    refused(
        &set(0),
        "key llama.expert_used_count is 0, but it must be a positive number",
    );
    let count = |count: u32| {
        let key = b"llama.expert_count\x04\0\0\0".as_slice();
        [key, &count.to_le_bytes()].concat()
    };
    refused(
        &patched("mixtral", &count(4), &count(u32::MAX)),
        "tensor blk.0.ffn_gate_exps.weight has shape [256, 128, 4], but it must be [256, 128, 4294967295]",
    );
}

#[test]
fn hyperparameters_that_contradict_the_tensors_are_refused() {
    let set = |key: &str, from: u32, to: u32| {
        let bytes =
            |value: u32| [key.as_bytes(), &4u32.to_le_bytes(), &value.to_le_bytes()].concat();
        patched("llama", &bytes(from), &bytes(to))
    };
    refused(
        &set("llama.embedding_length", 256, 320),
        "tensor blk.0.attn_norm.weight has shape [256], but it must be [320]",
    );
    refused(
        &set("llama.attention.head_count_kv", 2, 3),
        "key llama.attention.head_count_kv is 3, but it must be a divisor of 8 heads",
    );
    refused(
        &set("llama.attention.head_count", 8, 0),
        "key llama.attention.head_count is 0, but it must be a positive number",
    );
    refused(
        &set("llama.rope.dimension_count", 32, 34),
        "key llama.rope.dimension_count is 34, but it must be an even number up to 32",
    );
    refused(
        &set("llama.block_count", 2, u32::MAX),
        "tensor blk.2.attn_norm.weight is missing",
    );
}
