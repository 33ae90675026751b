//! The parts of a layer, and how they are fetched under the names that GGUF gives them.

use realm_kernels::{Activations, Cpu, LayerNorm, Matrix};

use super::LoadError;
use super::experts::Experts;
use super::loader::{Loader, NormKind, Shape};

/// One layer. Norms that an architecture does not have are `None`.
pub(super) struct Layer {
    pub(super) kind: usize, // of the decoder's kinds of attention
    pub(super) attention_norm: Option<Norm>,
    pub(super) q: Linear,
    pub(super) k: Linear,
    pub(super) v: Linear,
    pub(super) q_norm: Option<Vec<f32>>, // [head_dim], or over all heads
    pub(super) k_norm: Option<Vec<f32>>,
    pub(super) output: Linear,
    pub(super) post_attention_norm: Option<Vec<f32>>,
    pub(super) ffn_norm: Option<Norm>,
    pub(super) ffn: FeedForward,
    pub(super) post_ffn_norm: Option<Vec<f32>>,
}

/// A matrix and the bias that is added to its products.
pub(super) struct Linear {
    pub(super) matrix: Matrix,
    pub(super) bias: Option<Vec<f32>>,
}

/// Root-mean-square norm, or layer norm where there is a bias.
pub(super) struct Norm {
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    eps: f32,
}

