//! The `granite` architecture: llama with factors for the embedding, the attention scores, what is added to the stream,
//! and the logits.

use realm_kernels::{AttentionShape, RopeLayout};

use super::LoadError;
use super::decoder::{Attention, Decoder, Logits};
use super::layer::Layer;
use super::loader::{Loader, NormKind};
use super::ops::Ops;

pub(super) fn load<O: Ops>(loader: &mut Loader<'_, O>) -> Result<Decoder<O>, LoadError> {
    let shape = loader.shape(NormKind::Rms)?;
    let plain = shape.attention(loader.keys.window()?);
    let attention = Attention {
        shape: AttentionShape {
            scale: loader.keys.factor("attention.scale", plain.scale)?,
            ..plain
        },
        rope: loader.rope(&shape, RopeLayout::Adjacent)?,
    };
    let embedding_scale = loader.keys.factor("embedding_scale", 1.0)?;
    let residual_scale = loader.keys.factor("residual_scale", 1.0)?;
    let logit_scale = loader.keys.factor("logit_scale", 1.0)?;
    Ok(Decoder {
        embedding_scale,
        residual_scale,
        logits: Logits::Scaled(1.0 / logit_scale), // files state the divisor
        ..Decoder::load(loader, shape, vec![attention], Layer::load)?
    })
}
