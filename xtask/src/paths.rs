//! Where things are in a checkout and in its target folder.

use std::path::{Path, PathBuf};

/// The root of the checkout.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the workspace")
        .to_path_buf()
}

/// Cargo's target folder: `CARGO_TARGET_DIR`, or `target` in the checkout.
pub(crate) fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => root().join(folder),
        None => root().join("target"),
    }
}

/// Where `cargo xtask guests` leaves the components.
pub(crate) fn guests() -> PathBuf {
    target().join("guests")
}

/// The `realm` binary.
pub(crate) fn binary() -> PathBuf {
    target().join("release").join("realm")
}
