//! Embedding models against numpy: a tiny one of random weights, and MiniLM, converted here as users' files are.

mod common;

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use common::{block_on, model_path, threads};
use half::f16;
use realm_engine::model::load_on;
use realm_engine::{Embedder, EmbedderClient};
use realm_engine::{EngineError, Gguf, LoadError, ModelOptions, Owner};
use realm_kernels::quant::BlockType;
use realm_kernels::{Cpu, Rounding};
use realm_weights::GgufWriter;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

const OWNER: Owner = Owner {
    tenant: 1,
    weight: 1,
    kv_blocks_max: 0,
};

#[derive(Deserialize)]
struct Reference {
    text: String,
    ids: Vec<u32>,
    vector: Vec<f32>,
}

fn fixture(name: &str) -> PathBuf {
    Path::new("../../tests/fixtures/embedding").join(name)
}

fn references(name: &str) -> Vec<Reference> {
    let text = std::fs::read_to_string(fixture(name)).expect("the fixture is in the repository");
    serde_json::from_str(&text).expect("the fixture is JSON")
}

fn load(path: &Path, rounding: Rounding) -> Embedder {
    let gguf = Gguf::open(path).expect("the model file is good");
    let cpu = Cpu::new(threads()).with_rounding(rounding);
    Embedder::load(cpu, &gguf, &ModelOptions::default()).expect("the model loads")
}

fn embed(client: &EmbedderClient, texts: Vec<Vec<u32>>) -> Result<Vec<Vec<f32>>, EngineError> {
    block_on(client.embed(OWNER, texts))
}

/// All texts at once have the reference's tokens, and vectors whose every number is this close to it.
#[track_caller]
fn check(path: &Path, references: &[Reference], rounding: Rounding, off_max: f32) {
    let embedder = load(path, rounding);
    let client = embedder.client();
    let ids: Vec<Vec<u32>> = references
        .iter()
        .map(|reference| client.encode(&reference.text).expect("a short text"))
        .collect();
    for (ids, reference) in ids.iter().zip(references) {
        assert_eq!(*ids, reference.ids, "{:?}", reference.text);
    }
    let vectors = embed(&client, ids).expect("the texts fit");
    let mut worst = 0.0_f32;
    for (vector, reference) in vectors.iter().zip(references) {
        assert_eq!(vector.len(), client.dimensions());
        let off = vector.iter().zip(&reference.vector);
        worst = off.fold(worst, |worst, (a, b)| worst.max((a - b).abs()));
    }
    println!("{}, {rounding:?}: off by {worst:.6}", path.display());
    assert!(worst < off_max, "{rounding:?}: off by {worst}");
}

#[test]
fn a_tiny_model_agrees_with_numpy() {
    let references = references("bert.json");
    check(&fixture("bert.gguf"), &references, Rounding::Exact, 2e-4);
}

/// What a converter of models makes of MiniLM's weights: names of GGUF, matrices in fewer bits.
fn minilm(matrices: BlockType) -> (tempfile::TempDir, PathBuf) {
    let bytes = std::fs::read(model_path("all-MiniLM-L6-v2.safetensors")).expect("it was fetched");
    let weights = SafeTensors::deserialize(&bytes).expect("the weights are safetensors");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("all-minilm-l6-v2.gguf");
    let mut writer = GgufWriter::default();
    writer.str("general.architecture", "bert");
    for (key, value) in [
        ("block_count", 6),
        ("context_length", 512),
        ("embedding_length", 384),
        ("feed_forward_length", 1536),
        ("attention.head_count", 12),
        ("pooling_type", 1),
    ] {
        writer.u32(&format!("bert.{key}"), value);
    }
    writer.f32("bert.attention.layer_norm_epsilon", 1e-12);
    writer.bool("bert.attention.causal", false);
    minilm_vocabulary(&mut writer);
    let mut tensors = Vec::new();
    for (name, tensor) in weights.tensors() {
        if name.starts_with("pooler.") || tensor.dtype() != Dtype::F32 {
            continue;
        }
        let name = gguf_name(&name);
        let shape: Vec<usize> = tensor.shape().iter().rev().copied().collect();
        let ty = match shape.len() {
            1 => BlockType::F32,
            _ => matrices,
        };
        writer.tensor(&name, ty, &shape);
        tensors.push(tensor);
    }
    let mut tensors = tensors.into_iter();
    let out = BufWriter::new(File::create(&path).expect("a file"));
    let written = writer.write(out, |_, ty, _, out| {
        let tensor = tensors.next().expect("as many as were announced");
        let values: Vec<f32> = tensor
            .data()
            .as_chunks()
            .0
            .iter()
            .map(|four| f32::from_le_bytes(*four))
            .collect();
        out.write_all(&encode(&values, ty))?;
        Ok(())
    });
    written.expect("the file is written");
    (folder, path)
}

