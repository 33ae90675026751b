//! A few queries and one chunk: scores, softmax, sums of values.

use super::block::{Block, Chunk};
use super::{CHUNK_TOKENS, Softmax};
use crate::cpu::isa::Kernel;
use crate::cpu::simd::Simd;
use crate::shapes::BLOCK_TOKENS;
use std::f32::consts::LOG2_E;
use std::ops::Range;

/// `N` queries before a chunk, which it takes into their softmax and their sums.
pub(super) struct Tile<'a, B, const N: usize> {
    pub(super) chunk: &'a Chunk<B>,
    /// `[head_dim, N]`, so that a product with keys is a score as a power of two, or with `softcap` a share of that.
    pub(super) q: &'a [f32],
    pub(super) softmax: &'a mut [Softmax],
    /// `[N, head_dim]`.
    pub(super) sums: &'a mut [f32],
    /// The chunk's tokens that each of them sees.
    pub(super) visible: [Range<usize>; N],
    /// With `Some(c)` scores become `c * tanh(score / c)`.
    pub(super) softcap: Option<f32>,
}

/// The most lanes there are.
const LANES_MAX: usize = 16;

/// Scores of a chunk, then its weights.
type Weights<const N: usize> = [[f32; CHUNK_TOKENS]; N];

impl<B: Block, const N: usize> Kernel for Tile<'_, B, N> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let seen = self.visible.iter().filter(|visible| !visible.is_empty());
        let Some(seen) = seen
            .cloned()
            .reduce(|a, b| a.start.min(b.start)..a.end.max(b.end))
        else {
            return;
        };
        let dim = self.q.len() / N;
        let blocks = seen.start / BLOCK_TOKENS..seen.end.div_ceil(BLOCK_TOKENS);
        for block in &self.chunk.blocks[blocks.clone()] {
            assert!(block.has(dim), "a block that is seen is there");
        }
        assert!(
            self.q.len() == N * dim && self.sums.len() == N * dim && self.softmax.len() == N,
            "queries of one width"
        );
        let mut weights = [[0f32; CHUNK_TOKENS]; N];
        let tokens = blocks.start * BLOCK_TOKENS..blocks.end * BLOCK_TOKENS;
        // SAFETY: the blocks of `tokens` were looked at above.
        unsafe { self.scores(s, tokens.clone(), &mut weights) };
        let keep = self.weigh(s, tokens, &mut weights);
        // SAFETY: the blocks of `seen` were looked at above.
        unsafe { self.accumulate(s, &seen, &weights, &keep) };
    }
}

