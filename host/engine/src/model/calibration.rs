//! How finely each input of a model's matrices is rounded, found at load by computing a short text.
//!
//! What rounding to 8 bits costs an input depends on its largest channels: a group of 32 shares a scale. In the residual
//! stream these are a few channels, and the same ones for every token, so that they are kept apart at hardly any cost. An
//! input without such channels is given 16 bits if that gains most for the work, within a budget.

use std::sync::Arc;

use realm_kernels::{Activations, BLOCK_TOKENS, Cpu, KvLayer, Precision};
use realm_text::{Specials, TextModel};

use super::decoder::{Decoder, LayerInput, Scratch};
use super::layer::{FeedForward, Layer};
use super::projection::Projection;
use crate::executor::{ExecutorError, SequenceRows, StepBatch};

/// Prose, a turn of a dialogue, digits and code: outliers differ little from one text to the next.
const TEXT: &str = "user\nWhat is the capital of France?\nassistant\nParis, on the Seine; 2 million people live there. \
    It was cold, and nobody knew why the lamp was lit.\ndef mean(x):\n    return sum(x) / len(x)  # 3.5\n";
/// Tokens of it that are computed: enough to meet the outliers, and a fraction of a second also for large models.
const TOKENS_MAX: usize = 64;
/// Channels apart of an input at most; each is four bytes of memory for every row of its matrices.
const APART_MAX: usize = 8;
/// A channel that takes less than this share of an input's rounding error with it stays where it is.
const GAIN_MIN: f64 = 0.02;
/// Work that 16 bits may add to a row's products in all layers: what all inputs of attention take, and a tenth.
const BUDGET_OVER_ATTENTION: f64 = 1.1;
/// Columns that share a scale.
const GROUP: usize = 32;

/// What rounding does to an input.
struct Finding {
    layer: usize,
    input: LayerInput,
    apart: Arc<[u32]>,
    noise: f64, // of 8 bits with these channels apart, relative to the input
}

/// Chooses the precisions of a model by the first blocks of its cache, whose contents are lost.
///
/// # Errors
/// [`ExecutorError`] is not to be expected: the batch is made for the cache.
pub(super) fn calibrate(
    decoder: &mut Decoder<Cpu>,
    cpu: &Cpu,
    text: &TextModel,
    kv: &mut [KvLayer],
    tokens_max: usize,
) -> Result<(), ExecutorError> {
    let tokens_max = TOKENS_MAX.min(tokens_max);
    let Ok(mut ids) = text.encode(TEXT, Specials::Literal, true, TEXT.len() + 8) else {
        return Ok(()); // a text of strangers could be too long, this one cannot
    };
    ids.truncate(tokens_max);
    let blocks: Vec<u32> = (0..ids.len().div_ceil(BLOCK_TOKENS) as u32).collect();
    let mut batch = StepBatch::default();
    let rows = SequenceRows {
        blocks: &blocks,
        start: 0,
        logits: 0,
        adapter: None,
    };
    batch.push(rows, ids)?;
    if batch.rows() == 0 {
        return Ok(());
    }
    let mut findings = Vec::new();
    let (mut scratch, mut logits) = (Scratch::default(), Vec::new());
    decoder.run_observed(
        cpu,
        &batch,
        kv,
        (&mut scratch, &mut logits),
        &mut |(layer, input), x| findings.push(Finding::new(layer, input, x)),
    );
    apply(decoder, cpu, findings);
    Ok(())
}

impl Finding {
    fn new(layer: usize, input: LayerInput, x: &Activations) -> Finding {
        let rows: Vec<&[f32]> = (0..x.rows()).map(|row| x.values(row)).collect();
        let (mut apart, mut noise) = (Vec::new(), 0.0);
        if x.cols().is_multiple_of(GROUP) {
            (apart, noise) = split(&rows, x.cols());
        }
        apart.sort_unstable();
        Finding {
            layer,
            input,
            apart: apart.into(),
            noise,
        }
    }
}

/// The channels to keep apart, and the rounding error of the others relative to the input: mean squares, up to a factor.
fn split(rows: &[&[f32]], cols: usize) -> (Vec<u32>, f64) {
    let power: f64 = rows.iter().flat_map(|row| *row).map(|&x| square(x)).sum();
    let mut apart = Vec::new();
    let mut groups: Vec<(f64, f64, usize)> = (0..cols / GROUP)
        .map(|group| largest(rows, group, &apart))
        .collect();
    let whole: f64 = groups.iter().map(|(noise, ..)| noise).sum();
    while apart.len() < APART_MAX {
        let gains = groups.iter().map(|(_, gain, _)| gain).enumerate();
        let Some((group, &gain)) = gains.max_by(|a, b| a.1.total_cmp(b.1)) else {
            break;
        };
        if gain.is_nan() || gain <= GAIN_MIN * whole {
            break;
        }
        apart.push(groups[group].2 as u32);
        groups[group] = largest(rows, group, &apart);
    }
    let left: f64 = groups.iter().map(|(noise, ..)| noise).sum();
    match power > 0.0 {
        true => (apart, left / power),
        false => (apart, 0.0),
    }
}

