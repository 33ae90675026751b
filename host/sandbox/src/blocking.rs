//! Work that takes too long for an async thread: tokenising, chat templates, parsing.
//!
//! Such work cannot be stopped, so it may outlive what it is for: a client hangs up, and its prompt is tokenised all the
//! same. So the work owns what it holds of its tenant's memory, which comes free when the work ends and not before, and a
//! tenant has few such jobs at a time, however many calls it begins and gives up.

use crate::TenantMemory;
use crate::cpu::{CpuMeter, thread_ns};
use crate::imports::Failure;
use crate::memory::{CallMemory, Held, NoMemory};
use std::sync::Arc;
use tokio::task::JoinError;

/// Jobs of one tenant at a time; more wait for their turn.
pub(crate) const JOBS_MAX: usize = 2;

impl TenantMemory {
    /// Runs `work` on a thread that may block, when it is the tenant's turn, and returns its result with `charge`.
    ///
    /// Dropping the future gives up work that has not begun. What has begun runs to its end: until then it keeps its place
    /// and `charge`.
    ///
    /// # Errors
    /// When the work panics.
    pub async fn run_blocking<T: Send + 'static, C: Send + 'static>(
        &self,
        charge: C,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<(T, C), JoinError> {
        // It fails only when the semaphore is closed, which nobody does.
        let place = self.blocking_place().await;
        let job = move || {
            let _place = place;
            (work(), charge)
        };
        tokio::task::spawn_blocking(job).await
    }
}

/// Does the long work of one call.
pub(crate) struct Worker {
    pub(crate) cpu: Arc<CpuMeter>,
    pub(crate) memory: Arc<CallMemory>,
}

impl Worker {
    /// Runs `work` on a thread that may block, with `bytes` of the call's memory for what it makes; the result is charged
    /// for as long as the caller keeps what comes with it. Its processor time is the call's.
    pub(crate) async fn run<T: Send + 'static>(
        self,
        bytes: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<(T, Held), Failure> {
        let Worker { cpu, memory } = self;
        let held = memory.hold(bytes)?;
        let timed = move || {
            let began = thread_ns();
            let result = work();
            cpu.charge_ns(thread_ns().saturating_sub(began));
            result
        };
        let done = memory.tenant().run_blocking(held, timed).await;
        done.map_err(|error| Failure::Trap(error.into()))
    }

    /// The same for work that is short: on this thread, at once.
    pub(crate) fn run_here<T>(
        self,
        bytes: usize,
        work: impl FnOnce() -> T,
    ) -> Result<(T, Held), NoMemory> {
        let held = self.memory.hold(bytes)?;
        Ok((work(), held))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryCharge;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

    /// Work that says that it has begun and goes on until it is told to end.
    fn work() -> (
        impl FnOnce() + Send + 'static,
        UnboundedReceiver<()>,
        Sender<()>,
    ) {
        let (began, has_begun): (UnboundedSender<()>, _) = unbounded_channel();
        let (end, ended): (_, Receiver<()>) = channel();
        let work = move || {
            began.send(()).unwrap_or_default();
            ended.recv().unwrap_or_default();
        };
        (work, has_begun, end)
    }

    #[tokio::test]
    async fn work_that_nobody_waits_for_any_more_is_charged_until_it_ends() {
        let memory = Arc::new(TenantMemory::new(100));
        let charge = MemoryCharge::new(&memory, 60).unwrap();
        let (work, mut has_begun, end) = work();
        {
            let mut running = std::pin::pin!(memory.run_blocking(charge, work));
            tokio::select! {
                _ = &mut running => panic!("it ends when it is told to"),
                begun = has_begun.recv() => assert!(begun.is_some()),
            }
        }
        assert_eq!(memory.bytes(), 60, "the caller is gone, the work is not");
        end.send(()).unwrap();
        // Its place comes free as it ends, so who gets all places comes after it.
        let _all = memory.all_blocking_places().await;
        while memory.bytes() > 0 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_tenant_has_few_jobs_at_a_time_and_takes_none_of_anothers() {
        let (one, two) = (TenantMemory::new(0), TenantMemory::new(0));
        let mut ends = Vec::new();
        let mut given_up = Vec::new();
        for _ in 0..JOBS_MAX {
            let (work, mut has_begun, end) = work();
            let mut running = Box::pin(one.run_blocking((), work));
            tokio::select! {
                _ = &mut running => panic!("it ends when it is told to"),
                begun = has_begun.recv() => assert!(begun.is_some()),
            }
            ends.push(end);
            given_up.push(running);
        }
        // Hanging up does not make room.
        drop(given_up);
        let (more, mut has_begun, _end) = work();
        let mut waiting = Box::pin(one.run_blocking((), more));
        tokio::select! {
            biased;
            _ = &mut waiting => panic!("all places are taken"),
            () = std::future::ready(()) => {}
        }
        assert!(
            two.run_blocking((), || 7)
                .await
                .is_ok_and(|(it, ())| it == 7)
        );
        assert!(has_begun.try_recv().is_err(), "all places are taken");
        for end in ends {
            end.send(()).unwrap();
        }
        tokio::select! {
            _ = &mut waiting => panic!("it ends when it is told to"),
            begun = has_begun.recv() => assert!(begun.is_some()),
        }
    }
}
