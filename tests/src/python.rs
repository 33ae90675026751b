//! A Python environment with the pinned clients of `tests/python/requirements.txt`. The wheels are fetched once into the
//! cache, next to the models; the environment is made from them without network and kept in the target folder.

use crate::paths;
use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The environment's interpreter. Fetches and installs only what no earlier run has.
pub fn interpreter() -> Result<PathBuf> {
    let requirements = paths::repository().join("tests/python/requirements.txt");
    let pinned = std::fs::read(&requirements)
        .with_context(|| format!("reading {}", requirements.display()))?;
    // Named by what is installed and for which Python, since some wheels are compiled.
    let python = Command::new("python3")
        .arg("-VV")
        .output()
        .context("the test needs python3")?;
    let name = format!("{:x}", Sha256::digest([pinned, python.stdout].concat()));
    let finished = paths::target_dir()?.join("venv").join(&name[..16]);
    let python = finished.join("bin/python");
    if finished.join("complete").is_file() {
        return Ok(python);
    }
    let wheels = wheels(&requirements, &name[..16])?;
    let _ = std::fs::remove_dir_all(&finished);
    run(Command::new("python3").args(["-m", "venv"]).arg(&finished))?;
    run(Command::new(&python)
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-index",
            "--find-links",
        ])
        .arg(&wheels)
        .arg("--requirement")
        .arg(&requirements))?;
    std::fs::write(finished.join("complete"), name)?;
    Ok(python)
}

/// The folder with every wheel; fetched from the package index when the cache lacks it.
fn wheels(requirements: &Path, name: &str) -> Result<PathBuf> {
    let finished = paths::cache_dir()?.join("wheels").join(name);
    if finished.is_dir() {
        return Ok(finished);
    }
    let partial = finished.with_extension("partial");
    std::fs::create_dir_all(&partial)?;
    run(Command::new("python3")
        .args([
            "-m",
            "pip",
            "download",
            "--quiet",
            "--only-binary",
            ":all:",
            "--dest",
        ])
        .arg(&partial)
        .arg("--requirement")
        .arg(requirements))
    .context(
        "the test needs the openai client; with network, this fetches it into the cache once",
    )?;
    std::fs::rename(&partial, &finished)?;
    Ok(finished)
}

/// Runs a command to its end; an error holds all it said.
fn run(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("cannot start {command:?}"))?;
    let said = || [&output.stdout[..], &output.stderr[..]].concat();
    ensure!(
        output.status.success(),
        "{command:?} ended with {}:\n{}",
        output.status,
        String::from_utf8_lossy(&said())
    );
    Ok(())
}
