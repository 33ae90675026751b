//! A fork-join pool: the caller and its workers take numbered tasks until none is left.
//!
//! An operation of a small model lasts tens of microseconds, so workers spin a little between jobs before they park.
//! The caller never waits for a worker that has not started: a job is closed as soon as its last task is taken, and
//! only workers already inside are waited for. Which thread runs a task is left to chance; tasks must not care.

use crate::sync::{
    Arc, AtomicBool, AtomicU32, AtomicUsize, Builder, Condvar, JoinHandle, Mutex, MutexGuard,
    Ordering, PoisonError, UnsafeCell, spin_loop, spins,
};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Pauses before a worker parks: about 50 µs, longer than the serial stretch between two operations of a step.
const SPINS_BEFORE_PARK: u32 = spins(1 << 10);
/// Pauses before the caller parks while a worker finishes its last task.
const SPINS_BEFORE_WAIT: u32 = spins(1 << 12);
/// Set in [`JobBoard::gate`] while a job can be entered; the other bits count the workers inside.
const OPEN: u32 = 1 << 31;

type Task = dyn Fn(usize) + Sync;

/// The job in progress. Written by the caller while the gate is closed and nobody is inside; read inside only.
#[derive(Clone, Copy)]
struct Job {
    task: *const Task,
    tasks: usize,
}

/// Where the caller puts up a job, and where its workers take tasks from it, wait for the next one and report.
struct JobBoard {
    job: UnsafeCell<Job>,
    /// The task that is taken next.
    next: AtomicUsize,
    gate: AtomicU32,
    /// Counts jobs, so that a waiting worker sees a new one.
    epoch: AtomicU32,
    /// Workers that sleep or are about to.
    parked: AtomicUsize,
    stop: AtomicBool,
    /// Of the tasks of this job, the first that came here.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Held to sleep at `work` or `done`, and to wake who sleeps there.
    lock: Mutex<()>,
    work: Condvar,
    done: Condvar,
}

// SAFETY: `job` is the only field that is not `Sync` by itself. It is written only with the gate closed and empty, and
// read only between entering and leaving the gate, which order the accesses (acquire on entry, release on leaving). The
// task behind the pointer is `Sync`, and outlives the job because `run` returns only after the gate is closed and empty.
unsafe impl Sync for JobBoard {}
// SAFETY: as above.
unsafe impl Send for JobBoard {}

/// A pool of `threads - 1` workers besides the caller.
pub(crate) struct Pool {
    board: Arc<JobBoard>,
    workers: Vec<JoinHandle<()>>,
    caller: Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A pool in which `threads` threads work, the caller among them. Where the system gives fewer, there are fewer.
    pub(crate) fn new(threads: usize) -> Pool {
        let board = Arc::new(JobBoard {
            job: UnsafeCell::new(Job {
                task: &|_| (),
                tasks: 0,
            }),
            next: AtomicUsize::new(0),
            gate: AtomicU32::new(0),
            epoch: AtomicU32::new(0),
            parked: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
            lock: Mutex::new(()),
            work: Condvar::new(),
            done: Condvar::new(),
        });
        let workers = (1..threads)
            .map_while(|index| {
                let board = board.clone();
                Builder::new()
                    .name(format!("kernel-{index}"))
                    .spawn(move || board.work())
                    .ok()
            })
            .collect();
        Pool {
            board,
            workers,
            caller: Mutex::new(()),
        }
    }

    /// Threads that work on a job, the caller included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(0)` to `task(tasks - 1)`, each once, and returns when all have ended.
    ///
    /// A call from inside a task, or while another thread is in a call, does the tasks alone.
    ///
    /// # Panics
    /// With the first task's panic, after every started task has ended.
    pub(crate) fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let guard = if tasks > 1 && !self.workers.is_empty() {
            self.caller.try_lock().ok()
        } else {
            None
        };
        let Some(guard) = guard else {
            (0..tasks).for_each(task);
            return;
        };
        let board = &*self.board;
        // SAFETY: only the lifetime changes. Nobody reads the pointer after the gate is closed and empty, which is
        // before this function returns.
        let task: *const Task =
            unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static Task>(task) };
        // SAFETY: the gate is closed and empty (it was left so), and `caller` is held, so nobody else is here.
        board
            .job
            .with_mut(|job| unsafe { *job = Job { task, tasks } });
        board.next.store(0, Ordering::Relaxed);
        board.gate.store(OPEN, Ordering::Release);
        board.epoch.fetch_add(1, Ordering::SeqCst);
        if board.parked.load(Ordering::SeqCst) > 0 {
            let _held = lock(&board.lock);
            board.work.notify_all();
        }
        board.take_tasks();
        board.close();
        let panic = lock(&board.panic).take();
        if let Some(panic) = panic {
            drop(guard);
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.board.stop.store(true, Ordering::SeqCst);
        self.board.epoch.fetch_add(1, Ordering::SeqCst);
        {
            let _held = lock(&self.board.lock);
            self.board.work.notify_all();
        }
        for worker in self.workers.drain(..) {
            // A worker ends by returning: tasks' panics are caught.
            let _ = worker.join();
        }
    }
}

