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
use bytes::{Bytes, BytesMut};
use std::sync::Arc;

/// Rows in a panel: the lanes of the widest vector.
pub(crate) const PANEL_ROWS: usize = 16;
/// Bytes of a line: one byte quad for each row of a panel.
pub(crate) const LINE: usize = 4 * PANEL_ROWS;
/// Groups in a block of 256 columns.
pub(crate) const SUPER_GROUPS: usize = 8;

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
        _ => panic!("no block format has codes of this width"),
    }
}

/// A weight matrix made ready for a [`Cpu`]: its panels, in memory of its own or in a mapped file. A clone shares them.
#[derive(Clone)]
pub struct Matrix {
    ty: BlockType,
    rows: usize,
    cols: usize,
    layout: Option<PanelLayout>, // `None`: a float type
    panel_bytes: usize,          // a multiple of `LINE`
    panels: Bytes,               // [rows / 16, panel_bytes], aligned to `LINE`
    columns: Option<Arc<Columns>>,
}

/// Columns of a quantised matrix as f32, for channels of its activations that are apart.
pub(crate) struct Columns {
    pub(crate) channels: Arc<[u32]>,
    values: Vec<f32>, // [rows / 16, channels, 16]
}

impl Columns {
    /// `[channels, 16]` of a panel.
    pub(crate) fn of_panel(&self, panel: usize) -> &[[f32; PANEL_ROWS]] {
        let count = self.channels.len();
        &self.values.as_chunks().0[panel * count..(panel + 1) * count]
    }
}

impl Cpu {
    /// Writes the panels of a matrix. They are the same on every instruction set.
    ///
    /// - `out`: zeros, [`Matrix::packed_bytes`] of them.
    ///
    /// # Panics
    /// When the type is not [runnable](BlockType::is_runnable) or a size does not fit the shape: the loader refuses such
    /// files.
    pub fn pack(&self, view: MatrixView<'_>, out: &mut [u8]) {
        let MatrixView { ty, rows, cols, .. } = view;
        assert!(
            ty.is_runnable(),
            "there are no kernels for weights of type {}",
            ty.name()
        );
        assert_eq!(
            Some(view.data.len()),
            rows.checked_mul(view.row_bytes()),
            "the data is not as long as a [{rows}, {cols}] matrix of {} takes",
            ty.name()
        );
        assert_eq!(out.len(), Matrix::packed_bytes(ty, rows, cols));
        let (layout, panel_bytes) = panel_layout(ty, cols);
        let out = SharedOut::new(out);
        self.split(rows.div_ceil(PANEL_ROWS), cols * PANEL_ROWS, |range| {
            for panel in range {
                // SAFETY: every panel belongs to one task.
                let out = unsafe { out.part(panel * panel_bytes..(panel + 1) * panel_bytes) };
                match &layout {
                    Some(layout) => pack_panel(view, layout, panel, out),
                    None => pack_float_panel(view, panel, out),
                }
            }
        });
    }

    /// The same matrix for activations with these channels [apart](super::Precision::Int8). It shares the panels.
    ///
    /// # Panics
    /// When there is no such column.
    pub fn with_columns(&self, w: &Matrix, channels: &Arc<[u32]>) -> Matrix {
        let count = channels.len();
        let columns = w.layout.as_ref().filter(|_| count > 0).map(|layout| {
            let mut values = vec![0.0; w.panels() * count * PANEL_ROWS];
            let out = SharedOut::new(&mut values);
            self.split(w.panels(), count * GROUP * PANEL_ROWS, |panels| {
                for panel in panels {
                    for (i, &channel) in channels.iter().enumerate() {
                        let at = (panel * count + i) * PANEL_ROWS;
                        // SAFETY: every panel belongs to one task.
                        let out = unsafe { out.part(at..at + PANEL_ROWS) };
                        let (index, column) = (channel as usize / GROUP, channel as usize % GROUP);
                        for (lane, out) in out.iter_mut().enumerate() {
                            let group = unpack_group(layout, w.panel(panel), lane, index);
                            *out = group.values(layout.coding)[column];
                        }
                    }
                }
            });
            Arc::new(Columns {
                channels: Arc::clone(channels),
                values,
            })
        });
        Matrix {
            columns,
            ..w.clone()
        }
    }

