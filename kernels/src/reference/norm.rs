//! Normalisation of rows.

/// Scales every row to unit root-mean-square: `y = x / sqrt(mean(x²) + eps) * weight`.
///
/// `x`, `y`: `[rows, hidden]`; `weight`: `[hidden]`. Source: arXiv:1910.07467.
///
/// # Panics
/// When `x` and `y` differ in length.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    assert_eq!(
        x.len(),
        y.len(),
        "input and output must have the same length"
    );
    for (x, y) in x
        .chunks_exact(weight.len())
        .zip(y.chunks_exact_mut(weight.len()))
    {
        let mean = x.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + f64::from(eps)).sqrt();
        for ((y, &x), &w) in y.iter_mut().zip(x).zip(weight) {
            *y = (f64::from(x) * scale * f64::from(w)) as f32;
        }
    }
}

/// Scales every row to mean 0 and variance 1: `y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias`.
///
/// `x`, `y`: `[rows, hidden]`; `weight`, `bias`: `[hidden]`. Source: arXiv:1607.06450.
///
/// # Panics
/// When `x` and `y`, or `weight` and `bias`, differ in length.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) {
    assert!(x.len() == y.len() && weight.len() == bias.len());
    let width = weight.len();
    for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
        let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / width as f64;
        let squares = x.iter().map(|&v| (f64::from(v) - mean).powi(2));
        let variance = squares.sum::<f64>() / width as f64;
        let scale = 1.0 / (variance + f64::from(eps)).sqrt();
        for (i, y) in y.iter_mut().enumerate() {
            let normed = (f64::from(x[i]) - mean) * scale;
            *y = (normed * f64::from(weight[i]) + f64::from(bias[i])) as f32;
        }
    }
}
