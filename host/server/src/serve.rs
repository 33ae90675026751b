//! `realm serve`: puts everything together, says when it is ready, and takes it apart again.
//!
//! Told to stop, it refuses new requests, lets what is in flight go on for `drain_ms`, and ends with status 0.

use crate::auth::{NewKey, random, random_hex};
use crate::chat_template::chat_template;
use crate::config::{Config, model_name_of};
use crate::connections::accept;
use crate::hooks::TenantLogs;
use crate::metrics::Metrics;
use crate::models::{BaseModel, EmbeddingModel, ModelTable};
use crate::registry::blobs::replace_file;
use crate::registry::catalog::now_ms;
use crate::registry::{CatalogError, Registry};
use crate::state::{App, Parts};
use crate::workflows::Workflows;
use crate::{admin, ingress};
use anyhow::{Context, Result, bail};
use realm_engine::model::{Cpu, cpu};
use realm_engine::{Embedder, Engine, EngineConfig, Gguf, LoadError, ModelOptions, Observer};
use realm_sandbox::{Compiler, Hooks, Sandbox, SandboxConfig};
use serde_json::json;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

/// The label of the key that `--bootstrap-tenant` makes.
const BOOTSTRAP_LABEL: &str = "bootstrap";

/// How the server is started, apart from its settings.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Print one line of JSON when ready.
    pub json: bool,
    /// Stop when standard input closes: the server then never outlives who started it.
    pub exit_on_stdin_close: bool,
    /// Make this tenant if it is missing, and a new key for it.
    pub bootstrap_tenant: Option<String>,
}

/// Serves until it is told to stop.
///
/// # Errors
/// When it cannot start.
pub async fn serve(config: Config, options: Options) -> Result<()> {
    let data_dir = config.data_dir.clone();
    std::fs::create_dir_all(&data_dir)
        .with_context(|| format!("cannot create {}", data_dir.display()))?;
    let _lock = lock(&data_dir)?;
    let metrics = Arc::new(Metrics::new().context("creating the metrics")?);
    let observer = Arc::clone(&metrics) as Arc<dyn Observer>;
    let Models {
        engine,
        base,
        embedder,
    } = load_models(&config, observer).await?;
    let (embedder, embedding) = embedder.unzip();
    let models = ModelTable::new(vec![base], embedding.into_iter().collect())
        .context("model_name and embedding_model_name")?;
    let app = Arc::new(assemble(config, metrics, models).await?);
    let api_key = match &options.bootstrap_tenant {
        Some(tenant) => Some(bootstrap(&app, tenant).await?),
        None => None,
    };
    let listener = bind("listen", app.config.listen).await?;
    let admin_listener = bind("admin_listen", app.config.admin_listen).await?;
    let url = format!("http://{}", listener.local_addr()?);
    let admin_url = format!("http://{}", admin_listener.local_addr()?);
    let planes = [
        (listener, ingress::router(Arc::clone(&app))),
        (admin_listener, admin::router(Arc::clone(&app))),
    ];
    let accepting =
        planes.map(|(listener, router)| tokio::spawn(accept(Arc::clone(&app), listener, router)));
    let told = stop_signals(options.exit_on_stdin_close)?;
    tracing::info!(url, admin_url, "ready");
    if options.json {
        // The token is only for those who let the server make a tenant for them, as the demo does.
        let admin_token = api_key.as_ref().map(|_| &app.admin_token);
        let ready = json!({
            "ready": true, "url": url, "admin_url": admin_url, "api_key": api_key, "admin_token": admin_token,
        });
        say(&ready.to_string())?;
    } else if let Some(api_key) = api_key {
        say(&format!("API key: {api_key}"))?;
    }
    told.notified().await;
    drain(&app, &told).await;
    for task in accepting {
        task.abort();
    }
    app.registry.catalog.close().await;
    // The engine ends with its step; whoever still waits for it gets an error and not silence.
    let stop = move || {
        drop(embedder);
        engine.shutdown();
    };
    tokio::task::spawn_blocking(stop)
        .await
        .context("stopping the engine")?;
    tracing::info!("stopped");
    Ok(())
}

/// Two servers on one folder would remove each other's files.
fn lock(data_dir: &Path) -> Result<File> {
    let path = data_dir.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    if file.try_lock().is_err() {
        bail!("another realm server is using {}", data_dir.display());
    }
    Ok(file)
}

/// The models of a server, running.
struct Models {
    engine: Engine,
    base: BaseModel,
    embedder: Option<(Embedder, EmbeddingModel)>,
}

