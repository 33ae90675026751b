//! Attention over paged keys and values: one pass, block by block, with a running softmax.
//!
//! Queries that read the same keys go through the blocks together: the heads that share a key head, and the rows of a
//! prompt. A query takes part only in its own visible blocks and tokens, in order, so its result is the same alone.

mod q8;

use super::isa::Kernel;
use super::kv::HeadBlock;
use super::shared::SharedOut;
use super::simd::Simd;
use super::watch::Op;
use super::{Cpu, KvLayer};
use crate::shapes::{AttentionRow, AttentionShape, BLOCK_TOKENS};
use half::f16;
use std::ops::Range;

/// Rows a task walks together at most.
const ROWS_MAX: usize = 8;

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
            "one query and one output row for each row"
        );
        assert!(
            shape.kv_heads == kv.kv_heads() && shape.head_dim == kv.head_dim(),
            "the layer has the shape's heads"
        );
        assert!(
            shape.heads.is_multiple_of(shape.kv_heads),
            "query heads share key heads evenly"
        );
        let longest = rows
            .iter()
            .map(|row| shape.span(row.position).len())
            .max()
            .unwrap_or(0);
        let _watched = self.watch(|| work(kv, rows, shape));
        // Enough items for every thread come before sharing keys between rows.
        let together = (rows.len() * shape.kv_heads / (4 * self.threads())).clamp(1, ROWS_MAX);
        let items = rows.len().div_ceil(together) * shape.kv_heads;
        let cost = 2 * longest * together * width / shape.kv_heads;
        let out = SharedOut::new(out);
        self.split(items, cost, |range| {
            for item in range {
                let (start, kv_head) = (item / shape.kv_heads * together, item % shape.kv_heads);
                let rows_here = start..rows.len().min(start + together);
                self.isa.run(Item {
                    q,
                    kv,
                    rows,
                    rows_here,
                    kv_head,
                    tables,
                    shape,
                    out: &out,
                });
            }
        });
    }
}

/// Keys and values are read once for the rows of one sequence; each query multiplies with all it sees.
fn work(kv: &KvLayer, rows: &[AttentionRow], shape: &AttentionShape) -> Op {
    let span = |row: &AttentionRow| shape.span(row.position).len();
    let sequences = rows.chunk_by(|a, b| a.table == b.table);
    let read: usize = sequences
        .map(|rows| rows.iter().map(span).max().unwrap_or(0))
        .sum();
    let seen: usize = rows.iter().map(span).sum();
    let bytes = read * kv.token_bytes();
    Op::plain("attention", bytes, seen * shape.heads * shape.head_dim * 4)
}

/// The queries of some rows that read one key head.
struct Item<'a> {
    q: &'a [f32],
    kv: &'a KvLayer,
    rows: &'a [AttentionRow],
    rows_here: Range<usize>,
    kv_head: usize,
    tables: &'a [&'a [u32]],
    shape: &'a AttentionShape,
    out: &'a SharedOut<'a, f32>,
}

impl Kernel for Item<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut start = self.rows_here.start;
        while start < self.rows_here.end {
            let table = self.rows[start].table;
            let run = self.rows[start..self.rows_here.end]
                .iter()
                .take_while(|row| row.table == table)
                .count();
            self.run_of_rows(s, start, run);
            start += run;
        }
    }
}

/// Queries that go together at most: a head's keys and the sums of its values leave registers for no more.
const QUERIES_MAX: usize = 8;

