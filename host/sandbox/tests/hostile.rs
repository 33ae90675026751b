//! Hostile guests: each ends in its own typed error, within its budget, while another tenant's stream goes on; and
//! afterwards every block and every byte is back.

#![allow(clippy::unwrap_used, reason = "in a test it is an assertion")]

mod common;

use common::{Neighbour, World, call, chat, collect, guest};
use realm_sandbox::engine::Policy;
use realm_sandbox::{CallError, CallRequest, GuestError, Limits, LogLevel, Rejected, ReplyEvent};
use std::time::{Duration, Instant};

/// Small budgets, so that the tests are quick. The wall is far off: where it is hit, a test says so.
fn limits() -> Limits {
    Limits {
        memory_bytes_max: 16 << 20,
        cpu_ms_max: 200,
        wall_ms_max: 20_000,
        ..Limits::default()
    }
}

/// Runs a guest beside a neighbour and returns how it ended, and what was logged.
async fn run(
    name: &str,
    limits: Limits,
    request: CallRequest,
) -> (Vec<ReplyEvent>, Vec<(LogLevel, String)>) {
    let world = World::new();
    let neighbour = Neighbour::start(&world).await;
    let workflow = world.load(guest(name)).await;
    let tenant = world.tenant(1, limits);
    let before = neighbour.deltas();
    let events = collect(world.sandbox.invoke(&workflow, &tenant, request)).await;
    assert_eq!(tenant.memory.bytes(), 0, "{name} left memory behind");
    neighbour.stays_well(before).await;
    world.all_free().await;

    // The same sandbox serves the same tenant afterwards.
    let echo = world.load(guest("echo")).await;
    let after = collect(world.sandbox.invoke(&echo, &tenant, call("echo", "7"))).await;
    assert_eq!(after[0], ReplyEvent::Json("7".into()), "after {name}");
    let lines = world.lines.0.lock().unwrap().clone();
    (events, lines)
}

