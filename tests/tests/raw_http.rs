//! Raw sockets against the data plane: what two readers could understand differently, absurd announcements, slow and silent
//! senders, compressed bodies, browsers. Each gets the right status at once, no 5xx, and shuts nobody out.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use realm_tests::paths;
use realm_tests::raw::{Answer, answer, connect, is_closed};
use realm_tests::server::{ADMIN_TOKEN, MODEL, Server, Tenant, chat_body};
use realm_tests::socket::Socket;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

fn head(tenant: &Tenant, more: &str) -> String {
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: realm\r\nauthorization: Bearer {}\r\n{more}\r\n",
        tenant.key
    )
}

/// Sends bytes and reads the answer.
fn exchange(server: &Server, bytes: &[u8]) -> Result<(Answer, TcpStream)> {
    let mut stream = connect(server.url())?;
    stream.write_all(bytes)?;
    Ok((answer(&mut stream)?, stream))
}

fn chat(max_tokens: u32) -> String {
    chat_body(MODEL, "Hello", max_tokens).to_string()
}

#[test]
fn what_two_readers_could_read_differently_is_refused_or_ends_the_connection() -> Result<()> {
    let server = Server::start()?;
    let tenant = server.tenant("acme")?;
    let hidden = "GET /v1/models HTTP/1.1\r\nhost: realm\r\n\r\n";
    for framing in [
        "content-length: 4\r\ntransfer-encoding: chunked\r\n",
        "content-length: 4\r\ncontent-length: 5\r\n",
        "content-length: 4, 5\r\n",
        "content-length: +4\r\n",
        "content-length: -1\r\n",
        "content-length: 0x4\r\n",
        "content-length: 99999999999999999999999\r\n",
        "transfer-encoding: chunked, identity\r\n",
        "transfer-encoding: nothing\r\n",
        "transfer-encoding : chunked\r\n",
    ] {
        let bytes = format!("{}0\r\n\r\n{hidden}", head(&tenant, framing));
        let (first, mut stream) = exchange(&server, bytes.as_bytes())?;
        ensure!((400..500).contains(&first.status), "{framing:?}: {first:?}");
        ensure!(
            is_closed(&mut stream)?,
            "{framing:?}: nothing is read after it"
        );
    }
    // Here the length is ignored, as the standard allows; what follows must not become a request of its own.
    let bytes = format!(
        "{}0\r\n\r\n{hidden}",
        head(
            &tenant,
            "transfer-encoding: chunked\r\ncontent-length: 4\r\n"
        )
    );
    let (first, mut stream) = exchange(&server, bytes.as_bytes())?;
    ensure!(
        first.status == 400 && first.head.contains("connection: close"),
        "{first:?}"
    );
    ensure!(
        is_closed(&mut stream)?,
        "the hidden request is not answered"
    );
    Ok(())
}

#[test]
fn absurd_announcements_get_their_status_before_anything_is_read() -> Result<()> {
    let server = Server::start()?;
    let tenant = server.tenant("acme")?;
    // Not one byte of these bodies is ever sent.
    for length in [
        "4194305",
        "10000000000",
        "1000000000000000000",
        "9223372036854775807",
        "18446744073709551613",
    ] {
        let asked = head(&tenant, &format!("content-length: {length}\r\n"));
        let (refused, _) = exchange(&server, asked.as_bytes())?;
        ensure!(
            refused.status == 413 && refused.body.contains("request_too_large"),
            "{length}: {refused:?}"
        );
    }
    let waiting = "content-length: 10000000000\r\nexpect: 100-continue\r\n";
    let (refused, _) = exchange(&server, head(&tenant, waiting).as_bytes())?;
    ensure!(refused.status == 413, "instead of a 100: {refused:?}");
    let unknown = "content-length: 4\r\nexpect: a-miracle\r\n";
    let (refused, _) = exchange(&server, head(&tenant, unknown).as_bytes())?;
    ensure!(refused.status == 417, "{refused:?}");

    let body = chat(1);
    let mut stream = connect(server.url())?;
    let length = format!("content-length: {}\r\nexpect: 100-continue\r\n", body.len());
    stream.write_all(head(&tenant, &length).as_bytes())?;
    ensure!(answer(&mut stream)?.status == 100, "the body is asked for");
    stream.write_all(body.as_bytes())?;
    ensure!(answer(&mut stream)?.status == 200, "and answered");

    let many = "x-a: b\r\n".repeat(1000);
    let long = format!("x-a: {}\r\n", "b".repeat(200_000));
    for headers in [many, long] {
        let mut stream = connect(server.url())?;
        // The server may hang up while the client still sends.
        let _ = stream.write_all(head(&tenant, &headers).as_bytes());
        let refused = answer(&mut stream)?;
        ensure!(
            refused.status == 431,
            "{} bytes: {refused:?}",
            headers.len()
        );
    }
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"G\0T / HTTP/1.1\r\n\r\n",
    ] {
        let (refused, _) = exchange(&server, garbage)?;
        ensure!(refused.status == 400, "{garbage:?}: {refused:?}");
    }
    ensure!(server.http(None).get("/health")?.status == 200);
    Ok(())
}

