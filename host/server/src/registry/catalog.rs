//! The rows: tenants, keys, workflow versions, activations. SQLite, one writer, synced before it answers.

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{Row, SqlitePool};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The version of `schema.sql`, kept in the database's own `user_version`.
const SCHEMA_VERSION: i64 = 1;

/// The database.
#[derive(Clone, Debug)]
pub struct Catalog {
    pool: SqlitePool,
}

/// What can go wrong with the catalog.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// There is one of this name already.
    #[error("the {what} {name:?} already exists")]
    Exists {
        /// What kind of thing.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// There is none.
    #[error("the {what} {name:?} does not exist")]
    NotFound {
        /// What kind of thing.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// There is no activation before the one in force.
    #[error("the workflow {workflow:?} has no earlier version to return to")]
    NothingBefore {
        /// The workflow.
        workflow: String,
    },
    /// The file was made by a later version of Realm.
    #[error(
        "the registry was written by a newer version of realm: its schema is {found}, this version reads {SCHEMA_VERSION}"
    )]
    Newer {
        /// Its version.
        found: i64,
    },
    /// The database itself failed.
    #[error("the registry's database failed")]
    Database(#[from] sqlx::Error),
}

/// A tenant.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct TenantRow {
    /// The engine's name for it.
    pub id: u32,
    /// The operator's name for it.
    pub name: String,
    /// Its share against others.
    pub weight: u32,
    /// KV blocks it may hold; `None` is as many as there are.
    pub kv_blocks_max: Option<u32>,
    /// Requests at once; `None` is the server's default.
    pub requests_max: Option<u32>,
    /// Milliseconds since 1970.
    pub created_ms: i64,
}

/// A key, without the key.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct KeyRow {
    /// By which it is revoked.
    pub id: String,
    /// What the operator wrote beside it.
    pub label: String,
    /// Its first characters.
    pub prefix: String,
    /// Milliseconds since 1970.
    pub created_ms: i64,
    /// When it was revoked.
    pub revoked_ms: Option<i64>,
}

/// A version of a workflow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionRow {
    /// The workflow's name.
    pub workflow: String,
    /// From 1.
    pub version: u32,
    /// SHA-256 of the component, in hex.
    pub digest: String,
    /// Size of the component.
    pub bytes: u64,
    /// JSON.
    pub description: String,
    /// Milliseconds since 1970.
    pub created_ms: i64,
}

/// What requests are resolved against, read in one go.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// All tenants.
    pub tenants: Vec<TenantRow>,
    /// Hashes of keys in force, with the tenant's id.
    pub keys: Vec<([u8; 32], u32)>,
    /// Active versions by tenant's id and workflow.
    pub active: BTreeMap<(u32, String), VersionRow>,
}

