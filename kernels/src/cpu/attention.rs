//! Attention over paged keys and values: one pass, block by block, with a running softmax.
//!
//! The query heads that share a key head go through its blocks together. A row sees its blocks in order from its first
//! visible one, whatever else is in the batch, so its result is the same alone.

use super::isa::Kernel;
use super::shared::SharedOut;
use super::simd::Simd;
use super::{Cpu, KvLayer};
use crate::shapes::{AttentionRow, AttentionShape, BLOCK_TOKENS};
use half::f16;

impl Cpu {
    /// Every query head attends to the positions its row may see.
    ///
    /// - `q`, `out`: `[rows, heads * head_dim]`; `out` is overwritten.
    /// - `tables[row.table]`: block ids of the row's sequence, enough for `row.position`; those positions are written.
    ///
    /// # Panics
    /// When the lengths do not fit, a table is too short or names a block outside the layer.
    pub fn attention(
        &self,
        q: &[f32],
        kv: &KvLayer,
        rows: &[AttentionRow],
        tables: &[&[u32]],
        shape: &AttentionShape,
        out: &mut [f32],
    ) {
        let width = shape.heads * shape.head_dim;
        assert!(
            q.len() == rows.len() * width && out.len() == q.len(),
            "one query row and one output row for each row"
        );
        assert!(
            shape.kv_heads == kv.kv_heads() && shape.head_dim == kv.head_dim(),
            "the layer has the shape's heads"
        );
        assert!(
            shape.heads.is_multiple_of(shape.kv_heads),
            "query heads share key heads evenly"
        );
        let group = shape.heads / shape.kv_heads * shape.head_dim;
        let longest = rows
            .iter()
            .map(|row| shape.span(row.position).len())
            .max()
            .unwrap_or(0);
        let out = SharedOut::new(out);
        self.split(rows.len() * shape.kv_heads, 2 * longest * group, |range| {
            for item in range {
                let (row, kv_head) = (item / shape.kv_heads, item % shape.kv_heads);
                let start = row * width + kv_head * group;
                // SAFETY: every pair of a row and a key head belongs to one task.
                let out = unsafe { out.part(start..start + group) };
                let table = tables[rows[row].table as usize];
                let q = &q[start..start + group];
                self.isa.run(Heads {
                    q,
                    kv,
                    kv_head,
                    position: rows[row].position,
                    table,
                    shape,
                    out,
                });
            }
        });
    }
}

/// One row's query heads of one key head.
struct Heads<'a> {
    q: &'a [f32], // [heads of the group, head_dim]
    kv: &'a KvLayer,
    kv_head: usize,
    position: u32,
    table: &'a [u32],
    shape: &'a AttentionShape,
    out: &'a mut [f32],
}

impl Kernel for Heads<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (q, out) = (self.q, std::mem::take(&mut self.out));
        let dim = self.shape.head_dim;
        // Up to four heads at once: what the registers hold.
        for (q, out) in q.chunks(4 * dim).zip(out.chunks_mut(4 * dim)) {
            match q.len() / dim {
                1 => attend::<S, 1>(s, &self, q, out),
                2 => attend::<S, 2>(s, &self, q, out),
                3 => attend::<S, 3>(s, &self, q, out),
                _ => attend::<S, 4>(s, &self, q, out),
            }
        }
    }
}

#[inline(always)]
fn attend<S: Simd, const N: usize>(s: S, heads: &Heads<'_>, q: &[f32], out: &mut [f32]) {
    let shape = heads.shape;
    let dim = shape.head_dim;
    let q: [&[f32]; N] = std::array::from_fn(|h| &q[h * dim..(h + 1) * dim]);
    let span = shape.span(heads.position);
    let mut max = [f32::MIN; N];
    let mut sum = [0f32; N];
    out.fill(0.0);
    for index in span.start / BLOCK_TOKENS..span.end.div_ceil(BLOCK_TOKENS) {
        let (keys, values) = heads.kv.head(heads.table[index], heads.kv_head);
        // Visible tokens of this block.
        let first = span.start.saturating_sub(index * BLOCK_TOKENS);
        let last = (span.end - index * BLOCK_TOKENS).min(BLOCK_TOKENS);
        let mut weights = [[0f32; BLOCK_TOKENS]; N];
        scores::<S, N>(s, &q, keys, shape, &mut weights);
        let mut keep = [0f32; N];
        for h in 0..N {
            let weights = &mut weights[h];
            weights[..first].fill(f32::NEG_INFINITY);
            weights[last..].fill(f32::NEG_INFINITY);
            let before = max[h];
            max[h] = weights.iter().copied().fold(before, f32::max);
            for i in (0..BLOCK_TOKENS).step_by(S::LANES) {
                // SAFETY: `i + LANES <= 16`.
                unsafe {
                    let p = weights.as_mut_ptr().add(i);
                    s.store(s.exp(s.sub(s.load(p), s.splat(max[h]))), p);
                }
            }
            weights[..first].fill(0.0);
            weights[last..].fill(0.0);
            keep[h] = if before == max[h] {
                1.0
            } else {
                s.max_lane(s.exp(s.splat(before - max[h])))
            };
            sum[h] = sum[h] * keep[h] + weights.iter().sum::<f32>();
        }
        accumulate::<S, N>(
            s,
            &weights,
            &keep,
            &values[first * dim..last * dim],
            first,
            out,
        );
    }
    for h in 0..N {
        let scale = 1.0 / sum[h];
        out[h * dim..(h + 1) * dim]
            .iter_mut()
            .for_each(|v| *v *= scale);
    }
}

