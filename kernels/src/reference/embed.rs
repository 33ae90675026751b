//! Token embedding.

use crate::quant::{MatrixView, dequantize};

/// Row `ids[i]` of `table`, times `scale`, to row `i` of `out` `[ids, table.cols]`.
///
/// # Panics
/// When an id is not below `table.rows` or `out` has another length.
pub fn embed(table: MatrixView<'_>, ids: &[u32], scale: f32, out: &mut [f32]) {
    assert_eq!(
        out.len(),
        ids.len() * table.cols,
        "there must be one output row for each id"
    );
    for (&id, out) in ids.iter().zip(out.chunks_exact_mut(table.cols)) {
        dequantize(table.ty, table.row(id as usize), out);
        for v in out {
            *v *= scale;
        }
    }
}
