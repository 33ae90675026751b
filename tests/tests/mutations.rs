//! Damaged requests and frames, from fixed seeds, on the real server: each is answered or refused with a status of the
//! documentation, the server lives on, and another tenant's stream says what it always says.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use realm_tests::server::{MODEL, Server, Tenant, chat_body, template_of_everything};
use realm_tests::socket::Socket;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

/// Damaged bodies for each route, and damaged frames.
const BODIES: u64 = 150;
const FRAMES: u64 = 400;
const ROUTES: [&str; 3] = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"];
/// Statuses that a request of any content may be answered with (docs/wire.md). Overload is none: one request at a time.
const ALLOWED: [u16; 8] = [200, 400, 403, 404, 408, 413, 422, 429];

/// Makes damage, the same on every machine.
struct Damage(Rng);

impl Damage {
    fn seeded(seed: u64) -> Damage {
        Damage(Rng::with_seed(seed))
    }

    fn below(&mut self, end: usize) -> usize {
        self.0.usize(..end)
    }

    /// A value of any type, absurd ones among them.
    fn value(&mut self) -> Value {
        match self.below(16) {
            0 => Value::Null,
            1 => json!(true),
            2 => json!(-1),
            3 => json!(u64::MAX),
            4 => json!(i64::MIN),
            5 => json!(1e308),
            6 => json!(0.5),
            7 => json!(""),
            8 => json!("\u{0}\u{202e}\u{10ffff}"),
            9 => json!("x".repeat(5_000)),
            10 => json!([]),
            11 => json!({}),
            12 => json!([null, [[]], {"role": []}]),
            13 => (0..100).fold(json!("deep"), |inner, _| json!([inner])),
            14 => (0..100).fold(json!("deep"), |inner, _| json!({"content": inner})),
            _ => json!({"": {"type": "function", "content": [0]}}),
        }
    }

    /// Replaces, removes, repeats or adds something somewhere in a JSON value.
    fn damage(&mut self, value: &mut Value) {
        let count = match value {
            Value::Object(map) => map.len(),
            Value::Array(list) => list.len(),
            _ => 0,
        };
        if count == 0 || self.below(4) == 0 {
            *value = self.value();
            return;
        }
        let at = self.below(count);
        match value {
            Value::Object(map) => {
                let key = map.keys().nth(at).cloned().unwrap_or_default();
                match self.below(8) {
                    0 => drop(map.remove(&key)),
                    1 => drop(map.insert(format!("{key}s"), self.value())),
                    _ => self.damage(&mut map[&key]),
                }
            }
            Value::Array(list) => match self.below(8) {
                0 => drop(list.remove(at)),
                1 => list.extend(vec![list[at].clone(); 1 + self.below(20)]),
                _ => self.damage(&mut list[at]),
            },
            _ => (),
        }
    }

    /// What parsers of JSON and of UTF-8 are known to stumble over.
    fn snippet(&mut self) -> Vec<u8> {
        match self.below(8) {
            0 => b"[".repeat(20_000),
            1 => b"{\"a\":".repeat(20_000),
            2 => b"\\ud800".to_vec(),
            3 => b"\xed\xa0\x80".to_vec(),
            4 => b"1e999".to_vec(),
            5 => b"9".repeat(5_000),
            6 => b"\"model\":\"\",\"id\":1,\"model\":null,".to_vec(),
            _ => b"\xef\xbb\xbf".to_vec(),
        }
    }

    /// Flips, overwrites, cuts or puts in bytes, so that the text is often no JSON and no UTF-8 any more.
    fn damage_bytes(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..1 + self.below(3) {
            if bytes.is_empty() {
                return;
            }
            let at = self.below(bytes.len());
            match self.below(4) {
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = b"{}[]\",:0\\\xff\x00"[self.below(11)],
                2 => drop(bytes.splice(at..at, self.snippet())),
                _ => bytes.truncate(at),
            }
        }
    }
}

/// A request that uses every field there is.
fn full_body() -> Value {
    json!({
        "model": MODEL, "prompt": "Once upon a time", "input": ["a text"], "encoding_format": "float",
        "messages": [
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hello"}], "name": "a"},
            {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "1", "content": "12"},
        ],
        "max_tokens": 2, "temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.05, "n": 2, "stop": ["a", "b"], "seed": 7,
        "presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1, "logit_bias": {"5": -10},
        "logprobs": true, "top_logprobs": 2, "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "tool_choice": "auto", "stream": true, "stream_options": {"include_usage": true},
    })
}

/// The fields that one route reads, damaged in up to two places; text often damaged further.
fn body(route: &str, random: &mut Damage) -> Vec<u8> {
    let mut body = full_body();
    let fields = body.as_object_mut().expect("an object");
    let others: &[&str] = match route {
        "/v1/chat/completions" => &["prompt", "input"],
        "/v1/completions" => &[
            "messages",
            "input",
            "tools",
            "tool_choice",
            "top_logprobs",
            "logprobs",
        ],
        _ => &["messages", "prompt"],
    };
    for other in others {
        fields.remove(*other);
    }
    for _ in 0..1 + random.below(2) {
        random.damage(&mut body);
    }
    let limited = body.get("max_tokens") == Some(&json!(2));
    if let (false, Some(fields)) = (limited, body.as_object_mut()) {
        // An absurd number here is tried, but not a long answer.
        fields.insert("stop".into(), json!(["a", "e", "o", " "]));
    }
    let mut bytes = body.to_string().into_bytes();
    if random.below(3) == 0 {
        random.damage_bytes(&mut bytes);
    }
    bytes
}

