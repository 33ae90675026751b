//! The vector operations that kernels are written over, once for every instruction set.
//!
//! An implementation is a zero-sized token that only detection makes, so holding one proves that its instructions exist
//! and its methods are safe to call as far as instructions go. Methods that take pointers say what must be readable.
//! Everything is `inline(always)`: it must end up inside a function compiled with the features (see `isa`).

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod scalar;

use super::isa::Kernel;

/// What integer sums start from that [`Simd::scale_sum`] finishes: the bits of 1.5 * 2^23. Around it one more in the bits
/// of a float is one more in its value, so that a sum within ±2^22 is a float without a conversion.
pub(crate) const SUM_ZERO: i32 = 0x4B40_0000;
/// [`SUM_ZERO`] as a float.
pub(crate) const SUM_ZERO_VALUE: f32 = 12_582_912.0;

/// A vector of `LANES` f32, and what goes with it.
pub(crate) trait Simd: Copy + Send + Sync {
    /// Lanes of `F` and `I`; divides [`PANEL_ROWS`](super::matrix::PANEL_ROWS).
    const LANES: usize;
    /// How many activation rows a matrix tile takes at once: what the registers hold.
    const TILE_ROWS: usize;
    /// Whether [`dot4`](Simd::dot4) of 8-bit codes reads them as `code - 128`, because unsigned bytes would overflow.
    const SIGNED_BYTES: bool;

    /// f32 lanes.
    type F: Copy;
    /// i32 lanes.
    type I: Copy;
    /// Four bytes for each lane.
    type C: Copy;

    /// Runs a kernel in a function of its own that is compiled with these instructions. Inside another kernel it keeps apart
    /// what would otherwise be copied into each of its branches: the compiler's time grows faster than a function does.
    fn call<K: Kernel>(self, kernel: K) -> K::Out;

    fn splat(self, x: f32) -> Self::F;
    /// # Safety
    /// `LANES` f32 are readable at `p`.
    unsafe fn load(self, p: *const f32) -> Self::F;
    /// # Safety
    /// `LANES` f32 are writable at `p`.
    unsafe fn store(self, x: Self::F, p: *mut f32);
    /// # Safety
    /// `LANES` f16 are readable at `p`.
    unsafe fn load_f16(self, p: *const u16) -> Self::F;
    /// Rounds to nearest even.
    /// # Safety
    /// `LANES` f16 are writable at `p`.
    unsafe fn store_f16(self, x: Self::F, p: *mut u16);
    /// # Safety
    /// `LANES` bf16 are readable at `p`.
    unsafe fn load_bf16(self, p: *const u16) -> Self::F;
    /// Unsigned bytes, one a lane.
    /// # Safety
    /// `LANES` bytes are readable at `p`.
    unsafe fn load_u8(self, p: *const u8) -> Self::F;
    /// Signed bytes, one a lane.
    /// # Safety
    /// `LANES` bytes are readable at `p`.
    unsafe fn load_i8(self, p: *const u8) -> Self::F;
    /// Rounds to nearest even, to one byte a lane; lanes must be within ±127 (NaN gives some byte). Returns the sum.
    /// # Safety
    /// `LANES` bytes are writable at `p`.
    unsafe fn store_i8(self, x: Self::F, p: *mut i8) -> i32;

    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// The larger; `b` where either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller; `b` where either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    fn abs(self, a: Self::F) -> Self::F;
    /// `a * b + c`, rounded once where the hardware can.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// To the nearest integer, ties to even.
    fn round(self, a: Self::F) -> Self::F;
    /// `2^a` of integral `a` in −126..=127.
    fn exp2_integral(self, a: Self::F) -> Self::F;
    /// Sum of the lanes.
    fn sum(self, a: Self::F) -> f32;
    /// Largest lane.
    fn max_lane(self, a: Self::F) -> f32;