impl<B: Block, const N: usize> Tile<'_, B, N> {
    /// Whether the registers hold four vectors of sums for each query, so that enough additions are under way.
    #[inline(always)]
    fn has_room_for_four<S: Simd>() -> bool {
        2 * N <= S::TILE_ROWS.min(8)
    }

    /// Scores of whole blocks.
    ///
    /// # Safety
    /// The chunk has the blocks of `tokens`, and queries and sums are of one width.
    #[inline(always)]
    unsafe fn scores<S: Simd>(&self, s: S, tokens: Range<usize>, out: &mut Weights<N>) {
        let mut token = tokens.start;
        // SAFETY: the caller's promise; `token` stays inside `tokens`.
        unsafe {
            if Self::has_room_for_four::<S>() {
                while token + 4 * S::LANES <= tokens.end {
                    self.scores_of::<S, 4>(s, token, out);
                    token += 4 * S::LANES;
                }
            }
            while token + 2 * S::LANES <= tokens.end {
                self.scores_of::<S, 2>(s, token, out);
                token += 2 * S::LANES;
            }
            while token < tokens.end {
                self.scores_of::<S, 1>(s, token, out);
                token += S::LANES;
            }
        }
    }

    /// Scores of `W` vectors of tokens from `token` on.
    ///
    /// # Safety
    /// As [`scores`](Tile::scores), for these tokens.
    #[inline(always)]
    unsafe fn scores_of<S: Simd, const W: usize>(&self, s: S, token: usize, out: &mut Weights<N>) {
        // Loops and not closures: those would not always be inlined, and lose the instruction set.
        let mut blocks = [B::default(); W];
        for (w, block) in blocks.iter_mut().enumerate() {
            *block = self.chunk.blocks[(token + w * S::LANES) / BLOCK_TOKENS];
        }
        let mut dots = [[s.splat(0.0); W]; N];
        for d in 0..self.q.len() / N {
            let mut keys = [s.splat(0.0); W];
            for (w, (keys, block)) in keys.iter_mut().zip(&blocks).enumerate() {
                let token = (token + w * S::LANES) % BLOCK_TOKENS;
                // SAFETY: the block is there, and has `LANES` tokens from this one on.
                *keys = unsafe { block.keys(s, d, token) };
            }
            for (i, dots) in dots.iter_mut().enumerate() {
                // SAFETY: `[head_dim, N]`.
                let x = s.splat(unsafe { *self.q.get_unchecked(d * N + i) });
                for (dot, keys) in dots.iter_mut().zip(keys) {
                    *dot = s.mul_add(keys, x, *dot);
                }
            }
        }
        for (dots, out) in dots.into_iter().zip(out) {
            for (w, dot) in dots.into_iter().enumerate() {
                let score = match self.softcap {
                    None => dot,
                    Some(cap) => s.mul(s.tanh(dot), s.splat(cap * LOG2_E)),
                };
                // SAFETY: `LANES` tokens of the chunk from this one on.
                unsafe { s.store(score, out.as_mut_ptr().add(token + w * S::LANES)) };
            }
        }
    }

    /// Turns the scores of `tokens` into weights, zero for those that a query does not see. Returns what earlier sums
    /// have to be scaled by.
    #[inline(always)]
    fn weigh<S: Simd>(
        &mut self,
        s: S,
        tokens: Range<usize>,
        weights: &mut Weights<N>,
    ) -> [f32; LANES_MAX] {
        let mut keep = [0f32; LANES_MAX];
        for i in 0..N {
            keep[i] = self.weigh_one(s, i, tokens.clone(), &mut weights[i]);
        }
        for i in (0..N).step_by(S::LANES) {
            let p = keep.as_mut_ptr();
            // SAFETY: `N` is at most 16, which vectors divide.
            unsafe { s.store(s.exp2(s.load(p.add(i))), p.add(i)) };
        }
        for i in 0..N {
            let mut sum = s.splat(0.0);
            for token in tokens.clone().step_by(S::LANES) {
                // SAFETY: whole blocks of the chunk.
                sum = s.add(sum, unsafe { s.load(weights[i].as_ptr().add(token)) });
            }
            let softmax = &mut self.softmax[i];
            softmax.sum = softmax.sum * keep[i] + s.sum(sum);
        }
        keep
    }

    /// Weights of query `i`; the power of two to scale earlier sums by.
    #[inline(always)]
    fn weigh_one<S: Simd>(
        &mut self,
        s: S,
        i: usize,
        tokens: Range<usize>,
        weights: &mut [f32; CHUNK_TOKENS],
    ) -> f32 {
        let (visible, softmax) = (&self.visible[i], &mut self.softmax[i]);
        let [before, behind] = [
            tokens.start..visible.start.clamp(tokens.start, tokens.end),
            visible.end.clamp(tokens.start, tokens.end)..tokens.end,
        ];
        weights[before.clone()].fill(f32::NEG_INFINITY);
        weights[behind.clone()].fill(f32::NEG_INFINITY);
        let p = weights.as_mut_ptr();
        let mut max = s.splat(softmax.max);
        for token in tokens.clone().step_by(S::LANES) {
            // SAFETY: whole blocks of the chunk.
            max = s.max(unsafe { s.load(p.add(token)) }, max);
        }
        let max = s.max_lane(max);
        for token in tokens.step_by(S::LANES) {
            // SAFETY: as above.
            let score = unsafe { s.load(p.add(token)) };
            // SAFETY: as above.
            unsafe { s.store(s.exp2(s.sub(score, s.splat(max))), p.add(token)) };
        }
        weights[before].fill(0.0);
        weights[behind].fill(0.0);
        std::mem::replace(&mut softmax.max, max) - max
    }

    /// `sums = sums * keep + weights · values` over the tokens `seen`.
    ///
    /// # Safety
    /// The chunk has the blocks of `seen`, and queries and sums are of one width.
    #[inline(always)]
    unsafe fn accumulate<S: Simd>(
        &mut self,
        s: S,
        seen: &Range<usize>,
        weights: &Weights<N>,
        keep: &[f32; LANES_MAX],
    ) {
        let dim = self.sums.len() / N;
        let mut d = 0;
        // SAFETY: the caller's promise; vectors stay inside `dim`.
        unsafe {
            if Self::has_room_for_four::<S>() {
                while d + 4 * S::LANES <= dim {
                    self.accumulate_of::<S, 4>(s, seen, weights, keep, d);
                    d += 4 * S::LANES;
                }
            }
            while d + 2 * S::LANES <= dim {
                self.accumulate_of::<S, 2>(s, seen, weights, keep, d);
                d += 2 * S::LANES;
            }
            while d + S::LANES <= dim {
                self.accumulate_of::<S, 1>(s, seen, weights, keep, d);
                d += S::LANES;
            }
        }
        for d in d..dim {
            for i in 0..N {
                let sum = &mut self.sums[i * dim + d];
                *sum *= keep[i];
                for token in seen.clone() {
                    let block = &self.chunk.blocks[token / BLOCK_TOKENS];
                    let value = block.value(dim, token % BLOCK_TOKENS, d);
                    *sum += value * weights[i][token];
                }
            }
        }
    }

    /// The same for `W` vectors of elements from `d` on.
    ///
    /// # Safety
    /// As [`accumulate`](Tile::accumulate); `d + W * LANES` is within the width.
    #[inline(always)]
    unsafe fn accumulate_of<S: Simd, const W: usize>(
        &mut self,
        s: S,
        seen: &Range<usize>,
        weights: &Weights<N>,
        keep: &[f32; LANES_MAX],
        d: usize,
    ) {
        let dim = self.sums.len() / N;
        let mut acc = [[s.splat(0.0); W]; N];
        for (i, acc) in acc.iter_mut().enumerate() {
            for (w, acc) in acc.iter_mut().enumerate() {
                // SAFETY: `[N, head_dim]`, and the caller's promise.
                let sum = unsafe { s.load(self.sums.as_ptr().add(i * dim + d + w * S::LANES)) };
                *acc = s.mul(sum, s.splat(keep[i]));
            }
        }
        for index in seen.start / BLOCK_TOKENS..seen.end.div_ceil(BLOCK_TOKENS) {
            let (block, start) = (self.chunk.blocks[index], index * BLOCK_TOKENS);
            for token in start.max(seen.start)..seen.end.min(start + BLOCK_TOKENS) {
                let mut values = [s.splat(0.0); W];
                for (w, values) in values.iter_mut().enumerate() {
                    // SAFETY: the block is there; vectors stay inside the width.
                    *values = unsafe { block.values(s, dim, token - start, d + w * S::LANES) };
                }
                for (acc, weights) in acc.iter_mut().zip(weights) {
                    let weight = s.splat(weights[token]);
                    for (acc, values) in acc.iter_mut().zip(values) {
                        *acc = s.mul_add(values, weight, *acc);
                    }
                }
            }
        }
        for (i, acc) in acc.into_iter().enumerate() {
            for (w, acc) in acc.into_iter().enumerate() {
                let place = i * dim + d + w * S::LANES;
                // SAFETY: as the load.
                unsafe { s.store(acc, self.sums.as_mut_ptr().add(place)) };
            }
        }
    }
}
