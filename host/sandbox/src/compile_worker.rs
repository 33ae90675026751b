//! Compiling in a process of its own: it limits its memory and processor time, its parent limits its time.
//!
//! The component comes on stdin, native code leaves on stdout, a refusal on stderr. The worker has no key: its parent
//! authenticates what it hands back.

use crate::engine_config;
use crate::error::Rejected;
use crate::log::printable;
use crate::validate::COMPONENT_BYTES_MAX;
use rustix::process::{Resource, Rlimit, setrlimit};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use wasmtime::Engine;

const MEMORY: &str = "REALM_COMPILE_MEMORY_BYTES";
const CPU: &str = "REALM_COMPILE_CPU_S";
/// Native code is a few times the size of its component.
const CODE_BYTES_MAX: u64 = 256 << 20;
const REASON_BYTES_MAX: u64 = 8 << 10;
/// The status of a worker that judged the component, as opposed to one that fell over.
const REFUSED: i32 = 3;

/// Runs a worker over one component.
pub(crate) async fn run(
    program: &Path,
    args: &[String],
    memory_bytes_max: u64,
    wall_ms_max: u64,
    wasm: &[u8],
) -> Result<Vec<u8>, Rejected> {
    let mut child = start(program, args, memory_bytes_max, wall_ms_max).map_err(Rejected::Host)?;
    let gone = || Rejected::Host(io::Error::other("the worker has no pipes"));
    let mut stdin = child.stdin.take().ok_or_else(gone)?;
    let stdout = child.stdout.take().ok_or_else(gone)?;
    let stderr = child.stderr.take().ok_or_else(gone)?;

    let (mut code, mut reason) = (Vec::new(), Vec::new());
    let work = async {
        let send = async {
            // A worker that gives up early closes its end: its status tells, not this.
            let _ = stdin.write_all(wasm).await;
            drop(stdin);
        };
        let mut stdout = stdout.take(CODE_BYTES_MAX + 1);
        let mut stderr = stderr.take(REASON_BYTES_MAX);
        let (_, code_read, _) = tokio::join!(
            send,
            stdout.read_to_end(&mut code),
            stderr.read_to_end(&mut reason)
        );
        code_read?;
        child.wait().await
    };
    let status = match tokio::time::timeout(Duration::from_millis(wall_ms_max), work).await {
        Err(_) => {
            return Err(Rejected::TooCostly(format!(
                "it took longer than {wall_ms_max} ms"
            )));
        }
        Ok(status) => status.map_err(Rejected::Host)?,
    };
    let reason = printable(&String::from_utf8_lossy(&reason));
    match status.code() {
        Some(0) if code.len() as u64 <= CODE_BYTES_MAX => Ok(code),
        Some(0) => Err(Rejected::TooCostly(format!(
            "its native code has more than {CODE_BYTES_MAX} bytes"
        ))),
        Some(REFUSED) => Err(Rejected::Malformed(reason)),
        // Killed by a limit of its own, or out of memory, which ends a process in its own way.
        _ => {
            tracing::warn!(%status, reason, "a compile worker ended early");
            Err(Rejected::TooCostly(format!(
                "it needs more than {memory_bytes_max} bytes or {wall_ms_max} ms"
            )))
        }
    }
}

/// Starts a worker. Whoever drops it ends it.
fn start(
    program: &Path,
    args: &[String],
    memory_bytes_max: u64,
    wall_ms_max: u64,
) -> io::Result<Child> {
    Command::new(program)
        .args(args)
        .env_clear()
        .env(MEMORY, memory_bytes_max.to_string())
        .env(CPU, wall_ms_max.div_ceil(1000).to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // An upload that is hung up on, and every early return of its caller, ends the worker.
        .kill_on_drop(true)
        .spawn()
}

/// The whole of the worker: limits itself, reads a component, writes native code. Returns the exit status.
pub fn compile_worker_main() -> i32 {
    match work() {
        Ok(()) => 0,
        Err(Failure::Refused(reason)) => {
            // Cut here as well as in the parent; if nobody reads it, the status still tells.
            let _ = writeln!(io::stderr(), "{}", printable(&reason));
            REFUSED
        }
        Err(Failure::Broken(error)) => {
            let _ = writeln!(io::stderr(), "{error}");
            1
        }
    }
}

enum Failure {
    /// The component is at fault.
    Refused(String),
    /// The worker is.
    Broken(io::Error),
}

fn work() -> Result<(), Failure> {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .and_then(|value| value.parse::<u64>().ok())
    };
    let limit = |resource: Resource, most: Option<u64>| {
        let Some(most) = most else { return Ok(()) };
        setrlimit(
            resource,
            Rlimit {
                current: Some(most),
                maximum: Some(most),
            },
        )
        .map_err(|error| Failure::Broken(error.into()))
    };
    limit(Resource::As, number(MEMORY))?;
    limit(Resource::Cpu, number(CPU))?;
    limit(Resource::Core, Some(0))?;

    let mut wasm = Vec::new();
    let most = COMPONENT_BYTES_MAX as u64 + 1;
    io::stdin()
        .lock()
        .take(most)
        .read_to_end(&mut wasm)
        .map_err(Failure::Broken)?;
    let refused = |error: wasmtime::Error| Failure::Refused(format!("{error:#}"));
    let engine = Engine::new(&engine_config::compiler())
        .map_err(|error| Failure::Broken(io::Error::other(format!("{error:#}"))))?;
    let code = engine.precompile_component(&wasm).map_err(refused)?;
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(&code)
        .and_then(|()| stdout.flush())
        .map_err(Failure::Broken)
}
