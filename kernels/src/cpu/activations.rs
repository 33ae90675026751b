//! Rows of activations as the matrix operations read them: f32 for float weights, int8 groups for quantised ones.

use super::isa::Kernel;
use super::shared::SharedOut;
use super::simd::Simd;
use super::watch::Op;
use super::{Cpu, Rounding};
use crate::quant::GROUP;
use std::ops::Range;
use std::sync::Arc;

/// 32 activations of one row: `x ≈ code * scale`, and the sums that the weights' offsets are multiplied with.
#[repr(C, align(16))]
#[derive(Clone, Copy, Default)]
pub(crate) struct ActivationGroup {
    pub(crate) codes: [i8; GROUP],
    pub(crate) scale: f32,
    pub(crate) sum: f32,            // scale * Σ codes
    pub(crate) half_sums: [f32; 2], // the same of either half
}

/// How finely [`Rounding::Mixed`] rounds the activations that some matrices read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Precision {
    /// To 8 bits, except for these channels, in ascending order: they outweigh their neighbours, so that a scale which
    /// covers them leaves those few bits. They are multiplied as f32, by the columns that
    /// [`Cpu::with_columns`] takes out of a matrix.
    Int8 {
        /// Columns of the matrices.
        apart: Arc<[u32]>,
    },
    /// To 16 bits.
    Int16,
}

impl Default for Precision {
    fn default() -> Precision {
        Precision::Int8 {
            apart: Arc::default(),
        }
    }
}

/// The most int8 codes an activation is made of: see [`Rounding::Int16`].
pub(crate) const TERMS_MAX: usize = 2;

/// Rows of activations, made once for all matrices that read them. Scratch: reused from call to call, it only grows.
///
/// The codes of a row's activations are one part, or two where an activation is the sum of two codes. Parts lie in tiles of
/// as many as a kernel takes at once, side by side: it walks a tile as one stream, with one pointer. How many these are is
/// a matter of the instruction set, so that only a [`Cpu`] of the same one reads them.
#[derive(Default)]
pub struct Activations {
    rows: usize,
    cols: usize,
    precision: Precision,
    is_split: bool,               // channels are apart
    terms: usize,                 // codes of an activation: 1, 2, or 0 when only values are there
    tile_rows: usize,             // parts of a tile at most
    values: Vec<f32>,             // [rows, cols]
    groups: Vec<ActivationGroup>, // of each tile [cols / 32, parts]
}

/// The tiles of `parts` parts, of `max` at most: of sizes that kernels are compiled for, and even unless it is the last. The
/// last ones share what is left, because a small tile unpacks as much as a large one.
pub(crate) fn tiles(parts: usize, max: usize) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let left = parts - start;
        let count = match left {
            0 => return None,
            1..=8 | 10 | 12 if left <= max => left,
            _ if left < 2 * max => left.div_ceil(2).next_multiple_of(2),
            _ => max,
        };
        start += count;
        Some(start - count..start)
    })
}

/// Where the groups of a row are: group `g` of term `t` at `start + g * step + t`.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    start: usize,
    step: usize,
}

impl Activations {
    /// For activations that [`Rounding::Mixed`] rounds so finely.
    pub fn with_precision(precision: Precision) -> Activations {
        Activations {
            precision,
            ..Activations::default()
        }
    }

    /// From the next use on, [`Rounding::Mixed`] rounds them so finely.
    pub fn set_precision(&mut self, precision: &Precision) {
        self.precision.clone_from(precision);
    }

