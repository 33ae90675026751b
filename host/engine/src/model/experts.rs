//! Mixture of experts: many gated feed-forwards, of which a router chooses a few for every row.
//!
//! The rows of a step are gathered by expert, so that the weights of an expert are read once for all of them. What the
//! experts of a row give is added up in the order of their indices, whatever else is in the batch.

use realm_kernels::{Activation, Activations, Cpu, Matrix};

use super::LoadError;
use super::loader::Loader;

/// Sizes of the mixture.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExpertShape {
    pub(crate) count: usize,
    pub(crate) used: usize, // by a row
    pub(crate) feed_forward: usize,
}

/// The experts of a layer.
pub(super) struct Experts {
    used: usize,
    router: Matrix,
    experts: Vec<Expert>,
}

struct Expert {
    gate: Matrix,
    up: Matrix,
    down: Matrix,
}

/// Buffers that only grow.
#[derive(Default)]
pub(crate) struct ExpertScratch {
    scores: Vec<f32>, // [rows, experts]
    chosen: Vec<Choice>,
    rows: Vec<u32>,
    acts: Activations,
    gated: Activations,
    tmp: Vec<f32>,
    out: Vec<f32>,
}

/// A row goes through an expert, and what comes out counts so much.
#[derive(Clone, Copy)]
struct Choice {
    expert: u32,
    row: u32,
    weight: f32,
}

impl Experts {
    /// From one tensor for all experts, or from one for each as older files have it.
    pub(super) fn load(
        loader: &mut Loader<'_>,
        index: u32,
        hidden: usize,
        shape: &ExpertShape,
    ) -> Result<Experts, LoadError> {
        let (count, inner) = (shape.count, shape.feed_forward);
        let mut matrices = |part: &str, rows: usize, cols: usize| {
            let merged = format!("blk.{index}.{part}_exps.weight");
            if loader.has(&merged) || !loader.has(&format!("blk.{index}.{part}.0.weight")) {
                return loader.stacked_matrices(&merged, rows, cols, count);
            }
            (0..count)
                .map(|expert| {
                    loader.matrix(&format!("blk.{index}.{part}.{expert}.weight"), rows, cols)
                })
                .collect()
        };
        let gates = matrices("ffn_gate", inner, hidden)?;
        let ups = matrices("ffn_up", inner, hidden)?;
        let downs = matrices("ffn_down", hidden, inner)?;
        let experts = gates.into_iter().zip(ups).zip(downs);
        Ok(Experts {
            used: shape.used,
            router: loader.matrix(&format!("blk.{index}.ffn_gate_inp.weight"), count, hidden)?,
            experts: experts
                .map(|((gate, up), down)| Expert { gate, up, down })
                .collect(),
        })
    }

    /// `out` (`[rows, hidden]`): for every row of `x` the weighted sum over its experts.
    pub(super) fn run(
        &self,
        cpu: &Cpu,
        act: Activation,
        x: &Activations,
        scratch: &mut ExpertScratch,
        out: &mut [f32],
    ) {
        let hidden = out.len() / x.rows();
        scratch.scores.resize(x.rows() * self.experts.len(), 0.0);
        cpu.matmul(&self.router, x, &mut scratch.scores);
        self.choose(&scratch.scores, &mut scratch.chosen);
        out.fill(0.0);
        for choices in scratch.chosen.chunk_by(|a, b| a.expert == b.expert) {
            let expert = &self.experts[choices[0].expert as usize];
            scratch.rows.clear();
            scratch.rows.extend(choices.iter().map(|choice| choice.row));
            scratch.acts.gather(x, &scratch.rows);
            cpu.gate_up_act(
                &expert.gate,
                &expert.up,
                act,
                &scratch.acts,
                &mut scratch.tmp,
                &mut scratch.gated,
            );
            scratch.out.resize(choices.len() * hidden, 0.0);
            cpu.matmul(&expert.down, &scratch.gated, &mut scratch.out);
            for (choice, y) in choices.iter().zip(scratch.out.chunks_exact(hidden)) {
                let row = choice.row as usize * hidden;
                cpu.add_scaled(y, choice.weight, &mut out[row..row + hidden]);
            }
        }
    }

    /// The experts of every row, by expert and then by row. Their weights are the softmax over the chosen scores, which
    /// is that over all scores, scaled to sum to 1.
    fn choose(&self, scores: &[f32], chosen: &mut Vec<Choice>) {
        chosen.clear();
        for (row, scores) in (0u32..).zip(scores.chunks_exact(self.experts.len())) {
            let mut order: Vec<u32> = (0u32..).take(scores.len()).collect();
            let score = |expert: &u32| scores[*expert as usize];
            // Stable: of equal scores the lower index. Scores that are no numbers end as logits that are none.
            order.sort_by(|a, b| score(b).total_cmp(&score(a)));
            order.truncate(self.used);
            let max = order.first().map_or(0.0, score);
            let sum: f32 = order.iter().map(|expert| (score(expert) - max).exp()).sum();
            chosen.extend(order.iter().map(|&expert| Choice {
                expert,
                row,
                weight: (score(&expert) - max).exp() / sum,
            }));
        }
        chosen.sort_by_key(|choice| (choice.expert, choice.row));
    }
}
