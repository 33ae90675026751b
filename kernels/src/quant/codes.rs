//! The one form all quantised formats share: per group of 32 elements, unsigned codes with scales and offsets.
//!
//! Every runnable block format is `value = scale * (code - zero)` or `scale * code + min` with an unsigned `code` of 2 to 6
//! or 8 bits, or `value = scale * (table[code] - zero)` with a 4-bit code and a table of 16 bytes: the non-linear formats,
//! and those that draw signed magnitudes from a code book. Scales have at most 18 significant bits (an f16 times a 6- or
//! 8-bit integer), codes at most 8, so `scale * code` is exact in f32 and only the final addition rounds: any order of
//! evaluation, fused or not, gives the same f32.

use super::BlockType;
use super::code_books;
use half::{bf16, f16};

/// Elements in a group; the finest unit in which matrices are repacked and activations quantised.
pub(crate) const GROUP: usize = 32;

/// The values of the 4-bit codes of a non-linear format.
#[derive(Debug)]
pub(crate) struct Table {
    /// Each value plus `zero`.
    pub(crate) levels: [u8; 16],
    /// What makes the least value 0: the smaller the levels, the less is lost when the zeros' part is subtracted.
    pub(crate) zero: u8,
}

/// How a format writes its scales.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scales {
    /// One f16 scale a group.
    Symmetric,
    /// One scale a group that is a power of two, as bf16.
    Power,
    /// One f16 scale and one f16 min a group.
    Affine,
    /// 6-bit scale and min a group, times f16 scales of the block of 256; the min is subtracted.
    SuperAffine,
    /// 4-bit scale and min for each half group, times f16 scales of the block of 256; the min is subtracted.
    SuperAffineHalves,
    /// Signed 8-bit scale a group, times the f16 scale of the block of 256.
    SuperSymmetric,
    /// Signed 8-bit scale for each half group, times the f16 scale of the block of 256.
    SuperHalves,
}

/// What decides the kernel of a format: width of the codes, writing of the scales, meaning of the codes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Coding {
    pub(crate) bits: u32,
    pub(crate) scales: Scales,
    /// The code that stands for zero where there is no min.
    pub(crate) zero: u8,
    /// What codes stand for, where it is not themselves.
    pub(crate) table: Option<&'static Table>,
    /// A power of two that the scale of a block of 256 is multiplied with.
    pub(crate) unit: f32,
}

impl Coding {
    /// Codes that stand for themselves; symmetric ones around the middle.
    const fn linear(bits: u32, scales: Scales) -> Coding {
        Coding {
            bits,
            scales,
            zero: 1 << (bits - 1),
            table: None,
            unit: 1.0,
        }
    }

    /// Codes -1, 0 and 1 (and 2, where two bits are stored).
    const fn ternary(scales: Scales) -> Coding {
        Coding {
            zero: 1,
            ..Coding::linear(2, scales)
        }
    }

    const fn table(scales: Scales, unit: f32, table: &'static Table) -> Coding {
        Coding {
            zero: table.zero,
            table: Some(table),
            unit,
            ..Coding::linear(4, scales)
        }
    }

    /// The number a code stands for, before scale and min.
    fn level(&self, code: u8) -> u8 {
        self.table
            .map_or(code, |table| table.levels[usize::from(code & 15)])
    }
}

impl Table {
    pub(crate) const fn new(values: [i8; 16]) -> Table {
        let (mut least, mut i) = (0, 0);
        while i < 16 {
            if values[i] < least {
                least = values[i];
            }
            i += 1;
        }
        let zero = least.unsigned_abs();
        let mut levels = [0; 16];
        i = 0;
        while i < 16 {
            levels[i] = zero.wrapping_add_signed(values[i]);
            i += 1;
        }
        Table { levels, zero }
    }
}

static IQ4: Table = Table::new([
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
]);

/// The 4-bit floats of the MX formats, doubled.
static E2M1: Table = Table::new([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]);