fn minilm_vocabulary(writer: &mut GgufWriter) {
    let vocabulary =
        std::fs::read_to_string(fixture("minilm-vocab.txt")).expect("it is in the repository");
    let phantom = |token: &str| match token.strip_prefix("##") {
        Some(goes_on) => goes_on.to_owned(),
        None if token.starts_with('[') && token.ends_with(']') => token.to_owned(),
        None => format!("\u{2581}{token}"),
    };
    let tokens: Vec<String> = vocabulary.lines().map(phantom).collect();
    writer.str("tokenizer.ggml.model", "bert");
    writer.strings("tokenizer.ggml.tokens", &tokens);
    for (name, token) in [("unknown", 100), ("cls", 101), ("seperator", 102)] {
        writer.u32(&format!("tokenizer.ggml.{name}_token_id"), token);
    }
}

fn encode(values: &[f32], ty: BlockType) -> Vec<u8> {
    match ty {
        BlockType::F32 => values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
        BlockType::F16 => {
            let halves = values.iter().map(|value| f16::from_f32(*value));
            halves.flat_map(f16::to_le_bytes).collect()
        }
        BlockType::Q8_0 => values.as_chunks::<32>().0.iter().flat_map(q8_0).collect(),
        other => panic!("{other:?} is not written here"),
    }
}

/// A scale and 32 codes.
fn q8_0(values: &[f32; 32]) -> Vec<u8> {
    let largest = values
        .iter()
        .fold(0.0_f32, |max, value| max.max(value.abs()));
    let scale = f16::from_f32(largest / 127.0);
    let code = |value: &f32| (value / scale.to_f32().max(1e-9)).round() as i8;
    let codes = values.iter().map(|value| code(value).to_le_bytes()[0]);
    scale.to_le_bytes().into_iter().chain(codes).collect()
}