/// A bystander's whole answer.
fn bystander(tenant: &Tenant) -> Result<String> {
    let mut body = chat_body(MODEL, "Tell me about the history of Rome.", 24);
    body["stream"] = json!(true);
    tenant.http.stream("/v1/chat/completions", &body)?.text()
}

#[test]
fn damaged_bodies_get_a_documented_status_and_disturb_nobody() -> Result<()> {
    let mut server = Server::start_configured(&template_of_everything())?;
    let (sender, other) = (server.tenant("sender")?, server.tenant("other")?);
    let undisturbed = bystander(&other)?;
    let mut seen = std::collections::BTreeMap::new();
    for route in ROUTES {
        for seed in 0..BODIES {
            let bytes = body(route, &mut Damage::seeded(seed));
            let sent = String::from_utf8_lossy(&bytes).into_owned();
            let reply = sender
                .http
                .send("POST", route, "application/json", bytes)
                .with_context(|| format!("{route}, seed {seed}: {sent}"))?;
            ensure!(
                ALLOWED.contains(&reply.status),
                "{route}, seed {seed}: {} {} for {sent}",
                reply.status,
                reply.text
            );
            if reply.status != 200 {
                let error = &reply.json()["error"];
                ensure!(
                    error["code"].is_string() && error["message"].is_string(),
                    "{route}, seed {seed}: an untyped error {} for {sent}",
                    reply.text
                );
            }
            *seen.entry((route, reply.status)).or_insert(0) += 1;
        }
        assert_eq!(bystander(&other)?, undisturbed, "after {route}");
    }
    println!("{seen:?}");
    assert!(seen.contains_key(&(ROUTES[0], 200)) && seen.contains_key(&(ROUTES[0], 400)));
    assert!(server.is_alive()?);
    server.until_idle()
}

/// A call or a frame of another kind, damaged.
fn frame(random: &mut Damage) -> Message {
    let mut frame = match random.below(5) {
        0 => {
            json!({"id": "1", "function": "generate", "params": {"prompt": "Once", "max_tokens": 2, "stop": ["e"]}})
        }
        1 => json!({"id": 2, "function": "chat", "params": full_body()}),
        2 => json!({"id": "3", "cancel": true}),
        3 => json!({"id": 4, "function": "metadata", "params": {}}),
        _ => json!({"type": "ping", "id": null, "function": []}),
    };
    if frame["function"] == "chat" {
        for other in ["prompt", "input", "encoding_format"] {
            frame["params"]
                .as_object_mut()
                .expect("an object")
                .remove(other);
        }
    }
    random.damage(&mut frame);
    let mut bytes = frame.to_string().into_bytes();
    match random.below(8) {
        0 => Message::binary(bytes),
        1 | 2 => {
            random.damage_bytes(&mut bytes);
            Message::text(String::from_utf8_lossy(&bytes).into_owned())
        }
        3 => {
            bytes.truncate(random.below(126)); // a ping's most
            Message::Ping(bytes.into())
        }
        4 => Message::text(""),
        _ => Message::text(String::from_utf8_lossy(&bytes).into_owned()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_frames_are_answered_or_end_their_own_connection_only() -> Result<()> {
    let mut server = Server::start_configured(&template_of_everything())?;
    let (sender, other) = (server.tenant("sender")?, server.tenant("other")?);
    let undisturbed = tokio::task::block_in_place(|| bystander(&other))?;
    let mut beside = Socket::connect(server.url(), Some(&other.key)).await?;
    let mut random = Damage::seeded(0);
    let (mut errors, mut connections) = (0, 0);
    let mut sent = 0;
    while sent < FRAMES {
        connections += 1;
        let mut socket = Socket::connect(server.url(), Some(&sender.key)).await?;
        for _ in 0..20.min(FRAMES - sent) {
            sent += 1;
            // A connection that a frame ended is followed by a new one.
            if socket.send_message(frame(&mut random)).await.is_err() {
                break;
            }
        }
        // A call that is surely one has its answer behind all that went before, unless the connection was ended.
        if socket
            .send(&json!({"id": "last", "function": "health"}))
            .await
            .is_err()
        {
            continue;
        }
        while let Ok(Some(answer)) = socket.next().await {
            let code = answer["error"]["code"].as_str();
            ensure!(
                !matches!(code, Some("internal_error")),
                "an error of the host: {answer}"
            );
            errors += u32::from(code.is_some());
            if answer["id"] == "last" {
                break;
            }
        }
        let answer = beside
            .call(&format!("{connections}"), "health", json!({}))
            .await?;
        assert_eq!(answer["status"], "complete", "{answer}");
    }
    println!("{sent} frames on {connections} connections, {errors} refused");
    assert!(errors > 0, "damage is answered");
    assert!(server.is_alive()?);
    tokio::task::block_in_place(|| -> Result<()> {
        assert_eq!(bystander(&other)?, undisturbed);
        server.until_idle()
    })
}
