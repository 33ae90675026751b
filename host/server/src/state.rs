//! What every request sees: the tenants as of the last change, the models, the sandbox, the metrics.
//!
//! Requests read an immutable [`Directory`] and an immutable [`ModelTable`] in memory. A change is written to the registry first and then read back
//! whole, so memory never knows more than the disk.

use crate::auth::sha256;
use crate::config::Config;
use crate::connections::InUse;
use crate::error::{ApiError, ApiResult};
use crate::hooks::TenantLogs;
use crate::metrics::Metrics;
use crate::models::ModelTable;
use crate::registry::{CatalogError, Registry, Snapshot, TenantRow, VersionRow};
use crate::workflows::Workflows;
use realm_sandbox::{MemoryCharge, Sandbox, Tenant, TenantMemory};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// The server's shared state.
pub struct App {
    /// The settings.
    pub config: Config,
    /// Tenants, keys and components on the disk.
    pub registry: Registry,
    /// Runs components.
    pub sandbox: Sandbox,
    /// Components made ready to run.
    pub workflows: Workflows,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// What components say.
    pub logs: Arc<TenantLogs>,
    /// What opens the admin plane.
    pub admin_token: String,
    /// One change of the registry at a time, from its write to the new directory.
    pub changes: tokio::sync::Mutex<()>,
    /// Becomes true when the server was told to stop.
    pub stopping: watch::Sender<bool>,
    /// One large body at a time is parsed, so that the engine's threads keep the processors; tenants take turns.
    pub(crate) parsing: Arc<Semaphore>,
    /// Connections and calls that a stop waits for.
    pub open: watch::Sender<usize>,
    directory: RwLock<Arc<Directory>>,
    models: RwLock<Arc<ModelTable>>,
    /// What a tenant has across changes: its counted memory and its permits.
    accounts: Mutex<HashMap<u32, Account>>,
}

/// All tenants as of one moment.
#[derive(Default)]
pub struct Directory {
    by_key: HashMap<[u8; 32], Arc<TenantEntry>>,
    names: HashMap<u32, String>,
}

/// A tenant as requests see it.
pub struct TenantEntry {
    /// Its row.
    pub row: TenantRow,
    /// Memory that its requests and its components take together.
    pub memory: Arc<TenantMemory>,
    /// Its large request bodies.
    pub(crate) bodies: BodyTurns,
    /// Its active workflows by name.
    pub active: BTreeMap<String, VersionRow>,
    /// Requests it may have at once.
    pub requests_max: usize,
    permits: Arc<Semaphore>,
    sockets: Arc<Semaphore>,
}

/// What a tenant's large bodies wait for, so that many at once never stand in memory side by side.
#[derive(Clone)]
pub(crate) struct BodyTurns {
    /// One permit a KiB that is being received.
    pub(crate) receiving: Arc<Semaphore>,
    /// One body at a time is parsed.
    pub(crate) parsing: Arc<Semaphore>,
}

/// Bytes of large bodies that one tenant can have under way at once, and so the permits of [`BodyTurns::receiving`].
pub(crate) const RECEIVING_BYTES_MAX: usize = 32 << 20;

impl TenantEntry {
    /// Takes some of the tenant's memory.
    ///
    /// # Errors
    /// The client's 429.
    pub fn charge(&self, bytes: usize) -> ApiResult<MemoryCharge> {
        Ok(MemoryCharge::new(&self.memory, bytes)?)
    }
}

#[derive(Clone)]
struct Account {
    bodies: BodyTurns,
    memory: Arc<TenantMemory>,
    permits: Arc<Semaphore>,
    sockets: Arc<Semaphore>,
}

/// Everything `App` is made of.
pub struct Parts {
    /// See [`App`].
    pub config: Config,
    /// See [`App`].
    pub registry: Registry,
    /// See [`App`].
    pub sandbox: Sandbox,
    /// See [`App`].
    pub workflows: Workflows,
    /// See [`App`].
    pub metrics: Arc<Metrics>,
    /// See [`App`].
    pub logs: Arc<TenantLogs>,
    /// See [`App::models`].
    pub models: ModelTable,
    /// See [`App`].
    pub admin_token: String,
}

