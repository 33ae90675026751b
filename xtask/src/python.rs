//! Python where a machine has only the interpreter and `venv` (Debian packs pip apart): one environment for pip itself, and
//! one with the pinned clients of `tests/python/requirements.txt`, whose wheels are kept in the cache next to the models.

use crate::{models, paths};
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// An interpreter that has pip: the machine's own, else one in an environment made for it in the target folder.
pub(crate) fn with_pip() -> Result<PathBuf> {
    let pip = Command::new("python3")
        .args(["-m", "pip", "--version"])
        .output()
        .context("python3 is needed")?;
    if pip.status.success() {
        return Ok("python3".into());
    }
    environment("pip", &version()?, |_| Ok(()))
}

/// The interpreter of the environment with the tests' clients. Fetches and installs only what no earlier run has.
pub(crate) fn with_clients() -> Result<PathBuf> {
    let requirements = paths::root().join("tests/python/requirements.txt");
    let pinned = std::fs::read_to_string(&requirements)
        .with_context(|| format!("cannot read {}", requirements.display()))?;
    // Named by what is installed and for which Python, since some wheels are compiled.
    let digest = format!("{:x}", Sha256::digest(version()? + &pinned));
    environment("clients", &digest, |python| {
        let wheels = wheels(python, &requirements, &digest[..16])?;
        let install = ["-m", "pip", "install", "--quiet", "--no-index"];
        crate::run(
            command(python)
                .args(install)
                .arg("--find-links")
                .arg(wheels)
                .arg("--requirement")
                .arg(&requirements),
        )
    })
}

/// The interpreter of `<target>/venv/<name>`, made anew where that is not the one that `content` describes.
fn environment(
    name: &str,
    content: &str,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let folder = paths::target().join("venv").join(name);
    let (python, complete) = (folder.join("bin/python"), folder.join("complete"));
    if std::fs::read_to_string(&complete).is_ok_and(|found| found == content) && python.exists() {
        return Ok(python);
    }
    if folder.exists() {
        std::fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    crate::run(command("python3").args(["-m", "venv"]).arg(&folder)).context(
        "Python needs its venv module: on Debian, apt-get update && apt-get install python3-venv",
    )?;
    fill(&python)?;
    std::fs::write(&complete, content)?;
    Ok(python)
}

/// The folder with every wheel; fetched from the package index when the cache lacks it.
fn wheels(python: &Path, requirements: &Path, name: &str) -> Result<PathBuf> {
    let folder = models::cache()?.join("wheels").join(name);
    if folder.is_dir() {
        return Ok(folder);
    }
    let partial = folder.with_extension("partial");
    std::fs::create_dir_all(&partial)?;
    eprintln!(
        "fetching the tests' Python clients into {}",
        folder.display()
    );
    let download = ["-m", "pip", "download", "--quiet", "--only-binary", ":all:"];
    crate::run(
        command(python)
            .args(download)
            .arg("--dest")
            .arg(&partial)
            .arg("--requirement")
            .arg(requirements),
    )
    .context("with network, this fetches the openai client into the cache once")?;
    std::fs::rename(&partial, &folder)?;
    Ok(folder)
}

/// The machine's Python, as exactly as it says.
fn version() -> Result<String> {
    let output = Command::new("python3")
        .arg("-VV")
        .output()
        .context("python3 is needed")?;
    if !output.status.success() {
        bail!("python3 -VV ended with {}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What it says goes to the terminal, and nothing to standard output.
fn command(interpreter: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(interpreter);
    command.stdout(Stdio::from(std::io::stderr()));
    command.current_dir(paths::root());
    command
}
