//! How to choose the next token and when to stop: plain data that a caller fills and the engine obeys.

/// Stop strings of one job, at most.
pub const STOPS_MAX: usize = 16;
/// Stop tokens of one job, at most.
pub const STOP_TOKENS_MAX: usize = 1_024;
/// Bytes of one stop string, at most.
pub const STOP_BYTES_MAX: usize = 256;
/// Alternatives reported beside each chosen token, at most.
pub const LOGPROBS_MAX: u32 = 20;

/// How one job decodes.
///
/// The order of effects on the logits is: penalties, bias, temperature, `min_p`, `top_k`, `top_p`; each filter
/// works on what the one before it left. Log-probabilities are those of the model's own logits, before all of this.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Tokens to generate at most; `None` is until the context is full.
    pub max_tokens: Option<u32>,
    /// Tokens to generate at least: until then no token that would end the job is chosen, and no stop string is looked for.
    pub min_tokens: u32,
    /// Divides the logits; 0 always takes the likeliest token (the lowest id of equals). 0 to 100.
    pub temperature: f32,
    /// Keeps this many of the likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps the likeliest tokens that together have this probability, at least one; 0 to 1.
    pub top_p: f32,
    /// Drops tokens less likely than this fraction of the likeliest; 0 to 1.
    pub min_p: f32,
    /// Makes tokens seen in the window (prompt included) less likely; 1 is off, above 0, at most 10.
    pub repetition_penalty: f32,
    /// Taken once from the logit of a token generated in the window; -2 to 2.
    pub presence_penalty: f32,
    /// Taken from the logit of a token for each time it was generated in the window; -2 to 2.
    pub frequency_penalty: f32,
    /// How many of the last tokens the penalties see; 0 is all of them.
    pub penalty_window: u32,
    /// Makes the job repeatable, whatever else is in the batch; `None` takes a seed from the engine.
    pub seed: Option<u64>,
    /// Added to the logits of tokens; -100 to 100 each.
    pub logit_bias: Vec<(u32, f32)>,
    /// The job ends before the first of these in its text.
    pub stop: Vec<String>,
    /// The job ends before the first of these tokens, as it does before the model's end-of-generation tokens.
    pub stop_token_ids: Vec<u32>,
    /// Reports the log-probability of each token and of this many alternatives; `Some(0)` is the token's only.
    pub logprobs: Option<u32>,
    /// Reports the same of the tokens that the sequence has when the job begins, all but the first. A job with `max_tokens` 0
    /// does nothing else.
    pub prompt_logprobs: Option<u32>,
    /// Goes on past the model's end-of-generation tokens, which then are tokens like others (without text).
    pub ignore_eos: bool,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            max_tokens: None,
            min_tokens: 0,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_window: 0,
            seed: None,
            logit_bias: Vec::new(),
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            logprobs: None,
            prompt_logprobs: None,
            ignore_eos: false,
        }
    }
}

