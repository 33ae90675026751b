//! Weight matrices repacked for the kernels: panels of 16 rows, interleaved so that one vector holds a column of them.
//!
//! A quantised panel keeps its codes as narrow as the file does and its scales as exact. It is three streams:
//! - codes, for each group of 32 columns: 64-byte lines in which byte `4 * row + j` is about column `4 * quad + j`.
//!   A code is cut into parts of 8, 4, 2 and 1 bits, the lowest part first ([`parts`]); a part of `n` bits has `n` lines,
//!   each of which holds `8 / n` quads, the first in the lowest bits.
//! - scales, for each group: 16 f16 scales (and 16 f16 mins), or 16 bytes of integer factors for each thing scaled;
//! - for the formats with blocks of 256 columns, for each of them: 16 f16 scales (and 16 f16 mins).
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
        let (scale_bytes, super_bytes) = stream_bytes(coding.scales);
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

/// Bytes of scales for each group and for each block of 256 columns.
#[inline(always)]
pub(crate) const fn stream_bytes(scales: Scales) -> (usize, usize) {
    let (of_group, of_block) = match scales {
        Scales::Symmetric | Scales::Power => (2, 0),
        Scales::Affine => (4, 0),
        Scales::SuperSymmetric => (1, 2),
        Scales::SuperHalves => (2, 2),
        Scales::SuperAffine | Scales::SuperAffineHalves => (2, 4),
    };
    (of_group * PANEL_ROWS, of_block * PANEL_ROWS)
}

/// The parts that codes of `bits` bits are cut into: bits of a part and how many lie below it.
pub(crate) const fn parts(bits: u32) -> &'static [(u32, u32)] {
    match bits {
        2 => &[(2, 0)],
        3 => &[(2, 0), (1, 2)],
        4 => &[(4, 0)],
        5 => &[(4, 0), (1, 4)],
        6 => &[(4, 0), (2, 4)],
        8 => &[(8, 0)],
        _ => panic!("no format has codes of this width"),
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
        let block = &mut supers[index / SUPER_GROUPS * layout.super_bytes..][..layout.super_bytes];
        let [first, second] = group.scale_factors.map(|factor| factor as u8);
        match layout.coding.scales {
            Scales::Symmetric | Scales::Power => halves(scales, group.scale),
            Scales::Affine => {
                halves(scales, group.scale);
                halves(&mut scales[2 * PANEL_ROWS..], group.min);
            }
            Scales::SuperSymmetric => scales[lane] = first,
            Scales::SuperHalves => {
                scales[lane] = first;
                scales[PANEL_ROWS + lane] = second;
            }
            Scales::SuperAffine => {
                scales[lane] = first;
                scales[PANEL_ROWS + lane] = group.min_factors[0];
            }
            Scales::SuperAffineHalves => {
                let [first_min, second_min] = group.min_factors;
                scales[lane] = first | first_min << 4;
                scales[PANEL_ROWS + lane] = second | second_min << 4;
            }
        }
        if !block.is_empty() {
            halves(block, group.scale);
        }
        if block.len() > 2 * PANEL_ROWS {
            halves(&mut block[2 * PANEL_ROWS..], group.min);
        }
    }
}

/// Where a part of a code lies in the lines of its group: the byte, and the lowest bit in it.
fn place(width: u32, lines_before: usize, lane: usize, element: usize) -> (usize, usize) {
    let (quad, quads_a_line) = (element / 4, 8 / width as usize);
    let line = lines_before + quad / quads_a_line;
    let at = 4 * lane + element % 4;
    (line * LINE + at, quad % quads_a_line * width as usize)
}

/// Puts a code into the (zeroed) lines of its group.
fn put_code(lines: &mut [u8], bits: u32, lane: usize, element: usize, code: u8) {
    // A part of `n` bits has `n` lines, so as many lines lie before it as bits below it.
    for &(width, below) in parts(bits) {
        let (byte, bit) = place(width, below as usize, lane, element);
        let mask = u8::MAX >> (8 - width);
        lines[byte] |= (code >> below & mask) << bit;
    }
}

/// The inverse of [`put_code`].
fn take_code(lines: &[u8], bits: u32, lane: usize, element: usize) -> u8 {
    parts(bits).iter().fold(0, |code, &(width, below)| {
        let (byte, bit) = place(width, below as usize, lane, element);
        let mask = u8::MAX >> (8 - width);
        code | (lines[byte] >> bit & mask) << below
    })
}

/// The inverse of one group of [`pack_row`].
fn unpack_group(layout: &PanelLayout, panel: &[u8], lane: usize, index: usize) -> GroupCodes {
    let lines = &panel[index * layout.group_bytes..][..layout.group_bytes];
    let scales = &panel[layout.scales_at + index * layout.scale_bytes..][..layout.scale_bytes];
    let block = &panel[layout.supers_at + index / SUPER_GROUPS * layout.super_bytes..]
        [..layout.super_bytes];
    let half = |at: &[u8]| u16::from_le_bytes([at[2 * lane], at[2 * lane + 1]]);
    let mut group = GroupCodes {
        scale_factors: [1, 1],
        min_factors: [1, 1],
        ..GroupCodes::default()
    };
    for (element, code) in group.codes.iter_mut().enumerate() {
        *code = take_code(lines, layout.coding.bits, lane, element);
    }
    match layout.coding.scales {
        Scales::Symmetric | Scales::Power => group.scale = half(scales),
        Scales::Affine => {
            group.scale = half(scales);
            group.min = half(&scales[2 * PANEL_ROWS..]);
        }
        Scales::SuperSymmetric => group.scale_factors = [scales[lane] as i8; 2],
        Scales::SuperHalves => {
            group.scale_factors = [scales[lane] as i8, scales[PANEL_ROWS + lane] as i8];
        }
        Scales::SuperAffine => {
            group.scale_factors = [scales[lane] as i8; 2];
            group.min_factors = [scales[PANEL_ROWS + lane]; 2];
        }
        Scales::SuperAffineHalves => {
            let factors = [scales[lane], scales[PANEL_ROWS + lane]];
            group.scale_factors = factors.map(|factor| (factor & 15) as i8);
            group.min_factors = factors.map(|factor| factor >> 4);
        }
    }
    if !block.is_empty() {
        group.scale = half(block);
    }
    if block.len() > 2 * PANEL_ROWS {
        group.min = half(&block[2 * PANEL_ROWS..]);
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
