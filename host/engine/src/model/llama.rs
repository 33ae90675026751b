//! The `llama` architecture: Llama 1 to 3, Mistral, Mixtral, SmolLM and what is stored like them.
//!
//! RMS norm, grouped-query attention with rotary embedding on adjacent pairs (rows of Q and K are stored permuted for
//! them), SwiGLU or a mixture of such experts; Mistral's older models see a window of positions.

use realm_kernels::RopeLayout;

use super::LoadError;
use super::decoder::{Attention, Decoder};
use super::layer::Layer;
use super::loader::Loader;

pub(super) fn load(loader: &mut Loader<'_>) -> Result<Decoder, LoadError> {
    let shape = loader.shape_with_experts()?;
    let attention = Attention {
        shape: shape.attention(loader.window()?),
        rope: loader.rope(&shape, RopeLayout::Adjacent)?,
    };
    Decoder::load(loader, shape, vec![attention], Layer::load)
}
