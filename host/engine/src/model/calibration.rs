//! How finely each input of a model's matrices is rounded, found at load by computing a short text.
//!
//! A group of 32 channels shares a scale, so what rounding it to 8 bits costs depends on its largest ones. In the residual
//! stream these are a few channels, and the same ones for every token: they are kept apart, as f32. Other groups are given
//! 16 bits. Both go first where they lessen most, for the work that they add, by how much rounding moves the residual
//! stream; and they end with a budget of work.
//!
//! The same file gets the same choice with any number of threads. Another instruction set adds in another order, which can
//! decide between two groups that gain the same.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use realm_kernels::{Activations, BLOCK_TOKENS, Cpu, KvLayer, Precision};
use realm_text::{Specials, TextModel};

use super::decoder::{Decoder, LayerInput, Scratch};
use super::layer::{FeedForward, Layer};
use super::projection::Projection;
use crate::executor::{ExecutorError, SequenceRows, StepBatch};

/// Prose, code, figures and other languages: outliers differ little from one text to the next.
const TEXT: &str = include_str!("calibration.txt");
/// Tokens of it that are computed: enough to meet the outliers, and a fraction of a second also for large models.
const TOKENS_MAX: usize = 64;
/// Channels apart of an input at most; each is four bytes of memory for every row of its matrices.
const APART_MAX: usize = 8;
/// Work of a channel apart, where a group's with 16 bits is 1.
const APART_WORK: f64 = 0.1;
/// Columns that share a scale.
const GROUP: usize = 32;

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
    let Ok(mut ids) = text.encode(TEXT, Specials::Literal, true, TEXT.len() + 8) else {
        return Ok(()); // a text of strangers could be too long, this one cannot
    };
    ids.truncate(TOKENS_MAX.min(tokens_max));
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
    let mut observer = Observer::default();
    let (mut scratch, mut logits) = (Scratch::default(), Vec::new());
    decoder.run_observed(
        cpu,
        &batch,
        kv,
        (&mut scratch, &mut logits),
        &mut |place, x, stream| observer.see(place, x, stream),
    );
    observer.branch_ends(scratch.stream());
    let findings = observer.findings;
    let works: Vec<f64> = findings
        .iter()
        .map(|finding| work(decoder, finding))
        .collect();
    let choices = Choices::new(&findings, &works).choose(budget(&findings, &works));
    for (finding, choice) in findings.iter().zip(choices) {
        let layer = &mut decoder.layers[finding.layer];
        layer.set_precision(cpu, finding.input, choice.precision());
    }
    Ok(())
}

/// An input, and what its rounding does to the residual stream.
struct Finding {
    layer: usize,
    input: LayerInput,
    cols: usize,
    values: Vec<f32>,  // [rows, cols]
    weights: Vec<f64>, // of a row's squared scales; empty until its branch has ended
}

/// Collects the inputs of all layers.
#[derive(Default)]
struct Observer {
    stream: Vec<f32>, // [rows, hidden], before the branch whose inputs are seen
    findings: Vec<Finding>,
}

impl Observer {
    fn see(&mut self, (layer, input): (usize, LayerInput), x: &Activations, stream: &[f32]) {
        if matches!(input, LayerInput::Attend | LayerInput::Feed) {
            self.branch_ends(stream);
        }
        self.findings.push(Finding {
            layer,
            input,
            cols: x.cols(),
            values: (0..x.rows())
                .flat_map(|row| x.values(row))
                .copied()
                .collect(),
            weights: Vec::new(),
        });
    }

    /// Weighs the rows of the inputs of the branch that made this of the stream.
    fn branch_ends(&mut self, stream: &[f32]) {
        for finding in self.findings.iter_mut().rev() {
            if !finding.weights.is_empty() {
                break;
            }
            let rows = finding.values.len() / finding.cols;
            let width = stream.len() / rows;
            let before = self.stream.chunks_exact(width);
            let streams = before.zip(stream.chunks_exact(width));
            let inputs = finding.values.chunks_exact(finding.cols);
            let weights = inputs
                .zip(streams)
                .enumerate()
                .map(|(row, (x, (before, after)))| {
                    if row == 0 && rows > 1 {
                        return 0.0; // what opens a text is like no other token, and only looked at
                    }
                    let added: f64 = before.iter().zip(after).map(|(b, a)| square(a - b)).sum();
                    let share = added / power(after);
                    sensitivity(finding.input) * share / power(x) / rows as f64
                });
            finding.weights = weights
                .map(|w| if w.is_finite() { w } else { 0.0 })
                .collect();
        }
        self.stream.clear();
        self.stream.extend_from_slice(stream);
    }
}

