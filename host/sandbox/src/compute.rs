//! Threads for what computes.
//!
//! Nearly all calls and connections wait for the engine and need microseconds a token, so they share the server's threads.
//! A tenant whose calls compute, or a connection that takes in megabytes, would keep these from everybody's tokens: once
//! its allowance is used up it goes on here, on threads of low priority, until it has computed less than its share for a
//! while.

use crate::SandboxError;
use crate::cpu::thread_ns;
use crate::priority::give_way;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

/// What may be computed over time on the threads that all share: one in so many nanoseconds of each of them. A tenant's
/// full batch of plain chats takes half of it.
const SHARE: i64 = 16;
/// What was computed here is remembered up to this much, so that whoever computes is back in a second at most.
const DEBT_NS: i64 = 1_000_000_000 / SHARE;

/// The threads, half as many as there are processors: the engine wants all of them.
pub struct ComputeThreads {
    /// Taken at the end.
    runtime: Option<Runtime>,
    count: i64,
}

impl ComputeThreads {
    pub(crate) fn start() -> Result<ComputeThreads, SandboxError> {
        let granted = std::thread::available_parallelism().map_or(1, usize::from);
        let count = granted.div_ceil(2);
        let runtime = Builder::new_multi_thread()
            .worker_threads(count)
            .thread_name("compute")
            .on_thread_start(give_way)
            .enable_all()
            .build()
            .map_err(|error| {
                SandboxError::Runtime(format!(
                    "cannot start the threads for what computes: {error}"
                ))
            })?;
        Ok(ComputeThreads {
            runtime: Some(runtime),
            count: i64::try_from(count).unwrap_or(i64::MAX),
        })
    }

    /// Runs `work`: here while its allowance is used up, and on the caller's threads while it is not. What it spawns is
    /// spawned where it runs. Dropping the future gives the work up.
    pub async fn run<T: Send + 'static>(
        &self,
        allowance: &Arc<Allowance>,
        work: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let mut work = Turns {
            work: Box::pin(work),
            allowance: Arc::clone(allowance),
            share: SHARE / self.count.min(SHARE),
        };
        loop {
            if let Some(done) = poll_fn(|context| work.poll_unless(true, context)).await {
                return done;
            }
            let Some(runtime) = &self.runtime else {
                return std::future::pending().await; // only while the threads are dropped
            };
            // A set, because what is in it is given up with it.
            let mut moved = JoinSet::new();
            let computes = async move {
                let done = poll_fn(|context| work.poll_unless(false, context)).await;
                (work, done)
            };
            moved.spawn_on(computes, runtime.handle());
            match moved.join_next().await {
                Some(Ok((_, Some(done)))) => return done,
                Some(Ok((back, None))) => work = back,
                Some(Err(error)) if error.is_panic() => {
                    std::panic::resume_unwind(error.into_panic())
                }
                // The threads are gone, and so will be whoever waits.
                Some(Err(_)) | None => return std::future::pending().await,
            }
        }
    }
}

impl Drop for ComputeThreads {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A future that changes threads between its polls.
struct Turns<T> {
    work: Pin<Box<dyn Future<Output = T> + Send>>,
    allowance: Arc<Allowance>,
    share: i64,
}

impl<T> Turns<T> {
    /// Polls as long as the work does not turn into such that `computes`, or such that does not; then `None`.
    fn poll_unless(&mut self, computes: bool, context: &mut Context<'_>) -> Poll<Option<T>> {
        let allowance = &self.allowance;
        if allowance.computes(Instant::now(), self.share) == computes {
            return Poll::Ready(None);
        }
        let began = thread_ns();
        let polled = self.work.as_mut().poll(context);
        allowance.use_up(thread_ns().saturating_sub(began));
        polled.map(Some)
    }
}

/// What the calls of a tenant, or a connection, may still compute on the threads that all share.
#[derive(Debug)]
pub struct Allowance {
    /// At once, in nanoseconds.
    burst_ns: i64,
    left: Mutex<Left>,
}

#[derive(Debug)]
struct Left {
    /// Nanoseconds of a processor; negative when more was used.
    ns: i64,
    computes: bool,
    at: Option<Instant>,
}

impl Allowance {
    /// An allowance of so much at once, and of a small share over time.
    pub const fn new(burst: Duration) -> Allowance {
        // A burst is some milliseconds.
        let burst_ns = burst.as_nanos() as i64;
        let left = Left {
            ns: burst_ns,
            computes: false,
            at: None,
        };
        Allowance {
            burst_ns,
            left: Mutex::new(left),
        }
    }

