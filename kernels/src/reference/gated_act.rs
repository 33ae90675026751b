//! The gate of a feed-forward layer.

use crate::shapes::Activation;

/// The activation of one value. GELU: arXiv:1606.08415.
pub fn activate(act: Activation, x: f64) -> f64 {
    match act {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::Gelu => x * normal_cdf(x),
    }
}

/// Φ: the normal density from 0 to `x` by Simpson's rule, because the standard library has no error function.
fn normal_cdf(x: f64) -> f64 {
    const STEPS: u32 = 2000;
    let x = x.clamp(-12.0, 12.0);
    let density = |t: f64| (-t * t / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let h = x / f64::from(STEPS);
    let inner: f64 = (1..STEPS)
        .map(|i| density(h * f64::from(i)) * if i % 2 == 1 { 4.0 } else { 2.0 })
        .sum();
    0.5 + h / 3.0 * (density(0.0) + inner + density(x))
}

/// `cap * tanh(x / cap)`.
pub fn softcap(cap: f64, x: f64) -> f64 {
    cap * (x / cap).tanh()
}

/// `out = act(gate) * up`, element by element.
///
/// # Panics
/// When the lengths differ.
pub fn gated_act(act: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(
        gate.len() == up.len() && up.len() == out.len(),
        "gate, up and out must have the same length"
    );
    for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
        *out = (activate(act, f64::from(gate)) * f64::from(up)) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} {b}");
        close(activate(Activation::Gelu, 1.0), 0.841_344_75);
        close(activate(Activation::Gelu, -2.0), -0.045_500_26);
        close(activate(Activation::GeluTanh, 1.0), 0.841_192);
        close(activate(Activation::Silu, 1.0), 0.731_058_6);
        close(softcap(2.0, 1000.0), 2.0);
    }
}
