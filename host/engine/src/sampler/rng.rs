//! The random numbers of one job: xoshiro256++ (Blackman and Vigna), its state filled from the seed by splitmix64.
//!
//! Written here so that a seed means the same tokens on every machine and in every release.

#[derive(Clone, Debug)]
pub(crate) struct Rng {
    state: [u64; 4],
}

impl Rng {
    pub(crate) fn new(seed: u64) -> Rng {
        let mut at = seed;
        Rng {
            state: std::array::from_fn(|_| splitmix(&mut at)),
        }
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// Uniform in `0.0..1.0`, of 53 bits.
    pub(crate) fn next_f64(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform enough in `0..below`, for tests.
    #[cfg(test)]
    pub(crate) fn below(&mut self, below: u32) -> u32 {
        (self.next_f64() * f64::from(below)) as u32
    }
}

fn splitmix(at: &mut u64) -> u64 {
    *at = at.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *at;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix_gives_its_published_numbers() {
        let mut at = 1_234_567;
        assert_eq!(splitmix(&mut at), 6_457_827_717_110_365_317);
        assert_eq!(splitmix(&mut at), 3_203_168_211_198_807_973);
    }

    #[test]
    fn numbers_fill_the_unit_interval_evenly() {
        let mut rng = Rng::new(0);
        let mut bins = [0; 10];
        for _ in 0..10_000 {
            bins[(rng.next_f64() * 10.0) as usize] += 1;
        }
        assert!(
            bins.iter().all(|&bin| (850..1150).contains(&bin)),
            "{bins:?}"
        );
    }
}