    /// [`pack`](Cpu::pack) into memory of the matrix's own.
    ///
    /// # Panics
    /// As [`pack`](Cpu::pack).
    pub fn prepare(&self, view: MatrixView<'_>) -> Matrix {
        let bytes = Matrix::packed_bytes(view.ty, view.rows, view.cols);
        let mut panels = BytesMut::zeroed(bytes + LINE);
        let lead = panels.as_ptr().align_offset(LINE);
        let mut panels = panels.split_off(lead);
        panels.truncate(bytes);
        self.pack(view, &mut panels);
        Matrix::from_packed(view.ty, view.rows, view.cols, panels.freeze())
    }
}

/// How the panels of a matrix are laid out (`None`: floats), and the bytes of one.
fn panel_layout(ty: BlockType, cols: usize) -> (Option<PanelLayout>, usize) {
    let layout = coding(ty).map(|coding| PanelLayout::new(coding, cols));
    let bytes = layout.map_or(cols * PANEL_ROWS * ty.block_bytes(), |layout| layout.end);
    (layout, bytes.next_multiple_of(LINE))
}

impl Matrix {
    /// Changes whenever [`Cpu::pack`] writes other bytes for the same weights.
    pub const PANELS_VERSION: u32 = 1;
    /// Rows of a panel. Slices of this many rows, or of a multiple, can be packed one after the other.
    pub const PANEL_ROWS: usize = PANEL_ROWS;

    /// Bytes of the panels of a matrix of this type and shape, a multiple of 64.
    pub fn packed_bytes(ty: BlockType, rows: usize, cols: usize) -> usize {
        rows.div_ceil(PANEL_ROWS) * panel_layout(ty, cols).1
    }

    /// A matrix from panels that [`Cpu::pack`] wrote.
    ///
    /// # Panics
    /// When `panels` is not aligned to 64 bytes or of another length than [`packed_bytes`](Matrix::packed_bytes).
    pub fn from_packed(ty: BlockType, rows: usize, cols: usize, panels: Bytes) -> Matrix {
        assert!(panels.as_ptr().addr().is_multiple_of(LINE));
        assert_eq!(panels.len(), Matrix::packed_bytes(ty, rows, cols));
        let (layout, panel_bytes) = panel_layout(ty, cols);
        Matrix {
            ty,
            rows,
            cols,
            layout,
            panel_bytes,
            panels,
            columns: None,
        }
    }

    /// The columns for channels that are apart.
    pub(crate) fn columns(&self) -> Option<&Columns> {
        self.columns.as_deref()
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
        let columns = self.columns().map_or(&[][..], |columns| &columns.values);
        self.panels.len() + size_of_val(columns)
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
        &self.panels[panel * self.panel_bytes..(panel + 1) * self.panel_bytes]
    }

