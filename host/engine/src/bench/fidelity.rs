//! How far rounded activations move a model's answers: log-probabilities of every position of a text, beside those of the
//! same weights with activations that are not rounded.

use realm_kernels::{Cpu, Rounding};
use realm_text::Specials;
use realm_weights::ModelSource;

use super::BenchError;
use crate::executor::{Executor, SequenceRows, StepBatch};
use crate::model::{self, Activations, ModelOptions};

/// A text in which a model finds prose, a dialogue, lists, numbers and code.
pub const FIDELITY_TEXT: &str = include_str!("fidelity.txt");

/// Tokens of a piece of the text. Each is a sequence of its own, so that beginnings count as they do in chats.
const PIECE_TOKENS: usize = 128;
/// Positions computed together: their logits are in memory twice.
const STEP_TOKENS: usize = 32;
/// Of the reference's likeliest tokens, how many log-probabilities are compared.
const LIKELIEST: usize = 5;

/// How one way of rounding compares with none, over all positions of a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fidelity {
    /// Positions compared.
    pub positions: usize,
    /// Mean of the Kullback-Leibler divergence from the reference, in nats.
    pub kl_mean: f64,
    /// The divergence that one position in a hundred exceeds.
    pub kl_p99: f64,
    /// Share of the positions at which the likeliest token is the same.
    pub top1_agreement: f64,
    /// Root of the mean square by which the log-probabilities of the reference's five likeliest tokens are off.
    pub logprob_rms: f64,
}

/// Compares `activations` with unrounded ones on a text.
///
/// # Errors
/// [`BenchError::Load`] when the model does not run, [`BenchError::TextTooShort`] when there is no position to compare.
pub fn fidelity(
    source: &dyn ModelSource,
    options: &ModelOptions,
    activations: Activations,
    text: &str,
) -> Result<Fidelity, BenchError> {
    let options = ModelOptions {
        activations,
        ..options.clone()
    };
    let cpu = model::cpu(&options);
    let exact = cpu.clone().with_rounding(Rounding::Exact);
    let mut reference = Runner::load(exact, source, &options)?;
    let mut rounded = Runner::load(cpu, source, &options)?;
    let mut sums = Sums::default();
    for piece in reference.pieces(text)? {
        for (step, ids) in piece.chunks(STEP_TOKENS).enumerate() {
            let start = step * STEP_TOKENS;
            reference.forward(&piece, start, ids)?;
            rounded.forward(&piece, start, ids)?;
            let vocab = reference.vocab;
            let (wanted, got) = (&reference.logits, &rounded.logits);
            for (wanted, got) in wanted.chunks_exact(vocab).zip(got.chunks_exact(vocab)) {
                sums.add(wanted, got);
            }
        }
    }
    sums.finish()
}

/// A model that computes one sequence at a time.
struct Runner {
    executor: Box<dyn Executor>,
    text: std::sync::Arc<realm_text::TextModel>,
    context: usize,
    block_tokens: usize,
    vocab: usize,
    logits: Vec<f32>,
}

impl Runner {
    fn load(
        cpu: Cpu,
        source: &dyn ModelSource,
        options: &ModelOptions,
    ) -> Result<Runner, BenchError> {
        let (executor, facts, text) = model::load_on(cpu, source, options.clone())?;
        Ok(Runner {
            executor,
            text,
            context: facts.context_length as usize,
            block_tokens: facts.block_tokens as usize,
            vocab: facts.vocab_size as usize,
            logits: Vec::new(),
        })
    }

    /// The tokens of a text in pieces, each of which begins as a text does.
    fn pieces(&self, text: &str) -> Result<Vec<Vec<u32>>, BenchError> {
        let ids = self
            .text
            .encode(text, Specials::Parse, false, text.len() + 1)?;
        let start = self.text.encode("", Specials::Parse, true, 8)?;
        let room = PIECE_TOKENS.min(self.context).saturating_sub(start.len());
        if ids.is_empty() || room == 0 {
            return Err(BenchError::TextTooShort);
        }
        let pieces = ids.chunks(room).map(|ids| [&start, ids].concat());
        Ok(pieces.collect())
    }

