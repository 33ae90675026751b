//! The compile worker as a process: what it makes can be run, and what it may use is bounded.
//!
//! This test is its own worker: called with `worker` it is one. Hence no test harness.

#![allow(clippy::unwrap_used, reason = "in a test it is an assertion")]

use realm_sandbox::{
    CallError, Compiler, Hooks, Limits, LogLevel, Rejected, Sandbox, SandboxConfig, Tenant,
    TenantMemory,
};
use std::sync::Arc;

struct Quiet;

impl Hooks for Quiet {
    fn log(&self, _: &Tenant, _: &str, _: LogLevel, _: &str) {}
}

fn main() {
    if std::env::args().nth(1).as_deref() == Some("worker") {
        std::process::exit(realm_sandbox::compile_worker_main());
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(what_a_worker_compiles_can_be_described());
    println!("what_a_worker_compiles_can_be_described ... ok");
    runtime.block_on(a_worker_without_memory_is_a_refusal());
    println!("a_worker_without_memory_is_a_refusal ... ok");
    runtime.block_on(a_worker_without_time_is_a_refusal());
    println!("a_worker_without_time_is_a_refusal ... ok");
    runtime.block_on(a_missing_worker_is_the_hosts_fault());
    println!("a_missing_worker_is_the_hosts_fault ... ok");
}

fn sandbox(memory_bytes_max: u64, wall_ms_max: u64) -> Sandbox {
    let program = std::env::current_exe().unwrap();
    let compiler = Compiler::Child {
        program,
        args: vec!["worker".into()],
        memory_bytes_max,
        wall_ms_max,
    };
    Sandbox::new(
        SandboxConfig {
            compiler,
            instances_max: 4,
            ..SandboxConfig::default()
        },
        Arc::new(Quiet),
    )
    .unwrap()
}

fn passthrough() -> Vec<u8> {
    std::fs::read("../../tenants/prebuilt/passthrough.wasm").unwrap()
}

async fn what_a_worker_compiles_can_be_described() {
    let sandbox = sandbox(2 << 30, 60_000);
    let artifact = sandbox.compile(passthrough()).await.unwrap();
    let workflow = sandbox.load("passthrough", &artifact).unwrap();
    let tenant = Tenant {
        id: 1,
        name: "t".into(),
        weight: 1,
        kv_blocks_max: 1,
        limits: Limits::default(),
        memory: Arc::new(TenantMemory::new(1 << 30)),
        models: Default::default(),
    };
    let description: Result<_, CallError> = sandbox.describe(&workflow, &tenant).await;
    assert!(description.unwrap().chat);
}

async fn a_worker_without_memory_is_a_refusal() {
    let refused = sandbox(8 << 20, 60_000).compile(passthrough()).await;
    assert!(
        matches!(refused, Err(Rejected::TooCostly(_))),
        "{refused:?}"
    );
}

async fn a_worker_without_time_is_a_refusal() {
    let refused = sandbox(2 << 30, 1).compile(passthrough()).await;
    assert!(
        matches!(refused, Err(Rejected::TooCostly(_))),
        "{refused:?}"
    );
}

async fn a_missing_worker_is_the_hosts_fault() {
    let compiler = Compiler::Child {
        program: "/no/such/program".into(),
        args: Vec::new(),
        memory_bytes_max: 1 << 30,
        wall_ms_max: 1000,
    };
    let sandbox = Sandbox::new(
        SandboxConfig {
            compiler,
            instances_max: 1,
            ..SandboxConfig::default()
        },
        Arc::new(Quiet),
    )
    .unwrap();
    let refused = sandbox.compile(passthrough()).await;
    assert!(matches!(refused, Err(Rejected::Host(_))), "{refused:?}");
}
