//! Which instruction sets this machine has, and how a kernel gets compiled for each of them.
//!
//! A kernel is a struct of its arguments with one generic `run`; [`Simd::call`] is the only place where a feature-compiled
//! function is called, and the token it is called on is the proof that it may be.

use super::simd::Simd;
#[cfg(target_arch = "aarch64")]
use super::simd::neon::Neon;
use super::simd::scalar::Scalar;
#[cfg(target_arch = "x86_64")]
use super::simd::{avx2::Avx2, avx512::Avx512};
use std::sync::LazyLock;

/// An instruction set that was detected on this machine. Having one is the proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Token);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Scalar(Scalar),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
}

/// Every instruction set this machine has, slowest first; the plain one is always there.
pub fn isas() -> Vec<Isa> {
    let mut isas = vec![Isa(Token::Scalar(Scalar))];
    #[cfg(target_arch = "x86_64")]
    {
        isas.extend(Avx2::detect().map(|token| Isa(Token::Avx2(token))));
        isas.extend(Avx512::detect().map(|token| Isa(Token::Avx512(token))));
    }
    #[cfg(target_arch = "aarch64")]
    isas.extend(Neon::detect().map(|token| Isa(Token::Neon(token))));
    isas
}

impl Isa {
    /// The fastest of [`isas`].
    pub fn best() -> Isa {
        static BEST: LazyLock<Isa> =
            LazyLock::new(|| *isas().last().expect("the plain one is always there"));
        *BEST
    }

    /// A short name: `"scalar"`, `"avx2"`, `"avx512-vnni"`, `"neon-dotprod"`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Token::Scalar(_) => "scalar",
            #[cfg(target_arch = "x86_64")]
            Token::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Token::Avx512(_) => "avx512-vnni",
            #[cfg(target_arch = "aarch64")]
            Token::Neon(_) => "neon-dotprod",
        }
    }

    /// How many activation rows a matrix tile takes at once.
    pub(crate) fn tile_rows(self) -> usize {
        match self.0 {
            Token::Scalar(_) => Scalar::TILE_ROWS,
            #[cfg(target_arch = "x86_64")]
            Token::Avx2(_) => Avx2::TILE_ROWS,
            #[cfg(target_arch = "x86_64")]
            Token::Avx512(_) => Avx512::TILE_ROWS,
            #[cfg(target_arch = "aarch64")]
            Token::Neon(_) => Neon::TILE_ROWS,
        }
    }

    /// Runs the kernel with this instruction set.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Out {
        match self.0 {
            Token::Scalar(token) => token.call(kernel),
            #[cfg(target_arch = "x86_64")]
            Token::Avx2(token) => token.call(kernel),
            #[cfg(target_arch = "x86_64")]
            Token::Avx512(token) => token.call(kernel),
            #[cfg(target_arch = "aarch64")]
            Token::Neon(token) => token.call(kernel),
        }
    }
}

/// A computation that [`Isa::run`] compiles for every instruction set. `run` must be `#[inline(always)]`.
pub(crate) trait Kernel {
    type Out;
    fn run<S: Simd>(self, s: S) -> Self::Out;
}