    /// The logits after each of `ids`, which are at `start` of `piece`.
    fn forward(&mut self, piece: &[u32], start: usize, ids: &[u32]) -> Result<(), BenchError> {
        let blocks: Vec<u32> = (0..piece.len().div_ceil(self.block_tokens) as u32).collect();
        let mut batch = StepBatch::default();
        let rows = SequenceRows {
            blocks: &blocks,
            start: start as u32,
            logits: ids.len() as u32,
            adapter: None,
        };
        batch.push(rows, ids.iter().copied())?;
        self.executor.forward(&batch, &mut self.logits)?;
        Ok(())
    }
}

/// What is added up over positions.
#[derive(Default)]
struct Sums {
    divergences: Vec<f64>,
    agreeing: usize,
    squares: f64,
    compared: usize,
}

impl Sums {
    fn add(&mut self, wanted: &[f32], got: &[f32]) {
        let (wanted, got) = (log_probabilities(wanted), log_probabilities(got));
        let divergence = wanted.iter().zip(&got).map(|(w, g)| w.exp() * (w - g));
        self.divergences.push(divergence.sum());
        let likeliest = likeliest(&wanted);
        for &token in &likeliest {
            self.squares += (got[token] - wanted[token]).powi(2);
        }
        self.compared += likeliest.len();
        let best = (0..got.len()).max_by(|&a, &b| got[a].total_cmp(&got[b]).then(b.cmp(&a)));
        self.agreeing += usize::from(best == likeliest.first().copied());
    }

    fn finish(mut self) -> Result<Fidelity, BenchError> {
        let positions = self.divergences.len();
        if positions == 0 {
            return Err(BenchError::TextTooShort);
        }
        self.divergences.sort_by(f64::total_cmp);
        let p99 = (positions * 99).div_ceil(100) - 1;
        Ok(Fidelity {
            positions,
            kl_mean: self.divergences.iter().sum::<f64>() / positions as f64,
            kl_p99: self.divergences[p99],
            top1_agreement: self.agreeing as f64 / positions as f64,
            logprob_rms: (self.squares / self.compared as f64).sqrt(),
        })
    }
}

/// The tokens of the largest values, the first of equals first.
fn likeliest(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    let larger = |a: &usize, b: &usize| values[*b].total_cmp(&values[*a]).then(a.cmp(b));
    let count = LIKELIEST.min(order.len());
    if count < order.len() {
        order.select_nth_unstable_by(count, larger);
        order.truncate(count);
    }
    order.sort_unstable_by(larger);
    order
}

fn log_probabilities(logits: &[f32]) -> Vec<f64> {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&x| (f64::from(x) - max).exp()).sum();
    let normalizer = max + sum.ln();
    logits.iter().map(|&x| f64::from(x) - normalizer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_logits_are_no_distance_apart_and_others_as_far_as_by_hand() {
        let mut sums = Sums::default();
        sums.add(&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.0]);
        let same = sums.finish().expect("a position");
        assert_eq!((same.kl_mean, same.logprob_rms), (0.0, 0.0));
        assert_eq!(same.top1_agreement, 1.0);

        // Probabilities 1/2, 1/2 against 1/5, 4/5.
        let mut sums = Sums::default();
        sums.add(&[0.0, 0.0], &[0.0, 4f32.ln()]);
        let off = sums.finish().expect("a position");
        let kl = 0.5 * (2.5f64).ln() + 0.5 * (0.625f64).ln();
        let rms = (((0.4f64).ln().powi(2) + (1.6f64).ln().powi(2)) / 2.0).sqrt();
        assert!((off.kl_mean - kl).abs() < 1e-6 && (off.kl_p99 - kl).abs() < 1e-6);
        assert!((off.logprob_rms - rms).abs() < 1e-6, "{}", off.logprob_rms);
        assert_eq!(off.top1_agreement, 0.0);
    }

    #[test]
    fn only_the_five_likeliest_of_the_reference_are_compared() {
        let wanted: Vec<f32> = (0..8).map(|i| -(i as f32)).collect();
        assert_eq!(
            likeliest(&wanted.iter().map(|&x| x.into()).collect::<Vec<f64>>()),
            [0, 1, 2, 3, 4]
        );
        assert!(matches!(
            Sums::default().finish(),
            Err(BenchError::TextTooShort)
        ));
    }
}
