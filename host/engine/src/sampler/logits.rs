//! Passes over a whole row of logits: is it sound, which is the largest, what are the log-probabilities.

use super::{BadLogits, TokenLogprob};

/// The largest logit of a sound row. −∞ is a forbidden token; NaN, +∞ or nothing but −∞ is a broken model.
pub(super) fn max(logits: &[f32]) -> Result<f32, BadLogits> {
    // False for NaN. No early end: without one the loop compiles to vector instructions.
    let sound = logits
        .iter()
        .fold(true, |sound, &logit| sound & (logit < f32::INFINITY));
    let max = largest_value(logits);
    if sound && max > f32::NEG_INFINITY {
        Ok(max)
    } else {
        Err(BadLogits)
    }
}

/// The token of the largest logit, the lowest id of equals.
pub(crate) fn arg_max(logits: &[f32]) -> u32 {
    const CHUNK: usize = 64;
    let max = largest_value(logits);
    let holds_max = |chunk: &[f32]| chunk.iter().fold(false, |any, &logit| any | (logit == max));
    let chunk = logits.chunks(CHUNK).position(holds_max).unwrap_or(0);
    let rest = &logits[chunk * CHUNK..];
    let place = rest.iter().position(|&logit| logit == max).unwrap_or(0);
    (chunk * CHUNK + place) as u32
}

/// The largest of a row without NaN. In lanes, because one chain of comparisons takes a vocabulary's time for each row:
/// with 8 streams that was a tenth of a step.
fn largest_value(logits: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = logits.as_chunks::<16>();
    let mut lanes = [f32::NEG_INFINITY; 16];
    for chunk in chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, logit);
        }
    }
    lanes
        .into_iter()
        .chain(rest.iter().copied())
        .fold(f32::NEG_INFINITY, larger)
}

/// The log-probabilities of a row, as far as they are going to be reported.
pub(super) struct Logprobs {
    normalizer: f32, // ln of the sum of e^logit
    top: Vec<(u32, f32)>,
}

impl Logprobs {
    /// Of a sound row; `top` alternatives.
    pub(super) fn of(logits: &[f32], top: usize) -> Logprobs {
        let max = largest_value(logits);
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
    fn the_largest_is_found_wherever_it_is() {
        for len in [1, 15, 16, 17, 64, 65, 200] {
            for place in 0..len {
                let mut logits = vec![-1.5; len];
                logits[place] = 2.0;
                assert_eq!(max(&logits), Ok(2.0), "{place} of {len}");
                assert_eq!(arg_max(&logits), place as u32, "{place} of {len}");
                logits[place] = f32::NAN;
                assert_eq!(max(&logits), Err(BadLogits), "{place} of {len}");
            }
        }
    }

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
