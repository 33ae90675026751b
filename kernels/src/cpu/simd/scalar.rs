//! The vector operations on plain arrays: for machines with none of the others, and what other instruction sets are compared with.

use super::{SUM_ZERO_VALUE, Simd};
use crate::cpu::isa::Kernel;
use half::{bf16, f16};

const LANES: usize = 4;

/// Needs nothing of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scalar;

#[inline(always)]
fn zip(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

/// Reads `LANES` values at `p`.
///
/// # Safety
/// They are readable; alignment is not asked for.
#[inline(always)]
unsafe fn read<T: Copy>(p: *const T) -> [T; LANES] {
    // SAFETY: the caller's promise; an array has the size of its elements, and the read is unaligned.
    unsafe { p.cast::<[T; LANES]>().read_unaligned() }
}

impl Simd for Scalar {
    const LANES: usize = LANES;
    const TILE_ROWS: usize = 4;
    const SIGNED_BYTES: bool = false;
    type F = [f32; LANES];
    type I = [i32; LANES];
    type C = [u8; 4 * LANES];

    #[inline(never)]
    fn call<K: Kernel>(self, kernel: K) -> K::Out {
        kernel.run(self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::F {
        // SAFETY: the caller's promise.
        unsafe { read(p) }
    }
    #[inline(always)]
    unsafe fn store(self, x: Self::F, p: *mut f32) {
        // SAFETY: the caller's promise of `LANES` writable f32.
        unsafe { p.cast::<Self::F>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> Self::F {
        // SAFETY: the caller's promise.
        unsafe { read(p) }.map(|bits| f16::from_bits(bits).to_f32())
    }
    #[inline(always)]
    unsafe fn store_f16(self, x: Self::F, p: *mut u16) {
        // SAFETY: the caller's promise of `LANES` writable f16.
        unsafe {
            p.cast::<[u16; LANES]>()
                .write_unaligned(x.map(|v| f16::from_f32(v).to_bits()))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> Self::F {
        // SAFETY: the caller's promise.
        unsafe { read(p) }.map(|bits| bf16::from_bits(bits).to_f32())
    }
    #[inline(always)]
    unsafe fn load_u8(self, p: *const u8) -> Self::F {
        // SAFETY: the caller's promise.
        unsafe { read(p) }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const u8) -> Self::F {
        // SAFETY: the caller's promise.
        unsafe { read(p.cast::<i8>()) }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn store_i8(self, x: Self::F, p: *mut i8) -> i32 {
        let codes = x.map(|v| v.round_ties_even() as i8);
        // SAFETY: the caller's promise of `LANES` writable bytes.
        unsafe { p.cast::<[i8; LANES]>().write_unaligned(codes) }
        codes.iter().map(|&c| i32::from(c)).sum()
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn abs(self, a: Self::F) -> Self::F {
        a.map(f32::abs)
    }
    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // Two roundings: a fused operation would be a library call on a machine that gets here.
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn round(self, a: Self::F) -> Self::F {
        a.map(f32::round_ties_even)
    }
    #[inline(always)]
    fn exp2_integral(self, a: Self::F) -> Self::F {
        a.map(|v| f32::from_bits(((v as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    fn sum(self, a: Self::F) -> f32 {
        a.iter().sum()
    }
    #[inline(always)]
    fn max_lane(self, a: Self::F) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    #[inline(always)]
    fn int_splat(self, n: i32) -> Self::I {
        [n; LANES]
    }
    #[inline(always)]
    fn int_bits(self, a: Self::I) -> Self::F {
        a.map(|v| f32::from_bits(v as u32))
    }
    #[inline(always)]
    fn scale_sum(self, sum: Self::I, scale: Self::F, _: Self::F) -> Self::F {
        // The default needs a fused operation.
        zip(self.int_bits(sum), scale, |sum, scale| {
            (sum - SUM_ZERO_VALUE) * scale
        })
    }
    #[inline(always)]
    fn int_to_float(self, a: Self::I) -> Self::F {
        a.map(|v| v as f32)
    }
    #[inline(always)]
    fn prefetch(self, _: *const u8) {}
    #[inline(always)]
    unsafe fn load_codes(self, p: *const u8) -> Self::C {
        // SAFETY: the caller's promise of `4 * LANES` readable bytes.
        unsafe { p.cast::<Self::C>().read_unaligned() }
    }
    #[inline(always)]
    fn and(self, a: Self::C, mask: u8) -> Self::C {
        a.map(|v| v & mask)
    }
    #[inline(always)]
    fn or(self, a: Self::C, b: Self::C) -> Self::C {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    fn load_table(self, table: &[u8; 16]) -> Self::C {
        std::array::from_fn(|i| table[i % 16])
    }
    #[inline(always)]
    fn lookup(self, table: Self::C, codes: Self::C) -> Self::C {
        codes.map(|code| table[usize::from(code & 15)])
    }
    #[inline(always)]
    fn shift_left<const N: u32>(self, a: Self::C) -> Self::C {
        a.map(|v| v << N)
    }
    #[inline(always)]
    fn shift_right<const N: u32>(self, a: Self::C) -> Self::C {
        a.map(|v| v >> N)
    }
    #[inline(always)]
    unsafe fn dot4<const BITS: u32>(
        self,
        mut acc: Self::I,
        codes: &[Self::C; 4],
        x: *const i8,
    ) -> Self::I {
        // SAFETY: the caller's promise of 16 readable bytes.
        let x = unsafe { x.cast::<[i8; 16]>().read_unaligned() };
        for (codes, x) in codes.iter().zip(x.as_chunks::<4>().0) {
            for (acc, codes) in acc.iter_mut().zip(codes.as_chunks::<4>().0) {
                for (&code, &x) in codes.iter().zip(x) {
                    *acc += i32::from(code) * i32::from(x);
                }
            }
        }
        acc
    }
}
