//! The one form all quantised formats share: per group of 32 elements, unsigned codes with scales and offsets.
//!
//! Every runnable block format is `value = scale * code + min` with an unsigned `code` of 4, 5, 6 or 8 bits. Scales have
//! at most 18 significant bits (an f16 times a 6- or 8-bit integer), codes at most 8, so `scale * code` is exact in f32
//! and only the final addition rounds: any order of evaluation, fused or not, gives the same f32.

use super::BlockType;
use half::f16;

/// Elements in a group; the finest unit in which matrices are repacked and activations quantised.
pub(crate) const GROUP: usize = 32;

/// How a format writes its scales.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scales {
    /// One f16 scale a group; `min = -2^(bits-1) * scale`.
    Symmetric,
    /// One f16 scale and one f16 min a group.
    Affine,
    /// 6-bit scale and min a group, times f16 scales of the block of 256; the min is subtracted.
    SuperAffine,
    /// Signed 8-bit scale for each half group, times the f16 scale of the block of 256; `min = -32 * scale`.
    SuperHalves,
}

/// Width of the codes and writing of the scales: what decides the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Coding {
    pub(crate) bits: u32,
    pub(crate) scales: Scales,
}

/// The coding of a quantised type; `None` for the float types and for those that cannot be run.
pub(crate) fn coding(ty: BlockType) -> Option<Coding> {
    let (bits, scales) = match ty {
        BlockType::Q4_0 => (4, Scales::Symmetric),
        BlockType::Q4_1 => (4, Scales::Affine),
        BlockType::Q5_0 => (5, Scales::Symmetric),
        BlockType::Q5_1 => (5, Scales::Affine),
        BlockType::Q8_0 => (8, Scales::Symmetric),
        BlockType::Q4_K => (4, Scales::SuperAffine),
        BlockType::Q5_K => (5, Scales::SuperAffine),
        BlockType::Q6_K => (6, Scales::SuperHalves),
        _ => return None,
    };
    Some(Coding { bits, scales })
}

/// One group of a row, taken out of its block.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct GroupCodes {
    /// Unsigned codes in element order.
    pub(crate) codes: [u8; GROUP],
    /// The scale as f16 bits: of the group for the legacy formats, of the block of 256 for the K formats.
    pub(crate) scale: u16,
    /// The same for the min; 0 where the format has none.
    pub(crate) min: u16,
    /// Integer factors of `scale` for the two halves (equal unless the format scales halves); 1 for the legacy formats.
    pub(crate) scale_factors: [i8; 2],
    /// Integer factor of `min`; 1 for the legacy formats.
    pub(crate) min_factor: u8,
}

impl GroupCodes {
    /// Group `index` of a row of `ty` blocks.
    ///
    /// # Panics
    /// When `ty` is not quantised or the row is shorter than that.
    pub(crate) fn read(ty: BlockType, row: &[u8], index: usize) -> GroupCodes {
        let groups_per_block = ty.block_len() / GROUP;
        let start = index / groups_per_block * ty.block_bytes();
        let block = &row[start..start + ty.block_bytes()];
        let within = index % groups_per_block;
        match ty {
            BlockType::Q4_0 => legacy(block, false, &[], Nibbles(&block[2..18])),
            BlockType::Q4_1 => legacy(block, true, &[], Nibbles(&block[4..20])),
            BlockType::Q5_0 => legacy(block, false, &block[2..6], Nibbles(&block[6..22])),
            BlockType::Q5_1 => legacy(block, true, &block[4..8], Nibbles(&block[8..24])),
            BlockType::Q8_0 => q8_0(block),
            BlockType::Q4_K => super_affine(block, within, None, &block[16..144]),
            BlockType::Q5_K => super_affine(block, within, Some(&block[16..48]), &block[48..176]),
            BlockType::Q6_K => q6_k(block, within),
            _ => panic!("{} has no codes", ty.name()),
        }
    }

    /// The group's values.
    pub(crate) fn values(&self, coding: Coding) -> [f32; GROUP] {
        let scale = f16::from_bits(self.scale).to_f32();
        let min = f16::from_bits(self.min).to_f32();
        let mut out = [0.0; GROUP];
        for (i, (out, &code)) in out.iter_mut().zip(&self.codes).enumerate() {
            let scale = scale * f32::from(self.scale_factors[i / 16]);
            let code = f32::from(code);
            *out = match coding.scales {
                // Subtracting the offset from the code first keeps a negative zero's sign as the format's authority has it.
                Scales::Symmetric | Scales::SuperHalves => scale * (code - offset(coding.bits)),
                Scales::Affine => scale * code + min,
                Scales::SuperAffine => scale * code - min * f32::from(self.min_factor),
            };
        }
        out
    }
}

