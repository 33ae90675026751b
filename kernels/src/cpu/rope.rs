//! Rotary position embedding, in place, from tabulated angles.

use super::Cpu;
use super::isa::Kernel;
use super::shared::SharedOut;
use super::simd::Simd;
use super::watch::Op;
use crate::shapes::{Rope, RopeLayout};

/// Pairs whose angles are combined at once, on the stack.
const PAIRS: usize = 64;

impl Cpu {
    /// Rotates every head of every row by its row's position; `x`: `[rows, heads * head_dim]`.
    ///
    /// # Panics
    /// When `x` is not `positions.len()` rows.
    pub fn rope(&self, x: &mut [f32], heads: usize, rope: &Rope, positions: &[u32]) {
        let width = heads * rope.head_dim;
        assert_eq!(
            x.len(),
            positions.len() * width,
            "there must be one position for each row"
        );
        let _watched = self.watch(|| Op::plain("rope", 2 * size_of_val(x), 3 * x.len()));
        let x = SharedOut::new(x);
        self.split(positions.len(), width, |range| {
            for row in range {
                // SAFETY: every row belongs to one task.
                let x = unsafe { x.part(row * width..(row + 1) * width) };
                self.isa.run(RopeRow {
                    x,
                    rope,
                    position: positions[row],
                });
            }
        });
    }
}

struct RopeRow<'a> {
    x: &'a mut [f32],
    rope: &'a Rope,
    position: u32,
}

impl Kernel for RopeRow<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _s: S) {
        let (pairs, rope) = (self.rope.pairs(), self.rope);
        let mut angles = [[0f32; 2]; PAIRS];
        for start in (0..pairs).step_by(PAIRS) {
            let count = PAIRS.min(pairs - start);
            for (i, angle) in angles[..count].iter_mut().enumerate() {
                *angle = rope.rotation(self.position, start + i);
            }
            for head in self.x.chunks_exact_mut(rope.head_dim) {
                let angles = &angles[..count];
                match rope.layout {
                    RopeLayout::Adjacent => {
                        let elements = head[2 * start..2 * (start + count)].as_chunks_mut::<2>().0;
                        for (pair, &[cos, sin]) in elements.iter_mut().zip(angles) {
                            let [a, b] = *pair;
                            *pair = [a * cos - b * sin, a * sin + b * cos];
                        }
                    }
                    RopeLayout::HalfSplit => {
                        let (first, second) = head.split_at_mut(pairs);
                        let (first, second) = (
                            &mut first[start..start + count],
                            &mut second[start..start + count],
                        );
                        for ((a, b), &[cos, sin]) in first.iter_mut().zip(second).zip(angles) {
                            (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                        }
                    }
                }
            }
        }
    }
}
