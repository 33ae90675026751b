//! Graphs on other operations than the CPU's own: adapters reach every projection, and nothing but their rows.

use std::collections::BTreeMap;
use std::sync::Mutex;

use realm_kernels::quant::BlockType;
use realm_kernels::{
    Activation, Activations, AttentionRow, AttentionShape, Cpu, KvLayer, KvType, Matrix,
    MatrixView, Precision, Rope,
};
use realm_weights::Gguf;

use super::LoadError;
use super::decoder::{Decoder, Scratch};
use super::keys::Keys;
use super::layer::Norm;
use super::loader::{Loader, Weights};
use super::ops::{Ops, Part, Site};
use super::{gptneox, llama, qwen3};
use crate::executor::{SequenceRows, StepBatch};
use crate::synthetic::{self, Quant, Shape};

/// The CPU, and adapters that add a number to what they shape.
struct Adapted {
    cpu: Cpu,
    deltas: Vec<f32>,                   // by adapter
    seen: Mutex<BTreeMap<Site, usize>>, // rows
}

impl Ops for Adapted {
    type Matrix = Matrix;
    type Vector = Vec<f32>;
    type Rows = Vec<f32>;
    type Acts = Activations;
    type Kv = KvLayer;

    fn adapt(&self, site: Site, x: &Activations, adapters: &[Option<u32>], out: &mut Vec<f32>) {
        *self.seen.lock().unwrap().entry(site).or_insert(0) += x.rows();
        assert!(adapters.is_empty() || adapters.len() == x.rows());
        let width = out.len() / x.rows();
        for (row, adapter) in out.chunks_exact_mut(width).zip(adapters) {
            if let Some(adapter) = adapter {
                let delta = self.deltas[*adapter as usize];
                row.iter_mut().for_each(|value| *value += delta);
            }
        }
    }