impl Catalog {
    /// Opens or makes the database.
    ///
    /// # Errors
    /// When it cannot be used, or was made by a later version.
    pub async fn open(path: &Path) -> Result<Catalog, CatalogError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full) // WAL alone may lose the last transactions at a power cut
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10));
        // One connection: transactions never meet, and requests are answered from memory anyway.
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .connect_with(options)
            .await?;
        let found: i64 = sqlx::query_scalar("PRAGMA user_version")
            .fetch_one(&pool)
            .await?;
        match found {
            0 => {
                let mut transaction = pool.begin().await?;
                sqlx::raw_sql(include_str!("schema.sql"))
                    .execute(&mut *transaction)
                    .await?;
                transaction.commit().await?;
            }
            SCHEMA_VERSION => {}
            found => return Err(CatalogError::Newer { found }),
        }
        Ok(Catalog { pool })
    }

    /// Ends all use of the file.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Adds a tenant.
    ///
    /// # Errors
    /// [`CatalogError::Exists`].
    pub async fn create_tenant(
        &self,
        name: &str,
        weight: u32,
        kv_blocks_max: Option<u32>,
        requests_max: Option<u32>,
    ) -> Result<TenantRow, CatalogError> {
        let row = sqlx::query(
            "INSERT INTO tenants (name, weight, kv_blocks_max, requests_max, created_ms) VALUES (?, ?, ?, ?, ?)
             RETURNING *",
        )
        .bind(name)
        .bind(weight)
        .bind(kv_blocks_max)
        .bind(requests_max)
        .bind(now_ms())
        .fetch_one(&self.pool)
        .await;
        match row {
            Ok(row) => Ok(tenant_row(&row)?),
            Err(sqlx::Error::Database(error)) if error.is_unique_violation() => {
                Err(CatalogError::Exists {
                    what: "tenant",
                    name: name.to_owned(),
                })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// All tenants by name.
    ///
    /// # Errors
    /// [`CatalogError::Database`].
    pub async fn tenants(&self) -> Result<Vec<TenantRow>, CatalogError> {
        let rows = sqlx::query("SELECT * FROM tenants ORDER BY name")
            .fetch_all(&self.pool)
            .await?;
        Ok(rows.iter().map(tenant_row).collect::<Result<_, _>>()?)
    }

    /// One tenant.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`].
    pub async fn tenant(&self, name: &str) -> Result<TenantRow, CatalogError> {
        let row = sqlx::query("SELECT * FROM tenants WHERE name = ?")
            .bind(name)
            .fetch_optional(&self.pool)
            .await?;
        let row = row.ok_or_else(|| missing("tenant", name))?;
        Ok(tenant_row(&row)?)
    }

    /// Removes a tenant with its keys and workflows.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`].
    pub async fn delete_tenant(&self, name: &str) -> Result<(), CatalogError> {
        let done = sqlx::query("DELETE FROM tenants WHERE name = ?")
            .bind(name)
            .execute(&self.pool)
            .await?;
        if done.rows_affected() == 0 {
            Err(missing("tenant", name))
        } else {
            Ok(())
        }
    }

    /// Adds a key, of which only the hash is kept.
    ///
    /// # Errors
    /// [`CatalogError::Database`].
    pub async fn add_key(
        &self,
        tenant: u32,
        id: &str,
        label: &str,
        prefix: &str,
        hash: &[u8; 32],
    ) -> Result<(), CatalogError> {
        sqlx::query(
            "INSERT INTO api_keys (id, tenant_id, label, prefix, hash, created_ms) VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(id)
        .bind(tenant)
        .bind(label)
        .bind(prefix)
        .bind(&hash[..])
        .bind(now_ms())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// A tenant's keys, the revoked ones included, oldest first.
    ///
    /// # Errors
    /// [`CatalogError::Database`].
    pub async fn keys(&self, tenant: u32) -> Result<Vec<KeyRow>, CatalogError> {
        let rows =
            sqlx::query("SELECT * FROM api_keys WHERE tenant_id = ? ORDER BY created_ms, id")
                .bind(tenant)
                .fetch_all(&self.pool)
                .await?;
        let key = |row: &SqliteRow| -> Result<KeyRow, sqlx::Error> {
            Ok(KeyRow {
                id: row.try_get("id")?,
                label: row.try_get("label")?,
                prefix: row.try_get("prefix")?,
                created_ms: row.try_get("created_ms")?,
                revoked_ms: row.try_get("revoked_ms")?,
            })
        };
        Ok(rows.iter().map(key).collect::<Result<_, _>>()?)
    }

    /// Revokes one key of a tenant.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`], also when it is revoked already.
    pub async fn revoke_key(&self, tenant: u32, id: &str) -> Result<(), CatalogError> {
        let done = sqlx::query("UPDATE api_keys SET revoked_ms = ? WHERE tenant_id = ? AND id = ? AND revoked_ms IS NULL")
            .bind(now_ms())
            .bind(tenant)
            .bind(id)
            .execute(&self.pool)
            .await?;
        if done.rows_affected() == 0 {
            Err(missing("key", id))
        } else {
            Ok(())
        }
    }

    /// Adds the next version of a workflow. Its blob must be on the disk.
    ///
    /// # Errors
    /// [`CatalogError::Database`], also when the tenant is gone meanwhile.
    pub async fn add_version(
        &self,
        tenant: u32,
        workflow: &str,
        digest: &str,
        bytes: u64,
        description: &str,
    ) -> Result<VersionRow, CatalogError> {
        let row = sqlx::query(
            "INSERT INTO workflow_versions (tenant_id, workflow, version, digest, bytes, description, created_ms)
             SELECT ?1, ?2, COALESCE(MAX(version), 0) + 1, ?3, ?4, ?5, ?6
             FROM workflow_versions WHERE tenant_id = ?1 AND workflow = ?2
             RETURNING *",
        )
        .bind(tenant)
        .bind(workflow)
        .bind(digest)
        .bind(i64::try_from(bytes).unwrap_or(i64::MAX))
        .bind(description)
        .bind(now_ms())
        .fetch_one(&self.pool)
        .await?;
        Ok(version_row(&row)?)
    }

    /// A tenant's versions by workflow, each in order.
    ///
    /// # Errors
    /// [`CatalogError::Database`].
    pub async fn versions(&self, tenant: u32) -> Result<Vec<VersionRow>, CatalogError> {
        let rows = sqlx::query(
            "SELECT * FROM workflow_versions WHERE tenant_id = ? ORDER BY workflow, version",
        )
        .bind(tenant)
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.iter().map(version_row).collect::<Result<_, _>>()?)
    }

    /// Makes a version the active one. Once more the same changes nothing.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`].
    pub async fn activate(
        &self,
        tenant: u32,
        workflow: &str,
        version: u32,
    ) -> Result<(), CatalogError> {
        let mut transaction = self.pool.begin().await?;
        let known: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM workflow_versions WHERE tenant_id = ? AND workflow = ? AND version = ?",
        )
        .bind(tenant)
        .bind(workflow)
        .bind(version)
        .fetch_one(&mut *transaction)
        .await?;
        if known == 0 {
            return Err(missing("version", &format!("{workflow} {version}")));
        }
        let last: Option<u32> = sqlx::query_scalar(
            "SELECT version FROM activations WHERE tenant_id = ? AND workflow = ? ORDER BY id DESC LIMIT 1",
        )
        .bind(tenant)
        .bind(workflow)
        .fetch_optional(&mut *transaction)
        .await?;
        if last != Some(version) {
            sqlx::query("INSERT INTO activations (tenant_id, workflow, version, created_ms) VALUES (?, ?, ?, ?)")
                .bind(tenant)
                .bind(workflow)
                .bind(version)
                .bind(now_ms())
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Returns to the version that was active before, and says which.
    ///
    /// # Errors
    /// [`CatalogError::NothingBefore`].
    pub async fn rollback(&self, tenant: u32, workflow: &str) -> Result<u32, CatalogError> {
        let mut transaction = self.pool.begin().await?;
        let rows = sqlx::query(
            "SELECT id, version FROM activations WHERE tenant_id = ? AND workflow = ? ORDER BY id DESC LIMIT 2",
        )
        .bind(tenant)
        .bind(workflow)
        .fetch_all(&mut *transaction)
        .await?;
        let [last, before] = rows.as_slice() else {
            return Err(CatalogError::NothingBefore {
                workflow: workflow.to_owned(),
            });
        };
        sqlx::query("DELETE FROM activations WHERE id = ?")
            .bind(last.try_get::<i64, _>("id")?)
            .execute(&mut *transaction)
            .await?;
        let version = before.try_get("version")?;
        transaction.commit().await?;
        Ok(version)
    }

    /// Every digest a version names.
    ///
    /// # Errors
    /// [`CatalogError::Database`].
    pub async fn digests(&self) -> Result<BTreeSet<String>, CatalogError> {
        let digests: Vec<String> =
            sqlx::query_scalar("SELECT DISTINCT digest FROM workflow_versions")
                .fetch_all(&self.pool)
                .await?;
        Ok(digests.into_iter().collect())
    }

    /// All that requests need, as of one moment.
    ///
    /// # Errors
    /// [`CatalogError::Database`].
    pub async fn snapshot(&self) -> Result<Snapshot, CatalogError> {
        let mut transaction = self.pool.begin().await?;
        let tenants = sqlx::query("SELECT * FROM tenants")
            .fetch_all(&mut *transaction)
            .await?;
        let keys = sqlx::query("SELECT hash, tenant_id FROM api_keys WHERE revoked_ms IS NULL")
            .fetch_all(&mut *transaction)
            .await?;
        let active = sqlx::query(
            "SELECT v.* FROM workflow_versions v JOIN activations a USING (tenant_id, workflow, version)
             WHERE a.id IN (SELECT MAX(id) FROM activations GROUP BY tenant_id, workflow)",
        )
        .fetch_all(&mut *transaction)
        .await?;
        let mut snapshot = Snapshot {
            tenants: tenants.iter().map(tenant_row).collect::<Result<_, _>>()?,
            ..Snapshot::default()
        };
        for row in &keys {
            let hash: Vec<u8> = row.try_get("hash")?;
            // A hash of another length can only come from a hand-made row; it matches no key.
            if let Ok(hash) = <[u8; 32]>::try_from(hash) {
                snapshot.keys.push((hash, row.try_get("tenant_id")?));
            }
        }
        for row in &active {
            let version = version_row(row)?;
            snapshot.active.insert(
                (row.try_get("tenant_id")?, version.workflow.clone()),
                version,
            );
        }
        Ok(snapshot)
    }

    /// Asks SQLite to check the file; `Ok` with what it finds wrong, empty when nothing.
    ///
    /// # Errors
    /// [`CatalogError::Database`].
    pub async fn check(&self) -> Result<Vec<String>, CatalogError> {
        let mut found: Vec<String> = sqlx::query_scalar("PRAGMA quick_check")
            .fetch_all(&self.pool)
            .await?;
        found.retain(|line| line != "ok");
        Ok(found)
    }
}

fn tenant_row(row: &SqliteRow) -> Result<TenantRow, sqlx::Error> {
    Ok(TenantRow {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        weight: row.try_get("weight")?,
        kv_blocks_max: row.try_get("kv_blocks_max")?,
        requests_max: row.try_get("requests_max")?,
        created_ms: row.try_get("created_ms")?,
    })
}

fn version_row(row: &SqliteRow) -> Result<VersionRow, sqlx::Error> {
    Ok(VersionRow {
        workflow: row.try_get("workflow")?,
        version: row.try_get("version")?,
        digest: row.try_get("digest")?,
        bytes: row.try_get::<i64, _>("bytes")?.unsigned_abs(),
        description: row.try_get("description")?,
        created_ms: row.try_get("created_ms")?,
    })
}

fn missing(what: &'static str, name: &str) -> CatalogError {
    CatalogError::NotFound {
        what,
        name: name.to_owned(),
    }
}

/// Milliseconds since 1970.
pub fn now_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn catalog(dir: &tempfile::TempDir) -> Catalog {
        Catalog::open(&dir.path().join("registry.sqlite"))
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn versions_count_up_and_a_roll_back_returns_step_by_step() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = catalog(&dir).await;
        let tenant = catalog
            .create_tenant("acme", 1, Some(8), None)
            .await
            .unwrap()
            .id;
        for version in 1..=3 {
            let row = catalog
                .add_version(tenant, "flow", &format!("{version:064}"), 1, "{}")
                .await
                .unwrap();
            assert_eq!(row.version, version);
        }
        assert!(
            catalog.snapshot().await.unwrap().active.is_empty(),
            "stored is not active"
        );
        for version in [1, 2, 2, 3] {
            catalog.activate(tenant, "flow", version).await.unwrap();
        }
        assert!(matches!(
            catalog.activate(tenant, "flow", 4).await,
            Err(CatalogError::NotFound { .. })
        ));
        assert_eq!(catalog.rollback(tenant, "flow").await.unwrap(), 2);
        assert_eq!(catalog.rollback(tenant, "flow").await.unwrap(), 1);
        assert!(matches!(
            catalog.rollback(tenant, "flow").await,
            Err(CatalogError::NothingBefore { .. })
        ));
        assert_eq!(
            catalog.snapshot().await.unwrap().active[&(tenant, "flow".to_owned())].version,
            1
        );
    }

    #[tokio::test]
    async fn a_tenant_takes_its_keys_and_workflows_along() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = catalog(&dir).await;
        let tenant = catalog
            .create_tenant("acme", 1, None, None)
            .await
            .unwrap()
            .id;
        assert!(matches!(
            catalog.create_tenant("acme", 1, None, None).await,
            Err(CatalogError::Exists { .. })
        ));
        catalog
            .add_key(tenant, "key_1", "", "rk_1", &[1; 32])
            .await
            .unwrap();
        catalog
            .add_key(tenant, "key_2", "", "rk_2", &[2; 32])
            .await
            .unwrap();
        catalog.revoke_key(tenant, "key_1").await.unwrap();
        assert!(catalog.revoke_key(tenant, "key_1").await.is_err());
        assert_eq!(catalog.snapshot().await.unwrap().keys, [([2; 32], tenant)]);
        catalog
            .add_version(tenant, "flow", "d", 1, "{}")
            .await
            .unwrap();
        catalog.activate(tenant, "flow", 1).await.unwrap();
        catalog.delete_tenant("acme").await.unwrap();
        let snapshot = catalog.snapshot().await.unwrap();
        assert!(
            snapshot.tenants.is_empty() && snapshot.keys.is_empty() && snapshot.active.is_empty()
        );
        assert!(catalog.digests().await.unwrap().is_empty());
        let next = catalog
            .create_tenant("acme", 1, None, None)
            .await
            .unwrap()
            .id;
        assert_ne!(next, tenant, "an id is never used twice");
    }

    #[tokio::test]
    async fn a_database_of_a_later_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let first = catalog(&dir).await;
        sqlx::raw_sql("PRAGMA user_version = 9")
            .execute(&first.pool)
            .await
            .unwrap();
        first.close().await;
        let error = Catalog::open(&dir.path().join("registry.sqlite"))
            .await
            .unwrap_err();
        assert!(matches!(error, CatalogError::Newer { found: 9 }));
    }
}
