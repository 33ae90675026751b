//! Synthetic models are valid files of every architecture and type: they load, and what they compute is finite.

mod common;

use common::Model;
use realm_engine::Gguf;
use realm_engine::model::ModelOptions;
use realm_engine::synthetic::{self, Quant, SHAPES, Shape};
use realm_kernels::Cpu;

/// A shape made small: the same tensors, few values.
fn small(shape: &Shape) -> Shape {
    Shape {
        layers: 2,
        hidden: 256,
        feed_forward: 256,
        vocab: 600,
        ..*shape
    }
}

fn bytes(shape: &Shape, quant: Quant, seed: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    synthetic::write(shape, quant, seed, &mut bytes).expect("memory takes everything");
    bytes
}

#[track_caller]
fn check(shape: &Shape, quant: Quant) {
    let gguf = Gguf::from_bytes(bytes(shape, quant, 1)).expect("a good file");
    let mut model = Model::of(&gguf, Cpu::new(1), ModelOptions::default());
    let logits = model.prefill(&[0], &[1, 300, 500, 7], 4).concat();
    let name = shape.name;
    assert!(logits.iter().all(|logit| logit.is_finite()), "{name}");
    assert!(logits.iter().any(|logit| *logit != logits[0]), "{name}");
}

#[test]
fn every_shape_runs() {
    for shape in SHAPES {
        check(&small(shape), Quant::Q4KM);
    }
}

#[test]
fn every_type_runs() {
    let shape = small(Shape::named("tinyllama-1.1b").expect("a shape"));
    for name in Quant::names() {
        check(&shape, Quant::from_name(&name).expect("a name"));
    }
}

#[test]
fn a_seed_is_a_file() {
    let shape = small(&SHAPES[0]);
    let of = |seed| bytes(&shape, Quant::Q4KM, seed);
    assert!(of(3) == of(3));
    assert!(of(3) != of(4));
}
