//! How far rounded activations move a model's answers: the log-probabilities with which it answers prompts, beside those of
//! the same weights with activations that are not rounded.

use std::sync::Arc;

use realm_kernels::{Cpu, Rounding};
use realm_text::{Chat, ChatMessage, TextModel};
use realm_weights::ModelSource;

use super::BenchError;
use crate::executor::{Executor, SequenceRows, StepBatch};
use crate::model::{self, Activations, ModelOptions};
use crate::sampler::arg_max;

/// Twelve prompts: questions, orders, a translation, sums, code.
pub const FIDELITY_PROMPTS: &str = include_str!("fidelity.txt");

/// Tokens of each answer that are compared.
pub const FIDELITY_STEPS: usize = 8;
/// Prompts computed together: their logits are in memory twice.
const PROMPTS_TOGETHER: usize = 16;
/// Of the reference's likeliest tokens, how many log-probabilities are compared.
const LIKELIEST: usize = 5;

/// How one way of rounding compares with none, over the first tokens of the answers to some prompts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fidelity {
    /// Tokens compared.
    pub positions: usize,
    /// Mean of the Kullback-Leibler divergence from the reference, in nats.
    pub kl_mean: f64,
    /// The divergence that one position in a hundred exceeds.
    pub kl_p99: f64,
    /// Positions at which the likeliest token is the same.
    pub same_top1: usize,
    /// Root of the mean square by which the log-probabilities of the reference's five likeliest tokens are off.
    pub logprob_rms: f64,
}

/// Compares `activations` with unrounded ones on prompts, which empty lines part. Each is answered as a user's message; both
/// go on with what the reference finds likeliest, up to the end of its answer.
///
/// # Errors
/// [`BenchError::Load`] when the model does not run, [`BenchError::NoPrompt`] when there is nothing to compare.
pub fn fidelity(
    source: &dyn ModelSource,
    options: &ModelOptions,
    activations: Activations,
    prompts: &str,
) -> Result<Fidelity, BenchError> {
    let options = ModelOptions {
        activations,
        ..options.clone()
    };
    let cpu = model::cpu(&options);
    let exact = cpu.clone().with_rounding(Rounding::Exact);
    let mut reference = Runner::load(exact, source, &options)?;
    let mut rounded = Runner::load(cpu, source, &options)?;
    let prompts = reference.prompts(prompts)?;
    let mut sums = Sums::default();
    for prompts in prompts.chunks(PROMPTS_TOGETHER) {
        compare(&mut reference, &mut rounded, prompts, &mut sums)?;
    }
    sums.finish()
}

/// Lets both answer some prompts.
fn compare(
    reference: &mut Runner,
    rounded: &mut Runner,
    prompts: &[Vec<u32>],
    sums: &mut Sums,
) -> Result<(), BenchError> {
    let mut sequences = reference.sequences(prompts);
    for _ in 0..FIDELITY_STEPS {
        if sequences.is_empty() {
            break;
        }
        reference.forward(&sequences)?;
        rounded.forward(&sequences)?;
        let vocab = reference.vocab;
        let (wanted, got) = (&reference.logits, &rounded.logits);
        let logits = wanted.chunks_exact(vocab).zip(got.chunks_exact(vocab));
        for (sequence, (wanted, got)) in sequences.iter_mut().zip(logits) {
            sums.add(wanted, got);
            sequence.start += sequence.ids.len();
            sequence.ids = vec![arg_max(wanted)];
        }
        sequences.retain(|sequence| !reference.text.is_end_of_generation(sequence.ids[0]));
    }
    Ok(())
}

/// A prompt on its way.
struct Sequence {
    blocks: Vec<u32>,
    start: usize,  // where `ids` are
    ids: Vec<u32>, // to be computed next
}