impl Item<'_> {
    /// `count` rows of one sequence, from `start` on: as many queries at a time as the registers hold, those of a head
    /// side by side.
    #[inline(always)]
    fn run_of_rows<S: Simd>(&self, s: S, start: usize, count: usize) {
        let queries = count * (self.shape.heads / self.shape.kv_heads);
        let mut at = 0;
        while at < queries {
            let n = (queries - at).min(S::TILE_ROWS).min(QUERIES_MAX);
            match n {
                1 => self.attend::<S, 1>(s, start, count, at),
                2 => self.attend::<S, 2>(s, start, count, at),
                3 => self.attend::<S, 3>(s, start, count, at),
                4 => self.attend::<S, 4>(s, start, count, at),
                5 if S::TILE_ROWS > 4 => self.attend::<S, 5>(s, start, count, at),
                6 if S::TILE_ROWS > 4 => self.attend::<S, 6>(s, start, count, at),
                7 if S::TILE_ROWS > 4 => self.attend::<S, 7>(s, start, count, at),
                8 if S::TILE_ROWS > 4 => self.attend::<S, 8>(s, start, count, at),
                _ => unreachable!("at most 8 queries go together"),
            }
            at += n;
        }
    }

    /// Queries `at..at + N` of the run, counted head by head.
    #[inline(always)]
    fn attend<S: Simd, const N: usize>(&self, s: S, start: usize, count: usize, at: usize) {
        let shape = self.shape;
        let (dim, group) = (shape.head_dim, shape.heads / shape.kv_heads);
        let row = |i: usize| start + (at + i) % count;
        let range = |i: usize| {
            let query = row(i) * shape.heads + self.kv_head * group + (at + i) / count;
            query * dim..(query + 1) * dim
        };
        let q: [&[f32]; N] = std::array::from_fn(|i| &self.q[range(i)]);
        // SAFETY: every pair of a row and a key head belongs to one task, and the `N` ranges are different queries.
        let mut out: [&mut [f32]; N] = std::array::from_fn(|i| unsafe { self.out.part(range(i)) });
        let spans: [Range<usize>; N] =
            std::array::from_fn(|i| shape.span(self.rows[row(i)].position));
        let all = spans.iter().fold(spans[0].clone(), |a, b| {
            a.start.min(b.start)..a.end.max(b.end)
        });
        let table = self.tables[self.rows[start].table as usize];

        let mut softmax = [Softmax {
            max: f32::MIN,
            sum: 0.0,
        }; N];
        for out in &mut out {
            out.fill(0.0);
        }
        let blocks = &table[..all.end.div_ceil(BLOCK_TOKENS)];
        for (index, &block) in blocks.iter().enumerate().skip(all.start / BLOCK_TOKENS) {
            let head = self.kv.head(block, self.kv_head);
            let mut weights = [[0f32; BLOCK_TOKENS]; N];
            match head {
                HeadBlock::F16 { keys, .. } => scores::<S, N>(s, &q, keys, shape, &mut weights),
                HeadBlock::Q8_0 {
                    keys, key_scales, ..
                } => q8::scores::<S, N>(s, &q, keys, key_scales, shape, &mut weights),
            }
            let mut keep = [1f32; N];
            for i in 0..N {
                keep[i] = softmax[i].weigh(s, tokens(&spans[i], index), &mut weights[i]);
            }
            let visible = tokens(&all, index);
            match head {
                HeadBlock::F16 { values, .. } => {
                    accumulate::<S, N>(s, &weights, &keep, values, visible, &mut out);
                }
                HeadBlock::Q8_0 {
                    values,
                    value_scales,
                    ..
                } => {
                    let values = (values, value_scales);
                    q8::accumulate::<S, N>(s, &weights, &keep, values, visible, &mut out);
                }
            }
        }
        for (out, softmax) in out.iter_mut().zip(softmax) {
            let scale = 1.0 / softmax.sum;
            out.iter_mut().for_each(|v| *v *= scale);
        }
    }
}

/// The tokens of block `index` that lie in `span`.
fn tokens(span: &Range<usize>, index: usize) -> Range<usize> {
    let place = |position: usize| {
        position
            .saturating_sub(index * BLOCK_TOKENS)
            .min(BLOCK_TOKENS)
    };
    place(span.start)..place(span.end)
}

/// A running softmax of one query.
#[derive(Clone, Copy)]
struct Softmax {
    max: f32,
    sum: f32,
}

