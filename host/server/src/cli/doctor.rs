//! `realm doctor`: looks over what the server needs and reports what it finds; a problem is an error.

use super::client::line;
use crate::auth::{hex, sha256};
use crate::config::{Config, Flags};
use crate::hooks::TenantLogs;
use crate::registry::Catalog;
use crate::serve::sandbox;
use crate::workflows::passthrough_wasm;
use anyhow::{Context, Result, bail};
use realm_engine::Gguf;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(clap::Args)]
pub(super) struct Doctor {
    /// TOML file with settings
    #[arg(long, value_name = "PATH", env = "REALM_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
}

pub(super) async fn doctor(doctor: Doctor) -> Result<()> {
    let config = Config::load(doctor.config.as_deref(), &doctor.flags)?;
    let mut findings = 0;
    let mut report = |what: &str, checked: Result<String>| match checked {
        Ok(said) => line(&format!("ok       {what}: {said}")),
        Err(error) => {
            findings += 1;
            line(&format!("PROBLEM  {what}: {error:#}"))
        }
    };
    report("settings", Ok("readable, with no unknown keys".to_owned()))?;
    report("processor", Ok(processor()))?;
    let wanted = config.model.as_deref();
    let wanted = wanted.context("no model is set; use --model PATH");
    report("model", wanted.and_then(model))?;
    if let Some(path) = &config.embedding_model {
        report("embedding model", model(path))?;
    }
    report("data folder", writable(&config.data_dir))?;
    report("registry", registry(&config.data_dir).await)?;
    report("sandbox", compile(&config).await)?;
    match findings {
        0 => Ok(()),
        1 => bail!("1 problem was found"),
        more => bail!("{more} problems were found"),
    }
}

fn processor() -> String {
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{count} threads, {}", std::env::consts::ARCH)
}

fn model(path: &Path) -> Result<String> {
    let gguf = Gguf::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let architecture = gguf
        .metadata()
        .str("general.architecture")?
        .unwrap_or("unknown")
        .to_owned();
    Ok(format!(
        "{}, {architecture}, {} MB",
        path.display(),
        gguf.file_bytes() / 1_000_000
    ))
}

fn writable(folder: &Path) -> Result<String> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    let probe = folder.join(".doctor");
    std::fs::write(&probe, b"realm")
        .with_context(|| format!("cannot write to {}", folder.display()))?;
    std::fs::remove_file(&probe).with_context(|| format!("cannot remove {}", probe.display()))?;
    Ok(format!("{} is writable", folder.display()))
}

/// Reads only: a server may be running on the folder.
async fn registry(folder: &Path) -> Result<String> {
    let path = folder.join("registry.sqlite");
    if !path.exists() {
        return Ok("none yet; the first start will create it".to_owned());
    }
    let catalog = Catalog::open(&path).await?;
    let damage = catalog.check().await?;
    if !damage.is_empty() {
        bail!("damaged: {}", damage.join("; "));
    }
    let digests = catalog.digests().await?;
    let wrong: Vec<String> = digests
        .iter()
        .filter_map(|digest| component(folder, digest).err())
        .map(|error| format!("{error:#}"))
        .collect();
    if !wrong.is_empty() {
        bail!("{}", wrong.join("; "));
    }
    Ok(format!(
        "tenants: {}, components: {}",
        catalog.tenants().await?.len(),
        digests.len()
    ))
}

/// Reads a component and holds it to its digest.
fn component(folder: &Path, digest: &str) -> Result<()> {
    let path = folder.join("blobs").join(format!("{digest}.wasm"));
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    if hex(&sha256(&bytes)) != digest {
        bail!("{} is damaged: it is not what was uploaded", path.display());
    }
    Ok(())
}

/// Goes the whole way of an upload, the compiler's own process included.
async fn compile(config: &Config) -> Result<String> {
    let sandbox = sandbox(config, [0; 32], Arc::new(TenantLogs::default()))?;
    let artifact = sandbox
        .compile(passthrough_wasm())
        .await
        .context("compiling a component")?;
    sandbox
        .load("passthrough", &artifact)
        .context("loading a component")?;
    Ok("compiles and loads components".to_owned())
}
