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

/// Cargo's target folder: the one this executable was built into, `<target>/<profile>/xtask`. So it is right whatever the
/// environment and cargo's configuration say about it.
pub(crate) fn target() -> PathBuf {
    let own = std::env::current_exe().expect("the system knows where this executable is");
    own.ancestors()
        .nth(2)
        .expect("cargo builds into a folder of a profile")
        .to_path_buf()
}

/// Where `cargo xtask guests` leaves the components.
pub(crate) fn guests() -> PathBuf {
    target().join("guests")
}

/// The `realm` binary.
pub(crate) fn binary() -> PathBuf {
    target().join("release").join("realm")
}
