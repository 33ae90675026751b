//! Rotary embeddings as files describe them: plain, with frequency factors, and stretched to longer contexts.

use realm_kernels::{Rope, RopeLayout};

use super::LoadError;
use super::loader::{Loader, Shape};
use super::ops::Ops;

const LONG_FACTORS: &str = "rope_factors_long.weight";

/// How frequencies are changed for contexts longer than those of the training.
struct Scaling {
    frequency: f32,            // of all pairs
    factors: Option<Vec<f32>>, // the frequency of a pair is divided by its own
    magnitude: f32,            // of what is rotated
}

impl<O: Ops> Loader<'_, O> {
    /// The rotary embedding with the base the file states, scaled as it says.
    pub(super) fn rope(&mut self, shape: &Shape, layout: RopeLayout) -> Result<Rope, LoadError> {
        let base = self.keys.positive("rope.freq_base", 10_000.0)?;
        self.scaled_rope(shape, base, layout)
    }

    /// The rotary embedding with this base, scaled as the file says.
    pub(super) fn scaled_rope(
        &mut self,
        shape: &Shape,
        base: f32,
        layout: RopeLayout,
    ) -> Result<Rope, LoadError> {
        let dims = self.rope_dims(shape)?;
        let scaling = self.scaling(shape, dims, base)?;
        let (frequency, factors) = (scaling.frequency, scaling.factors.as_deref());
        let rope = Rope::new(shape.head_dim, dims, base, frequency, layout, factors);
        Ok(rope.with_magnitude(scaling.magnitude))
    }

    /// The rotary embedding with this base and nothing else.
    pub(super) fn plain_rope(
        &self,
        shape: &Shape,
        base: f32,
        layout: RopeLayout,
    ) -> Result<Rope, LoadError> {
        let dims = self.rope_dims(shape)?;
        Ok(Rope::new(shape.head_dim, dims, base, 1.0, layout, None))
    }

    fn rope_dims(&self, shape: &Shape) -> Result<usize, LoadError> {
        let key = self.keys.key("rope.dimension_count");
        let dims = self
            .keys
            .metadata()
            .u32(&key)?
            .unwrap_or(shape.head_dim as u32);
        let fits = dims > 0 && dims.is_multiple_of(2) && dims as usize <= shape.head_dim;
        let wanted = format!("an even number up to {}", shape.head_dim);
        Ok(self.keys.check(&key, dims, fits, &wanted)? as usize)
    }

    fn scaling(&mut self, shape: &Shape, dims: usize, base: f32) -> Result<Scaling, LoadError> {
        let key = self.keys.key("rope.scaling.type");
        let ty = match self.keys.metadata().str(&key)? {
            Some(ty) => ty,
            // Files of Phi 3 have the factors and do not say what they are.
            None if self.has(LONG_FACTORS) => "longrope",
            None => "linear",
        };
        let mut scaling = Scaling {
            frequency: 1.0,
            factors: None,
            magnitude: self.keys.positive("rope.scaling.attn_factor", 1.0)?,
        };
        match ty {
            "longrope" => scaling.factors = Some(self.long_rope(shape, dims)?),
            "none" | "linear" | "yarn" => {
                scaling.factors = self.optional_values("rope_freqs.weight", dims / 2)?
            }
            other => {
                return Err(LoadError::Unsupported {
                    key,
                    value: other.to_owned(),
                    feature: "this scaling of rotary embeddings",
                });
            }
        }
        if ty == "linear" {
            let old_key = self.keys.factor("rope.scale_linear", 1.0)?;
            scaling.frequency = 1.0 / self.keys.factor("rope.scaling.factor", old_key)?;
        }
        if ty == "yarn" {
            let yarn = self.yarn(shape)?;
            let mut factors = yarn.factors(dims, base);
            for (factor, own) in factors.iter_mut().zip(scaling.factors.iter().flatten()) {
                *factor *= own;
            }
            scaling.factors = Some(factors);
            // What is stated here is all of it, where `attn_factor` comes on top.
            scaling.magnitude *= self
                .keys
                .positive("rope.scaling.yarn_attn_factor", yarn.magnitude())?;
        }
        Ok(scaling)
    }

    /// Source: arXiv:2402.13753. The file has factors for the context of the training and for longer ones. Keys stay in
    /// the cache as they were rotated, so that the choice is made once, for the longest context asked for.
    fn long_rope(&mut self, shape: &Shape, dims: usize) -> Result<Vec<f32>, LoadError> {
        self.keys
            .metadata()
            .require_f32(&self.keys.key("rope.scaling.attn_factor"))?;
        self.keys
            .refuse_unless("rope.scaling.factor", 1.0, "a factor beside LongRoPE's")?;
        let short = self.values("rope_factors_short.weight", dims / 2)?;
        let long = self.values(LONG_FACTORS, dims / 2)?;
        let original = self.keys.count("rope.scaling.original_context_length")?;
        Ok(
            match shape.context.min(self.keys.context_max()) > original {
                true => long,
                false => short,
            },
        )
    }

    fn yarn(&self, shape: &Shape) -> Result<Yarn, LoadError> {
        self.keys.refuse(
            "rope.scaling.yarn_log_multiplier",
            "a YaRN magnitude of its own",
        )?;
        let extrapolation = "an extrapolation factor of YaRN";
        self.keys
            .refuse_unless("rope.scaling.yarn_ext_factor", 1.0, extrapolation)?;
        let original = "rope.scaling.original_context_length";
        let original = match self.keys.metadata().u32(&self.keys.key(original))? {
            None | Some(0) => shape.context,
            Some(_) => self.keys.count(original)?,
        };
        Ok(Yarn {
            factor: self.keys.factor("rope.scaling.factor", 1.0)?,
            original,
            beta_fast: self.keys.positive("rope.scaling.yarn_beta_fast", 32.0)?,
            beta_slow: self.keys.positive("rope.scaling.yarn_beta_slow", 1.0)?,
        })
    }
}