    /// Dequantises one row, to the same f32 as [`dequantize`](crate::quant::dequantize) of the original.
    ///
    /// # Panics
    /// When `row` is out of range or `out` is not `cols` long.
    pub(crate) fn read_row(&self, row: usize, out: &mut [f32]) {
        assert!(
            row < self.rows && out.len() == self.cols,
            "there is no row {row} in the matrix, or the output is not one row long"
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

/// The rows of a panel, by lane; fewer than 16 in the last one.
fn lanes(view: MatrixView<'_>, panel: usize) -> impl Iterator<Item = (usize, &[u8])> {
    let first = panel * PANEL_ROWS;
    (0..PANEL_ROWS.min(view.rows - first)).map(move |lane| (lane, view.row(first + lane)))
}

fn pack_float_panel(view: MatrixView<'_>, panel: usize, out: &mut [u8]) {
    let size = view.ty.block_bytes();
    for (lane, row) in lanes(view, panel) {
        for (value, column) in row
            .chunks_exact(size)
            .zip(out.chunks_exact_mut(PANEL_ROWS * size))
        {
            column[lane * size..(lane + 1) * size].copy_from_slice(value);
        }
    }
}

fn pack_panel(view: MatrixView<'_>, layout: &PanelLayout, panel: usize, out: &mut [u8]) {
    for (lane, row) in lanes(view, panel) {
        for index in 0..view.cols / GROUP {
            let group = GroupCodes::read(view.ty, row, index);
            pack_codes(layout, index, lane, &group.codes, out);
            pack_scales(layout, index, lane, &group, out);
        }
    }
}

/// Puts the codes of a row's group into its (zeroed) lines, four at a time.
fn pack_codes(
    layout: &PanelLayout,
    index: usize,
    lane: usize,
    codes: &[u8; GROUP],
    panel: &mut [u8],
) {
    let lines = &mut panel[index * layout.group_bytes..][..layout.group_bytes];
    for &(width, below) in parts(layout.coding.bits) {
        let mask = byte_mask(width);
        for (quad, codes) in codes.as_chunks::<4>().0.iter().enumerate() {
            let (byte, bit) = place(width, below, lane, quad);
            let line = &mut lines[byte..byte + 4];
            let part = (u32::from_le_bytes(*codes) >> below & mask) << bit;
            for (line, part) in line.iter_mut().zip(part.to_le_bytes()) {
                *line |= part;
            }
        }
    }
}

/// The inverse of [`pack_codes`].
fn unpack_codes(layout: &PanelLayout, index: usize, lane: usize, panel: &[u8]) -> [u8; GROUP] {
    let lines = &panel[index * layout.group_bytes..][..layout.group_bytes];
    let mut codes = [0; GROUP];
    for &(width, below) in parts(layout.coding.bits) {
        let mask = byte_mask(width);
        for (quad, codes) in codes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let (byte, bit) = place(width, below, lane, quad);
            let line = u32_at(&lines[byte..]);
            let part = (line >> bit & mask) << below;
            *codes = (u32::from_le_bytes(*codes) | part).to_le_bytes();
        }
    }
    codes
}

fn u32_at(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// The lowest `width` bits of every byte.
fn byte_mask(width: u32) -> u32 {
    0x0101_0101 * (u32::from(u8::MAX) >> (8 - width))
}

/// Where a part of a quad lies in the lines of its group: the first byte, and the lowest bit in it.
fn place(width: u32, below: u32, lane: usize, quad: usize) -> (usize, usize) {
    let quads_a_line = 8 / width as usize;
    // A part of `n` bits has `n` lines, so as many lines lie before it as bits below it.
    let line = below as usize + quad / quads_a_line;
    (line * LINE + 4 * lane, quad % quads_a_line * width as usize)
}

fn put_half(lane: usize, at: &mut [u8], value: u16) {
    at[2 * lane..2 * lane + 2].copy_from_slice(&value.to_le_bytes());
}

fn half(lane: usize, at: &[u8]) -> u16 {
    u16::from_le_bytes([at[2 * lane], at[2 * lane + 1]])
}

/// Where the scales of a group lie in its panel, and those of its block of 256 columns.
fn scale_ranges(layout: &PanelLayout, index: usize) -> [std::ops::Range<usize>; 2] {
    let group = layout.scales_at + index * layout.scale_bytes;
    let block = layout.supers_at + index / SUPER_GROUPS * layout.super_bytes;
    [
        group..group + layout.scale_bytes,
        block..block + layout.super_bytes,
    ]
}

fn pack_scales(
    layout: &PanelLayout,
    index: usize,
    lane: usize,
    group: &GroupCodes,
    panel: &mut [u8],
) {
    let [scales, block] = scale_ranges(layout, index);
    let block = &mut panel[block];
    if !block.is_empty() {
        put_half(lane, block, group.scale);
    }
    if block.len() > 2 * PANEL_ROWS {
        put_half(lane, &mut block[2 * PANEL_ROWS..], group.min);
    }
    let scales = &mut panel[scales];
    let [first, second] = group.scale_factors.map(|factor| factor as u8);
    match layout.coding.scales {
        Scales::Symmetric | Scales::Power => put_half(lane, scales, group.scale),
        Scales::Affine => {
            put_half(lane, scales, group.scale);
            put_half(lane, &mut scales[2 * PANEL_ROWS..], group.min);
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
}

/// One group of a row, back from its panel.
fn unpack_group(layout: &PanelLayout, panel: &[u8], lane: usize, index: usize) -> GroupCodes {
    let [scales, block] = scale_ranges(layout, index).map(|range| &panel[range]);
    let mut group = GroupCodes {
        codes: unpack_codes(layout, index, lane, panel),
        scale_factors: [1, 1],
        min_factors: [1, 1],
        ..GroupCodes::default()
    };
    if !block.is_empty() {
        group.scale = half(lane, block);
    }
    if block.len() > 2 * PANEL_ROWS {
        group.min = half(lane, &block[2 * PANEL_ROWS..]);
    }
    match layout.coding.scales {
        Scales::Symmetric | Scales::Power => group.scale = half(lane, scales),
        Scales::Affine => {
            group.scale = half(lane, scales);
            group.min = half(lane, &scales[2 * PANEL_ROWS..]);
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
