//! `cargo xtask`: everything a checkout needs beyond plain cargo. Two commands do all the set-up: `demo` and `test`.

#![forbid(unsafe_code)]

mod cross;
mod demo;
mod guests;
mod models;
mod paths;
mod python;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use std::process::{Command, Stdio};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Builds, runs and tests Realm from a checkout"
)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Fetches the default model if needed, builds, and serves it with a demo tenant until Ctrl-C.
    Demo(demo::Options),
    /// Fetches the test models, builds the guests and the binary, and runs every test.
    Test {
        /// Passed on to `cargo test`, for example a test's name.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Fetches the models that the demo and the tests use into the cache, and checks their digests.
    Models,
    /// Builds the ready-made components and the test guests.
    Guests(guests::Options),
    /// Runs the kernels' tests for Arm under an emulator, and checks that the engine compiles for it.
    Cross(cross::Options),
    /// Formatting, clippy and the documentation build with warnings as errors, and cargo-deny where it is installed.
    Lint,
    /// Checks every interleaving of the kernels' thread pool and of the engine's queue with loom.
    Loom {
        /// Only the models whose names contain this, for example `pool`
        #[arg(default_value = "")]
        model: String,
    },
    /// Looks for undefined behaviour in the kernels' unsafe code with Miri, on the portable instruction set.
    Miri {
        /// Only the tests whose names contain one of these; by default those that end within minutes
        tests: Vec<String>,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().task {
        Task::Demo(options) => demo::run(options),
        Task::Test { arguments } => test(&arguments),
        Task::Models => models::fetch_all().map(|paths| {
            for path in paths {
                println!("{}", path.display());
            }
        }),
        Task::Guests(options) => guests::run(&options),
        Task::Cross(options) => cross::cross(&options),
        Task::Lint => lint(),
        Task::Loom { model } => run(cargo()
            .args(["run", "--release", "-p", "realm-loom", "--"])
            .arg(model)),
        Task::Miri { tests } => miri(&tests),
    }
}

/// Runs every test of the workspace's default members. The guests come first because tests upload them;
/// the binary because the cross-crate tests start it.
fn test(arguments: &[String]) -> Result<()> {
    models::fetch_all()?;
    let python = python::with_clients()?;
    guests::run(&guests::Options::default())?;
    build(&[])?;
    run(cargo()
        .args(["test", "--release"])
        .args(arguments)
        .env("REALM_MODELS", models::directory()?)
        .env("REALM_GUESTS", paths::guests())
        .env("REALM_PYTHON", python)
        .env("REALM_BIN", paths::binary()))
}

/// Builds the `selection` of packages, or all default members. The demo builds the server alone: the tests and what they need
/// would take a third of the time, though afterwards they build again the libraries in which they want more features.
/// Cargo's own output goes to standard error.
fn build(selection: &[&str]) -> Result<()> {
    run(cargo()
        .args(["build", "--release"])
        .args(selection)
        .stdout(Stdio::from(std::io::stderr())))
}

fn lint() -> Result<()> {
    run(cargo().args(["fmt", "--all", "--check"]))?;
    run(cargo().args([
        "clippy",
        "--release",
        "--all-targets",
        "--workspace",
        "--",
        "-D",
        "warnings",
    ]))?;
    run(cargo()
        .args([
            "doc",
            "--release",
            "--no-deps",
            "--workspace",
            "--exclude",
            "realm-test-guests",
        ])
        .env("RUSTDOCFLAGS", "-D warnings"))?;
    deny()
}

/// Holds dependencies to `deny.toml` where cargo-deny is installed. Advisories are left out: they need a database that is
/// fetched, and change without a change here.
fn deny() -> Result<()> {
    let installed = cargo().args(["deny", "--version"]).output();
    if !installed.is_ok_and(|output| output.status.success()) {
        eprintln!(
            "\ncargo-deny is NOT installed: deny.toml was NOT checked (`cargo install cargo-deny`)"
        );
        return Ok(());
    }
    run(cargo().args(["deny", "check", "bans", "licenses", "sources"]))
}

/// The kernels' tests that take Miri some minutes in all and touch most of what is unsafe.
const MIRI_TESTS: [&str; 8] = [
    "cpu::threads",
    "cpu::turns",
    "a_copied_block",
    "a_nan_spoils",
    "gathered_activations",
    "matmul_add",
    "zeros_and_tiny_rows",
    "norm_is_norm_then_quantise",
];

/// Runs tests of the kernels under Miri, which belongs to the nightly toolchain.
fn miri(tests: &[String]) -> Result<()> {
    let chosen = match tests {
        [] => MIRI_TESTS.map(str::to_owned).to_vec(),
        tests => tests.to_vec(),
    };
    run(Command::new("cargo")
        .current_dir(paths::root())
        .args(["+nightly", "miri", "test", "-p", "realm-kernels"])
        .args(["--lib", "--test", "conformance", "--"])
        .args(chosen)
        // Without, sines and the like differ a little from call to call, on purpose.
        .env("MIRIFLAGS", "-Zmiri-deterministic-floats"))
    .context("Miri is needed: rustup toolchain install nightly --component miri")
}

/// The cargo that runs this task, in the workspace's root.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(paths::root());
    // These count from where the user stands, and the command runs elsewhere.
    for name in ["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET_DIR"] {
        if let Some(folder) = std::env::var_os(name)
            && let Ok(folder) = std::path::absolute(folder)
        {
            command.env(name, folder);
        }
    }
    command
}

/// Runs `command` with its output shown; an exit status other than zero is an error that names it.
fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}
