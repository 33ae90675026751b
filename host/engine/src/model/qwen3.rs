//! The `qwen3` and `qwen3moe` architectures: llama with a norm on every Q and K head before the rotary embedding, which
//! takes half-split pairs; `qwen3moe` has a mixture of experts in every layer.

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
        rope: loader.rope(&shape, RopeLayout::HalfSplit)?,
    };
    Decoder::load(loader, shape, vec![attention], |loader, shape, index| {
        Layer::load(loader, shape, index)?.with_head_norms(loader, shape, index)
    })
}
