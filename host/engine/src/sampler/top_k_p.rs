//! Drawing from the tempered distribution after min-p, top-k and top-p.

use super::Rng;
use super::logits;
use crate::policy::Policy;
use realm_kernels::cpu::{EXP_SUM_PIECE, Isa};

/// Tokens e^-25 times less likely than the likeliest are never drawn. Together they weigh less than 4 in a million,
/// even all of a vocabulary of 262,144, and leaving them out spares an exponential each.
const LEAST_LOGIT: f32 = -25.0;

/// What draws of a job use again.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    candidates: Vec<(f32, u32)>, // (logit or weight, token)
    sums: Vec<f32>,              // of the weights of each piece of a row
}

/// Draws a token of a row whose largest logit is `max`.
pub(super) fn draw(
    policy: &Policy,
    logits: &[f32],
    max: f32,
    scratch: &mut Scratch,
    rng: &mut Rng,
) -> u32 {
    let scale = 1.0 / policy.temperature;
    if !scale.is_finite() {
        return logits::arg_max(logits);
    }
    if policy.top_k == 0 && policy.top_p >= 1.0 && policy.min_p == 0.0 {
        return draw_of_all(logits, max, scale, &mut scratch.sums, rng);
    }
    let candidates = &mut scratch.candidates;
    let least = LEAST_LOGIT.max(policy.min_p.ln()); // min_p = 0 is −∞ here
    candidates.clear();
    for (token, &logit) in logits.iter().enumerate() {
        let scaled = (logit - max) * scale;
        if scaled >= least {
            candidates.push((scaled, token as u32));
        }
    }
    keep_top_k(policy.top_k as usize, candidates);
    for (weight, _) in candidates.iter_mut() {
        *weight = weight.exp();
    }
    keep_top_p(policy.top_p, candidates);
    pick(candidates, rng)
}

/// Draws from all tokens: first a piece of the row by its weight, for which vector instructions do, then a token of it.
fn draw_of_all(logits: &[f32], max: f32, scale: f32, sums: &mut Vec<f32>, rng: &mut Rng) -> u32 {
    Isa::best().exp_sums(logits, max, scale, sums);
    let total: f64 = sums.iter().map(|&sum| f64::from(sum)).sum();
    let mut left = rng.next_f64() * total;
    let mut pieces = logits.chunks(EXP_SUM_PIECE).zip(0u32..).zip(&*sums);
    let found = pieces.find(|(_, sum)| {
        let here = left < f64::from(**sum);
        if !here {
            left -= f64::from(**sum);
        }
        here
    });
    let Some(((piece, index), _)) = found else {
        return logits::arg_max(logits); // rounding left a crumb
    };
    // A sum and its parts are rounded differently: what is left at the end is the last token's that has weight.
    let mut drawn = None;
    for (&logit, token) in piece.iter().zip(index * EXP_SUM_PIECE as u32..) {
        let weight = f64::from(((logit - max) * scale).exp());
        if weight > 0.0 {
            drawn = Some(token);
            left -= weight;
            if left < 0.0 {
                break;
            }
        }
    }
    drawn.unwrap_or_else(|| logits::arg_max(logits))
}

/// Keeps the `count` likeliest, lower ids among equals; 0 keeps all.
fn keep_top_k(count: usize, candidates: &mut Vec<(f32, u32)>) {
    if count == 0 || count >= candidates.len() {
        return;
    }
    candidates.select_nth_unstable_by(count - 1, likelier);
    candidates.truncate(count);
    // The selection's order depends on its input's order; the draw below must not.
    candidates.sort_unstable_by(likelier);
}

/// Keeps the likeliest that together have `share` of the weight, at least one.
fn keep_top_p(share: f32, candidates: &mut Vec<(f32, u32)>) {
    if share >= 1.0 {
        return;
    }
    let total: f64 = candidates
        .iter()
        .map(|&(weight, _)| f64::from(weight))
        .sum();
    let wanted = total * f64::from(share);
    // Nearly always a few tokens are enough, so only a growing head is sorted.
    let mut head = 64.min(candidates.len());
    loop {
        if head < candidates.len() {
            candidates.select_nth_unstable_by(head - 1, likelier);
        }
        candidates[..head].sort_unstable_by(likelier);
        let mut sum = 0.0;
        for (index, &(weight, _)) in candidates[..head].iter().enumerate() {
            sum += f64::from(weight);
            if sum >= wanted {
                candidates.truncate(index + 1);
                return;
            }
        }
        if head == candidates.len() {
            return;
        }
        head = (head * 8).min(candidates.len());
    }
}

fn likelier(a: &(f32, u32), b: &(f32, u32)) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

fn pick(candidates: &[(f32, u32)], rng: &mut Rng) -> u32 {
    let total: f64 = candidates
        .iter()
        .map(|&(weight, _)| f64::from(weight))
        .sum();
    let mut left = rng.next_f64() * total;
    for &(weight, token) in candidates {
        left -= f64::from(weight);
        if left < 0.0 {
            return token;
        }
    }
    // Rounding left a crumb: the last token with weight.
    candidates
        .iter()
        .rev()
        .find(|(weight, _)| *weight > 0.0)
        .or(candidates.last())
        .map_or(0, |&(_, token)| token)
}
