//! What threads cost that have nothing to do. A file of its own, because the process' clock counts all of its threads.

use realm_kernels::Cpu;
use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Workers besides the caller.
const WORKERS: u32 = 3;
/// Between its last job and its sleep a worker spins about 50 µs; busy and emulated processors take longer.
const SPIN_MAX: Duration = Duration::from_millis(10);

/// Processor time of the whole process.
fn used() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[test]
fn waiting_threads_spin_briefly_and_then_cost_nothing() {
    let cpu = Cpu::new(WORKERS as usize + 1);
    let began = used();
    let rounds = 200;
    for _ in 0..rounds {
        cpu.fork_join();
        // Long enough for workers to park, so that every round pays for the whole spin.
        std::thread::sleep(Duration::from_millis(2));
    }
    let spun = (used() - began) / rounds;
    println!("from parked to parked again: {spun:?} of processor time, {WORKERS} workers");
    assert!(spun > Duration::ZERO, "the clock counts");
    assert!(
        spun < SPIN_MAX * WORKERS,
        "workers spin on: {spun:?} a round"
    );

    let began = used();
    std::thread::sleep(Duration::from_secs(1));
    let idle = used() - began;
    println!("idle: {idle:?} of processor time in a second");
    assert!(
        idle < Duration::from_millis(10),
        "{idle:?} in an idle second"
    );
}
