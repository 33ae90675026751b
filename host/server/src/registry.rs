//! What outlives a restart: tenants, hashed keys, workflow versions and which are active, and the components' bytes.
//!
//! An answer goes out only after what it says is on the disk. Order of an upload: the blob, its folder, then the row;
//! so a row never names bytes that are not there, and a crash leaves at most a blob that nobody names.

pub mod blobs;
pub mod catalog;

pub use blobs::{BlobError, Blobs};
pub use catalog::{Catalog, CatalogError, KeyRow, Snapshot, TenantRow, VersionRow};

use std::path::Path;

/// The catalog and the blobs of one data folder.
pub struct Registry {
    /// Rows.
    pub catalog: Catalog,
    /// Bytes.
    pub blobs: Blobs,
}

/// Why the registry cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The database.
    #[error("cannot open the registry")]
    Catalog(#[from] CatalogError),
    /// The blobs.
    #[error("cannot open the folder of components")]
    Blobs(#[from] BlobError),
}

impl Registry {
    /// Opens or makes the registry and clears away what a crash left: unfinished files and blobs that nobody names.
    /// Returns the digests of blobs that a row names and that are not there, which only damage from outside causes.
    ///
    /// # Errors
    /// When the folder cannot be used, or the database is damaged or was made by a newer version.
    pub async fn open(data_dir: &Path) -> Result<(Registry, Vec<String>), RegistryError> {
        let blobs = Blobs::open(&data_dir.join("blobs")).await?;
        let catalog = Catalog::open(&data_dir.join("registry.sqlite")).await?;
        let named = catalog.digests().await?;
        let missing = blobs.clean_up(&named).await?;
        Ok((Registry { catalog, blobs }, missing))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn open(dir: &Path) -> (Registry, Vec<String>) {
        Registry::open(dir).await.unwrap()
    }

    #[tokio::test]
    async fn an_upload_that_was_acknowledged_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let digest = {
            let (registry, _) = open(dir.path()).await;
            let tenant = registry
                .catalog
                .create_tenant("acme", 1, None, None)
                .await
                .unwrap();
            let digest = registry.blobs.put(b"component").await.unwrap();
            let version = registry
                .catalog
                .add_version(tenant.id, "flow", &digest, 9, "{}")
                .await
                .unwrap();
            assert_eq!(version.version, 1);
            digest
        };
        let (registry, missing) = open(dir.path()).await;
        assert!(missing.is_empty());
        assert_eq!(registry.blobs.get(&digest).await.unwrap(), b"component");
    }

    #[tokio::test]
    async fn a_crash_between_blob_and_row_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let digest = {
            let (registry, _) = open(dir.path()).await;
            registry.blobs.put(b"never acknowledged").await.unwrap()
        };
        std::fs::write(dir.path().join("blobs/.tmp-0123"), b"half").unwrap();
        let (registry, missing) = open(dir.path()).await;
        assert!(missing.is_empty());
        assert!(
            registry.blobs.get(&digest).await.is_err(),
            "an orphan is removed"
        );
        assert_eq!(
            std::fs::read_dir(dir.path().join("blobs")).unwrap().count(),
            0
        );
    }

    #[tokio::test]
    async fn a_blob_that_is_gone_or_damaged_is_found_out_and_mended_by_storing_it_again() {
        let dir = tempfile::tempdir().unwrap();
        let (registry, _) = open(dir.path()).await;
        let tenant = registry
            .catalog
            .create_tenant("acme", 1, None, None)
            .await
            .unwrap();
        let digest = registry.blobs.put(b"component").await.unwrap();
        registry
            .catalog
            .add_version(tenant.id, "flow", &digest, 9, "{}")
            .await
            .unwrap();
        let path = dir.path().join("blobs").join(format!("{digest}.wasm"));
        std::fs::write(&path, b"componenT").unwrap();
        assert!(matches!(
            registry.blobs.get(&digest).await,
            Err(BlobError::Damaged { .. })
        ));
        assert_eq!(registry.blobs.put(b"component").await.unwrap(), digest);
        assert_eq!(registry.blobs.get(&digest).await.unwrap(), b"component");
        drop(registry);
        std::fs::remove_file(path).unwrap();
        assert_eq!(open(dir.path()).await.1, [digest]);
    }
}
