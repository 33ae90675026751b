//! From a row of logits to a token, as the job's policy says.
//!
//! A job's choices depend on its own logits, tokens and seed only, never on what else is in the batch.

mod logits;
mod penalties;
mod rng;
mod top_k_p;

use crate::batch::Tokens;
use crate::policy::Policy;
pub(crate) use logits::arg_max;
use penalties::Penalties;
pub(crate) use rng::Rng;

/// A token that was chosen, with the model's log-probability of it before penalties, bias and temperature.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenLogprob {
    /// The chosen token.
    pub token: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The likeliest tokens with theirs, likeliest first; as many as the policy asked for.
    pub top: Vec<(u32, f32)>,
}

/// A token that a sequence has already, with what the model made of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PromptLogprob {
    /// The token, and the likeliest ones in its place.
    pub logprob: TokenLogprob,
    /// Its place among all tokens, from 1 for the likeliest.
    pub rank: u32,
}

impl PromptLogprob {
    /// Of `token`, by the logits after the tokens before it.
    pub(crate) fn of(logits: &[f32], token: u32, top: u32) -> Result<PromptLogprob, BadLogits> {
        logits::max(logits)?;
        let own = logits[token as usize];
        let likelier = logits.iter().filter(|&&logit| logit > own).count();
        Ok(PromptLogprob {
            logprob: logits::Logprobs::of(logits, top as usize).report(logits, token),
            rank: 1 + likelier as u32,
        })
    }
}

/// Logits that no token can be chosen from: the model or its file is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadLogits;

/// The state of one job's choices.
#[derive(Debug)]
pub(crate) struct Sampler {
    penalties: Option<Penalties>,
    prompt: Tokens,      // not yet seen by the penalties
    forbidden: Vec<u32>, // never chosen for now
    rng: Rng,
    scratch: top_k_p::Scratch,
}

impl Sampler {
    pub(crate) fn new(policy: &Policy) -> Sampler {
        Sampler {
            penalties: Penalties::new(policy),
            prompt: Tokens::default(),
            forbidden: Vec::new(),
            rng: Rng::new(policy.seed.unwrap_or_default()),
            scratch: top_k_p::Scratch::default(),
        }
    }

    /// `prompt` is what the sequence has already; `seed` is used when the policy has none. Costs nothing: the prompt is
    /// counted with the first choice, which is where the job's own time is measured.
    pub(crate) fn begin(&mut self, policy: &Policy, prompt: Tokens, seed: u64) {
        self.rng = Rng::new(policy.seed.unwrap_or(seed));
        if self.penalties.is_some() {
            self.prompt = prompt;
        }
    }

    /// From now on none of these tokens is chosen, and any other may be.
    pub(crate) fn forbid(&mut self, tokens: Vec<u32>) {
        self.forbidden = tokens;
    }

