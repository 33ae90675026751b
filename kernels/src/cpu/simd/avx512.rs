//! AVX-512 (F, BW, VL, VNNI) over AVX2, FMA and F16C: 16 lanes, one instruction for a dot product of four bytes a lane.

use super::Simd;
use crate::cpu::isa::Kernel;
use std::arch::x86_64::*;

/// Proof that the machine has AVX-512 F, BW, VL and VNNI; made by [`Avx512::detect`] only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// The token, on a machine that has everything it stands for.
    pub(crate) fn detect() -> Option<Avx512> {
        let all = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni");
        all.then_some(Avx512(()))
    }
}

impl Simd for Avx512 {
    const LANES: usize = 16;
    const TILE_ROWS: usize = 12;
    const SIGNED_BYTES: bool = false;
    type F = __m512;
    type I = __m512i;
    type C = __m512i;

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Out {
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
        #[inline(never)]
        fn compiled<K: Kernel>(token: Avx512, kernel: K) -> K::Out {
            kernel.run(token)
        }
        // SAFETY: `self` proves the instructions.
        unsafe { compiled(self, kernel) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        // SAFETY: `self` proves the instructions; 64 bytes are readable by the caller's promise.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(self, x: __m512, p: *mut f32) {
        // SAFETY: `self` proves the instructions; 64 bytes are writable by the caller's promise.
        unsafe { _mm512_storeu_ps(p, x) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> __m512 {
        // SAFETY: `self` proves the instructions; 32 bytes are readable by the caller's promise.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, x: __m512, p: *mut u16) {
        // SAFETY: `self` proves the instructions; 32 bytes are writable by the caller's promise.
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x)) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> __m512 {
        // SAFETY: `self` proves the instructions; 32 bytes are readable by the caller's promise.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_u8(self, p: *const u8) -> __m512 {
        // SAFETY: `self` proves the instructions; 16 bytes are readable by the caller's promise.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const u8) -> __m512 {
        // SAFETY: `self` proves the instructions; 16 bytes are readable by the caller's promise.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn store_i8(self, x: __m512, p: *mut i8) -> i32 {
        // SAFETY: `self` proves the instructions; 16 bytes are writable by the caller's promise.
        unsafe {
            let bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x));
            _mm_storeu_si128(p.cast(), bytes);
            _mm512_reduce_add_epi32(_mm512_cvtepi8_epi32(bytes))
        }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn abs(self, a: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_abs_ps(a) }
    }
    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions. 8: to nearest even, without the inexact exception.
        unsafe { _mm512_roundscale_ps::<8>(a) }
    }
    #[inline(always)]
    fn exp2_integral(self, a: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_scalef_ps(_mm512_set1_ps(1.0), a) }
    }
    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_reduce_add_ps(a) }
    }
    #[inline(always)]
    fn max_lane(self, a: __m512) -> f32 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_reduce_max_ps(a) }
    }

    #[inline(always)]
    fn int_splat(self, n: i32) -> __m512i {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_set1_epi32(n) }
    }
    #[inline(always)]
    fn int_bits(self, a: __m512i) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_castsi512_ps(a) }
    }
    #[inline(always)]
    fn int_to_float(self, a: __m512i) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_cvtepi32_ps(a) }
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // SAFETY: a hint, which never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn load_codes(self, p: *const u8) -> __m512i {
        // SAFETY: `self` proves the instructions; 64 bytes are readable by the caller's promise.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    fn and(self, a: __m512i, mask: u8) -> __m512i {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_and_si512(a, _mm512_set1_epi8(mask as i8)) }
    }
    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    fn load_table(self, table: &[u8; 16]) -> __m512i {
        // SAFETY: `self` proves the instructions; the table is 16 bytes.
        unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())) }
    }
    #[inline(always)]
    fn lookup(self, table: __m512i, codes: __m512i) -> __m512i {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_shuffle_epi8(table, codes) }
    }
    #[inline(always)]
    fn shift_left<const N: u32>(self, a: __m512i) -> __m512i {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_slli_epi16::<N>(a) }
    }
    #[inline(always)]
    fn shift_right<const N: u32>(self, a: __m512i) -> __m512i {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_srli_epi16::<N>(a) }
    }
    #[inline(always)]
    unsafe fn dot4<const BITS: u32>(
        self,
        mut acc: __m512i,
        codes: &[__m512i; 4],
        x: *const i8,
    ) -> __m512i {
        for (i, &codes) in codes.iter().enumerate() {
            // SAFETY: `self` proves the instructions; 16 bytes are readable at `x` by the caller's promise, and `i < 4`.
            acc = unsafe {
                let x = _mm512_set1_epi32(x.cast::<i32>().add(i).read_unaligned());
                _mm512_dpbusd_epi32(acc, codes, x)
            };
        }
        acc
    }
}
