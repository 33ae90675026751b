//! The `gemma2` architecture.
//!
//! Against llama: the embedding is scaled by sqrt(hidden), attention scores and logits are soft-capped, half-split rotary
//! pairs, both branches are normed before they are added as well, GELU gates, and every other layer, from the first on,
//! sees only a window of positions. Norm weights are stored with their 1 added.

use realm_kernels::{Activation, AttentionShape, RopeLayout};

use super::LoadError;
use super::decoder::{Attention, Decoder, Logits};
use super::layer::Layer;
use super::loader::{Loader, NormKind};
use super::ops::Ops;

/// Layers of the one size whose query scale is not that of the head width.
const LAYERS_27B: u32 = 46;
const WINDOW_DEFAULT: u32 = 4096;
/// Layers in a period, the last of which sees everything. Files do not say it.
const PERIOD: u32 = 2;
/// Kinds of attention, in the decoder's list.
const LOCAL: usize = 0;
const GLOBAL: usize = 1;

pub(super) fn load<O: Ops>(loader: &mut Loader<'_, O>) -> Result<Decoder<O>, LoadError> {
    let shape = loader.shape(NormKind::Rms)?;
    let scale = match shape.layers {
        LAYERS_27B => 1.0 / ((shape.hidden / shape.heads) as f32).sqrt(),
        _ => 1.0 / (shape.head_dim as f32).sqrt(),
    };
    let softcap = Some(loader.keys.positive("attn_logit_softcapping", 50.0)?);
    let window = loader.keys.window()?.unwrap_or(WINDOW_DEFAULT);
    let mut attention = Vec::new();
    for window in [Some(window), None] {
        attention.push(Attention {
            shape: AttentionShape {
                scale,
                softcap,
                ..shape.attention(window)
            },
            rope: loader.rope(&shape, RopeLayout::HalfSplit)?,
        });
    }
    let embedding_scale = (shape.hidden as f32).sqrt();
    let local_layers = loader.keys.windowed_layers(shape.layers, PERIOD)?;
    let logits = Logits::Capped(loader.keys.positive("final_logit_softcapping", 30.0)?);
    let decoder = Decoder::load(loader, shape, attention, |loader, shape, index| {
        let layer = Layer::load(loader, shape, index)?.with_post_norms(loader, shape, index)?;
        let kind = if local_layers.contains(index) {
            LOCAL
        } else {
            GLOBAL
        };
        Ok(Layer { kind, ..layer })
    })?;
    Ok(Decoder {
        embedding_scale,
        activation: Activation::GeluTanh,
        logits,
        ..decoder
    })
}
