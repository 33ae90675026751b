//! The ways a stream ends early: the client leaves, it takes nothing, or the server is told to stop.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use realm_tests::paths;
use realm_tests::server::{MODEL, Server, Tenant, chat_body};
use realm_tests::socket::Socket;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};

/// A stream long enough not to end by itself while the test looks.
fn long_stream() -> Value {
    let mut body = chat_body(
        MODEL,
        "Write a very long story about a lighthouse keeper and the sea.",
        1500,
    );
    body["stream"] = json!(true);
    body["logit_bias"] = json!({"2": -100}); // never ends its turn
    body
}

/// The request of `body`, byte for byte, for a client that then does as it likes.
fn request(tenant: &Tenant, body: &Value) -> String {
    let body = body.to_string();
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: realm\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        tenant.key,
        body.len()
    )
}

fn address(server: &Server) -> &str {
    server.url().trim_start_matches("http://")
}

#[test]
fn a_client_that_hangs_up_frees_its_blocks() -> Result<()> {
    let mut server = Server::start()?;
    let tenant = server.tenant("acme")?;
    server.until_idle()?;
    let mut streams = (0..3)
        .map(|_| tenant.http.stream("/v1/chat/completions", &long_stream()))
        .collect::<Result<Vec<_>>>()?;
    for stream in &mut streams {
        for _ in 0..3 {
            stream.next().context("the stream goes on")??;
        }
    }
    let running = server.until("three sequences run", |metrics| {
        metrics.sum("realm_sequences_running") == Some(3.0)
    })?;
    assert!(running.kv_blocks_held()? > 0.0);
    drop(streams);
    server.until_idle()?;
    let tokens = server
        .metrics()?
        .sum("realm_tokens_completion_total")
        .context("tokens are counted")?;
    assert!(
        tokens < 3.0 * 1000.0,
        "generation was cancelled and not finished: {tokens} tokens"
    );
    assert!(server.is_alive()?);
    Ok(())
}

#[test]
fn a_client_that_hangs_up_before_a_whole_answer_frees_its_blocks() -> Result<()> {
    let server = Server::start()?;
    let tenant = server.tenant("acme")?;
    let mut body = long_stream();
    body["stream"] = json!(false);
    let mut connection = std::net::TcpStream::connect(address(&server))?;
    std::io::Write::write_all(&mut connection, request(&tenant, &body).as_bytes())?;
    server.until("the sequence runs", |metrics| {
        metrics.sum("realm_sequences_running") == Some(1.0)
    })?;
    drop(connection);
    server.until_idle()?;
    let tokens = server.metrics()?.sum("realm_tokens_completion_total");
    ensure!(
        tokens.unwrap_or(0.0) < 1500.0,
        "it was cancelled and not finished: {tokens:?}"
    );
    Ok(())
}

/// A server that waits half a second for a client that takes nothing.
fn impatient() -> Result<Server> {
    Server::start_configured("write_ms_max = 500\n")
}

/// A connection that buffers next to nothing at its end, so that what is not read soon stops the writer.
async fn narrow(server: &Server) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(1024)?;
    Ok(socket.connect(address(server).parse()?).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_nothing_of_a_stream_is_hung_up_on() -> Result<()> {
    let server = impatient()?;
    let tenant = server.tenant("acme")?;
    let mut connection = narrow(&server).await?;
    let mut body = long_stream();
    body["logprobs"] = json!(true); // more bytes than the buffers on the way hold
    body["top_logprobs"] = json!(20);
    connection
        .write_all(request(&tenant, &body).as_bytes())
        .await?;
    server.until("the sequence runs", |metrics| {
        metrics.sum("realm_sequences_running") == Some(1.0)
    })?;
    server.until_idle()?;
    let tokens = server.metrics()?.sum("realm_tokens_completion_total");
    ensure!(
        tokens.context("tokens are counted")? < 1500.0,
        "it was cancelled and not finished: {tokens:?}"
    );
    drop(connection);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_takes_nothing_of_its_calls_is_hung_up_on() -> Result<()> {
    let server = impatient()?;
    let tenant = server.tenant("acme")?;
    server.deploy("acme", "echo", &paths::guest("echo")?)?;
    let connection = narrow(&server).await?;
    let mut socket = Socket::connect_over(connection, server.url(), Some(&tenant.key)).await?;
    let params = json!({"to": 100_000_000});
    socket
        .send(&json!({"id": "1", "function": "echo.count", "params": params}))
        .await?;
    server.until("the call runs", |metrics| {
        metrics.sum("realm_requests_in_flight") == Some(1.0)
    })?;
    server.until("the call is over", |metrics| {
        metrics.sum("realm_requests_in_flight") == Some(0.0)
    })?;
    drop(socket);
    Ok(())
}

#[test]
fn a_server_told_to_stop_finishes_the_stream_in_flight_and_exits_with_zero() -> Result<()> {
    let mut server = Server::start()?;
    let tenant = server.tenant("acme")?;
    let mut body = chat_body(MODEL, "Tell me about the history of Rome.", 64);
    let whole = tenant.http.post("/v1/chat/completions", &body)?.ok()?;
    body["stream"] = json!(true);
    let mut stream = tenant.http.stream("/v1/chat/completions", &body)?;
    let first = stream.next().context("the stream begins")??;
    server.signal(Signal::TERM)?;
    let text = realm_tests::http::delta_text(&first)? + &stream.text()?;
    assert_eq!(
        whole["choices"][0]["message"]["content"], text,
        "the stream in flight is drained"
    );
    let status = server.wait(Duration::from_secs(60))?;
    ensure!(status.code() == Some(0), "the server ended with {status}");
    assert!(
        tenant.http.get("/health").is_err(),
        "nobody listens any more"
    );
    Ok(())
}
