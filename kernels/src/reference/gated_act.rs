//! The gate of a feed-forward layer.

use crate::shapes::Activation;

/// The activation of one value.
pub fn activate(act: Activation, x: f64) -> f64 {
    match act {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
    }
}

/// `out = act(gate) * up`, element by element.
///
/// # Panics
/// When the lengths differ.
pub fn gated_act(act: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(
        gate.len() == up.len() && up.len() == out.len(),
        "gate, up and out have one length"
    );
    for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
        *out = (activate(act, f64::from(gate)) * f64::from(up)) as f32;
    }
}
