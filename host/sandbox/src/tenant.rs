//! A tenant, as far as the sandbox has to know it.

use crate::Limits;
use crate::blocking::JOBS_MAX;
use crate::compute::Allowance;
use crate::memory::{self, Charge, Memory, NoMemory};
use realm_engine::{Client, Owner};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// What a tenant's calls may compute at once before they give way to others: some instances, and a prompt each.
const COMPUTE_BURST: Duration = Duration::from_millis(4);

/// Whose call it is, and what it may use.
#[derive(Clone)]
pub struct Tenant {
    /// The engine's name for the tenant.
    pub id: u32,
    /// The name in logs.
    pub name: Arc<str>,
    /// Its share of the engine, relative to others.
    pub weight: u32,
    /// KV blocks over all its sequences.
    pub kv_blocks_max: u32,
    /// Limits of one call.
    pub limits: Limits,
    /// Memory of all its calls together. Must be the same one for all calls of a tenant.
    pub memory: Arc<TenantMemory>,
    /// What its components may open.
    pub models: ModelSet,
}

impl Tenant {
    /// The same in the engine's words.
    pub fn owner(&self) -> Owner {
        Owner {
            tenant: self.id,
            weight: self.weight,
            kv_blocks_max: self.kv_blocks_max,
        }
    }
}

/// The models a tenant may open, by name.
#[derive(Clone, Default)]
pub struct ModelSet(Arc<BTreeMap<String, Client>>);

impl ModelSet {
    /// Names and the engines behind them.
    pub fn new(models: BTreeMap<String, Client>) -> ModelSet {
        ModelSet(Arc::new(models))
    }

    /// One model by name.
    pub fn by_name(&self, name: &str) -> Option<&Client> {
        self.0.get(name)
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

impl From<BTreeMap<String, Client>> for ModelSet {
    fn from(models: BTreeMap<String, Client>) -> ModelSet {
        ModelSet::new(models)
    }
}

/// What all live calls and requests of one tenant take of the host together: memory above all, places for their blocking
/// work, and time on the threads of the connections.
#[derive(Debug)]
pub struct TenantMemory {
    bytes: AtomicUsize,
    bytes_max: usize,
    blocking: Arc<Semaphore>,
    allowance: Arc<Allowance>,
}

impl TenantMemory {
    /// Nothing in use, `bytes_max` at most.
    pub fn new(bytes_max: usize) -> TenantMemory {
        TenantMemory {
            bytes: AtomicUsize::new(0),
            bytes_max,
            blocking: Arc::new(Semaphore::new(JOBS_MAX)),
            allowance: Arc::new(Allowance::new(COMPUTE_BURST)),
        }
    }

    /// Bytes in use now.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Bytes that may be in use.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// What its calls may compute on the threads of the connections.
    pub(crate) fn allowance(&self) -> &Arc<Allowance> {
        &self.allowance
    }

    /// Waits for a place among the tenant's blocking jobs.
    pub(crate) async fn blocking_place(&self) -> Result<OwnedSemaphorePermit, AcquireError> {
        Arc::clone(&self.blocking).acquire_owned().await
    }

    /// Waits until none of the tenant's blocking jobs runs.
    #[cfg(test)]
    pub(crate) async fn all_blocking_places(&self) -> Result<OwnedSemaphorePermit, AcquireError> {
        let all = Arc::clone(&self.blocking).acquire_many_owned(JOBS_MAX as u32);
        all.await
    }
}

impl Memory for TenantMemory {
    fn take(&self, bytes: usize) -> Result<(), NoMemory> {
        memory::take(&self.bytes, self.bytes_max, bytes)
    }

    fn give_back(&self, bytes: usize) {
        memory::give_back(&self.bytes, bytes);
    }
}

/// Bytes of a tenant's memory that something holds.
pub type MemoryCharge = Charge<TenantMemory>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_charge_grows_and_shrinks_within_the_tenants_memory() {
        let memory = Arc::new(TenantMemory::new(100));
        let mut charge = MemoryCharge::new(&memory, 40).unwrap();
        assert_eq!(charge.resize(90), Ok(()));
        let (bytes_max, bytes) = (100, 101);
        let error = charge.resize(bytes).unwrap_err();
        assert_eq!(error, NoMemory { bytes_max, bytes });
        assert!(error.is_for_good());
        assert_eq!((charge.bytes(), memory.bytes()), (90, 90));
        let error = MemoryCharge::new(&memory, 11).unwrap_err();
        assert!(!error.is_for_good(), "it fits when the other is gone");
        assert_eq!(charge.resize(10), Ok(()));
        assert_eq!(memory.bytes(), 10);
        drop(charge);
        assert_eq!(memory.bytes(), 0);
    }
}
