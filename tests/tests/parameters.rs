//! What parameters do to real answers: each row of `docs/parameters.md` over HTTP, and those about where an answer ends with
//! the right numbers.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use realm_tests::paths::repository;
use realm_tests::server::{MODEL, Server, Tenant, chat_body, template_of_everything};
use realm_tests::socket::Socket;
use serde_json::{Value, json};

/// The token with which the model ends its turn.
const END: u32 = 2;
/// A full stop.
const FULL_STOP: u32 = 30;

/// A row of the page on one of its routes.
#[derive(Debug)]
struct Row {
    name: String,
    route: String,
    is_refused: bool,
    example: Value,
}

fn rows() -> Result<Vec<Row>> {
    let page = std::fs::read_to_string(repository().join("docs/parameters.md"))?;
    let mut rows = Vec::new();
    for line in page.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").collect();
        let [name, routes, what, example] = cells[..] else {
            anyhow::bail!("not four cells: {line}");
        };
        let code = |cell: &str| cell.trim().trim_matches('`').to_owned();
        for route in routes.split(", ") {
            rows.push(Row {
                name: code(name),
                route: route.to_owned(),
                is_refused: what.starts_with("refused"),
                example: serde_json::from_str(&code(example)).with_context(|| line.to_owned())?,
            });
        }
    }
    ensure!(rows.len() > 200, "{} rows", rows.len());
    Ok(rows)
}

/// A short answer that is drawn, of the same seed each time.
fn body(route: &str) -> Value {
    let mut body = match route {
        "chat" => chat_body(MODEL, "Tell me about Rome.", 12),
        _ => json!({"model": MODEL, "prompt": "Once upon a time", "max_tokens": 12}),
    };
    body["temperature"] = json!(1);
    body["seed"] = json!(7);
    body
}

fn path(route: &str) -> &'static str {
    match route {
        "chat" => "/v1/chat/completions",
        "completion" => "/v1/completions",
        _ => "/v1/embeddings",
    }
}

#[test]
fn every_parameter_that_is_refused_is_named() -> Result<()> {
    let server = Server::start()?;
    let tenant = server.tenant("acme")?;
    for row in rows()?.iter().filter(|row| row.is_refused) {
        let mut body = match row.route.as_str() {
            "embedding" => json!({"model": "none", "input": "a"}),
            route => body(route),
        };
        body[&row.name] = row.example.clone();
        let reply = tenant.http.post(path(&row.route), &body)?;
        let error = &reply.json()["error"];
        ensure!(
            reply.status == 400 && error["param"] == row.name.as_str(),
            "{row:?}: {} {}",
            reply.status,
            reply.text
        );
        ensure!(error["code"] == "unsupported", "{row:?}: {error}");
    }
    server.until_idle()
}

/// What has to be there for a parameter to make a difference, and what must not.
fn prepare(row: &Row, body: &mut Value) {
    match row.name.as_str() {
        "n_predict" => body["max_tokens"] = Value::Null,
        "min_tokens" | "ignore_eos" => body["logit_bias"] = json!({END.to_string(): 100}),
        "top_logprobs" => body["logprobs"] = json!(true),
        _ => {}
    }
}

/// The answer without what differs each time.
fn answer(tenant: &Tenant, route: &str, body: &Value) -> Result<Value> {
    let reply = tenant.http.post(path(route), body)?;
    ensure!(reply.status == 200, "{body}: {}", reply.text);
    match reply.json() {
        Value::Null => Ok(Value::String("a stream".to_owned())),
        answer => Ok(json!([
            answer["choices"],
            answer["usage"],
            answer["prompt_logprobs"]
        ])),
    }
}

#[test]
fn every_parameter_that_is_honoured_makes_a_difference() -> Result<()> {
    // What a choice of tools, a stream's options and `best_of` say is nothing alone, and embeddings have tests of their own.
    const ELSEWHERE: [&str; 3] = ["tool_choice", "stream_options", "best_of"];
    let settings = format!("context_max = 128\n{}", template_of_everything());
    let server = Server::start_configured(&settings)?;
    let tenant = server.tenant("acme")?;
    let is_here = |row: &&Row| row.route != "embedding" && !ELSEWHERE.contains(&row.name.as_str());
    for row in rows()?.iter().filter(|row| !row.is_refused).filter(is_here) {
        let mut body = body(&row.route);
        prepare(row, &mut body);
        let without = answer(&tenant, &row.route, &body)?;
        body[&row.name] = row.example.clone();
        let with = answer(&tenant, &row.route, &body)?;
        ensure!(with != without, "{row:?} changes nothing: {with}");
    }
    server.until_idle()
}

