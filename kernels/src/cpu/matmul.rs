//! Activations times weight matrices.
//!
//! A task owns some panels of 16 weight rows. For each it walks the activation rows in tiles of as many as the registers
//! hold: the codes of a group are unpacked once for a tile and multiplied with every row of it. An output element is one
//! lane of one accumulator, summed over the groups in order, so it is the same in a tile of any size.

use super::activations::{ActivationGroup, Tile, tiles};
use super::isa::Kernel;
use super::matrix::{LINE, PANEL_ROWS, PanelLayout, SUPER_GROUPS, dequantize_panel};
use super::shared::SharedOut;
use super::simd::{SUM_ZERO, Simd};
use super::watch::Op;
use super::{Activation, Activations, Cpu, Matrix, Rounding};
use crate::quant::{BlockType, Scales};
use std::marker::PhantomData;
use std::ops::Range;

/// Weights that one tile of rows goes through before the next does: they stay in the second-level cache, and the tile
/// writes a run of its output rows, where going through every tile for each panel would write one line of each in turn.
const BLOCK_BYTES: usize = 128 * 1024;

/// Rows of a tile at most that leave registers for a whole group's codes.
const KEPT_ROWS: usize = 4;

/// What happens to a finished element.
#[derive(Clone, Copy)]
pub(crate) enum Write<'a> {
    /// `out = y`.
    Store,
    /// `out += y`.
    Add,
    /// `out = act(gate) * y`, where `gate` has the shape of `out`.
    Gate(Activation, &'a SharedOut<'a, f32>),
}

/// Where the elements of a matrix operation go: `[rows, width]`.
#[derive(Clone, Copy)]
pub(crate) struct Sink<'a> {
    pub(crate) out: &'a SharedOut<'a, f32>,
    pub(crate) width: usize,
    pub(crate) write: Write<'a>,
}

impl Cpu {
    /// `out = x · Wᵀ`: `x` `[rows, w.cols]`, `out` `[rows, w.rows]`.
    ///
    /// # Panics
    /// When the shapes do not fit.
    pub fn matmul(&self, w: &Matrix, x: &Activations, out: &mut [f32]) {
        self.multiply([(w, out)], x, Write::Store);
    }

    /// [`matmul`](Cpu::matmul) of the same activations with several matrices of one width, as one operation: small ones
    /// alone would not keep all threads busy.
    ///
    /// # Panics
    /// When the shapes do not fit.
    pub fn matmul_each<const N: usize>(
        &self,
        products: [(&Matrix, &mut [f32]); N],
        x: &Activations,
    ) {
        self.multiply(products, x, Write::Store);
    }

    /// `residual += x · Wᵀ`.
    ///
    /// # Panics
    /// When the shapes do not fit.
    pub fn matmul_add(&self, w: &Matrix, x: &Activations, residual: &mut [f32]) {
        self.multiply([(w, residual)], x, Write::Add);
    }

    fn multiply<const N: usize>(
        &self,
        products: [(&Matrix, &mut [f32]); N],
        x: &Activations,
        write: Write<'_>,
    ) {
        let name = if N == 1 { "matmul" } else { "matmuls" };
        let matrices: [&Matrix; N] = std::array::from_fn(|i| products[i].0);
        let _watched = self.watch(|| Op::product(name, &matrices, x, self.rounding));
        let products = products.map(|(w, out)| {
            assert_eq!(
                out.len(),
                x.rows() * w.rows(),
                "one output row for each activation row"
            );
            (w, SharedOut::new(out))
        });
        let count = products.iter().map(|(w, _)| w.panels()).sum();
        self.split(count, x.cols() * PANEL_ROWS * x.rows(), |panels| {
            let mut first = 0; // of a matrix, where all panels are numbered in order
            for (w, out) in &products {
                let within = |panel: usize| panel.saturating_sub(first).min(w.panels());
                let panels = within(panels.start)..within(panels.end);
                let sink = Sink {
                    out,
                    width: w.rows(),
                    write,
                };
                // SAFETY: every panel belongs to one task, and with it its columns of the output.
                unsafe { self.panels(w, x, panels, sink) };
                first += w.panels();
            }
        });
    }

