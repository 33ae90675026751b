//! The decoder every generating architecture is: a residual stream to which attention and feed-forward are added, layer
//! by layer. What differs between architectures is data here; their files say which of it they have.

use realm_kernels::{Activation, AttentionShape, Precision, Rope};

use super::LoadError;
use super::experts::ExpertScratch;
use super::layer::{FeedForward, Layer, Norm};
use super::loader::{Loader, Shape};
use super::ops::{Ops, Site};
use super::projection::{Input, Projection};
use crate::executor::StepBatch;

/// Is shown an input of a layer as it is quantized, with the rows that it was made of.
type ObserveLayer<'o, O> = dyn FnMut(LayerInput, &<O as Ops>::Acts, &<O as Ops>::Rows) + 'o;

/// A model with its weights.
pub(crate) struct Decoder<O: Ops> {
    pub(super) shape: Shape,
    pub(super) embedding: O::Matrix,
    pub(super) embedding_scale: f32,
    pub(super) attention: Vec<Attention>, // the kinds that layers choose from
    pub(super) layers: Vec<Layer<O>>,
    pub(super) activation: Activation,
    pub(super) residual_scale: f32, // of what is added to the stream
    pub(super) is_parallel: bool,   // feed-forward reads what attention reads
    pub(super) output_norm: Norm<O>,
    pub(super) output: Projection<O>, // its matrix may be the embedding's
    pub(super) output_precision: Precision,
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

/// What a layer's matrices read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LayerInput {
    Attend,
    Attended,
    Feed,
    Gated,
}

/// Sees the input of a layer, by its index, and the residual stream to which what becomes of it will be added.
pub(super) type Observe<'a, O> =
    &'a mut dyn FnMut((usize, LayerInput), &<O as Ops>::Acts, &<O as Ops>::Rows);

/// Buffers that live as long as the executor and only grow.
pub(crate) struct Scratch<O: Ops> {
    x: O::Rows,        // [rows, hidden], the residual stream
    attend: O::Acts,   // [rows, hidden], normed for Q, K and V
    feed: O::Acts,     // [rows, hidden], normed for the feed-forward
    q: O::Rows,        // [rows, heads * head_dim]
    k: O::Rows,        // [rows, kv_heads * head_dim]
    v: O::Rows,        // [rows, kv_heads * head_dim]
    attended: O::Rows, // [rows, heads * head_dim]
    acts: O::Acts,     // of `attended`, and of the rows that ask for logits
    branch: O::Rows,   // [rows, hidden], where it is not added at once
    gated: O::Acts,    // [rows, feed_forward]
    tmp: [O::Rows; 2],
    logits: O::Rows,            // [rows that ask, vocab]
    adapters: Vec<Option<u32>>, // of the rows that ask
    experts: ExpertScratch<O>,
}

impl<O: Ops> Default for Scratch<O> {
    fn default() -> Scratch<O> {
        Scratch {
            x: O::Rows::default(),
            attend: O::Acts::default(),
            feed: O::Acts::default(),
            q: O::Rows::default(),
            k: O::Rows::default(),
            v: O::Rows::default(),
            attended: O::Rows::default(),
            acts: O::Acts::default(),
            branch: O::Rows::default(),
            gated: O::Acts::default(),
            tmp: Default::default(),
            logits: O::Rows::default(),
            adapters: Vec::new(),
            experts: ExpertScratch::default(),
        }
    }
}

impl<O: Ops> Scratch<O> {
    /// The residual stream of the last batch, `[rows, hidden]`.
    pub(super) fn stream(&self) -> &O::Rows {
        &self.x
    }

    /// Gives every buffer its length for this many rows.
    fn resize(&mut self, ops: &O, shape: &Shape, rows: usize) {
        let (width, kv_width) = (
            shape.heads * shape.head_dim,
            shape.kv_heads * shape.head_dim,
        );
        for (buffer, width) in [
            (&mut self.x, shape.hidden),
            (&mut self.branch, shape.hidden),
            (&mut self.q, width),
            (&mut self.attended, width),
            (&mut self.k, kv_width),
            (&mut self.v, kv_width),
        ] {
            ops.resize(buffer, rows * width);
        }
    }
}

