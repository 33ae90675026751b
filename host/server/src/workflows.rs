//! Components made ready to run: compiled once, kept on the disk as artifacts, loaded when first called.
//!
//! An artifact is a cache and nothing more: one that is missing, damaged or of another version is made again from the
//! component's bytes.

use crate::auth::{hex, sha256};
use crate::error::{ApiError, ApiResult, chain};
use crate::registry::Blobs;
use crate::registry::blobs::replace_file;
use moka::future::Cache;
use realm_sandbox::{Artifact, Rejected, Sandbox, Workflow};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// The component that serves base models for tenants who have none of their own.
const PASSTHROUGH: &[u8] = include_bytes!("../../../tenants/prebuilt/passthrough.wasm");
/// Its name in logs.
const PASSTHROUGH_NAME: &str = "passthrough";
/// Loaded components; the one unused for longest makes room.
const LOADED_MAX: u64 = 256;
/// Components compiled at once: each may take the memory of a whole compiler.
const COMPILING_MAX: usize = 2;

/// The components in use.
pub struct Workflows {
    artifacts: PathBuf,
    compiling: Semaphore,
    loaded: Cache<Key, Workflow>,
}

/// Digest and name: the name stands in the component's logs, so the same bytes under two names are two.
type Key = (String, String);

impl Workflows {
    /// Keeps artifacts in this folder, which must exist.
    pub fn new(artifacts: &Path) -> Workflows {
        Workflows {
            artifacts: artifacts.to_owned(),
            compiling: Semaphore::new(COMPILING_MAX),
            loaded: Cache::new(LOADED_MAX),
        }
    }

    /// Removes artifacts of components that nobody names any more, or that another version of the runtime made.
    pub fn clean_up(&self, sandbox: &Sandbox, digests: &BTreeSet<String>) {
        let own = hex(&sha256(PASSTHROUGH));
        let keep: BTreeSet<PathBuf> = digests
            .iter()
            .chain([&own])
            .map(|digest| self.artifact_path(sandbox, digest))
            .collect();
        for entry in std::fs::read_dir(&self.artifacts)
            .into_iter()
            .flatten()
            .flatten()
        {
            let path = entry.path();
            if !keep.contains(&path)
                && let Err(error) = std::fs::remove_file(&path)
            {
                tracing::warn!(path = %path.display(), %error, "cannot remove an outdated artifact");
            }
        }
    }

    /// The component that serves base models.
    ///
    /// # Errors
    /// When the host cannot compile.
    pub async fn passthrough(&self, sandbox: &Sandbox) -> ApiResult<Workflow> {
        let digest = hex(&sha256(PASSTHROUGH));
        let wasm = async || Ok(PASSTHROUGH.to_vec());
        self.loaded(sandbox, PASSTHROUGH_NAME, &digest, wasm).await
    }

    /// A stored component under a name.
    ///
    /// # Errors
    /// When its bytes are lost or the host cannot compile.
    pub async fn stored(
        &self,
        sandbox: &Sandbox,
        blobs: &Blobs,
        name: &str,
        digest: &str,
    ) -> ApiResult<Workflow> {
        let wasm = async || Ok(blobs.get(digest).await?);
        self.loaded(sandbox, name, digest, wasm).await
    }

    /// Compiles an upload and makes it ready to run. Nothing is on the disk until [`Workflows::keep`]: an upload that is
    /// refused later leaves nothing there.
    ///
    /// # Errors
    /// What the uploader has to mend, or the host's trouble.
    pub async fn compile(
        &self,
        sandbox: &Sandbox,
        name: &str,
        wasm: Vec<u8>,
    ) -> ApiResult<(Workflow, Artifact)> {
        let artifact = self.artifact(sandbox, wasm).await.map_err(rejected)?;
        Ok((load(sandbox, name, artifact.clone()).await?, artifact))
    }

    /// Keeps what was compiled of the component with this digest.
    pub async fn keep(&self, sandbox: &Sandbox, digest: &str, artifact: Artifact) {
        let path = self.artifact_path(sandbox, digest);
        let written =
            tokio::task::spawn_blocking(move || replace_file(&path, artifact.as_bytes())).await;
        if !matches!(written, Ok(Ok(()))) {
            tracing::warn!(
                digest,
                "an artifact could not be stored; the component will be compiled again after a restart"
            );
        }
    }

    /// A component in memory, made ready by the first who asks for it.
    async fn loaded(
        &self,
        sandbox: &Sandbox,
        name: &str,
        digest: &str,
        wasm: impl AsyncFnOnce() -> ApiResult<Vec<u8>>,
    ) -> ApiResult<Workflow> {
        let key = (digest.to_owned(), name.to_owned());
        let load = self.load(sandbox, name, digest, wasm);
        let loaded = self.loaded.try_get_with(key, load).await;
        loaded.map_err(|error: Arc<ApiError>| (*error).clone())
    }

    /// From the artifact on the disk if there is a good one, else from the bytes.
    async fn load(
        &self,
        sandbox: &Sandbox,
        name: &str,
        digest: &str,
        wasm: impl AsyncFnOnce() -> ApiResult<Vec<u8>>,
    ) -> ApiResult<Workflow> {
        if let Ok(bytes) = tokio::fs::read(self.artifact_path(sandbox, digest)).await {
            match load(sandbox, name, Artifact::from_bytes(bytes)).await {
                Ok(workflow) => return Ok(workflow),
                Err(_) => tracing::warn!(
                    workflow = name,
                    "a stored artifact cannot be used; compiling the component again"
                ),
            }
        }
        let artifact = self.artifact(sandbox, wasm().await?).await;
        // These bytes were accepted before: that they are refused now is no fault of the caller.
        let artifact = artifact.map_err(|error| ApiError::internal(&chain(&error)))?;
        self.keep(sandbox, digest, artifact.clone()).await;
        load(sandbox, name, artifact).await
    }

    async fn artifact(&self, sandbox: &Sandbox, wasm: Vec<u8>) -> Result<Artifact, Rejected> {
        let _turn = self.compiling.acquire().await;
        sandbox.compile(wasm).await
    }

    fn artifact_path(&self, sandbox: &Sandbox, digest: &str) -> PathBuf {
        self.artifacts
            .join(format!("{}.cwasm", sandbox.artifact_key(digest)))
    }
}

/// Maps native code and links it: some milliseconds of pure work, so not on an async thread.
async fn load(sandbox: &Sandbox, name: &str, artifact: Artifact) -> ApiResult<Workflow> {
    let (sandbox, name) = (sandbox.clone(), name.to_owned());
    let loaded = tokio::task::spawn_blocking(move || sandbox.load(&name, &artifact)).await;
    match loaded {
        Ok(Ok(workflow)) => Ok(workflow),
        Ok(Err(error)) => Err(ApiError::internal(&chain(&error))),
        Err(error) => Err(ApiError::internal(&error)),
    }
}

/// The uploader's 422, unless the host is to blame.
fn rejected(error: Rejected) -> ApiError {
    match &error {
        Rejected::Host(_) => ApiError::internal(&chain(&error)),
        _ => ApiError::new(
            axum::http::StatusCode::UNPROCESSABLE_ENTITY,
            "invalid_request_error",
            "component_rejected",
            error.to_string(),
        ),
    }
}

/// The component that serves base models, for those who run without a server.
pub fn passthrough_wasm() -> Vec<u8> {
    PASSTHROUGH.to_vec()
}
