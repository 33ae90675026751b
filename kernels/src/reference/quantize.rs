//! Activations to int8.

/// Elements that share a scale.
const GROUP: usize = 32;

/// Rounds groups of 32 to int8 with one scale each: `x ≈ code * scale`, `scale = max|x| / 127`.
///
/// Returns the codes and the scales.
///
/// # Panics
/// When `x` is not whole groups.
pub fn quantize(x: &[f32]) -> (Vec<i8>, Vec<f32>) {
    assert!(
        x.len().is_multiple_of(GROUP),
        "the input must be a whole number of groups"
    );
    let mut codes = Vec::with_capacity(x.len());
    let mut scales = Vec::with_capacity(x.len() / GROUP);
    for group in x.chunks_exact(GROUP) {
        let max = group.iter().fold(0f32, |max, v| max.max(v.abs()));
        let inverse = if max > 0.0 { 127.0 / max } else { 0.0 };
        codes.extend(group.iter().map(|v| (v * inverse).round_ties_even() as i8));
        scales.push(max / 127.0);
    }
    (codes, scales)
}
