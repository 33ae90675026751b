//! Weight matrices repacked for the kernels: panels of 16 rows, interleaved so that one vector holds a column of them.
//!
//! A quantised panel keeps its codes as narrow as the file does and its scales as exact. It is three streams:
//! - codes, for each group of 32 columns: 64-byte lines in which byte `4 * row + j` is about column `4 * quad + j`.
//!   Line `l` holds the low 4 bits of quad `2l` in its low nibbles and of quad `2l + 1` in its high ones; a line of fifth
//!   bits has quad `q` at bit `q`; the two lines of fifth-and-sixth bits have quad `4h + q` of half `h` at bit `2q`.
//!   8-bit codes have a line for each quad.
//! - scales, for each group: 16 f16 scales (and 16 f16 mins), or 16 + 16 bytes of integer factors;
//! - for the K formats, for each 256 columns: 16 f16 scales (and 16 f16 mins).
//!
//! A float panel is `[cols, 16]` in the file's type.

use super::Cpu;
use super::shared::SharedOut;
use crate::quant::{BlockType, Coding, GROUP, GroupCodes, MatrixView, Scales, coding};
use std::marker::PhantomData;

/// Rows in a panel: the lanes of the widest vector.
pub(crate) const PANEL_ROWS: usize = 16;
/// Bytes of a line: one byte quad for each row of a panel.
pub(crate) const LINE: usize = 4 * PANEL_ROWS;
/// Groups in a block of the K formats.
pub(crate) const SUPER_GROUPS: usize = 8;

#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([u8; LINE]);

/// Sizes and places of the streams of a quantised panel, in bytes.
#[derive(Clone, Copy)]
pub(crate) struct PanelLayout {
    pub(crate) coding: Coding,
    pub(crate) group_bytes: usize,
    pub(crate) scale_bytes: usize,
    pub(crate) super_bytes: usize,
    pub(crate) scales_at: usize,
    pub(crate) supers_at: usize,
    pub(crate) end: usize,
}

impl PanelLayout {
    fn new(coding: Coding, cols: usize) -> PanelLayout {
        let group_bytes = LINE * coding.bits as usize * GROUP / 4 / 8;
        let (scale_bytes, super_bytes) = match coding.scales {
            Scales::Symmetric => (2 * PANEL_ROWS, 0),
            Scales::Affine => (4 * PANEL_ROWS, 0),
            Scales::SuperAffine => (2 * PANEL_ROWS, 4 * PANEL_ROWS),
            Scales::SuperHalves => (2 * PANEL_ROWS, 2 * PANEL_ROWS),
        };
        let groups = cols / GROUP;
        let scales_at = groups * group_bytes;
        let supers_at = scales_at + groups * scale_bytes;
        let end = supers_at + groups.div_ceil(SUPER_GROUPS) * super_bytes;
        PanelLayout {
            coding,
            group_bytes,
            scale_bytes,
            super_bytes,
            scales_at,
            supers_at,
            end,
        }
    }
}

/// A weight matrix made ready for a [`Cpu`]; it owns a repacked copy, so the file's pages can leave memory.
pub struct Matrix<'w> {
    ty: BlockType,
    rows: usize,
    cols: usize,
    layout: Option<PanelLayout>, // `None`: a float type
    panel_bytes: usize,          // a multiple of `LINE`
    data: Vec<Line>,             // [rows / 16, panel_bytes]
    weights: PhantomData<&'w [u8]>,
}

impl Cpu {
    /// Repacks a matrix for this CPU's kernels.
    ///
    /// # Panics
    /// When the type is not [runnable](BlockType::is_runnable) or `data` does not have the size of the shape: the loader
    /// refuses such files.
    pub fn prepare<'w>(&self, view: MatrixView<'w>) -> Matrix<'w> {
        let MatrixView {
            ty,
            rows,
            cols,
            data,
        } = view;
        assert!(ty.is_runnable(), "{} cannot be computed with", ty.name());
        let row_bytes = view.row_bytes();
        assert_eq!(
            Some(data.len()),
            rows.checked_mul(row_bytes),
            "the bytes of [{rows}, {cols}] {}",
            ty.name()
        );
        let layout = coding(ty).map(|coding| PanelLayout::new(coding, cols));
        let bytes = layout.map_or(cols * PANEL_ROWS * ty.block_bytes(), |layout| layout.end);
        let panel_bytes = bytes.next_multiple_of(LINE);
        let panels = rows.div_ceil(PANEL_ROWS);
        let data = vec![Line([0; LINE]); panels * panel_bytes / LINE];
        let mut matrix = Matrix {
            ty,
            rows,
            cols,
            layout,
            panel_bytes,
            data,
            weights: PhantomData,
        };
        let out = SharedOut::new(bytes_mut(&mut matrix.data));
        self.split(panels, cols * PANEL_ROWS, |range| {
            for panel in range {
                // SAFETY: every panel belongs to one task.
                let out = unsafe { out.part(panel * panel_bytes..(panel + 1) * panel_bytes) };
                for lane in 0..PANEL_ROWS.min(rows - panel * PANEL_ROWS) {
                    let row = view.row(panel * PANEL_ROWS + lane);
                    match &layout {
                        Some(layout) => pack_row(ty, layout, row, lane, out),
                        None => pack_float_row(ty.block_bytes(), row, lane, out),
                    }
                }
            }
        });
        matrix
    }
}

