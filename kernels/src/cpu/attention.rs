//! Attention over paged keys and values: one pass, a chunk of blocks at a time, with a running softmax.
//!
//! Queries that read the same keys go through a chunk together: the heads that share a key head, and the rows of a
//! prompt. Chunks begin at the same positions for every query, and a query counts only its own visible tokens, in order:
//! its result is the same alone.

mod block;
mod tile;

use super::activations::tiles;
use super::isa::Kernel;
use super::kv::{HeadBlock, KvType};
use super::matmul::of_rows;
use super::shared::SharedOut;
use super::simd::Simd;
use super::watch::Op;
use super::{Cpu, KvLayer};
use crate::shapes::{AttentionRow, AttentionShape, BLOCK_TOKENS};
use block::{Block, Chunk, Codes, Halves, Scales};
use std::array::from_fn;
use std::f32::consts::LOG2_E;
use std::ops::Range;
use tile::Tile;

/// Rows a task walks together at most.
const ROWS_MAX: usize = 16;

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
            let mut scratch = Scratch::default();
            // Later rows of a prompt see more: they go first, so that the threads end together.
            for item in range.map(|item| items - 1 - item) {
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
                    scratch: &mut scratch,
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

/// Blocks that go through the softmax together, and their tokens.
const CHUNK_BLOCKS: usize = 4;
const CHUNK_TOKENS: usize = CHUNK_BLOCKS * BLOCK_TOKENS;

/// Queries that go through a chunk together at most: what is kept of them has to stay in a cache.
const QUERIES_MAX: usize = 64;

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
    scratch: &'a mut Scratch,
}

/// What is kept of the queries that go together, and the chunk they are at.
#[derive(Default)]
struct Scratch {
    /// Queries times the factor of their scores, a tile after the other: `[head_dim, tile]`.
    q: Vec<f32>,
    /// Sums of values: `[queries, head_dim]`.
    sums: Vec<f32>,
    softmax: Vec<Softmax>,
    scales: Scales,
}

/// A running softmax of one query, with powers of two.
#[derive(Clone, Copy)]
struct Softmax {
    max: f32,
    sum: f32,
}

impl Softmax {
    const START: Softmax = Softmax {
        max: f32::MIN,
        sum: 0.0,
    };
}

/// Queries of consecutive rows of one sequence, counted head by head.
struct Queries {
    /// The first of the rows, and how many they are.
    start: usize,
    count: usize,
    /// Which of the queries of these rows are meant.
    range: Range<usize>,
}

impl Kernel for Item<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let group = self.shape.heads / self.shape.kv_heads;
        let mut start = self.rows_here.start;
        while start < self.rows_here.end {
            let table = self.rows[start].table;
            let count = self.rows[start..self.rows_here.end]
                .iter()
                .take_while(|row| row.table == table)
                .count();
            for first in (0..count * group).step_by(QUERIES_MAX) {
                let range = first..(count * group).min(first + QUERIES_MAX);
                self.attend(
                    s,
                    &Queries {
                        start,
                        count,
                        range,
                    },
                );
            }
            start += count;
        }
    }
}