/// A model that computes some sequences at a time.
struct Runner {
    executor: Box<dyn Executor>,
    text: Arc<TextModel>,
    context: usize,
    blocks: usize,
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
            blocks: facts.kv_blocks as usize,
            block_tokens: facts.block_tokens as usize,
            vocab: facts.vocab_size as usize,
            logits: Vec::new(),
        })
    }

    /// The tokens of the prompts, cut to what the model and a share of the cache have room for.
    fn prompts(&self, text: &str) -> Result<Vec<Vec<u32>>, BenchError> {
        let share = self.blocks / PROMPTS_TOGETHER * self.block_tokens;
        let room = self.context.min(share).saturating_sub(FIDELITY_STEPS);
        let texts = text.split("\n\n").map(str::trim);
        let prompts = texts.filter(|text| !text.is_empty()).map(|text| {
            let chat = Chat::new([ChatMessage::new("user", text)]);
            self.text.chat_tokens(&chat, room)
        });
        let prompts = prompts.collect::<Result<Vec<_>, _>>()?;
        match prompts.is_empty() || room == 0 {
            true => Err(BenchError::NoPrompt),
            false => Ok(prompts),
        }
    }

    /// The prompts with blocks of their own.
    fn sequences(&self, prompts: &[Vec<u32>]) -> Vec<Sequence> {
        let mut first = 0;
        let sequence = |ids: &Vec<u32>| {
            let count = (ids.len() + FIDELITY_STEPS).div_ceil(self.block_tokens) as u32;
            first += count;
            Sequence {
                blocks: (first - count..first).collect(),
                start: 0,
                ids: ids.clone(),
            }
        };
        prompts.iter().map(sequence).collect()
    }

    /// The logits after the last token of each sequence.
    fn forward(&mut self, sequences: &[Sequence]) -> Result<(), BenchError> {
        let mut batch = StepBatch::default();
        for sequence in sequences {
            let rows = SequenceRows {
                blocks: &sequence.blocks,
                start: sequence.start as u32,
                logits: 1,
                adapter: None,
            };
            batch.push(rows, sequence.ids.iter().copied())?;
        }
        self.executor.forward(&batch, &mut self.logits)?;
        Ok(())
    }
}

/// What is added up over positions.
#[derive(Default)]
struct Sums {
    divergences: Vec<f64>,
    same_top1: usize,
    squares: f64,
    compared: usize,
}

impl Sums {
    fn add(&mut self, wanted: &[f32], got: &[f32]) {
        self.same_top1 += usize::from(arg_max(wanted) == arg_max(got));
        let (wanted, got) = (log_probabilities(wanted), log_probabilities(got));
        let divergence = wanted.iter().zip(&got).map(|(w, g)| w.exp() * (w - g));
        self.divergences.push(divergence.sum());
        let likeliest = likeliest(&wanted);
        for &token in &likeliest {
            self.squares += (got[token] - wanted[token]).powi(2);
        }
        self.compared += likeliest.len();
    }

    fn finish(mut self) -> Result<Fidelity, BenchError> {
        let positions = self.divergences.len();
        if positions == 0 {
            return Err(BenchError::NoPrompt);
        }
        self.divergences.sort_by(f64::total_cmp);
        let p99 = (positions * 99).div_ceil(100) - 1;
        Ok(Fidelity {
            positions,
            kl_mean: self.divergences.iter().sum::<f64>() / positions as f64,
            kl_p99: self.divergences[p99],
            same_top1: self.same_top1,
            logprob_rms: (self.squares / self.compared as f64).sqrt(),
        })
    }
}

/// The tokens of the largest values.
fn likeliest(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    let larger = |a: &usize, b: &usize| values[*b].total_cmp(&values[*a]).then(a.cmp(b));
    if LIKELIEST < order.len() {
        order.select_nth_unstable_by(LIKELIEST, larger);
        order.truncate(LIKELIEST);
    }
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
        assert_eq!((same.same_top1, same.positions), (1, 1));

        // Probabilities 1/2, 1/2 against 1/5, 4/5.
        let mut sums = Sums::default();
        sums.add(&[0.0, 0.0], &[0.0, 4f32.ln()]);
        let off = sums.finish().expect("a position");
        let kl = 0.5 * (2.5f64).ln() + 0.5 * (0.625f64).ln();
        let rms = (((0.4f64).ln().powi(2) + (1.6f64).ln().powi(2)) / 2.0).sqrt();
        assert!((off.kl_mean - kl).abs() < 1e-6 && (off.kl_p99 - kl).abs() < 1e-6);
        assert!((off.logprob_rms - rms).abs() < 1e-6, "{}", off.logprob_rms);
        assert_eq!(off.same_top1, 0);
    }

    #[test]
    fn only_the_five_likeliest_of_the_reference_are_compared() {
        let wanted: Vec<f64> = (0..8).map(|i| f64::from(i * 3 % 8)).collect();
        let mut likeliest = likeliest(&wanted);
        likeliest.sort_unstable();
        let mut largest: Vec<usize> = (0..8).filter(|&i| wanted[i] >= 3.0).collect();
        largest.sort_unstable();
        assert_eq!(likeliest, largest);
        assert!(matches!(
            Sums::default().finish(),
            Err(BenchError::NoPrompt)
        ));
    }
}