impl JobBoard {
    /// A worker's life.
    fn work(&self) {
        let mut seen = 0;
        loop {
            seen = self.wait_for_epoch_after(seen);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            if self.enter() {
                self.take_tasks();
                self.leave();
            }
        }
    }

    fn wait_for_epoch_after(&self, seen: u32) -> u32 {
        for _ in 0..SPINS_BEFORE_PARK {
            let epoch = self.epoch.load(Ordering::Acquire);
            if epoch != seen {
                return epoch;
            }
            spin_loop();
        }
        // The caller adds to `epoch` before it reads `parked`, this adds to `parked` before it reads `epoch`: one of
        // the two sees the other.
        self.parked.fetch_add(1, Ordering::SeqCst);
        let mut held = lock(&self.lock);
        let mut epoch = self.epoch.load(Ordering::SeqCst);
        while epoch == seen {
            held = self.work.wait(held).unwrap_or_else(PoisonError::into_inner);
            epoch = self.epoch.load(Ordering::SeqCst);
        }
        drop(held);
        self.parked.fetch_sub(1, Ordering::SeqCst);
        epoch
    }

    /// Enters the job if it is still open.
    fn enter(&self) -> bool {
        let entered = |gate| (gate & OPEN != 0).then_some(gate + 1);
        self.gate
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, entered)
            .is_ok()
    }

    fn leave(&self) {
        if self.gate.fetch_sub(1, Ordering::Release) == 1 {
            let _held = lock(&self.lock);
            self.done.notify_one();
        }
    }

    /// Takes tasks until there are none. A panic ends the job early and is kept for the caller.
    fn take_tasks(&self) {
        // SAFETY: the caller wrote the job before it opened the gate and is inside, or this worker has entered.
        let Job { task, tasks } = self.job.with(|job| unsafe { *job });
        // SAFETY: the task lives until the gate is closed and empty, and this thread is inside.
        let task = unsafe { &*task };
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let index = self.next.fetch_add(1, Ordering::Relaxed);
                if index >= tasks {
                    return;
                }
                task(index);
            }
        }));
        if let Err(payload) = result {
            self.next.store(tasks, Ordering::Relaxed);
            lock(&self.panic).get_or_insert(payload);
        }
    }

    /// Closes the gate and waits until nobody is inside.
    fn close(&self) {
        self.gate.fetch_and(!OPEN, Ordering::Relaxed);
        for _ in 0..SPINS_BEFORE_WAIT {
            if self.gate.load(Ordering::Acquire) == 0 {
                return;
            }
            spin_loop();
        }
        let mut held = lock(&self.lock);
        while self.gate.load(Ordering::Acquire) != 0 {
            held = self.done.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_whatever_the_pool() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads);
            for tasks in [0, 1, 2, 7, 100] {
                for _ in 0..if cfg!(miri) { 3 } else { 50 } {
                    let counts: Vec<AtomicU32> = (0..tasks).map(|_| AtomicU32::new(0)).collect();
                    pool.run(tasks, &|i| {
                        counts[i].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(
                        counts.iter().all(|c| c.load(Ordering::Relaxed) == 1),
                        "{threads} threads, {tasks} tasks"
                    );
                }
            }
        }
    }

    #[test]
    fn parked_workers_are_woken_and_the_pool_ends() {
        let pool = Pool::new(3);
        while pool.board.parked.load(Ordering::SeqCst) < 2 {
            std::thread::yield_now();
        }
        // Two tasks that wait for each other need two threads.
        let meet = std::sync::Barrier::new(2);
        pool.run(2, &|_| {
            meet.wait();
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3);
        for _ in 0..20 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(10, &|i| assert_ne!(i, 7, "seven"))
            }));
            assert!(result.is_err());
            let count = AtomicU32::new(0);
            pool.run(10, &|_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.load(Ordering::Relaxed), 10);
        }
    }

    #[test]
    fn a_run_inside_a_task_does_not_deadlock() {
        let pool = Pool::new(2);
        let count = AtomicU32::new(0);
        pool.run(4, &|_| {
            pool.run(4, &|_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(count.load(Ordering::Relaxed), 16);
    }
}