#[test]
fn every_refusal_is_json_in_plain_words() -> Result<()> {
    let server = Server::start()?;
    let tenant = server.tenant("acme")?;
    let key = format!("host: realm\r\nauthorization: Bearer {}\r\n", tenant.key);
    let handshake = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n";
    let nonce = "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for (request, more, status) in [
        ("GET /v1/models/%ff HTTP/1.1", "", 400),
        ("GET /v1/models/%ff%fe HTTP/1.1", "", 400),
        ("GET /v1/models/%00%0d%0a HTTP/1.1", "", 404),
        ("GET /nothing HTTP/1.1", "", 404),
        ("GET http://evil.example.com/v1/nothing HTTP/1.1", "", 404),
        ("DELETE /v1/models HTTP/1.1", "", 405),
        ("GET /ws HTTP/1.1", "", 400),
        ("POST /ws HTTP/1.1", handshake, 405),
        ("GET /ws HTTP/1.1", handshake, 400),
        ("GET /ws HTTP/1.0", &format!("{handshake}{nonce}"), 426),
    ] {
        let asked = format!("{request}\r\n{key}{more}\r\n");
        let (refused, _) = exchange(&server, asked.as_bytes())?;
        ensure!(refused.status == status, "{request}: {refused:?}");
        let error = &serde_json::from_str::<Value>(&refused.body)
            .with_context(|| format!("{request}: {refused:?}"))?["error"];
        ensure!(
            error["message"].is_string() && error["code"].is_string(),
            "{request}: {refused:?}"
        );
    }
    let mut admin = connect(server.admin().base())?;
    write!(
        admin,
        "GET /admin/v1/tenants/%ff/keys HTTP/1.1\r\nhost: realm\r\nauthorization: Bearer {ADMIN_TOKEN}\r\n\r\n"
    )?;
    let refused = answer(&mut admin)?;
    ensure!(
        refused.status == 400 && refused.body.contains("invalid_request"),
        "{refused:?}"
    );
    Ok(())
}

#[test]
fn a_refusal_reaches_a_client_that_is_still_sending() -> Result<()> {
    let server = Server::start()?;
    let tenant = server.tenant("acme")?;
    for round in 0..10 {
        let mut stream = connect(server.url())?;
        let asked = head(&tenant, "content-length: 8388608\r\n");
        stream.write_all(asked.as_bytes())?;
        stream
            .write_all(&vec![b' '; 8 << 20])
            .with_context(|| format!("round {round}: it was let send"))?;
        ensure!(answer(&mut stream)?.status == 413);
    }
    Ok(())
}