/// The code that stands for zero in the symmetric formats.
pub(crate) fn offset(bits: u32) -> f32 {
    (1u32 << (bits - 1)) as f32
}

fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

/// Sixteen bytes with elements 0..16 in the low nibbles and 16..32 in the high ones.
struct Nibbles<'a>(&'a [u8]);

/// The legacy formats: f16 scale, perhaps f16 min, perhaps 32 fifth bits, nibbles.
fn legacy(block: &[u8], has_min: bool, fifth_bits: &[u8], nibbles: Nibbles<'_>) -> GroupCodes {
    let mut codes = [0; GROUP];
    for (i, &byte) in nibbles.0.iter().enumerate() {
        codes[i] = byte & 15;
        codes[i + 16] = byte >> 4;
    }
    if let [a, b, c, d] = *fifth_bits {
        let bits = u32::from_le_bytes([a, b, c, d]);
        for (i, code) in codes.iter_mut().enumerate() {
            *code |= ((bits >> i & 1) as u8) << 4;
        }
    }
    let min = if has_min { u16_at(block, 2) } else { 0 };
    GroupCodes {
        codes,
        scale: u16_at(block, 0),
        min,
        scale_factors: [1, 1],
        min_factor: 1,
    }
}

fn q8_0(block: &[u8]) -> GroupCodes {
    let mut codes = [0; GROUP];
    for (code, &byte) in codes.iter_mut().zip(&block[2..]) {
        *code = byte ^ 0x80; // i8 + 128
    }
    GroupCodes {
        codes,
        scale: u16_at(block, 0),
        min: 0,
        scale_factors: [1, 1],
        min_factor: 1,
    }
}

/// Q4_K and Q5_K: f16 scale and min, twelve bytes of 6-bit factors, perhaps fifth bits, nibbles of two groups a 32 bytes.
fn super_affine(
    block: &[u8],
    group: usize,
    fifth_bits: Option<&[u8]>,
    nibbles: &[u8],
) -> GroupCodes {
    let packed = &block[4..16];
    let (scale_factor, min_factor) = if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        let low = packed[group + 4];
        (
            (low & 15) | (packed[group - 4] >> 6 << 4),
            (low >> 4) | (packed[group] >> 6 << 4),
        )
    };
    let pair = &nibbles[group / 2 * 32..group / 2 * 32 + 32];
    let mut codes = [0; GROUP];
    for (i, code) in codes.iter_mut().enumerate() {
        *code = if group.is_multiple_of(2) {
            pair[i] & 15
        } else {
            pair[i] >> 4
        };
        if let Some(bits) = fifth_bits {
            *code |= (bits[i] >> group & 1) << 4;
        }
    }
    let scale_factor = scale_factor as i8; // below 64
    GroupCodes {
        codes,
        scale: u16_at(block, 0),
        min: u16_at(block, 2),
        scale_factors: [scale_factor, scale_factor],
        min_factor,
    }
}

/// Q6_K: 128 bytes of low nibbles, 64 of high pairs, 16 signed scales of 16 elements each, f16 scale.
fn q6_k(block: &[u8], group: usize) -> GroupCodes {
    let (half, quarter) = (group / 4, group % 4); // 128 elements a half, 32 a quarter
    let low = &block[half * 64 + quarter % 2 * 32..][..32];
    let high = &block[128 + half * 32..][..32];
    let mut codes = [0; GROUP];
    for (i, code) in codes.iter_mut().enumerate() {
        let nibble = if quarter < 2 {
            low[i] & 15
        } else {
            low[i] >> 4
        };
        *code = nibble | (high[i] >> (2 * quarter) & 3) << 4;
    }
    let factors = [
        block[192 + 2 * group] as i8,
        block[192 + 2 * group + 1] as i8,
    ];
    GroupCodes {
        codes,
        scale: u16_at(block, 208),
        min: 0,
        scale_factors: factors,
        min_factor: 0,
    }
}
