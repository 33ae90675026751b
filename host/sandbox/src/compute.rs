//! Threads for components that compute.
//!
//! Nearly all calls wait for the engine and need microseconds a token, so they share the server's threads with the
//! connections. A tenant whose calls compute would keep these from everybody's tokens: once it has used up its
//! allowance, its calls go on here, on threads of low priority, until it has computed less than its share for a while.

use crate::cpu::thread_ns;
use crate::{SandboxError, TenantMemory};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

/// How far behind the engine's threads those that compute stand: at 10 a tenth of a processor goes to one of them while
/// the engine wants all.
const NICENESS: i32 = 10;
/// What a tenant's calls may compute at once on the threads of the connections: some instances, and a prompt each.
const BURST_NS: i64 = 4_000_000;
/// And over time: one in so many nanoseconds of each of these threads. A full batch of plain chats takes half of it.
const SHARE: i64 = 16;
/// What a tenant has computed here is remembered up to this much, so that it is back in a second at most.
const DEBT_NS: i64 = 1_000_000_000 / SHARE;

/// The threads.
pub(crate) struct ComputeThreads {
    /// Taken at the end.
    runtime: Option<Runtime>,
    count: i64,
}

impl ComputeThreads {
    /// Half as many as there are processors: the engine wants all of them.
    pub(crate) fn start() -> Result<ComputeThreads, SandboxError> {
        let granted = std::thread::available_parallelism().map_or(1, usize::from);
        let count = granted.div_ceil(2);
        let runtime = Builder::new_multi_thread()
            .worker_threads(count)
            .thread_name("component")
            .on_thread_start(|| {
                // A system that refuses runs them all the same.
                let _ = rustix::process::nice(NICENESS);
            })
            .enable_all()
            .build()
            .map_err(|error| {
                SandboxError::Runtime(format!("cannot start the threads for components: {error}"))
            })?;
        Ok(ComputeThreads {
            runtime: Some(runtime),
            count: i64::try_from(count).unwrap_or(i64::MAX),
        })
    }

    /// Runs `work` for a tenant: here while the tenant computes, and on the caller's threads while it does not.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        tenant: &Arc<TenantMemory>,
        work: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let mut work = Turns {
            work: Box::pin(work),
            tenant: Arc::clone(tenant),
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
    tenant: Arc<TenantMemory>,
    share: i64,
}

impl<T> Turns<T> {
    /// Polls as long as the tenant does not turn into one that `computes`, or one that does not; then `None`.
    fn poll_unless(&mut self, computes: bool, context: &mut Context<'_>) -> Poll<Option<T>> {
        let allowance = self.tenant.allowance();
        if allowance.computes(Instant::now(), self.share) == computes {
            return Poll::Ready(None);
        }
        let began = thread_ns();
        let polled = self.work.as_mut().poll(context);
        allowance.use_up(thread_ns().saturating_sub(began));
        polled.map(Some)
    }
}

/// What a tenant's calls may still compute on the threads of the connections.
#[derive(Debug)]
pub(crate) struct Allowance(Mutex<Left>);

#[derive(Debug)]
struct Left {
    /// Nanoseconds of a processor; negative when more was used.
    ns: i64,
    computes: bool,
    at: Option<Instant>,
}

impl Allowance {
    pub(crate) fn new() -> Allowance {
        Allowance(Mutex::new(Left {
            ns: BURST_NS,
            computes: false,
            at: None,
        }))
    }

    /// Whether the tenant is one that computes, with what came in since it was last asked: one in `share` nanoseconds.
    fn computes(&self, now: Instant, share: i64) -> bool {
        let mut left = self.left();
        let before = left.at.replace(now).unwrap_or(now);
        let passed = now.saturating_duration_since(before).as_nanos();
        let came = i64::try_from(passed).unwrap_or(i64::MAX) / share;
        left.ns = left.ns.saturating_add(came).min(BURST_NS);
        // Half of it before it is back, so that calls do not change threads at every turn.
        left.computes = left.ns <= if left.computes { BURST_NS / 2 } else { 0 };
        left.computes
    }

    fn use_up(&self, ns: u64) {
        let mut left = self.left();
        let used = i64::try_from(ns).unwrap_or(i64::MAX);
        left.ns = left.ns.saturating_sub(used).max(-DEBT_NS);
    }

    fn left(&self) -> MutexGuard<'_, Left> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::sync::oneshot;

    const MS: Duration = Duration::from_millis(1);
    const BURST: Duration = Duration::from_nanos(BURST_NS as u64);

    /// What the thread's clock says of so long.
    fn ns(time: Duration) -> u64 {
        time.as_nanos().try_into().expect("a short time")
    }

    #[test]
    fn a_tenant_computes_until_it_has_used_less_than_its_share_for_a_while() {
        let (allowance, start) = (Allowance::new(), Instant::now());
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
        let (allowance, mut now) = (Allowance::new(), Instant::now());
        for _ in 0..10_000 {
            now += 4 * MS;
            assert!(!allowance.computes(now, SHARE));
            allowance.use_up(ns(MS / 5));
        }
    }

    fn is_moved() -> bool {
        std::thread::current().name() == Some("component")
    }

    /// Computes, looking up every millisecond, until that is on one of the threads for it.
    async fn compute_until_moved() {
        while !is_moved() {
            let began = thread_ns();
            while thread_ns() - began < ns(MS) {}
            tokio::task::yield_now().await;
        }
    }

    fn tenant() -> Arc<TenantMemory> {
        Arc::new(TenantMemory::new(0))
    }

    #[tokio::test]
    async fn what_computes_goes_on_elsewhere_and_others_stay() {
        let threads = ComputeThreads::start().expect("threads");
        threads.run(&tenant(), compute_until_moved()).await;
        assert!(!threads.run(&tenant(), async { is_moved() }).await);
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
            let tenant = tenant();
            let mut running = std::pin::pin!(threads.run::<()>(&tenant, endless));
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
        threads.run(&tenant(), fails).await;
    }
}
