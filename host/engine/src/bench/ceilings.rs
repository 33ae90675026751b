//! The limits that operations are held against, measured in the same run: reading, multiplying, forking.

use std::time::Duration;

use realm_kernels::Cpu;

use super::BenchError;
use crate::clock::Clock;

/// Larger than any cache, the shared ones of many-core servers included.
const READ_BYTES: usize = 1 << 30;
/// Each limit is the best of these.
const TRIES: u32 = 7;
/// A try of multiplying lasts about this long.
const TRY: Duration = Duration::from_millis(50);
/// Forks in a row that are timed together.
const FORKS: u32 = 1000;

/// What this machine's threads can do at most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceilings {
    /// Bytes read from memory per second.
    pub read_bytes_s: f64,
    /// Int8 multiplications and additions per second, in registers.
    pub int8_ops_s: f64,
    /// The same of f32.
    pub float_ops_s: f64,
    /// Seconds to hand every thread a task and to wait for all.
    pub fork_join_s: f64,
}

impl Ceilings {
    pub(super) fn measure(cpu: &Cpu, clock: &dyn Clock) -> Result<Ceilings, BenchError> {
        let floats = READ_BYTES / size_of::<f32>();
        let mut data = Vec::new();
        data.try_reserve_exact(floats)
            .map_err(|source| BenchError::OutOfMemory {
                bytes: READ_BYTES,
                source,
            })?;
        // Ones: pages of zeros that nobody wrote are one page in the cache.
        data.resize(floats, 1.0);
        let read = best(|| {
            let start = clock.now();
            cpu.read_once(&data);
            READ_BYTES as f64 / (clock.now() - start).as_secs_f64()
        });
        Ok(Ceilings {
            read_bytes_s: read,
            int8_ops_s: best_of_rounds(clock, |rounds| cpu.multiply_int8(rounds)),
            float_ops_s: best_of_rounds(clock, |rounds| cpu.multiply_float(rounds)),
            fork_join_s: 1.0
                / best(|| {
                    let start = clock.now();
                    (0..FORKS).for_each(|_| cpu.fork_join());
                    f64::from(FORKS) / (clock.now() - start).as_secs_f64()
                }),
        })
    }
}

fn best(mut rate: impl FnMut() -> f64) -> f64 {
    (0..TRIES).map(|_| rate()).fold(0.0, f64::max)
}

/// The best rate of `run(rounds)`, which returns what it did, with as many rounds as a try should last.
fn best_of_rounds(clock: &dyn Clock, run: impl Fn(usize) -> u64) -> f64 {
    let mut rounds = 1024;
    loop {
        let start = clock.now();
        run(rounds);
        if clock.now() - start >= TRY {
            break;
        }
        rounds *= 2;
    }
    best(|| {
        let start = clock.now();
        let done = run(rounds);
        done as f64 / (clock.now() - start).as_secs_f64()
    })
}
