//! Root-mean-square normalisation (to a buffer, onto a residual, per head in place, fused with quantisation) and layer
//! normalisation (to a buffer, fused with quantisation).

use super::isa::Kernel;
use super::shared::SharedOut;
use super::simd::Simd;
use super::watch::Op;
use super::{Activations, Cpu};

impl Cpu {
    /// RMS norm of each row of `weight.len()`: `out = x / sqrt(mean(x²) + eps) * weight`.
    ///
    /// # Panics
    /// When `x` is not whole rows or `out` has another length.
    pub fn norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        self.norm_rows(x, weight, eps, out, Write::Replace);
    }

    /// `residual += norm(x)`.
    ///
    /// # Panics
    /// As [`norm`](Cpu::norm).
    pub fn norm_add(&self, x: &[f32], weight: &[f32], eps: f32, residual: &mut [f32]) {
        self.norm_rows(x, weight, eps, residual, Write::Add);
    }

    fn norm_rows(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32], write: Write) {
        let width = weight.len();
        assert!(
            x.len().is_multiple_of(width) && x.len() == out.len(),
            "input and output must have the same whole number of rows"
        );
        let _watched = self.watch(|| Op::plain("norm", 2 * size_of_val(x), 4 * x.len()));
        let out = SharedOut::new(out);
        self.split(x.len() / width, width, |range| {
            for row in range {
                let range = row * width..(row + 1) * width;
                // SAFETY: every row belongs to one task.
                let out = unsafe { out.part(range.clone()) };
                self.isa.run(NormRow {
                    x: &x[range],
                    weight,
                    eps,
                    out,
                    write,
                });
            }
        });
    }

    /// [`norm`](Cpu::norm) and [`quantize`](Cpu::quantize) in one pass.
    ///
    /// # Panics
    /// When `x` is not whole rows.
    pub fn norm_quantize(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut Activations) {
        let width = weight.len();
        assert!(
            x.len().is_multiple_of(width),
            "the input must be a whole number of rows"
        );
        let _watched = self.watch(|| Op::plain("norm, quantize", 2 * size_of_val(x), 8 * x.len()));
        out.reshape(self, x.len() / width, width);
        self.fill(out, |row, out| {
            let x = &x[row * width..(row + 1) * width];
            self.isa.run(NormRow {
                x,
                weight,
                eps,
                out,
                write: Write::Replace,
            });
        });
    }

    /// RMS norm of every head, in place; `x` is any number of heads of `head_dim`, `weight` is `[head_dim]`.
    ///
    /// # Panics
    /// When `x` is not whole heads or `weight` is not one head wide.
    pub fn qk_norm(&self, x: &mut [f32], head_dim: usize, weight: &[f32], eps: f32) {
        assert!(
            weight.len() == head_dim && x.len().is_multiple_of(head_dim),
            "the input must be a whole number of heads"
        );
        let _watched = self.watch(|| Op::plain("head norm", 2 * size_of_val(x), 4 * x.len()));
        let heads = x.len() / head_dim;
        let x = SharedOut::new(x);
        self.split(heads, head_dim, |range| {
            for head in range {
                // SAFETY: every head belongs to one task.
                let x = unsafe { x.part(head * head_dim..(head + 1) * head_dim) };
                self.isa.run(NormHead { x, weight, eps });
            }
        });
    }
}

/// Weight, bias and the number that keeps the division finite.
#[derive(Clone, Copy)]
pub struct LayerNorm<'a> {
    /// `[hidden]`.
    pub weight: &'a [f32],
    /// `[hidden]`.
    pub bias: &'a [f32],
    /// Added to the variance.
    pub eps: f32,
}

