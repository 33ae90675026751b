//! `cargo xtask demo`: from a fresh clone to a conversation with a real model through a sandboxed component.

use crate::{models, paths};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

/// The tenant the demo makes.
const TENANT: &str = "demo";
/// The ready-made workflows it gets, by name and file.
const WORKFLOWS: [(&str, &str); 2] = [("extract", "extract.wasm"), ("best-of-n", "best_of_n.wasm")];

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Ask one question, print the streamed answer, and exit.
    #[arg(long, value_name = "QUESTION")]
    once: Option<String>,
    /// Print one line of JSON with the addresses and keys once ready, and nothing else on standard output.
    #[arg(long, conflicts_with = "once")]
    json: bool,
    /// Port of the data plane; 0 picks a free one.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Port of the admin plane; 0 picks a free one.
    #[arg(long, default_value_t = 8081)]
    admin_port: u16,
    /// Folder that holds all state; created if it does not exist [default: `.realm` in the checkout].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Serve this GGUF file instead of the default model.
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
}

/// The line that `realm serve --json` prints once it accepts connections.
#[derive(Deserialize)]
struct Ready {
    url: String,
    admin_url: String,
    api_key: String,
    admin_token: String,
}

/// The server process; killed when the demo ends in an error, so that none is left behind.
struct Server {
    child: Child,
    ready: Ready,
    model: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Already gone is what we want; nothing else can be done about a failure here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn run(options: Options) -> Result<()> {
    let model = match &options.model {
        Some(path) => path
            .canonicalize()
            .with_context(|| format!("no model at {}", path.display()))?,
        None => models::fetch(&models::DEFAULT)?,
    };
    eprintln!("building Realm (the first time takes some minutes; cargo shows how far it is)");
    crate::build(&["--package", "realm"])?;
    let mut server = start(&options, model)?;
    deploy(&server.ready)?;
    match options.once {
        Some(question) => ask(&server, &question),
        None if options.json => announce_json(&mut server),
        None => announce(&mut server),
    }
}

fn start(options: &Options, model: PathBuf) -> Result<Server> {
    let data = options
        .data
        .clone()
        .unwrap_or_else(|| paths::root().join(".realm"));
    let mut child = Command::new(paths::binary())
        .args([
            "serve",
            "--json",
            "--exit-on-stdin-close",
            "--bootstrap-tenant",
            TENANT,
        ])
        .args(["--listen", &format!("127.0.0.1:{}", options.port)])
        .args([
            "--admin-listen",
            &format!("127.0.0.1:{}", options.admin_port),
        ])
        .arg("--data-dir")
        .arg(data)
        .arg("--model")
        .arg(&model)
        .stdout(Stdio::piped())
        .stdin(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", paths::binary().display()))?;
    stop_with_us(child.stdin.take())?;
    let mut line = String::new();
    BufReader::new(
        child
            .stdout
            .take()
            .context("the server's output is piped")?,
    )
    .read_line(&mut line)?;
    let ready = match serde_json::from_str(&line) {
        Ok(ready) => ready,
        Err(_) => {
            let status = child.wait()?;
            bail!("the server did not start ({status}); its messages are above");
        }
    };
    let mut server = Server {
        child,
        ready,
        model: String::new(),
    };
    server.model = default_model(&server.ready)?;
    Ok(server)
}

/// Ties the server's life to ours. It drains and ends when its standard input closes: at Ctrl-C or SIGTERM here, and also
/// when this process is killed outright, so that a script can never leave a server behind.
fn stop_with_us(stdin: Option<ChildStdin>) -> Result<()> {
    let stdin = Arc::new(Mutex::new(stdin));
    ctrlc::set_handler(move || drop(stdin.lock().unwrap_or_else(PoisonError::into_inner).take()))
        .context("cannot listen for Ctrl-C")
}

/// The name of the base model, as a client sees it.
fn default_model(ready: &Ready) -> Result<String> {
    let models: Value = ureq::get(format!("{}/v1/models", ready.url))
        .header("authorization", format!("Bearer {}", ready.api_key))
        .call()?
        .body_mut()
        .read_json()?;
    let base = models["data"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|model| model["owned_by"] == "realm");
    Ok(base
        .and_then(|model| model["id"].as_str())
        .context("the server lists no base model")?
        .to_owned())
}

/// Uploads the ready-made workflows to the demo tenant, unless the same version is active already.
fn deploy(ready: &Ready) -> Result<()> {
    let folder = paths::root().join("tenants").join("prebuilt");
    let token = format!("Bearer {}", ready.admin_token);
    let base = format!("{}/admin/v1/tenants/{TENANT}/workflows", ready.admin_url);
    let listed: Value = ureq::get(&base)
        .header("authorization", &token)
        .call()?
        .body_mut()
        .read_json()?;
    for (workflow, file) in WORKFLOWS {
        let path = folder.join(file);
        if active_digest(&listed, workflow) == Some(models::sha256(&path)?.as_str()) {
            continue;
        }
        let component =
            std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let version: Value = ureq::post(format!("{base}/{workflow}/versions"))
            .header("authorization", &token)
            .header("content-type", "application/wasm")
            .send(&component[..])?
            .body_mut()
            .read_json()?;
        ureq::post(format!("{base}/{workflow}/activate"))
            .header("authorization", &token)
            .send_json(json!({ "version": version["version"] }))?;
    }
    Ok(())
}

/// The digest of a workflow's active version, as the admin plane lists it.
fn active_digest<'a>(listed: &'a Value, workflow: &str) -> Option<&'a str> {
    let named = |list: &'a Value, key: &str, value: &Value| {
        list.as_array()?.iter().find(|entry| entry[key] == *value)
    };
    let workflow = named(&listed["workflows"], "name", &workflow.into())?;
    let active = named(&workflow["versions"], "version", &workflow["active"])?;
    active["digest"].as_str()
}

