//! Repetition, presence and frequency penalties, over counts that follow the sequence token by token.

use std::collections::{HashMap, VecDeque};

use crate::policy::Policy;

/// How often tokens occur in the window.
#[derive(Debug)]
pub(super) struct Penalties {
    counts: HashMap<u32, Count>,
    window: Option<VecDeque<(u32, bool)>>, // (token, generated); `None` when the window is everything
    window_max: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    all: u32,       // in prompt and answer
    generated: u32, // in the answer
}

impl Penalties {
    /// `None` when the policy has no penalty.
    pub(super) fn new(policy: &Policy) -> Option<Penalties> {
        if policy.repetition_penalty == 1.0
            && policy.presence_penalty == 0.0
            && policy.frequency_penalty == 0.0
        {
            return None;
        }
        let window_max = policy.penalty_window as usize;
        Some(Penalties {
            counts: HashMap::new(),
            window: (window_max > 0).then(VecDeque::new),
            window_max,
        })
    }

    /// Counts a prompt; before what is generated.
    pub(super) fn see<'a>(&mut self, prompt: impl Iterator<Item = &'a u32>) {
        for &token in prompt {
            self.add(token, false);
        }
    }

    pub(super) fn accept(&mut self, token: u32) {
        self.add(token, true);
    }

    fn add(&mut self, token: u32, generated: bool) {
        let count = self.counts.entry(token).or_default();
        count.all += 1;
        count.generated += u32::from(generated);
        let Some(window) = &mut self.window else {
            return;
        };
        window.push_back((token, generated));
        if window.len() <= self.window_max {
            return;
        }
        let Some((left, generated)) = window.pop_front() else {
            return;
        };
        let count = self.counts.entry(left).or_default();
        count.all -= 1;
        count.generated -= u32::from(generated);
        if count.all == 0 {
            self.counts.remove(&left);
        }
    }

    /// The repetition penalty divides positive logits and multiplies negative ones (arXiv:1909.05858), so it always
    /// lowers them; the other two are subtracted, as the OpenAI API describes them.
    pub(super) fn apply(&self, policy: &Policy, logits: &mut [f32]) {
        for (&token, count) in &self.counts {
            let logit = &mut logits[token as usize];
            if *logit > 0.0 {
                *logit /= policy.repetition_penalty;
            } else {
                *logit *= policy.repetition_penalty;
            }
            if count.generated > 0 {
                *logit -= policy.presence_penalty;
                *logit -= policy.frequency_penalty * count.generated as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetition_counts_the_prompt_and_presence_only_the_answer() {
        let policy = Policy {
            repetition_penalty: 2.0,
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            ..Policy::default()
        };
        let mut penalties = Penalties::new(&policy).unwrap();
        penalties.see([0, 1].iter());
        penalties.accept(1);
        penalties.accept(1);
        let mut logits = vec![4.0, -1.0, 3.0];
        penalties.apply(&policy, &mut logits);
        assert_eq!(logits, [2.0, -3.0, 3.0]);
    }

    #[test]
    fn a_token_that_left_the_window_is_forgotten() {
        let policy = Policy {
            repetition_penalty: 2.0,
            penalty_window: 2,
            ..Policy::default()
        };
        let mut penalties = Penalties::new(&policy).unwrap();
        penalties.see([0].iter());
        penalties.accept(1);
        penalties.accept(2);
        let mut logits = vec![4.0, 4.0, 4.0];
        penalties.apply(&policy, &mut logits);
        assert_eq!(logits, [4.0, 2.0, 2.0]);
    }

    #[test]
    fn no_penalty_costs_nothing() {
        assert!(Penalties::new(&Policy::default()).is_none());
    }
}