    /// Whether it is used up, with what came in since it was last asked: one in `share` nanoseconds.
    fn computes(&self, now: Instant, share: i64) -> bool {
        let mut left = self.left();
        let before = left.at.replace(now).unwrap_or(now);
        let passed = now.saturating_duration_since(before).as_nanos();
        let came = i64::try_from(passed).unwrap_or(i64::MAX) / share;
        left.ns = left.ns.saturating_add(came).min(self.burst_ns);
        // Half of it before it is back, so that calls do not change threads at every turn.
        let back = if left.computes { self.burst_ns / 2 } else { 0 };
        left.computes = left.ns <= back;
        left.computes
    }

    fn use_up(&self, ns: u64) {
        let mut left = self.left();
        let used = i64::try_from(ns).unwrap_or(i64::MAX);
        left.ns = left.ns.saturating_sub(used).max(-DEBT_NS);
    }

    fn left(&self) -> MutexGuard<'_, Left> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    const MS: Duration = Duration::from_millis(1);
    const BURST: Duration = Duration::from_millis(4);

    /// What the thread's clock says of so long.
    fn ns(time: Duration) -> u64 {
        time.as_nanos().try_into().expect("a short time")
    }

    #[test]
    fn a_tenant_computes_until_it_has_used_less_than_its_share_for_a_while() {
        let (allowance, start) = (Allowance::new(BURST), Instant::now());
        let after = |time: Duration| allowance.computes(start + time, SHARE);
        assert!(!after(Duration::ZERO));
        allowance.use_up(ns(BURST + MS));
        assert!(after(MS / 8), "little came in");
        // As slow as it is with others beside it, on a tenth of a processor: it stays.
        for tenth in 1..1_000 {
            allowance.use_up(ns(MS));
            assert!(after(10 * tenth * MS));
        }
        let share = u32::try_from(SHARE).expect("a small number");
        let debt = Duration::from_nanos(DEBT_NS as u64);
        let back = 10_000 * MS + (debt + BURST / 2) * share;
        assert!(after(back - 50 * MS));
        assert!(!after(back));
    }

    #[test]
    fn a_tenant_that_needs_little_for_each_token_never_computes() {
        let (allowance, mut now) = (Allowance::new(BURST), Instant::now());
        for _ in 0..10_000 {
            now += 4 * MS;
            assert!(!allowance.computes(now, SHARE));
            allowance.use_up(ns(MS / 5));
        }
    }

    fn is_moved() -> bool {
        std::thread::current().name() == Some("compute")
    }

    /// Computes, looking up every millisecond, until that is on one of the threads for it.
    async fn compute_until_moved() {
        while !is_moved() {
            let began = thread_ns();
            while thread_ns() - began < ns(MS) {}
            tokio::task::yield_now().await;
        }
    }

    fn allowance() -> Arc<Allowance> {
        Arc::new(Allowance::new(BURST))
    }

    #[tokio::test]
    async fn what_computes_goes_on_elsewhere_and_others_stay() {
        let threads = ComputeThreads::start().expect("threads");
        threads.run(&allowance(), compute_until_moved()).await;
        assert!(!threads.run(&allowance(), async { is_moved() }).await);
    }

    #[tokio::test]
    async fn what_is_given_up_ends_wherever_it_is() {
        let threads = ComputeThreads::start().expect("threads");
        let (held, mut released) = oneshot::channel::<()>();
        let (moved, has_moved) = oneshot::channel();
        let endless = async move {
            let _held = held;
            compute_until_moved().await;
            moved.send(()).unwrap_or_default();
            loop {
                tokio::task::yield_now().await;
            }
        };
        {
            let allowance = allowance();
            let mut running = std::pin::pin!(threads.run::<()>(&allowance, endless));
            tokio::select! {
                () = &mut running => panic!("it never ends"),
                moved = has_moved => assert!(moved.is_ok()),
            }
            assert!(released.try_recv() == Err(oneshot::error::TryRecvError::Empty));
        }
        assert!(
            released.await.is_err(),
            "it is gone, and what it held with it"
        );
    }

    #[tokio::test]
    #[should_panic(expected = "as planned")]
    async fn a_panic_arrives_where_it_is_waited_for() {
        let threads = ComputeThreads::start().expect("threads");
        let fails = async {
            compute_until_moved().await;
            assert!(std::hint::black_box(false), "as planned");
        };
        threads.run(&allowance(), fails).await;
    }
}