/// What is left of a relative error of an input in what its branch adds; measured on models with and without outliers.
fn sensitivity(input: LayerInput) -> f64 {
    match input {
        LayerInput::Attend => 4.0,
        LayerInput::Attended => 1.5,
        LayerInput::Feed => 2.0,
        LayerInput::Gated => 1.0,
    }
}

fn power(row: &[f32]) -> f64 {
    row.iter().map(|&x| square(x)).sum()
}

fn square(x: f32) -> f64 {
    f64::from(x) * f64::from(x)
}

/// Products of a row with the matrices that read an input.
fn work(decoder: &mut Decoder<Cpu>, finding: &Finding) -> f64 {
    let projections = decoder.layers[finding.layer].projections(finding.input);
    let matrices = projections.iter().map(|projection| &projection.matrix);
    matrices.map(|m| m.rows() as f64 * m.cols() as f64).sum()
}

/// Work that is added to a row's products with 8 bits: as much as 16 bits for all of attention's inputs. What more would
/// cost in time, and bring in likeness, is in `bench/results/2026-12-01-fidelity.md`.
fn budget(findings: &[Finding], works: &[f64]) -> f64 {
    let attend = |finding: &Finding| finding.input == LayerInput::Attend;
    let attention = findings
        .iter()
        .zip(works)
        .filter(|(finding, _)| attend(finding));
    attention.map(|(_, work)| work).sum()
}

/// What one input gets.
#[derive(Clone, Default)]
struct Choice {
    apart: Vec<u32>,
    fine: Vec<u32>,
}

impl Choice {
    fn precision(mut self) -> Precision {
        self.apart.sort_unstable();
        self.fine.sort_unstable();
        Precision::Int8 {
            apart: self.apart.into(),
            fine: self.fine.into(),
        }
    }
}

/// The choice of what is finer, one step after the other.
struct Choices<'a> {
    findings: &'a [Finding],
    works: &'a [f64],
    choices: Vec<Choice>,
    steps: BinaryHeap<Step>,
}

/// A step that can be taken: 16 bits for a group, or its largest channel apart.
struct Step {
    rank: f64, // gain for the work
    work: f64,
    finding: usize,
    group: usize,
    channel: Option<u32>,
    after: usize, // channels of the group that were apart: the gain is another one with more
}

impl Ord for Step {
    /// The best is the greatest; of equals the first.
    fn cmp(&self, other: &Step) -> Ordering {
        let place = |step: &Step| (step.finding, step.group, step.channel);
        let rank = self.rank.total_cmp(&other.rank);
        rank.then_with(|| place(other).cmp(&place(self)))
    }
}

