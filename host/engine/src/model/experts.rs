//! Mixture of experts: many gated feed-forwards, of which a router chooses a few for every row.
//!
//! The rows of a step are gathered by expert, so that the weights of an expert are read once for all of them. What the
//! experts of a row give is added up in the order of their indices, whatever else is in the batch.

use realm_kernels::Activation;

use super::LoadError;
use super::loader::Loader;
use super::ops::{Ops, Part, Site};
use super::projection::{Input, Projection};

/// Sizes of the mixture.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExpertShape {
    pub(crate) count: usize,
    pub(crate) used: usize, // by a row
    pub(crate) feed_forward: usize,
}

/// The experts of a layer.
pub(super) struct Experts<O: Ops> {
    used: usize,
    router: Projection<O>,
    experts: Vec<Expert<O>>,
}

struct Expert<O: Ops> {
    gate: Projection<O>,
    up: Projection<O>,
    down: Projection<O>,
}

/// Buffers that only grow.
pub(crate) struct ExpertScratch<O: Ops> {
    routed: O::Rows,  // [rows, experts]
    scores: Vec<f32>, // the same on the host
    order: Vec<u32>,  // [experts], of one row
    chosen: Vec<Choice>,
    rows: Vec<u32>,             // that go through one expert
    adapters: Vec<Option<u32>>, // of these
    acts: O::Acts,
    gated: O::Acts,
    tmp: [O::Rows; 2],
    out: O::Rows,
}

impl<O: Ops> Default for ExpertScratch<O> {
    fn default() -> ExpertScratch<O> {
        ExpertScratch {
            routed: O::Rows::default(),
            scores: Vec::new(),
            order: Vec::new(),
            chosen: Vec::new(),
            rows: Vec::new(),
            adapters: Vec::new(),
            acts: O::Acts::default(),
            gated: O::Acts::default(),
            tmp: Default::default(),
            out: O::Rows::default(),
        }
    }
}

/// A row goes through an expert, and what comes out counts so much.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Choice {
    expert: u32,
    row: u32,
    weight: f32,
}

impl<O: Ops> Experts<O> {
    /// From one tensor for all experts, or from one for each as older files have it.
    pub(super) fn load(
        loader: &mut Loader<'_, O>,
        index: u32,
        hidden: usize,
        shape: &ExpertShape,
    ) -> Result<Experts<O>, LoadError> {
        let (count, inner) = (shape.count, shape.feed_forward);
        let site = |part| Site::Layer(index, part);
        let mut projections = |name: &str, part: fn(u32) -> Part, rows: usize, cols: usize| {
            let merged = format!("blk.{index}.{name}_exps.weight");
            let one = |expert: usize| format!("blk.{index}.{name}.{expert}.weight");
            let matrices = match loader.has(&merged) || !loader.has(&one(0)) {
                true => loader.stacked_matrices(&merged, rows, cols, count)?,
                false => (0..count)
                    .map(|expert| loader.matrix(&one(expert), rows, cols))
                    .collect::<Result<Vec<O::Matrix>, LoadError>>()?,
            };
            let projections = (0..)
                .zip(matrices)
                .map(|(expert, matrix)| Projection::new(site(part(expert)), matrix, rows));
            Ok::<_, LoadError>(projections.collect::<Vec<Projection<O>>>())
        };
        let gates = projections("ffn_gate", Part::ExpertGate, inner, hidden)?;
        let ups = projections("ffn_up", Part::ExpertUp, inner, hidden)?;
        let downs = projections("ffn_down", Part::ExpertDown, hidden, inner)?;
        let experts = gates.into_iter().zip(ups).zip(downs);
        let router = format!("blk.{index}.ffn_gate_inp");
        Ok(Experts {
            used: shape.used,
            router: Projection::load_plain(loader, site(Part::Router), &router, count, hidden)?,
            experts: experts
                .map(|((gate, up), down)| Expert { gate, up, down })
                .collect(),
        })
    }

