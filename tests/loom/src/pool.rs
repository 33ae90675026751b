//! The fork-join pool of the kernels.

use crate::Model;
use crate::pool_source::Pool;
use crate::sync::{Arc, AtomicU32, Condvar, Mutex, Ordering};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

pub(crate) const MODELS: &[Model] = &[
    Model::new("pool: every task runs once and has ended", Some(5), once),
    Model::new("pool: a late worker keeps to its job", Some(4), two_jobs),
    Model::new("pool: three threads share a job", Some(2), three_threads),
    Model::new("pool: a job wakes who sleeps", Some(4), wakes),
    Model::new("pool: a panic ends the job", Some(4), panics),
    Model::new("pool: two callers at once", Some(3), two_callers),
    Model::new("pool: its end wakes all workers", Some(4), ends),
];

/// Runs a job; afterwards each task has run once, and what it wrote is seen. The accesses are relaxed, so that only the pool
/// can have ordered them.
fn run(pool: &Pool, tasks: usize) {
    let counts: Vec<AtomicU32> = (0..tasks).map(|_| AtomicU32::new(0)).collect();
    pool.run(tasks, &|task| {
        counts[task].fetch_add(1, Ordering::Relaxed);
    });
    for count in counts {
        assert_eq!(count.load(Ordering::Relaxed), 1);
    }
}

fn once() {
    let pool = Pool::new(2);
    assert_eq!(pool.threads(), 2);
    run(&pool, 2);
}

/// A worker may wake between two jobs or in the wrong one.
fn two_jobs() {
    let pool = Pool::new(2);
    run(&pool, 3);
    run(&pool, 2);
}

fn three_threads() {
    run(&Pool::new(3), 3);
}

/// Two tasks that wait for each other end only if the worker comes, whether it slept, was about to, or had not begun.
fn wakes() {
    let pool = Pool::new(2);
    let (arrived, both) = (Mutex::new(0), Condvar::new());
    pool.run(2, &|_| {
        let mut arrived = arrived.lock().unwrap();
        *arrived += 1;
        both.notify_all();
        while *arrived < 2 {
            arrived = both.wait(arrived).unwrap();
        }
    });
}

struct TaskFailed;

fn panics() {
    let pool = Pool::new(2);
    let result = catch_unwind(AssertUnwindSafe(|| {
        pool.run(2, &|_| resume_unwind(Box::new(TaskFailed)));
    }));
    assert!(result.unwrap_err().is::<TaskFailed>());
    run(&pool, 2);
}

/// The second does its tasks alone; neither takes the other's.
fn two_callers() {
    let pool = Arc::new(Pool::new(2));
    let other = Arc::clone(&pool);
    let caller = loom::thread::spawn(move || run(&other, 2));
    run(&pool, 2);
    caller.join().unwrap();
}

fn ends() {
    drop(Pool::new(3));
}