    /// Computes the output columns of some panels.
    ///
    /// # Safety
    /// Nobody else uses these columns of `sink` (nor of its gate) during the call.
    pub(crate) unsafe fn panels(
        &self,
        w: &Matrix,
        x: &Activations,
        panels: Range<usize>,
        sink: Sink<'_>,
    ) {
        assert!(
            x.cols() == w.cols() && sink.width == w.rows(),
            "activations as wide as the matrix"
        );
        let isa = self.isa;
        if panels.is_empty() {
            return;
        }
        let channels = w.columns().map_or(&[][..], |columns| &columns.channels);
        assert!(
            w.layout().is_none() || x.apart().is_empty() || channels == x.apart(),
            "a matrix with the columns of the channels that are apart"
        );
        let Some(layout) = w.layout() else {
            return match w.block_type() {
                BlockType::F32 => isa.run(FloatPanels::<F32> {
                    w,
                    x,
                    panels,
                    sink,
                    element: PhantomData,
                }),
                BlockType::F16 => isa.run(FloatPanels::<F16> {
                    w,
                    x,
                    panels,
                    sink,
                    element: PhantomData,
                }),
                _ => isa.run(FloatPanels::<Bf16> {
                    w,
                    x,
                    panels,
                    sink,
                    element: PhantomData,
                }),
            };
        };
        if self.rounding == Rounding::Exact {
            let mut scratch = vec![0.0; w.cols() * PANEL_ROWS];
            for panel in panels {
                dequantize_panel(layout, w.panel(panel), &mut scratch);
                isa.run(ExactPanel {
                    weights: &scratch,
                    x,
                    panel,
                    sink,
                });
            }
            return;
        }
        macro_rules! run {
            ($($bits:literal $scales:ident $table:literal),*) => {
                match (layout.coding.bits, layout.coding.scales, layout.coding.table.is_some()) {
                    $(($bits, Scales::$scales, $table) => {
                        isa.run(QuantPanels::<$bits, { Scales::$scales as u8 }, $table> {
                            w,
                            layout,
                            x,
                            panels,
                            sink,
                        })
                    })*
                    (bits, scales, _) => unreachable!("no format has {bits} bits with {scales:?} scales"),
                }
            };
        }
        run!(
            2 Symmetric false, 4 Symmetric false, 5 Symmetric false, 8 Symmetric false,
            4 Affine false, 5 Affine false, 4 SuperAffine false, 5 SuperAffine false,
            2 SuperAffineHalves false, 2 SuperSymmetric false, 3 SuperHalves false, 6 SuperHalves false,
            4 Symmetric true, 4 Power true, 4 SuperSymmetric true, 4 SuperHalves true
        );
    }
}

/// `$body` with the constant `$count` as many as a tile has rows.
macro_rules! of_rows {
    ($rows:expr, |$count:ident| $body:expr) => {{
        macro_rules! tile {
            ($n:literal) => {{
                const $count: usize = $n;
                $body
            }};
        }
        match $rows {
            1 => tile!(1),
            2 => tile!(2),
            3 => tile!(3),
            4 => tile!(4),
            5 if S::TILE_ROWS > 4 => tile!(5),
            6 if S::TILE_ROWS > 4 => tile!(6),
            7 if S::TILE_ROWS > 4 => tile!(7),
            8 if S::TILE_ROWS > 4 => tile!(8),
            10 if S::TILE_ROWS > 8 => tile!(10),
            12 if S::TILE_ROWS > 8 => tile!(12),
            rows => unreachable!("no tile has {rows} rows"),
        }
    }};
}
pub(super) use of_rows;

struct QuantPanels<'a, const BITS: u32, const SCALES: u8, const TABLE: bool> {
    w: &'a Matrix,
    layout: &'a PanelLayout,
    x: &'a Activations,
    panels: Range<usize>,
    sink: Sink<'a>,
}

impl<const BITS: u32, const SCALES: u8, const TABLE: bool> Kernel
    for QuantPanels<'_, BITS, SCALES, TABLE>
{
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let block = (BLOCK_BYTES / self.w.panel(self.panels.start).len().max(1)).max(1);
        for start in self.panels.clone().step_by(block) {
            let panels = start..self.panels.end.min(start + block);
            for tile in self.x.tiles() {
                of_rows!(tile.len(), |N| s.call(
                    QuantTile::<BITS, SCALES, TABLE, N> {
                        of: &self,
                        panels: panels.clone(),
                        tile,
                    }
                ));
            }
        }
    }
}

/// Some panels times a tile of `N` rows.
struct QuantTile<'a, const BITS: u32, const SCALES: u8, const TABLE: bool, const N: usize> {
    of: &'a QuantPanels<'a, BITS, SCALES, TABLE>,
    panels: Range<usize>,
    tile: Range<usize>,
}