/// What GGUF calls a tensor of the original.
fn gguf_name(name: &str) -> String {
    let parts = [
        ("embeddings.word_embeddings", "token_embd"),
        ("embeddings.position_embeddings", "position_embd"),
        ("embeddings.token_type_embeddings", "token_types"),
        ("embeddings.LayerNorm", "token_embd_norm"),
        ("encoder.layer", "blk"),
        ("attention.self.query", "attn_q"),
        ("attention.self.key", "attn_k"),
        ("attention.self.value", "attn_v"),
        ("attention.output.dense", "attn_output"),
        ("attention.output.LayerNorm", "attn_output_norm"),
        ("intermediate.dense", "ffn_up"),
        ("output.dense", "ffn_down"),
        ("output.LayerNorm", "layer_output_norm"),
    ];
    parts
        .iter()
        .fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

#[test]
fn minilm_agrees_with_numpy() {
    let (_folder, path) = minilm(BlockType::F16);
    check(&path, &references("minilm.json"), Rounding::Exact, 5e-4);
}

/// As a server runs it. Rounding turns a vector by an angle; one of three degrees has the cosine 0.9986.
#[test]
fn minilm_in_8_bits_agrees_with_numpy() {
    let (_folder, path) = minilm(BlockType::Q8_0);
    let references = references("minilm.json");
    let embedder = load(&path, Rounding::Mixed);
    let client = embedder.client();
    let texts = references.iter().map(|reference| reference.ids.clone());
    let vectors = embed(&client, texts.collect()).expect("the texts fit");
    let cosine = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    for (vector, reference) in vectors.iter().zip(&references) {
        let cosine = cosine(vector, &reference.vector);
        println!("{:?}: {cosine:.5}", reference.text);
        assert!(cosine > 0.9986, "{:?}: {cosine}", reference.text);
    }
    // The fixture's first two say the same in other words, the third something else.
    assert!(cosine(&vectors[0], &vectors[1]) > 0.9);
    assert!(cosine(&vectors[0], &vectors[2]) < 0.2);
}

#[test]
fn a_vector_depends_neither_on_neighbours_nor_on_threads() {
    let path = fixture("bert.gguf");
    let references = references("bert.json");
    let texts: Vec<Vec<u32>> = references.iter().map(|one| one.ids.clone()).collect();
    let embedder = load(&path, Rounding::Mixed);
    let together = embed(&embedder.client(), texts.clone()).expect("the texts fit");
    let gguf = Gguf::open(&path).expect("the model file is good");
    for threads in [1, 3] {
        let cpu = Cpu::new(threads).with_rounding(Rounding::Mixed);
        let embedder =
            Embedder::load(cpu, &gguf, &ModelOptions::default()).expect("the model loads");
        for (text, vector) in texts.iter().zip(&together) {
            let alone = embed(&embedder.client(), vec![text.clone()]).expect("the text fits");
            assert_eq!(alone, std::slice::from_ref(vector), "{threads} threads");
        }
    }
}

#[test]
fn more_texts_than_a_pass_takes_are_all_answered_in_their_order() {
    let embedder = load(&fixture("bert.gguf"), Rounding::Int8);
    let client = embedder.client();
    let texts: Vec<Vec<u32>> = (0..300).map(|n| vec![2, 5 + n % 30, 3]).collect();
    let vectors = embed(&client, texts.clone()).expect("the texts fit");
    assert_eq!(vectors.len(), texts.len());
    for (n, vector) in vectors.iter().enumerate() {
        assert_eq!(*vector, vectors[n % 30]);
    }
    assert_ne!(vectors[0], vectors[1]);
}

#[test]
fn wrong_texts_are_named() {
    let embedder = load(&fixture("bert.gguf"), Rounding::Int8);
    let client = embedder.client();
    for (texts, part) in [
        (vec![], "0 texts"),
        (vec![vec![]], "text 0 has 0 tokens"),
        (vec![vec![1], vec![1; 129]], "text 1 has 129 tokens"),
        (vec![vec![1], vec![7, 999]], "token 999 of text 1"),
        (vec![vec![1]; 2049], "2049 texts"),
    ] {
        match embed(&client, texts) {
            Err(EngineError::Invalid(text)) => assert!(text.contains(part), "{text}"),
            other => panic!("{part}: {other:?}"),
        }
    }
    drop(embedder);
    let stopped = embed(&client, vec![vec![1]]);
    assert_eq!(stopped, Err(EngineError::Stopped));
}

#[test]
fn a_model_of_the_other_kind_is_refused_by_its_name() {
    let open = |path: &Path| Gguf::open(path).expect("the model file is good");
    let options = ModelOptions::default();
    let encoder = open(&fixture("bert.gguf"));
    let error = load_on(Cpu::new(1), &encoder, options.clone());
    assert!(matches!(
        error.map(|_| ()),
        Err(LoadError::GivesEmbeddings { architecture }) if architecture == "bert"
    ));
    let generator = open(Path::new("../../tests/fixtures/zoo/llama.gguf"));
    let error = Embedder::load(Cpu::new(1), &generator, &options);
    assert!(matches!(
        error.map(|_| ()),
        Err(LoadError::GivesNoEmbeddings { architecture }) if architecture == "llama"
    ));
}