    /// The channels whose codes are 0, because they are multiplied as f32.
    pub(crate) fn apart(&self) -> &[u32] {
        match &self.precision {
            Precision::Int8 { apart } if self.is_split => apart,
            _ => &[],
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
    fn groups_per_row(&self) -> usize {
        self.terms * (self.cols / GROUP)
    }

    /// The f32 values of a row.
    pub fn values(&self, row: usize) -> &[f32] {
        &self.values[row * self.cols..(row + 1) * self.cols]
    }

    /// The tiles of all parts; a row's parts are in one.
    pub(crate) fn tiles(&self) -> impl Iterator<Item = Range<usize>> {
        tiles(self.rows * self.terms, self.tile_rows)
    }

    /// The groups of a tile, `[cols / 32, N]`.
    ///
    /// # Panics
    /// When the tile does not have `N` parts.
    pub(crate) fn tile<const N: usize>(&self, tile: &Range<usize>) -> &[[ActivationGroup; N]] {
        assert_eq!(tile.len(), N);
        let groups = self.cols / GROUP;
        let groups = &self.groups[tile.start * groups..tile.end * groups];
        groups.as_chunks().0
    }

    fn place(&self, row: usize) -> Place {
        let (part, parts) = (row * self.terms, self.rows * self.terms);
        // All tiles but the last ones are full.
        let full = (parts / self.tile_rows).saturating_sub(1) * self.tile_rows;
        let from = full.min(part / self.tile_rows * self.tile_rows);
        let tile = tiles(parts - from, self.tile_rows)
            .map(|tile| from + tile.start..from + tile.end)
            .find(|tile| tile.contains(&part))
            .expect("the tiles cover all parts");
        Place {
            start: tile.start * (self.cols / GROUP) + part - tile.start,
            step: tile.len(),
        }
    }

    /// Gives the rows a shape; their contents are whatever was there.
    ///
    /// A width that is no multiple of 32 has no quantised weights, so it needs no codes.
    pub(crate) fn reshape(&mut self, cpu: &Cpu, rows: usize, cols: usize) {
        self.rows = rows;
        self.cols = cols;
        self.tile_rows = cpu.isa.tile_rows();
        self.terms = match cpu.rounding {
            _ if !cols.is_multiple_of(GROUP) => 0,
            Rounding::Mixed if self.precision == Precision::Int16 => TERMS_MAX,
            Rounding::Int8 | Rounding::Mixed => 1,
            Rounding::Int16 => TERMS_MAX,
            Rounding::Exact => 0,
        };
        self.is_split = cpu.rounding == Rounding::Mixed && self.terms == 1;
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
        self.rows = rows.len();
        self.cols = from.cols;
        self.terms = from.terms;
        self.precision.clone_from(&from.precision);
        self.is_split = from.is_split;
        self.tile_rows = from.tile_rows;
        self.values.clear();
        let groups = self.rows * self.groups_per_row();
        self.groups.resize(groups, ActivationGroup::default());
        for (i, &row) in rows.iter().enumerate() {
            let row = row as usize;
            assert!(row < from.rows, "there is no row {row} to gather");
            self.values.extend_from_slice(from.values(row));
            if self.terms == 0 {
                continue;
            }
            let (source, place) = (from.place(row), self.place(i));
            for g in 0..self.cols / GROUP {
                let source = source.start + g * source.step;
                let at = place.start + g * place.step;
                self.groups[at..at + self.terms]
                    .copy_from_slice(&from.groups[source..source + self.terms]);
            }
        }
    }

    /// The values `[rows, cols]` for tasks to write, and what makes codes of them.
    pub(crate) fn parts(&mut self) -> (SharedOut<'_, f32>, Quantizer<'_>) {
        let places = (self.terms > 0).then(|| (0..self.rows).map(|row| self.place(row)).collect());
        let apart: &[u32] = match &self.precision {
            Precision::Int8 { apart } if self.is_split => apart,
            _ => &[],
        };
        let quantizer = Quantizer {
            places: places.unwrap_or_default(),
            apart,
            terms: self.terms,
            groups: SharedOut::new(&mut self.groups),
        };
        (SharedOut::new(&mut self.values), quantizer)
    }
}

impl Cpu {
    /// Makes `x` (`[rows, cols]`) ready for matrix operations.
    ///
    /// # Panics
    /// When `x` is not whole rows.
    pub fn quantize(&self, x: &[f32], cols: usize, out: &mut Activations) {
        assert!(
            x.len().is_multiple_of(cols),
            "the input must be a whole number of rows"
        );
        let _watched = self.watch(|| Op::plain("quantize", 2 * size_of_val(x), 4 * x.len()));
        out.reshape(self, x.len() / cols, cols);
        self.fill(out, |row, values| {
            values.copy_from_slice(&x[row * cols..(row + 1) * cols])
        });
    }

    /// Fills each row of `out` by `fill(row, values)` and quantises it while it is in the cache.
    pub(crate) fn fill(&self, out: &mut Activations, fill: impl Fn(usize, &mut [f32]) + Sync) {
        let (rows, cols) = (out.rows, out.cols);
        let (values, quantizer) = out.parts();
        self.split(rows, cols, |range| {
            for row in range {
                // SAFETY: every row belongs to one task.
                let values = unsafe { values.part(row * cols..(row + 1) * cols) };
                fill(row, values);
                // SAFETY: as above.
                unsafe { quantizer.run(self, row, values) };
            }
        });
    }
}

/// Makes the codes of rows from their values.
pub(crate) struct Quantizer<'a> {
    places: Vec<Place>, // of every row; none where there are no codes
    apart: &'a [u32],
    terms: usize,
    groups: SharedOut<'a, ActivationGroup>,
}

impl Quantizer<'_> {
    /// Whether there are codes to make.
    pub(crate) fn has_codes(&self) -> bool {
        self.terms > 0
    }

