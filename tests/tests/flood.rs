//! One tenant sends more text at once than the machine could hold as it used to: the server stays small, every request is
//! refused for what it is, and another tenant's stream says what it always says.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use realm_tests::http::delta_text;
use realm_tests::server::{MODEL, Server, Tenant, chat_body};
use realm_tests::socket::Socket;
use serde_json::{Value, json};

/// Requests at once, and bytes of each: just under what is read at all.
const REQUESTS: usize = 40;
const TEXT_BYTES: usize = (4 << 20) - 500;
/// How much larger the server may be at its largest than before.
const GROWTH_KIB_MAX: u64 = 300 * 1000;

/// Kibibytes of a process: of memory now, or at its largest.
fn memory_kib(server: &Server, field: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.with_context(|| format!("no {field} in the status"))?;
    let digits: String = kib.chars().filter(char::is_ascii_digit).collect();
    Ok(digits.parse()?)
}

fn text() -> String {
    let mut text = "word ".repeat(TEXT_BYTES / 5 + 1);
    text.truncate(TEXT_BYTES);
    text
}

/// The same text in every place of a chat that becomes part of a prompt.
fn chats() -> Vec<Value> {
    let user = json!({"role": "user", "content": "Hello"});
    let call = |arguments: String| json!([{"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}]);
    let messages = [
        json!([{"role": "user", "content": text()}]),
        json!([{"role": "user", "content": [{"type": "text", "text": text()}]}]),
        json!([user, {"role": "user", "content": "x", "name": text()}]),
        json!([user, {"role": "assistant", "tool_calls": call(text())}, user]),
    ];
    let chat = |messages: &Value| json!({"model": MODEL, "messages": messages});
    messages.iter().map(chat).collect()
}

fn neighbour_stream(neighbour: &Tenant) -> Result<String> {
    let mut body = chat_body(MODEL, "Tell me about the history of Rome.", 60);
    body["stream"] = json!(true);
    let mut stream = neighbour.http.stream("/v1/chat/completions", &body)?;
    let mut text = String::new();
    for event in stream.by_ref() {
        text.push_str(&delta_text(&event?)?);
    }
    ensure!(stream.ended(), "the stream broke off after {text:?}");
    Ok(text)
}

#[test]
fn forty_huge_chats_at_once_are_refused_in_little_memory() -> Result<()> {
    let server = Server::start()?;
    let (flooder, neighbour) = (server.tenant("flooder")?, server.tenant("neighbour")?);
    let undisturbed = neighbour_stream(&neighbour)?;
    for chat in chats() {
        let body = chat.to_string().into_bytes();
        let before = memory_kib(&server, "VmRSS:")?;
        std::thread::scope(|scope| -> Result<()> {
            let ask = || {
                let path = "/v1/chat/completions";
                flooder
                    .http
                    .send("POST", path, "application/json", body.clone())
            };
            let asked: Vec<_> = (0..REQUESTS).map(|_| scope.spawn(ask)).collect();
            let beside = neighbour_stream(&neighbour)?;
            ensure!(beside == undisturbed, "beside the flood: {beside}");
            for reply in asked {
                let reply = reply.join().expect("no panic")?;
                ensure!(
                    reply.status == 400 && reply.error_code() == "context_length_exceeded",
                    "{}: {}",
                    reply.status,
                    reply.text
                );
            }
            Ok(())
        })?;
        let growth = memory_kib(&server, "VmHWM:")?.saturating_sub(before);
        println!("grew by {growth} KiB at most");
        ensure!(growth < GROWTH_KIB_MAX, "the server grew by {growth} KiB");
    }
    server.until_idle()
}

#[tokio::test(flavor = "multi_thread")]
async fn huge_calls_over_a_websocket_leave_nothing_behind() -> Result<()> {
    let server = Server::start()?;
    let flooder = server.tenant("flooder")?;
    let mut socket = Socket::connect(server.url(), Some(&flooder.key)).await?;
    let before = memory_kib(&server, "VmRSS:")?;
    for chat in chats() {
        for id in 0..5 {
            let id = id.to_string();
            let refused = socket.call(&id, "chat", chat.clone()).await?;
            ensure!(
                refused["error"]["code"] == "context_length_exceeded",
                "{refused}"
            );
        }
    }
    // A fifth of all that was sent, at most, is ever there at once.
    let growth = memory_kib(&server, "VmHWM:")?.saturating_sub(before);
    println!("grew by {growth} KiB at most");
    ensure!(
        growth < GROWTH_KIB_MAX / 4,
        "the server grew by {growth} KiB"
    );
    Ok(())
}

#[test]
fn json_that_becomes_trees_of_values_is_charged_as_what_it_becomes() -> Result<()> {
    let server = Server::start_configured("tenant_memory_mib = 20\n")?;
    let tenant = server.tenant("acme")?;
    let ask = |value: &str| {
        let mut chat = chat_body(MODEL, "Hello", 1);
        let value: Value = serde_json::from_str(value)?;
        chat["chat_template_kwargs"] = json!({"unused": value});
        tenant.http.post("/v1/chat/completions", &chat)
    };
    let lists = format!("[{}[]]", "[],".repeat(16_000));
    let text = json!("x".repeat(lists.len())).to_string();
    let fits = ask(&text)?;
    ensure!(fits.status == 200, "as one text: {}", fits.text);
    let refused = ask(&lists)?;
    ensure!(
        (refused.status, refused.error_code().as_str()) == (400, "request_too_large"),
        "as many lists, for which waiting does not help: {}",
        refused.text
    );
    server.until_idle()
}
