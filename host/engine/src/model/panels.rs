//! Repacked weights: mapped from the file an earlier start left, or made of the model file, piece by piece, so that
//! the weights are in memory once at every moment.

use std::path::Path;

use realm_kernels::{Cpu, Matrix, MatrixView};
use realm_weights::{Arena, ModelSource, Packed, PackedError, PackedFile, PackedWriter};

use super::LoadError;
use super::loader::Weights;

/// Bytes of a model file that are repacked before they are let go.
const SLICE_BYTES: usize = 16 << 20;

/// Where the matrices of a model come from.
pub(crate) struct Panels<'s> {
    source: &'s dyn ModelSource,
    cpu: &'s Cpu,
    arena: Arena,
    packed: Option<Packed>,
    writer: Option<PackedWriter>,
}

impl<'s> Panels<'s> {
    /// Takes the file of repacked weights in this folder if it is good, and begins a new one if not.
    pub(crate) fn new(
        source: &'s dyn ModelSource,
        cpu: &'s Cpu,
        packed_dir: Option<&Path>,
    ) -> Panels<'s> {
        let mut panels = Panels {
            source,
            cpu,
            arena: Arena::default(),
            packed: None,
            writer: None,
        };
        if let Some(place) = packed_dir.and_then(|folder| PackedFile::of(source, folder)) {
            panels.packed = Packed::open(&place, cpu.threads()).unwrap_or_else(|error| {
                warn(&error, "the weights are repacked");
                None
            });
            if panels.packed.is_none() {
                panels.writer = PackedWriter::create(&place)
                    .inspect_err(|error| warn(error, "the next start repacks again"))
                    .ok();
            }
        }
        panels
    }

    fn keep(&mut self, name: &str, view: MatrixView<'_>, panels: &[u8]) {
        let Some(writer) = &mut self.writer else {
            return;
        };
        if let Err(error) = writer.add(name, view.ty, view.rows, view.cols, panels) {
            warn(&error, "the next start repacks again");
            self.writer = None;
        }
    }
}

impl<'s> Weights<'s, Cpu> for Panels<'s> {
    fn matrix(&mut self, name: &str, view: MatrixView<'s>) -> Result<Matrix, LoadError> {
        let MatrixView { ty, rows, cols, .. } = view;
        let packed = self.packed.as_ref();
        if let Some(panels) = packed.and_then(|packed| packed.panels(name, ty, rows, cols)) {
            return Ok(Matrix::from_packed(ty, rows, cols, panels));
        }
        let bytes = Matrix::packed_bytes(ty, rows, cols);
        let mut panels = self
            .arena
            .take(bytes)
            .map_err(|source| LoadError::OutOfMemory {
                what: "the weights",
                bytes: bytes as u64,
                source,
            })?;
        let slice_rows =
            (SLICE_BYTES / view.row_bytes() / Matrix::PANEL_ROWS + 1) * Matrix::PANEL_ROWS;
        let panels_bytes = Matrix::packed_bytes(ty, slice_rows, cols);
        for (index, panels) in panels.chunks_mut(panels_bytes).enumerate() {
            let first = index * slice_rows;
            let slice = view.rows(first..rows.min(first + slice_rows));
            self.cpu.pack(slice, panels);
            self.source.release(slice.data);
        }
        self.keep(name, view, &panels);
        Ok(Matrix::from_packed(ty, rows, cols, panels.freeze()))
    }

    /// Puts the file of repacked weights in its place, if one was begun.
    fn finish(self: Box<Self>) {
        if let Some(Err(error)) = self.writer.map(PackedWriter::finish) {
            warn(&error, "the next start repacks again");
        }
    }
}

fn warn(error: &PackedError, so: &str) {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    tracing::warn!("{error}{}; {so}", cause.unwrap_or_default());
}
