//! Token embedding, from the same repacked table the output matrix uses.

use super::shared::SharedOut;
use super::watch::Op;
use super::{Cpu, Matrix};

impl Cpu {
    /// Row `ids[i]` of `table`, times `scale`, to row `i` of `out` (`[ids, table.cols]`).
    ///
    /// # Panics
    /// When an id is not below `table.rows()` or `out` has another length: ids are checked where they enter.
    pub fn embed(&self, table: &Matrix, ids: &[u32], scale: f32, out: &mut [f32]) {
        let width = table.cols();
        assert_eq!(
            out.len(),
            ids.len() * width,
            "there must be one output row for each id"
        );
        let _watched = self.watch(|| Op::plain("embed", 2 * size_of_val(out), out.len()));
        let out = SharedOut::new(out);
        self.split(ids.len(), width, |range| {
            for row in range {
                // SAFETY: every row belongs to one task.
                let out = unsafe { out.part(row * width..(row + 1) * width) };
                table.read_row(ids[row] as usize, out);
                for v in out {
                    *v *= scale;
                }
            }
        });
    }
}