/// Scores of the 16 tokens of a block for each head.
#[inline(always)]
fn scores<S: Simd, const N: usize>(
    s: S,
    q: &[&[f32]; N],
    keys: &[u16],
    shape: &AttentionShape,
    out: &mut [[f32; BLOCK_TOKENS]; N],
) {
    let dim = q[0].len();
    assert!(keys.len() == dim * BLOCK_TOKENS && q.iter().all(|q| q.len() == dim));
    for token in (0..BLOCK_TOKENS).step_by(S::LANES) {
        // Two sums each, so that additions overlap.
        let mut sums = [[s.splat(0.0); 2]; N];
        for d in 0..dim {
            // SAFETY: row `d` of the `[head_dim, 16]` keys, `LANES` tokens from `token` on.
            let k = unsafe { s.load_f16(keys.as_ptr().add(d * BLOCK_TOKENS + token)) };
            for h in 0..N {
                // SAFETY: `d < dim`, the length of every query.
                let x = s.splat(unsafe { *q[h].get_unchecked(d) });
                sums[h][d % 2] = s.mul_add(k, x, sums[h][d % 2]);
            }
        }
        for h in 0..N {
            let mut score = s.mul(s.add(sums[h][0], sums[h][1]), s.splat(shape.scale));
            if let Some(cap) = shape.softcap {
                score = s.mul(tanh(s, s.mul(score, s.splat(1.0 / cap))), s.splat(cap));
            }
            // SAFETY: `token + LANES <= 16`.
            unsafe { s.store(score, out[h].as_mut_ptr().add(token)) };
        }
    }
}

/// `out = out * keep + weights · values` for the tokens from `first` on.
#[inline(always)]
fn accumulate<S: Simd, const N: usize>(
    s: S,
    weights: &[[f32; BLOCK_TOKENS]; N],
    keep: &[f32; N],
    values: &[u16],
    first: usize,
    out: &mut [f32],
) {
    let dim = out.len() / N;
    let tokens = values.len() / dim;
    assert!(first + tokens <= BLOCK_TOKENS && out.len() == N * dim);
    let mut d = 0;
    while d + S::LANES <= dim {
        let mut acc = [s.splat(0.0); N];
        for h in 0..N {
            // SAFETY: `h < N` and `d + LANES <= dim`: inside `[N, dim]`.
            let before = unsafe { s.load(out.as_ptr().add(h * dim + d)) };
            acc[h] = s.mul(before, s.splat(keep[h]));
        }
        for t in 0..tokens {
            // SAFETY: `t < tokens` and `d + LANES <= dim`: inside `[tokens, dim]`.
            let v = unsafe { s.load_f16(values.as_ptr().add(t * dim + d)) };
            for h in 0..N {
                acc[h] = s.mul_add(v, s.splat(weights[h][first + t]), acc[h]);
            }
        }
        for (h, &acc) in acc.iter().enumerate() {
            // SAFETY: as the load.
            unsafe { s.store(acc, out.as_mut_ptr().add(h * dim + d)) };
        }
        d += S::LANES;
    }
    for d in d..dim {
        for h in 0..N {
            let mut acc = out[h * dim + d] * keep[h];
            for t in 0..tokens {
                acc += f16::from_bits(values[t * dim + d]).to_f32() * weights[h][first + t];
            }
            out[h * dim + d] = acc;
        }
    }
}

/// `tanh x = 1 - 2 / (e^2x + 1)`.
#[inline(always)]
fn tanh<S: Simd>(s: S, x: S::F) -> S::F {
    let e = s.exp(s.add(x, x));
    s.sub(s.splat(1.0), s.div(s.splat(2.0), s.add(e, s.splat(1.0))))
}
