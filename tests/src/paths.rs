//! Where the tests find what they need: the binary, the models, the guests, the cache. Whatever is missing is an
//! error that says which command makes it; no test is skipped.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};

/// The small model every test may count on.
pub const SMOLLM2: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// The root of the checkout. Cargo runs a test in its crate's folder; a path compiled in would be wrong where several
/// checkouts share a target folder.
pub fn repository() -> PathBuf {
    Path::new("..")
        .canonicalize()
        .expect("tests/ lies inside the workspace")
}

/// `<target>/<profile>`, the folder this test's own executable was built into, wherever the target folder is. The `realm`
/// beside it is only as new as the last build of that binary: `cargo test -p realm-tests` does not build it, `cargo xtask
/// test -p realm-tests` does.
pub fn profile_dir() -> Result<PathBuf> {
    let own = std::env::current_exe().context("the test's own path")?;
    let deps = own.parent().context("a test executable lies in a folder")?;
    Ok(deps
        .parent()
        .context("deps/ lies in a profile folder")?
        .to_path_buf())
}

/// `<target>`: holds the guests and the Python environment between runs.
pub fn target_dir() -> Result<PathBuf> {
    let profile = profile_dir()?;
    Ok(profile
        .parent()
        .context("a profile folder lies in a target folder")?
        .to_path_buf())
}

/// The `realm` binary: `REALM_BIN`, else the one beside this test.
pub fn binary() -> Result<PathBuf> {
    let path = match std::env::var_os("REALM_BIN") {
        Some(path) => PathBuf::from(path),
        None => profile_dir()?.join("realm"),
    };
    ensure!(
        path.is_file(),
        "no binary at {}; build it with `cargo build --release -p realm`",
        path.display()
    );
    Ok(path)
}

/// `$XDG_CACHE_HOME/realm` or `~/.cache/realm`.
pub fn cache_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()) {
        return Ok(PathBuf::from(dir).join("realm"));
    }
    let home = std::env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?;
    Ok(PathBuf::from(home).join(".cache/realm"))
}

/// The folder of model files: `REALM_MODELS`, else in the cache.
pub fn models() -> Result<PathBuf> {
    match std::env::var_os("REALM_MODELS").filter(|dir| !dir.is_empty()) {
        Some(dir) => Ok(PathBuf::from(dir)),
        None => Ok(cache_dir()?.join("models")),
    }
}

/// A model file by name, from `REALM_MODELS` or the cache.
pub fn model(file: &str) -> Result<PathBuf> {
    let path = models()?.join(file);
    ensure!(
        path.is_file(),
        "no model at {}; fetch it with `cargo xtask models`",
        path.display()
    );
    Ok(path)
}

/// The bytes of a test guest, by its name without `.wasm`, from `REALM_GUESTS` or `<target>/guests`.
pub fn guest(name: &str) -> Result<Vec<u8>> {
    let dir = match std::env::var_os("REALM_GUESTS") {
        Some(dir) => PathBuf::from(dir),
        None => target_dir()?.join("guests"),
    };
    let path = dir.join(format!("{name}.wasm"));
    std::fs::read(&path).with_context(|| {
        format!(
            "no guest at {}; build it with `cargo xtask guests`",
            path.display()
        )
    })
}

/// The bytes of a ready-made component, by its name without `.wasm`, from `tenants/prebuilt`.
pub fn prebuilt(name: &str) -> Result<Vec<u8>> {
    let path = repository()
        .join("tenants/prebuilt")
        .join(format!("{name}.wasm"));
    std::fs::read(&path).with_context(|| {
        format!(
            "no component at {}; build it with `cargo xtask guests --update`",
            path.display()
        )
    })
}
