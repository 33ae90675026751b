//! Keys and values of one layer, in blocks of 16 tokens, in f16 or in 8 bits.
//!
//! Keys lie `[block, kv_head, head_dim, token]`, so that one vector is one element of 16 tokens and scores need no sum
//! over lanes; values lie `[block, kv_head, token, head_dim]`. In 8 bits, 32 elements of a head share an f16 scale: those
//! of keys lie `[block, kv_head, head_dim / 32, token]`, those of values `[block, kv_head, token, head_dim / 32]`.

use super::Cpu;
use super::isa::Kernel;
use super::simd::Simd;
use super::watch::Op;
use crate::quant::GROUP;
use crate::shapes::BLOCK_TOKENS;
use half::f16;
use std::ops::Range;
use zerocopy::IntoBytes;

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// 16-bit floats.
    #[default]
    F16,
    /// 8-bit codes with an f16 scale for every 32 elements of a head: 53 % of the memory of f16.
    Q8_0,
}

/// Keys and values of one layer for every block of the cache.
pub struct KvLayer {
    kv_heads: usize,
    head_dim: usize,
    blocks: usize,
    planes: Planes,
}

enum Planes {
    F16 {
        keys: Vec<u16>,
        values: Vec<u16>,
    },
    Q8_0 {
        keys: Vec<i8>,
        key_scales: Vec<u16>,
        values: Vec<i8>,
        value_scales: Vec<u16>,
    },
}

/// One head of one block; the axes of a head are those of the module's header.
pub(crate) enum HeadBlock<'a> {
    F16 { keys: &'a [u16], values: &'a [u16] },
    Q8_0(Q8Block<'a>),
}

pub(crate) struct Q8Block<'a> {
    pub(crate) keys: &'a [i8],
    pub(crate) key_scales: &'a [u16],
    pub(crate) values: &'a [i8],
    pub(crate) value_scales: &'a [u16],
}

impl KvLayer {
    /// Room for `blocks` blocks. The memory is zeroed, so it takes no pages before it is written.
    pub fn new(blocks: usize, kv_heads: usize, head_dim: usize, ty: KvType) -> KvLayer {
        let codes = blocks * kv_heads * head_dim * BLOCK_TOKENS;
        let scales = blocks * kv_heads * head_dim.div_ceil(GROUP) * BLOCK_TOKENS;
        let planes = match ty {
            KvType::F16 => Planes::F16 {
                keys: vec![0; codes],
                values: vec![0; codes],
            },
            KvType::Q8_0 => Planes::Q8_0 {
                keys: vec![0; codes],
                key_scales: vec![0; scales],
                values: vec![0; codes],
                value_scales: vec![0; scales],
            },
        };
        KvLayer {
            kv_heads,
            head_dim,
            blocks,
            planes,
        }
    }

    /// Bytes of one block.
    pub fn block_bytes(kv_heads: usize, head_dim: usize, ty: KvType) -> usize {
        let of_head = match ty {
            KvType::F16 => 2 * head_dim,
            KvType::Q8_0 => head_dim + 2 * head_dim.div_ceil(GROUP),
        };
        2 * kv_heads * of_head * BLOCK_TOKENS
    }

    /// Bytes of the key and the value of one token.
    pub(crate) fn token_bytes(&self) -> usize {
        KvLayer::block_bytes(self.kv_heads, self.head_dim, self.ty()) / BLOCK_TOKENS
    }

    /// How keys and values are kept.
    pub fn ty(&self) -> KvType {
        match self.planes {
            Planes::F16 { .. } => KvType::F16,
            Planes::Q8_0 { .. } => KvType::Q8_0,
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
        self.blocks
    }

    /// Copies block `from` over block `to`.
    ///
    /// # Panics
    /// When there is no such block.
    pub fn copy_block(&mut self, from: u32, to: u32) {
        let blocks = self.blocks;
        for plane in self.planes_mut() {
            let (from, to) = (of_block(plane, blocks, from), of_block(plane, blocks, to));
            plane.copy_within(from, to.start);
        }
    }

    /// Appends block `block` to `out` as [`KvLayer::block_bytes`] bytes: its keys, their scales, its values and theirs, each
    /// little-endian and in the order of the module's header.
    ///
    /// # Panics
    /// When there is no such block.
    pub fn export_block(&self, block: u32, out: &mut Vec<u8>) {
        for plane in self.planes() {
            out.extend_from_slice(&plane[of_block(plane, self.blocks, block)]);
        }
    }

    /// Fills block `block` with what [`KvLayer::export_block`] made of one in a layer of the same heads and type.
    ///
    /// # Panics
    /// When there is no such block, or `bytes` are not exactly those of one.
    pub fn import_block(&mut self, block: u32, bytes: &[u8]) {
        let block_bytes = KvLayer::block_bytes(self.kv_heads, self.head_dim, self.ty());
        assert_eq!(bytes.len(), block_bytes, "the bytes of one block");
        let (blocks, mut bytes) = (self.blocks, bytes);
        for plane in self.planes_mut() {
            let range = of_block(plane, blocks, block);
            let (own, rest) = bytes.split_at(range.len());
            plane[range].copy_from_slice(own);
            bytes = rest;
        }
    }

    /// Keys, their scales, values and theirs as bytes; what the type has none of is empty.
    fn planes(&self) -> [&[u8]; 4] {
        match &self.planes {
            Planes::F16 { keys, values } => [keys.as_bytes(), &[], values.as_bytes(), &[]],
            Planes::Q8_0 {
                keys,
                key_scales,
                values,
                value_scales,
            } => [
                keys.as_bytes(),
                key_scales.as_bytes(),
                values.as_bytes(),
                value_scales.as_bytes(),
            ],
        }
    }

    /// The same to write to.
    fn planes_mut(&mut self) -> [&mut [u8]; 4] {
        match &mut self.planes {
            Planes::F16 { keys, values } => {
                [keys.as_mut_bytes(), &mut [], values.as_mut_bytes(), &mut []]
            }
            Planes::Q8_0 {
                keys,
                key_scales,
                values,
                value_scales,
            } => [
                keys.as_mut_bytes(),
                key_scales.as_mut_bytes(),
                values.as_mut_bytes(),
                value_scales.as_mut_bytes(),
            ],
        }
    }

    /// Elements of one head of one block.
    fn head_codes(&self) -> usize {
        self.head_dim * BLOCK_TOKENS
    }

    fn head_scales(&self) -> usize {
        self.head_dim.div_ceil(GROUP) * BLOCK_TOKENS
    }

    /// Where one head of one block lies among the codes and among the scales.
    fn head_ranges(&self, block: usize, kv_head: usize) -> [Range<usize>; 2] {
        let head = block * self.kv_heads + kv_head;
        [self.head_codes(), self.head_scales()].map(|len| head * len..(head + 1) * len)
    }

    /// The keys and values of one head of one block.
    pub(crate) fn head(&self, block: u32, kv_head: usize) -> HeadBlock<'_> {
        let [codes, scales] = self.head_ranges(block as usize, kv_head);
        match &self.planes {
            Planes::F16 { keys, values } => HeadBlock::F16 {
                keys: &keys[codes.clone()],
                values: &values[codes],
            },
            Planes::Q8_0 {
                keys,
                key_scales,
                values,
                value_scales,
            } => HeadBlock::Q8_0(Q8Block {
                keys: &keys[codes.clone()],
                key_scales: &key_scales[scales.clone()],
                values: &values[codes],
                value_scales: &value_scales[scales],
            }),
        }
    }
}

