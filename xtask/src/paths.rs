//! Where things are in a checkout and in its target folder.

use std::path::{Path, PathBuf};

/// The root of the checkout. Asked at run time: several checkouts may share a target folder, and then this executable
/// can be one that another of them built.
pub(crate) fn root() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").expect("set by `cargo xtask`");
    Path::new(&manifest)
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
