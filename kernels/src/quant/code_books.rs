//! The IQ formats below 4 bits: runs of 8 or 4 elements named by their place in a code book, with signs beside them.
//!
//! Repacked, an element is a 4-bit code: an index into the format's magnitudes and a sign (or, in IQ1, a digit of -1, 0 or 1
//! and the shift of its run). That is two to three times the file's size, and the price for running at the speed of the other
//! 4-bit formats: looking up runs in a book of some kilobytes does not vectorise.

use super::codes::{GROUP, GroupCodes, Table, u16_at};

/// Magnitudes and their negatives; the third bit is the sign.
pub(crate) static IQ2: Table = Table::new([8, 25, 43, 0, -8, -25, -43, 0, 0, 0, 0, 0, 0, 0, 0, 0]);

/// The fourth bit is the sign.
pub(crate) static IQ3_XXS: Table = Table::new([
    4, 12, 20, 28, 36, 44, 52, 62, -4, -12, -20, -28, -36, -44, -52, -62,
]);

/// The fourth bit is the sign.
pub(crate) static IQ3_S: Table =
    Table::new([1, 3, 5, 7, 9, 11, 13, 15, -1, -3, -5, -7, -9, -11, -13, -15]);

/// Eight times (-1, 0, 1) plus 1/8, or minus 1/8 with the third bit.
pub(crate) static IQ1: Table = Table::new([-7, 1, 9, 0, -9, -1, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0]);

/// All books after each other; made by `grids.py`.
static GRIDS: &[u8; 2 * 4608] = include_bytes!("grids.bin");

/// Where the books start in [`GRIDS`], in entries.
const IQ2_XXS_BOOK: usize = 0;
const IQ2_XS_BOOK: usize = IQ2_XXS_BOOK + 256;
const IQ2_S_BOOK: usize = IQ2_XS_BOOK + 512;
const IQ3_XXS_BOOK: usize = IQ2_S_BOOK + 1024;
const IQ3_S_BOOK: usize = IQ3_XXS_BOOK + 256;
const IQ1_BOOK: usize = IQ3_S_BOOK + 512;

/// A group of four runs of 8 elements: `run(i)` gives the entry of run `i` and the bits to add to its codes (one a bit of
/// the mask, shifted to the third place).
fn runs_of_8(book: usize, run: impl Fn(usize) -> (usize, u8)) -> [u8; GROUP] {
    let mut codes = [0; GROUP];
    for (i, codes) in codes.chunks_exact_mut(8).enumerate() {
        let (entry, mask) = run(i);
        let entry = u16_at(GRIDS, 2 * (book + entry));
        for (j, code) in codes.iter_mut().enumerate() {
            *code = (entry >> (2 * j) & 3) as u8 | (mask >> j & 1) << 2;
        }
    }
    codes
}

/// A group of eight runs of 4 elements, with a byte of signs for each two.
fn runs_of_4(
    book: usize,
    entry: impl Fn(usize) -> usize,
    signs: impl Fn(usize) -> u8,
) -> [u8; GROUP] {
    let mut codes = [0; GROUP];
    for (i, codes) in codes.chunks_exact_mut(4).enumerate() {
        let entry = u16_at(GRIDS, 2 * (book + entry(i)));
        let signs = signs(i / 2) >> (i % 2 * 4);
        for (j, code) in codes.iter_mut().enumerate() {
            *code = (entry >> (4 * j) & 7) as u8 | (signs >> j & 1) << 3;
        }
    }
    codes
}

/// Eight signs from seven bits: an even number of them is negative.
fn even_signs(seven: u32) -> u8 {
    let seven = (seven & 127) as u8;
    seven | (seven.count_ones() as u8 & 1) << 7
}

fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from(u16_at(block, at)) | u32::from(u16_at(block, at + 2)) << 16
}

/// `2 * nibble + 1`.
fn odd(nibble: u8) -> i8 {
    (2 * (nibble & 15) + 1) as i8
}

/// f16 scale; for each group four entries of a byte, four times seven signs, a 4-bit scale.
pub(super) fn iq2_xxs(block: &[u8], group: usize) -> GroupCodes {
    let entries = &block[2 + group * 8..][..4];
    let word = u32_at(block, 2 + group * 8 + 4);
    let codes = runs_of_8(IQ2_XXS_BOOK, |i| {
        (usize::from(entries[i]), even_signs(word >> (7 * i)))
    });
    GroupCodes::scaled(codes, u16_at(block, 0), [odd((word >> 28) as u8); 2])
}

