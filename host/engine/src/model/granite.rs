//! The `granite` architecture: llama with factors for the embedding, the attention scores, what is added to the stream,
//! and the logits.

use realm_kernels::{AttentionShape, RopeLayout};

use super::LoadError;
use super::decoder::{Attention, Decoder, Logits};
use super::layer::Layer;
use super::loader::{Loader, NormKind};

pub(super) fn load(loader: &mut Loader<'_>) -> Result<Decoder, LoadError> {
    let shape = loader.shape(NormKind::Rms)?;
    let plain = shape.attention(loader.window()?);
    let attention = Attention {
        shape: AttentionShape {
            scale: loader.positive("attention.scale", plain.scale)?,
            ..plain
        },
        rope: loader.rope(&shape, RopeLayout::Adjacent)?,
    };
    let embedding_scale = loader.positive("embedding_scale", 1.0)?;
    let residual_scale = loader.positive("residual_scale", 1.0)?;
    let logit_scale = loader.positive("logit_scale", 1.0)?;
    Ok(Decoder {
        embedding_scale,
        residual_scale,
        logits: Logits::Scaled(1.0 / logit_scale), // files state the divisor
        ..Decoder::load(loader, shape, vec![attention], Layer::load)?
    })
}
