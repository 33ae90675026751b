//! What is done to each element by itself: biases, factors, caps, and activations without a gate.

use super::isa::Kernel;
use super::shared::SharedOut;
use super::simd::Simd;
use super::watch::Op;
use super::{Activation, Activations, Cpu};

impl Cpu {
    /// `x += bias` for every row of `bias.len()`.
    ///
    /// # Panics
    /// When `x` is not whole rows.
    pub fn add_bias(&self, bias: &[f32], x: &mut [f32]) {
        let width = bias.len();
        assert!(
            x.len().is_multiple_of(width),
            "the input must be a whole number of rows"
        );
        let _watched = self.watch(|| Op::plain("bias", 2 * size_of_val(x), x.len()));
        self.rows(x, width, |x| {
            x.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
        });
    }

    /// `residual += x * factor`.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn add_scaled(&self, x: &[f32], factor: f32, residual: &mut [f32]) {
        assert_eq!(
            x.len(),
            residual.len(),
            "both sides of an addition must have the same length"
        );
        let _watched = self.watch(|| Op::plain("add", 3 * size_of_val(x), 2 * x.len()));
        for (residual, x) in residual.iter_mut().zip(x) {
            *residual += x * factor;
        }
    }

    /// `x *= factor`.
    pub fn scale(&self, factor: f32, x: &mut [f32]) {
        let _watched = self.watch(|| Op::plain("scale", 2 * size_of_val(x), x.len()));
        x.iter_mut().for_each(|x| *x *= factor);
    }

    /// `x = cap * tanh(x / cap)` for every row of `width`.
    ///
    /// # Panics
    /// When `x` is not whole rows.
    pub fn softcap(&self, cap: f32, width: usize, x: &mut [f32]) {
        assert!(
            x.len().is_multiple_of(width),
            "the input must be a whole number of rows"
        );
        let _watched = self.watch(|| Op::plain("soft cap", 2 * size_of_val(x), 20 * x.len()));
        self.rows(x, width, |x| self.isa.run(Softcap { x, cap }));
    }

    /// `out = act(x)` for every row of `width`, ready for the next matrix.
    ///
    /// # Panics
    /// When `x` is not whole rows.
    pub fn activate_quantize(
        &self,
        x: &[f32],
        width: usize,
        act: Activation,
        out: &mut Activations,
    ) {
        assert!(
            x.len().is_multiple_of(width),
            "the input must be a whole number of rows"
        );
        let _watched = self.watch(|| Op::plain("activate", 2 * size_of_val(x), 20 * x.len()));
        out.reshape(self, x.len() / width, width);
        self.fill(out, |row, values| {
            let x = &x[row * width..(row + 1) * width];
            self.isa.run(Activate { x, act, values });
        });
    }

    /// `out = act(gate) * up` for every row of `width`, ready for the next matrix: what [`gate_up_act`](Cpu::gate_up_act) makes
    /// of its products, to the bit, where something is done to them first.
    ///
    /// # Panics
    /// When `gate` and `up` are not whole rows, equally many.
    pub fn gate_quantize(
        &self,
        gate: &[f32],
        up: &[f32],
        width: usize,
        act: Activation,
        out: &mut Activations,
    ) {
        assert!(gate.len().is_multiple_of(width), "whole rows");
        assert_eq!(gate.len(), up.len(), "a gate for each element");
        let _watched = self.watch(|| Op::plain("gate", 3 * size_of_val(up), 21 * up.len()));
        out.reshape(self, up.len() / width, width);
        self.fill(out, |row, values| {
            let row = row * width..(row + 1) * width;
            let (x, up) = (&gate[row.clone()], &up[row]);
            self.isa.run(Activate {
                x,
                act,
                values: &mut *values,
            });
            values.iter_mut().zip(up).for_each(|(gate, up)| *gate *= up);
        });
    }

    /// Hands every row to a task of its own.
    fn rows(&self, x: &mut [f32], width: usize, task: impl Fn(&mut [f32]) + Sync) {
        let rows = x.len() / width;
        let x = SharedOut::new(x);
        self.split(rows, width, |range| {
            for row in range {
                // SAFETY: every row belongs to one task.
                task(unsafe { x.part(row * width..(row + 1) * width) });
            }
        });
    }
}

struct Softcap<'a> {
    x: &'a mut [f32],
    cap: f32,
}

impl Kernel for Softcap<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (cap, inverse) = (s.splat(self.cap), s.splat(1.0 / self.cap));
        each(s, self.x, |s, x| s.mul(s.tanh(s.mul(x, inverse)), cap));
    }
}

struct Activate<'a> {
    x: &'a [f32],
    act: Activation,
    values: &'a mut [f32],
}

impl Kernel for Activate<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.values.copy_from_slice(self.x);
        each(s, self.values, |s, x| {
            super::gated_act::activate(s, self.act, x)
        });
    }
}

/// `x = f(x)` for every element; the last few go through a vector of their own, so that the place of an element does
/// not change what becomes of it.
#[inline(always)]
fn each<S: Simd>(s: S, x: &mut [f32], f: impl Fn(S, S::F) -> S::F) {
    /// The most lanes there are.
    const LANES_MAX: usize = 16;
    let mut chunks = x.chunks_exact_mut(S::LANES);
    for chunk in &mut chunks {
        // SAFETY: a chunk is `LANES` long.
        unsafe { s.store(f(s, s.load(chunk.as_ptr())), chunk.as_mut_ptr()) };
    }
    let rest = chunks.into_remainder();
    let mut lanes = [0f32; LANES_MAX];
    lanes[..rest.len()].copy_from_slice(rest);
    // SAFETY: no vector has more than `LANES_MAX` lanes.
    unsafe { s.store(f(s, s.load(lanes.as_ptr())), lanes.as_mut_ptr()) };
    rest.copy_from_slice(&lanes[..rest.len()]);
}