/// Loads the models, which compute on the same threads.
async fn load_models(config: &Config, observer: Arc<dyn Observer>) -> Result<Models> {
    let options = ModelOptions {
        threads: config.threads,
        kv_bytes_max: config.kv_memory_mib.saturating_mul(1 << 20),
        kv_type: config.kv_type.into(),
        context_max: config.context_max,
        activations: config.activations.into(),
        packed_dir: config.packed_dir.clone(),
        chat_template: (config.chat_template.as_deref())
            .map(chat_template)
            .transpose()?,
    };
    let cpu = cpu(&options);
    let (engine, base) = load_base(config, &cpu, options.clone(), observer).await?;
    let embedder = match config.embedding_model.clone() {
        Some(path) => Some(load_embedder(config, path, cpu, options).await?),
        None => None,
    };
    Ok(Models {
        engine,
        base,
        embedder,
    })
}

async fn load_base(
    config: &Config,
    cpu: &Cpu,
    options: ModelOptions,
    observer: Arc<dyn Observer>,
) -> Result<(Engine, BaseModel)> {
    let Some(path) = config.model.clone() else {
        bail!("no model is set; use --model PATH")
    };
    let name = config
        .model_name
        .clone()
        .unwrap_or_else(|| model_name_of(&path));
    let engine_config = EngineConfig {
        step_tokens_max: config.step_tokens_max,
        sequences_running_max: config.sequences_running_max.min(config.step_tokens_max),
        step_ms_target: config.step_ms_target,
        tenant_sequences_max: config.tenant_sequences_max,
        tenant_kv_percent_max: config.tenant_kv_percent_max,
        queue_max: config.queue_max,
        model_name: name.clone(),
        observer: Some(observer),
        ..EngineConfig::default()
    };
    let cpu = cpu.clone();
    let engine = read_model(path, move |gguf| {
        Engine::load_on(cpu, gguf, options, engine_config)
    });
    let engine = engine.await?;
    let client = engine.client();
    let facts = client.facts();
    tracing::info!(
        model = name,
        architecture = facts.architecture,
        context = facts.context_length,
        kv_blocks = facts.kv_blocks,
        isa = facts.isa,
        "model loaded"
    );
    Ok((engine, BaseModel::new(name, client, now_ms() / 1000)))
}

async fn load_embedder(
    config: &Config,
    path: PathBuf,
    cpu: Cpu,
    options: ModelOptions,
) -> Result<(Embedder, EmbeddingModel)> {
    let name = config
        .embedding_model_name
        .clone()
        .unwrap_or_else(|| model_name_of(&path));
    let embedder = read_model(path, move |gguf| Embedder::load(cpu, &gguf, &options)).await?;
    let client = embedder.client();
    tracing::info!(
        model = name,
        context = client.context(),
        dimensions = client.dimensions(),
        "embedding model loaded"
    );
    let model = EmbeddingModel {
        name,
        client,
        created: now_ms() / 1000,
    };
    Ok((embedder, model))
}

/// Opens a model file and makes something of it, on a thread that may take its time.
async fn read_model<T: Send + 'static>(
    path: PathBuf,
    load: impl FnOnce(Gguf) -> Result<T, LoadError> + Send + 'static,
) -> Result<T> {
    let read = tokio::task::spawn_blocking(move || {
        let gguf = Gguf::open(&path)
            .with_context(|| format!("cannot read the model {}", path.display()))?;
        load(gguf).with_context(|| format!("cannot load the model {}", path.display()))
    });
    read.await.context("loading a model")?
}

async fn assemble(config: Config, metrics: Arc<Metrics>, models: ModelTable) -> Result<App> {
    let data_dir = config.data_dir.clone();
    let (registry, missing) = Registry::open(&data_dir)
        .await
        .context("opening the registry")?;
    for digest in missing {
        tracing::error!(
            digest,
            "a stored component is missing; its versions cannot be called until it is uploaded again"
        );
    }
    let artifacts = data_dir.join("artifacts");
    std::fs::create_dir_all(&artifacts)
        .with_context(|| format!("cannot create {}", artifacts.display()))?;
    let admin_token = match &config.admin_token {
        Some(token) => token.clone(),
        None => kept_text(&data_dir.join("admin-token"))?,
    };
    let logs = Arc::new(TenantLogs::default());
    let sandbox = sandbox(
        &config,
        cache_key(&data_dir.join("cache-key"))?,
        Arc::clone(&logs) as Arc<dyn Hooks>,
    )?;
    let workflows = Workflows::new(&artifacts);
    workflows.clean_up(&sandbox, &registry.catalog.digests().await?);
    // The first request must not pay for it, and a host that cannot compile should say so now.
    workflows
        .passthrough(&sandbox)
        .await
        .map_err(|error| anyhow::anyhow!("preparing passthrough: {}", error.message))?;
    let parts = Parts {
        config,
        registry,
        sandbox,
        workflows,
        metrics,
        logs,
        models,
        admin_token,
    };
    App::new(parts).await.context("reading the registry")
}

