//! Rotary position embedding.

use crate::shapes::Rope;

/// Rotates every head of every row by its row's position, in place; `x`: `[rows, heads, head_dim]`.
///
/// Source: arXiv:2104.09864. The angles are computed here in f64, not read from the tables.
///
/// # Panics
/// When `x` is not `positions.len()` rows.
pub fn rope(x: &mut [f32], heads: usize, rope: &Rope, positions: &[u32]) {
    assert_eq!(
        x.len(),
        positions.len() * heads * rope.head_dim,
        "there must be one position for each row"
    );
    for (row, &position) in x.chunks_exact_mut(heads * rope.head_dim).zip(positions) {
        for head in row.chunks_exact_mut(rope.head_dim) {
            for (pair, frequency) in rope.frequencies.iter().enumerate() {
                let (sin, cos) = (f64::from(position) * frequency).sin_cos();
                let (i, j) = rope.elements(pair);
                let magnitude = f64::from(rope.magnitude);
                let (a, b) = (
                    f64::from(head[i]) * magnitude,
                    f64::from(head[j]) * magnitude,
                );
                head[i] = (a * cos - b * sin) as f32;
                head[j] = (a * sin + b * cos) as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes::RopeLayout;

    #[test]
    fn a_quarter_turn_by_hand() {
        // One pair with frequency 1: position 1 turns by one radian.
        for layout in [RopeLayout::Adjacent, RopeLayout::HalfSplit] {
            let table = Rope::new(4, 2, 10_000.0, 1.0, layout, None);
            let mut x = [1.0, 0.0, 5.0, 6.0];
            rope(&mut x, 1, &table, &[1]);
            assert_eq!(x, [1f32.cos(), 1f32.sin(), 5.0, 6.0]);
        }
    }

    #[test]
    fn layouts_and_factors_by_hand() {
        let factors = [1.0, 4.0];
        let adjacent = Rope::new(4, 4, 100.0, 0.5, RopeLayout::Adjacent, Some(&factors));
        let mut x = [1.0, 0.0, 1.0, 0.0];
        rope(&mut x, 1, &adjacent, &[2]);
        // Pair 0 turns by 2 * 0.5, pair 1 by 2 * 0.5 * 100^(-1/2) / 4.
        assert_eq!(x, [1f32.cos(), 1f32.sin(), 0.025f32.cos(), 0.025f32.sin()]);
        let split = Rope::new(4, 4, 100.0, 0.5, RopeLayout::HalfSplit, Some(&factors));
        let mut x = [1.0, 1.0, 0.0, 0.0];
        rope(&mut x, 1, &split, &[2]);
        assert_eq!(x, [1f32.cos(), 0.025f32.cos(), 1f32.sin(), 0.025f32.sin()]);
    }
}
