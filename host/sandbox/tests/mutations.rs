//! Damaged components and absurd values, from fixed seeds: each is refused, ends with an error of its own or does no harm,
//! and the host is never at fault.

#![allow(clippy::unwrap_used, reason = "in a test it is an assertion")]

mod common;

use common::{World, call, collect, guest, prebuilt};
use fastrand::Rng;
use realm_sandbox::{CallError, CallRequest, Limits, Rejected, ReplyEvent, Workflow};

/// Damaged uploads of each component. Most are refused at once; what is not has to be compiled.
const UPLOADS: u64 = 150;
/// Programs of random calls, and calls of each.
const PROGRAMS: u64 = 24;
const CALLS: u64 = 300;

/// Flips, overwrites, repeats, leaves out or cuts.
fn damage(random: &mut Rng, wasm: &mut Vec<u8>) {
    // Half of it in the first kilobytes: types, imports and the headers of sections.
    let end = match random.bool() {
        true => wasm.len().min(4096),
        false => wasm.len(),
    };
    let at = random.usize(..end);
    match random.u32(..6) {
        0 | 1 => wasm[at] ^= 1 << random.u32(..8),
        2 => wasm[at] = *random.choice(&[0x00, 0x7f, 0x80, 0xff]).unwrap_or(&0),
        // The largest number there is, in place of a count or a length.
        3 => drop(wasm.splice(at..at + 1, [0xff, 0xff, 0xff, 0xff, 0x0f])),
        4 => {
            let until = random.usize(at..(at + 64).min(wasm.len()));
            let piece = wasm[at..until].to_vec();
            drop(wasm.splice(at..at, piece));
        }
        _ => wasm.truncate(at),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_uploads_are_refused_or_do_no_harm() {
    let world = World::new();
    let tenant = world.tenant(1, Limits::default());
    for (name, good) in [("trap", guest("trap")), ("extract", prebuilt("extract"))] {
        let (mut refused, mut described) = (0, 0);
        for seed in 0..UPLOADS {
            let mut random = Rng::with_seed(seed);
            let mut wasm = good.clone();
            damage(&mut random, &mut wasm);
            let artifact = match world.sandbox.compile(wasm).await {
                Ok(artifact) => artifact,
                Err(Rejected::Host(error)) => panic!("{name}, {seed}: {error}"),
                Err(_) => {
                    refused += 1;
                    continue;
                }
            };
            let workflow = world.sandbox.load("damaged", &artifact).unwrap();
            match world.sandbox.describe(&workflow, &tenant).await {
                Err(CallError::Internal { detail }) => panic!("{name}, {seed}: {detail}"),
                _ => described += 1,
            }
            assert_eq!(tenant.memory.bytes(), 0, "{name}, {seed}");
        }
        // Damage of both kinds was tried.
        assert!(refused > 20, "{name}: {refused} of {UPLOADS} were refused");
        assert!(described > 3, "{name}: {described} of {UPLOADS} were run");
    }
}

async fn random_calls(world: &World, workflow: &Workflow, seed: u64, limits: Limits) {
    let tenant = world.tenant(1, limits);
    let parameters = format!(r#"{{"seed": {seed}, "count": {CALLS}}}"#);
    let request = CallRequest {
        prompt_logprobs: seed.is_multiple_of(2).then_some(3),
        ..call("go", &parameters)
    };
    let events = collect(world.sandbox.invoke(workflow, &tenant, request)).await;
    match events.last() {
        Some(ReplyEvent::End(Err(CallError::Internal { detail }))) => panic!("{seed}: {detail}"),
        Some(ReplyEvent::End(_)) => {}
        other => panic!("{seed}: {other:?}"),
    }
    // The tokens of a prompt are paid for as long as anybody has them.
    drop(events);
    assert_eq!(tenant.memory.bytes(), 0, "{seed} left memory behind");
    world.all_free().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn absurd_values_are_refused_and_leave_nothing_behind() {
    let world = World::new();
    let workflow = world.load(guest("random_calls")).await;
    for seed in 0..PROGRAMS {
        // Now and then so little memory that any function may be the one that finds none left.
        let memory_bytes_max = match seed % 3 {
            0 => 3 << 20,
            1 => 8 << 20,
            _ => 64 << 20,
        };
        let limits = Limits {
            memory_bytes_max,
            cpu_ms_max: 20_000,
            ..Limits::default()
        };
        random_calls(&world, &workflow, seed, limits).await;
    }
}
