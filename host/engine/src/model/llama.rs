//! The `llama` architecture: Llama 1 to 3, Mistral, SmolLM and what is stored like them.
//!
//! RMS norm, grouped-query attention with rotary embedding on adjacent pairs, SwiGLU; the output matrix is
//! its own or the embedding again. Rows of Q and K are stored permuted for adjacent pairs.

use realm_kernels::{Activation, AttentionShape, Cpu, KvLayer, Matrix, Rope, RopeLayout};

use super::LoadError;
use super::graph::{AttentionWeights, FeedForward, Graph, Loader, Scratch, Shape, Step};

/// The model; see the module header.
pub(super) struct Llama {
    shape: Shape,
    attention: AttentionShape,
    rope: Rope,
    embedding: Matrix,
    layers: Vec<Layer>,
    output_norm: Vec<f32>,
    output: Option<Matrix>, // None: tied to the embedding
}

struct Layer {
    attention_norm: Vec<f32>,
    attention: AttentionWeights,
    ffn_norm: Vec<f32>,
    ffn: FeedForward,
}

impl Llama {
    pub(super) fn load(loader: &mut Loader<'_>) -> Result<Llama, LoadError> {
        let shape = loader.shape()?;
        let base = loader.positive("rope.freq_base", 10_000.0)?;
        let rope = loader.rope(&shape, base, RopeLayout::Adjacent, true)?;
        let layers = (0..shape.layers)
            .map(|index| Layer::load(loader, &shape, index))
            .collect::<Result<Vec<Layer>, LoadError>>()?;
        Ok(Llama {
            attention: shape.attention(1.0 / (shape.head_dim as f32).sqrt(), None),
            rope,
            embedding: loader.matrix("token_embd.weight", shape.vocab as usize, shape.hidden)?,
            layers,
            output_norm: loader.vector("output_norm.weight", shape.hidden)?,
            output: loader.optional_output(&shape)?,
            shape,
        })
    }
}

impl Layer {
    fn load(loader: &mut Loader<'_>, shape: &Shape, index: u32) -> Result<Layer, LoadError> {
        Ok(Layer {
            attention_norm: loader.norm(index, "attn_norm", shape.hidden)?,
            attention: loader.attention(index, shape)?,
            ffn_norm: loader.norm(index, "ffn_norm", shape.hidden)?,
            ffn: loader.feed_forward(index, shape)?,
        })
    }
}

impl Graph for Llama {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn layers(&self, cpu: &Cpu, step: &Step<'_>, kv: &mut [KvLayer], s: &mut Scratch) {
        let shape = &self.shape;
        let width = shape.heads * shape.head_dim;
        cpu.embed(&self.embedding, step.tokens, 1.0, &mut s.x);
        for (layer, kv) in self.layers.iter().zip(kv) {
            cpu.norm_quantize(&s.x, &layer.attention_norm, shape.eps, &mut s.attend);
            layer.attention.project(cpu, s);
            cpu.rope(&mut s.q, shape.heads, &self.rope, step.positions);
            cpu.rope(&mut s.k, shape.kv_heads, &self.rope, step.positions);
            cpu.kv_write(&s.k, &s.v, kv, step.slots);
            let (rows, tables) = (step.attention, step.tables);
            cpu.attention(&s.q, kv, rows, tables, &self.attention, &mut s.attended);
            cpu.quantize(&s.attended, width, &mut s.acts);
            cpu.matmul_add(&layer.attention.output, &s.acts, &mut s.x);

            cpu.norm_quantize(&s.x, &layer.ffn_norm, shape.eps, &mut s.acts);
            layer.ffn.gate(cpu, Activation::Silu, s);
            cpu.matmul_add(&layer.ffn.down, &s.gated, &mut s.x);
        }
    }

    fn head(&self) -> (&[f32], &Matrix) {
        let output = self.output.as_ref().unwrap_or(&self.embedding);
        (&self.output_norm, output)
    }
}