    /// Row `row`, of these values.
    ///
    /// # Safety
    /// Nobody else does this row.
    pub(crate) unsafe fn run(&self, cpu: &Cpu, row: usize, values: &[f32]) {
        if self.has_codes() {
            let (place, terms, groups) = (self.places[row], self.terms, &self.groups);
            cpu.isa.run(Quantize {
                values,
                apart: self.apart,
                place,
                terms,
                groups,
            });
        }
    }
}

/// One row of f32 to int8 groups, of one term or two: 127 is the group's largest magnitude. The row's groups belong to it.
struct Quantize<'a> {
    values: &'a [f32], // [cols]
    apart: &'a [u32],  // of these the codes are 0
    place: Place,
    terms: usize,
    groups: &'a SharedOut<'a, ActivationGroup>,
}

impl Kernel for Quantize<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut apart = self.apart;
        for (g, x) in self.values.as_chunks::<GROUP>().0.iter().enumerate() {
            let mut rest = *x;
            while let [channel, others @ ..] = apart
                && *channel as usize / GROUP == g
            {
                rest[*channel as usize % GROUP] = 0.0;
                apart = others;
            }
            let x = &rest;
            let at = self.place.start + g * self.place.step;
            // SAFETY: groups of this row.
            let groups = unsafe { self.groups.part(at..at + self.terms) };
            quantize_group(s, x, &mut groups[0]);
            let (first, rests) = groups.split_at_mut(1);
            if let [rest] = rests {
                let first = &first[0];
                let left = std::array::from_fn(|i| x[i] - f32::from(first.codes[i]) * first.scale);
                quantize_group(s, &left, rest);
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::isa::isas;

    #[test]
    fn tiles_cover_all_parts_and_every_row_knows_its_own() {
        for isa in isas() {
            let cpu = Cpu::with_isa(isa, 1).with_rounding(Rounding::Mixed);
            // Miri takes seconds for each.
            for rows in (1..80).step_by(if cfg!(miri) { 26 } else { 1 }) {
                let int16 = Activations::with_precision(Precision::Int16);
                for mut acts in [Activations::default(), int16] {
                    acts.reshape(&cpu, rows, 2 * GROUP);
                    let terms = acts.terms;
                    let mut places = vec![None; acts.groups.len()];
                    let mut end = 0;
                    for tile in acts.tiles() {
                        assert_eq!(tile.start, end);
                        end = tile.end;
                        assert!(tile.len() <= isa.tile_rows() && tile.len() % terms == 0);
                        for (i, part) in tile.clone().enumerate() {
                            for g in 0..2 {
                                let at = 2 * tile.start + g * tile.len() + i;
                                places[at] = Some((part / terms, part % terms, g));
                            }
                        }
                    }
                    assert_eq!(end, rows * terms);
                    for row in 0..rows {
                        let Place { start, step } = acts.place(row);
                        for (g, term) in [(0, 0), (1, 0), (0, terms - 1), (1, terms - 1)] {
                            assert_eq!(places[start + g * step + term], Some((row, term, g)));
                        }
                    }
                }
            }
        }
    }
}
