//! Scores and sums over keys and values of 8 bits: as those of f16, a group of 32 elements at a time.

use super::finish;
use crate::cpu::simd::Simd;
use crate::quant::GROUP;
use crate::shapes::{AttentionShape, BLOCK_TOKENS};
use half::f16;
use std::ops::Range;

/// Scores of the 16 tokens of a block for each query: `keys` is `[head_dim, token]`, `scales` `[head_dim / 32, token]`.
#[inline(always)]
pub(super) fn scores<S: Simd, const N: usize>(
    s: S,
    q: &[&[f32]; N],
    keys: &[i8],
    scales: &[u16],
    shape: &AttentionShape,
    out: &mut [[f32; BLOCK_TOKENS]; N],
) {
    let dim = q[0].len();
    assert!(keys.len() == dim * BLOCK_TOKENS && q.iter().all(|q| q.len() == dim));
    assert_eq!(scales.len(), dim.div_ceil(GROUP) * BLOCK_TOKENS);
    for token in (0..BLOCK_TOKENS).step_by(S::LANES) {
        let mut sums = [s.splat(0.0); N];
        for (group, start) in (0..dim).step_by(GROUP).enumerate() {
            let mut dots = [s.splat(0.0); N];
            for d in start..dim.min(start + GROUP) {
                // SAFETY: row `d` of the `[head_dim, 16]` keys, `LANES` tokens from `token` on.
                let key = unsafe { s.load_i8(keys.as_ptr().add(d * BLOCK_TOKENS + token).cast()) };
                for h in 0..N {
                    // SAFETY: `d < dim`, the length of every query.
                    let x = unsafe { *q[h].get_unchecked(d) };
                    dots[h] = s.mul_add(key, s.splat(x), dots[h]);
                }
            }
            // SAFETY: row `group` of the `[head_dim / 32, 16]` scales, `LANES` tokens from `token` on.
            let scale = unsafe { s.load_f16(scales.as_ptr().add(group * BLOCK_TOKENS + token)) };
            for h in 0..N {
                sums[h] = s.mul_add(dots[h], scale, sums[h]);
            }
        }
        for h in 0..N {
            // SAFETY: `token + LANES <= 16`.
            unsafe { s.store(finish(s, sums[h], shape), out[h].as_mut_ptr().add(token)) };
        }
    }
}

/// `out = out * keep + weights · values` over the tokens `visible` to any of the queries: codes `[token, head_dim]` and
/// scales `[token, head_dim / 32]`.
#[inline(always)]
pub(super) fn accumulate<S: Simd, const N: usize>(
    s: S,
    weights: &[[f32; BLOCK_TOKENS]; N],
    keep: &[f32; N],
    (values, scales): (&[i8], &[u16]),
    visible: Range<usize>,
    out: &mut [&mut [f32]; N],
) {
    let dim = out[0].len();
    let groups = dim.div_ceil(GROUP);
    assert!(
        visible.end <= BLOCK_TOKENS
            && values.len() == BLOCK_TOKENS * dim
            && scales.len() == BLOCK_TOKENS * groups,
        "the values of a block"
    );
    assert!(
        out.iter().all(|out| out.len() == dim),
        "outputs of one width"
    );
    for group in 0..groups {
        // The scale of a token's group goes into its weight.
        let mut scaled = [[0f32; BLOCK_TOKENS]; N];
        for t in visible.clone() {
            let scale = f16::from_bits(scales[t * groups + group]).to_f32();
            for i in 0..N {
                scaled[i][t] = weights[i][t] * scale;
            }
        }
        let end = dim.min((group + 1) * GROUP);
        let mut d = group * GROUP;
        while d + S::LANES <= end {
            let mut acc = [s.splat(0.0); N];
            for i in 0..N {
                // SAFETY: `d + LANES <= dim`, the length of every output.
                let before = unsafe { s.load(out[i].as_ptr().add(d)) };
                acc[i] = s.mul(before, s.splat(keep[i]));
            }
            for t in visible.clone() {
                // SAFETY: `t < 16` and `d + LANES <= dim`: inside `[16, dim]`.
                let v = unsafe { s.load_i8(values.as_ptr().add(t * dim + d).cast()) };
                for i in 0..N {
                    acc[i] = s.mul_add(v, s.splat(scaled[i][t]), acc[i]);
                }
            }
            for i in 0..N {
                // SAFETY: as the load.
                unsafe { s.store(acc[i], out[i].as_mut_ptr().add(d)) };
            }
            d += S::LANES;
        }
        for d in d..end {
            for i in 0..N {
                let mut acc = out[i][d] * keep[i];
                for t in visible.clone() {
                    acc += f32::from(values[t * dim + d]) * scaled[i][t];
                }
                out[i][d] = acc;
            }
        }
    }
}
