//! One batch for everybody: eight streams together are more than twice as fast as one, and say the same.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use realm_tests::http::Http;
use realm_tests::server::{MODEL, Server, chat_body};
use std::time::Instant;

const QUESTIONS: [&str; 8] = [
    "Tell me about the history of Rome.",
    "Explain how a bicycle stays upright.",
    "Describe the water cycle in detail.",
    "Write a short story about a lighthouse.",
    "What are the planets of the solar system?",
    "How is bread made?",
    "Explain photosynthesis to a child.",
    "Tell me about the ocean and its animals.",
];
const TOKENS: u32 = 96;
const ROUNDS: usize = 3;

/// What one pass over the questions gave.
struct Pass {
    texts: Vec<String>,
    tokens_per_second: f64,
}

#[test]
fn eight_concurrent_requests_are_more_than_twice_as_fast_as_one_and_say_the_same() -> Result<()> {
    let server = Server::start()?;
    let tenant = server.tenant("acme")?;
    ask(&tenant.http, QUESTIONS[0])?; // warms pages and the component's pool
    let (mut alone, mut together) = (Vec::new(), Vec::new());
    // Alternating, because a machine's speed drifts by more than what is measured.
    for _ in 0..ROUNDS {
        alone.push(one_at_a_time(&tenant.http)?);
        together.push(all_at_once(&tenant.http)?);
    }
    for pass in alone.iter().chain(&together) {
        assert_eq!(
            pass.texts, alone[0].texts,
            "a sequence's tokens depend on nothing else in the batch"
        );
    }
    let (one, eight) = (median(&alone), median(&together));
    println!(
        "one stream {one:.1} tokens/s, eight {eight:.1} tokens/s: {:.2} times",
        eight / one
    );
    assert!(
        eight > 2.0 * one,
        "eight streams give {eight:.1} tokens/s, one gives {one:.1}"
    );
    server.until_idle()
}

fn one_at_a_time(http: &Http) -> Result<Pass> {
    let start = Instant::now();
    let answers = QUESTIONS
        .iter()
        .map(|question| ask(http, question))
        .collect::<Result<Vec<_>>>()?;
    Ok(pass(answers, start))
}

fn all_at_once(http: &Http) -> Result<Pass> {
    let start = Instant::now();
    let answers = std::thread::scope(|scope| {
        let threads = QUESTIONS.map(|question| scope.spawn(move || ask(http, question)));
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic in a client thread"))
            .collect::<Result<Vec<_>>>()
    })?;
    Ok(pass(answers, start))
}

fn ask(http: &Http, question: &str) -> Result<(String, u64)> {
    let answer = http
        .post("/v1/chat/completions", &chat_body(MODEL, question, TOKENS))?
        .ok()?;
    let text = answer["choices"][0]["message"]["content"]
        .as_str()
        .context("an answer has content")?;
    let tokens = answer["usage"]["completion_tokens"]
        .as_u64()
        .context("an answer counts its tokens")?;
    Ok((text.to_owned(), tokens))
}

fn pass(answers: Vec<(String, u64)>, start: Instant) -> Pass {
    let tokens: u64 = answers.iter().map(|(_, tokens)| tokens).sum();
    let tokens_per_second = tokens as f64 / start.elapsed().as_secs_f64();
    Pass {
        texts: answers.into_iter().map(|(text, _)| text).collect(),
        tokens_per_second,
    }
}

fn median(passes: &[Pass]) -> f64 {
    let mut rates: Vec<f64> = passes.iter().map(|pass| pass.tokens_per_second).collect();
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}
