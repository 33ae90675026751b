//! Drawing from the tempered distribution after min-p, top-k and top-p.

use super::Rng;
use super::logits;
use crate::policy::Policy;

/// Tokens e^-25 times less likely than the likeliest are never drawn. Together they weigh less than 4 in a million,
/// even all of a vocabulary of 262,144, and leaving them out spares an exponential each.
const LEAST_LOGIT: f32 = -25.0;

/// Draws a token. `scratch` is reused between calls.
pub(super) fn draw(
    policy: &Policy,
    logits: &[f32],
    scratch: &mut Vec<(f32, u32)>,
    rng: &mut Rng,
) -> u32 {
    // Bias and penalties are finite, so a row that was sound is not empty now; at worst the arg-max is taken.
    let Ok(max) = logits::max(logits) else {
        return logits::arg_max(logits);
    };
    let scale = 1.0 / policy.temperature;
    let least = LEAST_LOGIT.max(policy.min_p.ln()); // min_p = 0 is −∞ here
    scratch.clear();
    for (token, &logit) in logits.iter().enumerate() {
        let scaled = (logit - max) * scale;
        if scaled >= least {
            scratch.push((scaled, token as u32));
        }
    }
    if scratch.is_empty() {
        return logits::arg_max(logits); // a temperature so low that 0 · ∞ came up
    }
    keep_top_k(policy.top_k as usize, scratch);
    for (weight, _) in scratch.iter_mut() {
        *weight = weight.exp();
    }
    keep_top_p(policy.top_p, scratch);
    pick(scratch, rng)
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