/// How the feed-forward of a layer is fetched.
pub(super) type FeedForwardLoad =
    fn(&mut Loader<'_>, &Shape, u32) -> Result<FeedForward, LoadError>;

/// What follows attention in a layer.
pub(super) enum FeedForward {
    /// `down(act(gate x) * up x)`.
    Gated {
        gate: Matrix,
        up: Matrix,
        down: Linear,
    },
    /// `down(act(up x))`.
    Plain { up: Linear, down: Linear },
    /// Some of many gated ones, chosen row by row.
    Experts(Experts),
}

impl Layer {
    /// A layer as llama has it; with biases where the file has them.
    pub(super) fn load(
        loader: &mut Loader<'_>,
        shape: &Shape,
        index: u32,
    ) -> Result<Layer, LoadError> {
        Layer::load_with(loader, shape, index, FeedForward::load)
    }

    /// The same with another kind of feed-forward.
    pub(super) fn load_with(
        loader: &mut Loader<'_>,
        shape: &Shape,
        index: u32,
        ffn: FeedForwardLoad,
    ) -> Result<Layer, LoadError> {
        let norm = |part: &str| format!("blk.{index}.{part}");
        let attention_norm = Some(Norm::load(loader, &norm("attn_norm"), shape)?);
        let ffn_norm = Some(Norm::load(loader, &norm("ffn_norm"), shape)?);
        let bare = Layer::load_bare(loader, shape, index, ffn)?;
        Ok(Layer {
            attention_norm,
            ffn_norm,
            ..bare
        })
    }

    /// The matrices of a layer, without any norm.
    pub(super) fn load_bare(
        loader: &mut Loader<'_>,
        shape: &Shape,
        index: u32,
        ffn: FeedForwardLoad,
    ) -> Result<Layer, LoadError> {
        let name = |part: &str| format!("blk.{index}.{part}");
        let hidden = shape.hidden;
        let width = shape.heads * shape.head_dim;
        let [q, k, v] = Linear::load_qkv(loader, shape, index)?;
        Ok(Layer {
            kind: 0,
            attention_norm: None,
            q,
            k,
            v,
            q_norm: None,
            k_norm: None,
            output: Linear::load(loader, &name("attn_output"), hidden, width)?,
            post_attention_norm: None,
            ffn_norm: None,
            ffn: ffn(loader, shape, index)?,
            post_ffn_norm: None,
        })
    }

    /// The norms of every head of Q and K, in layers that have them.
    pub(super) fn with_head_norms(
        self,
        loader: &mut Loader<'_>,
        shape: &Shape,
        index: u32,
    ) -> Result<Layer, LoadError> {
        let norm = |part: &str| format!("blk.{index}.{part}.weight");
        Ok(Layer {
            q_norm: Some(loader.vector(&norm("attn_q_norm"), shape.head_dim)?),
            k_norm: Some(loader.vector(&norm("attn_k_norm"), shape.head_dim)?),
            ..self
        })
    }

    /// The norms of what attention and feed-forward add, in layers that have them.
    pub(super) fn with_post_norms(
        self,
        loader: &mut Loader<'_>,
        shape: &Shape,
        index: u32,
    ) -> Result<Layer, LoadError> {
        let norm = |part: &str| format!("blk.{index}.{part}.weight");
        Ok(Layer {
            post_attention_norm: Some(loader.vector(&norm("post_attention_norm"), shape.hidden)?),
            post_ffn_norm: Some(loader.vector(&norm("post_ffw_norm"), shape.hidden)?),
            ..self
        })
    }
}

impl Linear {
    /// `name.weight`, and `name.bias` where the file has one.
    pub(super) fn load(
        loader: &mut Loader<'_>,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Linear, LoadError> {
        Ok(Linear {
            matrix: loader.matrix(&format!("{name}.weight"), rows, cols)?,
            bias: loader.optional_vector(&format!("{name}.bias"), rows)?,
        })
    }

    /// What makes queries, keys and values: three tensors, or one in which they lie below each other.
    pub(super) fn load_qkv(
        loader: &mut Loader<'_>,
        shape: &Shape,
        index: u32,
    ) -> Result<[Linear; 3], LoadError> {
        let name = |part: &str| format!("blk.{index}.{part}");
        let hidden = shape.hidden;
        let width = shape.heads * shape.head_dim;
        let kv_width = shape.kv_heads * shape.head_dim;
        if loader.has(&name("attn_qkv.weight")) {
            let rows = [width, kv_width, kv_width];
            return Linear::load_fused(loader, &name("attn_qkv"), rows, hidden);
        }
        Ok([
            Linear::load(loader, &name("attn_q"), width, hidden)?,
            Linear::load(loader, &name("attn_k"), kv_width, hidden)?,
            Linear::load(loader, &name("attn_v"), kv_width, hidden)?,
        ])
    }

    /// Matrices that the file keeps one below the other in one tensor.
    pub(super) fn load_fused<const N: usize>(
        loader: &mut Loader<'_>,
        name: &str,
        rows: [usize; N],
        cols: usize,
    ) -> Result<[Linear; N], LoadError> {
        let matrices = loader.fused_matrices(&format!("{name}.weight"), rows, cols)?;
        let bias = loader.optional_vector(&format!("{name}.bias"), rows.iter().sum())?;
        let mut bias = bias.as_deref();
        let mut rows = rows.into_iter();
        Ok(matrices.map(|matrix| {
            let rows = rows.next().unwrap_or(0);
            let (of_this, rest) = bias.map(|bias| bias.split_at(rows)).unzip();
            bias = rest;
            Linear {
                matrix,
                bias: of_this.map(<[f32]>::to_vec),
            }
        }))
    }

    /// `out = acts · Wᵀ + bias`.
    pub(super) fn multiply(&self, cpu: &Cpu, acts: &Activations, out: &mut [f32]) {
        Linear::multiply_each([(self, out)], cpu, acts);
    }

    /// The same for several that take the same activations.
    pub(super) fn multiply_each<const N: usize>(
        mut products: [(&Linear, &mut [f32]); N],
        cpu: &Cpu,
        acts: &Activations,
    ) {
        cpu.matmul_each(
            products
                .each_mut()
                .map(|(linear, out)| (&linear.matrix, &mut **out)),
            acts,
        );
        for (linear, out) in products {
            if let Some(bias) = &linear.bias {
                cpu.add_bias(bias, out);
            }
        }
    }
}

impl Norm {
    /// `name.weight`, and `name.bias` in models with layer norms.
    pub(super) fn load(
        loader: &mut Loader<'_>,
        name: &str,
        shape: &Shape,
    ) -> Result<Norm, LoadError> {
        Ok(Norm {
            weight: loader.vector(&format!("{name}.weight"), shape.hidden)?,
            bias: match shape.norm {
                NormKind::Rms => None,
                NormKind::Layer => Some(loader.vector(&format!("{name}.bias"), shape.hidden)?),
            },
            eps: shape.eps,
        })
    }

    /// The layer norm of each row.
    ///
    /// # Panics
    /// When it is a root-mean-square norm.
    pub(super) fn layer_norm(&self, cpu: &Cpu, x: &[f32], out: &mut [f32]) {
        let Norm { weight, bias, eps } = self;
        let bias = bias.as_deref().expect("a layer norm has a bias");
        let eps = *eps;
        cpu.layer_norm(x, LayerNorm { weight, bias, eps }, out);
    }

    /// Makes rows ready for matrices, normed where there is a norm.
    pub(super) fn quantize(
        norm: Option<&Norm>,
        cpu: &Cpu,
        x: &[f32],
        width: usize,
        out: &mut Activations,
    ) {
        let Some(Norm { weight, bias, eps }) = norm else {
            return cpu.quantize(x, width, out);
        };
        match bias {
            None => cpu.norm_quantize(x, weight, *eps, out),
            Some(bias) => {
                let eps = *eps;
                cpu.layer_norm_quantize(x, LayerNorm { weight, bias, eps }, out);
            }
        }
    }
}

impl FeedForward {
    /// Gated, from tensors of its own or from one in which gate lies above up; or of experts, where the model has them.
    pub(super) fn load(
        loader: &mut Loader<'_>,
        shape: &Shape,
        index: u32,
    ) -> Result<FeedForward, LoadError> {
        let name = |part: &str| format!("blk.{index}.{part}");
        let (hidden, inner) = (shape.hidden, shape.feed_forward);
        if let Some(experts) = &shape.experts {
            return Experts::load(loader, index, hidden, experts).map(FeedForward::Experts);
        }
        let [gate, up] = match loader.has(&name("ffn_gate.weight")) {
            true => [
                loader.matrix(&name("ffn_gate.weight"), inner, hidden)?,
                loader.matrix(&name("ffn_up.weight"), inner, hidden)?,
            ],
            false => loader.fused_matrices(&name("ffn_up.weight"), [inner, inner], hidden)?,
        };
        let down = Linear::load(loader, &name("ffn_down"), hidden, inner)?;
        Ok(FeedForward::Gated { gate, up, down })
    }

    /// Two matrices without a gate.
    pub(super) fn load_plain(
        loader: &mut Loader<'_>,
        shape: &Shape,
        index: u32,
    ) -> Result<FeedForward, LoadError> {
        let name = |part: &str| format!("blk.{index}.{part}");
        let (hidden, inner) = (shape.hidden, shape.feed_forward);
        Ok(FeedForward::Plain {
            up: Linear::load(loader, &name("ffn_up"), inner, hidden)?,
            down: Linear::load(loader, &name("ffn_down"), hidden, inner)?,
        })
    }
}
