//! One batch for everybody: eight streams together take fewer than half the steps that they take one after another, and
//! say the same. What that is worth in tokens per second is measured in `bench/`.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use realm_tests::http::Http;
use realm_tests::server::{MODEL, Server, chat_body};

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
/// On a busy machine some clients may start late and share fewer steps, so that the best of a few passes counts.
const PASSES: usize = 3;

#[test]
fn eight_concurrent_requests_share_their_steps_and_say_the_same() -> Result<()> {
    let server = Server::start()?;
    let tenant = server.tenant("acme")?;
    let (alone, alone_steps) = counted(&server, || one_at_a_time(&tenant.http))?;
    let mut fewest = f64::INFINITY;
    for _ in 0..PASSES {
        let (together, steps) = counted(&server, || all_at_once(&tenant.http))?;
        assert_eq!(
            together, alone,
            "a sequence's tokens depend on nothing else in the batch"
        );
        fewest = fewest.min(steps);
    }
    println!("one after another {alone_steps} steps, eight together {fewest}");
    assert!(
        fewest >= f64::from(TOKENS),
        "a sequence gets one token a step, but {TOKENS} tokens took {fewest} steps"
    );
    assert!(
        2.0 * fewest < alone_steps,
        "eight streams together took {fewest} steps, one after another {alone_steps}"
    );
    server.until_idle()
}

/// What `work` gives, and how many steps the engine made for it.
fn counted(
    server: &Server,
    work: impl FnOnce() -> Result<Vec<String>>,
) -> Result<(Vec<String>, f64)> {
    server.until_idle()?;
    let before = server.metrics()?.steps()?;
    let answers = work()?;
    server.until_idle()?;
    Ok((answers, server.metrics()?.steps()? - before))
}

fn one_at_a_time(http: &Http) -> Result<Vec<String>> {
    QUESTIONS
        .iter()
        .map(|question| ask(http, question))
        .collect()
}

fn all_at_once(http: &Http) -> Result<Vec<String>> {
    std::thread::scope(|scope| {
        let threads = QUESTIONS.map(|question| scope.spawn(move || ask(http, question)));
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic in a client thread"))
            .collect()
    })
}

fn ask(http: &Http, question: &str) -> Result<String> {
    let answer = http
        .post("/v1/chat/completions", &chat_body(MODEL, question, TOKENS))?
        .ok()?;
    let text = answer["choices"][0]["message"]["content"].as_str();
    Ok(text.context("an answer has content")?.to_owned())
}