/// The squared scales of a group, summed over rows, by how much the best channel to keep apart lessens them, and which.
fn largest(rows: &[&[f32]], group: usize, apart: &[u32]) -> (f64, f64, usize) {
    let (mut noise, mut gains) = (0.0, [0.0; GROUP]);
    let columns = group * GROUP..(group + 1) * GROUP;
    for row in rows {
        let (mut first, mut second, mut place) = (0.0f32, 0.0f32, 0);
        for column in columns.clone().filter(|c| !apart.contains(&(*c as u32))) {
            let size = row[column].abs();
            if size > first {
                (first, second, place) = (size, first, column % GROUP);
            } else if size > second {
                second = size;
            }
        }
        noise += square(first);
        gains[place] += square(first) - square(second);
    }
    let best = (0..GROUP).max_by(|&a, &b| gains[a].total_cmp(&gains[b]));
    let best = best.unwrap_or(0);
    (noise, gains[best], columns.start + best)
}

fn square(x: f32) -> f64 {
    f64::from(x) * f64::from(x)
}

/// How much relative error at an input moves the log-probabilities, one layer beside the other; measured on models with
/// and without outliers.
fn weight(input: LayerInput) -> f64 {
    match input {
        LayerInput::Attend => 1.0,
        LayerInput::Attended => 0.2,
        LayerInput::Feed => 0.5,
        LayerInput::Gated => 0.45,
    }
}

/// Gives 16 bits where they gain most for the work, and keeps channels apart elsewhere.
fn apply(decoder: &mut Decoder<Cpu>, cpu: &Cpu, findings: Vec<Finding>) {
    let mut costed: Vec<(Finding, f64)> = findings
        .into_iter()
        .map(|finding| {
            let projections = decoder.layers[finding.layer].projections(finding.input);
            let matrices = projections.iter().map(|projection| &projection.matrix);
            let cost = matrices.map(|m| m.rows() as f64 * m.cols() as f64).sum();
            (finding, cost)
        })
        .collect();
    let all: f64 = costed.iter().map(|(_, cost)| cost).sum();
    let attend = costed
        .iter()
        .filter(|(finding, _)| finding.input == LayerInput::Attend);
    let attention: f64 = attend.map(|(_, cost)| cost).sum();
    let mut budget = BUDGET_OVER_ATTENTION * (all + attention) - all;
    let rank =
        |(finding, cost): &(Finding, f64)| weight(finding.input) * finding.noise / cost.max(1.0);
    costed.sort_by(|a, b| rank(b).total_cmp(&rank(a)));
    for (finding, cost) in costed {
        let precision = match cost <= budget {
            true => {
                budget -= cost;
                Precision::Int16
            }
            false => Precision::Int8 {
                apart: finding.apart,
            },
        };
        decoder.layers[finding.layer].set_precision(cpu, finding.input, precision);
    }
    // One row of a prompt, and bound by the memory of its weights when decoding.
    decoder.output_precision = Precision::Int16;
}

impl Layer<Cpu> {
    /// What reads an input; of experts nothing, because every row takes others.
    fn projections(&mut self, input: LayerInput) -> Vec<&mut Projection<Cpu>> {
        match (input, &mut self.ffn) {
            (LayerInput::Attend, _) => vec![&mut self.q, &mut self.k, &mut self.v],
            (LayerInput::Attended, _) => vec![&mut self.output],
            (LayerInput::Feed, FeedForward::Gated { gate, up, .. }) => vec![gate, up],
            (LayerInput::Feed, FeedForward::Plain { up, .. }) => vec![up],
            (
                LayerInput::Gated,
                FeedForward::Gated { down, .. } | FeedForward::Plain { down, .. },
            ) => vec![down],
            (_, FeedForward::Experts(_)) => Vec::new(),
        }
    }

    fn set_precision(&mut self, cpu: &Cpu, input: LayerInput, precision: Precision) {
        let projections = self.projections(input);
        if projections.is_empty() {
            return;
        }
        if let Precision::Int8 { apart } = &precision {
            for projection in projections {
                projection.matrix = cpu.with_columns(&projection.matrix, apart);
            }
        }
        let precisions = &mut self.precisions;
        *match input {
            LayerInput::Attend => &mut precisions.attend,
            LayerInput::Attended => &mut precisions.attended,
            LayerInput::Feed => &mut precisions.feed,
            LayerInput::Gated => &mut precisions.gated,
        } = precision;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_that_outweigh_their_group_are_apart_and_no_others() {
        let mut row = vec![1.0f32; 3 * GROUP];
        (row[5], row[40]) = (100.0, -50.0);
        let (mut apart, left) = split(&[&row, &row], row.len());
        apart.sort_unstable();
        assert_eq!(apart, [5, 40]);
        let power: f64 = row.iter().map(|&x| square(x)).sum();
        // Each of the three groups is left with a scale for 1.
        assert!((left - 3.0 / power).abs() < 1e-12, "{left}");
    }

    #[test]
    fn an_input_of_equals_or_of_nothing_keeps_its_channels() {
        assert_eq!(split(&[&[1.0; GROUP]], GROUP).0, []);
        assert_eq!(split(&[&[0.0; GROUP]], GROUP), (vec![], 0.0));
    }
}
