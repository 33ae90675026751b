//! The decoder every generating architecture is: a residual stream to which attention and feed-forward are added, layer
//! by layer. What differs between architectures is data here; their files say which of it they have.

use realm_kernels::{
    Activation, Activations, AttentionRow, AttentionShape, Cpu, KvLayer, Matrix, Rope,
};

use super::LoadError;
use super::experts::ExpertScratch;
use super::layer::{FeedForward, Layer, Linear, Norm};
use super::loader::{Loader, Shape};

/// One step as the kernels want it; one entry per row unless it says otherwise.
pub(crate) struct Step<'a> {
    pub(crate) tokens: &'a [u32],
    pub(crate) positions: &'a [u32],
    pub(crate) slots: &'a [u32], // block * 16 + offset, where K and V go
    pub(crate) attention: &'a [AttentionRow],
    pub(crate) tables: &'a [&'a [u32]], // per sequence
}

/// A model with its weights.
pub(crate) struct Decoder {
    pub(super) shape: Shape,
    pub(super) embedding: Matrix,
    pub(super) embedding_scale: f32,
    pub(super) attention: Vec<Attention>, // the kinds that layers choose from
    pub(super) layers: Vec<Layer>,
    pub(super) activation: Activation,
    pub(super) residual_scale: f32, // of what is added to the stream
    pub(super) is_parallel: bool,   // feed-forward reads what attention reads
    pub(super) output_norm: Norm,
    pub(super) output: Option<Matrix>, // `None`: tied to the embedding
    pub(super) logits: Logits,
}

/// One kind of attention layer.
pub(super) struct Attention {
    pub(super) shape: AttentionShape,
    pub(super) rope: Rope,
}

/// What becomes of the output matrix's products.
#[derive(Clone, Copy)]
pub(super) enum Logits {
    Plain,
    Scaled(f32),
    Capped(f32),
}

/// Buffers that live as long as the executor and only grow.
pub(crate) struct Scratch {
    pub(crate) x: Vec<f32>,         // [rows, hidden], the residual stream
    pub(crate) attend: Activations, // [rows, hidden], normed for Q, K and V
    pub(crate) feed: Activations,   // [rows, hidden], normed for the feed-forward
    pub(crate) q: Vec<f32>,         // [rows, heads * head_dim]
    pub(crate) k: Vec<f32>,         // [rows, kv_heads * head_dim]
    pub(crate) v: Vec<f32>,         // [rows, kv_heads * head_dim]
    pub(crate) attended: Vec<f32>,  // [rows, heads * head_dim]
    pub(crate) acts: Activations,   // of `attended`, and of the rows that ask for logits
    pub(crate) branch: Vec<f32>,    // [rows, hidden], where it is not added at once
    pub(crate) gated: Activations,  // [rows, feed_forward]
    pub(crate) tmp: Vec<f32>,
    pub(crate) experts: ExpertScratch,
}

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch {
            x: Vec::new(),
            attend: Activations::sensitive(),
            feed: Activations::default(),
            q: Vec::new(),
            k: Vec::new(),
            v: Vec::new(),
            attended: Vec::new(),
            acts: Activations::default(),
            branch: Vec::new(),
            gated: Activations::default(),
            tmp: Vec::new(),
            experts: ExpertScratch::default(),
        }
    }
}

impl Scratch {
    /// Gives every buffer its length for this many rows.
    pub(crate) fn resize(&mut self, shape: &Shape, rows: usize) {
        self.x.resize(rows * shape.hidden, 0.0);
        self.branch.resize(rows * shape.hidden, 0.0);
        self.q.resize(rows * shape.heads * shape.head_dim, 0.0);
        self.attended
            .resize(rows * shape.heads * shape.head_dim, 0.0);
        self.k.resize(rows * shape.kv_heads * shape.head_dim, 0.0);
        self.v.resize(rows * shape.kv_heads * shape.head_dim, 0.0);
    }
}

