//! The `gptneox` architecture: GPT-NeoX and Pythia.
//!
//! Layer norms, biases on every matrix (they are in the file), Q, K and V in one tensor, rotary embedding on a part of a
//! head in half-split pairs, a feed-forward of two matrices with GELU, which mostly reads what attention reads.

use realm_kernels::{Activation, RopeLayout};

use super::LoadError;
use super::decoder::{Attention, Decoder};
use super::layer::{FeedForward, Layer};
use super::loader::{Loader, NormKind};
use super::ops::Ops;

pub(super) fn load<O: Ops>(loader: &mut Loader<'_, O>) -> Result<Decoder<O>, LoadError> {
    let shape = loader.shape(NormKind::Layer)?;
    let attention = Attention {
        shape: shape.attention(None),
        rope: loader.rope(&shape, RopeLayout::HalfSplit)?,
    };
    let is_parallel = loader
        .keys
        .metadata()
        .bool(&loader.keys.key("use_parallel_residual"))?
        .unwrap_or(true);
    let decoder = Decoder::load(loader, shape, vec![attention], |loader, shape, index| {
        Layer::load_with(loader, shape, index, FeedForward::load_plain)
    })?;
    Ok(Decoder {
        activation: Activation::Gelu,
        is_parallel,
        ..decoder
    })
}
