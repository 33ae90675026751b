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
    /// To 8 bits, with exceptions; both are in ascending order.
    Int8 {
        /// Channels that outweigh their neighbours, so that a scale which covers them leaves those few bits. They are
        /// multiplied as f32, by the columns that [`Cpu::with_columns`] takes out of a matrix.
        apart: Arc<[u32]>,
        /// Groups of 32 channels, by index, that have 16 bits.
        fine: Arc<[u32]>,
    },
    /// To 16 bits.
    Int16,
}

impl Default for Precision {
    fn default() -> Precision {
        Precision::Int8 {
            apart: Arc::default(),
            fine: Arc::default(),
        }
    }
}

/// Rows of activations, made once for all matrices that read them. Scratch: reused from call to call, it only grows.
///
/// The codes of rows lie in tiles of as many rows as a kernel takes at once, side by side: it walks a tile as one stream,
/// with one pointer. Where an activation is the sum of two codes, the second ones are a stream of their own. How many rows a
/// tile has is a matter of the instruction set, so that only a [`Cpu`] of the same one reads them.
#[derive(Default)]
pub struct Activations {
    rows: usize,
    cols: usize,
    precision: Precision,
    has_codes: bool,              // or only values
    is_mixed: bool,               // channels are apart
    tile_rows: usize,             // rows of a tile at most
    values: Vec<f32>,             // [rows, cols]
    groups: Vec<ActivationGroup>, // of each tile [cols / 32, rows]
    fine: Vec<u32>,               // groups of two codes, ascending
    rests: Vec<ActivationGroup>,  // of each tile [fine, rows], the second codes
    split: Vec<f32>,              // of each tile [apart, rows]
}

/// The tiles of `rows` rows, of `max` at most: of sizes that kernels are compiled for. The last ones share what is left,
/// because a small tile unpacks as much as a large one.
pub(crate) fn tiles(rows: usize, max: usize) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let left = rows - start;
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

/// A tile of `N` rows.
#[derive(Clone, Copy)]
pub(crate) struct Tile<'a, const N: usize> {
    pub(crate) groups: &'a [[ActivationGroup; N]], // [cols / 32]
    pub(crate) fine: &'a [u32], // groups whose activations are the sum of two codes
    pub(crate) rests: &'a [[ActivationGroup; N]], // [fine], the second codes
    pub(crate) split: &'a [[f32; N]], // [apart]
}

/// Where a row is: in the tile of so many rows that begins with row `tile`.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    tile: usize,
    row: usize,
    step: usize,
}

impl Place {
    /// Where group `g` of `groups` is.
    fn of(self, g: usize, groups: usize) -> usize {
        self.tile * groups + self.row - self.tile + g * self.step
    }
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
            Precision::Int8 { apart, .. } if self.is_mixed => apart,
            _ => &[],
        }
    }

    /// The groups whose activations are the sum of two codes.
    pub(crate) fn fine(&self) -> &[u32] {
        &self.fine
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Width of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The f32 values of a row.
    pub fn values(&self, row: usize) -> &[f32] {
        &self.values[row * self.cols..(row + 1) * self.cols]
    }

    /// The tiles of all rows.
    pub(crate) fn tiles(&self) -> impl Iterator<Item = Range<usize>> {
        tiles(self.rows, self.tile_rows)
    }

    /// What kernels read of a tile.
    ///
    /// # Panics
    /// When the tile does not have `N` rows.
    pub(crate) fn tile<const N: usize>(&self, tile: &Range<usize>) -> Tile<'_, N> {
        assert_eq!(tile.len(), N);
        let part = |count: usize| tile.start * count..tile.end * count;
        Tile {
            groups: self.groups[part(self.cols / GROUP)].as_chunks().0,
            fine: &self.fine,
            rests: self.rests[part(self.fine.len())].as_chunks().0,
            split: self.split[part(self.apart().len())].as_chunks().0,
        }
    }

    fn place(&self, row: usize) -> Place {
        // All tiles but the last ones are full.
        let full = (self.rows / self.tile_rows).saturating_sub(1) * self.tile_rows;
        let from = full.min(row / self.tile_rows * self.tile_rows);
        let tile = tiles(self.rows - from, self.tile_rows)
            .map(|tile| from + tile.start..from + tile.end)
            .find(|tile| tile.contains(&row))
            .expect("the tiles cover all rows");
        Place {
            tile: tile.start,
            row,
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
        self.has_codes = cols.is_multiple_of(GROUP) && cpu.rounding != Rounding::Exact;
        self.is_mixed = cpu.rounding == Rounding::Mixed;
        self.fine.clear();
        match (cpu.rounding, &self.precision) {
            _ if !self.has_codes => {}
            (Rounding::Int16, _) | (Rounding::Mixed, Precision::Int16) => {
                self.fine.extend(0..(cols / GROUP) as u32);
            }
            (Rounding::Mixed, Precision::Int8 { fine, .. }) => self.fine.extend_from_slice(fine),
            (Rounding::Int8 | Rounding::Exact, _) => {}
        }
        if self.values.len() < rows * cols {
            self.values.resize(rows * cols, 0.0);
        }
        self.grow();
    }

    /// Makes room for the codes.
    fn grow(&mut self) {
        if !self.has_codes {
            return;
        }
        let (groups, rests, split) = (self.cols / GROUP, self.fine.len(), self.apart().len());
        if self.split.len() < self.rows * split {
            self.split.resize(self.rows * split, 0.0);
        }
        for (all, groups) in [(&mut self.groups, groups), (&mut self.rests, rests)] {
            if all.len() < self.rows * groups {
                all.resize(self.rows * groups, ActivationGroup::default());
            }
        }
    }

    /// Takes some rows of others, as they are.
    ///
    /// # Panics
    /// When a row is out of range.
    pub fn gather(&mut self, from: &Activations, rows: &[u32]) {
        self.rows = rows.len();
        self.cols = from.cols;
        self.precision.clone_from(&from.precision);
        self.has_codes = from.has_codes;
        self.is_mixed = from.is_mixed;
        self.tile_rows = from.tile_rows;
        self.fine.clone_from(&from.fine);
        self.values.clear();
        self.grow();
        for (i, &row) in rows.iter().enumerate() {
            let row = row as usize;
            assert!(row < from.rows, "there is no row {row} to gather");
            self.values.extend_from_slice(from.values(row));
            if !self.has_codes {
                continue;
            }
            let (source, place) = (from.place(row), self.place(i));
            let apart = self.apart().len();
            for channel in 0..apart {
                self.split[place.of(channel, apart)] = from.split[source.of(channel, apart)];
            }
            for (out, all, groups) in [
                (&mut self.groups, &from.groups, self.cols / GROUP),
                (&mut self.rests, &from.rests, self.fine.len()),
            ] {
                for g in 0..groups {
                    out[place.of(g, groups)] = all[source.of(g, groups)];
                }
            }
        }
    }

    /// The values `[rows, cols]` for tasks to write, and what makes codes of them.
    pub(crate) fn parts(&mut self) -> (SharedOut<'_, f32>, Quantizer<'_>) {
        let places = self
            .has_codes
            .then(|| (0..self.rows).map(|row| self.place(row)).collect());
        let apart: &[u32] = match &self.precision {
            Precision::Int8 { apart, .. } if self.is_mixed => apart,
            _ => &[],
        };
        let quantizer = Quantizer {
            places: places.unwrap_or_default(),
            has_codes: self.has_codes,
            apart,
            fine: &self.fine,
            groups: SharedOut::new(&mut self.groups),
            rests: SharedOut::new(&mut self.rests),
            split: SharedOut::new(&mut self.split),
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
    has_codes: bool,
    apart: &'a [u32],
    fine: &'a [u32],
    groups: SharedOut<'a, ActivationGroup>,
    rests: SharedOut<'a, ActivationGroup>,
    split: SharedOut<'a, f32>,
}

impl Quantizer<'_> {
    /// Whether there are codes to make.
    pub(crate) fn has_codes(&self) -> bool {
        self.has_codes
    }

    /// Row `row`, of these values.
    ///
    /// # Safety
    /// Nobody else does this row.
    pub(crate) unsafe fn run(&self, cpu: &Cpu, row: usize, values: &[f32]) {
        if self.has_codes {
            let (place, of) = (self.places[row], self);
            cpu.isa.run(Quantize { values, place, of });
        }
    }
}

/// One row of f32 to int8 groups: 127 is the group's largest magnitude. The row's groups belong to it.
struct Quantize<'a> {
    values: &'a [f32], // [cols]
    place: Place,
    of: &'a Quantizer<'a>,
}

