//! The command line.

mod ask;
mod bench;
mod call;
mod client;
mod doctor;
mod model;
mod operator;
mod render;

use crate::config::{Config, Flags};
use crate::serve;
use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Run many tenants' WebAssembly programs next to one language model
#[derive(Parser)]
#[command(name = "realm", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a model to tenants
    Serve(Serve),
    /// Ask a model one question, without a server
    Run(ask::Run),
    /// Measure how fast a model runs on this machine
    Bench(bench::Bench),
    /// List, inspect and generate model files
    #[command(subcommand)]
    Model(model::Model),
    /// Create, list and delete tenants
    Tenant {
        #[command(flatten)]
        admin: client::Admin,
        #[command(subcommand)]
        command: operator::Tenant,
    },
    /// Create, list and revoke API keys
    Key {
        #[command(flatten)]
        admin: client::Admin,
        #[command(subcommand)]
        command: operator::Key,
    },
    /// Upload workflows and choose which version is active
    Workflow {
        #[command(flatten)]
        admin: client::Admin,
        #[command(subcommand)]
        command: operator::Workflow,
    },
    /// Call a function of a workflow
    Call(call::Call),
    /// Check that everything the server needs is there and works
    Doctor(doctor::Doctor),
    /// Compile a component from standard input to standard output
    #[command(hide = true)]
    CompileWorker,
}

#[derive(clap::Args)]
struct Serve {
    /// TOML file with the settings
    #[arg(long, value_name = "PATH", env = "REALM_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
    /// Print one line of JSON to standard output once the server is ready
    #[arg(long)]
    json: bool,
    /// Stop when standard input is closed
    #[arg(long)]
    exit_on_stdin_close: bool,
    /// Create this tenant if it does not exist, and a new API key for it
    #[arg(long, value_name = "NAME")]
    bootstrap_tenant: Option<String>,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // Before there are threads: the worker limits itself, and that should count for all of it.
    if let Command::CompileWorker = cli.command {
        return u8::try_from(realm_sandbox::compile_worker_main())
            .map_or(ExitCode::FAILURE, ExitCode::from);
    }
    log_to_stderr();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    let granted = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(executor_threads(granted))
        .thread_name("executor")
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let ended = runtime.block_on(async {
        match command {
            Command::Serve(serve) => {
                let config = Config::load(serve.config.as_deref(), &serve.flags)?;
                for name in Config::unknown_variables() {
                    tracing::warn!("the variable {name} is not a setting, and is ignored");
                }
                let options = serve::Options {
                    json: serve.json,
                    exit_on_stdin_close: serve.exit_on_stdin_close,
                    bootstrap_tenant: serve.bootstrap_tenant,
                };
                serve::serve(config, options).await
            }
            Command::Run(run) => ask::run(run).await,
            Command::Bench(bench) => bench::bench(&bench),
            Command::Model(command) => model::model(command),
            Command::Tenant { admin, command } => operator::tenant(&admin, command).await,
            Command::Key { admin, command } => operator::key(&admin, command).await,
            Command::Workflow { admin, command } => operator::workflow(&admin, command).await,
            Command::Call(call) => call::call(call).await,
            Command::Doctor(doctor) => doctor::doctor(doctor).await,
            Command::CompileWorker => Ok(()), // ran before the runtime
        }
    });
    // Connections that outlasted the drain are dropped here and not waited for.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    ended
}

/// Threads for connections and components, of `granted` processors. The engine takes all of these, since components mostly
/// wait for it; those that compute instead can take no more than half as many threads, so that the step goes on beside them.
fn executor_threads(granted: usize) -> usize {
    (granted / 2).max(1)
}

/// `REALM_LOG` chooses what is logged, as `debug` or `realm_server=debug`.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("REALM_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
}