impl PartialOrd for Step {
    fn partial_cmp(&self, other: &Step) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Step {
    fn eq(&self, other: &Step) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Step {}

impl<'a> Choices<'a> {
    fn new(findings: &'a [Finding], works: &'a [f64]) -> Choices<'a> {
        let mut all = Choices {
            findings,
            works,
            choices: vec![Choice::default(); findings.len()],
            steps: BinaryHeap::new(),
        };
        for (index, finding) in findings.iter().enumerate() {
            if finding.cols.is_multiple_of(GROUP) && works[index] > 0.0 {
                (0..finding.cols / GROUP).for_each(|group| all.offer(index, group));
            }
        }
        all
    }

    /// The steps that can be taken next in a group.
    fn offer(&mut self, index: usize, group: usize) {
        let finding = &self.findings[index];
        let apart = &self.choices[index].apart;
        let (error, gain, channel) = largest(finding, group, apart);
        let work = self.works[index] / (finding.cols / GROUP) as f64;
        let step = |gain: f64, work: f64, channel| Step {
            rank: gain / work,
            work,
            finding: index,
            group,
            channel,
            after: in_group(apart, group),
        };
        let fine = step(error, work, None);
        let split = step(gain, APART_WORK * work, Some(channel));
        self.steps.extend([fine, split]);
    }

    /// Takes the best steps for so much work.
    fn choose(mut self, mut budget: f64) -> Vec<Choice> {
        while let Some(step) = self.steps.pop() {
            let choice = &mut self.choices[step.finding];
            if step.rank <= 0.0 {
                break;
            }
            let is_stale = in_group(&choice.apart, step.group) != step.after;
            let is_done = choice.fine.contains(&(step.group as u32));
            if is_stale || is_done || step.work > budget {
                continue;
            }
            match step.channel {
                Some(_) if choice.apart.len() >= APART_MAX => continue,
                Some(channel) => {
                    choice.apart.push(channel);
                    self.offer(step.finding, step.group);
                }
                None => {
                    choice.fine.push(step.group as u32);
                    // Its channels need not be apart any more.
                    let before = choice.apart.len();
                    choice
                        .apart
                        .retain(|channel| *channel as usize / GROUP != step.group);
                    let freed = before - choice.apart.len();
                    budget += (freed as f64) * APART_WORK * step.work;
                }
            }
            budget -= step.work;
        }
        self.choices
    }
}

fn in_group(channels: &[u32], group: usize) -> usize {
    let is_in = |channel: &&u32| **channel as usize / GROUP == group;
    channels.iter().filter(is_in).count()
}

/// The weighted squares of a group's scales, by how much the best channel to keep apart lessens them, and which it is.
fn largest(finding: &Finding, group: usize, apart: &[u32]) -> (f64, f64, u32) {
    let (mut error, mut gains) = (0.0, [0.0; GROUP]);
    let start = group * GROUP;
    let mut is_here = [true; GROUP];
    for &channel in apart {
        if let Some(here) = (channel as usize)
            .checked_sub(start)
            .and_then(|at| is_here.get_mut(at))
        {
            *here = false;
        }
    }
    for (row, weight) in finding
        .values
        .chunks_exact(finding.cols)
        .zip(&finding.weights)
    {
        let (mut first, mut second, mut place) = (0.0f32, 0.0f32, 0);
        for (at, x) in row[start..start + GROUP].iter().enumerate() {
            let size = if is_here[at] { x.abs() } else { 0.0 };
            if size > first {
                (first, second, place) = (size, first, at);
            } else if size > second {
                second = size;
            }
        }
        error += weight * square(first);
        gains[place] += weight * (square(first) - square(second));
    }
    let best = (0..GROUP).max_by(|&a, &b| gains[a].total_cmp(&gains[b]).then(b.cmp(&a)));
    let best = best.unwrap_or(0);
    (error, gains[best], (start + best) as u32)
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
        if let Precision::Int8 { apart, .. } = &precision {
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
    use std::sync::Arc;

    use super::*;

    fn finding(row: Vec<f32>, weight: f64) -> Finding {
        Finding {
            layer: 0,
            input: LayerInput::Attend,
            cols: row.len(),
            values: row,
            weights: vec![weight],
        }
    }

    #[test]
    fn channels_that_outweigh_their_group_are_apart_first() {
        let mut row = vec![1.0f32; 3 * GROUP];
        (row[5], row[40]) = (100.0, -50.0);
        let findings = [finding(row, 1.0)];
        // Enough for the two channels, not for a group.
        let choice = &Choices::new(&findings, &[3.0]).choose(0.3)[0];
        assert_eq!((&*choice.apart, &*choice.fine), (&[5, 40][..], &[][..]));
        // The groups are alike then, so that 16 bits go to the first, whose channel need not be apart any more.
        let choice = &Choices::new(&findings, &[3.0]).choose(1.3)[0];
        assert_eq!((&*choice.apart, &*choice.fine), (&[40][..], &[0][..]));
        let fine = Arc::new([0]);
        let apart = Arc::new([40]);
        assert_eq!(choice.clone().precision(), Precision::Int8 { apart, fine });
    }

    #[test]
    fn sixteen_bits_go_where_they_gain_most_for_the_work() {
        let findings = [
            finding(vec![1.0; GROUP], 1.0),
            finding(vec![1.0; GROUP], 3.0),
        ];
        let fine = |works: [f64; 2]| {
            let choices = Choices::new(&findings, &works).choose(4.0);
            choices
                .iter()
                .map(|choice| choice.fine.len())
                .collect::<Vec<_>>()
        };
        assert_eq!(fine([4.0, 4.0]), [0, 1]);
        assert_eq!(fine([1.0, 4.0]), [1, 0]);
        assert_eq!(fine([1.0, 3.0]), [1, 1]);
    }

    #[test]
    fn nothing_and_what_cannot_be_counted_is_left_as_it_is() {
        for x in [0.0, f32::NAN] {
            let findings = [finding(vec![x; GROUP], 1.0), finding(vec![1.0; 8], 1.0)];
            for choice in Choices::new(&findings, &[1.0, 1.0]).choose(9.0) {
                assert!(choice.apart.is_empty() && choice.fine.is_empty());
            }
        }
    }

    #[test]
    fn a_branch_counts_by_what_it_adds_to_the_stream() {
        let mut observer = Observer {
            stream: vec![0.0, 3.0],
            findings: vec![finding(vec![2.0; GROUP], 0.0)],
        };
        observer.findings[0].weights.clear();
        observer.branch_ends(&[4.0, 3.0]);
        let wanted = sensitivity(LayerInput::Attend) * (16.0 / 25.0) / (4.0 * GROUP as f64);
        assert!((observer.findings[0].weights[0] - wanted).abs() < 1e-12);
        assert_eq!(observer.stream, [4.0, 3.0]);
    }
}