impl<const BITS: u32, const SCALES: u8, const TABLE: bool, const N: usize> Kernel
    for QuantTile<'_, BITS, SCALES, TABLE, N>
{
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let QuantPanels {
            w, layout, x, sink, ..
        } = *self.of;
        let columns = w.columns().filter(|_| !x.apart().is_empty());
        let x = x.tile::<N>(&self.tile);
        for panel in self.panels {
            let bytes = w.panel(panel);
            for lane in (0..PANEL_ROWS).step_by(S::LANES) {
                let mut y = quant_tile::<S, BITS, SCALES, TABLE, N>(s, layout, bytes, lane, x);
                if let Some(columns) = columns {
                    add_columns(s, columns.of_panel(panel), lane, x.split, &mut y);
                }
                put(s, sink, self.tile.start, panel * PANEL_ROWS + lane, &y);
            }
        }
    }
}

/// Adds what the channels give that are apart.
#[inline(always)]
fn add_columns<S: Simd, const N: usize>(
    s: S,
    columns: &[[f32; PANEL_ROWS]],
    lane: usize,
    x: &[[f32; N]],
    y: &mut [S::F; N],
) {
    assert!(lane + S::LANES <= PANEL_ROWS, "rows of the panel");
    for (column, x) in columns.iter().zip(x) {
        // SAFETY: `lane + LANES <= 16`, the length of a column.
        let w = unsafe { s.load(column.as_ptr().add(lane)) };
        for (y, &x) in y.iter_mut().zip(x) {
            *y = s.mul_add(w, s.splat(x), *y);
        }
    }
}

/// `LANES` weight rows of a panel, from `lane` on, times `N` activation rows.
#[inline(always)]
fn quant_tile<S: Simd, const BITS: u32, const SCALES: u8, const TABLE: bool, const N: usize>(
    s: S,
    layout: &PanelLayout,
    panel: &[u8],
    lane: usize,
    x: Tile<'_, N>,
) -> [S::F; N] {
    let mut acc = [s.splat(0.0); N];
    let groups = x.groups.len();
    let group_bytes = LINE * BITS as usize; // a line for each bit of the codes
    assert!(
        layout.scales_at == groups * group_bytes && panel.len() >= layout.end,
        "a panel of this layout"
    );
    assert!(lane + S::LANES <= PANEL_ROWS, "rows of the panel");
    // Codes through a table are bytes, whatever the width they are stored in.
    let signed = (BITS == 8 || TABLE) && S::SIGNED_BYTES;
    let levels = layout.coding.table.map_or([0; 16], |table| table.levels);
    let table = s.load_table(&match signed {
        true => levels.map(|level| level.wrapping_add(128 - layout.coding.zero)),
        false => levels,
    });
    let mut fine = x.fine.iter().zip(x.rests).peekable();
    for (g, x) in x.groups.iter().enumerate() {
        // SAFETY: a panel has `groups` groups of codes and scales and, for the K formats, a block for every 8 of them;
        // every access is to the `LANES` rows from `lane` on, and `lane + LANES <= 16`.
        let (scales, mins) =
            unsafe { scales::<S, SCALES, TABLE>(s, layout, panel.as_ptr(), lane, g) };
        // SAFETY: as above.
        let lines = unsafe { panel.as_ptr().add(g * group_bytes + 4 * lane) };
        // The same group of the next panel. A tile of several rows works so long on a group that the processor does not
        // look far enough ahead by itself: without this, 8 rows wait for memory half of the time.
        let next = lines.wrapping_add(layout.end);
        for line in 0..BITS as usize {
            s.prefetch(next.wrapping_add(line * LINE));
        }
        let next_scales = panel.as_ptr().wrapping_add(layout.end + layout.scales_at);
        s.prefetch(next_scales.wrapping_add(g * layout.scale_bytes));
        // Few rows leave registers for what many rows unpack again.
        let kept = match N <= KEPT_ROWS {
            // SAFETY: as above: the lines of group `g`.
            true => Some(unsafe {
                [
                    unpack::<S, BITS, TABLE, 0>(s, table, lines),
                    unpack::<S, BITS, TABLE, 1>(s, table, lines),
                ]
            }),
            false => None,
        };
        let group = (lines, table, kept, scales);
        // SAFETY: as above.
        unsafe { add_group::<S, BITS, SCALES, TABLE, N>(s, group, Some(mins), x, &mut acc) };
        if let Some((_, rest)) = fine.next_if(|(group, _)| **group as usize == g) {
            // SAFETY: as above.
            unsafe { add_group::<S, BITS, SCALES, TABLE, N>(s, group, None, rest, &mut acc) };
        }
    }
    acc
}

