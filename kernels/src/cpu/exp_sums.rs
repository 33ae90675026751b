//! The weights of a row of logits, summed piece by piece: what a draw from all of a vocabulary begins with.

use super::isa::{Isa, Kernel};
use super::simd::Simd;

/// Elements of a piece.
pub const EXP_SUM_PIECE: usize = 64;

impl Isa {
    /// `sums[i]` becomes the sum of `e^((x - max) * scale)` over the `i`-th 64 elements of `x`, each within some ULP; the last
    /// piece may be shorter. On the calling thread.
    ///
    /// - `max`: the largest of `x`, which has no NaN; −∞ counts as next to nothing.
    pub fn exp_sums(self, x: &[f32], max: f32, scale: f32, sums: &mut Vec<f32>) {
        sums.clear();
        sums.resize(x.len().div_ceil(EXP_SUM_PIECE), 0.0);
        self.run(ExpSums {
            x,
            max,
            scale,
            sums,
        });
    }
}

struct ExpSums<'a> {
    x: &'a [f32],
    max: f32,
    scale: f32,
    sums: &'a mut [f32],
}

impl Kernel for ExpSums<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (pieces, rest) = self.x.as_chunks::<EXP_SUM_PIECE>();
        let mut last = [f32::NEG_INFINITY; EXP_SUM_PIECE];
        last[..rest.len()].copy_from_slice(rest);
        let (max, scale) = (s.splat(self.max), s.splat(self.scale));
        for (i, to) in self.sums.iter_mut().enumerate() {
            let piece = pieces.get(i).unwrap_or(&last);
            let mut sum = s.splat(0.0);
            for at in (0..EXP_SUM_PIECE).step_by(S::LANES) {
                // SAFETY: `LANES` elements of the piece, which they divide.
                let x = unsafe { s.load(piece.as_ptr().add(at)) };
                sum = s.add(sum, s.exp(s.mul(s.sub(x, max), scale)));
            }
            *to = s.sum(sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::isas;

    #[test]
    fn every_piece_weighs_what_its_elements_do() {
        for len in [1, 63, 64, 65, 128, 1000] {
            let mut x: Vec<f32> = (0..len).map(|i| ((i * 37) % 41) as f32 - 30.0).collect();
            x[len / 2] = f32::NEG_INFINITY;
            let max = x.iter().copied().fold(f32::MIN, f32::max);
            let wanted: Vec<f64> = x
                .chunks(EXP_SUM_PIECE)
                .map(|piece| {
                    let weight = |&x: &f32| (f64::from(x - max) * 0.7).exp();
                    piece.iter().map(weight).sum()
                })
                .collect();
            for isa in isas() {
                let mut sums = vec![7.0];
                isa.exp_sums(&x, max, 0.7, &mut sums);
                assert_eq!(sums.len(), wanted.len());
                for (&sum, wanted) in sums.iter().zip(&wanted) {
                    let error = (f64::from(sum) - wanted).abs();
                    assert!(
                        error <= 1e-6 * wanted + 1e-30,
                        "{}: {sum} for {wanted}",
                        isa.name()
                    );
                }
            }
        }
    }
}