/// Runs a guest's chat and compares how it ended.
async fn check(name: &str, limits: Limits, expected: CallError) {
    let (events, lines) = run(name, limits, chat("hello", Policy::default())).await;
    assert_eq!(
        events.last(),
        Some(&ReplyEvent::End(Err(expected))),
        "{name}: {lines:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loop_ends_with_its_processor_budget() {
    check("loop_forever", limits(), CallError::CpuBudget { ms: 200 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_host_calls_is_charged_as_processor_time() {
    check("hostcall_flood", limits(), CallError::CpuBudget { ms: 200 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_ends_at_its_limit() {
    check(
        "allocate_forever",
        limits(),
        CallError::MemoryLimit {
            bytes_max: 16 << 20,
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_host_holds_for_a_guest_counts_as_its_memory() {
    for name in ["policy_flood", "emit_flood"] {
        let limits = Limits {
            cpu_ms_max: 20_000,
            ..limits()
        };
        let bytes_max = limits.memory_bytes_max;
        let world = World::new();
        let neighbour = Neighbour::start(&world).await;
        let workflow = world.load(guest(name)).await;
        let tenant = world.tenant(1, limits);
        let before = neighbour.deltas();
        let invocation = world
            .sandbox
            .invoke(&workflow, &tenant, chat("hello", Policy::default()));
        // Nobody reads: it ends when it has taken all that it can get. What waits to be read is charged beyond that.
        world.call_failed().await;
        let kept = tenant.memory.bytes();
        assert!(kept <= bytes_max, "{name}: {kept} bytes");
        assert_eq!(kept > 0, name == "emit_flood", "{name}: {kept} bytes");
        let events = collect(invocation).await;
        let expected = CallError::MemoryLimit { bytes_max };
        assert_eq!(
            events.last(),
            Some(&ReplyEvent::End(Err(expected))),
            "{name}"
        );
        assert_eq!(tenant.memory.bytes(), 0, "{name} left memory behind");
        neighbour.stays_well(before).await;
        world.all_free().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_counted_by_the_engine_whatever_a_guest_says() {
    let world = World::new();
    let limits = Limits {
        cpu_ms_max: 20_000,
        ..limits()
    };
    let tenant = world.tenant(1, limits);
    let forger = world.load(guest("emit_flood")).await;
    let request = chat("hello", Policy::default());
    let mut invocation = world.sandbox.invoke(&forger, &tenant, request);
    assert!(invocation.next().await.is_some());
    assert_eq!(invocation.usage().completion, 0, "no model made them");
    drop(invocation);

    let hider = world.load(guest("charged")).await;
    let mut invocation = world
        .sandbox
        .invoke(&hider, &tenant, call("fails", r#"{"count": 9}"#));
    let last = invocation.next().await;
    let failed = CallError::Guest(GuestError::Invalid("as asked".into()));
    assert_eq!(last, Some(ReplyEvent::End(Err(failed))));
    let usage = invocation.usage();
    assert_eq!((usage.prompt, usage.completion), (3, 9));

    let endless = world.load(guest("never_read")).await;
    let request = chat("hello", Policy::default());
    let invocation = world.sandbox.invoke(&endless, &tenant, request);
    // Before anybody has read a word of it.
    while invocation.usage().completion == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Calls a function of the guest `charged` with so much memory and returns how it ended.
async fn charged(name: &str, parameters: &str, memory_bytes_max: usize) -> Result<(), CallError> {
    let limits = Limits {
        memory_bytes_max,
        cpu_ms_max: 20_000,
        ..limits()
    };
    let world = World::new();
    let workflow = world.load(guest("charged")).await;
    let tenant = world.tenant(1, limits);
    let invocation = world
        .sandbox
        .invoke(&workflow, &tenant, call(name, parameters));
    let events = collect(invocation).await;
    assert_eq!(tenant.memory.bytes(), 0, "{name} left memory behind");
    world.all_free().await;
    match events.last() {
        Some(ReplyEvent::End(ended)) => ended.clone().map(drop),
        other => panic!("{name}: {other:?}"),
    }
}

const MIB: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_run_may_say_is_charged_with_its_log_probabilities() {
    let bytes_max = 8 * MIB;
    let plain = charged("runs", r#"{"count": 30}"#, bytes_max).await;
    assert_eq!(plain, Ok(()));
    let with_logprobs = charged("runs", r#"{"count": 30, "logprobs": 20}"#, bytes_max).await;
    assert_eq!(with_logprobs, Err(CallError::MemoryLimit { bytes_max }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_set_aside_and_not_used_is_given_back() {
    // Each would come to 10 MB and more if anything of it stayed.
    for name in ["endings", "refused"] {
        let ended = charged(name, r#"{"count": 60}"#, 6 * MIB).await;
        assert_eq!(ended, Ok(()), "{name}");
    }
    let rewound = charged("rewound", r#"{"count": 150}"#, 4 * MIB).await;
    assert_eq!(rewound, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forks_pay_for_what_they_share_when_their_parents_are_gone() {
    let bytes_max = 2 * MIB;
    let few = charged("orphans", r#"{"count": 20}"#, bytes_max).await;
    assert_eq!(few, Ok(()));
    let many = charged("orphans", r#"{"count": 150}"#, bytes_max).await;
    assert_eq!(many, Err(CallError::MemoryLimit { bytes_max }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_out_of_range_is_named_and_costs_nothing() {
    for (name, count, said) in [
        ("logprobs", u32::MAX, "at most 20"),
        ("logprobs", 21, "21 alternatives"),
        ("stop", 60_000, "a stop string has 60000 bytes"),
        ("stop", 257, "a stop string has 257 bytes"),
        ("stops", 5_000, "stop has 5000 strings"),
        ("stops", 17, "stop has 17 strings"),
        ("bias", 5_000, "logit_bias has 5000 entries"),
    ] {
        let parameters = format!(r#"{{"count": {count}}}"#);
        let ended = charged(name, &parameters, 4 * MIB).await;
        let Err(CallError::Guest(GuestError::Invalid(message))) = &ended else {
            panic!("{name} {count}: {ended:?}")
        };
        assert!(message.contains(said), "{name} {count}: {message}");
    }
    for (name, count) in [
        ("logprobs", 20),
        ("stop", 256),
        ("stops", 16),
        ("bias", 259),
    ] {
        let parameters = format!(r#"{{"count": {count}}}"#);
        let ended = charged(name, &parameters, 4 * MIB).await;
        assert_eq!(ended, Ok(()), "{name} {count}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recursion_ends_with_the_guests_stack() {
    check("recurse_flat", limits(), CallError::StackOverflow).await;
    check("recurse_forever", limits(), CallError::StackOverflow).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_is_a_trap_and_its_message_is_logged() {
    let (events, lines) = run("trap", limits(), chat("hello", Policy::default())).await;
    assert!(
        matches!(
            events.last(),
            Some(ReplyEvent::End(Err(CallError::Trap { .. })))
        ),
        "{events:?}"
    );
    assert!(
        lines
            .iter()
            .any(|(_, line)| line.contains("the guest gives up")),
        "{lines:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_nobody_reads_ends_with_the_deadline() {
    let limits = Limits {
        cpu_ms_max: 20_000,
        wall_ms_max: 400,
        ..limits()
    };
    check("never_read", limits, CallError::Deadline { ms: 400 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clients_deadline_counts_when_it_is_the_shorter_one() {
    let limits = Limits {
        cpu_ms_max: 20_000,
        ..limits()
    };
    let request = CallRequest {
        deadline: Duration::from_millis(300),
        ..chat("hello", Policy::default())
    };
    let (events, _) = run("loop_forever", limits, request).await;
    assert_eq!(
        events,
        [ReplyEvent::End(Err(CallError::Deadline { ms: 300 }))]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_is_no_answer() {
    check("never_reply", limits(), CallError::NoReply).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forks_are_counted() {
    let limits = Limits {
        handles_max: 100,
        cpu_ms_max: 10_000,
        ..limits()
    };
    check(
        "fork_bomb",
        limits,
        CallError::HandleLimit { handles_max: 100 },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handles_are_counted() {
    let limits = Limits {
        handles_max: 100,
        ..limits()
    };
    check(
        "handle_flood",
        limits,
        CallError::HandleLimit { handles_max: 100 },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_log_lines_is_cut_and_the_cut_is_noted() {
    let limits = Limits {
        log_bytes_max: 10_000,
        ..limits()
    };
    let (events, lines) = run("log_flood", limits, chat("hello", Policy::default())).await;
    assert_eq!(
        events,
        [ReplyEvent::End(Err(CallError::CpuBudget { ms: 200 }))]
    );
    let written = lines
        .iter()
        .filter(|(_, line)| line.starts_with("xxx"))
        .count();
    assert_eq!(written, 9, "{} lines", lines.len());
    assert_eq!(
        lines
            .iter()
            .filter(|(_, line)| line.contains("dropped"))
            .count(),
        1
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_huge_string_is_refused_before_it_is_copied() {
    let limits = Limits {
        memory_bytes_max: 200 << 20,
        cpu_ms_max: 10_000,
        ..limits()
    };
    check(
        "huge_string",
        limits,
        CallError::ArgumentLimit { bytes_max: 4 << 20 },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_stops_the_writer_until_the_deadline() {
    let world = World::new();
    let neighbour = Neighbour::start(&world).await;
    let workflow = world.load(guest("write_forever")).await;
    let tenant = world.tenant(
        1,
        Limits {
            wall_ms_max: 400,
            ..limits()
        },
    );
    let invocation = world
        .sandbox
        .invoke(&workflow, &tenant, chat("hello", Policy::default()));
    world.call_failed().await;
    // The component's own memory is gone with it; the replies that wait to be read are held and charged until they are.
    let queued_bytes_max = 64 << 10;
    assert!(tenant.memory.bytes() <= queued_bytes_max);
    let events = collect(invocation).await;
    assert!(
        events.len() <= 17,
        "{} events were kept for a client that does not read",
        events.len()
    );
    assert_eq!(
        events.last(),
        Some(&ReplyEvent::End(Err(CallError::Deadline { ms: 400 })))
    );
    assert_eq!(tenant.memory.bytes(), 0);
    neighbour.stays_well(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_use_is_a_typed_error_each_time() {
    let (events, lines) = run("use_after_end", limits(), chat("hello", Policy::default())).await;
    assert!(
        matches!(events.last(), Some(ReplyEvent::End(Ok(_)))),
        "{events:?} {lines:?}"
    );
    assert_eq!(common::text(&events, 0), "said");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging_up_frees_everything() {
    let world = World::new();
    for name in ["never_read", "loop_forever", "fork_bomb"] {
        let workflow = world.load(guest(name)).await;
        let limits = Limits {
            cpu_ms_max: 20_000,
            handles_max: 100_000,
            ..limits()
        };
        let tenant = world.tenant(1, limits);
        let invocation = world
            .sandbox
            .invoke(&workflow, &tenant, chat("hello", Policy::default()));
        while tenant.memory.bytes() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(invocation);
        let until = Instant::now() + Duration::from_secs(30);
        while tenant.memory.bytes() > 0 {
            assert!(Instant::now() < until, "{name} still holds its memory");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        world.all_free().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn describing_has_budgets_too() {
    let world = World::new();
    let tenant = world.tenant(1, Limits::default());
    let workflow = world.load(guest("loop_in_describe")).await;
    let described = world.sandbox.describe(&workflow, &tenant).await;
    assert_eq!(described, Err(CallError::CpuBudget { ms: 200 }));
    let workflow = world.load(guest("bad_describe")).await;
    let described = world.sandbox.describe(&workflow, &tenant).await;
    assert!(
        matches!(described, Err(CallError::BadDescription(_))),
        "{described:?}"
    );
    assert_eq!(tenant.memory.bytes(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_memory_is_one_sum_over_its_calls() {
    let world = World::new();
    let workflow = world.load(guest("loop_forever")).await;
    let mut tenant = world.tenant(1, limits());
    tenant.memory = std::sync::Arc::new(realm_sandbox::TenantMemory::new(1 << 20));
    let small = world
        .sandbox
        .invoke(&workflow, &tenant, chat("hello", Policy::default()));
    assert_eq!(
        collect(small).await,
        [ReplyEvent::End(Err(CallError::MemoryLimit {
            bytes_max: 1 << 20
        }))],
        "a guest begins with more than a megabyte"
    );
    assert_eq!(tenant.memory.bytes(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_workflow_is_refused_at_upload() {
    let world = World::new();
    let refused = async |wasm: Vec<u8>| world.sandbox.compile(wasm).await.unwrap_err();

    let error = refused(guest("ungranted_import")).await;
    assert!(
        matches!(&error, Rejected::Import { name, .. } if name == "other:host/secrets"
        || name == "other:host/secrets@1.0.0"),
        "{error}"
    );

    let good = guest("echo");
    let error = refused(good[..good.len() / 2].to_vec()).await;
    assert!(matches!(error, Rejected::Malformed(_)), "{error}");
    let error = refused(b"PK\x03\x04 a zip file".to_vec()).await;
    assert!(matches!(error, Rejected::Malformed(_)), "{error}");
    let error = refused(Vec::new()).await;
    assert!(matches!(error, Rejected::Malformed(_)), "{error}");
    let error = refused(b"\0asm\x01\0\0\0".to_vec()).await;
    assert!(error.to_string().contains("core module"), "{error}");
    let error = refused(b"\0asm\x0d\0\x01\0".to_vec()).await;
    assert!(
        error
            .to_string()
            .contains("does not export the function describe"),
        "{error}"
    );
    let error = refused(vec![0; (16 << 20) + 1]).await;
    assert!(matches!(error, Rejected::TooLarge { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_artifact_is_run_only_with_this_installations_tag() {
    let world = World::new();
    let artifact = world.sandbox.compile(guest("echo")).await.unwrap();
    for at in [
        0,
        8,
        20,
        40,
        artifact.as_bytes().len() / 2,
        artifact.as_bytes().len() - 1,
    ] {
        let mut bytes = artifact.as_bytes().to_vec();
        bytes[at] ^= 1;
        let damaged = realm_sandbox::Artifact::from_bytes(bytes);
        assert!(world.sandbox.load("guest", &damaged).is_err(), "byte {at}");
    }
    let cut = realm_sandbox::Artifact::from_bytes(artifact.as_bytes()[..30].to_vec());
    assert!(world.sandbox.load("guest", &cut).is_err());

    let other = realm_sandbox::SandboxConfig {
        cache_key: [7; 32],
        ..Default::default()
    };
    let other = World::with(realm_sandbox::engine::scripted::Script::Letters, other);
    assert!(
        other.sandbox.load("guest", &artifact).is_err(),
        "another installation's key"
    );
    assert!(world.sandbox.load("guest", &artifact).is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_the_contract_cannot_express_is_refused() {
    let world = World::new();
    let echo = world.load(guest("echo")).await;
    let tenant = world.tenant(1, limits());
    let refused = async |request: CallRequest| {
        let events = collect(world.sandbox.invoke(&echo, &tenant, request)).await;
        assert!(
            matches!(
                &events[..],
                [ReplyEvent::End(Err(CallError::Guest(GuestError::Invalid(
                    _
                ))))]
            ),
            "{events:?}"
        );
    };
    refused(CallRequest {
        choices: 0,
        ..chat("x", Policy::default())
    })
    .await;
    refused(CallRequest {
        choices: 1000,
        ..chat("x", Policy::default())
    })
    .await;
    refused(call("echo", "{not json")).await;
}