/// The coding of a quantised type; `None` for the float types and for those that cannot be run.
pub(crate) fn coding(ty: BlockType) -> Option<Coding> {
    use Scales::{
        Affine, Power, SuperAffine, SuperAffineHalves, SuperHalves, SuperSymmetric, Symmetric,
    };
    Some(match ty {
        BlockType::Q4_0 => Coding::linear(4, Symmetric),
        BlockType::Q4_1 => Coding::linear(4, Affine),
        BlockType::Q5_0 => Coding::linear(5, Symmetric),
        BlockType::Q5_1 => Coding::linear(5, Affine),
        BlockType::Q8_0 => Coding::linear(8, Symmetric),
        BlockType::Q2_K => Coding::linear(2, SuperAffineHalves),
        BlockType::Q3_K => Coding::linear(3, SuperHalves),
        BlockType::Q4_K => Coding::linear(4, SuperAffine),
        BlockType::Q5_K => Coding::linear(5, SuperAffine),
        BlockType::Q6_K => Coding::linear(6, SuperHalves),
        BlockType::Q1_0 | BlockType::Q2_0 => Coding::ternary(Symmetric),
        BlockType::TQ1_0 | BlockType::TQ2_0 => Coding::ternary(SuperSymmetric),
        BlockType::IQ4_NL => Coding::table(Symmetric, 1.0, &IQ4),
        BlockType::IQ4_XS => Coding::table(SuperSymmetric, 1.0, &IQ4),
        BlockType::MXFP4 => Coding::table(Power, 1.0, &E2M1),
        BlockType::IQ2_XXS => Coding::table(SuperSymmetric, 0.125, &code_books::IQ2),
        BlockType::IQ2_XS | BlockType::IQ2_S => Coding::table(SuperHalves, 0.125, &code_books::IQ2),
        BlockType::IQ3_XXS => Coding::table(SuperSymmetric, 0.25, &code_books::IQ3_XXS),
        BlockType::IQ3_S => Coding::table(SuperSymmetric, 1.0, &code_books::IQ3_S),
        BlockType::IQ1_S => Coding::table(SuperSymmetric, 0.125, &code_books::IQ1),
        BlockType::IQ1_M => Coding::table(SuperHalves, 0.125, &code_books::IQ1),
        _ => return None,
    })
}

/// One group of a row, taken out of its block.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct GroupCodes {
    /// Unsigned codes in element order.
    pub(crate) codes: [u8; GROUP],
    /// The scale as f16 bits (bf16 for [`Scales::Power`]): of the group, or of the block of 256.
    pub(crate) scale: u16,
    /// The same for the min; 0 where the format has none.
    pub(crate) min: u16,
    /// Integer factors of `scale` for the two halves (equal unless the format scales halves); 1 for the legacy formats.
    pub(crate) scale_factors: [i8; 2],
    /// Integer factors of `min` for the two halves; 1 for the legacy formats.
    pub(crate) min_factors: [u8; 2],
}

impl GroupCodes {
    /// A group of a format without mins.
    pub(super) fn scaled(codes: [u8; GROUP], scale: u16, scale_factors: [i8; 2]) -> GroupCodes {
        GroupCodes {
            codes,
            scale,
            scale_factors,
            ..GroupCodes::default()
        }
    }

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
            BlockType::Q1_0 => q1_0(block, within),
            BlockType::Q2_0 => q2_0(block, within),
            BlockType::Q2_K => q2_k(block, within),
            BlockType::Q3_K => q3_k(block, within),
            BlockType::Q4_K => super_affine(block, within, None, &block[16..144]),
            BlockType::Q5_K => super_affine(block, within, Some(&block[16..48]), &block[48..176]),
            BlockType::Q6_K => q6_k(block, within),
            BlockType::TQ1_0 => tq1_0(block, within),
            BlockType::TQ2_0 => tq2_0(block, within),
            BlockType::IQ4_NL => legacy(block, false, &[], Nibbles(&block[2..18])),
            BlockType::IQ4_XS => iq4_xs(block, within),
            BlockType::MXFP4 => mxfp4(block),
            BlockType::IQ2_XXS => code_books::iq2_xxs(block, within),
            BlockType::IQ2_XS => code_books::iq2_xs(block, within),
            BlockType::IQ2_S => code_books::iq2_s(block, within),
            BlockType::IQ3_XXS => code_books::iq3_xxs(block, within),
            BlockType::IQ3_S => code_books::iq3_s(block, within),
            BlockType::IQ1_S => code_books::iq1_s(block, within),
            BlockType::IQ1_M => code_books::iq1_m(block, within),
            _ => panic!("weights of type {} have no codes", ty.name()),
        }
    }

    /// The group's values.
    pub(crate) fn values(&self, coding: Coding) -> [f32; GROUP] {
        let scale = match coding.scales {
            Scales::Power => bf16::from_bits(self.scale).to_f32(),
            _ => f16::from_bits(self.scale).to_f32() * coding.unit,
        };
        let min = f16::from_bits(self.min).to_f32();
        let zero = f32::from(coding.zero);
        let mut out = [0.0; GROUP];
        for (i, (out, &code)) in out.iter_mut().zip(&self.codes).enumerate() {
            let scale = scale * f32::from(self.scale_factors[i / 16]);
            let level = f32::from(coding.level(code));
            *out = match coding.scales {
                Scales::Affine => scale * level + min,
                Scales::SuperAffine | Scales::SuperAffineHalves => {
                    scale * level - min * f32::from(self.min_factors[i / 16])
                }
                // Subtracting the zero from the code first keeps a negative zero's sign as the format's authority has it.
                _ => scale * (level - zero),
            };
        }
        out
    }
}

pub(super) fn u16_at(block: &[u8], at: usize) -> u16 {
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
        min_factors: [1, 1],
    }
}

