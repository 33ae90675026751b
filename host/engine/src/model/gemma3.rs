//! The `gemma3` architecture (text part).
//!
//! Against llama: the embedding is scaled by sqrt(hidden), every Q and K head is normed before the rotary embedding
//! (half-split pairs), both branches are normed before they are added as well, GELU gates, and five of six
//! layers see only a window of positions with a rotary base of their own. Norm weights are stored with
//! their 1 added.

use realm_kernels::{Activation, AttentionShape, RopeLayout};

use super::LoadError;
use super::decoder::{Attention, Decoder};
use super::layer::Layer;
use super::loader::{Loader, NormKind};
use super::ops::Ops;

/// Layers of the one size whose query scale is not that of the head width.
const LAYERS_27B: u32 = 62;
const WINDOW_DEFAULT: u32 = 512;
/// Layers in a period, the last of which sees everything. Most files do not say it.
const PERIOD: u32 = 6;
/// Kinds of attention, in the decoder's list.
const LOCAL: usize = 0;
const GLOBAL: usize = 1;

pub(super) fn load<O: Ops>(loader: &mut Loader<'_, O>) -> Result<Decoder<O>, LoadError> {
    let shape = loader.shape(NormKind::Rms)?;
    let window = loader.keys.window()?.unwrap_or(WINDOW_DEFAULT);
    let scale = match shape.layers {
        LAYERS_27B => 1.0 / ((shape.hidden / shape.heads) as f32).sqrt(),
        _ => 1.0 / (shape.head_dim as f32).sqrt(),
    };
    let kind = |window| AttentionShape {
        scale,
        ..shape.attention(window)
    };
    let local_base = loader.keys.positive("rope.freq_base_swa", 10_000.0)?;
    let global_base = loader.keys.positive("rope.freq_base", 1_000_000.0)?;
    let layout = RopeLayout::HalfSplit;
    let local = Attention {
        shape: kind(Some(window)),
        // Long-context scaling is for the layers that see a long context.
        rope: loader.plain_rope(&shape, local_base, layout)?,
    };
    let global = Attention {
        shape: kind(None),
        rope: loader.scaled_rope(&shape, global_base, layout)?,
    };
    let embedding_scale = (shape.hidden as f32).sqrt();
    let local_layers = loader.keys.windowed_layers(shape.layers, PERIOD)?;
    let decoder = Decoder::load(
        loader,
        shape,
        vec![local, global],
        |loader, shape, index| {
            let layer = Layer::load(loader, shape, index)?
                .with_head_norms(loader, shape, index)?
                .with_post_norms(loader, shape, index)?;
            let kind = if local_layers.contains(index) {
                LOCAL
            } else {
                GLOBAL
            };
            Ok(Layer { kind, ..layer })
        },
    )?;
    Ok(Decoder {
        embedding_scale,
        activation: Activation::GeluTanh,
        ..decoder
    })
}
