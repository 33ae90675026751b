//! Limits of one call, and the limiter that counts all memories and tables of a store together.

use crate::memory::{CallMemory, Memory, NoMemory};
use std::sync::Arc;
use wasmtime::ResourceLimiter;

/// What one call may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Linear memory, all memories of the component together, and what the host holds for it.
    pub memory_bytes_max: usize,
    /// Processor time, the host's work for it included.
    pub cpu_ms_max: u64,
    /// Time from the call's start, waiting included.
    pub wall_ms_max: u64,
    /// Handles held at once: sequences, runs, policies.
    pub handles_max: u32,
    /// Table elements, all tables of the component together.
    pub table_elements_max: usize,
    /// Log lines of one call together; what is over is dropped, and the drop noted.
    pub log_bytes_max: usize,
    /// One JSON value, one text, or the texts of one chat, in either direction.
    pub json_bytes_max: usize,
    /// What the component can hand to the host in one call.
    pub hostcall_bytes_max: usize,
    /// Sequences that one run decodes.
    pub jobs_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            memory_bytes_max: 64 << 20,
            cpu_ms_max: 5_000,
            wall_ms_max: 300_000,
            handles_max: 512,
            table_elements_max: 20_000,
            log_bytes_max: 64 << 10,
            json_bytes_max: 1 << 20,
            hostcall_bytes_max: 4 << 20,
            jobs_max: 64,
        }
    }
}

/// Which limit a store has run into. A guest sees only that it got no memory and usually panics; this says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    Memory { bytes_max: usize },
    Table { elements_max: usize },
}

/// Grants linear memory and table elements to one store, and gives the memory back when dropped.
pub(crate) struct Limiter {
    bytes: usize,
    elements: usize,
    elements_max: usize,
    memory: Arc<CallMemory>,
    /// The grant of the growth under way, taken back when the growth fails after it.
    granted: Grant,
    pub(crate) denied: Option<Denied>,
}

#[derive(Default)]
struct Grant {
    bytes: usize,
    elements: usize,
}

impl Limiter {
    pub(crate) fn new(limits: &Limits, memory: Arc<CallMemory>) -> Limiter {
        Limiter {
            bytes: 0,
            elements: 0,
            elements_max: limits.table_elements_max,
            memory,
            granted: Grant::default(),
            denied: None,
        }
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.granted = Grant::default();
        if maximum.is_some_and(|maximum| desired > maximum) {
            // The component's own maximum: its business, not a limit of ours.
            return Ok(false);
        }
        let more = desired.saturating_sub(current);
        if let Err(NoMemory { bytes_max, .. }) = self.memory.take(more) {
            self.denied = Some(Denied::Memory { bytes_max });
            return Ok(false);
        }
        self.bytes += more;
        self.granted.bytes = more;
        Ok(true)
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        let back = std::mem::take(&mut self.granted.bytes);
        self.bytes -= back;
        self.memory.give_back(back);
        Ok(())
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.granted = Grant::default();
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        let more = desired.saturating_sub(current);
        if self
            .elements
            .checked_add(more)
            .is_none_or(|sum| sum > self.elements_max)
        {
            self.denied = Some(Denied::Table {
                elements_max: self.elements_max,
            });
            return Ok(false);
        }
        self.elements += more;
        self.granted.elements = more;
        Ok(true)
    }

    fn table_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.elements -= std::mem::take(&mut self.granted.elements);
        Ok(())
    }
}

impl Drop for Limiter {
    fn drop(&mut self) {
        self.memory.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TenantMemory;

    fn limiter(tenant: &Arc<TenantMemory>, bytes_max: usize) -> Limiter {
        let limits = Limits {
            table_elements_max: 10,
            ..Limits::default()
        };
        Limiter::new(&limits, CallMemory::new(bytes_max, Arc::clone(tenant)))
    }

    #[test]
    fn several_memories_share_one_limit() {
        let tenant = Arc::new(TenantMemory::new(1000));
        let mut store = limiter(&tenant, 100);
        assert!(store.memory_growing(0, 60, None).unwrap());
        assert!(!store.memory_growing(0, 60, None).unwrap());
        assert_eq!(store.denied, Some(Denied::Memory { bytes_max: 100 }));
        assert!(store.memory_growing(0, 40, None).unwrap());
        assert_eq!(tenant.bytes(), 100);
        drop(store);
        assert_eq!(tenant.bytes(), 0);
    }

    #[test]
    fn calls_of_one_tenant_share_its_limit() {
        let tenant = Arc::new(TenantMemory::new(100));
        let (mut one, mut two) = (limiter(&tenant, 80), limiter(&tenant, 80));
        assert!(one.memory_growing(0, 80, None).unwrap());
        assert!(!two.memory_growing(0, 80, None).unwrap());
        assert_eq!(two.denied, Some(Denied::Memory { bytes_max: 100 }));
        drop(one);
        assert!(two.memory_growing(0, 80, None).unwrap());
    }

    #[test]
    fn a_failed_growth_costs_nothing() {
        let tenant = Arc::new(TenantMemory::new(100));
        let mut store = limiter(&tenant, 100);
        assert!(store.memory_growing(0, 50, None).unwrap());
        store
            .memory_grow_failed(wasmtime::Error::msg("no pages"))
            .unwrap();
        assert_eq!(tenant.bytes(), 0);
        assert!(!store.table_growing(0, 11, None).unwrap());
        assert!(store.table_growing(0, 10, None).unwrap());
    }
}
