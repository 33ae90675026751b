//! The command line, as a person or a script meets it.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use realm_tests::paths;
use realm_tests::server::{ADMIN_TOKEN, MODEL, Server, chat_body, command, copy_to};
use std::process::{Command, Output};

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn both(output: &Output) -> String {
    stdout(output) + &stderr(output)
}

#[test]
fn run_answers_from_the_model_and_without_the_model_it_is_an_error() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let model = copy_to(folder.path(), &paths::model(paths::SMOLLM2)?)?;
    let ask = |command: &mut Command| -> Result<Output> {
        Ok(command
            .arg("run")
            .arg(&model)
            .args(["-p", "What is the capital of France?"])
            .output()?)
    };
    let answer = ask(&mut command()?)?;
    assert!(answer.status.success(), "{}", both(&answer));
    assert!(stdout(&answer).contains("Paris"), "{}", both(&answer));

    std::fs::remove_file(&model)?;
    let refused = ask(&mut command()?)?;
    assert!(
        !refused.status.success(),
        "no model, no answer: {}",
        both(&refused)
    );
    assert_eq!(
        stdout(&refused),
        "",
        "nothing that could pass for an answer"
    );
    assert!(
        stderr(&refused).contains(paths::SMOLLM2),
        "the error names the file: {}",
        stderr(&refused)
    );
    Ok(())
}

#[test]
fn a_spoilt_model_file_is_an_error_and_not_an_answer() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("short.gguf");
    let whole = std::fs::read(paths::model(paths::SMOLLM2)?)?;
    for bytes in [
        &whole[..whole.len() / 2],
        &whole[..100],
        b"not a model at all",
    ] {
        std::fs::write(&path, bytes)?;
        let output = command()?
            .arg("run")
            .arg(&path)
            .args(["-p", "Hello"])
            .output()?;
        assert_eq!(output.status.code(), Some(1), "{}", both(&output));
        assert_eq!(stdout(&output), "");
        assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
    }
    Ok(())
}

#[test]
fn model_inspect_shows_what_the_file_holds() -> Result<()> {
    let output = command()?
        .args(["model", "inspect"])
        .arg(paths::model(paths::SMOLLM2)?)
        .output()?;
    let shown = stdout(&output);
    assert!(output.status.success(), "{}", both(&output));
    assert!(
        shown.contains("llama") && shown.contains("49152"),
        "architecture and vocabulary: {shown}"
    );
    Ok(())
}

#[test]
fn doctor_looks_the_machine_over() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let output = command()?
        .arg("doctor")
        .arg("--data-dir")
        .arg(folder.path())
        .arg("--model")
        .arg(paths::model(paths::SMOLLM2)?)
        .output()?;
    assert!(output.status.success(), "{}", both(&output));
    assert!(stdout(&output).lines().count() >= 3, "{}", stdout(&output));

    let missing = folder.path().join("missing.gguf");
    let output = command()?
        .arg("doctor")
        .arg("--data-dir")
        .arg(folder.path())
        .arg("--model")
        .arg(missing)
        .output()?;
    assert!(
        !output.status.success(),
        "a missing model is a finding: {}",
        both(&output)
    );
    Ok(())
}

/// `realm` with these arguments, as the operator of `server`.
fn operator(server: &Server, arguments: &[&str]) -> Result<Output> {
    let output = command()?
        .args(arguments)
        .args(["--admin-url", server.admin().base()])
        .env("REALM_ADMIN_TOKEN", ADMIN_TOKEN)
        .output()?;
    Ok(output)
}

/// What it prints; a failure is an error.
fn ok(server: &Server, arguments: &[&str]) -> Result<String> {
    let output = operator(server, arguments)?;
    let said = both(&output);
    ensure!(output.status.success(), "realm {arguments:?}: {said}");
    Ok(stdout(&output))
}

