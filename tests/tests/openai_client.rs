//! The real `openai` client from PyPI against the real binary.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use realm_tests::paths::repository;
use realm_tests::python;
use realm_tests::server::{DataDir, MODEL, Server};
use std::process::Command;

#[test]
fn the_openai_client_finds_everything_as_it_expects() -> Result<()> {
    let python = python::interpreter()?;
    let embedding = repository().join("tests/fixtures/embedding/bert.gguf");
    let embedding = embedding.to_str().context("a path in UTF-8")?;
    let flags = ["--embedding-model", embedding];
    let server = Server::start_with(DataDir::new()?, &flags)?;
    let tenant = server.tenant("acme")?;
    let revoked = server.key("acme")?;
    server
        .admin()
        .delete(&format!("/admin/v1/tenants/acme/keys/{}", revoked.key_id))?
        .ok()?;
    let suite = repository().join("tests/python/openai_suite.py");
    let output = Command::new(python)
        .arg(suite)
        .args([server.url(), &tenant.key, MODEL, &revoked.key, "bert"])
        .output()?;
    let (said, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    println!("{said}");
    assert!(output.status.success(), "{said}{errors}");
    assert!(
        said.contains("checks passed"),
        "the suite ran to its end: {said}{errors}"
    );
    server.until_idle()
}