impl Softmax {
    /// Turns the scores of a block into weights, zero outside `visible`. Returns what earlier sums have to be scaled by.
    #[inline(always)]
    fn weigh<S: Simd>(
        &mut self,
        s: S,
        visible: Range<usize>,
        weights: &mut [f32; BLOCK_TOKENS],
    ) -> f32 {
        if visible.is_empty() {
            weights.fill(0.0);
            return 1.0;
        }
        let partly = visible.len() < BLOCK_TOKENS;
        if partly {
            weights[..visible.start].fill(f32::NEG_INFINITY);
            weights[visible.end..].fill(f32::NEG_INFINITY);
        }
        let before = self.max;
        let p = weights.as_mut_ptr();
        let mut max = s.splat(before);
        for i in (0..BLOCK_TOKENS).step_by(S::LANES) {
            // SAFETY: `i + LANES <= 16`.
            max = s.max(unsafe { s.load(p.add(i)) }, max);
        }
        self.max = s.max_lane(max);
        for i in (0..BLOCK_TOKENS).step_by(S::LANES) {
            // SAFETY: as above.
            unsafe { s.store(s.exp(s.sub(s.load(p.add(i)), s.splat(self.max))), p.add(i)) };
        }
        if partly {
            weights[..visible.start].fill(0.0);
            weights[visible.end..].fill(0.0);
        }
        let mut sum = s.splat(0.0);
        for i in (0..BLOCK_TOKENS).step_by(S::LANES) {
            // SAFETY: as above.
            sum = s.add(sum, unsafe { s.load(weights.as_ptr().add(i)) });
        }
        let keep = if before == self.max {
            1.0
        } else {
            s.max_lane(s.exp(s.splat(before - self.max)))
        };
        self.sum = self.sum * keep + s.sum(sum);
        keep
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
        // Even and odd elements apart, so that additions overlap.
        let mut even = [s.splat(0.0); N];
        let mut odd = [s.splat(0.0); N];
        for d in (0..dim / 2).map(|pair| 2 * pair) {
            // SAFETY: rows `d` and `d + 1` of the `[head_dim, 16]` keys, `LANES` tokens from `token` on.
            let k0 = unsafe { s.load_f16(keys.as_ptr().add(d * BLOCK_TOKENS + token)) };
            // SAFETY: as above.
            let k1 = unsafe { s.load_f16(keys.as_ptr().add((d + 1) * BLOCK_TOKENS + token)) };
            for h in 0..N {
                // SAFETY: `d + 1 < dim`, the length of every query.
                let (x0, x1) = unsafe { (*q[h].get_unchecked(d), *q[h].get_unchecked(d + 1)) };
                even[h] = s.mul_add(k0, s.splat(x0), even[h]);
                odd[h] = s.mul_add(k1, s.splat(x1), odd[h]);
            }
        }
        if !dim.is_multiple_of(2) {
            // SAFETY: the last row of the keys.
            let k = unsafe { s.load_f16(keys.as_ptr().add((dim - 1) * BLOCK_TOKENS + token)) };
            for h in 0..N {
                even[h] = s.mul_add(k, s.splat(q[h][dim - 1]), even[h]);
            }
        }
        for h in 0..N {
            let score = finish(s, s.add(even[h], odd[h]), shape);
            // SAFETY: `token + LANES <= 16`.
            unsafe { s.store(score, out[h].as_mut_ptr().add(token)) };
        }
    }
}

/// What a dot product of query and key counts as: scaled, and soft-capped where the model does so.
#[inline(always)]
fn finish<S: Simd>(s: S, dot: S::F, shape: &AttentionShape) -> S::F {
    let score = s.mul(dot, s.splat(shape.scale));
    match shape.softcap {
        None => score,
        Some(cap) => s.mul(tanh(s, s.mul(score, s.splat(1.0 / cap))), s.splat(cap)),
    }
}

/// `out = out * keep + weights · values` over the tokens `visible` to any of the queries.
#[inline(always)]
fn accumulate<S: Simd, const N: usize>(
    s: S,
    weights: &[[f32; BLOCK_TOKENS]; N],
    keep: &[f32; N],
    values: &[u16],
    visible: Range<usize>,
    out: &mut [&mut [f32]; N],
) {
    let dim = out[0].len();
    assert!(
        visible.end <= BLOCK_TOKENS && values.len() == BLOCK_TOKENS * dim,
        "the values of a block"
    );
    assert!(
        out.iter().all(|out| out.len() == dim),
        "outputs of one width"
    );
    let mut d = 0;
    while d + S::LANES <= dim {
        let mut acc = [s.splat(0.0); N];
        for i in 0..N {
            // SAFETY: `d + LANES <= dim`, the length of every output.
            let before = unsafe { s.load(out[i].as_ptr().add(d)) };
            acc[i] = s.mul(before, s.splat(keep[i]));
        }
        for t in visible.clone() {
            // SAFETY: `t < 16` and `d + LANES <= dim`: inside `[16, dim]`.
            let v = unsafe { s.load_f16(values.as_ptr().add(t * dim + d)) };
            for i in 0..N {
                acc[i] = s.mul_add(v, s.splat(weights[i][t]), acc[i]);
            }
        }
        for i in 0..N {
            // SAFETY: as the load.
            unsafe { s.store(acc[i], out[i].as_mut_ptr().add(d)) };
        }
        d += S::LANES;
    }
    for d in d..dim {
        for i in 0..N {
            let mut acc = out[i][d] * keep[i];
            for t in visible.clone() {
                acc += f16::from_bits(values[t * dim + d]).to_f32() * weights[i][t];
            }
            out[i][d] = acc;
        }
    }
}

/// `tanh x = 1 - 2 / (e^2x + 1)`.
#[inline(always)]
pub(super) fn tanh<S: Simd>(s: S, x: S::F) -> S::F {
    let e = s.exp(s.add(x, x));
    s.sub(s.splat(1.0), s.div(s.splat(2.0), s.add(e, s.splat(1.0))))
}