/// The key in what `realm key create` prints.
fn key_in(printed: &str) -> Result<&str> {
    let mut words = printed.split(|c: char| c != '_' && !c.is_ascii_alphanumeric());
    let key = words.find(|word| word.starts_with("rk_"));
    key.with_context(|| format!("no key in {printed:?}"))
}

#[test]
fn tenant_and_key_commands_do_what_the_admin_api_does() -> Result<()> {
    let server = Server::start()?;
    let ok = |arguments: &[&str]| ok(&server, arguments);
    ok(&["tenant", "create", "acme"])?;
    assert!(ok(&["tenant", "list"])?.contains("acme"));
    let created = ok(&["key", "create", "acme"])?;
    let http = server.http(Some(key_in(&created)?));
    let reply = http.post("/v1/chat/completions", &chat_body(MODEL, "Hello", 2))?;
    assert_eq!(reply.status, 200, "{}", reply.text);

    let keys = server.admin().get("/admin/v1/tenants/acme/keys")?.ok()?;
    let id = keys["keys"][0]["id"].as_str();
    let id = id.with_context(|| format!("no id in {keys}"))?;
    assert!(ok(&["key", "list", "acme"])?.contains(id));
    ok(&["key", "revoke", "acme", id])?;
    assert_eq!(http.get("/v1/models")?.status, 401);
    ok(&["tenant", "delete", "acme"])?;
    assert!(!ok(&["tenant", "list"])?.contains("acme"));

    let refused = operator(&server, &["tenant", "delete", "acme"])?;
    assert_eq!(
        refused.status.code(),
        Some(1),
        "what the server refuses is an error here: {}",
        both(&refused)
    );
    Ok(())
}

#[test]
fn workflow_commands_do_what_the_admin_api_does() -> Result<()> {
    let server = Server::start()?;
    let ok = |arguments: &[&str]| ok(&server, arguments);
    let http = server.tenant("acme")?.http;
    let status = || -> Result<u16> {
        let reply = http.post("/v1/chat/completions", &chat_body("own", "Hello", 2))?;
        Ok(reply.status)
    };
    let component = paths::repository().join("tenants/prebuilt/passthrough.wasm");
    let component = component.to_str().context("a plain path")?;
    ok(&["workflow", "push", "acme", "own", component])?;
    assert_eq!(status()?, 404, "pushed, not active");
    ok(&["workflow", "activate", "acme", "own", "1"])?;
    assert_eq!(status()?, 200);
    ok(&["workflow", "push", "acme", "own", component, "--activate"])?;
    let active = |listed: &str| -> Vec<String> {
        let lines = listed.lines().filter(|line| line.ends_with("\tactive"));
        let version = lines.filter_map(|line| line.split('\t').nth(1));
        version.map(str::to_owned).collect()
    };
    assert_eq!(active(&ok(&["workflow", "list", "acme"])?), ["2"]);
    ok(&["workflow", "rollback", "acme", "own"])?;
    assert_eq!(active(&ok(&["workflow", "list", "acme"])?), ["1"]);
    assert_eq!(status()?, 200);
    Ok(())
}

#[test]
fn a_bad_configuration_names_the_key() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("realm.toml");
    for (text, key) in [
        ("lisen = \"127.0.0.1:0\"\n", "lisen"),
        ("listen = \"nowhere\"\n", "listen"),
        ("threads = \"many\"\n", "threads"),
        ("[limits]\nmemory_mib_mx = 4\n", "memory_mib_mx"),
    ] {
        std::fs::write(&file, text)?;
        let output = command()?
            .arg("serve")
            .arg("--config")
            .arg(&file)
            .arg("--data-dir")
            .arg(folder.path())
            .arg("--model")
            .arg(paths::model(paths::SMOLLM2)?)
            .output()?;
        assert_eq!(output.status.code(), Some(1), "{text:?}: {}", both(&output));
        assert!(
            stderr(&output).contains(key),
            "{text:?}: {}",
            stderr(&output)
        );
    }
    Ok(())
}
