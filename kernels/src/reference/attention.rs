//! Scaled dot-product attention over paged keys and values.

use super::{softcap, softmax};
use crate::shapes::{AttentionRow, AttentionShape, BLOCK_TOKENS};

/// Keys and values of one layer in f32: each `[blocks, BLOCK_TOKENS, kv_heads, head_dim]`.
pub struct PagedKv<'a> {
    /// The keys.
    pub keys: &'a [f32],
    /// The values.
    pub values: &'a [f32],
}

/// Every query head attends to the positions its row may see; `q`, `out`: `[rows, heads, head_dim]`.
///
/// # Panics
/// When a table is too short for a position or the lengths do not fit the shape.
pub fn attention(
    q: &[f32],
    kv: &PagedKv<'_>,
    rows: &[AttentionRow],
    tables: &[&[u32]],
    shape: &AttentionShape,
    out: &mut [f32],
) {
    let (dim, width) = (shape.head_dim, shape.heads * shape.head_dim);
    assert_eq!(
        q.len(),
        rows.len() * width,
        "there must be one row of queries for each row of the batch"
    );
    for (r, row) in rows.iter().enumerate() {
        let table = tables[row.table as usize];
        for head in 0..shape.heads {
            let kv_head = head / (shape.heads / shape.kv_heads);
            let at = |position: usize| {
                let slot = table[position / BLOCK_TOKENS] as usize * BLOCK_TOKENS
                    + position % BLOCK_TOKENS;
                (slot * shape.kv_heads + kv_head) * dim
            };
            let query = &q[r * width + head * dim..][..dim];
            let mut weights: Vec<f64> = shape
                .span(row.position)
                .map(|position| {
                    let key = &kv.keys[at(position)..][..dim];
                    let dot: f64 = query
                        .iter()
                        .zip(key)
                        .map(|(&q, &k)| f64::from(q) * f64::from(k))
                        .sum();
                    let score = dot * f64::from(shape.scale);
                    shape
                        .softcap
                        .map_or(score, |cap| softcap(f64::from(cap), score))
                })
                .collect();
            softmax(&mut weights);
            for (i, out) in out[r * width + head * dim..][..dim].iter_mut().enumerate() {
                let values = shape
                    .span(row.position)
                    .map(|position| f64::from(kv.values[at(position) + i]));
                *out = values
                    .zip(&weights)
                    .map(|(value, weight)| value * weight)
                    .sum::<f64>() as f32;
            }
        }
    }
}
