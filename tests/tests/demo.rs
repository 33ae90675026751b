//! `cargo xtask demo`, the first thing the README says to type.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use realm_tests::paths;
use realm_tests::server::without_settings;
use std::process::Command;

/// `cargo xtask demo` on free ports with a data folder of its own. The executable is started as cargo would start it, so
/// that this builds nothing that is built already.
fn demo(data: &std::path::Path) -> Result<Command> {
    let xtask = paths::profile_dir()?.join("xtask");
    let mut command = Command::new(&xtask);
    without_settings(&mut command);
    command
        .args(["demo", "--port", "0", "--admin-port", "0", "--data"])
        .arg(data)
        .env("CARGO_MANIFEST_DIR", paths::repository().join("xtask"))
        .env("CARGO_TARGET_DIR", paths::target_dir()?)
        .env("REALM_MODELS", paths::models()?);
    Ok(command)
}

/// The README's question, and one whose first word is a matter of 0.08 in log-probability.
const QUESTIONS: [&str; 2] = [
    "Name the capital of France in one sentence.",
    "What is the capital of France?",
];

#[test]
fn the_demo_answers_from_the_model_also_on_the_data_of_an_earlier_one() -> Result<()> {
    let data = tempfile::tempdir()?;
    for question in QUESTIONS {
        let output = demo(data.path())?
            .args(["--once", question])
            .output()
            .context("`cargo xtask test` builds xtask")?;
        let (said, errors) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "{said}{errors}");
        assert!(said.contains("Paris"), "{said}{errors}");
    }
    Ok(())
}