fn q8_0(block: &[u8]) -> GroupCodes {
    let mut codes = [0; GROUP];
    for (code, &byte) in codes.iter_mut().zip(&block[2..]) {
        *code = byte ^ 0x80; // i8 + 128
    }
    GroupCodes::scaled(codes, u16_at(block, 0), [1, 1])
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
        scale_factors: [scale_factor; 2],
        min_factors: [min_factor; 2],
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
    GroupCodes::scaled(codes, u16_at(block, 208), factors)
}

/// Two bits an element: 32 bytes hold four groups, one at each pair of bits.
fn pairs(bytes: &[u8], group: usize) -> [u8; GROUP] {
    let bytes = &bytes[group / 4 * 32..][..32];
    std::array::from_fn(|i| bytes[i] >> (group % 4 * 2) & 3)
}

/// Q2_K: 16 bytes of 4-bit scales and mins of 16 elements each, pairs, f16 scale and min.
fn q2_k(block: &[u8], group: usize) -> GroupCodes {
    let factors = [block[2 * group], block[2 * group + 1]];
    GroupCodes {
        codes: pairs(&block[16..80], group),
        scale: u16_at(block, 80),
        min: u16_at(block, 82),
        scale_factors: factors.map(|factor| (factor & 15) as i8),
        min_factors: factors.map(|factor| factor >> 4),
    }
}

/// Q3_K: 32 bytes of third bits, pairs, twelve bytes of 6-bit scales of 16 elements each, f16 scale.
fn q3_k(block: &[u8], group: usize) -> GroupCodes {
    let mut codes = pairs(&block[32..96], group);
    for (code, third) in codes.iter_mut().zip(block) {
        *code |= (third >> group & 1) << 2;
    }
    let packed = &block[96..108];
    let factors = [2 * group, 2 * group + 1].map(|i| {
        let low = packed[i % 8] >> (i / 8 * 4) & 15;
        let high = packed[8 + i % 4] >> (i / 4 * 2) & 3;
        (low | high << 4) as i8 - 32
    });
    GroupCodes::scaled(codes, u16_at(block, 108), factors)
}

/// Q1_0: f16 scale, one bit an element for minus or plus the scale, 128 a block.
fn q1_0(block: &[u8], group: usize) -> GroupCodes {
    let bits = &block[2 + group * 4..][..4];
    let codes = std::array::from_fn(|i| (bits[i / 8] >> (i % 8) & 1) << 1);
    GroupCodes::scaled(codes, u16_at(block, 0), [1, 1])
}

/// Q2_0: f16 scale, two bits an element in element order, 64 a block.
fn q2_0(block: &[u8], group: usize) -> GroupCodes {
    let bits = &block[2 + group * 8..][..8];
    let codes = std::array::from_fn(|i| bits[i / 4] >> (i % 4 * 2) & 3);
    GroupCodes::scaled(codes, u16_at(block, 0), [1, 1])
}

/// TQ1_0: five base-3 digits a byte, as the upper bits of a fraction of 256; f16 scale.
fn tq1_0(block: &[u8], group: usize) -> GroupCodes {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    let codes = std::array::from_fn(|i| {
        let element = group * GROUP + i;
        // 32 bytes of five digits, 16 of five, 4 of four; the same digit of all bytes of a run is consecutive.
        let (byte, digit) = match element {
            0..160 => (element % 32, element / 32),
            160..240 => (32 + element % 16, (element - 160) / 16),
            _ => (48 + element % 4, (element - 240) / 4),
        };
        let rest = block[byte].wrapping_mul(POWERS[digit]);
        ((u16::from(rest) * 3) >> 8) as u8
    });
    GroupCodes::scaled(codes, u16_at(block, 52), [1, 1])
}

/// TQ2_0: pairs, f16 scale.
fn tq2_0(block: &[u8], group: usize) -> GroupCodes {
    GroupCodes::scaled(pairs(block, group), u16_at(block, 64), [1, 1])
}

/// IQ4_XS: f16 scale, 6-bit scales of the groups (high pairs first), nibbles.
fn iq4_xs(block: &[u8], group: usize) -> GroupCodes {
    let low = block[4 + group / 2] >> (group % 2 * 4) & 15;
    let high = (u16_at(block, 2) >> (2 * group) & 3) as u8;
    let factor = (low | high << 4) as i8 - 32;
    let mut group = legacy(block, false, &[], Nibbles(&block[8 + group * 16..][..16]));
    group.scale_factors = [factor; 2];
    group
}

/// MXFP4: a power of two, nibbles. Its table holds doubled values, so the scale is half of it: `2^(byte - 128)`.
fn mxfp4(block: &[u8]) -> GroupCodes {
    let exponent = u16::from(block[0]);
    let mut group = legacy(block, false, &[], Nibbles(&block[1..17]));
    group.scale = match exponent {
        0 | 1 => 0x20 << exponent, // subnormal
        _ => (exponent - 1) << 7,
    };
    group
}
