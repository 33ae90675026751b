//! Passes over a whole row of logits: is it sound, which is the largest, what are the log-probabilities.

use super::{BadLogits, TokenLogprob};

/// The largest logit of a sound row. −∞ is a forbidden token; NaN, +∞ or nothing but −∞ is a broken model.
pub(super) fn max(logits: &[f32]) -> Result<f32, BadLogits> {
    let mut max = f32::NEG_INFINITY;
    let mut sound = true;
    for &logit in logits {
        sound &= logit < f32::INFINITY; // false for NaN
        max = max.max(logit);
    }
    if sound && max > f32::NEG_INFINITY {
        Ok(max)
    } else {
        Err(BadLogits)
    }
}

/// The token of the largest logit, the lowest id of equals.
pub(super) fn arg_max(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (token, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = token;
        }
    }
    best as u32
}

/// The log-probabilities of a row, as far as they are going to be reported.
pub(super) struct Logprobs {
    normalizer: f32, // ln of the sum of e^logit
    top: Vec<(u32, f32)>,
}

impl Logprobs {
    /// Of a sound row; `top` alternatives.
    pub(super) fn of(logits: &[f32], top: usize) -> Logprobs {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits
            .iter()
            .map(|&logit| f64::from((logit - max).exp()))
            .sum();
        let normalizer = max + sum.ln() as f32;
        Logprobs {
            normalizer,
            top: largest(logits, top)
                .into_iter()
                .map(|(logit, token)| (token, logit - normalizer))
                .collect(),
        }
    }

    pub(super) fn report(self, logits: &[f32], token: u32) -> TokenLogprob {
        TokenLogprob {
            token,
            logprob: logits[token as usize] - self.normalizer,
            top: self.top,
        }
    }
}

/// The `count` largest with their tokens, largest first, lower ids first among equals.
fn largest(logits: &[f32], count: usize) -> Vec<(f32, u32)> {
    let mut best: Vec<(f32, u32)> = Vec::with_capacity(count + 1);
    if count == 0 {
        return best;
    }
    // `count` is small (20 at most), so insertion beats sorting the row.
    for (token, &logit) in logits.iter().enumerate() {
        if best.len() == count && best.last().is_some_and(|&(least, _)| logit <= least) {
            continue;
        }
        let place = best.partition_point(|&(other, _)| other >= logit);
        best.insert(place, (logit, token as u32));
        best.truncate(count);
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_come_in_order_and_equals_by_id() {
        assert_eq!(
            largest(&[1.0, 5.0, 3.0, 5.0, 4.0], 3),
            [(5.0, 1), (5.0, 3), (4.0, 4)]
        );
        assert_eq!(largest(&[1.0], 3), [(1.0, 0)]);
        assert!(largest(&[1.0], 0).is_empty());
    }

    #[test]
    fn probabilities_of_a_row_add_up_to_one() {
        let logits = [10.0, 9.0, -4.0, 200.0, 199.5];
        let sum: f32 = (0..5)
            .map(|token| {
                Logprobs::of(&logits, 0)
                    .report(&logits, token)
                    .logprob
                    .exp()
            })
            .sum();
        assert!((sum - 1.0).abs() < 1e-4, "{sum}");
    }
}
