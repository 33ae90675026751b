//! The `phi3` architecture: Phi 3, Phi 3.5 and Phi 4 in their small sizes.
//!
//! llama with Q, K and V in one tensor, gate and up in another (both are taken apart at load), and rotary embedding on
//! half-split pairs, on a part of a head in the later ones, with LongRoPE factors where the context is long.

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
