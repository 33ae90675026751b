//! Loom's in the place of `sync.rs` of the kernels and of the engine.

pub(crate) use loom::cell::UnsafeCell;
pub(crate) use loom::sync::{Arc, Condvar, Mutex, MutexGuard};
pub(crate) use loom::thread::{Builder, JoinHandle};
pub(crate) use std::sync::PoisonError;
pub(crate) use std::sync::atomic::Ordering;

use loom::sync::atomic::fence;

/// Looks before sleeping: both ways are taken with one look, and every other multiplies the orders.
pub(crate) const fn spins(_count: u32) -> u32 {
    1
}

/// Nothing. To loom a pause says that the thread can only go on once the others have, and it would never try a worker that
/// falls asleep before the caller has a job.
pub(crate) fn spin_loop() {}

/// Loom's atomics, with a fence before each load that is sequentially consistent. Loom has such fences but takes such loads
/// for acquiring ones, and would find deadlocks that no machine has.
macro_rules! atomic {
    ($name:ident, $value:ty) => {
        #[derive(Debug)]
        pub(crate) struct $name(loom::sync::atomic::$name);

        impl $name {
            #[track_caller]
            pub(crate) fn new(value: $value) -> $name {
                $name(loom::sync::atomic::$name::new(value))
            }

            #[track_caller]
            pub(crate) fn load(&self, order: Ordering) -> $value {
                if order == Ordering::SeqCst {
                    fence(order);
                }
                self.0.load(order)
            }

            #[track_caller]
            pub(crate) fn store(&self, value: $value, order: Ordering) {
                self.0.store(value, order);
            }
        }
    };
    ($name:ident, $value:ty, $($change:ident),+) => {
        atomic!($name, $value);

        impl $name {
            $(
                #[track_caller]
                pub(crate) fn $change(&self, value: $value, order: Ordering) -> $value {
                    self.0.$change(value, order)
                }
            )+
        }
    };
}

atomic!(AtomicBool, bool);
atomic!(AtomicUsize, usize, fetch_add, fetch_sub);
atomic!(AtomicU32, u32, fetch_add, fetch_sub, fetch_and);

impl AtomicU32 {
    #[track_caller]
    pub(crate) fn fetch_update(
        &self,
        set: Ordering,
        fetch: Ordering,
        change: impl FnMut(u32) -> Option<u32>,
    ) -> Result<u32, u32> {
        self.0.fetch_update(set, fetch, change)
    }
}
