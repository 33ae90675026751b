//! The good cases: the ready-made components, the SDK's functions, streaming, and inert WASI.

#![allow(clippy::unwrap_used, reason = "in a test it is an assertion")]

mod common;

use common::{World, call, chat, collect, guest, prebuilt, request, text};
use realm_sandbox::engine::scripted::Script;
use realm_sandbox::engine::{Policy, StopReason, Usage};
use realm_sandbox::{
    CallError, CallRequest, GuestError, Limits, MemoryCharge, Prompt, ReplyEvent, RequestKind,
    SandboxConfig,
};
use serde_json::Value;
use std::time::Duration;

fn greedy(max_tokens: u32) -> Policy {
    Policy {
        max_tokens: Some(max_tokens),
        temperature: 0.0,
        ..Policy::default()
    }
}

fn usage(events: &[ReplyEvent]) -> Usage {
    match events.last() {
        Some(ReplyEvent::End(Ok(usage))) => *usage,
        other => panic!("{other:?} in {events:?}"),
    }
}

fn json(events: &[ReplyEvent]) -> Value {
    match events {
        [ReplyEvent::Json(value), ReplyEvent::End(Ok(_))] => serde_json::from_str(value).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn passthrough_streams_what_the_model_says() {
    let world = World::with(
        Script::Reply("Paris it is.".into()),
        SandboxConfig::default(),
    );
    let workflow = world.load(prebuilt("passthrough")).await;
    let tenant = world.tenant(1, Limits::default());
    let description = world.sandbox.describe(&workflow, &tenant).await.unwrap();
    assert!(description.chat && description.completion && description.functions.is_empty());

    let events = collect(world.sandbox.invoke(
        &workflow,
        &tenant,
        chat("The capital?", greedy(100)),
    ))
    .await;
    assert_eq!(text(&events, 0), "Paris it is.");
    assert!(events.contains(&ReplyEvent::ChoiceFinished {
        choice: 0,
        reason: StopReason::EndOfTurn
    }));
    assert_eq!(usage(&events).completion, 12);
    assert!(usage(&events).prompt > 12, "{events:?}");
    assert_eq!(tenant.memory.bytes(), 0);
    world.all_free().await;
}

#[tokio::test]
async fn several_choices_share_one_prompt() {
    let world = World::new();
    let workflow = world.load(prebuilt("passthrough")).await;
    let tenant = world.tenant(1, Limits::default());
    let one = collect(
        world
            .sandbox
            .invoke(&workflow, &tenant, chat("hello", greedy(5))),
    )
    .await;
    let three = CallRequest {
        choices: 3,
        ..chat("hello", greedy(5))
    };
    let three = collect(world.sandbox.invoke(&workflow, &tenant, three)).await;
    for choice in 0..3 {
        assert_eq!(text(&three, choice), text(&one, 0));
        assert!(three.contains(&ReplyEvent::ChoiceFinished {
            choice,
            reason: StopReason::MaxTokens
        }));
    }
    assert_eq!(
        usage(&three).prompt,
        usage(&one).prompt,
        "a shared prompt counts once"
    );
    assert_eq!(usage(&three).completion, 15);
    world.all_free().await;
}

#[tokio::test]
async fn equal_seeds_differ_between_choices_and_repeat_between_calls() {
    let world = World::with(
        Script::Custom(std::sync::Arc::new(|_| 97)),
        SandboxConfig::default(),
    );
    let workflow = world.load(prebuilt("passthrough")).await;
    let tenant = world.tenant(1, Limits::default());
    // So hot that the script's one token is not sure any more.
    let policy = Policy {
        seed: Some(7),
        temperature: 100.0,
        max_tokens: Some(12),
        ignore_eos: true,
        ..Policy::default()
    };
    let ask = || CallRequest {
        choices: 2,
        ..chat("hello", policy.clone())
    };
    let first = collect(world.sandbox.invoke(&workflow, &tenant, ask())).await;
    let again = collect(world.sandbox.invoke(&workflow, &tenant, ask())).await;
    assert_eq!(tokens(&first, 0), tokens(&again, 0));
    assert_eq!(tokens(&first, 1), tokens(&again, 1));
    assert_ne!(tokens(&first, 0), tokens(&first, 1));
}

fn tokens(events: &[ReplyEvent], wanted: u32) -> Vec<u32> {
    let of = |event: &ReplyEvent| match event {
        ReplyEvent::Delta { choice, tokens, .. } if *choice == wanted => tokens.clone(),
        _ => Vec::new(),
    };
    events.iter().flat_map(of).collect()
}

#[tokio::test]
async fn completions_take_text_and_tokens_and_echo_them() {
    let world = World::with(Script::Reply("abc".into()), SandboxConfig::default());
    let workflow = world.load(prebuilt("passthrough")).await;
    let tenant = world.tenant(1, Limits::default());
    let ask = async |prompt: Prompt, echo: bool| {
        let asked = request(RequestKind::Completion { prompt, echo }, greedy(10));
        text(
            &collect(world.sandbox.invoke(&workflow, &tenant, asked)).await,
            0,
        )
    };
    assert_eq!(ask(Prompt::Text("say: ".into()), false).await, "abc");
    assert_eq!(ask(Prompt::Text("say: ".into()), true).await, "say: abc");
    let of_tokens = async |echo| ask(Prompt::Tokens(vec![u32::from(b'a')]), echo).await;
    assert_eq!(of_tokens(false).await, "bc");
    assert_eq!(of_tokens(true).await, "abc");
    let refused = request(
        RequestKind::Completion {
            prompt: Prompt::Tokens(vec![9_999]),
            echo: false,
        },
        greedy(1),
    );
    let events = collect(world.sandbox.invoke(&workflow, &tenant, refused)).await;
    assert!(
        matches!(
            &events[..],
            [ReplyEvent::End(Err(CallError::Guest(GuestError::Invalid(
                _
            ))))]
        ),
        "{events:?}"
    );
}

#[tokio::test]
async fn log_probabilities_of_a_prompt_come_with_its_echo_or_on_their_own() {
    let world = World::with(Script::Reply("abc".into()), SandboxConfig::default());
    let workflow = world.load(prebuilt("passthrough")).await;
    let tenant = world.tenant(1, Limits::default());
    let ask = async |prompt: Prompt, echo, prompt_logprobs, max_tokens| {
        let policy = Policy {
            logprobs: Some(2),
            ..greedy(max_tokens)
        };
        let asked = CallRequest {
            prompt_logprobs,
            choices: 2,
            ..request(RequestKind::Completion { prompt, echo }, policy)
        };
        collect(world.sandbox.invoke(&workflow, &tenant, asked)).await
    };
    // "é" is two tokens of the scripted model, and what it would say after "ab" is "c".
    let prompt = || Prompt::Text("éabc".into());
    let events = ask(prompt(), true, None, 1).await;
    let echoes = events.iter().filter_map(|event| match event {
        ReplyEvent::Echo { text, tokens, .. } => Some((text.as_str(), tokens)),
        _ => None,
    });
    let echoes: Vec<_> = echoes.collect();
    assert_eq!(echoes.len(), 2, "one for each answer: {events:?}");
    for (text, tokens) in echoes {
        assert_eq!(text, "éabc");
        let places: Vec<usize> = tokens.iter().map(|token| token.offset).collect();
        assert_eq!(places, [0, 0, 1, 2, 3]);
        assert_eq!(tokens[0].scored, None, "nothing is before the first");
        let ranks = tokens[1..].iter().map(|token| {
            let scored = token.scored.as_ref().expect("all the others are scored");
            assert_eq!(scored.logprob.token, token.token);
            assert_eq!(scored.logprob.top.len(), 2);
            scored.rank
        });
        assert_eq!(ranks.collect::<Vec<u32>>(), [2, 1, 1, 1]);
    }
    assert_eq!(usage(&events).prompt, 5, "a prompt is counted once");

    let scored = ask(prompt(), false, Some(0), 0).await;
    let Some(ReplyEvent::Prompt(tokens)) = scored.first() else {
        panic!("{scored:?}");
    };
    assert!(tokens[1..].iter().all(|token| {
        token
            .scored
            .as_ref()
            .is_some_and(|it| it.logprob.top.is_empty())
    }));
    assert_eq!(
        (text(&scored, 0), usage(&scored).completion),
        (String::new(), 0)
    );
    assert!(tenant.memory.bytes() > 0, "what is kept of it is paid for");
    drop((events, scored));
    world.all_free().await;
    assert_eq!(tenant.memory.bytes(), 0);
}

#[tokio::test]
async fn who_asks_for_more_log_probabilities_than_there_is_memory_for_is_told() {
    let world = World::new();
    let workflow = world.load(prebuilt("passthrough")).await;
    let limits = Limits {
        memory_bytes_max: 3 << 20,
        ..Limits::default()
    };
    let tenant = world.tenant(1, limits);
    // 376 bytes each, and half as many again, at most, for the component's own memory.
    let ask = async |tokens: usize, prompt_logprobs| {
        let prompt = Prompt::Tokens(vec![u32::from(b'a'); tokens]);
        let kind = RequestKind::Completion {
            prompt,
            echo: false,
        };
        let asked = CallRequest {
            prompt_logprobs,
            ..request(kind, greedy(1))
        };
        let mut events = collect(world.sandbox.invoke(&workflow, &tenant, asked)).await;
        events.pop()
    };
    let is_fine = |end| matches!(end, Some(ReplyEvent::End(Ok(_))));
    assert!(is_fine(ask(9_000, None).await));
    assert!(is_fine(ask(1_000, Some(20)).await));
    let refused = ask(9_000, Some(20)).await;
    let Some(ReplyEvent::End(Err(CallError::Guest(GuestError::Invalid(what))))) = refused else {
        panic!("{refused:?}");
    };
    assert!(what.contains("9000 tokens with 20 alternatives"), "{what}");
    assert!(what.ends_with("a call has 3145728"), "{what}");
    // Where it is other calls that have it, there is more of it later.
    let all = MemoryCharge::new(&tenant.memory, (1 << 30) - (2 << 20)).unwrap();
    let refused = ask(5_000, Some(20)).await;
    assert!(
        matches!(
            refused,
            Some(ReplyEvent::End(Err(CallError::Guest(
                GuestError::Quota { .. }
            ))))
        ),
        "{refused:?}"
    );
    drop(all);
    let fits = ask(5_000, Some(20)).await;
    assert!(is_fine(fits.clone()), "{fits:?}");
    world.all_free().await;
    assert_eq!(tenant.memory.bytes(), 0);
}

#[tokio::test]
async fn a_workflow_that_knows_no_log_probabilities_of_prompts_fails_and_is_not_believed() {
    let world = World::new();
    let workflow = world.load(guest("echo")).await;
    let tenant = world.tenant(1, Limits::default());
    let asked = CallRequest {
        prompt_logprobs: Some(1),
        ..chat("hello", greedy(1))
    };
    let events = collect(world.sandbox.invoke(&workflow, &tenant, asked)).await;
    assert!(
        matches!(
            events.last(),
            Some(ReplyEvent::End(Err(CallError::Guest(
                GuestError::Unsupported(_)
            ))))
        ),
        "{events:?}"
    );
}

#[tokio::test]
async fn best_of_n_answers_with_its_likeliest_candidate() {
    let world = World::new();
    let workflow = world.load(prebuilt("best_of_n")).await;
    let tenant = world.tenant(1, Limits::default());
    let parameters =
        r#"{"prompt": "hello", "n": 3, "max_tokens": 6, "temperature": 2.0, "seed": 1}"#;
    let value = json(
        &collect(
            world
                .sandbox
                .invoke(&workflow, &tenant, call("best_of_n", parameters)),
        )
        .await,
    );
    let scores: Vec<f64> = value["scores"]
        .as_array()
        .unwrap()
        .iter()
        .map(|score| score.as_f64().unwrap())
        .collect();
    assert_eq!(scores.len(), 3);
    assert_eq!(
        value["mean_logprob"].as_f64().unwrap(),
        scores.iter().copied().fold(f64::MIN, f64::max)
    );
    assert!(value["text"].is_string());

    let events = collect(
        world
            .sandbox
            .invoke(&workflow, &tenant, chat("hello", greedy(6))),
    )
    .await;
    assert_eq!(text(&events, 0).len(), 6);
    assert_eq!(
        usage(&events).completion,
        24,
        "four candidates of six tokens are what it cost"
    );
    let wrong = call("best_of_n", r#"{"prompt": "hello", "n": 99}"#);
    let events = collect(world.sandbox.invoke(&workflow, &tenant, wrong)).await;
    assert!(
        matches!(
            &events[..],
            [ReplyEvent::End(Err(CallError::Guest(GuestError::Invalid(
                _
            ))))]
        ),
        "{events:?}"
    );
    world.all_free().await;
}

#[tokio::test]
async fn extract_returns_an_object_with_exactly_the_fields() {
    let said = "{\"name\": \"Ada\", \"more\": 1} and so on";
    let world = World::with(Script::Reply(said.into()), SandboxConfig::default());
    let workflow = world.load(prebuilt("extract")).await;
    let tenant = world.tenant(1, Limits::default());
    let parameters = r#"{"text": "Ada wrote it.", "fields": ["name", "year"]}"#;
    let value = json(
        &collect(
            world
                .sandbox
                .invoke(&workflow, &tenant, call("extract", parameters)),
        )
        .await,
    );
    assert_eq!(value, serde_json::json!({"name": "Ada", "year": null}));
    world.all_free().await;
}

#[tokio::test]
async fn extract_says_so_when_the_model_writes_no_json() {
    let world = World::with(
        Script::Reply("I would rather not.".into()),
        SandboxConfig::default(),
    );
    let workflow = world.load(prebuilt("extract")).await;
    let tenant = world.tenant(1, Limits::default());
    let parameters = r#"{"text": "Ada wrote it.", "fields": ["name"]}"#;
    let events = collect(
        world
            .sandbox
            .invoke(&workflow, &tenant, call("extract", parameters)),
    )
    .await;
    assert!(
        matches!(
            &events[..],
            [ReplyEvent::End(Err(CallError::Guest(
                GuestError::Unsupported(_)
            )))]
        ),
        "{events:?}"
    );
    let events = collect(world.sandbox.invoke(
        &workflow,
        &tenant,
        call("extract", r#"{"text": 1}"#),
    ))
    .await;
    assert!(
        matches!(
            &events[..],
            [ReplyEvent::End(Err(CallError::Guest(GuestError::Invalid(
                _
            ))))]
        ),
        "{events:?}"
    );
}

#[tokio::test]
async fn functions_echo_stream_generate_and_fail() {
    let world = World::new();
    let workflow = world.load(guest("echo")).await;
    let tenant = world.tenant(1, Limits::default());
    let run = async |name: &str, parameters: &str| {
        collect(
            world
                .sandbox
                .invoke(&workflow, &tenant, call(name, parameters)),
        )
        .await
    };
    assert_eq!(
        json(&run("echo", r#"{"a": [1, "ü"]}"#).await),
        serde_json::json!({"a": [1, "ü"]})
    );

    let counted = run("count", r#"{"to": 100}"#).await;
    assert_eq!(counted.len(), 102, "a client that reads gets all of it");
    assert_eq!(counted[99], ReplyEvent::Json("100".into()));

    let generated = run("generate", r#"{"prompt": "hello"}"#).await;
    assert_eq!(text(&generated, 0).len(), 8);
    assert_eq!(
        usage(&generated),
        Usage {
            prompt: 5,
            cached: 0,
            completion: 8
        }
    );

    // All letters are stops, and the model says nothing else: until there are three tokens it has to.
    let letters: Vec<u32> = (b'a'..=b'z').map(u32::from).collect();
    let least = format!(r#"{{"prompt": "hello", "min_tokens": 3, "stop_tokens": {letters:?}}}"#);
    let generated = run("generate", &least).await;
    // Bytes by chance: two of them may be one character.
    let said = text(&generated, 0);
    assert!(!said.is_empty() && !said.contains(|char: char| char.is_ascii_lowercase()));
    assert_eq!(usage(&generated).completion, 3);
    let many = format!(r#"{{"prompt": "hello", "stop_tokens": {:?}}}"#, [1; 1025]);
    let refused = run("generate", &many).await;
    let [ReplyEvent::End(Err(CallError::Guest(GuestError::Invalid(what))))] = &refused[..] else {
        panic!("{refused:?}")
    };
    assert_eq!(
        what,
        "stop_token_ids has 1025 tokens, but at most 1024 are allowed"
    );

    let failed = run("fail", "{}").await;
    let error = CallError::Guest(GuestError::Invalid("as asked".into()));
    assert_eq!(error.code(), "invalid_request");
    assert_eq!(failed, [ReplyEvent::End(Err(error))]);

    for (error, code) in [
        ("internal", "guest_error"),
        ("overloaded", "guest_error"),
        ("deadline", "deadline_exceeded"),
    ] {
        let invented = run("invent", &format!(r#"{{"error": "{error}"}}"#)).await;
        let [ReplyEvent::End(Err(CallError::Guest(error)))] = &invented[..] else {
            panic!("{invented:?}")
        };
        assert_eq!(CallError::Guest(error.clone()).code(), code);
    }

    let unknown = run("nothing", "{}").await;
    let [ReplyEvent::End(Err(CallError::NoFunction { name, available }))] = &unknown[..] else {
        panic!("{unknown:?}")
    };
    assert_eq!(name, "nothing");
    assert_eq!(
        available,
        &["echo", "count", "generate", "fail", "invent", "log"]
    );

    assert_eq!(run("log", "{}").await.len(), 2);
    let lines = world.lines.0.lock().unwrap();
    assert!(
        lines
            .iter()
            .any(|(_, line)| line == "a line\\nwith a \\u{1b}[31mcontrol\\u{1b}[0m character"),
        "{lines:?}"
    );
}

#[tokio::test]
async fn an_answer_left_open_ends_with_its_author() {
    let world = World::new();
    let workflow = world.load(guest("echo")).await;
    let tenant = world.tenant(1, Limits::default());
    let events = collect(
        world
            .sandbox
            .invoke(&workflow, &tenant, chat("back to you", greedy(1))),
    )
    .await;
    assert_eq!(text(&events, 0), "back to you");
    assert_eq!(
        events[1],
        ReplyEvent::ChoiceFinished {
            choice: 0,
            reason: StopReason::EndOfTurn
        }
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_pool_is_an_answer_at_once() {
    let config = SandboxConfig {
        instances_max: 1,
        ..SandboxConfig::default()
    };
    let world = World::with(Script::Letters, config);
    let workflow = world.load(prebuilt("passthrough")).await;
    let tenant = world.tenant(1, Limits::default());
    let mut first = world
        .sandbox
        .invoke(&workflow, &tenant, chat("hello", Policy::default()));
    assert!(matches!(first.next().await, Some(ReplyEvent::Delta { .. })));
    let second = collect(
        world
            .sandbox
            .invoke(&workflow, &tenant, chat("hello", greedy(1))),
    )
    .await;
    let [ReplyEvent::End(Err(error))] = &second[..] else {
        panic!("{second:?}")
    };
    assert_eq!(error.code(), "busy");
    assert!(error.retry_after_ms().is_some());
    drop(first);
    let until = std::time::Instant::now() + Duration::from_secs(30);
    loop {
        let again = collect(
            world
                .sandbox
                .invoke(&workflow, &tenant, chat("hello", greedy(1))),
        )
        .await;
        if matches!(again.last(), Some(ReplyEvent::End(Ok(_)))) {
            break;
        }
        assert!(
            std::time::Instant::now() < until,
            "the slot of a dropped call does not come free"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    world.all_free().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_calls_run_at_once() {
    let world = World::new();
    let workflow = world.load(prebuilt("passthrough")).await;
    let tenant = world.tenant(1, Limits::default());
    let alone = text(
        &collect(
            world
                .sandbox
                .invoke(&workflow, &tenant, chat("hello", greedy(20))),
        )
        .await,
        0,
    );
    let calls: Vec<_> = (0..32)
        .map(|_| {
            collect(
                world
                    .sandbox
                    .invoke(&workflow, &tenant, chat("hello", greedy(20))),
            )
        })
        .collect();
    for call in calls {
        assert_eq!(text(&call.await, 0), alone);
    }
    assert_eq!(tenant.memory.bytes(), 0);
    world.all_free().await;
}

#[tokio::test]
async fn a_model_of_nobodys_is_denied() {
    let world = World::new();
    let workflow = world.load(prebuilt("passthrough")).await;
    let tenant = world.tenant(1, Limits::default());
    let asked = CallRequest {
        model: "another".into(),
        ..chat("hello", greedy(1))
    };
    let events = collect(world.sandbox.invoke(&workflow, &tenant, asked)).await;
    assert!(
        matches!(
            &events[..],
            [ReplyEvent::End(Err(CallError::Guest(GuestError::Denied(
                _
            ))))]
        ),
        "{events:?}"
    );
}

#[tokio::test]
async fn wasi_is_there_and_gives_nothing() {
    let world = World::new();
    let workflow = world.load(guest("wasi_probe")).await;
    let tenant = world.tenant(1, Limits::default());
    let first = json(
        &collect(
            world
                .sandbox
                .invoke(&workflow, &tenant, call("probe", "{}")),
        )
        .await,
    );
    for outside in [
        "read_file",
        "write_file",
        "list_root",
        "connect",
        "listen",
        "udp",
        "resolve",
    ] {
        assert!(
            first[outside].is_string(),
            "{outside} was not refused: {first}"
        );
    }
    assert_eq!(first["variables"], 0);
    assert_eq!(first["arguments"], 0);
    assert_eq!(first["stdin"], 0);
    assert!(first["clock_step_us"].as_u64().unwrap() >= 5_000, "{first}");
    let second = json(
        &collect(
            world
                .sandbox
                .invoke(&workflow, &tenant, call("probe", "{}")),
        )
        .await,
    );
    assert_ne!(first["random"], second["random"]);
    let lines = world.lines.0.lock().unwrap();
    assert!(
        lines.iter().any(|(_, line)| line == "a line on stdout"),
        "{lines:?}"
    );
    assert!(
        lines.iter().any(|(_, line)| line == "a line on stderr"),
        "{lines:?}"
    );
}
