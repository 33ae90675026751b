//! A running `realm serve`: free ports, a data folder, an operator's client, and the end of the process.

use crate::http::{Http, Reply};
use crate::metrics::Metrics;
use crate::paths;
use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The name the tests give the base model.
pub const MODEL: &str = "smollm2";
/// The operator's token of every server a test starts.
pub const ADMIN_TOKEN: &str = "operator-of-the-tests-0123456789abcdef";
/// Loading the small model takes a second or two; two minutes mean that it hangs, on however busy a machine.
const READY_WAIT: Duration = Duration::from_secs(120);
/// What [`Server::until`] waits for takes milliseconds; a minute means that it never comes.
const UNTIL_WAIT: Duration = Duration::from_secs(60);
/// Lines of the server's log that an error shows.
const LOG_TAIL_LINES: usize = 30;

/// One server of a test executable at a time. Each computes on all processors, so two would slow each other down by an
/// amount that no test about time could allow for.
static TURN: Mutex<()> = Mutex::new(());

/// A server process. Dropping it kills the process and removes its data folder, unless a [`DataDir`] is shared.
pub struct Server {
    child: Child,
    url: String,
    admin: Http,
    data: DataDir,
    /// Given back when the process has ended.
    turn: Option<MutexGuard<'static, ()>>,
}

/// A data folder that can outlive a server: the next one starts on what the last one left.
#[derive(Clone)]
pub struct DataDir(Arc<TempDir>);

impl DataDir {
    /// A new, empty one.
    pub fn new() -> Result<DataDir> {
        Ok(DataDir(Arc::new(
            tempfile::Builder::new().prefix("realm-test-").tempdir()?,
        )))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// A tenant with one key, and a client that uses it.
#[derive(Clone)]
pub struct Tenant {
    /// Its name.
    pub name: String,
    /// The id of the key, by which it is revoked.
    pub key_id: String,
    /// The key itself, `rk_...`.
    pub key: String,
    /// A client of the data plane with this key.
    pub http: Http,
}

impl Server {
    /// Starts a server with the small model and everything else by default.
    pub fn start() -> Result<Server> {
        Server::start_with(DataDir::new()?, &[])
    }

    /// Starts one with these lines as its settings.
    pub fn start_configured(settings: &str) -> Result<Server> {
        let data = DataDir::new()?;
        let file = data.path().join("test.toml");
        std::fs::write(&file, settings)?;
        let file = file.to_str().context("a path in UTF-8")?.to_owned();
        Server::start_with(data, &["--config", &file])
    }

    /// Starts one on `data` with more flags, once no other runs. Its own log goes to `server.log` in the data folder.
    pub fn start_with(data: DataDir, flags: &[&str]) -> Result<Server> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let log = File::options()
            .create(true)
            .append(true)
            .open(data.path().join("server.log"))?;
        let standard = paths::model(paths::SMOLLM2)?;
        let model = Some(["--model".as_ref(), standard.as_os_str()]);
        let model = model.filter(|_| !flags.contains(&"--model"));
        let mut child = command()?
            .args([
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--admin-listen",
                "127.0.0.1:0",
                "--json",
            ])
            .args(["--model-name", MODEL])
            .args(model.into_iter().flatten())
            .arg("--data-dir")
            .arg(data.path())
            .args(flags)
            .env("REALM_ADMIN_TOKEN", ADMIN_TOKEN)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("starting realm serve")?;
        let ready = match ready_line(&mut child) {
            Ok(ready) => ready,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                let log = log_tail(&data);
                return Err(error.context(format!("realm serve did not get ready; {log}")));
            }
        };
        let url = |key: &str| {
            ready[key]
                .as_str()
                .map(str::to_owned)
                .with_context(|| format!("no {key} in {ready}"))
        };
        Ok(Server {
            child,
            url: url("url")?,
            admin: Http::new(&url("admin_url")?, Some(ADMIN_TOKEN)),
            data,
            turn: Some(turn),
        })
    }

    /// The base address of the data plane.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The process' id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The operator's client.
    pub fn admin(&self) -> &Http {
        &self.admin
    }

    /// The data folder.
    pub fn data(&self) -> &DataDir {
        &self.data
    }

    /// A client of the data plane with this key.
    pub fn http(&self, key: Option<&str>) -> Http {
        Http::new(&self.url, key)
    }

    /// A new tenant with one key.
    pub fn tenant(&self, name: &str) -> Result<Tenant> {
        self.admin
            .post("/admin/v1/tenants", &json!({"name": name}))?
            .ok()
            .context("creating a tenant")?;
        self.key(name)
    }

    /// A further key of a tenant.
    pub fn key(&self, tenant: &str) -> Result<Tenant> {
        let made = self
            .admin
            .post(&format!("/admin/v1/tenants/{tenant}/keys"), &json!({}))?
            .ok()?;
        let text = |name: &str| match &made[name] {
            Value::String(text) => Ok(text.clone()),
            Value::Number(number) => Ok(number.to_string()),
            _ => bail!("no {name} in {made}"),
        };
        let key = text("key")?;
        let http = Http::new(&self.url, Some(&key));
        Ok(Tenant {
            name: tenant.to_owned(),
            key_id: text("id")?,
            key,
            http,
        })
    }

