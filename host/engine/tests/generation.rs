//! The whole engine on a real model: a group decoded together says what each of its jobs says alone.

mod common;

use common::block_on;
use realm_engine::text::{Chat, ChatMessage, Specials};
use realm_engine::{
    Account, Client, Engine, EngineConfig, Event, Finish, Gguf, Job, ModelOptions, Owner, Policy,
    Run, Sequence, StopReason,
};

const OWNER: Owner = Owner {
    tenant: 1,
    weight: 1,
    kv_blocks_max: u32::MAX,
};

fn engine() -> Engine {
    let path = common::model_path("SmolLM2-135M-Instruct.Q4_1.gguf");
    let gguf = Gguf::open(&path).expect("the model file is good");
    let options = ModelOptions {
        kv_bytes_max: 64 << 20,
        ..ModelOptions::default()
    };
    let config = EngineConfig {
        step_tokens_max: 48, // small, so that prompts come in pieces beside decoding rows
        ..EngineConfig::default()
    };
    Engine::load(gguf, options, config).expect("the model loads")
}

fn greedy(max_tokens: u32) -> Policy {
    Policy {
        max_tokens: Some(max_tokens),
        temperature: 0.0,
        ..Policy::default()
    }
}

fn sequence(client: &Client, tokens: &[u32]) -> Sequence {
    let sequence = client
        .sequence(OWNER, &Account::new())
        .expect("there is room");
    sequence.append(tokens).expect("it fits");
    sequence
}

/// The jobs' whole answers.
fn answers(mut run: Run, jobs: usize) -> Vec<Event> {
    let mut answers = vec![Event::default(); jobs];
    while let Some(events) = block_on(run.next()) {
        for event in events {
            let answer = &mut answers[event.job as usize];
            answer.text.push_str(&event.text);
            answer.tokens.extend(event.tokens);
            answer.finished = event.finished;
        }
    }
    answers
}

fn start(client: &Client, sequences: &[Sequence], max_tokens: u32) -> Vec<Event> {
    let jobs = sequences
        .iter()
        .map(|sequence| Job {
            sequence,
            policy: greedy(max_tokens),
        })
        .collect();
    let run = client.start(jobs).expect("the jobs are good");
    answers(run, sequences.len())
}

#[test]
fn a_chat_is_answered_and_its_turn_ended() {
    let engine = engine();
    let client = engine.client();
    let message = ChatMessage::new("user", "Hi, who are you?");
    let prompt = client
        .text()
        .chat_tokens(&Chat::new([message]), usize::MAX)
        .expect("the template renders");
    let answers = start(&client, &[sequence(&client, &prompt)], 300);
    // However activations are rounded: other words may differ.
    assert!(answers[0].text.contains("help"), "{}", answers[0].text);
    let end = Some(Finish::Stopped(StopReason::EndOfTurn));
    assert_eq!(answers[0].finished, end, "{}", answers[0].text);
}

#[test]
fn a_group_says_what_each_of_it_says_alone() {
    let engine = engine();
    let client = engine.client();
    let prompts = [
        "The capital of France is",
        "Once upon a time there was a small house at the edge of a forest, and in it lived",
        "def fibonacci(n):",
        "1, 2, 3, 4,",
        "Water boils at",
    ];
    let encode = |text| {
        let tokens = client.text().encode(text, Specials::Literal, true, 100);
        tokens.expect("a short text")
    };
    let mut sequences: Vec<Sequence> = prompts
        .iter()
        .map(|prompt| sequence(&client, &encode(prompt)))
        .collect();
    // A fork of one of them, whose shared tail block is copied while the others decode.
    sequences.push(block_on(sequences[1].fork()).expect("forks"));
    let together = start(&client, &sequences, 24);
    for (prompt, together) in prompts.iter().zip(&together) {
        let alone = start(&client, &[sequence(&client, &encode(prompt))], 24);
        assert_eq!(alone[0].text, together.text, "{prompt}");
    }
    assert_eq!(together[5].tokens, together[1].tokens, "the fork");
}