/// Asks `question` as any client would, and prints the answer as it is generated.
fn ask(server: &Server, question: &str) -> Result<()> {
    let body = json!({
        "model": server.model,
        "messages": [{ "role": "user", "content": question }],
        "temperature": 0,
        "max_tokens": 256,
        "stream": true,
    });
    let mut response = ureq::post(format!("{}/v1/chat/completions", server.ready.url))
        .header("authorization", format!("Bearer {}", server.ready.api_key))
        .send_json(body)?;
    let mut output = std::io::stdout();
    for line in BufReader::new(response.body_mut().as_reader()).lines() {
        let line = line?;
        let Some(data) = line.strip_prefix("data: ") else {
            continue;
        };
        if data == "[DONE]" {
            writeln!(output)?;
            return Ok(());
        }
        let event: Value = serde_json::from_str(data)?;
        if let Some(error) = event.get("error") {
            bail!("the server answered with an error: {error}");
        }
        if let Some(text) = event["choices"][0]["delta"]["content"].as_str() {
            write!(output, "{text}")?;
            output.flush()?;
        }
    }
    bail!("the answer broke off")
}

fn announce_json(server: &mut Server) -> Result<()> {
    let Ready {
        url,
        admin_url,
        api_key,
        admin_token,
    } = &server.ready;
    let line = json!({ "ready": true, "url": url, "admin_url": admin_url, "api_key": api_key, "admin_token": admin_token });
    println!("{line}");
    wait(server)
}

fn announce(server: &mut Server) -> Result<()> {
    let Ready {
        url,
        admin_url,
        api_key,
        admin_token,
    } = &server.ready;
    let model = &server.model;
    let realm = paths::binary();
    let realm = realm.display();
    println!(
        r#"
Realm serves {model} at {url}

  API key       {api_key}
  admin         {admin_url}   token {admin_token}

Try, in another terminal:

1. What the tenant can call
   curl -s {url}/v1/models -H 'Authorization: Bearer {api_key}'

2. A streamed chat
   curl -sN {url}/v1/chat/completions -H 'Authorization: Bearer {api_key}' -H 'Content-Type: application/json' \
     -d '{{"model":"{model}","stream":true,"temperature":0,"messages":[{{"role":"user","content":"Name the capital of France in one sentence."}}]}}'

3. A function of a tenant's component, over WebSocket
   {realm} call extract.extract '{{"text":"Ada Lovelace was born in London.","fields":["name","city"]}}' --url {url} --api-key {api_key}

Any OpenAI client works: base_url {url}/v1. Ctrl-C stops the server."#
    );
    wait(server)
}

/// Waits for the server to end, which it does at Ctrl-C after the requests in flight.
fn wait(server: &mut Server) -> Result<()> {
    let status = server.child.wait()?;
    if !status.success() && status.code().is_some() {
        bail!("the server ended with {status}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_active_version_counts_as_deployed() {
        let versions =
            json!([{ "version": 1, "digest": "old" }, { "version": 2, "digest": "new" }]);
        let listed = json!({ "workflows": [
            { "name": "extract", "active": 2, "versions": versions },
            { "name": "idle", "active": null, "versions": versions },
        ]});
        assert_eq!(active_digest(&listed, "extract"), Some("new"));
        assert_eq!(active_digest(&listed, "idle"), None);
        assert_eq!(active_digest(&listed, "missing"), None);
    }
}