#[test]
fn a_body_that_breaks_off_is_a_400_and_its_place_is_free() -> Result<()> {
    let server = Server::start_configured("tenant_requests_max = 1\n")?;
    let tenant = server.tenant("acme")?;
    let mut stream = connect(server.url())?;
    stream.write_all(head(&tenant, "content-length: 100\r\n").as_bytes())?;
    stream.write_all(b"{\"model\":")?;
    stream.shutdown(Shutdown::Write)?;
    let mut rest = String::new();
    stream.read_to_string(&mut rest)?;
    ensure!(
        rest.is_empty() || rest.starts_with("HTTP/1.1 400"),
        "{rest}"
    );
    server.until("its place is free", |metrics| {
        metrics.sum("realm_requests_in_flight") == Some(0.0)
    })?;
    let reply = tenant
        .http
        .post("/v1/chat/completions", &chat_body(MODEL, "Hello", 1))?;
    ensure!(reply.status == 200, "{}", reply.text);
    Ok(())
}

#[test]
fn a_body_that_does_not_arrive_is_a_408_however_it_trickles() -> Result<()> {
    let server = Server::start_configured("body_ms_max = 300\ntenant_requests_max = 1\n")?;
    let tenant = server.tenant("acme")?;
    for framing in [
        "content-length: 1000000\r\n",
        "transfer-encoding: chunked\r\n",
    ] {
        let mut stream = connect(server.url())?;
        stream.write_all(head(&tenant, framing).as_bytes())?;
        let mut sender = stream.try_clone()?;
        // One more byte every so often must not buy more time. It ends when the server hangs up.
        let trickle = std::thread::spawn(move || {
            while sender.write_all(b"1\r\n \r\n").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let refused = answer(&mut stream)?;
        ensure!(
            refused.status == 408 && refused.body.contains("within 300ms"),
            "{framing:?}: {refused:?}"
        );
        ensure!(is_closed(&mut stream)?, "what comes late is no request");
        drop(stream);
        ensure!(trickle.join().is_ok());
        server.until("its place is free", |metrics| {
            metrics.sum("realm_requests_in_flight") == Some(0.0)
        })?;
    }
    let upload = "/admin/v1/tenants/acme/workflows/flow/versions";
    let mut stream = connect(server.admin().base())?;
    write!(
        stream,
        "POST {upload} HTTP/1.1\r\nhost: realm\r\nauthorization: Bearer {ADMIN_TOKEN}\r\ncontent-length: 9\r\n\r\n"
    )?;
    let refused = answer(&mut stream)?;
    ensure!(refused.status == 408, "an upload, too: {refused:?}");
    Ok(())
}

#[test]
fn chunks_are_held_to_the_limit_whatever_they_announce() -> Result<()> {
    let server = Server::start_configured("body_ms_max = 300\n")?;
    let tenant = server.tenant("acme")?;
    let chunked = head(&tenant, "transfer-encoding: chunked\r\n");
    let extension = format!("1;{}\r\n{{", "x".repeat(100_000));
    let (body, trailers) = (chat(1), "x-a: b\r\n".repeat(20_000));
    let trailers = format!("{:x}\r\n{body}\r\n0\r\n{trailers}\r\n", body.len());
    for (begin, status) in [
        ("8000000000000000\r\n{", 408), // as large as there are, and never sent
        ("ffffffffffffffff\r\n{", 408),
        ("10000000000000000\r\n{", 400),
        ("ffffffffffffffffffffffffffffffff\r\n{", 400),
        ("-1\r\n{", 400),
        ("0x1\r\n{", 400),
        ("\r\n{", 400),
        ("1\n{", 400),
        ("1\r\n{}\r\n", 400), // longer than it said
        (&extension, 400),
        (&trailers, 400),
    ] {
        let mut stream = connect(server.url())?;
        // The server may hang up while the client still sends.
        let _ = stream.write_all(format!("{chunked}{begin}").as_bytes());
        let refused = answer(&mut stream)?;
        let begin = &begin[..begin.len().min(40)];
        ensure!(refused.status == status, "{begin:?}: {refused:?}");
        ensure!(
            is_closed(&mut stream)?,
            "{begin:?}: nothing is read after it"
        );
    }
    let mut stream = connect(server.url())?;
    stream.write_all(format!("{chunked}8000000000000000\r\n").as_bytes())?;
    let _ = stream.write_all(&vec![b' '; (4 << 20) + 1]);
    let refused = answer(&mut stream)?;
    ensure!(
        refused.status == 413,
        "as soon as it is too much: {refused:?}"
    );
    Ok(())
}

#[test]
fn a_stream_that_has_nothing_to_say_says_so() -> Result<()> {
    let server = Server::start_configured("keep_alive_ms = 50\n")?;
    let tenant = server.tenant("acme")?;
    server.deploy("acme", "silent", &paths::guest("loop_forever")?)?;
    let mut body = chat_body("silent", "Hello", 1);
    body["stream"] = json!(true);
    let body = body.to_string();
    let mut stream = connect(server.url())?;
    let length = format!("content-length: {}\r\n", body.len());
    stream.write_all(format!("{}{body}", head(&tenant, &length)).as_bytes())?;
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().context("a status line")??;
    ensure!(first == "HTTP/1.1 200 OK", "{first}");
    let mut comments = 0;
    while comments < 3 {
        let line = lines.next().context("the stream goes on")??;
        ensure!(!line.starts_with("data:"), "it has nothing to say: {line}");
        comments += u32::from(line == ": keep-alive");
    }
    drop(lines);
    server.until("the call ends with its client", |metrics| {
        metrics.sum("realm_requests_in_flight") == Some(0.0)
    })?;
    Ok(())
}

#[test]
fn a_stream_begins_when_the_model_is_at_work_on_its_prompt() -> Result<()> {
    // As good as never: nothing but the prompt's acceptance can begin the answer.
    let settings = "keep_alive_ms = 600000\n[limits]\ncpu_ms_max = 200\n";
    let server = Server::start_configured(settings)?;
    let tenant = server.tenant("acme")?;
    server.deploy("acme", "mute", &paths::guest("never_read")?)?;
    let mut body = chat_body("mute", "Hello", 1);
    body["stream"] = json!(true);
    let body = body.to_string();
    let length = format!("content-length: {}\r\n", body.len());
    let mut stream = connect(server.url())?;
    stream.write_all(format!("{}{body}", head(&tenant, &length)).as_bytes())?;
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().context("a status line")??;
    ensure!(first == "HTTP/1.1 200 OK", "{first}");
    let mut comments = 0;
    for line in lines {
        let line = line?;
        comments += u32::from(line == ": keep-alive");
        if line.starts_with("data:") {
            ensure!(line.contains("cpu_budget_exceeded"), "{line}");
            ensure!(comments == 1, "one at once, and no other in time");
            return Ok(());
        }
    }
    anyhow::bail!("the stream ended without its error")
}

#[test]
fn silent_and_half_said_connections_shut_nobody_out() -> Result<()> {
    let mut server = Server::start_configured("connections_max = 64\n")?;
    let tenant = server.tenant("acme")?;
    let mut body = chat_body(MODEL, "Tell me about the history of Rome.", 200);
    body["stream"] = json!(true);
    body["logit_bias"] = json!({"2": -100}); // never ends its turn
    let mut stream = tenant.http.stream("/v1/chat/completions", &body)?;
    stream.next().context("the stream begins")??;
    let mut idle = Vec::new();
    for index in 0..1000 {
        let mut silent = connect(server.url())?;
        // Some say half of something, and some ask and never read; all are strangers.
        let said: &[u8] = match index % 4 {
            0 => b"",
            1 => b"GET /health HTTP/1.1\r\nhost:",
            2 => b"POST /v1/chat/completions HTTP/1.1\r\nhost: realm\r\ncontent-length: 1000\r\n\r\n{",
            _ => b"GET /ws HTTP/1.1\r\nhost: realm\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
                   sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        };
        let _ = silent.write_all(said); // hung up on already, perhaps
        idle.push(silent);
        if index % 100 == 99 {
            let reply = tenant
                .http
                .post("/v1/chat/completions", &chat_body(MODEL, "Hello", 1))?;
            ensure!(reply.status == 200, "after {index}: {}", reply.text);
        }
    }
    for event in stream.by_ref() {
        event?;
    }
    ensure!(stream.ended(), "the stream under way was not hung up on");
    ensure!(server.is_alive()?);
    drop(idle);
    server.until_idle()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_with_a_key_outlasts_silent_connections() -> Result<()> {
    let server = Server::start_configured("connections_max = 8\n")?;
    let tenant = server.tenant("acme")?;
    let mut socket = Socket::connect(server.url(), Some(&tenant.key)).await?;
    let _idle = (0..50)
        .map(|_| connect(server.url()))
        .collect::<Result<Vec<_>>>()?;
    let answered = socket.call("1", "health", json!({})).await?;
    ensure!(answered["status"] == "complete", "{answered}");
    Ok(())
}

#[test]
fn gzip_is_read_up_to_the_limit_of_what_comes_out() -> Result<()> {
    let server = Server::start()?;
    let tenant = server.tenant("acme")?;
    let send = |encoding: &str, body: &[u8]| {
        let headers = format!(
            "content-encoding: {encoding}\r\ncontent-length: {}\r\n",
            body.len()
        );
        let mut bytes = head(&tenant, &headers).into_bytes();
        bytes.extend_from_slice(body);
        exchange(&server, &bytes).map(|(answer, _)| answer)
    };
    for encoding in ["gzip", "GZIP", "x-gzip", "X-GZip", "identity, gzip"] {
        let answered = send(encoding, &gzip(chat(1).as_bytes()))?;
        ensure!(answered.status == 200, "{encoding}: {answered:?}");
    }
    for encoding in ["identity", "IDENTITY", ""] {
        let answered = send(encoding, chat(1).as_bytes())?;
        ensure!(answered.status == 200, "{encoding}: {answered:?}");
    }
    let bomb = gzip(&vec![b' '; 64 << 20]);
    ensure!(bomb.len() < 4 << 20, "it is announced as small");
    let refused = send("gzip", &bomb)?;
    ensure!(refused.status == 413, "{refused:?}");
    let refused = send("gzip", b"not gzip at all")?;
    ensure!(refused.status == 400, "{refused:?}");
    for encoding in [
        "br",
        "nothing",
        "gzip, gzip",
        "identity\r\ncontent-encoding: br",
    ] {
        let refused = send(encoding, b"x")?;
        ensure!(
            refused.status == 415 && refused.body.contains("unsupported_encoding"),
            "{encoding}: {refused:?}"
        );
    }
    // Not one byte of these is ever sent.
    for more in ["", "expect: 100-continue\r\n"] {
        let headers = format!("content-encoding: gzip\r\ncontent-length: 10000000000\r\n{more}");
        let (refused, _) = exchange(&server, head(&tenant, &headers).as_bytes())?;
        ensure!(refused.status == 413, "{more:?}: {refused:?}");
    }
    Ok(())
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).expect("writing into memory");
    encoder.finish().expect("writing into memory")
}

#[test]
fn a_browser_may_call_from_the_origins_that_are_set() -> Result<()> {
    let preflight = |server: &Server, origin: &str| {
        let asked = format!(
            "OPTIONS /v1/chat/completions HTTP/1.1\r\nhost: realm\r\norigin: {origin}\r\n\
             access-control-request-method: POST\r\n\
             access-control-request-headers: authorization,content-type\r\n\r\n"
        );
        exchange(server, asked.as_bytes()).map(|(answer, _)| answer)
    };
    let server = Server::start()?;
    let allowed = preflight(&server, "https://app.example.com")?;
    ensure!(allowed.status == 200, "{allowed:?}");
    for header in [
        "access-control-allow-origin: *",
        "access-control-allow-headers: authorization,content-type",
    ] {
        ensure!(allowed.head.contains(header), "{header}: {allowed:?}");
    }
    drop(server);
    let server = Server::start_configured("cors_origins = [\"https://app.example.com\"]\n")?;
    let allowed = preflight(&server, "https://app.example.com")?;
    let header = "access-control-allow-origin: https://app.example.com";
    ensure!(allowed.head.contains(header), "{allowed:?}");
    let refused = preflight(&server, "https://evil.example.com")?;
    ensure!(
        !refused.head.contains("access-control-allow-origin"),
        "{refused:?}"
    );
    Ok(())
}
