//! Rows of activations as the matrix operations read them: f32 for float weights, int8 groups for quantised ones.

use super::isa::Kernel;
use super::shared::SharedOut;
use super::simd::Simd;
use super::watch::Op;
use super::{Cpu, Rounding};
use crate::quant::GROUP;

/// 32 activations of one row: `x ≈ code * scale`, and the sums that the weights' offsets are multiplied with.
#[repr(C, align(16))]
#[derive(Clone, Copy, Default)]
pub(crate) struct ActivationGroup {
    pub(crate) codes: [i8; GROUP],
    pub(crate) scale: f32,
    pub(crate) sum: f32,            // scale * Σ codes
    pub(crate) half_sums: [f32; 2], // the same of either half
}

/// The most int8 codes an activation is made of: see [`Rounding::Int16`].
pub(crate) const TERMS_MAX: usize = 2;

/// Rows of activations, made once for all matrices that read them. Scratch: reused from call to call, it only grows.
#[derive(Default)]
pub struct Activations {
    rows: usize,
    cols: usize,
    sensitive: bool,
    terms: usize,     // codes of an activation: 1, 2, or 0 when only values are there
    values: Vec<f32>, // [rows, cols]
    groups: Vec<ActivationGroup>, // [rows, terms, cols / 32]
}

impl Activations {
    /// For activations whose rounding a model is sensitive to: [`Rounding::Mixed`] rounds them to 16 bits.
    pub fn sensitive() -> Activations {
        Activations {
            sensitive: true,
            ..Activations::default()
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Width of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Int8 codes that an activation is the sum of.
    pub(crate) fn terms(&self) -> usize {
        self.terms
    }

    /// Groups of a row, all terms together.
    pub(crate) fn groups_per_row(&self) -> usize {
        self.terms * (self.cols / GROUP)
    }

    /// The f32 values of a row.
    pub(crate) fn values(&self, row: usize) -> &[f32] {
        &self.values[row * self.cols..(row + 1) * self.cols]
    }

    /// The groups of a term of a row; none of a term that is not there.
    pub(crate) fn groups(&self, row: usize, term: usize) -> &[ActivationGroup] {
        if term >= self.terms {
            return &[];
        }
        let groups = self.cols / GROUP;
        &self.groups[(row * self.terms + term) * groups..][..groups]
    }

    /// Gives the rows a shape; their contents are whatever was there.
    ///
    /// A width that is no multiple of 32 has no quantised weights, so it needs no codes.
    pub(crate) fn reshape(&mut self, rows: usize, cols: usize, rounding: Rounding) {
        self.rows = rows;
        self.cols = cols;
        self.terms = match rounding {
            _ if !cols.is_multiple_of(GROUP) => 0,
            Rounding::Mixed if self.sensitive => TERMS_MAX,
            Rounding::Int8 | Rounding::Mixed => 1,
            Rounding::Int16 => TERMS_MAX,
            Rounding::Exact => 0,
        };
        if self.values.len() < rows * cols {
            self.values.resize(rows * cols, 0.0);
        }
        let groups = rows * self.groups_per_row();
        if self.groups.len() < groups {
            self.groups.resize(groups, ActivationGroup::default());
        }
    }

    /// Takes some rows of others, as they are.
    ///
    /// # Panics
    /// When a row is out of range.
    pub fn gather(&mut self, from: &Activations, rows: &[u32]) {
        let (cols, groups) = (from.cols, from.groups_per_row());
        self.rows = rows.len();
        self.cols = cols;
        self.terms = from.terms;
        self.values.clear();
        self.groups.clear();
        for &row in rows {
            let row = row as usize;
            assert!(row < from.rows, "a row of the others");
            self.values.extend_from_slice(from.values(row));
            self.groups
                .extend_from_slice(&from.groups[row * groups..(row + 1) * groups]);
        }
    }

    /// The rows for tasks to write: values `[rows, cols]` and groups `[rows, terms, cols / 32]`.
    pub(crate) fn parts(&mut self) -> (SharedOut<'_, f32>, SharedOut<'_, ActivationGroup>) {
        (
            SharedOut::new(&mut self.values),
            SharedOut::new(&mut self.groups),
        )
    }
}

impl Cpu {
    /// Makes `x` (`[rows, cols]`) ready for matrix operations.
    ///
    /// # Panics
    /// When `x` is not whole rows.
    pub fn quantize(&self, x: &[f32], cols: usize, out: &mut Activations) {
        assert!(x.len().is_multiple_of(cols), "whole rows");
        let _watched = self.watch(|| Op::plain("quantize", 2 * size_of_val(x), 4 * x.len()));
        out.reshape(x.len() / cols, cols, self.rounding);
        self.fill(out, |row, values| {
            values.copy_from_slice(&x[row * cols..(row + 1) * cols])
        });
    }

    /// Fills each row of `out` by `fill(row, values)` and quantises it while it is in the cache.
    pub(crate) fn fill(&self, out: &mut Activations, fill: impl Fn(usize, &mut [f32]) + Sync) {
        let (rows, cols, groups_per_row) = (out.rows, out.cols, out.groups_per_row());
        let (values, groups) = out.parts();
        self.split(rows, cols, |range| {
            for row in range {
                // SAFETY: every row belongs to one task.
                let values = unsafe { values.part(row * cols..(row + 1) * cols) };
                // SAFETY: as above.
                let groups =
                    unsafe { groups.part(row * groups_per_row..(row + 1) * groups_per_row) };
                fill(row, values);
                if !groups.is_empty() {
                    self.isa.run(Quantize { values, groups });
                }
            }
        });
    }
}

/// One row of f32 to int8 groups, of one term or two: 127 is the group's largest magnitude.
pub(crate) struct Quantize<'a> {
    pub(crate) values: &'a [f32],                 // [cols]
    pub(crate) groups: &'a mut [ActivationGroup], // [terms, cols / 32]
}

impl Kernel for Quantize<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let values = self.values.as_chunks::<GROUP>().0;
        let (groups, rests) = self.groups.split_at_mut(values.len());
        for (x, group) in values.iter().zip(groups.iter_mut()) {
            quantize_group(s, x, group);
        }
        for ((x, group), rest) in values.iter().zip(groups).zip(rests) {
            let left = std::array::from_fn(|i| x[i] - f32::from(group.codes[i]) * group.scale);
            quantize_group(s, &left, rest);
        }
    }
}

#[inline(always)]
pub(crate) fn quantize_group<S: Simd>(s: S, x: &[f32; GROUP], group: &mut ActivationGroup) {
    let mut max = s.splat(0.0);
    for i in (0..GROUP).step_by(S::LANES) {
        // SAFETY: `i + LANES <= 32`, as `LANES` divides 16.
        max = s.max(s.abs(unsafe { s.load(x.as_ptr().add(i)) }), max);
    }
    let max = s.max_lane(max);
    let inverse = s.splat(if max > 0.0 { 127.0 / max } else { 0.0 });
    let mut sums = [0i32; 2];
    for i in (0..GROUP).step_by(S::LANES) {
        // SAFETY: as above, in both arrays.
        sums[i / 16] += unsafe {
            let scaled = s.mul(s.load(x.as_ptr().add(i)), inverse);
            s.store_i8(scaled, group.codes.as_mut_ptr().add(i))
        };
    }
    group.scale = max / 127.0;
    group.sum = group.scale * (sums[0] + sums[1]) as f32;
    group.half_sums = [group.scale * sums[0] as f32, group.scale * sums[1] as f32];
}