impl Cpu {
    /// Layer norm of each row: `out = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias`.
    ///
    /// # Panics
    /// When `x` is not whole rows, `out` has another length, or weight and bias differ in theirs.
    pub fn layer_norm(&self, x: &[f32], norm: LayerNorm<'_>, out: &mut [f32]) {
        let width = norm.weight.len();
        assert!(
            x.len().is_multiple_of(width) && x.len() == out.len() && norm.bias.len() == width,
            "input and output must have the same whole number of rows"
        );
        let _watched = self.watch(|| Op::plain("layer norm", 2 * size_of_val(x), 7 * x.len()));
        let out = SharedOut::new(out);
        self.split(x.len() / width, width, |range| {
            for row in range {
                let range = row * width..(row + 1) * width;
                // SAFETY: every row belongs to one task.
                let out = unsafe { out.part(range.clone()) };
                let x = &x[range];
                self.isa.run(LayerNormRow { x, norm, out });
            }
        });
    }

    /// [`layer_norm`](Cpu::layer_norm) and [`quantize`](Cpu::quantize) in one pass.
    ///
    /// # Panics
    /// When `x` is not whole rows, or weight and bias differ in length.
    pub fn layer_norm_quantize(&self, x: &[f32], norm: LayerNorm<'_>, out: &mut Activations) {
        let width = norm.weight.len();
        assert!(
            x.len().is_multiple_of(width) && norm.bias.len() == width,
            "the input must be a whole number of rows"
        );
        let _watched =
            self.watch(|| Op::plain("layer norm, quantize", 2 * size_of_val(x), 11 * x.len()));
        out.reshape(self, x.len() / width, width);
        self.fill(out, |row, out| {
            let x = &x[row * width..(row + 1) * width];
            self.isa.run(LayerNormRow { x, norm, out });
        });
    }
}

#[derive(Clone, Copy)]
enum Write {
    Replace,
    Add,
}

struct NormRow<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
    write: Write,
}

impl Kernel for NormRow<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let scale = inverse_rms(s, self.x, self.eps);
        let parts = self.out.iter_mut().zip(self.x).zip(self.weight);
        match self.write {
            Write::Replace => parts.for_each(|((out, &x), &w)| *out = x * scale * w),
            Write::Add => parts.for_each(|((out, &x), &w)| *out += x * scale * w),
        }
    }
}

struct LayerNormRow<'a> {
    x: &'a [f32],
    norm: LayerNorm<'a>,
    out: &'a mut [f32],
}

impl Kernel for LayerNormRow<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let LayerNorm { weight, bias, eps } = self.norm;
        let mean = sum_of(s, self.x, |_, x| x, |x| x) / self.x.len() as f32;
        for (out, x) in self.out.iter_mut().zip(self.x) {
            *out = x - mean;
        }
        let scale = inverse_rms(s, self.out, eps);
        for ((out, w), b) in self.out.iter_mut().zip(weight).zip(bias) {
            *out = *out * scale * w + b;
        }
    }
}

struct NormHead<'a> {
    x: &'a mut [f32],
    weight: &'a [f32],
    eps: f32,
}

impl Kernel for NormHead<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let scale = inverse_rms(s, self.x, self.eps);
        self.x
            .iter_mut()
            .zip(self.weight)
            .for_each(|(x, &w)| *x = *x * scale * w);
    }
}

/// `1 / sqrt(mean(x²) + eps)`.
#[inline(always)]
fn inverse_rms<S: Simd>(s: S, x: &[f32], eps: f32) -> f32 {
    let squares = sum_of(s, x, |s, x| s.mul(x, x), |x| x * x);
    1.0 / (squares / x.len() as f32 + eps).sqrt()
}

/// The sum of `f` over all elements, `one` being the same for a single one.
#[inline(always)]
fn sum_of<S: Simd>(s: S, x: &[f32], f: impl Fn(S, S::F) -> S::F, one: impl Fn(f32) -> f32) -> f32 {
    /// Side by side: each is a shorter sum, which is quicker and rounds less.
    const SUMS: usize = 4;
    let mut sums = [s.splat(0.0); SUMS];
    let mut chunks = x.chunks_exact(SUMS * S::LANES);
    for chunk in &mut chunks {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: a chunk is `SUMS * LANES` long.
            *sum = s.add(
                *sum,
                f(s, unsafe { s.load(chunk.as_ptr().add(i * S::LANES)) }),
            );
        }
    }
    let rest: f32 = chunks.remainder().iter().map(|&x| one(x)).sum();
    let sum = s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3]));
    s.sum(sum) + rest
}