impl App {
    /// Puts the parts together and reads the registry.
    ///
    /// # Errors
    /// [`CatalogError::Database`].
    pub async fn new(parts: Parts) -> Result<App, CatalogError> {
        let Parts {
            config,
            registry,
            sandbox,
            workflows,
            metrics,
            logs,
            models,
            admin_token,
        } = parts;
        let app = App {
            config,
            registry,
            sandbox,
            workflows,
            metrics,
            logs,
            admin_token,
            changes: tokio::sync::Mutex::new(()),
            stopping: watch::Sender::new(false),
            open: watch::Sender::new(0),
            directory: RwLock::default(),
            models: RwLock::new(Arc::new(models)),
            parsing: Arc::new(Semaphore::new(1)),
            accounts: Mutex::default(),
        };
        app.reload().await?;
        Ok(app)
    }

    /// Makes requests see what the registry holds now. Call it with [`App::changes`] held.
    ///
    /// # Errors
    /// [`CatalogError::Database`]; requests then go on with what they saw before.
    pub async fn reload(&self) -> Result<(), CatalogError> {
        let directory = Arc::new(self.directory_of(self.registry.catalog.snapshot().await?));
        *self
            .directory
            .write()
            .unwrap_or_else(PoisonError::into_inner) = directory;
        Ok(())
    }

    fn directory_of(&self, snapshot: Snapshot) -> Directory {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        let ids: HashSet<u32> = snapshot.tenants.iter().map(|row| row.id).collect();
        accounts.retain(|id, _| ids.contains(id));
        let mut active: HashMap<u32, BTreeMap<String, VersionRow>> = HashMap::new();
        for ((tenant, workflow), version) in snapshot.active {
            active.entry(tenant).or_default().insert(workflow, version);
        }
        let entry = |row: TenantRow| {
            let requests_max = row.requests_max.unwrap_or(self.config.tenant_requests_max) as usize;
            let account = accounts
                .entry(row.id)
                .or_insert_with(|| self.new_account(requests_max));
            let entry = TenantEntry {
                memory: Arc::clone(&account.memory),
                bodies: account.bodies.clone(),
                active: active.remove(&row.id).unwrap_or_default(),
                requests_max,
                permits: Arc::clone(&account.permits),
                sockets: Arc::clone(&account.sockets),
                row,
            };
            (entry.row.id, Arc::new(entry))
        };
        let names = snapshot.tenants.iter();
        let names = names.map(|row| (row.id, row.name.clone())).collect();
        let entries: HashMap<u32, Arc<TenantEntry>> =
            snapshot.tenants.into_iter().map(entry).collect();
        let by_key = snapshot
            .keys
            .into_iter()
            .filter_map(|(hash, id)| Some((hash, Arc::clone(entries.get(&id)?))));
        Directory {
            by_key: by_key.collect(),
            names,
        }
    }

    fn new_account(&self, requests_max: usize) -> Account {
        let bytes = self.config.tenant_memory_mib.saturating_mul(1 << 20);
        Account {
            bodies: BodyTurns {
                receiving: Arc::new(Semaphore::new(RECEIVING_BYTES_MAX >> 10)),
                parsing: Arc::new(Semaphore::new(1)),
            },
            memory: Arc::new(TenantMemory::new(
                usize::try_from(bytes).unwrap_or(usize::MAX),
            )),
            permits: Arc::new(Semaphore::new(requests_max.min(Semaphore::MAX_PERMITS))),
            sockets: Arc::new(Semaphore::new(self.config.tenant_sockets_max as usize)),
        }
    }

    /// A tenant as the sandbox sees it, with the models there are now.
    pub fn tenant_of(&self, entry: &TenantEntry) -> Tenant {
        self.sandbox_tenant(&entry.row, Arc::clone(&entry.memory))
    }

    /// The same for a tenant whose calls are counted in another memory.
    pub fn sandbox_tenant(&self, row: &TenantRow, memory: Arc<TenantMemory>) -> Tenant {
        Tenant {
            id: row.id,
            name: row.name.as_str().into(),
            weight: row.weight,
            kv_blocks_max: row.kv_blocks_max.unwrap_or(u32::MAX),
            limits: self.config.limits.to_sandbox(),
            memory,
            models: self.models().for_components(),
        }
    }

