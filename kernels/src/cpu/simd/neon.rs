//! NEON with the dot product of bytes (Armv8.2 `dotprod`): 4 lanes, one instruction for four bytes a lane.

use super::Simd;
use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

/// Proof that the machine has NEON and its dot products; made by [`Neon::detect`] only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Neon(());

impl Neon {
    /// The token, on a machine that has everything it stands for.
    pub(crate) fn detect() -> Option<Neon> {
        let all = is_aarch64_feature_detected!("neon") && is_aarch64_feature_detected!("dotprod");
        all.then_some(Neon(()))
    }
}

/// Adds to every lane the products of its four bytes of `codes[i]` with the bytes `4 * i..4 * i + 4` of `x`, for every `i`.
///
/// In assembly because the intrinsic is not stable.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot_quads(mut acc: int32x4_t, codes: [uint8x16_t; 4], x: int8x16_t) -> int32x4_t {
    let [a, b, c, d] = codes;
    // SAFETY: the function is compiled with the feature; only the registers named are touched.
    unsafe {
        asm!(
            "sdot {acc:v}.4s, {a:v}.16b, {x:v}.4b[0]",
            "sdot {acc:v}.4s, {b:v}.16b, {x:v}.4b[1]",
            "sdot {acc:v}.4s, {c:v}.16b, {x:v}.4b[2]",
            "sdot {acc:v}.4s, {d:v}.16b, {x:v}.4b[3]",
            acc = inout(vreg) acc,
            a = in(vreg) a,
            b = in(vreg) b,
            c = in(vreg) c,
            d = in(vreg) d,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    acc
}

impl Simd for Neon {
    const LANES: usize = 4;
    // 8 sums of floats, 8 of products and the 4 vectors of codes leave 12 of 32 registers.
    const TILE_ROWS: usize = 8;
    const SIGNED_BYTES: bool = true;
    type F = float32x4_t;
    type I = int32x4_t;
    type C = uint8x16_t;

    #[inline(always)]
    fn splat(self, x: f32) -> float32x4_t {
        // SAFETY: `self` proves the instructions.
        unsafe { vdupq_n_f32(x) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> float32x4_t {
        // SAFETY: `self` proves the instructions; 16 bytes are readable by the caller's promise.
        unsafe { vld1q_f32(p) }
    }
    #[inline(always)]
    unsafe fn store(self, x: float32x4_t, p: *mut f32) {
        // SAFETY: `self` proves the instructions; 16 bytes are writable by the caller's promise.
        unsafe { vst1q_f32(p, x) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> float32x4_t {
        // SAFETY: `self` proves the instructions; 8 bytes are readable by the caller's promise.
        unsafe { vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, x: float32x4_t, p: *mut u16) {
        // SAFETY: `self` proves the instructions; 8 bytes are writable by the caller's promise.
        unsafe { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x))) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> float32x4_t {
        // SAFETY: `self` proves the instructions; 8 bytes are readable by the caller's promise.
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p))) }
    }
    #[inline(always)]
    unsafe fn load_u8(self, p: *const u8) -> float32x4_t {
        // SAFETY: `self` proves the instructions; 4 bytes are readable by the caller's promise.
        unsafe {
            let bytes = vcreate_u8(u64::from(p.cast::<u32>().read_unaligned()));
            vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes))))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const u8) -> float32x4_t {
        // SAFETY: `self` proves the instructions; 4 bytes are readable by the caller's promise.
        unsafe {
            let bytes = vcreate_s8(u64::from(p.cast::<u32>().read_unaligned()));
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))))
        }
    }
    #[inline(always)]
    unsafe fn store_i8(self, x: float32x4_t, p: *mut i8) -> i32 {
        // SAFETY: `self` proves the instructions; 4 bytes are writable by the caller's promise.
        unsafe {
            let words = vqmovn_s32(vcvtnq_s32_f32(x));
            let bytes = vqmovn_s16(vcombine_s16(words, vdup_n_s16(0)));
            let four = vget_lane_u32::<0>(vreinterpret_u32_s8(bytes));
            p.cast::<u32>().write_unaligned(four);
            i32::from(vaddlv_s8(bytes))
        }
    }

    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: `self` proves the instructions.
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: `self` proves the instructions.
        unsafe { vsubq_f32(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: `self` proves the instructions.
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    fn div(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: `self` proves the instructions.
        unsafe { vdivq_f32(a, b) }
    }
    /// `b` where one of the two is NaN, as on the other instruction sets; the instruction of that name gives NaN.
    #[inline(always)]
    fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: `self` proves the instructions.
        unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
    }
    /// As [`max`](Simd::max).
    #[inline(always)]
    fn min(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: `self` proves the instructions.
        unsafe { vbslq_f32(vcltq_f32(a, b), a, b) }
    }
    #[inline(always)]
    fn abs(self, a: float32x4_t) -> float32x4_t {
        // SAFETY: `self` proves the instructions.
        unsafe { vabsq_f32(a) }
    }
    #[inline(always)]
    fn mul_add(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: `self` proves the instructions.
        unsafe { vfmaq_f32(c, a, b) }
    }
    #[inline(always)]
    fn round(self, a: float32x4_t) -> float32x4_t {
        // SAFETY: `self` proves the instructions.
        unsafe { vrndnq_f32(a) }
    }
    #[inline(always)]
    fn exp2_integral(self, a: float32x4_t) -> float32x4_t {
        // SAFETY: `self` proves the instructions.
        unsafe {
            let biased = vaddq_s32(vcvtnq_s32_f32(a), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased))
        }
    }
    #[inline(always)]
    fn sum(self, a: float32x4_t) -> f32 {
        // SAFETY: `self` proves the instructions.
        unsafe { vaddvq_f32(a) }
    }
    #[inline(always)]
    fn max_lane(self, a: float32x4_t) -> f32 {
        // SAFETY: `self` proves the instructions.
        unsafe { vmaxnmvq_f32(a) }
    }

    #[inline(always)]
    fn int_zero(self) -> int32x4_t {
        // SAFETY: `self` proves the instructions.
        unsafe { vdupq_n_s32(0) }
    }
    #[inline(always)]
    fn int_to_float(self, a: int32x4_t) -> float32x4_t {
        // SAFETY: `self` proves the instructions.
        unsafe { vcvtq_f32_s32(a) }
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // SAFETY: a hint, which never faults. In assembly because the intrinsic is not stable.
        unsafe {
            asm!("prfm pldl2keep, [{p}]", p = in(reg) p, options(readonly, nostack, preserves_flags));
        }
    }
    #[inline(always)]
    unsafe fn load_codes(self, p: *const u8) -> uint8x16_t {
        // SAFETY: `self` proves the instructions; 16 bytes are readable by the caller's promise.
        unsafe { vld1q_u8(p) }
    }
    #[inline(always)]
    fn and(self, a: uint8x16_t, mask: u8) -> uint8x16_t {
        // SAFETY: `self` proves the instructions.
        unsafe { vandq_u8(a, vdupq_n_u8(mask)) }
    }
    #[inline(always)]
    fn or(self, a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
        // SAFETY: `self` proves the instructions.
        unsafe { vorrq_u8(a, b) }
    }
    #[inline(always)]
    fn load_table(self, table: &[u8; 16]) -> uint8x16_t {
        // SAFETY: `self` proves the instructions; the table is 16 bytes.
        unsafe { vld1q_u8(table.as_ptr()) }
    }
    #[inline(always)]
    fn lookup(self, table: uint8x16_t, codes: uint8x16_t) -> uint8x16_t {
        // SAFETY: `self` proves the instructions.
        unsafe { vqtbl1q_u8(table, codes) }
    }
    /// The amount is a register's, because an immediate cannot be a parameter's that may be 0.
    #[inline(always)]
    fn shift_left<const N: u32>(self, a: uint8x16_t) -> uint8x16_t {
        // SAFETY: `self` proves the instructions.
        unsafe { vshlq_u8(a, vdupq_n_s8(N as i8)) }
    }
    /// As [`shift_left`](Simd::shift_left), by a negative amount.
    #[inline(always)]
    fn shift_right<const N: u32>(self, a: uint8x16_t) -> uint8x16_t {
        // SAFETY: `self` proves the instructions.
        unsafe { vshlq_u8(a, vdupq_n_s8(-(N as i8))) }
    }
    #[inline(always)]
    unsafe fn dot4<const BITS: u32>(
        self,
        acc: int32x4_t,
        codes: &[uint8x16_t; 4],
        x: *const i8,
    ) -> int32x4_t {
        // Codes of fewer bits are the same signed or unsigned.
        let codes = match BITS {
            // SAFETY: `self` proves the instructions.
            8 => codes.map(|codes| unsafe { veorq_u8(codes, vdupq_n_u8(1 << 7)) }),
            _ => *codes,
        };
        // SAFETY: `self` proves the instructions; 16 bytes are readable at `x` by the caller's promise.
        unsafe { dot_quads(acc, codes, vld1q_s8(x)) }
    }
}
