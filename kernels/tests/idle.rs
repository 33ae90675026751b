//! Threads that have nothing to do sleep. A file of its own, because it looks at every thread of the process.
#![cfg(target_os = "linux")]

use realm_kernels::Cpu;
use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

/// Workers besides the caller.
const WORKERS: usize = 3;
/// Time between two looks at the workers.
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);
/// Looks until a worker that still wakes is taken to do so for ever.
const LOOKS_MAX: usize = 600;

/// Of each worker, whether it sleeps and how often it went to sleep.
fn workers() -> BTreeMap<String, (bool, u64)> {
    let mut workers = BTreeMap::new();
    for task in fs::read_dir("/proc/self/task").expect("the process lists its threads") {
        let task = task.expect("a thread's entry").path();
        let name = fs::read_to_string(task.join("comm")).unwrap_or_default();
        if name.starts_with("kernel-") {
            let status = fs::read_to_string(task.join("status")).expect("a thread's status");
            let slept = status
                .lines()
                .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))
                .and_then(|count| count.trim().parse().ok())
                .expect("a count of switches");
            let sleeps = status.contains("State:\tS");
            workers.insert(name.trim().to_owned(), (sleeps, slept));
        }
    }
    workers
}

/// The workers once all of them sleep and none wakes between two looks: one that spins or polls never gets there.
fn asleep() -> BTreeMap<String, (bool, u64)> {
    let mut last = workers();
    for _ in 0..LOOKS_MAX {
        std::thread::sleep(BETWEEN_LOOKS);
        let now = workers();
        // A thread that the system has not run yet has no name either.
        if now.len() == WORKERS && now == last && now.values().all(|(sleeps, _)| *sleeps) {
            return now;
        }
        last = now;
    }
    panic!("workers still wake with nothing to do: {last:?}");
}

#[test]
fn workers_sleep_when_there_is_nothing_to_do_and_wake_when_there_is() {
    let cpu = Cpu::new(WORKERS + 1);
    let before = asleep();
    cpu.fork_join();
    let after = asleep();
    for (name, (_, slept)) in &after {
        assert!(
            *slept > before[name].1,
            "{name} took part: {before:?}, {after:?}"
        );
    }
}
