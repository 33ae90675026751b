//! Keys that ask for something: each is read by the architectures that compute it, and refused where nobody reads it.

use super::LoadError;
use super::keys::Keys;

/// Keys that change what a model computes, the value at which they do not, and what they ask for. Any architecture may
/// state them, whether its graph has the feature or not.
const MEANINGFUL: [(&str, f32, &str); 15] = [
    ("attention.causal", 1.0, "attention to later positions"),
    ("attention.clamp_kqv", 0.0, "clamping of Q, K and V"),
    (
        "attention.max_alibi_bias",
        0.0,
        "biases of attention by distance",
    ),
    ("attention.scale", 0.0, "a scale of attention scores"),
    ("attention.sliding_window", 0.0, "a window of positions"),
    (
        "attention.sliding_window_pattern",
        0.0,
        "a window of positions in some of the layers",
    ),
    (
        "attention.temperature_length",
        0.0,
        "attention scores scaled by position",
    ),
    (
        "attention.temperature_scale",
        0.0,
        "attention scores scaled by position",
    ),
    (
        "attn_logit_softcapping",
        0.0,
        "soft-capping of attention scores",
    ),
    ("embedding_scale", 1.0, "a scale of the embedding"),
    ("final_logit_softcapping", 0.0, "soft-capping of logits"),
    ("logit_scale", 1.0, "a scale of the logits"),
    ("residual_scale", 1.0, "a scale of the branches"),
    (
        "rope.scaling.alpha",
        0.0,
        "dynamic scaling of rotary embeddings",
    ),
    (
        "use_parallel_residual",
        0.0,
        "attention and feed-forward side by side",
    ),
];

/// Whether a key states a factor; 0 is how some files say that there is none.
fn is_factor(name: &str) -> bool {
    ["_scale", "scaling.factor"]
        .iter()
        .any(|end| name.ends_with(end))
}

impl Keys<'_> {
    /// Refuses a key that turns on a feature we do not compute.
    pub(crate) fn refuse(&self, name: &str, feature: &'static str) -> Result<(), LoadError> {
        self.refuse_unless(name, 0.0, feature)
    }

    /// The same for a feature that is off at `neutral`.
    pub(super) fn refuse_unless(
        &self,
        name: &str,
        neutral: f32,
        feature: &'static str,
    ) -> Result<(), LoadError> {
        let key = self.key(name);
        let metadata = self.metadata();
        let Some(value) = metadata.get(&key) else {
            return Ok(());
        };
        // What is off in every layer is off.
        let number = metadata.f32(&key).ok().flatten();
        let is_off = number == Some(neutral) || number == Some(0.0) && is_factor(name);
        match is_off {
            true => Ok(()),
            false => Err(LoadError::Unsupported {
                key,
                value: value.to_string(),
                feature,
            }),
        }
    }

    /// Refuses what the file asks for and the architecture did not look at: ignored, it would be another model.
    pub(super) fn refuse_unread(&self) -> Result<(), LoadError> {
        for (name, neutral, feature) in MEANINGFUL {
            if !self.was_asked(name) {
                self.refuse_unless(name, neutral, feature)?;
            }
        }
        Ok(())
    }
}
