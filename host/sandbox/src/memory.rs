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
pub(crate) struct NoMemory {
    /// The limit that was met, the call's or the tenant's.
    pub(crate) bytes_max: usize,
}

impl CallMemory {
    pub(crate) fn new(bytes_max: usize, tenant: Arc<TenantMemory>) -> Arc<CallMemory> {
        Arc::new(CallMemory {
            bytes: AtomicUsize::new(0),
            bytes_max,
            tenant,
        })
    }

    pub(crate) fn take(&self, bytes: usize) -> Result<(), NoMemory> {
        let fits = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.bytes_max);
        self.bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
            .map_err(|_| NoMemory {
                bytes_max: self.bytes_max,
            })?;
        if !self.tenant.take(bytes) {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(NoMemory {
                bytes_max: self.tenant.bytes_max(),
            });
        }
        Ok(())
    }

    pub(crate) fn give_back(&self, bytes: usize) {
        let before = self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(before >= bytes, "a call gives back only what it took");
        self.tenant.give_back(bytes);
    }

    /// The memory of all calls of the tenant.
    pub(crate) fn tenant(&self) -> &TenantMemory {
        &self.tenant
    }

    /// Charges bytes until what they pay for is dropped.
    pub(crate) fn hold(self: &Arc<CallMemory>, bytes: usize) -> Result<Held, NoMemory> {
        self.take(bytes)?;
        Ok(Held {
            memory: Arc::clone(self),
            bytes,
        })
    }
}

/// Bytes that the host holds for a call. They are given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    memory: Arc<CallMemory>,
    bytes: usize,
}

impl Held {
    /// Nothing yet.
    pub(crate) fn nothing(memory: &Arc<CallMemory>) -> Held {
        Held {
            memory: Arc::clone(memory),
            bytes: 0,
        }
    }

    /// Charges `bytes` instead.
    pub(crate) fn resize(&mut self, bytes: usize) -> Result<(), NoMemory> {
        match bytes.checked_sub(self.bytes) {
            Some(more) => self.memory.take(more)?,
            None => self.memory.give_back(self.bytes - bytes),
        }
        self.bytes = bytes;
        Ok(())
    }

    /// All of it, as one of its own; nothing is left here.
    pub(crate) fn take(&mut self) -> Held {
        let mut taken = Held::nothing(&self.memory);
        taken.absorb(self, usize::MAX);
        taken
    }

    /// Moves up to `bytes` of what `other`, of the same call, holds to this one. That never fails: nothing is charged anew.
    pub(crate) fn absorb(&mut self, other: &mut Held, bytes: usize) {
        debug_assert!(Arc::ptr_eq(&self.memory, &other.memory), "of one call");
        let moved = bytes.min(other.bytes);
        other.bytes -= moved;
        self.bytes += moved;
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Held {
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
        assert_eq!(held.resize(81), Err(NoMemory { bytes_max: 80 }));
        held.resize(80).unwrap();
        assert_eq!(two.hold(21).unwrap_err(), NoMemory { bytes_max: 100 });
        let other = two.hold(20).unwrap();
        held.resize(10).unwrap();
        assert_eq!(tenant.bytes(), 30);
        drop((held, other));
        assert_eq!(tenant.bytes(), 0);
        assert_eq!(one.bytes.load(Ordering::Relaxed), 0);
    }
}