/// A sandbox that compiles in a process of its own.
///
/// # Errors
/// When the settings contradict each other or the address space is not to be had.
pub fn sandbox(config: &Config, cache_key: [u8; 32], hooks: Arc<dyn Hooks>) -> Result<Sandbox> {
    let compiler = Compiler::Child {
        program: std::env::current_exe().context("the path of this program")?,
        args: vec!["compile-worker".to_owned()],
        memory_bytes_max: config.compile_memory_mib.saturating_mul(1 << 20),
        wall_ms_max: config.compile_ms_max,
    };
    let config = SandboxConfig {
        limits: config.limits.to_sandbox(),
        compiler,
        cache_key,
        instances_max: config.instances_max,
        ..SandboxConfig::default()
    };
    Sandbox::new(config, hooks).context("starting the sandbox")
}

/// A secret text that is made once and kept, readable by the owner only.
fn kept_text(path: &Path) -> Result<String> {
    match std::fs::read_to_string(path) {
        Ok(text) if text.trim().len() >= 16 => Ok(text.trim().to_owned()),
        Ok(_) => bail!(
            "{} is damaged; delete it to have a new one created",
            path.display()
        ),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let token = random_hex::<24>();
            replace_file(path, token.as_bytes())?;
            Ok(token)
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// What authenticates artifacts. A damaged one is made anew: artifacts are only a cache.
fn cache_key(path: &Path) -> Result<[u8; 32]> {
    if let Ok(bytes) = std::fs::read(path)
        && let Ok(key) = bytes.try_into()
    {
        return Ok(key);
    }
    let key = random::<32>();
    replace_file(path, &key)?;
    Ok(key)
}

/// Makes the tenant if it is missing, and a new key in place of the one the last start made.
async fn bootstrap(app: &Arc<App>, name: &str) -> Result<String> {
    let catalog = app.registry.catalog.clone();
    let tenant = match catalog.create_tenant(name, 1, None, None).await {
        Ok(row) => row,
        Err(CatalogError::Exists { .. }) => catalog.tenant(name).await?,
        Err(error) => return Err(error).context("creating the tenant"),
    };
    for key in catalog.keys(tenant.id).await? {
        if key.label == BOOTSTRAP_LABEL && key.revoked_ms.is_none() {
            catalog.revoke_key(tenant.id, &key.id).await?;
        }
    }
    let new = NewKey::draw();
    catalog
        .add_key(tenant.id, &new.id, BOOTSTRAP_LABEL, &new.prefix, &new.hash)
        .await?;
    app.reload().await?;
    Ok(new.key)
}

async fn bind(key: &str, address: std::net::SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("{key}: cannot listen on {address}"))
}

/// Notified by SIGINT, by SIGTERM, and by the end of standard input where that is asked for.
fn stop_signals(on_stdin_close: bool) -> Result<Arc<Notify>> {
    let told = Arc::new(Notify::new());
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        let (mut signals, told) = (
            signal(kind).context("listening for signals")?,
            Arc::clone(&told),
        );
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                told.notify_one();
            }
        });
    }
    if on_stdin_close {
        let told = Arc::clone(&told);
        // A thread and not a task: a blocking read of the runtime would keep the process from ending.
        std::thread::Builder::new()
            .name("stdin".to_owned())
            .spawn(move || {
                let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
                told.notify_one();
            })?;
    }
    Ok(told)
}

/// Waits for what is in flight, but not longer than is set, and not when told a second time.
async fn drain(app: &App, told: &Notify) {
    tracing::info!(
        open = *app.open.borrow(),
        "stopping; waiting for requests in progress"
    );
    app.stopping.send_replace(true);
    let mut open = app.open.subscribe();
    tokio::select! {
        _ = open.wait_for(|open| *open == 0) => {}
        () = tokio::time::sleep(Duration::from_millis(app.config.drain_ms)) => {
            tracing::warn!(open = *app.open.borrow(), "the time allowed for requests in progress is over");
        }
        () = told.notified() => tracing::warn!("told to stop a second time; not waiting any longer"),
    }
}

/// Prints a line for whoever started the server.
fn say(line: &str) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .context("writing to standard output")
}