impl Decoder {
    /// What all architectures have, with layers that `layer` loads; the rest is as in llama.
    pub(super) fn load(
        loader: &mut Loader<'_>,
        shape: Shape,
        attention: Vec<Attention>,
        layer: impl Fn(&mut Loader<'_>, &Shape, u32) -> Result<Layer, LoadError>,
    ) -> Result<Decoder, LoadError> {
        let layers = (0..shape.layers)
            .map(|index| layer(loader, &shape, index))
            .collect::<Result<Vec<Layer>, LoadError>>()?;
        Ok(Decoder {
            embedding: loader.matrix("token_embd.weight", shape.vocab as usize, shape.hidden)?,
            embedding_scale: 1.0,
            attention,
            layers,
            activation: Activation::Silu,
            residual_scale: 1.0,
            is_parallel: false,
            output_norm: Norm::load(loader, "output_norm", &shape)?,
            output: loader.optional_output(&shape)?,
            logits: Logits::Plain,
            shape,
        })
    }

    /// Sizes that the cache and the executor need.
    pub(crate) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Computes all layers: K and V of every row go to `kv`, the last hidden states to `scratch.x`.
    pub(crate) fn layers(
        &self,
        cpu: &Cpu,
        step: &Step<'_>,
        kv: &mut [KvLayer],
        scratch: &mut Scratch,
    ) {
        cpu.embed(
            &self.embedding,
            step.tokens,
            self.embedding_scale,
            &mut scratch.x,
        );
        for (layer, kv) in self.layers.iter().zip(kv) {
            let Scratch { x, feed, .. } = &mut *scratch;
            if self.is_parallel {
                Norm::quantize(layer.ffn_norm.as_ref(), cpu, x, self.shape.hidden, feed);
            }
            self.attend(cpu, layer, step, kv, scratch);
            let Scratch { x, feed, .. } = &mut *scratch;
            if !self.is_parallel {
                Norm::quantize(layer.ffn_norm.as_ref(), cpu, x, self.shape.hidden, feed);
            }
            self.feed_forward(cpu, layer, scratch);
        }
    }

    fn attend(&self, cpu: &Cpu, layer: &Layer, step: &Step<'_>, kv: &mut KvLayer, s: &mut Scratch) {
        let (shape, kind) = (&self.shape, &self.attention[layer.kind]);
        let norm = layer.attention_norm.as_ref();
        Norm::quantize(norm, cpu, &s.x, shape.hidden, &mut s.attend);
        let (q, k, v) = (&mut *s.q, &mut *s.k, &mut *s.v);
        let products = [(&layer.q, q), (&layer.k, k), (&layer.v, v)];
        Linear::multiply_each(products, cpu, &s.attend);
        // One head wide, or as wide as all of them: the norm's own width says over what it goes.
        if let Some(norm) = &layer.q_norm {
            cpu.qk_norm(&mut s.q, norm.len(), norm, shape.eps);
        }
        if let Some(norm) = &layer.k_norm {
            cpu.qk_norm(&mut s.k, norm.len(), norm, shape.eps);
        }
        cpu.rope(&mut s.q, shape.heads, &kind.rope, step.positions);
        cpu.rope(&mut s.k, shape.kv_heads, &kind.rope, step.positions);
        cpu.kv_write(&s.k, &s.v, kv, step.slots);
        let (rows, tables) = (step.attention, step.tables);
        cpu.attention(&s.q, kv, rows, tables, &kind.shape, &mut s.attended);
        cpu.quantize(&s.attended, shape.heads * shape.head_dim, &mut s.acts);
        let post_norm = layer.post_attention_norm.as_deref();
        self.add_product(
            cpu,
            &layer.output,
            &s.acts,
            post_norm,
            &mut s.branch,
            &mut s.x,
        );
    }

    /// Adds what `scratch.feed` becomes.
    fn feed_forward(&self, cpu: &Cpu, layer: &Layer, scratch: &mut Scratch) {
        let Scratch {
            x,
            feed,
            branch,
            gated,
            tmp,
            experts,
            ..
        } = scratch;
        let post_norm = layer.post_ffn_norm.as_deref();
        match &layer.ffn {
            FeedForward::Gated { gate, up, down } => {
                cpu.gate_up_act(gate, up, self.activation, feed, tmp, gated);
                self.add_product(cpu, down, gated, post_norm, branch, x);
            }
            FeedForward::Plain { up, down } => {
                let width = up.matrix.rows();
                tmp.resize(feed.rows() * width, 0.0);
                up.multiply(cpu, feed, tmp);
                cpu.activate_quantize(tmp, width, self.activation, gated);
                self.add_product(cpu, down, gated, post_norm, branch, x);
            }
            FeedForward::Experts(all) => {
                all.run(cpu, self.activation, feed, experts, branch);
                self.add(cpu, branch, post_norm, x);
            }
        }
    }

    /// Adds `acts · Wᵀ` to the stream, at once where nothing is done to it before.
    fn add_product(
        &self,
        cpu: &Cpu,
        w: &Linear,
        acts: &Activations,
        post_norm: Option<&[f32]>,
        branch: &mut [f32],
        x: &mut [f32],
    ) {
        if post_norm.is_some() || self.residual_scale != 1.0 {
            w.multiply(cpu, acts, branch);
            return self.add(cpu, branch, post_norm, x);
        }
        cpu.matmul_add(&w.matrix, acts, x);
        if let Some(bias) = &w.bias {
            cpu.add_bias(bias, x);
        }
    }

    fn add(&self, cpu: &Cpu, branch: &[f32], post_norm: Option<&[f32]>, x: &mut [f32]) {
        match post_norm {
            Some(norm) => cpu.norm_add(branch, norm, self.shape.eps, x),
            None => cpu.add_scaled(branch, self.residual_scale, x),
        }
    }

    /// The logits (`[rows, vocab]`) of the hidden states in `scratch.branch`.
    pub(crate) fn head(&self, cpu: &Cpu, scratch: &mut Scratch, logits: &mut [f32]) {
        let Scratch { branch, acts, .. } = scratch;
        Norm::quantize(
            Some(&self.output_norm),
            cpu,
            branch,
            self.shape.hidden,
            acts,
        );
        let output = self.output.as_ref().unwrap_or(&self.embedding);
        cpu.matmul(output, acts, logits);
        match self.logits {
            Logits::Plain => {}
            Logits::Scaled(factor) => cpu.scale(factor, logits),
            Logits::Capped(cap) => cpu.softcap(cap, self.shape.vocab as usize, logits),
        }
    }
}