/// The lines of a group, the table, the codes if they are unpacked, and the scales of its halves.
type Group<S> = (
    *const u8,
    <S as Simd>::C,
    Option<[[<S as Simd>::C; 4]; 2]>,
    [<S as Simd>::F; 2],
);

/// Adds a group's products with codes of activations, and those of its offsets where there are `mins`.
///
/// # Safety
/// As [`unpack`] of either half.
#[inline(always)]
unsafe fn add_group<
    S: Simd,
    const BITS: u32,
    const SCALES: u8,
    const TABLE: bool,
    const N: usize,
>(
    s: S,
    (lines, table, kept, scales): Group<S>,
    mins: Option<[S::F; 2]>,
    x: &[ActivationGroup; N],
    acc: &mut [S::F; N],
) {
    let halves = SCALES == Scales::SuperHalves as u8 || SCALES == Scales::SuperAffineHalves as u8;
    let mins = match (BITS == 8 || TABLE) && S::SIGNED_BYTES {
        true => None,
        false => mins,
    };
    let mut dots = [s.int_splat(SUM_ZERO); N];
    let codes = match kept {
        Some(kept) => kept[0],
        // SAFETY: the caller's promise.
        None => unsafe { unpack::<S, BITS, TABLE, 0>(s, table, lines) },
    };
    for (dot, x) in dots.iter_mut().zip(x) {
        // SAFETY: the first 16 of a group's 32 codes.
        *dot = unsafe { add_dot::<S, BITS, TABLE>(s, *dot, &codes, x.codes.as_ptr()) };
    }
    if halves {
        let shift = s.sum_shift(scales[0]);
        for ((acc, dot), x) in acc.iter_mut().zip(&mut dots).zip(x) {
            let y = s.scale_sum(*dot, scales[0], shift);
            *acc = s.mul_add(y, s.splat(x.scale), *acc);
            if let Some(mins) = mins {
                *acc = s.mul_add(mins[0], s.splat(x.half_sums[0]), *acc);
            }
            *dot = s.int_splat(SUM_ZERO);
        }
    }
    let codes = match kept {
        Some(kept) => kept[1],
        // SAFETY: the caller's promise.
        None => unsafe { unpack::<S, BITS, TABLE, 1>(s, table, lines) },
    };
    for (dot, x) in dots.iter_mut().zip(x) {
        // SAFETY: the last 16 of a group's 32 codes.
        *dot = unsafe { add_dot::<S, BITS, TABLE>(s, *dot, &codes, x.codes.as_ptr().add(16)) };
    }
    let shift = s.sum_shift(scales[1]);
    for ((acc, &dot), x) in acc.iter_mut().zip(&dots).zip(x) {
        let y = s.scale_sum(dot, scales[1], shift);
        *acc = s.mul_add(y, s.splat(x.scale), *acc);
        if let Some(mins) = mins {
            let sum = if halves { x.half_sums[1] } else { x.sum };
            *acc = s.mul_add(mins[1], s.splat(sum), *acc);
        }
    }
}

/// Adds to every lane the dot product of its 16 codes with the 16 activations at `x`.
///
/// # Safety
/// 16 bytes are readable at `x`.
#[inline(always)]
unsafe fn add_dot<S: Simd, const BITS: u32, const TABLE: bool>(
    s: S,
    acc: S::I,
    codes: &[S::C; 4],
    x: *const i8,
) -> S::I {
    // SAFETY: the caller's promise.
    unsafe {
        if TABLE {
            s.dot4::<8>(acc, codes, x)
        } else {
            s.dot4::<BITS>(acc, codes, x)
        }
    }
}