impl Matrix<'_> {
    /// The matrix without a tie to the file it came from: the copy is its own already.
    pub fn into_owned(self) -> Matrix<'static> {
        let Matrix {
            ty,
            rows,
            cols,
            layout,
            panel_bytes,
            data,
            weights: _,
        } = self;
        Matrix {
            ty,
            rows,
            cols,
            layout,
            panel_bytes,
            data,
            weights: PhantomData,
        }
    }

    /// Output width.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input width.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The type the weights were stored in.
    pub fn block_type(&self) -> BlockType {
        self.ty
    }

    /// Bytes of memory held.
    pub fn bytes(&self) -> usize {
        self.data.len() * LINE
    }

    pub(crate) fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL_ROWS)
    }

    /// The layout of the panels of a quantised matrix; `None` for float weights.
    pub(crate) fn layout(&self) -> Option<&PanelLayout> {
        self.layout.as_ref()
    }

    /// The bytes of one panel, aligned to 64.
    pub(crate) fn panel(&self, panel: usize) -> &[u8] {
        &bytes(&self.data)[panel * self.panel_bytes..(panel + 1) * self.panel_bytes]
    }

    /// Dequantises one row, to the same f32 as [`dequantize`](crate::quant::dequantize) of the original.
    ///
    /// # Panics
    /// When `row` is out of range or `out` is not `cols` long.
    pub(crate) fn read_row(&self, row: usize, out: &mut [f32]) {
        assert!(
            row < self.rows && out.len() == self.cols,
            "a row of the matrix"
        );
        let (panel, lane) = (self.panel(row / PANEL_ROWS), row % PANEL_ROWS);
        match &self.layout {
            Some(layout) => {
                for (index, out) in out.chunks_exact_mut(GROUP).enumerate() {
                    out.copy_from_slice(
                        &unpack_group(layout, panel, lane, index).values(layout.coding),
                    );
                }
            }
            None => {
                let size = self.ty.block_bytes();
                for (column, out) in panel
                    .chunks_exact(PANEL_ROWS * size)
                    .zip(out.chunks_exact_mut(1))
                {
                    crate::quant::dequantize(self.ty, &column[lane * size..(lane + 1) * size], out);
                }
            }
        }
    }
}

fn bytes(lines: &[Line]) -> &[u8] {
    // SAFETY: a `Line` is 64 bytes without padding, and any bytes are valid u8.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), size_of_val(lines)) }
}

fn bytes_mut(lines: &mut [Line]) -> &mut [u8] {
    // SAFETY: as `bytes`; any bytes are a valid `Line`, and the borrow is exclusive.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), size_of_val(lines)) }
}

fn pack_float_row(size: usize, row: &[u8], lane: usize, panel: &mut [u8]) {
    for (value, column) in row
        .chunks_exact(size)
        .zip(panel.chunks_exact_mut(PANEL_ROWS * size))
    {
        column[lane * size..(lane + 1) * size].copy_from_slice(value);
    }
}