    fn int_splat(self, n: i32) -> Self::I;
    fn int_to_float(self, a: Self::I) -> Self::F;
    /// The floats whose bits these are.
    fn int_bits(self, a: Self::I) -> Self::F;
    /// Asks for the line at `p` to be brought into the second-level cache; any address will do.
    fn prefetch(self, p: *const u8);
    /// # Safety
    /// `4 * LANES` bytes are readable at `p`.
    unsafe fn load_codes(self, p: *const u8) -> Self::C;
    fn and(self, a: Self::C, mask: u8) -> Self::C;
    fn or(self, a: Self::C, b: Self::C) -> Self::C;
    /// The table in every 16 bytes.
    fn load_table(self, table: &[u8; 16]) -> Self::C;
    /// `table[code]` for every byte; codes are below 16.
    fn lookup(self, table: Self::C, codes: Self::C) -> Self::C;
    /// Shifts 16-bit units left by `N` (0..=4); bits that come from the neighbouring byte are for `and` to remove.
    fn shift_left<const N: u32>(self, a: Self::C) -> Self::C;
    /// Shifts 16-bit units right by `N` (0..=6); as above.
    fn shift_right<const N: u32>(self, a: Self::C) -> Self::C;
    /// Adds to every lane the dot product of its 16 codes of `BITS` bits (4 in each of `codes`) with the 16 activations at `x`.
    /// # Safety
    /// 16 bytes are readable at `x`.
    unsafe fn dot4<const BITS: u32>(
        self,
        acc: Self::I,
        codes: &[Self::C; 4],
        x: *const i8,
    ) -> Self::I;

    /// What [`scale_sum`](Simd::scale_sum) needs beside `scale`: exact for scales of up to 22 significant bits, below 2^104.
    #[inline(always)]
    fn sum_shift(self, scale: Self::F) -> Self::F {
        self.mul(scale, self.splat(-SUM_ZERO_VALUE))
    }
    /// `n * scale` of a sum that is [`SUM_ZERO`]` + n`, rounded once.
    #[inline(always)]
    fn scale_sum(self, sum: Self::I, scale: Self::F, shift: Self::F) -> Self::F {
        self.mul_add(self.int_bits(sum), scale, shift)
    }

    /// `e^x` within 2 ULP or so; below −87 it is about 1e-38, above 88 about 1e38.
    #[inline(always)]
    fn exp(self, x: Self::F) -> Self::F {
        let x = self.min(self.max(x, self.splat(-87.0)), self.splat(88.0));
        let n = self.round(self.mul(x, self.splat(std::f32::consts::LOG2_E)));
        // ln 2 in two parts, so that n * ln 2 loses nothing.
        let r = self.mul_add(n, self.splat(-0.693_359_4), x);
        let r = self.mul_add(n, self.splat(2.121_944_4e-4), r);
        let mut p = self.splat(1.0 / 5040.0);
        for c in [
            1.0 / 720.0,
            1.0 / 120.0,
            1.0 / 24.0,
            1.0 / 6.0,
            0.5,
            1.0,
            1.0,
        ] {
            p = self.mul_add(p, r, self.splat(c));
        }
        self.mul(p, self.exp2_integral(n))
    }

    /// `2^x` within 2 ULP or so, 1 of 0; below −126 it is about 1e-38. Of x up to 127.
    #[inline(always)]
    fn exp2(self, x: Self::F) -> Self::F {
        let x = self.max(x, self.splat(-126.0));
        let n = self.round(x);
        let r = self.sub(x, n);
        // Of the polynomials of this degree with 1 and ln 2 first, the one with the least relative error on ±1/2: 1e-7.
        let mut p = self.splat(1.330_060_6e-3);
        for c in [
            9.669_692e-3,
            5.550_558e-2,
            0.240_222_82,
            std::f32::consts::LN_2,
            1.0,
        ] {
            p = self.mul_add(p, r, self.splat(c));
        }
        self.mul(p, self.exp2_integral(n))
    }

    /// `tanh x = 1 - 2 / (e^2x + 1)`.
    #[inline(always)]
    fn tanh(self, x: Self::F) -> Self::F {
        let e = self.exp(self.add(x, x));
        let share = self.div(self.splat(2.0), self.add(e, self.splat(1.0)));
        self.sub(self.splat(1.0), share)
    }
}