/// Source: arXiv:2309.00071.
struct Yarn {
    factor: f32,
    original: u32, // context of the training
    beta_fast: f32,
    beta_slow: f32,
}

impl Yarn {
    /// Pairs that turn more than `beta_fast` times in the original context keep their frequency, those that turn less
    /// than `beta_slow` times are slowed down by the whole factor, those between by a part of it.
    fn factors(&self, dims: usize, base: f32) -> Vec<f32> {
        let base = f64::from(base);
        // The pair that turns so many times in the original context.
        let pair_of = |turns: f32| {
            let radians = f64::from(turns) * 2.0 * std::f64::consts::PI;
            dims as f64 * (f64::from(self.original) / radians).ln() / (2.0 * base.ln())
        };
        let last = dims as f64 - 1.0;
        let low = pair_of(self.beta_fast).floor().clamp(0.0, last);
        let high = pair_of(self.beta_slow).ceil().clamp(0.0, last);
        let slow = 1.0 / f64::from(self.factor);
        (0..dims / 2)
            .map(|pair| {
                let ramp = ((pair as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                (1.0 / (slow * ramp + (1.0 - ramp))) as f32
            })
            .collect()
    }

    fn magnitude(&self) -> f32 {
        1.0 + 0.1 * self.factor.max(1.0).ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `transformers` computes for Qwen 2.5's setting, but with heads of 16: inverse frequencies over plain ones.
    #[test]
    fn yarn_is_that_of_transformers() {
        let yarn = Yarn {
            factor: 4.0,
            original: 32_768,
            beta_fast: 32.0,
            beta_slow: 1.0,
        };
        let expected = [1.0f32, 1.0, 1.0, 1.333_333_4, 2.0, 4.0, 4.0, 4.0];
        for (ours, expected) in yarn.factors(16, 1e6).iter().zip(expected) {
            assert!((ours - expected).abs() < 1e-5, "{ours} {expected}");
        }
        assert!((yarn.magnitude() - 1.138_629_4).abs() < 1e-6);
    }
}
