//! The thread that makes running components look up. It sleeps while none runs.

use crate::SandboxError;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::Thread;
use std::time::Duration;

/// Calls `on_tick` at a fixed interval while components run. Ends when dropped.
pub(crate) struct Ticker {
    runs: Arc<RunCounts>,
    thread: Thread,
}

/// What begins and ends, as the calls and the thread both see it.
///
/// The order of accesses to different fields matters: a run counts itself and then looks whether the thread is asleep,
/// the thread says that it is asleep and then looks whether something runs. So at least one sees the other.
#[derive(Default)]
struct RunCounts {
    begun: AtomicU64,
    ended: AtomicU64,
    asleep: AtomicBool,
    stopped: AtomicBool,
}

impl RunCounts {
    /// Whether nothing runs and nothing has begun since `seen` runs had.
    fn is_quiet(&self, seen: u64) -> bool {
        let ended = self.ended.load(Ordering::SeqCst);
        let begun = self.begun.load(Ordering::SeqCst);
        begun == seen && begun == ended
    }

    /// Returns when something runs, or at the end. `seen` is what had begun at the last tick.
    fn sleep_while_quiet(&self, seen: u64) {
        if !self.is_quiet(seen) {
            return;
        }
        self.asleep.store(true, Ordering::SeqCst);
        while self.is_quiet(seen) && !self.stopped.load(Ordering::SeqCst) {
            std::thread::park();
        }
        self.asleep.store(false, Ordering::SeqCst);
    }
}

impl Ticker {
    /// Starts the thread, asleep.
    pub(crate) fn start(
        tick: Duration,
        on_tick: impl Fn() + Send + 'static,
    ) -> Result<Ticker, SandboxError> {
        let runs = Arc::new(RunCounts::default());
        let ticks = {
            let runs = Arc::clone(&runs);
            move || {
                let mut seen = 0;
                loop {
                    runs.sleep_while_quiet(seen);
                    if runs.stopped.load(Ordering::SeqCst) {
                        return;
                    }
                    seen = runs.begun.load(Ordering::SeqCst);
                    std::thread::sleep(tick);
                    on_tick();
                }
            }
        };
        let handle = std::thread::Builder::new()
            .name("sandbox-ticker".into())
            .spawn(ticks)
            .map_err(|error| SandboxError::Runtime(format!("cannot start the ticker: {error}")))?;
        Ok(Ticker {
            runs,
            thread: handle.thread().clone(),
        })
    }

    /// Ticks come until what this returns is dropped. Cheap: a call of the system only where the thread is asleep.
    pub(crate) fn running(&self) -> Running<'_> {
        self.runs.begun.fetch_add(1, Ordering::SeqCst);
        if self.runs.asleep.swap(false, Ordering::SeqCst) {
            self.thread.unpark();
        }
        Running(&self.runs)
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.runs.stopped.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}

/// Something runs.
pub(crate) struct Running<'a>(&'a RunCounts);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

    const TICK: Duration = Duration::from_millis(2);
    const LONG: Duration = Duration::from_secs(30);

    fn counted() -> (Ticker, Receiver<()>) {
        let (ticked, ticks) = channel();
        let ticker = Ticker::start(TICK, move || ticked.send(()).unwrap_or_default());
        (ticker.expect("a thread"), ticks)
    }

    /// Until the thread sleeps; ticks that are on their way are taken.
    fn wait_for_sleep(ticker: &Ticker, ticks: &Receiver<()>) {
        while !ticker.runs.asleep.load(Ordering::SeqCst) {
            std::thread::sleep(TICK);
        }
        while ticks.try_recv().is_ok() {}
    }

    #[test]
    fn ticks_come_while_something_runs_and_only_then() {
        let (ticker, ticks) = counted();
        for _ in 0..3 {
            wait_for_sleep(&ticker, &ticks);
            assert_eq!(
                ticks.recv_timeout(20 * TICK),
                Err(RecvTimeoutError::Timeout)
            );
            let long = ticker.running();
            drop(ticker.running());
            for _ in 0..10 {
                assert_eq!(ticks.recv_timeout(LONG), Ok(()));
            }
            drop(long);
        }
    }

    #[test]
    fn no_run_is_missed() {
        let (ticker, ticks) = counted();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                // Runs of a tick, so that the thread is about to sleep when the next begins.
                scope.spawn(|| {
                    for _ in 0..200 {
                        drop(ticker.running());
                        std::thread::sleep(TICK);
                    }
                });
            }
        });
        let _last = ticker.running();
        while ticks.try_recv().is_ok() {}
        assert_eq!(ticks.recv_timeout(LONG), Ok(()));
    }

    #[test]
    fn the_thread_ends_with_the_ticker() {
        let (ticker, ticks) = counted();
        wait_for_sleep(&ticker, &ticks);
        drop(ticker);
        assert_eq!(
            ticks.recv_timeout(LONG),
            Err(RecvTimeoutError::Disconnected)
        );
    }
}
