//! What the sandbox's tests share: guests, a scripted engine, tenants, and a neighbour whose stream must go on.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "each test file uses its own part"
)]

use realm_sandbox::engine::scripted::{self, Script, Scripted};
use realm_sandbox::engine::text::{Chat, ChatMessage};
use realm_sandbox::engine::{Client, Engine, EngineConfig, Policy};
use realm_sandbox::{
    CallRequest, Hooks, Invocation, Limits, LogLevel, ModelSet, ReplyEvent, RequestKind, Sandbox,
    SandboxConfig, Tenant, TenantMemory, Workflow,
};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Lines that reached the log.
#[derive(Default)]
pub struct Lines(pub Mutex<Vec<(LogLevel, String)>>);

impl Hooks for Lines {
    fn log(&self, _: &Tenant, _: &str, level: LogLevel, message: &str) {
        self.0.lock().unwrap().push((level, message.to_owned()));
    }
}

/// One sandbox on one scripted engine.
pub struct World {
    pub sandbox: Sandbox,
    pub client: Client,
    pub lines: Arc<Lines>,
    engine: Option<Engine>,
}

impl World {
    pub fn new() -> World {
        World::with(Script::Letters, SandboxConfig::default())
    }

    pub fn with(script: Script, config: SandboxConfig) -> World {
        let scripted = Scripted {
            script,
            kv_blocks: 8192,
            context_length: 100_000,
            step_delay: Duration::from_millis(1),
            ..Scripted::default()
        };
        let engine = scripted::engine(scripted, EngineConfig::default());
        let lines = Arc::new(Lines::default());
        let sandbox = Sandbox::new(config, Arc::<Lines>::clone(&lines)).unwrap();
        World {
            sandbox,
            client: engine.client(),
            lines,
            engine: Some(engine),
        }
    }

    pub async fn load(&self, wasm: Vec<u8>) -> Workflow {
        let artifact = self.sandbox.compile(wasm).await.unwrap();
        self.sandbox.load("guest", &artifact).unwrap()
    }

    pub fn tenant(&self, id: u32, limits: Limits) -> Tenant {
        Tenant {
            id,
            name: format!("tenant-{id}").into(),
            weight: 1,
            kv_blocks_max: 4096,
            limits,
            memory: Arc::new(TenantMemory::new(1 << 30)),
            models: ModelSet::new(BTreeMap::from([(
                "scripted".to_owned(),
                self.client.clone(),
            )])),
        }
    }

    /// Waits until the log says that a call has failed: its component is gone, whether anybody reads its replies or not.
    pub async fn call_failed(&self) {
        let until = Instant::now() + Duration::from_secs(30);
        let has_failed = || {
            let lines = self.lines.0.lock().unwrap();
            lines
                .iter()
                .any(|(_, line)| line.starts_with("the call failed"))
        };
        while !has_failed() {
            assert!(Instant::now() < until, "the call goes on");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Every block is free, within the few steps that freeing may take.
    pub async fn all_free(&self) {
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let stats = self.client.stats();
            if stats.blocks_held == 0 && stats.sequences_running == 0 {
                assert_eq!(
                    stats.blocks_free + stats.blocks_cached,
                    stats.blocks_total,
                    "blocks are conserved"
                );
                return;
            }
            assert!(Instant::now() < until, "still held: {stats:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(engine) = self.engine.take() {
            engine.shutdown();
        }
    }
}

/// A guest that `cargo xtask guests` has built.
pub fn guest(name: &str) -> Vec<u8> {
    let folder = std::env::var_os("REALM_GUESTS")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            PathBuf::from("../..")
                .join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
                .join("guests")
        });
    let file = folder.join(format!("{name}.wasm"));
    std::fs::read(&file).unwrap_or_else(|error| {
        panic!(
            "{}: {error}; run `cargo xtask guests` first",
            file.display()
        )
    })
}

/// A ready-made component as it is committed.
pub fn prebuilt(name: &str) -> Vec<u8> {
    std::fs::read(format!("../../tenants/prebuilt/{name}.wasm")).unwrap()
}

pub fn request(kind: RequestKind, policy: Policy) -> CallRequest {
    CallRequest {
        id: "req-1".into(),
        kind: kind.into(),
        model: "scripted".into(),
        policy,
        prompt_logprobs: None,
        choices: 1,
        deadline: Duration::from_secs(60),
    }
}

pub fn chat(text: &str, policy: Policy) -> CallRequest {
    let message = ChatMessage::new("user", text);
    request(RequestKind::Chat(Chat::new([message])), policy)
}

pub fn call(name: &str, parameters: &str) -> CallRequest {
    request(
        RequestKind::Function {
            name: name.into(),
            parameters_json: parameters.into(),
        },
        Policy {
            max_tokens: Some(8),
            ..Policy::default()
        },
    )
}

/// All events of a call. The time it may take stands for "it ended, and not by our patience".
pub async fn collect(mut invocation: Invocation) -> Vec<ReplyEvent> {
    let mut events = Vec::new();
    let reading = async {
        while let Some(event) = invocation.next().await {
            events.push(event);
        }
    };
    tokio::time::timeout(Duration::from_secs(30), reading)
        .await
        .expect("a call ends");
    let ends = events
        .iter()
        .filter(|event| matches!(event, ReplyEvent::End(_)))
        .count();
    assert_eq!(ends, 1, "{events:?}");
    assert!(
        matches!(events.last(), Some(ReplyEvent::End(_))),
        "{events:?}"
    );
    events
}

/// The text of one choice.
pub fn text(events: &[ReplyEvent], wanted: u32) -> String {
    events
        .iter()
        .filter_map(|event| match event {
            ReplyEvent::Delta { choice, text, .. } | ReplyEvent::Echo { choice, text, .. }
                if *choice == wanted =>
            {
                Some(text.as_str())
            }
            _ => None,
        })
        .collect()
}

/// Another tenant's endless stream, and how far it has come.
pub struct Neighbour {
    deltas: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Neighbour {
    pub async fn start(world: &World) -> Neighbour {
        let workflow = world.load(prebuilt("passthrough")).await;
        let tenant = world.tenant(2, Limits::default());
        let mut stream = world
            .sandbox
            .invoke(&workflow, &tenant, chat("go on", Policy::default()));
        let deltas = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&deltas);
        let first = stream.next().await;
        assert!(matches!(first, Some(ReplyEvent::Delta { .. })), "{first:?}");
        let task = tokio::spawn(async move {
            while let Some(event) = stream.next().await {
                assert!(
                    matches!(event, ReplyEvent::Delta { .. }),
                    "the neighbour's stream ended: {event:?}"
                );
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        Neighbour { deltas, task }
    }

    pub fn deltas(&self) -> usize {
        self.deltas.load(Ordering::Relaxed)
    }

    /// It is still streaming. Hangs up.
    pub async fn stays_well(self, before: usize) {
        let until = Instant::now() + Duration::from_secs(30);
        while self.deltas() < before + 20 {
            assert!(!self.task.is_finished(), "the neighbour's stream ended");
            assert!(
                Instant::now() < until,
                "the neighbour's stream stands still"
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.task.abort();
        let _ = self.task.await;
    }
}
