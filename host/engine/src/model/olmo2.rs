//! The `olmo2` architecture: OLMo 2 and 3.
//!
//! llama whose norms come after attention and feed-forward instead of before them, with Q and K normed over all heads at
//! once, and half-split rotary pairs. In OLMo 3 three of four layers see a window of positions; scaling of the rotary
//! embedding is for the others.

use realm_kernels::RopeLayout;

use super::LoadError;
use super::decoder::{Attention, Decoder};
use super::layer::{FeedForward, Layer};
use super::loader::{Loader, NormKind, Shape};
use super::ops::Ops;
use super::windows::WindowedLayers;

/// Layers in a period, the last of which sees everything, where files do not say it.
const PERIOD: u32 = 4;
/// Kinds of attention, in the decoder's list.
const GLOBAL: usize = 0;
const LOCAL: usize = 1;

pub(super) fn load<O: Ops>(loader: &mut Loader<'_, O>) -> Result<Decoder<O>, LoadError> {
    let shape = loader.shape(NormKind::Rms)?;
    let layout = RopeLayout::HalfSplit;
    let mut attention = vec![Attention {
        shape: shape.attention(None),
        rope: loader.rope(&shape, layout)?,
    }];
    let mut local_layers = loader.keys.windowed_layers(shape.layers, PERIOD)?;
    match loader.keys.window()? {
        None => local_layers = WindowedLayers::NONE,
        window => {
            let base = loader.keys.positive("rope.freq_base", 10_000.0)?;
            let local_base = loader.keys.positive("rope.freq_base_swa", base)?;
            attention.push(Attention {
                shape: shape.attention(window),
                rope: loader.plain_rope(&shape, local_base, layout)?,
            });
        }
    }
    Decoder::load(loader, shape, attention, |loader, shape, index| {
        let kind = if local_layers.contains(index) {
            LOCAL
        } else {
            GLOBAL
        };
        let layer = layer(loader, shape, index)?;
        Ok(Layer { kind, ..layer })
    })
}

fn layer<O: Ops>(
    loader: &mut Loader<'_, O>,
    shape: &Shape,
    index: u32,
) -> Result<Layer<O>, LoadError> {
    let norm = |part: &str| format!("blk.{index}.{part}.weight");
    let layer = Layer::load_bare(loader, shape, index, FeedForward::load)?;
    Ok(Layer {
        q_norm: Some(loader.vector(&norm("attn_q_norm"), shape.heads * shape.head_dim)?),
        k_norm: Some(loader.vector(&norm("attn_k_norm"), shape.kv_heads * shape.head_dim)?),
        ..layer.with_post_norms(loader, shape, index)?
    })
}
