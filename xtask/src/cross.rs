//! Arm on another machine: the kernels' tests under an emulator, and the engine as far as the compiler checks it.

use super::{cargo, run};
use anyhow::{Context, Result, bail};
use std::process::Command;

const TARGET: &str = "aarch64-unknown-linux-gnu";
const LINKER: &str = "aarch64-linux-gnu-gcc";
const EMULATOR: &str = "qemu-aarch64";

#[derive(clap::Args)]
pub(super) struct Options {
    /// Only compile: for machines without an emulator
    #[arg(long)]
    check_only: bool,
}

pub(super) fn cross(options: &Options) -> Result<()> {
    add_target()?;
    let target = ["--target", TARGET, "--release"];
    run(cargo()
        .arg("check")
        .args(target)
        .args(["-p", "realm-engine"]))?;
    if options.check_only {
        run(cargo()
            .args(["check", "--tests", "-p", "realm-kernels"])
            .args(target))?;
        eprintln!("compiled for {TARGET}; NOT RUN: the kernels' tests on neon-dotprod");
        return Ok(());
    }
    for tool in [LINKER, EMULATOR] {
        if Command::new(tool).arg("--version").output().is_err() {
            bail!(
                "{tool} is needed to run tests for {TARGET}: on Debian, \
                 apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user; \
                 without them, --check-only compiles"
            );
        }
    }
    let test = |arguments: &[&str]| {
        run(cargo()
            .args(["test", "-p", "realm-kernels"])
            .args(target)
            .args(arguments)
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", LINKER)
            .env(
                "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER",
                format!("{EMULATOR} -L /usr/aarch64-linux-gnu"),
            ))
    };
    test(&[])?;
    // Says which instruction sets these were.
    let names = ["--test", "conformance", "what_the_machine_has_is_run"];
    test(&[&names[..], &["--", "--nocapture"]].concat())
}

/// Fetches the target's standard library where it is missing.
fn add_target() -> Result<()> {
    let installed = Command::new("rustup")
        .args(["target", "list", "--installed"])
        .output()
        .context("rustup is needed to fetch the standard library of another target")?;
    if String::from_utf8_lossy(&installed.stdout).contains(TARGET) {
        return Ok(());
    }
    run(Command::new("rustup").args(["target", "add", TARGET]))
}
