//! What a component makes the host do takes no more of the host's memory than the component is charged for, counted in bytes
//! at the allocator. One test: it counts the whole process.

#![allow(clippy::unwrap_used, reason = "in a test it is an assertion")]

mod common;

use common::{World, call, collect, guest};
use peak_alloc::PeakAlloc;
use realm_sandbox::{CallError, Limits, ReplyEvent, Workflow};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Calls a function with so much memory; how it ended, and the bytes of the heap that were taken meanwhile. The component's
/// own memory is none of them.
async fn peak(
    world: &World,
    workflow: &Workflow,
    (name, parameters): (&str, &str),
    memory_bytes_max: usize,
) -> (Result<(), CallError>, usize) {
    let limits = Limits {
        memory_bytes_max,
        cpu_ms_max: 60_000,
        ..Limits::default()
    };
    let tenant = world.tenant(1, limits);
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let request = call(name, parameters);
    let events = collect(world.sandbox.invoke(workflow, &tenant, request)).await;
    let bytes = ALLOCATOR.peak_usage() - before;
    match events.last() {
        Some(ReplyEvent::End(ended)) => (ended.clone().map(drop), bytes),
        other => panic!("{name}: {other:?}"),
    }
}

#[tokio::test]
async fn values_of_json_are_charged_as_what_they_become() {
    let world = World::new();
    let workflow = world.load(guest("charged")).await;
    for name in ["tools", "calls"] {
        for unit in [
            "0",
            "[]",
            "{}",
            r#""""#,
            r#"{"":0}"#,
            r#"{"a":{"b":[1,2]}}"#,
        ] {
            let count = 400_000 / (unit.len() + 1);
            let parameters = serde_json::json!({"count": count, "unit": unit}).to_string();
            let what = format!("{name} of {count} times {unit}");

            // Too much for its limit: refused before it is made.
            let bytes_max = 8 << 20;
            let asked = (name, &*parameters);
            let (ended, bytes) = peak(&world, &workflow, asked, bytes_max).await;
            let refused = Err(CallError::MemoryLimit { bytes_max });
            assert_eq!(ended, refused, "{what}");
            assert!(bytes < bytes_max, "{what}: {bytes} bytes to refuse it");

            // With just enough, give or take a quarter.
            let mut bytes_max = bytes_max;
            let bytes = loop {
                bytes_max += bytes_max / 4;
                match peak(&world, &workflow, asked, bytes_max).await {
                    (Ok(()), bytes) => break bytes,
                    (ended, _) => assert_eq!(ended, Err(CallError::MemoryLimit { bytes_max })),
                }
            };
            assert!(bytes <= bytes_max, "{what}: {bytes} of {bytes_max} bytes");
        }
    }
}