impl Kernel for Quantize<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Quantize { values, place, of } = self;
        for (i, &channel) in of.apart.iter().enumerate() {
            let at = place.of(i, of.apart.len());
            // SAFETY: an element of this row.
            let split = unsafe { of.split.part(at..at + 1) };
            split[0] = values[channel as usize];
        }
        let mut apart = of.apart;
        let mut fine = of.fine.iter().enumerate().peekable();
        let groups = values.len() / GROUP;
        for (g, x) in values.as_chunks::<GROUP>().0.iter().enumerate() {
            let mut x = *x;
            while let [channel, others @ ..] = apart
                && *channel as usize / GROUP == g
            {
                x[*channel as usize % GROUP] = 0.0; // they are multiplied as f32
                apart = others;
            }
            let at = place.of(g, groups);
            // SAFETY: a group of this row.
            let [group] = (unsafe { of.groups.part(at..at + 1) }) else {
                unreachable!("one group")
            };
            quantize_group(s, &x, group);
            if let Some((index, _)) = fine.next_if(|(_, fine)| **fine as usize == g) {
                let at = place.of(index, of.fine.len());
                // SAFETY: as above.
                let [rest] = (unsafe { of.rests.part(at..at + 1) }) else {
                    unreachable!("one group")
                };
                let left = std::array::from_fn(|i| x[i] - f32::from(group.codes[i]) * group.scale);
                quantize_group(s, &left, rest);
                // Weights' offsets are multiplied with the first sums only.
                group.sum += rest.sum;
                group.half_sums[0] += rest.half_sums[0];
                group.half_sums[1] += rest.half_sums[1];
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
    fn tiles_cover_all_rows_and_every_row_knows_its_own() {
        for isa in isas() {
            let cpu = Cpu::with_isa(isa, 1).with_rounding(Rounding::Mixed);
            // Miri takes seconds for each.
            for rows in (1..80).step_by(if cfg!(miri) { 26 } else { 1 }) {
                let mut acts = Activations::default();
                acts.reshape(&cpu, rows, 2 * GROUP);
                let mut places = vec![None; acts.groups.len()];
                let mut end = 0;
                for tile in acts.tiles() {
                    assert_eq!(tile.start, end);
                    end = tile.end;
                    assert!(tile.len() <= isa.tile_rows());
                    for (i, row) in tile.clone().enumerate() {
                        for g in 0..2 {
                            places[2 * tile.start + g * tile.len() + i] = Some((row, g));
                        }
                    }
                }
                assert_eq!(end, rows);
                for row in 0..rows {
                    let place = acts.place(row);
                    for g in 0..2 {
                        assert_eq!(places[place.of(g, 2)], Some((row, g)));
                    }
                }
            }
        }
    }
}