/// Scales and mins of the two halves of group `g` (the same twice unless the format scales halves).
///
/// # Safety
/// `panel` is laid out by `layout`, has a group `g`, and `lane + LANES <= 16`.
#[inline(always)]
unsafe fn scales<S: Simd, const SCALES: u8, const TABLE: bool>(
    s: S,
    layout: &PanelLayout,
    panel: *const u8,
    lane: usize,
    g: usize,
) -> ([S::F; 2], [S::F; 2]) {
    const SYMMETRIC: u8 = Scales::Symmetric as u8;
    const POWER: u8 = Scales::Power as u8;
    const AFFINE: u8 = Scales::Affine as u8;
    const SUPER_SYMMETRIC: u8 = Scales::SuperSymmetric as u8;
    const SUPER_HALVES: u8 = Scales::SuperHalves as u8;
    const SUPER_AFFINE: u8 = Scales::SuperAffine as u8;
    let zero = s.splat(-f32::from(layout.coding.zero));
    // SAFETY: the caller's promise: `scales_at` and `supers_at` start streams of so many bytes for each group and each
    // block of 8 groups, made of runs of 16 f16 or 16 bytes; even f16 runs keep the pointers aligned to 2.
    unsafe {
        let group = panel.add(layout.scales_at + g * layout.scale_bytes);
        let block = panel.add(layout.supers_at + g / SUPER_GROUPS * layout.super_bytes + 2 * lane);
        let of_block = || {
            let scale = s.load_f16(block.cast());
            match TABLE {
                true => s.mul(scale, s.splat(layout.coding.unit)),
                false => scale,
            }
        };
        let min_of_block = || s.sub(s.splat(0.0), s.load_f16(block.add(2 * PANEL_ROWS).cast()));
        match SCALES {
            SYMMETRIC | POWER => {
                let scale = match SCALES {
                    POWER => s.load_bf16(group.add(2 * lane).cast()),
                    _ => s.load_f16(group.add(2 * lane).cast()),
                };
                ([scale; 2], [s.mul(scale, zero); 2])
            }
            AFFINE => {
                let scale = s.load_f16(group.add(2 * lane).cast());
                let min = s.load_f16(group.add(2 * PANEL_ROWS + 2 * lane).cast());
                ([scale; 2], [min; 2])
            }
            SUPER_SYMMETRIC => {
                let scale = s.mul(of_block(), s.load_i8(group.add(lane)));
                ([scale; 2], [s.mul(scale, zero); 2])
            }
            SUPER_HALVES => {
                let scale = of_block();
                let first = s.mul(scale, s.load_i8(group.add(lane)));
                let second = s.mul(scale, s.load_i8(group.add(PANEL_ROWS + lane)));
                ([first, second], [s.mul(first, zero), s.mul(second, zero)])
            }
            SUPER_AFFINE => {
                let scale = s.mul(of_block(), s.load_u8(group.add(lane)));
                let min = s.mul(min_of_block(), s.load_u8(group.add(PANEL_ROWS + lane)));
                ([scale; 2], [min; 2])
            }
            _ => {
                let (scale, min) = (of_block(), min_of_block());
                let first = nibbles(s, s.load_u8(group.add(lane)));
                let second = nibbles(s, s.load_u8(group.add(PANEL_ROWS + lane)));
                (
                    [s.mul(scale, first[0]), s.mul(scale, second[0])],
                    [s.mul(min, first[1]), s.mul(min, second[1])],
                )
            }
        }
    }
}

/// The low and the high nibbles of integral lanes in 0..256.
#[inline(always)]
fn nibbles<S: Simd>(s: S, bytes: S::F) -> [S::F; 2] {
    // 16 h + l is h + l / 16 - 15 / 32, less than half away from h for every l.
    let high = s.round(s.mul_add(bytes, s.splat(1.0 / 16.0), s.splat(-15.0 / 32.0)));
    [s.mul_add(high, s.splat(-16.0), bytes), high]
}

