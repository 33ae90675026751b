//! NEON with the dot-product extension of Armv8.2: 4 lanes, one instruction for a dot product of four bytes a lane.
//!
//! The dot product is written in assembly because its intrinsic is not stable yet.

use super::Simd;
use crate::cpu::isa::Kernel;
use std::arch::aarch64::*;
use std::arch::asm;

/// Proof that the machine has NEON and its dot products; made by [`Neon::detect`] only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Neon(());

impl Neon {
    /// The token, on a machine that has everything it stands for.
    pub(crate) fn detect() -> Option<Neon> {
        let all = std::arch::is_aarch64_feature_detected!("neon")
            && std::arch::is_aarch64_feature_detected!("dotprod");
        all.then_some(Neon(()))
    }
}

/// Adds to every lane the dot product of its four bytes of `a` with bytes `4 * LANE..4 * LANE + 4` of `x`.
macro_rules! dot {
    ($acc:ident, $a:expr, $x:expr, $lane:literal) => {
        asm!(
            ".arch_extension dotprod",
            concat!("sdot {acc:v}.4s, {a:v}.16b, {x:v}.4b[", $lane, "]"),
            acc = inout(vreg) $acc,
            a = in(vreg) $a,
            x = in(vreg) $x,
            options(pure, nomem, nostack, preserves_flags)
        )
    };
}

impl Simd for Neon {
    const LANES: usize = 4;
    const TILE_ROWS: usize = 8;
    const SIGNED_BYTES: bool = true;
    type F = float32x4_t;
    type I = int32x4_t;
    type C = uint8x16_t;

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Out {
        #[target_feature(enable = "neon,dotprod")]
        #[inline(never)]
        fn compiled<K: Kernel>(token: Neon, kernel: K) -> K::Out {
            kernel.run(token)
        }
        // SAFETY: `self` proves the instructions.
        unsafe { compiled(self, kernel) }
    }

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
            let halves = vqmovn_s32(vcvtnq_s32_f32(x));
            let bytes = vqmovn_s16(vcombine_s16(halves, halves));
            p.cast::<u32>()
                .write_unaligned(vget_lane_u32::<0>(vreinterpret_u32_s8(bytes)));
            // Of the bytes: what saturated is what was stored.
            i32::from(vaddv_s16(vget_low_s16(vmovl_s8(bytes))))
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
    // By comparison, because the instruction gives NaN where one of the two is.
    #[inline(always)]
    fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: `self` proves the instructions.
        unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
    }
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
            let exponent = vaddq_s32(vcvtq_s32_f32(a), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent))
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
        unsafe { vmaxvq_f32(a) }
    }

    #[inline(always)]
    fn int_splat(self, n: i32) -> int32x4_t {
        // SAFETY: `self` proves the instructions.
        unsafe { vdupq_n_s32(n) }
    }
    #[inline(always)]
    fn int_bits(self, a: int32x4_t) -> float32x4_t {
        // SAFETY: `self` proves the instructions.
        unsafe { vreinterpretq_f32_s32(a) }
    }
    #[inline(always)]
    fn int_to_float(self, a: int32x4_t) -> float32x4_t {
        // SAFETY: `self` proves the instructions.
        unsafe { vcvtq_f32_s32(a) }
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // SAFETY: a hint, which never faults.
        unsafe {
            asm!("prfm pldl2keep, [{p}]", p = in(reg) p, options(readonly, nostack, preserves_flags))
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
    #[inline(always)]
    fn shift_left<const N: u32>(self, a: uint8x16_t) -> uint8x16_t {
        // SAFETY: `self` proves the instructions. By a register, because an immediate is an i32.
        unsafe { vshlq_u8(a, vdupq_n_s8(N as i8)) }
    }
    #[inline(always)]
    fn shift_right<const N: u32>(self, a: uint8x16_t) -> uint8x16_t {
        // SAFETY: `self` proves the instructions. A negative count shifts right.
        unsafe { vshlq_u8(a, vdupq_n_s8(-(N as i8))) }
    }
    #[inline(always)]
    unsafe fn dot4<const BITS: u32>(
        self,
        mut acc: int32x4_t,
        codes: &[uint8x16_t; 4],
        x: *const i8,
    ) -> int32x4_t {
        // SAFETY: `self` proves the instructions; 16 bytes are readable at `x` by the caller's promise.
        unsafe {
            let x = vld1q_s8(x);
            // Codes of less than 8 bits are the same signed; those of 8 count from -128.
            let [a, b, c, d] = match BITS {
                8 => codes.map(|codes| veorq_u8(codes, vdupq_n_u8(128))),
                _ => *codes,
            };
            dot!(acc, a, x, 0);
            dot!(acc, b, x, 1);
            dot!(acc, c, x, 2);
            dot!(acc, d, x, 3);
        }
        acc
    }
}
