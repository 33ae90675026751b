//! Processor time of one call: what its thread spends while the call is polled, the host's work for it included.
//!
//! Time spent waiting (for the model, for the client) costs nothing, and neither does a busy machine, because it is
//! the thread's own clock. Epoch ticks only decide how often a running component is asked to look.

use crate::ticker::Ticker;
use rustix::time::{ClockId, clock_gettime};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

/// The processor time of one call.
pub(crate) struct CpuMeter {
    /// Of polls that have ended, and of work on other threads.
    used_ns: AtomicU64,
    /// The thread's clock when the present poll began.
    poll_began_ns: AtomicU64,
    budget_ns: u64,
}

/// The budget is used up. Raised inside the component, found again by downcasting.
#[derive(Debug, thiserror::Error)]
#[error("the processor time is used up")]
pub(crate) struct CpuBudgetSpent;

impl CpuMeter {
    pub(crate) fn new(budget_ms: u64) -> Arc<CpuMeter> {
        Arc::new(CpuMeter {
            used_ns: AtomicU64::new(0),
            poll_began_ns: AtomicU64::new(0),
            budget_ns: budget_ms.saturating_mul(1_000_000),
        })
    }

    /// Called from inside the component, on the thread that polls it.
    pub(crate) fn check_running(&self) -> Result<(), CpuBudgetSpent> {
        let now = thread_ns().saturating_sub(self.poll_began_ns.load(Ordering::Relaxed));
        if self.used_ns.load(Ordering::Relaxed).saturating_add(now) > self.budget_ns {
            return Err(CpuBudgetSpent);
        }
        Ok(())
    }

    /// Charges work that was done elsewhere on the call's behalf.
    pub(crate) fn charge_ns(&self, ns: u64) {
        self.used_ns.fetch_add(ns, Ordering::Relaxed);
    }

    fn is_spent(&self) -> bool {
        self.used_ns.load(Ordering::Relaxed) > self.budget_ns
    }
}

/// A future whose polls are charged to a meter and ticked, and which ends when the meter is spent.
pub(crate) struct Metered<F> {
    future: Pin<Box<F>>,
    meter: Arc<CpuMeter>,
    ticker: Arc<Ticker>,
}

impl<F> Metered<F> {
    pub(crate) fn new(future: F, meter: Arc<CpuMeter>, ticker: Arc<Ticker>) -> Metered<F> {
        Metered {
            future: Box::pin(future),
            meter,
            ticker,
        }
    }
}

impl<F: Future> Future for Metered<F> {
    type Output = Result<F::Output, CpuBudgetSpent>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let began = thread_ns();
        this.meter.poll_began_ns.store(began, Ordering::Relaxed);
        let running = this.ticker.running();
        let polled = this.future.as_mut().poll(context);
        drop(running);
        this.meter.charge_ns(thread_ns().saturating_sub(began));
        match polled {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            // Work between two ticks that never looks up: many short host calls, each with a wait.
            Poll::Pending if this.meter.is_spent() => Poll::Ready(Err(CpuBudgetSpent)),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Processor time of this thread so far.
pub(crate) fn thread_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000
        + u64::try_from(time.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn waiting_is_free_and_working_is_not() {
        let meter = CpuMeter::new(50);
        let ticker = Arc::new(Ticker::start(Duration::from_secs(1), || ()).expect("a thread"));
        let waits = Metered::new(
            tokio::time::sleep(Duration::from_millis(120)),
            Arc::clone(&meter),
            Arc::clone(&ticker),
        );
        assert!(waits.await.is_ok());

        let works = async {
            loop {
                let began = thread_ns();
                while thread_ns() - began < 1_000_000 {}
                tokio::task::yield_now().await;
            }
        };
        assert!(Metered::new(works, meter, ticker).await.is_err());
    }
}