impl Policy {
    /// Checks every field against its range; `vocab` is the model's number of token ids.
    ///
    /// # Errors
    /// A text for the caller that names the first field out of range, its value and its range.
    pub fn validate(&self, vocab: u32) -> Result<(), String> {
        within("temperature", self.temperature, 0.0, 100.0)?;
        within("top_p", self.top_p, 0.0, 1.0)?;
        within("min_p", self.min_p, 0.0, 1.0)?;
        within(
            "repetition_penalty",
            self.repetition_penalty,
            f32::MIN_POSITIVE,
            10.0,
        )?;
        within("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?;
        if self.logit_bias.len() > vocab as usize {
            return Err(format!(
                "logit_bias has {} entries, but the vocabulary has {vocab} tokens",
                self.logit_bias.len()
            ));
        }
        for &(token, bias) in &self.logit_bias {
            if token >= vocab {
                return Err(format!(
                    "logit_bias names token {token}, but the vocabulary has {vocab} tokens"
                ));
            }
            within("logit_bias", bias, -100.0, 100.0)?;
        }
        if self.stop.len() > STOPS_MAX {
            return Err(format!(
                "stop has {} strings, but at most {STOPS_MAX} are allowed",
                self.stop.len()
            ));
        }
        for stop in &self.stop {
            if stop.is_empty() || stop.len() > STOP_BYTES_MAX {
                return Err(format!(
                    "a stop string has {} bytes, but it must have 1 to {STOP_BYTES_MAX}",
                    stop.len()
                ));
            }
        }
        self.validate_ends(vocab)?;
        let asked = [
            ("logprobs", self.logprobs),
            ("prompt_logprobs", self.prompt_logprobs),
        ];
        for (field, top) in asked {
            if let Some(top) = top.filter(|top| *top > LOGPROBS_MAX) {
                return Err(format!(
                    "{field} asks for {top} alternatives, but at most {LOGPROBS_MAX} are given"
                ));
            }
        }
        Ok(())
    }

    /// The part of [`Policy::validate`] that is about where a job ends, strings apart.
    fn validate_ends(&self, vocab: u32) -> Result<(), String> {
        if let Some(max) = self.max_tokens.filter(|&max| max < self.min_tokens) {
            return Err(format!(
                "min_tokens is {}, but it must be at most max_tokens, which is {max}",
                self.min_tokens
            ));
        }
        if self.stop_token_ids.len() > STOP_TOKENS_MAX {
            return Err(format!(
                "stop_token_ids has {} tokens, but at most {STOP_TOKENS_MAX} are allowed",
                self.stop_token_ids.len()
            ));
        }
        match self.stop_token_ids.iter().find(|&&token| token >= vocab) {
            Some(token) => Err(format!(
                "stop_token_ids names token {token}, but the vocabulary has {vocab} tokens"
            )),
            None => Ok(()),
        }
    }
}

/// A NaN is outside every range.
fn within(field: &str, value: f32, min: f32, max: f32) -> Result<(), String> {
    if value >= min && value <= max {
        return Ok(());
    }
    let above = if min == f32::MIN_POSITIVE {
        "above 0".to_owned()
    } else {
        format!("at least {min}")
    };
    Err(format!(
        "{field} is {value}, but it must be {above} and at most {max}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_policy_is_valid() {
        assert_eq!(Policy::default().validate(10), Ok(()));
    }

    #[test]
    fn a_field_out_of_range_is_named_with_its_value_and_range() {
        let check = |change: fn(&mut Policy), expected: &str| {
            let mut policy = Policy::default();
            change(&mut policy);
            assert_eq!(policy.validate(10), Err(expected.to_owned()));
        };
        check(
            |p| p.temperature = -1.0,
            "temperature is -1, but it must be at least 0 and at most 100",
        );
        check(
            |p| p.temperature = f32::NAN,
            "temperature is NaN, but it must be at least 0 and at most 100",
        );
        check(
            |p| p.top_p = -0.5,
            "top_p is -0.5, but it must be at least 0 and at most 1",
        );
        check(
            |p| p.frequency_penalty = 3.0,
            "frequency_penalty is 3, but it must be at least -2 and at most 2",
        );
        check(
            |p| p.logit_bias = vec![(10, 1.0)],
            "logit_bias names token 10, but the vocabulary has 10 tokens",
        );
        check(
            |p| p.stop = vec![String::new()],
            "a stop string has 0 bytes, but it must have 1 to 256",
        );
        check(
            |p| p.stop = vec!["x".to_owned(); 17],
            "stop has 17 strings, but at most 16 are allowed",
        );
        check(
            |p| (p.min_tokens, p.max_tokens) = (5, Some(4)),
            "min_tokens is 5, but it must be at most max_tokens, which is 4",
        );
        check(
            |p| p.stop_token_ids = vec![9, 10],
            "stop_token_ids names token 10, but the vocabulary has 10 tokens",
        );
        check(
            |p| p.stop_token_ids = vec![1; 1025],
            "stop_token_ids has 1025 tokens, but at most 1024 are allowed",
        );
        check(
            |p| p.logprobs = Some(21),
            "logprobs asks for 21 alternatives, but at most 20 are given",
        );
        check(
            |p| p.prompt_logprobs = Some(21),
            "prompt_logprobs asks for 21 alternatives, but at most 20 are given",
        );
    }
}