    fn vector(&self, values: Vec<f32>) -> Vec<f32> {
        self.cpu.vector(values)
    }
    fn set_precision(x: &mut Activations, precision: &Precision) {
        x.set_precision(precision);
    }
    fn rows(x: &Activations) -> usize {
        x.rows()
    }
    fn resize(&self, x: &mut Vec<f32>, elements: usize) {
        self.cpu.resize(x, elements);
    }
    fn read(&self, x: &mut Vec<f32>, out: &mut Vec<f32>) {
        self.cpu.read(x, out);
    }
    fn embed(&self, table: &Matrix, ids: &[u32], scale: f32, out: &mut Vec<f32>) {
        Ops::embed(&self.cpu, table, ids, scale, out);
    }
    fn quantize(
        &self,
        norm: Option<&Norm<Adapted>>,
        x: &Vec<f32>,
        width: usize,
        out: &mut Activations,
    ) {
        let norm = norm.map(|norm| Norm {
            weight: norm.weight.clone(),
            bias: norm.bias.clone(),
            eps: norm.eps,
        });
        Ops::quantize(&self.cpu, norm.as_ref(), x, width, out);
    }
    fn matmul<const N: usize>(&self, products: [(&Matrix, &mut Vec<f32>); N], x: &Activations) {
        Ops::matmul(&self.cpu, products, x);
    }
    fn matmul_add(&self, w: &Matrix, x: &Activations, sum: &mut Vec<f32>) {
        Ops::matmul_add(&self.cpu, w, x, sum);
    }
    fn add_bias(&self, bias: &Vec<f32>, x: &mut Vec<f32>) {
        Ops::add_bias(&self.cpu, bias, x);
    }
    fn norm_heads(&self, norm: &Vec<f32>, eps: f32, x: &mut Vec<f32>) {
        self.cpu.norm_heads(norm, eps, x);
    }
    fn rope(&self, rope: &Rope, heads: usize, positions: &[u32], x: &mut Vec<f32>) {
        Ops::rope(&self.cpu, rope, heads, positions, x);
    }
    fn kv_write(&self, k: &Vec<f32>, v: &Vec<f32>, slots: &[u32], kv: &mut KvLayer) {
        Ops::kv_write(&self.cpu, k, v, slots, kv);
    }
    fn attention(
        &self,
        shape: &AttentionShape,
        q: &Vec<f32>,
        kv: &KvLayer,
        rows: &[AttentionRow],
        tables: &[&[u32]],
        out: &mut Vec<f32>,
    ) {
        Ops::attention(&self.cpu, shape, q, kv, rows, tables, out);
    }
    fn gate_up_act(
        &self,
        weights: [&Matrix; 2],
        act: Activation,
        x: &Activations,
        tmp: &mut Vec<f32>,
        out: &mut Activations,
    ) {
        Ops::gate_up_act(&self.cpu, weights, act, x, tmp, out);
    }
    fn gate_quantize(
        &self,
        act: Activation,
        gate: &Vec<f32>,
        up: &Vec<f32>,
        width: usize,
        out: &mut Activations,
    ) {
        Ops::gate_quantize(&self.cpu, act, gate, up, width, out);
    }
    fn activate_quantize(
        &self,
        act: Activation,
        x: &Vec<f32>,
        width: usize,
        out: &mut Activations,
    ) {
        Ops::activate_quantize(&self.cpu, act, x, width, out);
    }
    fn norm_add(&self, norm: &Vec<f32>, eps: f32, x: &Vec<f32>, sum: &mut Vec<f32>) {
        Ops::norm_add(&self.cpu, norm, eps, x, sum);
    }
    fn add_scaled(&self, factor: f32, x: &Vec<f32>, sum: &mut Vec<f32>) {
        Ops::add_scaled(&self.cpu, factor, x, sum);
    }
    fn clear(&self, sum: &mut Vec<f32>) {
        self.cpu.clear(sum);
    }
    fn scatter_add(
        &self,
        x: &Vec<f32>,
        width: usize,
        to: impl Iterator<Item = (u32, f32)>,
        sum: &mut Vec<f32>,
    ) {
        self.cpu.scatter_add(x, width, to, sum);
    }
    fn gather(&self, x: &Vec<f32>, width: usize, rows: &[u32], out: &mut Vec<f32>) {
        self.cpu.gather(x, width, rows, out);
    }
    fn gather_acts(&self, x: &Activations, rows: &[u32], out: &mut Activations) {
        self.cpu.gather_acts(x, rows, out);
    }
    fn scale(&self, factor: f32, x: &mut Vec<f32>) {
        Ops::scale(&self.cpu, factor, x);
    }
    fn softcap(&self, cap: f32, width: usize, x: &mut Vec<f32>) {
        Ops::softcap(&self.cpu, cap, width, x);
    }
}

impl<'s> Weights<'s, Adapted> for Cpu {
    fn matrix(&mut self, _: &str, view: MatrixView<'s>) -> Result<Matrix, LoadError> {
        Ok(self.prepare(view))
    }

    fn finish(self: Box<Self>) {}
}

