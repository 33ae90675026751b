//! Thousands of damaged copies of a valid file, from fixed seeds: each is read or refused, none panics or hangs.

mod common;

use fastrand::Rng;
use realm_weights::Gguf;

/// Reads everything a file offers; whether it is accepted.
fn read(bytes: Vec<u8>) -> bool {
    let Ok(file) = Gguf::from_bytes(bytes) else {
        return false;
    };
    for (_, value) in file.metadata().iter() {
        let _ = value.to_string();
    }
    for tensor in file.tensors() {
        let _ = tensor.matrix();
        let _ = tensor.vector_f32();
    }
    true
}

#[test]
fn every_truncation_is_refused() {
    let bytes = common::good().bytes();
    for length in 0..bytes.len() {
        assert!(!read(bytes[..length].to_vec()), "cut at {length}");
    }
    assert!(read(bytes));
}

#[test]
fn every_byte_may_be_any_of_a_few() {
    let bytes = common::good().bytes();
    for at in 0..bytes.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] = value;
            read(damaged);
        }
    }
}

#[test]
fn random_damage_never_panics() {
    let bytes = common::good().bytes();
    let (mut accepted, mut refused) = (0, 0);
    for seed in 0..20_000 {
        let mut random = Rng::with_seed(seed);
        let mut damaged = bytes.clone();
        for _ in 0..1 + random.usize(..8) {
            let at = random.usize(..damaged.len());
            match random.usize(..4) {
                0 => damaged[at] ^= 1 << random.usize(..8),
                1 => damaged[at] = random.u8(..),
                // A length, count or offset becomes extreme.
                2 => {
                    let value = [u64::MAX, 1 << 63, 1 << 32, u64::MAX - 31][random.usize(..4)];
                    for (byte, new) in damaged[at..].iter_mut().zip(value.to_le_bytes()) {
                        *byte = new;
                    }
                }
                _ => {
                    let from = random.usize(..damaged.len());
                    let length = random.usize(..32).min(damaged.len() - from.max(at));
                    damaged.copy_within(from..from + length, at);
                }
            }
        }
        if random.usize(..8) == 0 {
            damaged.truncate(random.usize(..damaged.len()));
        }
        match read(damaged) {
            true => accepted += 1,
            false => refused += 1,
        }
    }
    // Damage in the data or in a value is no error, so both must be seen.
    assert!(accepted > 500 && refused > 5_000, "{accepted} {refused}");
}
