//! Keys and values of one layer, in f16, in blocks of 16 tokens.
//!
//! Keys lie `[block, kv_head, head_dim, token]`, so that one vector is one element of 16 tokens and scores need no sum
//! over lanes; values lie `[block, kv_head, token, head_dim]`.

use super::Cpu;
use super::isa::Kernel;
use super::simd::Simd;
use super::watch::Op;
use crate::shapes::BLOCK_TOKENS;
use half::f16;

/// f16 keys and values of one layer for every block of the cache.
pub struct KvLayer {
    kv_heads: usize,
    head_dim: usize,
    keys: Vec<u16>,
    values: Vec<u16>,
}

impl KvLayer {
    /// Room for `blocks` blocks. The memory is zeroed, so it takes no pages before it is written.
    pub fn new(blocks: usize, kv_heads: usize, head_dim: usize) -> KvLayer {
        let len = blocks * kv_heads * head_dim * BLOCK_TOKENS;
        KvLayer {
            kv_heads,
            head_dim,
            keys: vec![0; len],
            values: vec![0; len],
        }
    }

    /// Key and value heads.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.keys.len().checked_div(self.block_len()).unwrap_or(0)
    }

    /// Copies block `from` over block `to`.
    ///
    /// # Panics
    /// When there is no such block.
    pub fn copy_block(&mut self, from: u32, to: u32) {
        let (len, from, to) = (self.block_len(), from as usize, to as usize);
        self.keys
            .copy_within(from * len..(from + 1) * len, to * len);
        self.values
            .copy_within(from * len..(from + 1) * len, to * len);
    }

    fn block_len(&self) -> usize {
        self.head_len() * self.kv_heads
    }

    fn head_len(&self) -> usize {
        self.head_dim * BLOCK_TOKENS
    }

    /// The keys (`[head_dim, token]`) and values (`[token, head_dim]`) of one head of one block.
    pub(crate) fn head(&self, block: u32, kv_head: usize) -> (&[u16], &[u16]) {
        let start = block as usize * self.block_len() + kv_head * self.head_len();
        let range = start..start + self.head_len();
        (&self.keys[range.clone()], &self.values[range])
    }
}

impl Cpu {
    /// Writes row `i` of `k` and `v` (`[rows, kv_heads * head_dim]`) to slot `slots[i]` = block * 16 + place in the block.
    ///
    /// # Panics
    /// When the lengths do not fit or a slot is outside the layer.
    pub fn kv_write(&self, k: &[f32], v: &[f32], kv: &mut KvLayer, slots: &[u32]) {
        let width = kv.kv_heads * kv.head_dim;
        assert!(
            k.len() == slots.len() * width && v.len() == k.len(),
            "one slot a row"
        );
        let _watched = self.watch(|| Op::plain("write k, v", 3 * size_of_val(k), 2 * k.len()));
        for ((k, v), &slot) in k.chunks_exact(width).zip(v.chunks_exact(width)).zip(slots) {
            self.isa.run(WriteRow {
                k,
                v,
                kv,
                slot: slot as usize,
            });
        }
    }
}

struct WriteRow<'a> {
    k: &'a [f32],
    v: &'a [f32],
    kv: &'a mut KvLayer,
    slot: usize,
}

impl Kernel for WriteRow<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let KvLayer {
            head_dim,
            ref mut keys,
            ref mut values,
            ..
        } = *self.kv;
        let (block, token) = (self.slot / BLOCK_TOKENS, self.slot % BLOCK_TOKENS);
        let heads = self.k.len() / head_dim;
        for head in 0..heads {
            let start = (block * heads + head) * head_dim * BLOCK_TOKENS;
            let range = head * head_dim..(head + 1) * head_dim;
            round_to_f16(
                s,
                &self.v[range.clone()],
                &mut values[start + token * head_dim..][..head_dim],
            );
            let keys = &mut keys[start..start + head_dim * BLOCK_TOKENS];
            for (x, column) in self.k[range]
                .chunks(BLOCK_TOKENS)
                .zip(keys.chunks_mut(BLOCK_TOKENS * BLOCK_TOKENS))
            {
                let mut halves = [0u16; BLOCK_TOKENS];
                round_to_f16(s, x, &mut halves[..x.len()]);
                for (column, half) in column.chunks_exact_mut(BLOCK_TOKENS).zip(halves) {
                    column[token] = half;
                }
            }
        }
    }
}

#[inline(always)]
fn round_to_f16<S: Simd>(s: S, x: &[f32], out: &mut [u16]) {
    assert_eq!(x.len(), out.len());
    let mut i = 0;
    while i + S::LANES <= x.len() {
        // SAFETY: `LANES` elements from `i` on are inside both slices.
        unsafe { s.store_f16(s.load(x.as_ptr().add(i)), out.as_mut_ptr().add(i)) };
        i += S::LANES;
    }
    for (x, out) in x[i..].iter().zip(&mut out[i..]) {
        *out = f16::from_f32(*x).to_bits();
    }
}
