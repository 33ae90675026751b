//! The `qwen2` architecture: llama with biases on Q, K and V (they are in the file) and half-split rotary pairs.

use realm_kernels::RopeLayout;

use super::LoadError;
use super::decoder::{Attention, Decoder};
use super::layer::Layer;
use super::loader::{Loader, NormKind};
use super::ops::Ops;

pub(super) fn load<O: Ops>(loader: &mut Loader<'_, O>) -> Result<Decoder<O>, LoadError> {
    let shape = loader.shape(NormKind::Rms)?;
    let attention = Attention {
        shape: shape.attention(loader.keys.window()?),
        rope: loader.rope(&shape, RopeLayout::HalfSplit)?,
    };
    Decoder::load(loader, shape, vec![attention], Layer::load)
}
