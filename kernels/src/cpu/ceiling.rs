//! What no operation can be faster than on this machine: loops that only read, only multiply, or only fork and join.
//! The caller holds the clock.

use super::Cpu;
use super::isa::Kernel;
use super::shared::SharedOut;
use super::simd::Simd;
use std::hint::black_box;

/// Floats that one task reads: 256 KiB.
const PART: usize = 64 * 1024;
/// Bytes ahead that are asked for while reading, as the matrix kernels do.
const AHEAD: usize = 2048;
/// Bytes of a cache line.
const LINE: usize = 64;

impl Cpu {
    /// Reads `data` once, by all threads; returns a sum, so that no compiler leaves it out.
    pub fn read_once(&self, data: &[f32]) -> f32 {
        let parts = data.len().div_ceil(PART);
        let mut sums = vec![0.0; parts];
        let out = SharedOut::new(&mut sums);
        self.split(parts, PART, |range| {
            for part in range {
                let floats = &data[part * PART..data.len().min((part + 1) * PART)];
                // SAFETY: every part belongs to one task.
                let sum = unsafe { out.part(part..part + 1) };
                sum[0] = self.isa.run(Read { floats });
            }
        });
        sums.iter().sum()
    }

    /// Multiplies and adds int8 in registers, `rounds` times on every thread; returns the multiplications and additions
    /// made.
    pub fn multiply_int8(&self, rounds: usize) -> u64 {
        self.on_all_threads(|| self.isa.run(Int8 { rounds }))
    }

    /// The same with f32.
    pub fn multiply_float(&self, rounds: usize) -> u64 {
        self.on_all_threads(|| self.isa.run(Float { rounds }))
    }

    /// Hands every thread a task of nothing and waits for all.
    pub fn fork_join(&self) {
        self.pool.run(self.threads(), &|_| ());
    }

    fn on_all_threads(&self, task: impl Fn() -> u64 + Sync) -> u64 {
        let mut done = vec![0; self.threads()];
        let out = SharedOut::new(&mut done);
        self.pool.run(self.threads(), &|index| {
            // SAFETY: every element belongs to one task.
            let done = unsafe { out.part(index..index + 1) };
            done[0] = task();
        });
        done.iter().sum()
    }
}

struct Read<'a> {
    floats: &'a [f32],
}

impl Kernel for Read<'_> {
    type Out = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        /// Sums side by side, so that none waits for the one before.
        const SUMS: usize = 8;
        let mut sums = [s.splat(0.0); SUMS];
        let chunks = self.floats.chunks_exact(SUMS * S::LANES);
        let rest: f32 = chunks.remainder().iter().sum();
        for chunk in chunks {
            for line in (0..size_of_val(chunk)).step_by(LINE) {
                s.prefetch(chunk.as_ptr().cast::<u8>().wrapping_add(AHEAD + line));
            }
            for (i, sum) in sums.iter_mut().enumerate() {
                // SAFETY: a chunk is `SUMS * LANES` long.
                *sum = s.add(*sum, unsafe { s.load(chunk.as_ptr().add(i * S::LANES)) });
            }
        }
        sums.into_iter().map(|sum| s.sum(sum)).sum::<f32>() + rest
    }
}

/// Accumulators that go round, enough to hide the latency of a multiplication and few enough for the registers.
macro_rules! with_accumulators {
    ($body:ident) => {
        if S::TILE_ROWS > 4 {
            $body!(16)
        } else {
            $body!(8)
        }
    };
}

struct Int8 {
    rounds: usize,
}

impl Kernel for Int8 {
    type Out = u64;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> u64 {
        let bytes = black_box([1u8; 64]);
        let x = black_box([1i8; 16]);
        // SAFETY: no vector is longer than 64 bytes.
        let codes = [unsafe { s.load_codes(bytes.as_ptr()) }; 4];
        macro_rules! multiply {
            ($n:literal) => {{
                let mut dots = [s.int_splat(0); $n];
                for _ in 0..self.rounds {
                    let x = black_box(x.as_ptr());
                    for dot in &mut dots {
                        // SAFETY: `x` is 16 long.
                        *dot = unsafe { s.dot4::<4>(*dot, &codes, x) };
                    }
                }
                for dot in dots {
                    black_box(s.sum(s.int_to_float(dot)));
                }
                (self.rounds * $n * S::LANES * 16 * 2) as u64
            }};
        }
        with_accumulators!(multiply)
    }
}

struct Float {
    rounds: usize,
}

impl Kernel for Float {
    type Out = u64;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> u64 {
        let x = s.splat(black_box(0.5));
        macro_rules! multiply {
            ($n:literal) => {{
                let mut sums = [s.splat(1.0); $n];
                for _ in 0..self.rounds {
                    for sum in &mut sums {
                        *sum = s.mul_add(*sum, x, x);
                    }
                }
                for sum in sums {
                    black_box(s.sum(sum));
                }
                (self.rounds * $n * S::LANES * 2) as u64
            }};
        }
        with_accumulators!(multiply)
    }
}
