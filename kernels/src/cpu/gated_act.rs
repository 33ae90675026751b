//! The gated half of a feed-forward layer: two matrices, the activation and the quantisation for the third.

use super::matmul::{Sink, Write};
use super::matrix::PANEL_ROWS;
use super::shared::SharedOut;
use super::simd::Simd;
use super::watch::Op;
use super::{Activation, Activations, Cpu, Matrix};

impl Cpu {
    /// `out = act(x · Gᵀ) * (x · Uᵀ)`, ready for the next matrix. `tmp` is scratch.
    ///
    /// # Panics
    /// When the shapes do not fit.
    pub fn gate_up_act(
        &self,
        gate: &Matrix,
        up: &Matrix,
        act: Activation,
        x: &Activations,
        tmp: &mut Vec<f32>,
        out: &mut Activations,
    ) {
        assert_eq!(
            (gate.rows(), gate.cols()),
            (up.rows(), up.cols()),
            "gate and up must have the same shape"
        );
        let _watched = self.watch(|| Op::product("gate, up", &[gate, up], x, self.rounding));
        let (rows, width) = (x.rows(), up.rows());
        out.reshape(self, rows, width);
        if tmp.len() < rows * width {
            tmp.resize(rows * width, 0.0);
        }
        let (values, quantizer) = out.parts();
        let gated = SharedOut::new(tmp);
        self.split(up.panels(), 2 * up.cols() * PANEL_ROWS * rows, |panels| {
            // The gate of these columns is still in the cache when `up` is multiplied into it.
            let first = Sink {
                out: &gated,
                width,
                write: Write::Store,
            };
            let second = Sink {
                out: &values,
                width,
                write: Write::Gate(act, &gated),
            };
            // SAFETY: every panel belongs to one task, and with it its columns of `gated`.
            unsafe { self.panels(gate, x, panels.clone(), first) };
            // SAFETY: as above, and of `values`.
            unsafe { self.panels(up, x, panels, second) };
        });
        if !quantizer.has_codes() {
            return;
        }
        self.split(rows, width, |range| {
            for row in range {
                // SAFETY: every row belongs to one task.
                let values = unsafe { values.part(row * width..(row + 1) * width) };
                // SAFETY: as above.
                unsafe { quantizer.run(self, row, values) };
            }
        });
    }
}

/// The activation of every lane.
#[inline(always)]
pub(crate) fn activate<S: Simd>(s: S, act: Activation, x: S::F) -> S::F {
    match act {
        Activation::Silu => x_sigmoid(s, x, x),
        Activation::GeluTanh => {
            // 0.5 (1 + tanh u) = sigmoid(2u), u = sqrt(2 / π) (x + 0.044715 x³)
            let cube = s.mul(s.mul(x, x), s.mul(x, s.splat(0.044_715)));
            x_sigmoid(s, x, s.mul(s.add(x, cube), s.splat(1.595_769)))
        }
        Activation::Gelu => {
            // x Φ(x) = (x + |x| erf(|x| / √2)) / 2
            let size = s.abs(x);
            let erf = erf(s, s.mul(size, s.splat(std::f32::consts::FRAC_1_SQRT_2)));
            s.mul(s.mul_add(size, erf, x), s.splat(0.5))
        }
    }
}

/// `x * sigmoid(k)`.
#[inline(always)]
fn x_sigmoid<S: Simd>(s: S, x: S::F, k: S::F) -> S::F {
    let one = s.splat(1.0);
    s.div(x, s.add(one, s.exp(s.sub(s.splat(0.0), k))))
}

/// The error function of lanes that are not negative, within 2e-7. Source: Abramowitz and Stegun, 7.1.26.
#[inline(always)]
fn erf<S: Simd>(s: S, x: S::F) -> S::F {
    let one = s.splat(1.0);
    let t = s.div(one, s.mul_add(x, s.splat(0.327_591_1), one));
    let mut p = s.splat(1.061_405_4);
    for c in [-1.453_152_1, 1.421_413_8, -0.284_496_72, 0.254_829_6] {
        p = s.mul_add(p, t, s.splat(c));
    }
    let tail = s.mul(s.mul(p, t), s.exp(s.sub(s.splat(0.0), s.mul(x, x))));
    s.sub(one, tail)
}
