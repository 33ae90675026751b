//! The one meter of a call's memory: what the component has in its own, and every byte that the host holds for it.
//!
//! A byte is charged before it is kept, to the call and to its tenant, and given back when what it paid for is dropped. Who
//! has none left ends: the component's next growth fails, or the host function it called does.

use crate::TenantMemory;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a handle costs beside what it holds: its place in the table, and the engine's state behind it.
pub(crate) const HANDLE_BYTES: usize = 512;

/// Memory of one call.
#[derive(Debug)]
pub(crate) struct CallMemory {
    bytes: AtomicUsize,
    bytes_max: usize,
    tenant: Arc<TenantMemory>,
}

/// There was not as much memory left as was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the memory limit of {bytes_max} bytes is reached")]
pub struct NoMemory {
    /// The limit that was met, the call's or the tenant's.
    pub bytes_max: usize,
    /// What was wanted, with what the same charge held before.
    pub bytes: usize,
}

impl NoMemory {
    /// Whether waiting cannot help: it is more than there ever is.
    pub fn is_for_good(&self) -> bool {
        self.bytes > self.bytes_max
    }
}

/// Memory that can be charged.
pub trait Memory {
    /// Takes `bytes`.
    ///
    /// # Errors
    /// When there are not as many left; then nothing is taken.
    fn take(&self, bytes: usize) -> Result<(), NoMemory>;

    /// Gives back what was taken.
    fn give_back(&self, bytes: usize);
}

impl CallMemory {
    pub(crate) fn new(bytes_max: usize, tenant: Arc<TenantMemory>) -> Arc<CallMemory> {
        Arc::new(CallMemory {
            bytes: AtomicUsize::new(0),
            bytes_max,
            tenant,
        })
    }

    /// The memory of all calls of the tenant.
    pub(crate) fn tenant(&self) -> &TenantMemory {
        &self.tenant
    }

    /// Charges bytes until what they pay for is dropped.
    pub(crate) fn hold(self: &Arc<CallMemory>, bytes: usize) -> Result<Held, NoMemory> {
        Charge::new(self, bytes)
    }
}

impl Memory for CallMemory {
    fn take(&self, bytes: usize) -> Result<(), NoMemory> {
        take(&self.bytes, self.bytes_max, bytes)?;
        self.tenant.take(bytes).inspect_err(|_| {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        })
    }

    fn give_back(&self, bytes: usize) {
        give_back(&self.bytes, bytes);
        self.tenant.give_back(bytes);
    }
}

/// Counts `bytes` more, unless there would be more than `bytes_max`.
pub(crate) fn take(used: &AtomicUsize, bytes_max: usize, bytes: usize) -> Result<(), NoMemory> {
    let fits = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= bytes_max);
    used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
        .map(drop)
        .map_err(|_| NoMemory { bytes_max, bytes })
}

/// Counts `bytes` less.
pub(crate) fn give_back(used: &AtomicUsize, bytes: usize) {
    let before = used.fetch_sub(bytes, Ordering::Relaxed);
    debug_assert!(before >= bytes, "only what was taken is given back");
}

/// Bytes of a memory that something holds. They are given back when it is dropped.
#[derive(Debug)]
pub struct Charge<M: Memory> {
    memory: Arc<M>,
    bytes: usize,
}

/// Bytes that the host holds for a call.
pub(crate) type Held = Charge<CallMemory>;

impl<M: Memory> Charge<M> {
    /// Takes `bytes` of the memory.
    ///
    /// # Errors
    /// When there are not as many left.
    pub fn new(memory: &Arc<M>, bytes: usize) -> Result<Charge<M>, NoMemory> {
        let mut charge = Charge::nothing(memory);
        charge.resize(bytes)?;
        Ok(charge)
    }

    /// Nothing yet.
    pub fn nothing(memory: &Arc<M>) -> Charge<M> {
        Charge {
            memory: Arc::clone(memory),
            bytes: 0,
        }
    }

    /// Bytes it holds.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Holds `bytes` from now on.
    ///
    /// # Errors
    /// When there are not as many left; then nothing changes. Giving back never fails.
    pub fn resize(&mut self, bytes: usize) -> Result<(), NoMemory> {
        match bytes.checked_sub(self.bytes) {
            Some(more) => (self.memory.take(more)).map_err(|error| NoMemory { bytes, ..error })?,
            None => self.memory.give_back(self.bytes - bytes),
        }
        self.bytes = bytes;
        Ok(())
    }

    /// All of it, as one of its own; nothing is left here.
    pub(crate) fn take(&mut self) -> Charge<M> {
        let mut taken = Charge::nothing(&self.memory);
        taken.absorb(self, usize::MAX);
        taken
    }

    /// Moves up to `bytes` of what `other`, of the same memory, holds to this one. That never fails: nothing is charged anew.
    pub(crate) fn absorb(&mut self, other: &mut Charge<M>, bytes: usize) {
        debug_assert!(Arc::ptr_eq(&self.memory, &other.memory), "of one memory");
        let moved = bytes.min(other.bytes);
        other.bytes -= moved;
        self.bytes += moved;
    }
}

impl<M: Memory> Drop for Charge<M> {
    fn drop(&mut self) {
        self.memory.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_share_their_tenants_memory_and_give_it_back() {
        let tenant = Arc::new(TenantMemory::new(100));
        let one = CallMemory::new(80, Arc::clone(&tenant));
        let two = CallMemory::new(80, Arc::clone(&tenant));
        let mut held = one.hold(50).unwrap();
        assert_eq!(
            held.resize(81),
            Err(NoMemory {
                bytes_max: 80,
                bytes: 81
            })
        );
        held.resize(80).unwrap();
        assert_eq!(
            two.hold(21).unwrap_err(),
            NoMemory {
                bytes_max: 100,
                bytes: 21
            }
        );
        let other = two.hold(20).unwrap();
        held.resize(10).unwrap();
        assert_eq!(tenant.bytes(), 30);
        drop((held, other));
        assert_eq!(tenant.bytes(), 0);
        assert_eq!(one.bytes.load(Ordering::Relaxed), 0);
    }
}