impl<O: Ops> Decoder<O> {
    /// What all architectures have, with layers that `layer` loads; the rest is as in llama.
    pub(super) fn load(
        loader: &mut Loader<'_, O>,
        shape: Shape,
        attention: Vec<Attention>,
        layer: impl Fn(&mut Loader<'_, O>, &Shape, u32) -> Result<Layer<O>, LoadError>,
    ) -> Result<Decoder<O>, LoadError> {
        let layers = (0..shape.layers)
            .map(|index| layer(loader, &shape, index))
            .collect::<Result<Vec<Layer<O>>, LoadError>>()?;
        let vocab = shape.vocab as usize;
        let embedding = loader.matrix("token_embd.weight", vocab, shape.hidden)?;
        // Models without an output matrix use the embedding again.
        let output = match loader.has("output.weight") {
            true => loader.matrix("output.weight", vocab, shape.hidden)?,
            false => embedding.clone(),
        };
        Ok(Decoder {
            embedding,
            embedding_scale: 1.0,
            attention,
            layers,
            activation: Activation::Silu,
            residual_scale: 1.0,
            is_parallel: false,
            output_norm: Norm::load(loader, "output_norm", &shape)?,
            output: Projection::new(Site::Logits, output, vocab),
            output_precision: Precision::default(),
            logits: Logits::Plain,
            shape,
        })
    }

    /// Sizes that the cache and the executor need.
    pub(crate) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// [`run_observed`](Decoder::run_observed) with nobody looking.
    pub(crate) fn run(
        &self,
        ops: &O,
        batch: &StepBatch<'_>,
        kv: &mut [O::Kv],
        scratch: &mut Scratch<O>,
        logits: &mut Vec<f32>,
    ) {
        self.run_observed(ops, batch, kv, (scratch, logits), &mut |_, _, _| ());
    }

    /// Computes a batch with at least one row: K and V of every row go to `kv`, one entry a layer, and the logits of the rows
    /// that asked, `[rows that asked, vocab]`, to `logits`. `observe` sees what
    /// dense matrices are multiplied with, in order: attention's input, its output, and the feed-forward's two of each layer.
    pub(super) fn run_observed(
        &self,
        ops: &O,
        batch: &StepBatch<'_>,
        kv: &mut [O::Kv],
        (scratch, logits): (&mut Scratch<O>, &mut Vec<f32>),
        observe: Observe<'_, O>,
    ) {
        scratch.resize(ops, &self.shape, batch.rows());
        let scale = self.embedding_scale;
        ops.embed(&self.embedding, batch.tokens(), scale, &mut scratch.x);
        for ((index, layer), kv) in self.layers.iter().enumerate().zip(kv) {
            let observe =
                &mut |input, x: &O::Acts, stream: &O::Rows| observe((index, input), x, stream);
            if self.is_parallel {
                self.prepare_feed(ops, layer, scratch);
            }
            self.attend(ops, layer, batch, kv, scratch, observe);
            if !self.is_parallel {
                self.prepare_feed(ops, layer, scratch);
            }
            self.feed_forward(ops, layer, batch, scratch, observe);
        }
        if !batch.outputs().is_empty() {
            self.head(ops, batch, scratch, logits);
        }
    }

    fn prepare_feed(&self, ops: &O, layer: &Layer<O>, s: &mut Scratch<O>) {
        let norm = layer.ffn_norm.as_ref();
        O::set_precision(&mut s.feed, &layer.precisions.feed);
        ops.quantize(norm, &s.x, self.shape.hidden, &mut s.feed);
    }

    fn attend(
        &self,
        ops: &O,
        layer: &Layer<O>,
        batch: &StepBatch<'_>,
        kv: &mut O::Kv,
        s: &mut Scratch<O>,
        observe: &mut ObserveLayer<'_, O>,
    ) {
        let (shape, kind) = (&self.shape, &self.attention[layer.kind]);
        let norm = layer.attention_norm.as_ref();
        O::set_precision(&mut s.attend, &layer.precisions.attend);
        ops.quantize(norm, &s.x, shape.hidden, &mut s.attend);
        observe(LayerInput::Attend, &s.attend, &s.x);
        let input = Input::new(ops, &s.attend, batch.adapters());
        let (q, k, v) = (&mut s.q, &mut s.k, &mut s.v);
        let products = [
            (&layer.q, &mut *q),
            (&layer.k, &mut *k),
            (&layer.v, &mut *v),
        ];
        Projection::apply_each(products, &input);
        // One head wide, or as wide as all of them: the norm's own width says over what it goes.
        for (norm, x) in [(&layer.q_norm, &mut *q), (&layer.k_norm, &mut *k)] {
            if let Some(norm) = norm {
                ops.norm_heads(norm, shape.eps, x);
            }
        }
        ops.rope(&kind.rope, shape.heads, batch.positions(), q);
        ops.rope(&kind.rope, shape.kv_heads, batch.positions(), k);
        ops.kv_write(k, v, batch.slots(), kv);
        let (rows, tables) = (batch.attention(), batch.tables());
        ops.attention(&kind.shape, q, kv, rows, tables, &mut s.attended);
        O::set_precision(&mut s.acts, &layer.precisions.attended);
        ops.quantize(None, &s.attended, shape.heads * shape.head_dim, &mut s.acts);
        observe(LayerInput::Attended, &s.acts, &s.x);
        let input = Input {
            x: &s.acts,
            ..input
        };
        let post_norm = layer.post_attention_norm.as_ref();
        self.add_product(&layer.output, &input, post_norm, &mut s.branch, &mut s.x);
    }

    /// Adds what `scratch.feed` becomes.
    fn feed_forward(
        &self,
        ops: &O,
        layer: &Layer<O>,
        batch: &StepBatch<'_>,
        scratch: &mut Scratch<O>,
        observe: &mut ObserveLayer<'_, O>,
    ) {
        let Scratch {
            x,
            feed,
            branch,
            gated,
            tmp: [tmp, tmp_up],
            experts,
            ..
        } = scratch;
        let adapters = batch.adapters();
        let (act, post_norm) = (self.activation, layer.post_ffn_norm.as_ref());
        O::set_precision(gated, &layer.precisions.gated);
        observe(LayerInput::Feed, feed, x);
        match &layer.ffn {
            FeedForward::Gated { gate, up, down } => {
                Projection::apply_gated(
                    [gate, up],
                    act,
                    &Input::new(ops, feed, adapters),
                    [tmp, tmp_up],
                    gated,
                );
                observe(LayerInput::Gated, gated, x);
                self.add_product(
                    down,
                    &Input::new(ops, gated, adapters),
                    post_norm,
                    branch,
                    x,
                );
            }
            FeedForward::Plain { up, down } => {
                ops.resize(tmp, batch.rows() * up.width);
                up.apply(&Input::new(ops, feed, adapters), tmp);
                ops.activate_quantize(act, tmp, up.width, gated);
                observe(LayerInput::Gated, gated, x);
                self.add_product(
                    down,
                    &Input::new(ops, gated, adapters),
                    post_norm,
                    branch,
                    x,
                );
            }
            FeedForward::Experts(all) => {
                all.run(act, &Input::new(ops, feed, adapters), experts, branch);
                self.add(ops, branch, post_norm, x);
            }
        }
    }

    /// Adds what a projection makes of its input to the stream, at once where nothing is done to it before.
    fn add_product(
        &self,
        projection: &Projection<O>,
        input: &Input<'_, O>,
        post_norm: Option<&O::Vector>,
        branch: &mut O::Rows,
        x: &mut O::Rows,
    ) {
        if post_norm.is_some() || self.residual_scale != 1.0 {
            projection.apply(input, branch);
            return self.add(input.ops, branch, post_norm, x);
        }
        projection.apply_add(input, x);
    }

    fn add(&self, ops: &O, branch: &O::Rows, post_norm: Option<&O::Vector>, x: &mut O::Rows) {
        match post_norm {
            Some(norm) => ops.norm_add(norm, self.shape.eps, branch, x),
            None => ops.add_scaled(self.residual_scale, branch, x),
        }
    }

    /// The logits of the rows that asked; those of prompts mostly do not.
    fn head(&self, ops: &O, batch: &StepBatch<'_>, s: &mut Scratch<O>, logits: &mut Vec<f32>) {
        let (rows, hidden) = (batch.outputs(), self.shape.hidden);
        ops.gather(&s.x, hidden, rows, &mut s.branch);
        O::set_precision(&mut s.acts, &self.output_precision);
        ops.quantize(Some(&self.output_norm), &s.branch, hidden, &mut s.acts);
        s.adapters.clear();
        if !batch.adapters().is_empty() {
            let adapter = |row: &u32| batch.adapters()[*row as usize];
            s.adapters.extend(rows.iter().map(adapter));
        }
        let input = Input::new(ops, &s.acts, &s.adapters);
        ops.resize(&mut s.logits, rows.len() * self.output.width);
        self.output.apply(&input, &mut s.logits);
        match self.logits {
            Logits::Plain => {}
            Logits::Scaled(factor) => ops.scale(factor, &mut s.logits),
            Logits::Capped(cap) => ops.softcap(cap, self.output.width, &mut s.logits),
        }
        ops.read(&mut s.logits, logits);
    }
}
