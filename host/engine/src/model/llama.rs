//! The `llama` architecture: Llama 1 to 3, Mistral, Mixtral, SmolLM and what is stored like them.
//!
//! RMS norm, grouped-query attention with rotary embedding on adjacent pairs (rows of Q and K are stored permuted for
//! them), SwiGLU or a mixture of such experts; Mistral's older models see a window of positions.

use realm_kernels::RopeLayout;

use super::LoadError;
use super::decoder::{Attention, Decoder};
use super::layer::Layer;
use super::loader::Loader;
use super::ops::Ops;

pub(super) fn load<O: Ops>(loader: &mut Loader<'_, O>) -> Result<Decoder<O>, LoadError> {
    let shape = loader.shape_with_experts()?;
    let attention = Attention {
        shape: shape.attention(loader.keys.window()?),
        rope: loader.rope(&shape, RopeLayout::Adjacent)?,
    };
    Decoder::load(loader, shape, vec![attention], Layer::load)
}
