//! A real WebSocket client: both ways to authenticate, built-in functions, functions of an uploaded component, calls that
//! interleave, cancellation that frees KV blocks, and frames that are none.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use realm_tests::metrics::Metrics;
use realm_tests::server::{MODEL, Server, Tenant, chat_body};
use realm_tests::{paths, socket::Socket};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

/// A server with a tenant that has the components `echo` and `extract`.
fn server() -> Result<(Server, Tenant)> {
    let server = Server::start()?;
    let tenant = server.tenant("acme")?;
    server.deploy("acme", "echo", &paths::guest("echo")?)?;
    server.deploy("acme", "extract", &paths::prebuilt("extract")?)?;
    Ok((server, tenant))
}

/// Reads one call to its end: the data of its streaming frames, and its last frame.
async fn stream(socket: &mut Socket, id: &str) -> Result<(Vec<Value>, Value)> {
    let mut pieces = Vec::new();
    loop {
        let mut frame = socket.frame().await?;
        ensure!(frame["id"] == id, "a frame of another call: {frame}");
        if frame["status"] != "streaming" {
            return Ok((pieces, frame));
        }
        pieces.push(frame["data"].take());
    }
}

fn text(pieces: &[Value]) -> String {
    pieces
        .iter()
        .filter_map(|piece| piece["text"].as_str())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_the_header_or_in_the_first_frame_opens_a_connection() -> Result<()> {
    let (server, tenant) = server()?;
    let mut socket = Socket::connect(server.url(), Some(&tenant.key)).await?;
    assert_eq!(
        socket.call("1", "health", json!({})).await?["status"],
        "complete"
    );

    let mut socket = Socket::connect(server.url(), None).await?;
    socket
        .send(&json!({"type": "auth", "api_key": tenant.key}))
        .await?;
    assert_eq!(socket.frame().await?["type"], "auth_success");
    assert_eq!(
        socket.call("1", "health", json!({})).await?["status"],
        "complete"
    );

    assert!(
        Socket::connect(server.url(), Some("rk_wrong"))
            .await
            .is_err(),
        "the handshake is refused"
    );
    for first in [
        json!({"type": "auth", "api_key": "rk_wrong"}),
        json!({"id": "1", "function": "health"}),
    ] {
        let mut socket = Socket::connect(server.url(), None).await?;
        socket.send(&first).await?;
        assert_eq!(
            socket.frame().await?["error"]["code"],
            "invalid_api_key",
            "{first}"
        );
        assert_eq!(socket.next().await?, None, "and the connection is closed");
    }

    server
        .admin()
        .delete(&format!("/admin/v1/tenants/acme/keys/{}", tenant.key_id))?
        .ok()?;
    let refused = socket.call("2", "health", json!({})).await?;
    assert_eq!(
        refused["error"]["code"], "invalid_api_key",
        "a revoked key ends open connections' calls: {refused}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_built_in_functions_say_what_http_says() -> Result<()> {
    let (server, tenant) = server()?;
    let mut socket = Socket::connect(server.url(), Some(&tenant.key)).await?;

    let metadata = socket.call("m", "metadata", json!({})).await?;
    let functions = metadata["data"]["functions"]
        .as_array()
        .context("metadata lists functions")?;
    for name in [
        "generate",
        "chat",
        "models",
        "health",
        "metadata",
        "echo.count",
        "extract.extract",
    ] {
        let function = functions.iter().find(|function| function["name"] == name);
        assert!(
            function.with_context(|| format!("{name} in {metadata}"))?["parameters"].is_object()
        );
    }
    let models = socket.call("l", "models", json!({})).await?["data"].take();
    assert_eq!(models, tenant.http.get("/v1/models")?.ok()?);

    let params =
        json!({"model": MODEL, "prompt": "Once upon a time", "max_tokens": 24, "temperature": 0});
    let whole = tenant.http.post("/v1/completions", &params)?.ok()?;
    socket
        .send(&json!({"id": "g", "function": "generate", "params": params}))
        .await?;
    let (pieces, last) = stream(&mut socket, "g").await?;
    assert_eq!(
        (&last["status"], text(&pieces).as_str()),
        (&json!("complete"), text_of(&whole, "/choices/0/text")?)
    );
    assert!(pieces.len() > 3, "it streams");
    assert_eq!(last["data"]["usage"]["completion_tokens"], 24);

    let params = chat_body(MODEL, "What is the capital of France?", 24);
    let whole = tenant.http.post("/v1/chat/completions", &params)?.ok()?;
    socket
        .send(&json!({"id": "c", "function": "chat", "params": params}))
        .await?;
    let (pieces, last) = stream(&mut socket, "c").await?;
    assert_eq!(
        text(&pieces),
        text_of(&whole, "/choices/0/message/content")?
    );
    assert_eq!(
        last["data"]["choices"][0]["finish_reason"],
        whole["choices"][0]["finish_reason"]
    );
    assert_eq!(last["data"]["usage"], whole["usage"]);
    Ok(())
}

fn text_of<'a>(value: &'a Value, pointer: &str) -> Result<&'a str> {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .with_context(|| format!("no text at {pointer} of {value}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_of_an_uploaded_component_are_called_by_name() -> Result<()> {
    let (server, tenant) = server()?;
    let mut socket = Socket::connect(server.url(), Some(&tenant.key)).await?;

    let params = json!({"a": [1, 2.5, null, "ü"], "b": {"deep": true}});
    let echoed = socket.call("e", "echo.echo", params.clone()).await?;
    assert_eq!(
        (&echoed["status"], &echoed["data"]),
        (&json!("complete"), &params)
    );

    socket
        .send(&json!({"id": 7, "function": "echo.count", "params": {"to": 5}}))
        .await?;
    for n in 1..=5 {
        assert_eq!(
            socket.frame().await?,
            json!({"id": 7, "status": "streaming", "data": n})
        );
    }
    assert_eq!(
        socket.frame().await?,
        json!({"id": 7, "status": "complete", "data": "done"})
    );

    let params =
        json!({"text": "Ada Lovelace was born in London in 1815.", "fields": ["name", "city"]});
    let extracted = socket.call("x", "extract.extract", params).await?;
    assert_eq!(extracted["status"], "complete", "{extracted}");
    let object = extracted["data"]
        .as_object()
        .with_context(|| format!("an object: {extracted}"))?;
    assert!(
        object.contains_key("name") && object.contains_key("city") && object.len() == 2,
        "{object:?}"
    );

    let failed = socket.call("f", "echo.fail", json!({})).await?;
    assert_eq!(
        (&failed["status"], &failed["error"]["code"]),
        (&json!("error"), &json!("invalid_request"))
    );
    for unknown in ["echo.nothing", "nothing.echo", "nothing"] {
        let refused = socket.call("u", unknown, json!({})).await?;
        assert_eq!(
            refused["error"]["code"], "no_such_function",
            "{unknown}: {refused}"
        );
    }
    server.until_idle()
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_interleave_and_a_cancelled_ones_blocks_are_free_at_the_next_step() -> Result<()> {
    let (server, tenant) = server()?;
    let short =
        json!({"model": MODEL, "prompt": "Once upon a time", "max_tokens": 120, "temperature": 0});
    let alone = tenant.http.post("/v1/completions", &short)?.ok()?;
    server.until_idle()?;

    let mut socket = Socket::connect(server.url(), Some(&tenant.key)).await?;
    // Seven hundred words: what it holds cannot be mistaken for what the other calls hold.
    let long = json!({"prompt": "word ".repeat(700)});
    socket
        .send(&json!({"id": "long", "function": "echo.generate", "params": long}))
        .await?;
    assert_eq!(socket.frame().await?["id"], "long");
    // A frame can be here before the gauge of the step it came from.
    let before = held(&server.until("the long call's blocks are held", |metrics| {
        held(metrics) >= 40.0
    })?);
    socket
        .send(&json!({"id": "short", "function": "generate", "params": short}))
        .await?;

    let (order, mut pieces) = interleaved(&mut socket, 10).await?;
    let changes = order.windows(2).filter(|pair| pair[0] != pair[1]).count();
    // Fewer than the twenty of a quiet machine: on a busy one pieces come in bursts.
    assert!(changes >= 3, "neither waits for the other: {order:?}");

    socket.send(&json!({"id": "long", "cancel": true})).await?;
    loop {
        let mut frame = socket.frame().await?;
        if frame["id"] == "long" && frame["status"] == "cancelled" {
            break;
        }
        assert_eq!(frame["status"], "streaming", "{frame}");
        if frame["id"] == "short" {
            pieces.push(frame["data"].take());
        }
    }
    let steps = steps_until_freed(&server, before - 30.0)?;
    assert!(steps <= 8.0, "still held {steps} steps after the cancel");

    let (rest, last) = stream(&mut socket, "short").await?;
    pieces.extend(rest);
    assert_eq!(last["status"], "complete", "{last}");
    assert_eq!(
        text(&pieces),
        text_of(&alone, "/choices/0/text")?,
        "the other call is what it is alone"
    );
    let again = socket.call("long", "health", json!({})).await?;
    assert_eq!(
        again["status"], "complete",
        "an id is free again after its call"
    );
    server.until_idle()
}

/// Reads until the call `short` has sent so many pieces: whose frames came, in order, and those pieces.
async fn interleaved(socket: &mut Socket, pieces_min: usize) -> Result<(Vec<String>, Vec<Value>)> {
    let (mut order, mut pieces) = (Vec::new(), Vec::new());
    while pieces.len() < pieces_min {
        let mut frame = socket.frame().await?;
        ensure!(frame["status"] == "streaming", "{frame}");
        order.push(frame["id"].as_str().unwrap_or_default().to_owned());
        if frame["id"] == "short" {
            pieces.push(frame["data"].take());
        }
    }
    Ok((order, pieces))
}

/// For how many more steps more blocks than `blocks` are seen held. Freed by the next step means that no scrape that is
/// later by more than the step under way still shows them. (Scrapes are further apart than steps, so the step that freed
/// them is not seen itself. The fiber's end is another task's work, for which a busy machine may need some steps; unfreed
/// blocks would be seen for hundreds.)
fn steps_until_freed(server: &Server, blocks: f64) -> Result<f64> {
    let told = server.metrics()?;
    let mut last_held = told.clone();
    server.until("the cancelled call's blocks are free", |metrics| {
        let is_free = held(metrics) < blocks;
        if !is_free {
            last_held = metrics.clone();
        }
        is_free
    })?;
    Ok(last_held.steps()? - told.steps()?)
}

fn held(metrics: &Metrics) -> f64 {
    metrics.sum("realm_kv_blocks_held").unwrap_or(f64::NAN)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_connection_ends_its_calls() -> Result<()> {
    let (server, tenant) = server()?;
    let mut socket = Socket::connect(server.url(), Some(&tenant.key)).await?;
    for id in ["a", "b", "c"] {
        let params = json!({"prompt": "Once upon a time"});
        socket
            .send(&json!({"id": id, "function": "echo.generate", "params": params}))
            .await?;
    }
    server.until("three sequences run", |metrics| {
        metrics.sum("realm_sequences_running") == Some(3.0)
    })?;
    drop(socket);
    server.until_idle()
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_are_none_are_told_so_and_the_connection_lives() -> Result<()> {
    let (mut server, tenant) = server()?;
    let mut socket = Socket::connect(server.url(), Some(&tenant.key)).await?;
    for wrong in [
        "no json",
        "[]",
        "{}",
        "{\"id\":\"a\"}",
        "{\"id\":{},\"function\":\"health\"}",
        "\u{0}",
        "{\"type\":\"auth\"}",
    ] {
        socket.send_text(wrong).await?;
        let told = socket.frame().await?;
        assert_eq!(
            (&told["status"], &told["error"]["code"]),
            (&json!("error"), &json!("invalid_request")),
            "{wrong}"
        );
    }
    socket
        .send_text(&format!(
            "{{\"id\":\"deep\",\"function\":\"echo.echo\",\"params\":{}",
            "[".repeat(100_000)
        ))
        .await?;
    assert_eq!(
        socket.frame().await?["status"],
        "error",
        "nested beyond reason"
    );
    socket
        .send_message(Message::binary(vec![0, 159, 146, 150]))
        .await?;
    assert_eq!(socket.frame().await?["status"], "error", "binary");
    socket
        .send(&json!({"id": "nobody", "cancel": true}))
        .await?;
    assert_eq!(socket.frame().await?["error"]["code"], "no_such_call");
    assert_eq!(
        socket.call("1", "health", json!({})).await?["status"],
        "complete"
    );
    assert!(server.is_alive()?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_refusal_looks_like_the_end_of_a_call_in_progress() -> Result<()> {
    let (server, tenant) = server()?;
    let mut socket = Socket::connect(server.url(), Some(&tenant.key)).await?;
    let params = json!({"prompt": "Once upon a time"});
    socket
        .send(&json!({"id": "twice", "function": "echo.generate", "params": params}))
        .await?;
    assert_eq!(socket.frame().await?["status"], "streaming");
    for (again, code) in [
        (json!({"id": "twice", "function": "health"}), "duplicate_id"),
        (json!({"id": "twice", "function": 7}), "invalid_request"),
    ] {
        socket.send(&again).await?;
        let refused = loop {
            let frame = socket.frame().await?;
            if frame["id"].is_null() {
                break frame;
            }
            assert_eq!(frame["status"], "streaming", "{frame}");
        };
        assert_eq!(
            (&refused["error"]["code"], &refused["error"]["id"]),
            (&json!(code), &json!("twice")),
            "{refused}"
        );
    }
    socket.send(&json!({"id": "twice", "cancel": true})).await?;
    assert_eq!(
        socket.finish("twice").await?["status"],
        "cancelled",
        "the call was not harmed"
    );
    server.until_idle()
}

/// What a call answers with, its streaming frames' texts and log-probabilities put together.
async fn answered(socket: &mut Socket, function: &str, params: &Value) -> Result<Value> {
    socket
        .send(&json!({"id": "a", "function": function, "params": params}))
        .await?;
    let (pieces, mut last) = stream(socket, "a").await?;
    ensure!(last["status"] == "complete", "{last}");
    let mut data = last["data"].take();
    if !pieces.is_empty() {
        data["choices"][0]["text"] = text(&pieces).into();
    }
    let tokens = pieces
        .iter()
        .filter_map(|piece| piece["logprobs"]["content"].as_array())
        .flatten();
    let tokens: Vec<Value> = tokens.cloned().collect();
    if !tokens.is_empty() {
        data["choices"][0]["logprobs"] = json!({"content": tokens, "refusal": null});
    }
    Ok(data)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_means_what_the_same_request_over_http_means() -> Result<()> {
    let (server, tenant) = server()?;
    let mut socket = Socket::connect(server.url(), Some(&tenant.key)).await?;
    let mut params = chat_body(MODEL, "What is the capital of France?", 12);
    params["messages"][0]["role"] = json!("developer");
    params["logprobs"] = json!(true);
    params["top_logprobs"] = json!(2);
    let http = tenant.http.post("/v1/chat/completions", &params)?.ok()?;
    let told = |data: &Value| {
        let choice = &data["choices"][0];
        json!([
            choice["text"],
            choice["logprobs"],
            choice["finish_reason"],
            data["usage"]
        ])
    };
    let choice = &http["choices"][0];
    let expected = json!([
        choice["message"]["content"],
        choice["logprobs"],
        choice["finish_reason"],
        http["usage"]
    ]);
    // It streams without being told to, and so takes what belongs to streams.
    params["stream_options"] = json!({"include_usage": true});
    assert_eq!(
        told(&answered(&mut socket, "chat", &params).await?),
        expected,
        "streamed"
    );
    params["stream_options"] = Value::Null;
    params["stream"] = json!(false);
    assert_eq!(
        told(&answered(&mut socket, "chat", &params).await?),
        expected,
        "whole"
    );

    // Without `max_tokens`, too.
    let params = json!({"prompt": "Once upon a time", "temperature": 0, "model": MODEL});
    let http = tenant.http.post("/v1/completions", &params)?.ok()?;
    let answer = answered(&mut socket, "generate", &params).await?;
    assert_eq!(answer["choices"][0]["text"], http["choices"][0]["text"]);
    assert_eq!(answer["usage"], http["usage"]);

    let wrong = json!({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]});
    let refused = socket.call("w", "chat", wrong).await?;
    assert_eq!(
        refused["error"]["param"], "messages[0].content[0].text",
        "{refused}"
    );
    server.until_idle()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_call_counts_as_what_it_used() -> Result<()> {
    let (server, tenant) = server()?;
    let mut socket = Socket::connect(server.url(), Some(&tenant.key)).await?;
    let params =
        json!({"prompt": "Once upon a time", "max_tokens": 2000, "logit_bias": {"2": -100}});
    socket
        .send(&json!({"id": "c", "function": "generate", "params": params}))
        .await?;
    for _ in 0..5 {
        assert_eq!(socket.frame().await?["status"], "streaming");
    }
    socket.send(&json!({"id": "c", "cancel": true})).await?;
    assert_eq!(socket.finish("c").await?["status"], "cancelled");
    server.until_idle()?;
    let metrics = server.metrics()?;
    let counted = |name: &str| metrics.sum_where(name, &[("tenant", "acme"), ("model", MODEL)]);
    let prompt = counted("realm_tokens_prompt_total").context("prompt tokens")?;
    let completion = counted("realm_tokens_completion_total").context("generated tokens")?;
    assert!(
        prompt >= 4.0 && completion >= 5.0,
        "{prompt} + {completion}"
    );
    Ok(())
}