/// Text, tokens and `finish_reason` of the first choice.
fn ended(tenant: &Tenant, more: Value) -> Result<(String, u64, String)> {
    let mut body =
        json!({"model": MODEL, "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0});
    for (name, value) in more.as_object().context("an object")? {
        body[name] = value.clone();
    }
    let answer = tenant.http.post("/v1/completions", &body)?.ok()?;
    let choice = &answer["choices"][0];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let tokens = answer["usage"]["completion_tokens"].as_u64();
    Ok((
        text(&choice["text"]),
        tokens.context("tokens")?,
        text(&choice["finish_reason"]),
    ))
}

#[test]
fn an_answer_ends_where_it_was_asked_to() -> Result<()> {
    let server = Server::start()?;
    let tenant = server.tenant("acme")?;
    let is = |more: Value, text: &str, tokens: u64, reason: &str| -> Result<()> {
        let found = ended(&tenant, more.clone())?;
        let expected = (text.to_owned(), tokens, reason.to_owned());
        ensure!(found == expected, "{more}: {found:?}");
        Ok(())
    };
    let end = json!({END.to_string(): 100});
    let stop = json!({FULL_STOP.to_string(): 100});
    is(json!({"logit_bias": stop}), "........", 8, "length")?;
    let stops = json!([5, FULL_STOP]);
    is(
        json!({"logit_bias": stop, "stop_token_ids": stops}),
        "",
        1,
        "stop",
    )?;
    is(json!({"logit_bias": stop, "stop": ".."}), "", 2, "stop")?;
    // The first three are let be, so that the fourth and the fifth are the string.
    is(
        json!({"logit_bias": stop, "stop": "..", "min_tokens": 3}),
        "...",
        5,
        "stop",
    )?;
    // The model would end at once; five other tokens come first.
    let (text, tokens, reason) = ended(&tenant, json!({"logit_bias": end, "min_tokens": 5}))?;
    ensure!((tokens, reason.as_str()) == (5, "stop"), "{text}");
    let plain = ended(&tenant, json!({"max_tokens": 5}))?;
    ensure!(
        text == plain.0,
        "the bias of the end alone changes none of them"
    );
    is(
        json!({"logit_bias": end, "ignore_eos": true}),
        "",
        8,
        "length",
    )?;
    is(
        json!({"logit_bias": end, "ignore_eos": true, "max_tokens": 3}),
        "",
        3,
        "length",
    )?;
    let both =
        json!({"logit_bias": end, "ignore_eos": true, "stop_token_ids": [END], "min_tokens": 8});
    is(both, &ended(&tenant, json!({}))?.0, 8, "length")?;
    for (more, param) in [
        (json!({"min_tokens": 9}), "min_tokens"),
        (json!({"stop_token_ids": [49152]}), "stop_token_ids"),
        (json!({"logit_bias": {"49152": 1}}), "logit_bias"),
    ] {
        let mut body = json!({"model": MODEL, "prompt": "Once", "max_tokens": 8});
        for (name, value) in more.as_object().context("an object")? {
            body[name] = value.clone();
        }
        let reply = tenant.http.post("/v1/completions", &body)?;
        ensure!(reply.status == 400, "{more}: {}", reply.text);
        ensure!(reply.json()["error"]["param"] == param, "{}", reply.text);
    }
    server.until_idle()
}

#[test]
fn all_choices_of_a_stream_end_where_they_were_asked_to() -> Result<()> {
    let server = Server::start()?;
    let tenant = server.tenant("acme")?;
    let body = json!({
        "model": MODEL, "prompt": "Once upon a time", "n": 2, "stream": true, "min_tokens": 3, "max_tokens": 8,
        "logit_bias": {FULL_STOP.to_string(): 100}, "stop_token_ids": [FULL_STOP], "seed": 1,
        "stream_options": {"include_usage": true},
    });
    let mut reasons = [Value::Null, Value::Null];
    let mut tokens = Value::Null;
    let mut stream = tenant.http.stream("/v1/completions", &body)?;
    for chunk in stream.by_ref() {
        let chunk = chunk?;
        if let Some(choice) = chunk["choices"].get(0) {
            ensure!(
                choice["text"]
                    .as_str()
                    .is_some_and(|text| !text.contains('.'))
            );
            let index = choice["index"].as_u64().context("an index")? as usize;
            reasons[index] = choice["finish_reason"].clone();
        } else {
            tokens = chunk["usage"]["completion_tokens"].clone();
        }
    }
    ensure!(stream.ended() && reasons == [json!("stop"), json!("stop")]);
    ensure!(tokens == 6, "three of each: {tokens}");
    Ok(())
}

#[test]
fn a_prompt_that_leaves_no_room_for_an_answer_is_refused_in_the_words_clients_know() -> Result<()> {
    let server = Server::start_configured("context_max = 64\n")?;
    let tenant = server.tenant("acme")?;
    let small = json!({"name": "small", "kv_blocks_max": 1});
    server.admin().post("/admin/v1/tenants", &small)?.ok()?;
    let small = server.key("small")?;
    let ask = |tenant: &Tenant, tokens: usize, stream: bool| {
        let prompt = vec![FULL_STOP; tokens];
        let body = json!({"model": MODEL, "prompt": prompt, "max_tokens": 5, "ignore_eos": true, "stream": stream});
        tenant.http.post("/v1/completions", &body)
    };
    let block = server.admin().get("/admin/v1/models")?.ok()?;
    let block = block["models"][0]["block_tokens"]
        .as_u64()
        .context("a number")? as usize;
    // What is short for the small tenant is blocks, and the last token of an answer needs none.
    for (tenant, room, last_tokens) in [(&tenant, 64, 1), (&small, block, 2)] {
        let last = ask(tenant, room - 1, false)?.ok()?;
        ensure!(last["choices"][0]["finish_reason"] == "length", "{last}");
        ensure!(last["usage"]["completion_tokens"] == last_tokens, "{last}");
        for (tokens, stream) in [(room, false), (room, true), (room + 1, true)] {
            let refused = ask(tenant, tokens, stream)?;
            let error = &refused.json()["error"];
            ensure!(
                refused.status == 400 && refused.retry_after.is_none(),
                "{}",
                refused.text
            );
            ensure!(refused.error_code() == "context_length_exceeded", "{error}");
            ensure!(error["param"] == "prompt", "{error}");
            let words = format!("this model's maximum context length is {room} tokens");
            ensure!(
                error["message"]
                    .as_str()
                    .is_some_and(|it| it.contains(&words)),
                "{error}"
            );
        }
    }
    // As text: more than fits, but not so much that its length alone says so.
    for question in ["a ".repeat(70), "a ".repeat(100)] {
        let reply = tenant
            .http
            .post("/v1/chat/completions", &chat_body(MODEL, &question, 5))?;
        let error = &reply.json()["error"];
        ensure!(
            reply.status == 400 && error["param"] == "messages",
            "{}",
            reply.text
        );
        ensure!(
            reply.text.contains("maximum context length is 64 tokens"),
            "{error}"
        );
    }
    server.until_idle()
}

#[test]
fn a_key_is_made_without_a_body() -> Result<()> {
    let server = Server::start()?;
    server.tenant("acme")?;
    let path = "/admin/v1/tenants/acme/keys";
    let made = server
        .admin()
        .send("POST", path, "application/json", Vec::new())?;
    ensure!(
        made.status == 201 && made.json()["label"] == "",
        "{}",
        made.text
    );
    let null = server.admin().post(path, &json!({"label": null}))?;
    ensure!(null.status == 201, "{}", null.text);
    let wrong = server.admin().post(path, &json!({"lable": "x"}))?;
    ensure!(wrong.status == 400 && wrong.json()["error"]["param"] == "lable");
    let http = server.http(made.json()["key"].as_str());
    ensure!(http.get("/v1/models")?.status == 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_has_nothing_to_say_says_so() -> Result<()> {
    let server = Server::start_configured("keep_alive_ms = 50\n")?;
    let tenant = server.tenant("acme")?;
    let silent = realm_tests::paths::guest("loop_forever")?;
    server.deploy("acme", "silent", &silent)?;
    let mut socket = Socket::connect(server.url(), Some(&tenant.key)).await?;
    let params = json!({"model": "silent", "messages": [{"role": "user", "content": "hi"}]});
    socket
        .send(&json!({"id": "1", "function": "chat", "params": params}))
        .await?;
    for _ in 0..3 {
        let frame = socket.frame().await?;
        let silence = json!({"id": "1", "status": "streaming", "data": {"choice": 0, "text": ""}});
        ensure!(frame == silence, "{frame}");
    }
    Ok(())
}
