//! The `gemma3` architecture (text part).
//!
//! Against llama: the embedding is scaled by sqrt(hidden), every Q and K head is normed before the rotary embedding
//! (half-split pairs), both branches are normed before they are added as well, GELU gates, and five of six
//! layers see only a window of positions with a rotary base of their own. Norm weights are stored with
//! their 1 added.

use realm_kernels::{Activation, AttentionShape, Cpu, KvLayer, Matrix, Rope, RopeLayout};

use super::LoadError;
use super::graph::{AttentionWeights, FeedForward, Graph, Loader, Scratch, Shape, Step};

/// Layers of the one size whose query scale is not that of the head width.
const LAYERS_27B: u32 = 62;

/// The model; see the module header.
pub(super) struct Gemma3 {
    shape: Shape,
    embedding: Matrix,
    embedding_scale: f32,
    local: Attention,
    global: Attention,
    layers: Vec<Layer>,
    output_norm: Vec<f32>,
    output: Option<Matrix>, // None: tied to the embedding
}

/// What differs between windowed and full layers.
struct Attention {
    shape: AttentionShape,
    rope: Rope,
}

struct Layer {
    is_local: bool,
    attention_norm: Vec<f32>,
    attention: AttentionWeights,
    q_norm: Vec<f32>, // [head_dim]
    k_norm: Vec<f32>, // [head_dim]
    post_attention_norm: Vec<f32>,
    ffn_norm: Vec<f32>,
    ffn: FeedForward,
    post_ffn_norm: Vec<f32>,
}

impl Gemma3 {
    pub(super) fn load(loader: &mut Loader<'_>) -> Result<Gemma3, LoadError> {
        let shape = loader.shape()?;
        loader.refuse("attn_logit_softcapping", "soft-capping of attention scores")?;
        loader.refuse("final_logit_softcapping", "soft-capping of logits")?;
        let window = match loader
            .metadata()
            .u32(&loader.key("attention.sliding_window"))?
        {
            None => 512,
            Some(_) => loader.count("attention.sliding_window")?,
        };
        let scale = match shape.layers {
            LAYERS_27B => 1.0 / ((shape.hidden / shape.heads) as f32).sqrt(),
            _ => 1.0 / (shape.head_dim as f32).sqrt(),
        };
        let local_base = loader.positive("rope.freq_base_swa", 10_000.0)?;
        let global_base = loader.positive("rope.freq_base", 1_000_000.0)?;
        let layout = RopeLayout::HalfSplit;
        let local = Attention {
            shape: shape.attention(scale, Some(window)),
            // Long-context scaling is for the layers that see a long context.
            rope: loader.rope(&shape, local_base, layout, false)?,
        };
        let global = Attention {
            shape: shape.attention(scale, None),
            rope: loader.rope(&shape, global_base, layout, true)?,
        };
        let layers = (0..shape.layers)
            .map(|index| Layer::load(loader, &shape, index))
            .collect::<Result<Vec<Layer>, LoadError>>()?;
        Ok(Gemma3 {
            embedding: loader.matrix("token_embd.weight", shape.vocab as usize, shape.hidden)?,
            embedding_scale: (shape.hidden as f32).sqrt(),
            local,
            global,
            layers,
            output_norm: loader.vector("output_norm.weight", shape.hidden)?,
            output: loader.optional_output(&shape)?,
            shape,
        })
    }
}

impl Layer {
    /// Layers in a period, the last of which sees everything. Files do not say it.
    const PERIOD: u32 = 6;

    fn load(loader: &mut Loader<'_>, shape: &Shape, index: u32) -> Result<Layer, LoadError> {
        Ok(Layer {
            is_local: !(index + 1).is_multiple_of(Layer::PERIOD),
            attention_norm: loader.norm(index, "attn_norm", shape.hidden)?,
            attention: loader.attention(index, shape)?,
            q_norm: loader.norm(index, "attn_q_norm", shape.head_dim)?,
            k_norm: loader.norm(index, "attn_k_norm", shape.head_dim)?,
            post_attention_norm: loader.norm(index, "post_attention_norm", shape.hidden)?,
            ffn_norm: loader.norm(index, "ffn_norm", shape.hidden)?,
            ffn: loader.feed_forward(index, shape)?,
            post_ffn_norm: loader.norm(index, "post_ffw_norm", shape.hidden)?,
        })
    }
}

impl Graph for Gemma3 {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn layers(&self, cpu: &Cpu, step: &Step<'_>, kv: &mut [KvLayer], s: &mut Scratch) {
        let shape = &self.shape;
        let (eps, head_dim) = (shape.eps, shape.head_dim);
        cpu.embed(&self.embedding, step.tokens, self.embedding_scale, &mut s.x);
        for (layer, kv) in self.layers.iter().zip(kv) {
            let attention = if layer.is_local {
                &self.local
            } else {
                &self.global
            };
            cpu.norm_quantize(&s.x, &layer.attention_norm, eps, &mut s.attend);
            layer.attention.project(cpu, s);
            cpu.qk_norm(&mut s.q, head_dim, &layer.q_norm, eps);
            cpu.qk_norm(&mut s.k, head_dim, &layer.k_norm, eps);
            cpu.rope(&mut s.q, shape.heads, &attention.rope, step.positions);
            cpu.rope(&mut s.k, shape.kv_heads, &attention.rope, step.positions);
            cpu.kv_write(&s.k, &s.v, kv, step.slots);
            let (rows, tables) = (step.attention, step.tables);
            cpu.attention(&s.q, kv, rows, tables, &attention.shape, &mut s.attended);
            cpu.quantize(&s.attended, shape.heads * head_dim, &mut s.acts);
            cpu.matmul(&layer.attention.output, &s.acts, &mut s.branch);
            cpu.norm_add(&s.branch, &layer.post_attention_norm, eps, &mut s.x);

            cpu.norm_quantize(&s.x, &layer.ffn_norm, eps, &mut s.acts);
            layer.ffn.gate(cpu, Activation::GeluTanh, s);
            cpu.matmul(&layer.ffn.down, &s.gated, &mut s.branch);
            cpu.norm_add(&s.branch, &layer.post_ffn_norm, eps, &mut s.x);
        }
    }

    fn head(&self) -> (&[f32], &Matrix) {
        let output = self.output.as_ref().unwrap_or(&self.embedding);
        (&self.output_norm, output)
    }
}
