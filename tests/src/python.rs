//! The Python environment with the pinned clients of `tests/python/requirements.txt`, which `cargo xtask test` makes.

use crate::paths;
use anyhow::{Result, ensure};
use std::path::PathBuf;

/// The environment's interpreter: `REALM_PYTHON`, else the one that the last `cargo xtask test` made.
pub fn interpreter() -> Result<PathBuf> {
    let path = match std::env::var_os("REALM_PYTHON") {
        Some(path) => PathBuf::from(path),
        None => paths::target_dir()?.join("venv/clients/bin/python"),
    };
    ensure!(
        path.is_file(),
        "no Python with the openai client at {}; `cargo xtask test` makes it",
        path.display()
    );
    Ok(path)
}