    /// `out` (`[rows, hidden]`): for every row of the input the weighted sum over its experts.
    pub(super) fn run(
        &self,
        act: Activation,
        input: &Input<'_, O>,
        scratch: &mut ExpertScratch<O>,
        out: &mut O::Rows,
    ) {
        let &Input { ops, x, adapters } = input;
        let ExpertScratch { routed, scores, .. } = scratch;
        ops.resize(routed, O::rows(x) * self.experts.len());
        self.router.apply(input, routed);
        ops.read(routed, scores);
        choose(
            scores,
            self.experts.len(),
            self.used,
            &mut scratch.order,
            &mut scratch.chosen,
        );
        ops.clear(out);
        for choices in scratch.chosen.chunk_by(|a, b| a.expert == b.expert) {
            let expert = &self.experts[choices[0].expert as usize];
            let rows = &mut scratch.rows;
            rows.clear();
            rows.extend(choices.iter().map(|choice| choice.row));
            let of_rows = &mut scratch.adapters;
            of_rows.clear();
            if !adapters.is_empty() {
                of_rows.extend(rows.iter().map(|row| adapters[*row as usize]));
            }
            // An expert that every row chose, as for a single row, takes them where they are.
            let x = if rows.len() == O::rows(x) {
                x
            } else {
                ops.gather_acts(x, rows, &mut scratch.acts);
                &scratch.acts
            };
            let of_rows = of_rows.as_slice();
            let [tmp, tmp_up] = &mut scratch.tmp;
            let gated = &mut scratch.gated;
            Projection::apply_gated(
                [&expert.gate, &expert.up],
                act,
                &Input::new(ops, x, of_rows),
                [tmp, tmp_up],
                gated,
            );
            ops.resize(&mut scratch.out, rows.len() * expert.down.width);
            expert
                .down
                .apply(&Input::new(ops, gated, of_rows), &mut scratch.out);
            let to = choices.iter().map(|choice| (choice.row, choice.weight));
            ops.scatter_add(&scratch.out, expert.down.width, to, out);
        }
    }
}

/// The `used` (1 to `experts`) experts of every row of `scores` (`[rows, experts]`), by expert and then by row.
///
/// Their weights are the softmax over the chosen scores, which is that over all scores, scaled to sum to 1. Of equal
/// scores the lower index is taken. Scores that are no numbers are taken before all others and make weights that are
/// none, of their own row only: a broken model shall be seen to be broken.
fn choose(
    scores: &[f32],
    experts: usize,
    used: usize,
    order: &mut Vec<u32>,
    chosen: &mut Vec<Choice>,
) {
    chosen.clear();
    for (row, scores) in (0u32..).zip(scores.chunks_exact(experts)) {
        let score = |expert: u32| match scores[expert as usize] {
            // Whatever its sign, which differs between instruction sets.
            score if score.is_nan() => f32::NAN.copysign(1.0),
            score => score,
        };
        let best_first = |a: &u32, b: &u32| score(*b).total_cmp(&score(*a)).then(a.cmp(b));
        order.clear();
        order.extend((0u32..).take(experts));
        order.select_nth_unstable_by(used - 1, best_first);
        order.truncate(used);
        // Sums are taken best first, whatever order the selection left.
        order.sort_unstable_by(best_first);
        let max = score(order[0]);
        let exp = |expert: u32| (score(expert) - max).exp();
        let sum: f32 = order.iter().map(|expert| exp(*expert)).sum();
        chosen.extend(order.iter().map(|&expert| Choice {
            expert,
            row,
            weight: exp(expert) / sum,
        }));
    }
    chosen.sort_unstable_by_key(|choice| (choice.expert, choice.row));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(scores: &[f32], experts: usize, used: usize) -> Vec<(u32, u32, f32)> {
        let mut chosen = Vec::new();
        choose(scores, experts, used, &mut Vec::new(), &mut chosen);
        let parts = |choice: &Choice| (choice.expert, choice.row, choice.weight);
        chosen.iter().map(parts).collect()
    }

    #[test]
    fn the_best_are_chosen_and_of_equals_the_first() {
        let scores = [1.0, 3.0, 3.0, 3.0, 5.0, 5.0, -1.0, 5.0];
        let half = 0.5;
        assert_eq!(
            chosen(&scores, 4, 2),
            [(0, 1, half), (1, 0, half), (1, 1, half), (2, 0, half)]
        );
        let all = chosen(&scores[..4], 4, 4);
        let sum: f32 = all.iter().map(|choice| choice.2).sum();
        assert!((sum - 1.0).abs() < 1e-6);
        assert_eq!(chosen(&[0.0, 88.0, -500.0], 3, 1), [(1, 0, 1.0)]);
    }

    #[test]
    fn scores_that_are_no_numbers_spoil_their_own_row_only() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for used in 1..=3 {
                let scores = [bad, bad, bad, 1.0, 2.0, 0.5];
                let mut own = chosen(&scores, 3, used);
                assert_eq!(own.len(), 2 * used);
                assert!(own.iter().all(|choice| choice.1 == 1 || choice.2.is_nan()));
                own.retain(|choice| choice.1 == 1);
                let alone = chosen(&scores[3..], 3, used);
                assert!(
                    own.iter()
                        .zip(&alone)
                        .all(|(a, b)| (a.0, a.2) == (b.0, b.2))
                );
            }
        }
    }
}
