//! The `starcoder2` architecture: layer norms, biases on every matrix (they are in the file), half-split rotary pairs,
//! and a feed-forward of two matrices with GELU.

use realm_kernels::{Activation, RopeLayout};

use super::LoadError;
use super::decoder::{Attention, Decoder};
use super::layer::{FeedForward, Layer};
use super::loader::{Loader, NormKind};
use super::ops::Ops;

pub(super) fn load<O: Ops>(loader: &mut Loader<'_, O>) -> Result<Decoder<O>, LoadError> {
    let shape = loader.shape(NormKind::Layer)?;
    let attention = Attention {
        shape: shape.attention(loader.keys.window()?),
        rope: loader.rope(&shape, RopeLayout::HalfSplit)?,
    };
    let decoder = Decoder::load(loader, shape, vec![attention], |loader, shape, index| {
        Layer::load_with(loader, shape, index, FeedForward::load_plain)
    })?;
    Ok(Decoder {
        activation: Activation::GeluTanh,
        ..decoder
    })
}