/// The codes of half a group, looked up where there is a table: four quads, one vector each.
///
/// # Safety
/// `lines` points into the first line of a group of `BITS`-bit codes, with `4 * LANES` bytes of the line after it.
#[inline(always)]
unsafe fn unpack<S: Simd, const BITS: u32, const TABLE: bool, const HALF: usize>(
    s: S,
    table: S::C,
    lines: *const u8,
) -> [S::C; 4] {
    // SAFETY: the caller's promise; a group has `BITS` lines and none below goes past them.
    let line = |i: usize| unsafe { s.load_codes(lines.add(i * LINE)) };
    if BITS == 8 {
        return std::array::from_fn(|i| line(4 * HALF + i));
    }
    let low = if BITS < 4 {
        let pairs = line(HALF);
        [
            pairs,
            s.shift_right::<2>(pairs),
            s.shift_right::<4>(pairs),
            s.shift_right::<6>(pairs),
        ]
        .map(|v| s.and(v, 3))
    } else {
        let (a, b) = (line(2 * HALF), line(2 * HALF + 1));
        [a, s.shift_right::<4>(a), b, s.shift_right::<4>(b)].map(|v| s.and(v, 15))
    };
    let high = match (BITS, HALF) {
        (3, 0) => {
            let bits = line(2);
            [
                s.shift_left::<2>(bits),
                s.shift_left::<1>(bits),
                bits,
                s.shift_right::<1>(bits),
            ]
            .map(|v| s.and(v, 0x04))
        }
        (3, _) => {
            let bits = line(2);
            [
                s.shift_right::<2>(bits),
                s.shift_right::<3>(bits),
                s.shift_right::<4>(bits),
                s.shift_right::<5>(bits),
            ]
            .map(|v| s.and(v, 0x04))
        }
        (5, 0) => {
            let bits = line(4);
            [
                s.shift_left::<4>(bits),
                s.shift_left::<3>(bits),
                s.shift_left::<2>(bits),
                s.shift_left::<1>(bits),
            ]
            .map(|v| s.and(v, 0x10))
        }
        (5, _) => {
            let bits = line(4);
            [
                bits,
                s.shift_right::<1>(bits),
                s.shift_right::<2>(bits),
                s.shift_right::<3>(bits),
            ]
            .map(|v| s.and(v, 0x10))
        }
        (6, _) => {
            let bits = line(4 + HALF);
            [
                s.shift_left::<4>(bits),
                s.shift_left::<2>(bits),
                bits,
                s.shift_right::<2>(bits),
            ]
            .map(|v| s.and(v, 0x30))
        }
        _ if TABLE => return low.map(|codes| s.lookup(table, codes)),
        _ => return low,
    };
    std::array::from_fn(|i| s.or(low[i], high[i]))
}

/// How float weights are stored.
trait Element {
    const BYTES: usize;
    /// # Safety
    /// `LANES` elements are readable at `p`.
    unsafe fn load<S: Simd>(s: S, p: *const u8) -> S::F;
}

struct F32;
struct F16;
struct Bf16;

impl Element for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const u8) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.load(p.cast()) }
    }
}

impl Element for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const u8) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.load_f16(p.cast()) }
    }
}

impl Element for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const u8) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.load_bf16(p.cast()) }
    }
}

struct FloatPanels<'a, E> {
    w: &'a Matrix,
    x: &'a Activations,
    panels: Range<usize>,
    sink: Sink<'a>,
    element: PhantomData<E>,
}

impl<E: Element> Kernel for FloatPanels<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for panel in self.panels {
            float_panel::<S, E>(s, self.w.panel(panel), self.x, panel, self.sink);
        }
    }
}

/// A panel already dequantised to f32 `[cols, 16]`.
struct ExactPanel<'a> {
    weights: &'a [f32],
    x: &'a Activations,
    panel: usize,
    sink: Sink<'a>,
}

impl Kernel for ExactPanel<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: f32 have no padding and their bytes are valid u8.
        let bytes = unsafe {
            std::slice::from_raw_parts(self.weights.as_ptr().cast(), size_of_val(self.weights))
        };
        float_panel::<S, F32>(s, bytes, self.x, self.panel, self.sink);
    }
}

#[inline(always)]
fn float_panel<S: Simd, E: Element>(
    s: S,
    weights: &[u8],
    x: &Activations,
    panel: usize,
    sink: Sink<'_>,
) {
    /// Each row has a pointer of its own.
    const ROWS_MAX: usize = 8;
    for lane in (0..PANEL_ROWS).step_by(S::LANES) {
        for tile in tiles(x.rows(), S::TILE_ROWS.min(ROWS_MAX)) {
            of_rows!(tile.len(), |N| {
                let y = float_tile::<S, E, N>(s, weights, lane, x, tile.start);
                put(s, sink, tile.start, panel * PANEL_ROWS + lane, &y);
            });
        }
    }
}