    /// The models as of now. A request keeps the table it was resolved in.
    pub fn models(&self) -> Arc<ModelTable> {
        let models = self.models.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&models)
    }

    /// Replaces the models that later requests see; those under way go on with theirs.
    pub fn set_models(&self, models: ModelTable) {
        *self.models.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(models);
    }

    /// The text of `/metrics`.
    ///
    /// # Errors
    /// A mistake in the metrics' own names.
    pub fn scrape(&self) -> Result<String, prometheus::Error> {
        let directory = self.directory.read();
        let directory = Arc::clone(&directory.unwrap_or_else(PoisonError::into_inner));
        self.metrics.scrape(&self.models(), &directory.names)
    }

    /// Changes the registry and what requests see. It runs to its end even when the caller hangs up, so that memory
    /// never stays behind the disk.
    ///
    /// # Errors
    /// Those of the change.
    pub async fn change<T: Send + 'static>(
        self: &Arc<App>,
        work: impl Future<Output = ApiResult<T>> + Send + 'static,
    ) -> ApiResult<T> {
        let app = Arc::clone(self);
        let changed = tokio::spawn(async move {
            let _turn = app.changes.lock().await;
            let done = work.await?;
            app.reload().await?;
            Ok(done)
        });
        changed
            .await
            .unwrap_or_else(|error| Err(ApiError::internal(&error)))
    }

    /// Whose key this is.
    ///
    /// # Errors
    /// The client's 401.
    pub fn authenticate(&self, key: Option<&str>) -> ApiResult<Arc<TenantEntry>> {
        let hash = sha256(key.ok_or_else(ApiError::unauthorized)?.as_bytes());
        let directory = self
            .directory
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        directory
            .by_key
            .get(&hash)
            .cloned()
            .ok_or_else(ApiError::unauthorized)
    }

    /// Takes one of the tenant's places for requests.
    ///
    /// # Errors
    /// The client's 429, or 503 when the server is stopping.
    pub fn admit(&self, tenant: &TenantEntry, connection: InUse) -> ApiResult<Admission> {
        if self.is_stopping() {
            return Err(ApiError::stopping());
        }
        let permit = Arc::clone(&tenant.permits).try_acquire_owned();
        let permit = permit.map_err(|_| ApiError::too_many_requests(tenant.requests_max))?;
        let in_flight = self
            .metrics
            .in_flight
            .with_label_values(&[tenant.row.name.as_str()]);
        in_flight.inc();
        Ok(Admission {
            _permit: permit,
            in_flight,
            _connection: connection,
        })
    }

    /// Takes one of the tenant's places for connections to `/ws`, given back when dropped.
    ///
    /// # Errors
    /// The client's 429.
    pub fn admit_socket(&self, tenant: &TenantEntry) -> ApiResult<OwnedSemaphorePermit> {
        Arc::clone(&tenant.sockets)
            .try_acquire_owned()
            .map_err(|_| ApiError::too_many_sockets(self.config.tenant_sockets_max))
    }

    /// Whether the server was told to stop.
    pub fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Waits for that. Safe to drop.
    pub async fn until_stopping(&self) {
        // The sender is a field of this very struct, so the channel cannot close first.
        let _ = self
            .stopping
            .subscribe()
            .wait_for(|stopping| *stopping)
            .await;
    }
}

/// A connection or call that a stop waits for, until it is dropped.
pub struct Open(Arc<App>);

impl Open {
    /// Counts one more.
    pub fn new(app: &Arc<App>) -> Open {
        app.open.send_modify(|open| *open += 1);
        Open(Arc::clone(app))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.send_modify(|open| *open -= 1);
    }
}

/// A tenant's place for one request, held until its answer has ended.
pub struct Admission {
    _permit: OwnedSemaphorePermit,
    in_flight: prometheus::IntGauge,
    _connection: InUse,
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.in_flight.dec();
    }
}