impl Item<'_> {
    /// Takes the queries through the chunks they see.
    #[inline(always)]
    fn attend<S: Simd>(&mut self, s: S, queries: &Queries) {
        self.take_queries::<S>(queries);
        let spans = queries.range.clone().map(|query| self.span(queries, query));
        let all = spans
            .reduce(|a, b| a.start.min(b.start)..a.end.max(b.end))
            .unwrap_or(0..0);
        let table = self.tables[self.rows[queries.start].table as usize];
        for start in (all.start / CHUNK_TOKENS * CHUNK_TOKENS..all.end).step_by(CHUNK_TOKENS) {
            let visible = within(&all, start);
            let seen = visible.start / BLOCK_TOKENS..visible.end.div_ceil(BLOCK_TOKENS);
            let table = &table[start / BLOCK_TOKENS..];
            let block = |index: usize| {
                seen.contains(&index)
                    .then(|| self.kv.head(table[index], self.kv_head))
            };
            match self.kv.ty() {
                KvType::F16 => {
                    let blocks = from_fn(|index| match block(index) {
                        Some(HeadBlock::F16 { keys, values }) => Halves { keys, values },
                        _ => Halves::default(),
                    });
                    self.tiles(s, queries, &Chunk { start, blocks });
                }
                KvType::Q8_0 => {
                    let mut scales = std::mem::take(&mut self.scratch.scales);
                    for index in seen.clone() {
                        if let Some(HeadBlock::Q8_0(block)) = block(index) {
                            scales.take(s, index, &block);
                        }
                    }
                    let blocks = from_fn(|index| match block(index) {
                        Some(HeadBlock::Q8_0(block)) => scales.block(index, &block),
                        _ => Codes::default(),
                    });
                    self.tiles(s, queries, &Chunk { start, blocks });
                    self.scratch.scales = scales;
                }
            }
        }
        self.put_out(queries);
    }

    /// Lays the queries out in tiles, each element times the factor of the scores, and starts their sums.
    #[inline(always)]
    fn take_queries<S: Simd>(&mut self, queries: &Queries) {
        let (count, dim) = (queries.range.len(), self.shape.head_dim);
        let scale = self.shape.scale * self.shape.softcap.map_or(LOG2_E, |cap| 1.0 / cap);
        let Scratch {
            q, sums, softmax, ..
        } = &mut *self.scratch;
        softmax.clear();
        softmax.resize(count, Softmax::START);
        sums.clear();
        sums.resize(count * dim, 0.0);
        q.resize(count * dim, 0.0);
        for tile in tiles(count, S::TILE_ROWS) {
            let first = queries.range.start + tile.start;
            let to = &mut q[tile.start * dim..tile.end * dim];
            of_rows!(tile.len(), |N| {
                let from: [&[f32]; N] =
                    from_fn(|i| &self.q[place(queries, self.shape, self.kv_head, first + i)]);
                for (d, to) in to.as_chunks_mut::<N>().0.iter_mut().enumerate() {
                    *to = from_fn(|i| from[i][d] * scale);
                }
            });
        }
    }

    /// Takes the queries through one chunk.
    #[inline(always)]
    fn tiles<S: Simd, B: Block>(&mut self, s: S, queries: &Queries, chunk: &Chunk<B>) {
        let dim = self.shape.head_dim;
        for tile in tiles(queries.range.len(), S::TILE_ROWS) {
            let first = queries.range.start + tile.start;
            of_rows!(tile.len(), |N| {
                s.call(Tile::<B, N> {
                    chunk,
                    visible: from_fn(|i| within(&self.span(queries, first + i), chunk.start)),
                    softcap: self.shape.softcap,
                    q: &self.scratch.q[tile.start * dim..tile.end * dim],
                    softmax: &mut self.scratch.softmax[tile.clone()],
                    sums: &mut self.scratch.sums[tile.start * dim..tile.end * dim],
                })
            });
        }
    }

    /// The weighted means of the values.
    #[inline(always)]
    fn put_out(&self, queries: &Queries) {
        let sums = self.scratch.sums.chunks_exact(self.shape.head_dim);
        for ((query, sums), softmax) in queries.range.clone().zip(sums).zip(&self.scratch.softmax) {
            let place = place(queries, self.shape, self.kv_head, query);
            // SAFETY: every pair of a row and a key head belongs to one task, and queries lie at different places.
            let out = unsafe { self.out.part(place) };
            let scale = 1.0 / softmax.sum;
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = sum * scale;
            }
        }
    }

    /// The positions that a query sees.
    #[inline(always)]
    fn span(&self, queries: &Queries, query: usize) -> Range<usize> {
        let row = queries.start + query % queries.count;
        self.shape.span(self.rows[row].position)
    }
}

/// Where a query and its result lie.
#[inline(always)]
fn place(queries: &Queries, shape: &AttentionShape, kv_head: usize, query: usize) -> Range<usize> {
    let (row, head) = (query % queries.count, query / queries.count);
    let group = shape.heads / shape.kv_heads;
    let head = (queries.start + row) * shape.heads + kv_head * group + head;
    head * shape.head_dim..(head + 1) * shape.head_dim
}

/// The tokens of `span` in the chunk that begins at `start`, counted from there.
#[inline(always)]
fn within(span: &Range<usize>, start: usize) -> Range<usize> {
    let place = |position: usize| position.saturating_sub(start).min(CHUNK_TOKENS);
    place(span.start)..place(span.end)
}