// Blocks are moved as they lie in memory, from one machine to another too.
const _: () = assert!(cfg!(target_endian = "little"));

/// Where a block lies in a plane of so many.
fn of_block(plane: &[u8], blocks: usize, block: u32) -> Range<usize> {
    let (len, block) = (plane.len() / blocks, block as usize);
    block * len..(block + 1) * len
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
            "there must be one slot for each row of keys and of values"
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
        let (block, token) = (self.slot / BLOCK_TOKENS, self.slot % BLOCK_TOKENS);
        let dim = self.kv.head_dim;
        for head in 0..self.kv.kv_heads {
            let [codes, scales] = self.kv.head_ranges(block, head);
            let (k, v) = (
                &self.k[head * dim..(head + 1) * dim],
                &self.v[head * dim..(head + 1) * dim],
            );
            match &mut self.kv.planes {
                Planes::F16 { keys, values } => {
                    round_to_f16(s, v, &mut values[codes.clone()][token * dim..][..dim]);
                    write_key_f16(s, k, token, &mut keys[codes]);
                }
                Planes::Q8_0 {
                    keys,
                    key_scales,
                    values,
                    value_scales,
                } => {
                    let groups = dim.div_ceil(GROUP);
                    let values = &mut values[codes.clone()][token * dim..][..dim];
                    let value_scales = &mut value_scales[scales.clone()][token * groups..];
                    for (index, v) in v.chunks(GROUP).enumerate() {
                        let (codes, scale) = round_to_q8(v);
                        values[index * GROUP..][..v.len()].copy_from_slice(&codes[..v.len()]);
                        value_scales[index] = scale;
                    }
                    let (keys, key_scales) = (&mut keys[codes], &mut key_scales[scales]);
                    let columns = keys.chunks_mut(GROUP * BLOCK_TOKENS);
                    for (index, (k, columns)) in k.chunks(GROUP).zip(columns).enumerate() {
                        let (codes, scale) = round_to_q8(k);
                        for (column, code) in columns.chunks_exact_mut(BLOCK_TOKENS).zip(codes) {
                            column[token] = code;
                        }
                        key_scales[index * BLOCK_TOKENS + token] = scale;
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn write_key_f16<S: Simd>(s: S, k: &[f32], token: usize, keys: &mut [u16]) {
    for (x, columns) in k
        .chunks(BLOCK_TOKENS)
        .zip(keys.chunks_mut(BLOCK_TOKENS * BLOCK_TOKENS))
    {
        let mut halves = [0u16; BLOCK_TOKENS];
        round_to_f16(s, x, &mut halves[..x.len()]);
        for (column, half) in columns.chunks_exact_mut(BLOCK_TOKENS).zip(halves) {
            column[token] = half;
        }
    }
}

/// Codes and f16 scale of up to 32 elements. The codes are made for the scale as it is kept. What is not finite becomes
/// something finite: the sampler tells of it, the cache must not spread it.
#[inline(always)]
fn round_to_q8(x: &[f32]) -> ([i8; GROUP], u16) {
    let max = x.iter().fold(0f32, |max, v| max.max(v.abs()));
    let scale = f16::from_f32((max / 127.0).min(f16::MAX.to_f32()));
    let inverse = match scale.to_f32() {
        0.0 => 0.0,
        scale => 1.0 / scale,
    };
    let mut codes = [0; GROUP];
    for (code, x) in codes.iter_mut().zip(x) {
        *code = (x * inverse).round_ties_even().clamp(-127.0, 127.0) as i8;
    }
    (codes, scale.to_bits())
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
