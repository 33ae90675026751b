//! The `olmo2` architecture: llama whose norms come after attention and feed-forward instead of before them, with Q and
//! K normed over all heads at once, and half-split rotary pairs.

use realm_kernels::RopeLayout;

use super::LoadError;
use super::decoder::{Attention, Decoder};
use super::layer::{FeedForward, Layer};
use super::loader::{Loader, NormKind, Shape};

pub(super) fn load(loader: &mut Loader<'_>) -> Result<Decoder, LoadError> {
    let shape = loader.shape(NormKind::Rms)?;
    let attention = Attention {
        shape: shape.attention(loader.window()?),
        rope: loader.rope(&shape, RopeLayout::HalfSplit)?,
    };
    Decoder::load(loader, shape, vec![attention], layer)
}

fn layer(loader: &mut Loader<'_>, shape: &Shape, index: u32) -> Result<Layer, LoadError> {
    let norm = |part: &str| format!("blk.{index}.{part}.weight");
    let layer = Layer::load_bare(loader, shape, index, FeedForward::load)?;
    Ok(Layer {
        q_norm: Some(loader.vector(&norm("attn_q_norm"), shape.heads * shape.head_dim)?),
        k_norm: Some(loader.vector(&norm("attn_k_norm"), shape.kv_heads * shape.head_dim)?),
        ..layer.with_post_norms(loader, shape, index)?
    })
}
