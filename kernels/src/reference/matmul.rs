//! Matrix times activations on dequantised weights.

use crate::quant::{MatrixView, dequantize};

/// `out[r][o] = Σ_c x[r][c] * W[o][c]`, with `x` `[rows, w.cols]` and `out` `[rows, w.rows]`.
///
/// # Panics
/// When the lengths do not fit the shape or the weights' type is not runnable.
pub fn matmul(w: MatrixView<'_>, x: &[f32], out: &mut [f32]) {
    assert_eq!(
        x.len() / w.cols,
        out.len() / w.rows,
        "there must be as many output rows as input rows"
    );
    let mut weights = vec![0.0; w.cols];
    for o in 0..w.rows {
        dequantize(w.ty, w.row(o), &mut weights);
        for (x, out) in x.chunks_exact(w.cols).zip(out.chunks_exact_mut(w.rows)) {
            let sum: f64 = x
                .iter()
                .zip(&weights)
                .map(|(&x, &w)| f64::from(x) * f64::from(w))
                .sum();
            out[o] = sum as f32;
        }
    }
}