/// `LANES` weight rows of a `[cols, 16]` panel, from `lane` on, times the activation rows `row..row + N`.
#[inline(always)]
fn float_tile<S: Simd, E: Element, const N: usize>(
    s: S,
    weights: &[u8],
    lane: usize,
    x: &Activations,
    row: usize,
) -> [S::F; N] {
    let x: [&[f32]; N] = std::array::from_fn(|i| x.values(row + i));
    let cols = x[0].len();
    assert!(x.iter().all(|x| x.len() == cols));
    assert!(
        lane + S::LANES <= PANEL_ROWS && weights.len() >= cols * PANEL_ROWS * E::BYTES,
        "a whole panel"
    );
    let mut acc = [s.splat(0.0); N];
    for k in 0..cols {
        let at = (k * PANEL_ROWS + lane) * E::BYTES;
        // SAFETY: row `k` of the panel, the `LANES` elements from `lane` on.
        let w = unsafe { E::load(s, weights.as_ptr().add(at)) };
        for i in 0..N {
            // SAFETY: `k < cols`, the length of every row.
            acc[i] = s.mul_add(w, s.splat(unsafe { *x[i].get_unchecked(k) }), acc[i]);
        }
    }
    acc
}

/// Writes the finished elements of a tile: columns `column..column + LANES`, as far as the output is wide.
#[inline(always)]
fn put<S: Simd, const N: usize>(s: S, sink: Sink<'_>, row: usize, column: usize, y: &[S::F; N]) {
    if column + S::LANES > sink.width || matches!(sink.write, Write::Gate(..)) {
        let mut lanes = [[0f32; PANEL_ROWS]; N];
        for (lanes, &y) in lanes.iter_mut().zip(y) {
            // SAFETY: 16 long, at least `LANES`.
            unsafe { s.store(y, lanes.as_mut_ptr()) };
        }
        return s.call(PutCombined {
            sink,
            row,
            column,
            y: &lanes,
        });
    }
    for (i, &y) in y.iter().enumerate() {
        let start = (row + i) * sink.width + column;
        // SAFETY: the columns belong to this task (`Cpu::panels`).
        let out = unsafe { sink.out.part(start..start + S::LANES) };
        // SAFETY: `LANES` long.
        unsafe {
            let y = match sink.write {
                Write::Add => s.add(s.load(out.as_ptr()), y),
                _ => y,
            };
            s.store(y, out.as_mut_ptr());
        }
    }
}

/// [`put`] of what is not a whole vector, and through a gate: too long to stand in every tile.
struct PutCombined<'a> {
    sink: Sink<'a>,
    row: usize,
    column: usize,
    /// The first `LANES` of each row count.
    y: &'a [[f32; PANEL_ROWS]],
}

impl Kernel for PutCombined<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let sink = self.sink;
        let count = S::LANES.min(sink.width.saturating_sub(self.column));
        if count == 0 {
            return;
        }
        for (i, y) in self.y.iter().enumerate() {
            let start = (self.row + i) * sink.width + self.column;
            // SAFETY: the columns belong to this task (`Cpu::panels`).
            let out = unsafe { sink.out.part(start..start + count) };
            let gate: &[f32] = match sink.write {
                // SAFETY: as above.
                Write::Gate(_, gate) => unsafe { gate.part(start..start + count) },
                _ => &[],
            };
            if count == S::LANES {
                // SAFETY: all are `LANES` long; a gate is read only where there is one.
                unsafe {
                    let y = combine(s, sink.write, y.as_ptr(), out.as_ptr(), gate.as_ptr());
                    s.store(y, out.as_mut_ptr());
                }
                continue;
            }
            let (mut lanes, mut gates) = ([0f32; PANEL_ROWS], [0f32; PANEL_ROWS]);
            lanes[..count].copy_from_slice(out);
            gates[..gate.len()].copy_from_slice(gate);
            // SAFETY: all buffers are 16 long, at least `LANES`.
            unsafe {
                let y = combine(s, sink.write, y.as_ptr(), lanes.as_ptr(), gates.as_ptr());
                s.store(y, lanes.as_mut_ptr());
            }
            out.copy_from_slice(&lanes[..count]);
        }
    }
}

/// The value to store for a finished vector.
///
/// # Safety
/// `LANES` f32 are readable at `y`, at `out`, and at `gate` where the write has one.
#[inline(always)]
unsafe fn combine<S: Simd>(
    s: S,
    write: Write<'_>,
    y: *const f32,
    out: *const f32,
    gate: *const f32,
) -> S::F {
    // SAFETY: the caller's promise.
    unsafe {
        let y = s.load(y);
        match write {
            Write::Store => y,
            Write::Add => s.add(s.load(out), y),
            Write::Gate(act, _) => s.mul(super::gated_act::activate(s, act, s.load(gate)), y),
        }
    }
}
