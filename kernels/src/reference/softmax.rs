//! Softmax.

/// `x = exp(x) / Σ exp(x)`, in place, with the maximum taken out first; all-zero weights when every input is −∞.
pub fn softmax(x: &mut [f64]) {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY {
        x.fill(0.0);
        return;
    }
    let mut sum = 0.0;
    for v in x.iter_mut() {
        *v = (*v - max).exp();
        sum += *v;
    }
    for v in x {
        *v /= sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_sum_to_one_and_minus_infinity_gets_none() {
        let mut x = [1000.0, f64::NEG_INFINITY, 1000.0];
        softmax(&mut x);
        assert_eq!(x, [0.5, 0.0, 0.5]);
    }
}
