//! Mixtures of experts beyond the zoo's files: how older files keep them, and routers that are broken.

mod common;

use std::path::PathBuf;

use common::{Model, threads};
use realm_engine::model::ModelOptions;
use realm_engine::{Gguf, ModelSource};
use realm_kernels::Cpu;

const EXPERTS: usize = 4;
const LAYERS: usize = 2;
const TABLE: [u32; 8] = [11, 2, 9, 4, 7, 6, 5, 8];

fn mixtral() -> Vec<u8> {
    let path = PathBuf::from("tests/fixtures/zoo/mixtral.gguf");
    std::fs::read(path).expect("the fixture is in the repository")
}

fn model(bytes: Vec<u8>) -> Model {
    let gguf = Gguf::from_bytes(bytes).expect("a good file");
    Model::of(&gguf, Cpu::new(threads()), ModelOptions::default())
}

fn ids() -> Vec<u32> {
    (0..40u32).map(|i| i * 37 % 500).collect()
}

fn find(bytes: &[u8], part: &[u8]) -> usize {
    let mut windows = bytes.windows(part.len());
    windows.position(|window| window == part).expect("it is in")
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// The table entry of a tensor.
fn entry(name: &str, shape: &[u64], ty: &[u8], offset: u64) -> Vec<u8> {
    let mut entry = (name.len() as u64).to_le_bytes().to_vec();
    entry.extend(name.as_bytes());
    entry.extend((shape.len() as u32).to_le_bytes());
    entry.extend(shape.iter().flat_map(|length| length.to_le_bytes()));
    entry.extend(ty);
    entry.extend(offset.to_le_bytes());
    entry
}

/// Gives the experts of `blk.N.PART_exps.weight` (f16) a tensor each, as the first files of this kind have it.
fn split_tensor(bytes: &mut Vec<u8>, layer: usize, part: &str) {
    let name = format!("blk.{layer}.{part}_exps.weight");
    let name_at = find(bytes, name.as_bytes());
    let shape_at = name_at + name.len() + 4;
    let (cols, rows) = (u64_at(bytes, shape_at), u64_at(bytes, shape_at + 8));
    assert_eq!(u64_at(bytes, shape_at + 16), EXPERTS as u64);
    let ty = bytes[shape_at + 24..shape_at + 28].to_vec();
    assert_eq!(ty, [1, 0, 0, 0], "f16");
    let offset = u64_at(bytes, shape_at + 28);
    let entries: Vec<u8> = (0..EXPERTS as u64)
        .flat_map(|expert| {
            let name = format!("blk.{layer}.{part}.{expert}.weight");
            entry(&name, &[cols, rows], &ty, offset + expert * cols * rows * 2)
        })
        .collect();
    bytes.splice(name_at - 8..shape_at + 36, entries);
    let tensors = u64_at(bytes, 8) + EXPERTS as u64 - 1;
    bytes[8..16].copy_from_slice(&tensors.to_le_bytes());
}

/// The whole file that way. A key that nobody reads keeps the data aligned.
fn split_experts() -> Vec<u8> {
    let mut bytes = mixtral();
    let length = bytes.len();
    for layer in 0..LAYERS {
        for part in ["ffn_gate", "ffn_up", "ffn_down"] {
            split_tensor(&mut bytes, layer, part);
        }
    }
    let added = bytes.len() - length;
    let overhead = 8 + 4 + 1; // length of the key, type and value
    let key = 64 - (added + overhead) % 32;
    let filler = [&(key as u64).to_le_bytes()[..], &vec![b'f'; key], &[0; 5]].concat();
    bytes.splice(24..24, filler);
    let keys = u64_at(&bytes, 16) + 1;
    bytes[16..24].copy_from_slice(&keys.to_le_bytes());
    bytes
}

#[test]
fn a_tensor_for_each_expert_is_the_same_model() {
    let merged = model(mixtral()).prefill(&TABLE, &ids(), 40);
    let split = model(split_experts()).prefill(&TABLE, &ids(), 40);
    assert!(merged == split);
}

#[test]
fn a_row_goes_the_same_way_alone() {
    let mut model = model(mixtral());
    let whole = model.prefill(&TABLE, &ids(), 40);
    for piece in [1, 3, 13] {
        assert!(model.prefill(&TABLE, &ids(), piece) == whole);
    }
}

#[test]
fn a_broken_router_gives_broken_logits_and_no_panic() {
    let good = mixtral();
    let gguf = Gguf::from_bytes(good.clone()).expect("a good file");
    let router = gguf.require("blk.0.ffn_gate_inp.weight").expect("a router");
    let at = find(&good, router.data);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
        // One expert's weights, then everyone's.
        for length in [router.data.len() / EXPERTS, router.data.len()] {
            let mut bytes = good.clone();
            for weight in bytes[at..at + length].chunks_exact_mut(4) {
                weight.copy_from_slice(&bad.to_le_bytes());
            }
            let logits = model(bytes).prefill(&TABLE, &ids(), 40);
            assert_eq!(logits.len(), 40);
            if bad.is_nan() {
                assert!(logits.iter().flatten().all(|logit| logit.is_nan()));
            }
        }
    }
}