fn pack_row(ty: BlockType, layout: &PanelLayout, row: &[u8], lane: usize, panel: &mut [u8]) {
    let (codes, rest) = panel.split_at_mut(layout.scales_at);
    let (scales, supers) = rest.split_at_mut(layout.supers_at - layout.scales_at);
    for (index, (codes, scales)) in codes
        .chunks_exact_mut(layout.group_bytes)
        .zip(scales.chunks_exact_mut(layout.scale_bytes))
        .enumerate()
    {
        let group = GroupCodes::read(ty, row, index);
        for (element, &code) in group.codes.iter().enumerate() {
            put_code(codes, layout.coding.bits, lane, element, code);
        }
        let halves = |at: &mut [u8], value: u16| {
            at[2 * lane..2 * lane + 2].copy_from_slice(&value.to_le_bytes())
        };
        match layout.coding.scales {
            Scales::Symmetric => halves(scales, group.scale),
            Scales::Affine => {
                halves(scales, group.scale);
                halves(&mut scales[2 * PANEL_ROWS..], group.min);
            }
            Scales::SuperAffine | Scales::SuperHalves => {
                let second = match layout.coding.scales {
                    Scales::SuperAffine => group.min_factor,
                    _ => group.scale_factors[1] as u8,
                };
                scales[lane] = group.scale_factors[0] as u8;
                scales[PANEL_ROWS + lane] = second;
                let block =
                    &mut supers[index / SUPER_GROUPS * layout.super_bytes..][..layout.super_bytes];
                halves(block, group.scale);
                if layout.coding.scales == Scales::SuperAffine {
                    halves(&mut block[2 * PANEL_ROWS..], group.min);
                }
            }
        }
    }
}

/// Puts a code into the (zeroed) lines of its group.
fn put_code(lines: &mut [u8], bits: u32, lane: usize, element: usize, code: u8) {
    let (quad, at) = (element / 4, 4 * lane + element % 4);
    if bits == 8 {
        lines[quad * LINE + at] = code;
        return;
    }
    lines[quad / 2 * LINE + at] |= (code & 15) << (quad % 2 * 4);
    match bits {
        5 => lines[4 * LINE + at] |= (code >> 4) << quad,
        6 => lines[(4 + quad / 4) * LINE + at] |= (code >> 4) << (quad % 4 * 2),
        _ => (),
    }
}

/// The inverse of [`put_code`].
fn take_code(lines: &[u8], bits: u32, lane: usize, element: usize) -> u8 {
    let (quad, at) = (element / 4, 4 * lane + element % 4);
    if bits == 8 {
        return lines[quad * LINE + at];
    }
    let low = lines[quad / 2 * LINE + at] >> (quad % 2 * 4) & 15;
    let high = match bits {
        5 => lines[4 * LINE + at] >> quad & 1,
        6 => lines[(4 + quad / 4) * LINE + at] >> (quad % 4 * 2) & 3,
        _ => 0,
    };
    low | high << 4
}

/// The inverse of one group of [`pack_row`].
fn unpack_group(layout: &PanelLayout, panel: &[u8], lane: usize, index: usize) -> GroupCodes {
    let lines = &panel[index * layout.group_bytes..][..layout.group_bytes];
    let scales = &panel[layout.scales_at + index * layout.scale_bytes..][..layout.scale_bytes];
    let half = |at: &[u8]| u16::from_le_bytes([at[2 * lane], at[2 * lane + 1]]);
    let mut group = GroupCodes {
        scale_factors: [1, 1],
        min_factor: 1,
        ..GroupCodes::default()
    };
    for (element, code) in group.codes.iter_mut().enumerate() {
        *code = take_code(lines, layout.coding.bits, lane, element);
    }
    let block = || {
        &panel[layout.supers_at + index / SUPER_GROUPS * layout.super_bytes..][..layout.super_bytes]
    };
    match layout.coding.scales {
        Scales::Symmetric => group.scale = half(scales),
        Scales::Affine => {
            group.scale = half(scales);
            group.min = half(&scales[2 * PANEL_ROWS..]);
        }
        Scales::SuperAffine => {
            group.scale_factors = [scales[lane] as i8; 2];
            group.min_factor = scales[PANEL_ROWS + lane];
            group.scale = half(block());
            group.min = half(&block()[2 * PANEL_ROWS..]);
        }
        Scales::SuperHalves => {
            group.scale_factors = [scales[lane] as i8, scales[PANEL_ROWS + lane] as i8];
            group.scale = half(block());
        }
    }
    group
}

/// Dequantises a panel to f32 `[cols, 16]`.
pub(crate) fn dequantize_panel(layout: &PanelLayout, panel: &[u8], out: &mut [f32]) {
    for (index, out) in out.chunks_exact_mut(GROUP * PANEL_ROWS).enumerate() {
        for lane in 0..PANEL_ROWS {
            let values = unpack_group(layout, panel, lane, index).values(layout.coding);
            for (column, value) in out.chunks_exact_mut(PANEL_ROWS).zip(values) {
                column[lane] = value;
            }
        }
    }
}