    /// Uploads one version of a workflow.
    pub fn upload(&self, tenant: &str, workflow: &str, wasm: &[u8]) -> Result<Reply> {
        let path = format!("/admin/v1/tenants/{tenant}/workflows/{workflow}/versions");
        self.admin
            .send("POST", &path, "application/wasm", wasm.to_vec())
    }

    /// Uploads a component and makes it the active version. Returns the version.
    pub fn deploy(&self, tenant: &str, workflow: &str, wasm: &[u8]) -> Result<u64> {
        let uploaded = self
            .upload(tenant, workflow, wasm)?
            .ok()
            .context("uploading a component")?;
        let version = uploaded["version"]
            .as_u64()
            .with_context(|| format!("no version in {uploaded}"))?;
        let path = format!("/admin/v1/tenants/{tenant}/workflows/{workflow}/activate");
        self.admin
            .post(&path, &json!({"version": version}))?
            .ok()
            .context("activating a version")?;
        Ok(version)
    }

    /// One scrape of `/metrics`.
    pub fn metrics(&self) -> Result<Metrics> {
        let reply = self.admin.get("/metrics")?;
        ensure!(
            reply.status == 200,
            "/metrics answered {}: {}",
            reply.status,
            reply.text
        );
        Metrics::parse(&reply.text)
    }

    /// Scrapes until `holds` does; an error that says `what`, with the end of the server's log, after a minute.
    pub fn until(&self, what: &str, mut holds: impl FnMut(&Metrics) -> bool) -> Result<Metrics> {
        let deadline = Instant::now() + UNTIL_WAIT;
        loop {
            let metrics = self.metrics()?;
            if holds(&metrics) {
                return Ok(metrics);
            }
            if Instant::now() > deadline {
                bail!(
                    "still not so: {what}; held {:?}, running {:?}, waiting {:?}; {}",
                    metrics.sum("realm_kv_blocks_held"),
                    metrics.sum("realm_sequences_running"),
                    metrics.sum("realm_sequences_waiting"),
                    log_tail(&self.data)
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until no sequence lives and every KV block is free or cached again.
    pub fn until_idle(&self) -> Result<()> {
        let metrics = self.until("every KV block is free and no sequence runs", |metrics| {
            metrics.sum("realm_kv_blocks_held") == Some(0.0)
                && metrics.sum("realm_sequences_running") == Some(0.0)
        })?;
        let blocks = |state: &str| {
            metrics
                .sum(&format!("realm_kv_blocks_{state}"))
                .unwrap_or(f64::NAN)
        };
        let (free, cached, total) = (blocks("free"), blocks("cached"), blocks("total"));
        ensure!(
            free + cached == total && total > 0.0,
            "blocks are lost: free {free} + cached {cached}, total {total}"
        );
        Ok(())
    }

    /// Sends `signal` to the process.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let process = Pid::from_child(&self.child);
        kill_process(process, signal).with_context(|| format!("sending {signal:?}"))
    }

    /// `kill -9`, then waits for the end of the process; another server can start then.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.turn = None;
        Ok(())
    }

    /// Whether the process lives.
    pub fn is_alive(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits for the process to end by itself.
    pub fn wait(&mut self, at_most: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + at_most;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(
                Instant::now() < deadline,
                "the process still runs after {at_most:?}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", log_tail(&self.data));
        }
    }
}

fn log_tail(data: &DataDir) -> String {
    let log = std::fs::read_to_string(data.path().join("server.log")).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    let tail = &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..];
    format!("the end of the server's log:\n  {}", tail.join("\n  "))
}

/// `realm` without the settings of whoever runs the tests: `REALM_…` in the environment would be configuration.
pub fn command() -> Result<Command> {
    let mut command = Command::new(paths::binary()?);
    without_settings(&mut command);
    Ok(command)
}

/// Takes every `REALM_…` variable from a command's environment.
pub fn without_settings(command: &mut Command) {
    for (name, _) in
        std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("REALM_"))
    {
        command.env_remove(name);
    }
}

/// Reads the one JSON line that says that the server is ready. The pipe is then drained by a thread, so that the server
/// never blocks on it.
fn ready_line(child: &mut Child) -> Result<Value> {
    let stdout = child.stdout.take().context("stdout is piped")?;
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    let line = receiver
        .recv_timeout(READY_WAIT)
        .context("no ready line on stdout")?;
    let ready: Value = serde_json::from_str(&line)
        .with_context(|| format!("ready line {line:?} is not valid JSON"))?;
    ensure!(
        ready["ready"] == true,
        "the first line is not the ready line: {line}"
    );
    Ok(ready)
}

/// The setting of a chat template that has a place for all there is: tools, calls, documents, a switch.
pub fn template_of_everything() -> String {
    let template = crate::paths::repository().join("tests/fixtures/everything.jinja");
    format!("chat_template = {:?}\n", template.display().to_string())
}

/// The body of a chat request at temperature 0.
pub fn chat_body(model: &str, question: &str, max_tokens: u32) -> Value {
    json!({
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": max_tokens,
    })
}

/// `path` with a component or model copied under another name, for tests that spoil files.
pub fn copy_to(dir: &Path, path: &Path) -> Result<PathBuf> {
    let name = path.file_name().context("a path with a file name")?;
    let copy = dir.join(name);
    std::fs::copy(path, &copy)
        .with_context(|| format!("copying {} to {}", path.display(), copy.display()))?;
    Ok(copy)
}
