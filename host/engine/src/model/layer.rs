//! The parts of a layer, and how they are fetched under the names that GGUF gives them.

use realm_kernels::{Cpu, LayerNorm, Precision};

use super::LoadError;
use super::experts::Experts;
use super::loader::{Loader, NormKind, Shape};
use super::ops::{Ops, Part, Site};
use super::projection::Projection;

/// One layer. Norms that an architecture does not have are `None`.
pub(super) struct Layer<O: Ops> {
    pub(super) kind: usize, // of the decoder's kinds of attention
    pub(super) attention_norm: Option<Norm<O>>,
    pub(super) q: Projection<O>,
    pub(super) k: Projection<O>,
    pub(super) v: Projection<O>,
    pub(super) q_norm: Option<O::Vector>, // [head_dim], or over all heads
    pub(super) k_norm: Option<O::Vector>,
    pub(super) output: Projection<O>,
    pub(super) post_attention_norm: Option<O::Vector>,
    pub(super) ffn_norm: Option<Norm<O>>,
    pub(super) ffn: FeedForward<O>,
    pub(super) post_ffn_norm: Option<O::Vector>,
    pub(super) precisions: Precisions,
}

/// How finely the inputs of a layer's matrices are rounded.
#[derive(Clone)]
pub(super) struct Precisions {
    pub(super) attend: Precision,   // of queries, keys and values
    pub(super) attended: Precision, // of attention's output matrix
    pub(super) feed: Precision,     // of gate and up
    pub(super) gated: Precision,    // of down
}

impl Default for Precisions {
    /// What is best without knowing the model: attention takes exponentials.
    fn default() -> Precisions {
        Precisions {
            attend: Precision::Int16,
            attended: Precision::default(),
            feed: Precision::default(),
            gated: Precision::default(),
        }
    }
}

/// Root-mean-square norm, or layer norm where there is a bias.
pub(crate) struct Norm<O: Ops> {
    pub(super) weight: O::Vector,
    pub(super) bias: Option<O::Vector>,
    pub(super) eps: f32,
}

/// How the feed-forward of a layer is fetched.
pub(super) type FeedForwardLoad<O> =
    fn(&mut Loader<'_, O>, &Shape, u32) -> Result<FeedForward<O>, LoadError>;

/// What follows attention in a layer.
pub(super) enum FeedForward<O: Ops> {
    /// `down(act(gate x) * up x)`.
    Gated {
        gate: Projection<O>,
        up: Projection<O>,
        down: Projection<O>,
    },
    /// `down(act(up x))`.
    Plain {
        up: Projection<O>,
        down: Projection<O>,
    },
    /// Some of many gated ones, chosen row by row.
    Experts(Experts<O>),
}

impl<O: Ops> Layer<O> {
    /// A layer as llama has it; with biases where the file has them.
    pub(super) fn load(
        loader: &mut Loader<'_, O>,
        shape: &Shape,
        index: u32,
    ) -> Result<Layer<O>, LoadError> {
        Layer::load_with(loader, shape, index, FeedForward::load)
    }

    /// The same with another kind of feed-forward.
    pub(super) fn load_with(
        loader: &mut Loader<'_, O>,
        shape: &Shape,
        index: u32,
        ffn: FeedForwardLoad<O>,
    ) -> Result<Layer<O>, LoadError> {
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
        loader: &mut Loader<'_, O>,
        shape: &Shape,
        index: u32,
        ffn: FeedForwardLoad<O>,
    ) -> Result<Layer<O>, LoadError> {
        let name = |part: &str| format!("blk.{index}.{part}");
        let hidden = shape.hidden;
        let width = shape.heads * shape.head_dim;
        let [q, k, v] = Projection::load_qkv(loader, shape, index)?;
        Ok(Layer {
            kind: 0,
            attention_norm: None,
            q,
            k,
            v,
            q_norm: None,
            k_norm: None,
            output: Projection::load(
                loader,
                Site::Layer(index, Part::AttentionOutput),
                &name("attn_output"),
                hidden,
                width,
            )?,
            post_attention_norm: None,
            ffn_norm: None,
            ffn: ffn(loader, shape, index)?,
            post_ffn_norm: None,
            precisions: Precisions::default(),
        })
    }

    /// The norms of every head of Q and K, in layers that have them.
    pub(super) fn with_head_norms(
        self,
        loader: &mut Loader<'_, O>,
        shape: &Shape,
        index: u32,
    ) -> Result<Layer<O>, LoadError> {
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
        loader: &mut Loader<'_, O>,
        shape: &Shape,
        index: u32,
    ) -> Result<Layer<O>, LoadError> {
        let norm = |part: &str| format!("blk.{index}.{part}.weight");
        Ok(Layer {
            post_attention_norm: Some(loader.vector(&norm("post_attention_norm"), shape.hidden)?),
            post_ffn_norm: Some(loader.vector(&norm("post_ffw_norm"), shape.hidden)?),
            ..self
        })
    }
}

impl<O: Ops> Norm<O> {
    /// `name.weight`, and `name.bias` in models with layer norms.
    pub(super) fn load(
        loader: &mut Loader<'_, O>,
        name: &str,
        shape: &Shape,
    ) -> Result<Norm<O>, LoadError> {
        Ok(Norm {
            weight: loader.vector(&format!("{name}.weight"), shape.hidden)?,
            bias: match shape.norm {
                NormKind::Rms => None,
                NormKind::Layer => Some(loader.vector(&format!("{name}.bias"), shape.hidden)?),
            },
            eps: shape.eps,
        })
    }
}

impl Norm<Cpu> {
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
}

impl<O: Ops> FeedForward<O> {
    /// Gated, from tensors of its own or from one in which gate lies above up; or of experts, where the model has them.
    pub(super) fn load(
        loader: &mut Loader<'_, O>,
        shape: &Shape,
        index: u32,
    ) -> Result<FeedForward<O>, LoadError> {
        let name = |part: &str| format!("blk.{index}.{part}");
        let (hidden, inner) = (shape.hidden, shape.feed_forward);
        if let Some(experts) = &shape.experts {
            return Experts::load(loader, index, hidden, experts).map(FeedForward::Experts);
        }
        let site = |part| Site::Layer(index, part);
        let [gate, up] = match loader.has(&name("ffn_gate.weight")) {
            true => [
                loader.matrix(&name("ffn_gate.weight"), inner, hidden)?,
                loader.matrix(&name("ffn_up.weight"), inner, hidden)?,
            ],
            false => loader.fused_matrices(&name("ffn_up.weight"), [inner, inner], hidden)?,
        };
        Ok(FeedForward::Gated {
            gate: Projection::new(site(Part::Gate), gate, inner),
            up: Projection::new(site(Part::Up), up, inner),
            down: Projection::load(loader, site(Part::Down), &name("ffn_down"), hidden, inner)?,
        })
    }

    /// Two matrices without a gate.
    pub(super) fn load_plain(
        loader: &mut Loader<'_, O>,
        shape: &Shape,
        index: u32,
    ) -> Result<FeedForward<O>, LoadError> {
        let name = |part: &str| format!("blk.{index}.{part}");
        let site = |part| Site::Layer(index, part);
        let (hidden, inner) = (shape.hidden, shape.feed_forward);
        Ok(FeedForward::Plain {
            up: Projection::load(loader, site(Part::Up), &name("ffn_up"), inner, hidden)?,
            down: Projection::load(loader, site(Part::Down), &name("ffn_down"), hidden, inner)?,
        })
    }
}
