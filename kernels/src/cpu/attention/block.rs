//! Where a tile takes keys and values from: blocks of f16, or of 8 bits with their scales made f32.

use super::CHUNK_BLOCKS;
use crate::cpu::kv::Q8Block;
use crate::cpu::simd::Simd;
use crate::quant::GROUP;
use crate::shapes::BLOCK_TOKENS;
use half::f16;

/// Keys and values of one head in consecutive blocks.
pub(super) struct Chunk<B> {
    /// Position of its first token.
    pub(super) start: usize,
    /// Empty where no query sees a block.
    pub(super) blocks: [B; CHUNK_BLOCKS],
}

/// Keys and values of one head of one block: `[head_dim, token]` and `[token, head_dim]`.
pub(super) trait Block: Copy + Default {
    /// Whether it is there, for heads of this width.
    fn has(&self, dim: usize) -> bool;
    /// Element `d` of the keys of `LANES` tokens.
    ///
    /// # Safety
    /// `has(dim)` and `d < dim`; the tokens are among the block's 16.
    unsafe fn keys<S: Simd>(&self, s: S, d: usize, token: usize) -> S::F;
    /// `LANES` elements of a token's value, from `d` on.
    ///
    /// # Safety
    /// `has(dim)` and `d + LANES <= dim`, `d` being a multiple of `LANES`; the token is among the block's 16.
    unsafe fn values<S: Simd>(&self, s: S, dim: usize, token: usize, d: usize) -> S::F;
    /// One element of a token's value.
    fn value(&self, dim: usize, token: usize, d: usize) -> f32;
}

#[derive(Clone, Copy, Default)]
pub(super) struct Halves<'a> {
    pub(super) keys: &'a [u16],
    pub(super) values: &'a [u16],
}

impl Block for Halves<'_> {
    #[inline(always)]
    fn has(&self, dim: usize) -> bool {
        self.keys.len() == dim * BLOCK_TOKENS && self.values.len() == self.keys.len()
    }
    #[inline(always)]
    unsafe fn keys<S: Simd>(&self, s: S, d: usize, token: usize) -> S::F {
        // SAFETY: inside the keys by the caller's promise.
        unsafe { s.load_f16(self.keys.as_ptr().add(d * BLOCK_TOKENS + token)) }
    }
    #[inline(always)]
    unsafe fn values<S: Simd>(&self, s: S, dim: usize, token: usize, d: usize) -> S::F {
        // SAFETY: inside the values by the caller's promise.
        unsafe { s.load_f16(self.values.as_ptr().add(token * dim + d)) }
    }
    #[inline(always)]
    fn value(&self, dim: usize, token: usize, d: usize) -> f32 {
        f16::from_bits(self.values[token * dim + d]).to_f32()
    }
}

/// Codes of 8 bits; every 32 elements of a head have a scale: of keys `[head_dim / 32, token]`, of values
/// `[token, head_dim / 32]`.
#[derive(Clone, Copy, Default)]
pub(super) struct Codes<'a> {
    keys: &'a [i8],
    key_scales: &'a [f32],
    values: &'a [i8],
    value_scales: &'a [f32],
}

impl Block for Codes<'_> {
    #[inline(always)]
    fn has(&self, dim: usize) -> bool {
        let scales = dim.div_ceil(GROUP) * BLOCK_TOKENS;
        self.keys.len() == dim * BLOCK_TOKENS
            && self.values.len() == self.keys.len()
            && self.key_scales.len() == scales
            && self.value_scales.len() == scales
    }
    #[inline(always)]
    unsafe fn keys<S: Simd>(&self, s: S, d: usize, token: usize) -> S::F {
        let scales = d / GROUP * BLOCK_TOKENS + token;
        // SAFETY: inside keys and scales by the caller's promise.
        unsafe {
            let codes = s.load_i8(self.keys.as_ptr().add(d * BLOCK_TOKENS + token).cast());
            s.mul(codes, s.load(self.key_scales.as_ptr().add(scales)))
        }
    }
    #[inline(always)]
    unsafe fn values<S: Simd>(&self, s: S, dim: usize, token: usize, d: usize) -> S::F {
        let scale = token * dim.div_ceil(GROUP) + d / GROUP;
        // SAFETY: inside values and scales by the caller's promise; no vector reaches over 32 elements.
        unsafe {
            let codes = s.load_i8(self.values.as_ptr().add(token * dim + d).cast());
            s.mul(codes, s.splat(*self.value_scales.get_unchecked(scale)))
        }
    }
    #[inline(always)]
    fn value(&self, dim: usize, token: usize, d: usize) -> f32 {
        let scale = self.value_scales[token * dim.div_ceil(GROUP) + d / GROUP];
        f32::from(self.values[token * dim + d]) * scale
    }
}

/// The scales of a chunk in f32, made once for all its queries.
#[derive(Default)]
pub(super) struct Scales {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Scales {
    /// Takes those of the block at `index` of the chunk.
    #[inline(always)]
    pub(super) fn take<S: Simd>(&mut self, s: S, index: usize, block: &Q8Block<'_>) {
        for (wide, halves) in [
            (&mut self.keys, block.key_scales),
            (&mut self.values, block.value_scales),
        ] {
            wide.resize(CHUNK_BLOCKS * halves.len(), 0.0);
            let wide = wide[index * halves.len()..][..halves.len()].as_chunks_mut();
            let halves: (&[[u16; BLOCK_TOKENS]], _) = halves.as_chunks();
            for (wide, halves) in wide.0.iter_mut().zip(halves.0) {
                let wide: &mut [f32; BLOCK_TOKENS] = wide;
                for i in (0..BLOCK_TOKENS).step_by(S::LANES) {
                    // SAFETY: `i + LANES <= 16`, the length of both.
                    unsafe {
                        s.store(s.load_f16(halves.as_ptr().add(i)), wide.as_mut_ptr().add(i))
                    };
                }
            }
        }
    }

    /// The block at `index`, whose scales were taken.
    #[inline(always)]
    pub(super) fn block<'a>(&'a self, index: usize, block: &Q8Block<'a>) -> Codes<'a> {
        let scales = |wide: &'a [f32], count: usize| &wide[index * count..(index + 1) * count];
        Codes {
            keys: block.keys,
            key_scales: scales(&self.keys, block.key_scales.len()),
            values: block.values,
            value_scales: scales(&self.values, block.value_scales.len()),
        }
    }
}