type Load = fn(&mut Loader<'_, Adapted>) -> Result<Decoder<Adapted>, LoadError>;

/// A small model, its operations and an empty cache.
struct Model {
    ops: Adapted,
    decoder: Decoder<Adapted>,
}

impl Model {
    fn new(shape: &str, deltas: &[f32], load: Load) -> Model {
        let shape = Shape {
            layers: 2,
            hidden: 64,
            feed_forward: 96,
            vocab: 300,
            ..*Shape::named(shape).unwrap()
        };
        let mut bytes = Vec::new();
        synthetic::write(&shape, Quant::Pure(BlockType::Q8_0), 1, &mut bytes).unwrap();
        let gguf = Gguf::from_bytes(bytes).unwrap();
        let ops = Adapted {
            cpu: Cpu::new(1),
            deltas: deltas.to_vec(),
            seen: Mutex::default(),
        };
        let architecture = gguf.metadata().require_str("general.architecture").unwrap();
        let keys = Keys::new(gguf.metadata(), architecture, None);
        let weights = Box::new(ops.cpu.clone());
        let mut loader = Loader::new(&gguf, keys, &ops, weights);
        let decoder = load(&mut loader).unwrap();
        loader.finish().unwrap();
        Model { ops, decoder }
    }

    /// The logits of all rows of two sequences, shaped by an adapter each.
    fn logits(&self, adapters: [Option<u32>; 2]) -> [Vec<f32>; 2] {
        let tokens = [[5u32, 17, 260, 3], [9, 9, 41, 299]];
        let tables = [[3u32], [1]];
        let mut batch = StepBatch::default();
        for (index, adapter) in adapters.into_iter().enumerate() {
            let rows = SequenceRows {
                blocks: &tables[index],
                start: 0,
                logits: 4,
                adapter,
            };
            batch.push(rows, tokens[index]).unwrap();
        }
        let shape = self.decoder.shape();
        let mut kv: Vec<KvLayer> = (0..shape.layers)
            .map(|_| KvLayer::new(4, shape.kv_heads, shape.head_dim, KvType::F16))
            .collect();
        let (mut scratch, mut logits) = (Scratch::default(), Vec::new());
        self.decoder
            .run(&self.ops, &batch, &mut kv, &mut scratch, &mut logits);
        assert!(logits.iter().all(|logit| logit.is_finite()));
        let second = logits.split_off(logits.len() / 2);
        [logits, second]
    }
}

fn models(deltas: &[f32]) -> [(&'static str, Model); 3] {
    let load: [(&str, Load); 3] = [
        ("smollm2-135m", llama::load),
        ("qwen3-30b-a3b", qwen3::load),
        ("pythia-1b", gptneox::load),
    ];
    load.map(|(name, load)| (name, Model::new(name, deltas, load)))
}

#[test]
fn an_adapter_shapes_its_own_rows_and_no_others() {
    for (name, model) in models(&[0.0, 0.05]) {
        let [first, second] = model.logits([None, None]);
        let nothing = model.logits([Some(0), None]);
        assert!(
            nothing == [first.clone(), second.clone()],
            "{name}: nothing is added"
        );
        let [other, same] = model.logits([Some(1), None]);
        assert!(same == second, "{name}: a row without an adapter");
        assert!(other != first, "{name}");
        let [beside, _] = model.logits([Some(1), Some(0)]);
        assert!(beside == other, "{name}: whatever is beside it");
    }
}

#[test]
fn every_projection_of_a_model_can_be_adapted() {
    for (name, model) in models(&[0.0]) {
        model.logits([Some(0), None]);
        let seen = model.ops.seen.into_inner().unwrap();
        let layers = [0, 1].into_iter().flat_map(|layer| {
            let parts = match name {
                "qwen3-30b-a3b" => vec![Part::Router],
                "pythia-1b" => vec![Part::Up, Part::Down],
                _ => vec![Part::Gate, Part::Up, Part::Down],
            };
            let attention = [Part::Query, Part::Key, Part::Value, Part::AttentionOutput];
            let parts = attention.into_iter().chain(parts);
            parts.map(move |part| Site::Layer(layer, part))
        });
        for site in layers.chain([Site::Logits]) {
            assert_eq!(seen.get(&site), Some(&8), "{name}: {site:?}");
        }
        let of_experts = |site: &&Site| {
            matches!(
                site,
                Site::Layer(
                    _,
                    Part::ExpertGate(_) | Part::ExpertUp(_) | Part::ExpertDown(_)
                )
            )
        };
        let rows: usize = seen.keys().filter(of_experts).map(|site| seen[site]).sum();
        let used = model
            .decoder
            .shape()
            .experts
            .map_or(0, |experts| experts.used);
        assert_eq!(rows, 2 * 3 * 8 * used, "{name}: every expert of every row");
    }
}
