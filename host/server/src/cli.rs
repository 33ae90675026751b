//! The command line.

mod ask;
mod bench;
mod call;
mod client;
mod doctor;
mod model;
mod operator;

use crate::config::{Config, Flags};
use crate::serve;
use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// A host that runs many customers' WebAssembly programs next to one language model.
#[derive(Parser)]
#[command(name = "realm", version, about)]
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
    /// Look at model files
    #[command(subcommand)]
    Model(model::Model),
    /// Make, list and remove tenants
    Tenant {
        #[command(flatten)]
        admin: client::Admin,
        #[command(subcommand)]
        command: operator::Tenant,
    },
    /// Make, list and revoke API keys
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
    /// Look over what the server needs
    Doctor(doctor::Doctor),
    /// Compile a component from standard input to standard output
    #[command(hide = true)]
    CompileWorker,
}

#[derive(clap::Args)]
struct Serve {
    /// TOML file with settings
    #[arg(long, value_name = "PATH", env = "REALM_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
    /// Print one line of JSON on standard output once ready
    #[arg(long)]
    json: bool,
    /// Stop when standard input closes
    #[arg(long)]
    exit_on_stdin_close: bool,
    /// Make this tenant if it is missing, and a new key for it
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
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let ended = runtime.block_on(async {
        match command {
            Command::Serve(serve) => {
                let config = Config::load(serve.config.as_deref(), &serve.flags)?;
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

/// `REALM_LOG` chooses what is logged, as `debug` or `realm_server=debug`.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("REALM_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
}