    /// Chooses a token. `logits` is `[vocab]` and is changed by penalties, bias and what is forbidden.
    pub(crate) fn choose(
        &mut self,
        policy: &Policy,
        logits: &mut [f32],
    ) -> Result<(u32, Option<TokenLogprob>), BadLogits> {
        let max = logits::max(logits)?;
        let before = policy
            .logprobs
            .map(|top| logits::Logprobs::of(logits, top as usize));
        let logprob_of = before.map(|logprobs| (logprobs, logits.to_vec()));

        if let Some(penalties) = &mut self.penalties {
            let prompt = std::mem::take(&mut self.prompt);
            penalties.see(prompt.pieces(0, prompt.len()).flatten());
            penalties.apply(policy, logits);
        }
        for &(token, bias) in &policy.logit_bias {
            logits[token as usize] += bias;
        }
        // Last, since no bias may bring one back.
        for &token in &self.forbidden {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        let changed =
            self.penalties.is_some() || !policy.logit_bias.is_empty() || !self.forbidden.is_empty();
        let largest = if changed {
            logits::max(logits)
        } else {
            Ok(max)
        };
        let token = match largest {
            Ok(max) if policy.temperature != 0.0 => {
                top_k_p::draw(policy, logits, max, &mut self.scratch, &mut self.rng)
            }
            // A row that was sound and is no longer had logits that overflowed: the likeliest is one of them.
            _ => arg_max(logits),
        };
        let logprob = logprob_of.map(|(logprobs, raw)| logprobs.report(&raw, token));
        Ok((token, logprob))
    }

    /// Tells the penalties of a token that was generated.
    pub(crate) fn accept(&mut self, token: u32) {
        if let Some(penalties) = &mut self.penalties {
            penalties.accept(token);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(policy: &Policy, seed: u64) -> Sampler {
        let mut sampler = Sampler::new(policy);
        sampler.begin(policy, Tokens::default(), seed);
        sampler
    }

    fn choose(policy: &Policy, logits: &[f32], seed: u64) -> u32 {
        let mut logits = logits.to_vec();
        sampler(policy, seed).choose(policy, &mut logits).unwrap().0
    }

    fn greedy() -> Policy {
        Policy {
            temperature: 0.0,
            ..Policy::default()
        }
    }

    /// How often each token comes up in 4,000 draws, as fractions.
    fn frequencies(policy: &Policy, logits: &[f32]) -> Vec<f32> {
        let mut counts = vec![0.0; logits.len()];
        let mut sampler = sampler(policy, 1);
        for _ in 0..4000 {
            let (token, _) = sampler.choose(policy, &mut logits.to_vec()).unwrap();
            counts[token as usize] += 1.0 / 4000.0;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_lowest_id_of_equals() {
        assert_eq!(choose(&greedy(), &[0.0, 3.0, 3.0, -1.0], 0), 1);
    }

    #[test]
    fn a_logit_that_is_not_a_number_is_an_error_and_no_panic() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut logits = vec![0.0, bad, 1.0];
            let mut sampler = sampler(&greedy(), 0);
            assert_eq!(sampler.choose(&greedy(), &mut logits), Err(BadLogits));
        }
        let mut nothing_left = vec![f32::NEG_INFINITY; 3];
        let mut sampler = sampler(&greedy(), 0);
        assert_eq!(sampler.choose(&greedy(), &mut nothing_left), Err(BadLogits));
    }

    #[test]
    fn a_masked_token_is_never_drawn() {
        let frequencies = frequencies(&Policy::default(), &[0.0, f32::NEG_INFINITY, 0.0]);
        assert_eq!(frequencies[1], 0.0);
        assert!((frequencies[0] - 0.5).abs() < 0.03);
    }

    #[test]
    fn draws_follow_the_softmax_of_the_tempered_logits() {
        let logits = [0.0, 1.0, 2.0];
        let policy = Policy {
            temperature: 0.5,
            ..Policy::default()
        };
        let weights: Vec<f32> = logits.iter().map(|x| (x / 0.5f32).exp()).collect();
        let sum: f32 = weights.iter().sum();
        for (seen, weight) in frequencies(&policy, &logits).iter().zip(&weights) {
            assert!((seen - weight / sum).abs() < 0.03, "{seen} {weight} {sum}");
        }
    }

    #[test]
    fn a_draw_from_many_finds_the_piece_and_the_token() {
        // Over several pieces, and a last one that is short: three tokens have all of the weight.
        let mut logits = vec![f32::NEG_INFINITY; 200];
        for (token, share) in [(3, 0.5f32), (130, 0.3), (199, 0.2)] {
            logits[token] = share.ln();
        }
        let frequencies = frequencies(&Policy::default(), &logits);
        for (token, seen) in frequencies.iter().enumerate() {
            let wanted = logits[token].exp();
            assert!((seen - wanted).abs() < 0.03, "token {token}: {seen}");
            assert_eq!(*seen == 0.0, wanted == 0.0, "token {token}");
        }
    }

    #[test]
    fn each_filter_keeps_what_it_says() {
        let logits = [0.6f32.ln(), 0.25f32.ln(), 0.1f32.ln(), 0.05f32.ln()];
        let check = |change: fn(&mut Policy), kept: &[f32]| {
            let mut policy = Policy::default();
            change(&mut policy);
            for (token, (seen, kept)) in frequencies(&policy, &logits).iter().zip(kept).enumerate()
            {
                assert!(
                    (seen - kept).abs() < 0.03,
                    "token {token}: {seen} for {kept}"
                );
                assert_eq!(*seen == 0.0, *kept == 0.0, "token {token}");
            }
        };
        check(|p| p.top_k = 1, &[1.0, 0.0, 0.0, 0.0]);
        check(|p| p.top_k = 2, &[0.706, 0.294, 0.0, 0.0]);
        check(|p| p.top_p = 0.0, &[1.0, 0.0, 0.0, 0.0]);
        check(|p| p.top_p = 0.55, &[1.0, 0.0, 0.0, 0.0]);
        check(|p| p.top_p = 0.9, &[0.632, 0.263, 0.105, 0.0]);
        check(|p| p.min_p = 0.3, &[0.706, 0.294, 0.0, 0.0]);
        check(
            |p| (p.top_k, p.top_p) = (3, 0.85),
            &[0.706, 0.294, 0.0, 0.0],
        );
    }

    #[test]
    fn the_same_seed_gives_the_same_tokens() {
        let logits: Vec<f32> = (0..100).map(|i| (i % 7) as f32).collect();
        let policy = Policy {
            seed: Some(42),
            ..Policy::default()
        };
        let run = |engine_seed| {
            let mut sampler = sampler(&policy, engine_seed);
            (0..50)
                .map(|_| sampler.choose(&policy, &mut logits.clone()).unwrap().0)
                .collect::<Vec<u32>>()
        };
        assert_eq!(run(1), run(2));
        let unseeded = Policy::default();
        assert_ne!(
            frequencies(&unseeded, &logits)[6],
            0.0,
            "an unseeded job draws too"
        );
    }

    #[test]
    fn a_logit_that_a_penalty_makes_overflow_is_the_likeliest() {
        let policy = Policy {
            repetition_penalty: 0.5,
            ..Policy::default()
        };
        let mut sampler = sampler(&policy, 1);
        sampler.accept(70);
        let mut logits = vec![0.9 * f32::MAX; 200];
        assert_eq!(sampler.choose(&policy, &mut logits).unwrap().0, 70);
    }

    #[test]
    fn tokens_of_a_prompt_have_a_rank_and_as_many_alternatives_as_asked_for() {
        let never = f32::NEG_INFINITY;
        let logits = [0.25f32.ln(), never, 0.5f32.ln(), 0.25f32.ln(), never];
        for (token, rank) in [(2, 1), (0, 2), (3, 2), (1, 4), (4, 4)] {
            let scored = PromptLogprob::of(&logits, token, 4).unwrap();
            assert_eq!(scored.rank, rank, "token {token}");
            let top: Vec<u32> = scored.logprob.top.iter().map(|(token, _)| *token).collect();
            assert_eq!(top, [2, 0, 3, 1], "the forbidden ones fill it up");
            let wanted = logits[token as usize];
            let found = scored.logprob.logprob;
            assert!(found == wanted || (found - wanted).abs() < 1e-5, "{found}");
        }
        let broken = [0.0, f32::NAN];
        assert_eq!(PromptLogprob::of(&broken, 0, 1), Err(BadLogits));
    }

    #[test]
    fn bias_can_force_and_forbid() {
        let policy = Policy {
            logit_bias: vec![(2, 100.0), (0, -100.0)],
            ..Policy::default()
        };
        assert_eq!(choose(&policy, &[5.0, 4.0, -3.0], 9), 2);
    }

    #[test]
    fn what_is_forbidden_is_not_chosen_whatever_its_bias() {
        let policy = Policy {
            logit_bias: vec![(2, 100.0)],
            logprobs: Some(1),
            ..greedy()
        };
        let mut sampler = sampler(&policy, 0);
        sampler.forbid(vec![2, 0, 7]);
        let logits = [5.0, 4.0, -3.0];
        let (token, logprob) = sampler.choose(&policy, &mut logits.to_vec()).unwrap();
        assert_eq!(token, 1);
        assert_eq!(logprob.unwrap().top[0].0, 0, "the model's own word stays");
        sampler.forbid(Vec::new());
        let chosen = sampler.choose(&policy, &mut logits.to_vec());
        assert_eq!(chosen.unwrap().0, 2);
    }

    #[test]
    fn logprobs_are_those_of_the_model_whatever_the_policy_does() {
        let policy = Policy {
            temperature: 0.0,
            logprobs: Some(2),
            logit_bias: vec![(2, 50.0)],
            ..Policy::default()
        };
        let mut logits = vec![0.5f32.ln(), 0.25f32.ln(), 0.125f32.ln(), 0.125f32.ln()];
        let mut sampler = sampler(&policy, 0);
        let (token, logprob) = sampler.choose(&policy, &mut logits).unwrap();
        let logprob = logprob.unwrap();
        assert_eq!((token, logprob.token), (2, 2));
        assert!((logprob.logprob - 0.125f32.ln()).abs() < 1e-5);
        assert_eq!(logprob.top.len(), 2);
        assert_eq!(logprob.top[0].0, 0);
        assert!((logprob.top[1].1 - 0.25f32.ln()).abs() < 1e-5);
    }
}
