//! AVX2 with FMA and F16C: 8 lanes.

use super::Simd;
use crate::cpu::isa::Kernel;
use std::arch::x86_64::*;

/// Proof that the machine has AVX2, FMA and F16C; made by [`Avx2::detect`] only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// The token, on a machine that has everything it stands for.
    pub(crate) fn detect() -> Option<Avx2> {
        let all = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        all.then_some(Avx2(()))
    }
}

impl Simd for Avx2 {
    const LANES: usize = 8;
    const TILE_ROWS: usize = 4;
    const SIGNED_BYTES: bool = true;
    type F = __m256;
    type I = __m256i;
    type C = __m256i;

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Out {
        #[target_feature(enable = "avx2,fma,f16c")]
        #[inline(never)]
        fn compiled<K: Kernel>(token: Avx2, kernel: K) -> K::Out {
            kernel.run(token)
        }
        // SAFETY: `self` proves the instructions.
        unsafe { compiled(self, kernel) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m256 {
        // SAFETY: `self` proves the instructions; 32 bytes are readable by the caller's promise.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(self, x: __m256, p: *mut f32) {
        // SAFETY: `self` proves the instructions; 32 bytes are writable by the caller's promise.
        unsafe { _mm256_storeu_ps(p, x) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> __m256 {
        // SAFETY: `self` proves the instructions; 16 bytes are readable by the caller's promise.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, x: __m256, p: *mut u16) {
        // SAFETY: `self` proves the instructions; 16 bytes are writable by the caller's promise.
        unsafe { _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x)) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> __m256 {
        // SAFETY: `self` proves the instructions; 16 bytes are readable by the caller's promise.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_u8(self, p: *const u8) -> __m256 {
        // SAFETY: `self` proves the instructions; 8 bytes are readable by the caller's promise.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const u8) -> __m256 {
        // SAFETY: `self` proves the instructions; 8 bytes are readable by the caller's promise.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn store_i8(self, x: __m256, p: *mut i8) -> i32 {
        // SAFETY: `self` proves the instructions; 8 bytes are writable by the caller's promise.
        unsafe {
            let wide = _mm256_cvtps_epi32(x);
            let words = _mm_packs_epi32(
                _mm256_castsi256_si128(wide),
                _mm256_extracti128_si256::<1>(wide),
            );
            let bytes = _mm_packs_epi16(words, words);
            _mm_storel_epi64(p.cast(), bytes);
            let sums = _mm_madd_epi16(_mm_cvtepi8_epi16(bytes), _mm_set1_epi16(1));
            let sums = _mm_add_epi32(sums, _mm_unpackhi_epi64(sums, sums));
            _mm_cvtsi128_si32(sums) + _mm_extract_epi32::<1>(sums)
        }
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    fn abs(self, a: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
    }
    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn round(self, a: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    fn exp2_integral(self, a: __m256) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe {
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
        }
    }
    #[inline(always)]
    fn sum(self, a: __m256) -> f32 {
        // SAFETY: `self` proves the instructions.
        unsafe {
            let x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        }
    }
    #[inline(always)]
    fn max_lane(self, a: __m256) -> f32 {
        // SAFETY: `self` proves the instructions.
        unsafe {
            let x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        }
    }

    #[inline(always)]
    fn int_splat(self, n: i32) -> __m256i {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_set1_epi32(n) }
    }
    #[inline(always)]
    fn int_bits(self, a: __m256i) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_castsi256_ps(a) }
    }
    #[inline(always)]
    fn int_to_float(self, a: __m256i) -> __m256 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_cvtepi32_ps(a) }
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // SAFETY: a hint, which never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn load_codes(self, p: *const u8) -> __m256i {
        // SAFETY: `self` proves the instructions; 32 bytes are readable by the caller's promise.
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline(always)]
    fn and(self, a: __m256i, mask: u8) -> __m256i {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_and_si256(a, _mm256_set1_epi8(mask as i8)) }
    }
    #[inline(always)]
    fn or(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_or_si256(a, b) }
    }
    #[inline(always)]
    fn load_table(self, table: &[u8; 16]) -> __m256i {
        // SAFETY: `self` proves the instructions; the table is 16 bytes.
        unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())) }
    }
    #[inline(always)]
    fn lookup(self, table: __m256i, codes: __m256i) -> __m256i {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_shuffle_epi8(table, codes) }
    }
    #[inline(always)]
    fn shift_left<const N: u32>(self, a: __m256i) -> __m256i {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_sll_epi16(a, _mm_cvtsi32_si128(N as i32)) }
    }
    #[inline(always)]
    fn shift_right<const N: u32>(self, a: __m256i) -> __m256i {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm256_srl_epi16(a, _mm_cvtsi32_si128(N as i32)) }
    }
    /// `maddubs` adds two byte products in 16 bits, saturating. Activations are within ±127, so with codes of 5 bits the
    /// largest sum of four quads is 4 * 2 * 31 * 127 = 31,496 and one widening serves all four; with 6 bits one quad is
    /// 16,002 and each widens; 8-bit codes are made signed first, 2 * 128 * 127 = 32,512.
    #[inline(always)]
    unsafe fn dot4<const BITS: u32>(
        self,
        acc: __m256i,
        codes: &[__m256i; 4],
        x: *const i8,
    ) -> __m256i {
        // SAFETY: `self` proves the instructions; 16 bytes are readable at `x` by the caller's promise, and `i < 4`.
        unsafe {
            let ones = _mm256_set1_epi16(1);
            let quad = |i: usize| _mm256_set1_epi32(x.cast::<i32>().add(i).read_unaligned());
            if BITS <= 5 {
                let a = _mm256_add_epi16(
                    _mm256_maddubs_epi16(codes[0], quad(0)),
                    _mm256_maddubs_epi16(codes[1], quad(1)),
                );
                let b = _mm256_add_epi16(
                    _mm256_maddubs_epi16(codes[2], quad(2)),
                    _mm256_maddubs_epi16(codes[3], quad(3)),
                );
                return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_add_epi16(a, b), ones));
            }
            let mut acc = acc;
            for (i, &codes) in codes.iter().enumerate() {
                let products = if BITS == 8 {
                    let signed = _mm256_xor_si256(codes, _mm256_set1_epi8(i8::MIN));
                    _mm256_maddubs_epi16(_mm256_abs_epi8(signed), _mm256_sign_epi8(quad(i), signed))
                } else {
                    _mm256_maddubs_epi16(codes, quad(i))
                };
                acc = _mm256_add_epi32(acc, _mm256_madd_epi16(products, ones));
            }
            acc
        }
    }
}
