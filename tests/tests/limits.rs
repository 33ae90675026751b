//! What a client is told at a limit, and that the place it waited for is there once another has left.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use realm_tests::http::{Http, Reply};
use realm_tests::server::{MODEL, Server, chat_body};
use realm_tests::socket::Socket;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A place is free again when the server has seen the hang-up.
const PLACE_WAIT: Duration = Duration::from_secs(60);

/// A stream that does not end by itself while the test looks.
fn long_stream() -> Value {
    let mut body = chat_body(MODEL, "Tell me about the history of Rome.", 1500);
    body["stream"] = json!(true);
    body["logit_bias"] = json!({"2": -100}); // never ends its turn
    body
}

/// Asks again until the answer is no refusal.
fn until_served(ask: impl Fn() -> Result<Reply>) -> Result<()> {
    let deadline = Instant::now() + PLACE_WAIT;
    loop {
        let reply = ask()?;
        if reply.status == 200 {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "still refused: {}", reply.text);
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn one_request_more_than_the_tenant_may_have_is_a_429_until_one_ends() -> Result<()> {
    let server = Server::start_configured("tenant_requests_max = 1\n")?;
    let (acme, globex) = (server.tenant("acme")?, server.tenant("globex")?);
    let mut stream = acme.http.stream("/v1/chat/completions", &long_stream())?;
    stream.next().context("the stream begins")??;
    let ask = |http: &Http| http.post("/v1/chat/completions", &chat_body(MODEL, "Hello", 1));
    let refused = ask(&acme.http)?;
    assert_eq!(
        (refused.status, refused.error_code().as_str()),
        (429, "rate_limit_exceeded"),
        "{}",
        refused.text
    );
    assert_eq!(refused.retry_after.as_deref(), Some("1"));
    assert_eq!(
        ask(&globex.http)?.status,
        200,
        "another tenant's is its own"
    );
    drop(stream);
    until_served(|| ask(&acme.http))
}

#[test]
fn a_body_too_large_is_a_413_on_either_plane() -> Result<()> {
    let server = Server::start_configured("upload_mib_max = 1\n")?;
    let tenant = server.tenant("acme")?;
    let chat = |bytes: usize| {
        let body = vec![b' '; bytes];
        tenant
            .http
            .send("POST", "/v1/chat/completions", "application/json", body)
    };
    let refused = chat((4 << 20) + 1)?;
    assert_eq!(
        (refused.status, refused.error_code().as_str()),
        (413, "request_too_large")
    );
    assert_eq!(chat(4 << 20)?.status, 400, "read, and no JSON");
    let refused = server.upload("acme", "large", &vec![0; (1 << 20) + 1])?;
    assert_eq!(
        (refused.status, refused.error_code().as_str()),
        (413, "request_too_large")
    );
    assert_eq!(
        server.upload("acme", "large", &vec![0; 1 << 20])?.status,
        422
    );
    Ok(())
}

#[test]
fn one_connection_more_than_there_may_be_is_a_503_until_one_ends() -> Result<()> {
    let server = Server::start_configured("connections_max = 3\n")?;
    let tenant = server.tenant("acme")?;
    // Idle ones would make room; these are in use.
    let in_use = (0..3)
        .map(|_| {
            let stream = server
                .http(Some(&tenant.key))
                .stream("/v1/chat/completions", &long_stream())?;
            Ok(stream)
        })
        .collect::<Result<Vec<_>>>()?;
    let ask = || server.http(None).get("/health");
    let refused = ask()?;
    assert_eq!(
        (refused.status, refused.error_code().as_str()),
        (503, "too_many_connections"),
        "{}",
        refused.text
    );
    assert_eq!(
        server.admin().get("/health")?.status,
        200,
        "the operator's are counted by themselves"
    );
    drop(in_use);
    until_served(ask)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_socket_more_than_the_tenant_may_have_is_refused_until_one_ends() -> Result<()> {
    let server = Server::start_configured("tenant_sockets_max = 1\n")?;
    let (acme, globex) = (server.tenant("acme")?, server.tenant("globex")?);
    let key = Some(acme.key.as_str());
    let mut first = Socket::connect(server.url(), key).await?;
    ensure!(
        Socket::connect(server.url(), key).await.is_err(),
        "by the header"
    );
    let auth = json!({"type": "auth", "api_key": acme.key});
    let mut second = Socket::connect(server.url(), None).await?;
    second.send(&auth).await?;
    assert_eq!(second.frame().await?["error"]["code"], "too_many_sockets");
    assert_eq!(second.next().await?, None, "and the connection is closed");
    first.send(&auth).await?;
    assert_eq!(
        first.frame().await?["type"],
        "auth_success",
        "the same tenant again takes no further place"
    );
    Socket::connect(server.url(), Some(&globex.key)).await?;

    drop(first);
    let deadline = Instant::now() + PLACE_WAIT;
    while Socket::connect(server.url(), key).await.is_err() {
        ensure!(Instant::now() < deadline, "the place does not come free");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

#[test]
fn a_server_is_ready_until_it_is_told_to_stop() -> Result<()> {
    let mut server = Server::start()?;
    let tenant = server.tenant("acme")?;
    let stranger = server.http(None);
    let ready = stranger.get("/ready")?;
    assert_eq!((ready.status, ready.json()), (200, json!({"ready": true})));

    let mut stream = tenant.http.stream("/v1/chat/completions", &long_stream())?;
    stream.next().context("the stream begins")??;
    server.signal(Signal::TERM)?;
    let deadline = Instant::now() + PLACE_WAIT;
    // A connection of its own each time: those that wait for a request end with the stop, also one just opened.
    let stopping = loop {
        match server.http(None).get("/ready") {
            Ok(reply) if reply.status != 200 => break reply,
            Ok(_) | Err(_) => ensure!(Instant::now() < deadline, "neither ready nor stopping"),
        }
    };
    assert_eq!(
        (stopping.status, stopping.json()),
        (503, json!({"ready": false}))
    );
    let refused = server
        .http(Some(&tenant.key))
        .post("/v1/chat/completions", &chat_body(MODEL, "Hello", 1))?;
    assert_eq!(
        (refused.status, refused.error_code().as_str()),
        (503, "stopping")
    );
    assert!(refused.retry_after.is_some());
    drop(stream);
    let status = server.wait(PLACE_WAIT)?;
    ensure!(status.success(), "the server ended with {status}");
    Ok(())
}