/// f16 scale; runs of a 9-bit entry and seven signs; 4-bit scales of half groups.
pub(super) fn iq2_xs(block: &[u8], group: usize) -> GroupCodes {
    let codes = runs_of_8(IQ2_XS_BOOK, |i| {
        let run = u16_at(block, 2 + (group * 4 + i) * 2);
        (usize::from(run & 511), even_signs(u32::from(run >> 9)))
    });
    let factors = block[66 + group];
    GroupCodes::scaled(codes, u16_at(block, 0), [odd(factors), odd(factors >> 4)])
}

/// f16 scale; low bytes of the entries, bytes of signs, high pairs of the entries, 4-bit scales of half groups.
pub(super) fn iq2_s(block: &[u8], group: usize) -> GroupCodes {
    let codes = runs_of_8(IQ2_S_BOOK, |i| {
        let run = group * 4 + i;
        let high = block[66 + group] >> (2 * i) & 3;
        (
            usize::from(block[2 + run]) | usize::from(high) << 8,
            block[34 + run],
        )
    });
    let factors = block[74 + group];
    GroupCodes::scaled(codes, u16_at(block, 0), [odd(factors), odd(factors >> 4)])
}

/// f16 scale; entries of a byte; for each group four times seven signs and a 4-bit scale.
pub(super) fn iq3_xxs(block: &[u8], group: usize) -> GroupCodes {
    let word = u32_at(block, 66 + group * 4);
    let codes = runs_of_4(
        IQ3_XXS_BOOK,
        |i| usize::from(block[2 + group * 8 + i]),
        |i| even_signs(word >> (7 * i)),
    );
    GroupCodes::scaled(codes, u16_at(block, 0), [odd((word >> 28) as u8); 2])
}

/// f16 scale; low bytes of the entries, their ninth bits, bytes of signs, 4-bit scales of the groups.
pub(super) fn iq3_s(block: &[u8], group: usize) -> GroupCodes {
    let codes = runs_of_4(
        IQ3_S_BOOK,
        |i| usize::from(block[2 + group * 8 + i]) | usize::from(block[66 + group] >> i & 1) << 8,
        |i| block[74 + group * 4 + i],
    );
    let factor = odd(block[106 + group / 2] >> (group % 2 * 4));
    GroupCodes::scaled(codes, u16_at(block, 0), [factor; 2])
}

/// f16 scale; low bytes of the entries; for each group their high three bits, a 3-bit scale and the shift.
pub(super) fn iq1_s(block: &[u8], group: usize) -> GroupCodes {
    let high = u16_at(block, 34 + group * 2);
    let shift = if high & 0x8000 == 0 { 0 } else { u8::MAX };
    let codes = runs_of_8(IQ1_BOOK, |i| {
        let entry = usize::from(block[2 + group * 4 + i]) | usize::from(high >> (3 * i) & 7) << 8;
        (entry, shift)
    });
    GroupCodes::scaled(codes, u16_at(block, 0), [odd((high >> 12 & 7) as u8); 2])
}

/// Low bytes of the entries; nibbles of their high three bits and the shift; 3-bit scales of half groups in four words,
/// whose upper nibbles are the f16 scale.
pub(super) fn iq1_m(block: &[u8], group: usize) -> GroupCodes {
    let codes = runs_of_8(IQ1_BOOK, |i| {
        let high = block[32 + group * 2 + i / 2] >> (i % 2 * 4);
        let shift = if high & 8 == 0 { 0 } else { u8::MAX };
        let low = usize::from(block[group * 4 + i]);
        (low | usize::from(high & 7) << 8, shift)
    });
    let word = |i: usize| u16_at(block, 48 + 2 * i);
    let scale = (0..4).fold(0, |scale, i| scale | (word(i) >> 12) << (4 * i));
    let factors = [2 * group, 2 * group + 1].map(|i| odd((word(i / 4) >> (i % 4 * 3) & 7) as u8));
    GroupCodes::scaled(codes, scale, factors)
}
