//! A plain HTTP client: one request, its status and JSON body, or its server-sent events one at a time.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::time::Duration;
use ureq::http::{Request, Response, header};
use ureq::{Agent, Body};

/// Nothing a test asks for takes longer; a server that hangs fails the test instead of hanging it.
const REQUEST_MS_MAX: u64 = 120_000;

/// A client of one base address that sends one bearer token with every request.
#[derive(Clone)]
pub struct Http {
    agent: Agent,
    base: String,
    token: Option<String>,
}

/// A whole answer.
#[derive(Debug)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The `Retry-After` header, in seconds.
    pub retry_after: Option<String>,
    /// The body as text.
    pub text: String,
}

impl Reply {
    /// The body as JSON; `Null` when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or(Value::Null)
    }

    /// The JSON body of an answer with a 2xx status; else an error that shows the answer.
    pub fn ok(self) -> Result<Value> {
        ensure!(
            (200..300).contains(&self.status),
            "status {}: {}",
            self.status,
            self.text
        );
        Ok(self.json())
    }

    /// The `error.code` of an OpenAI error body, else an empty string.
    pub fn error_code(&self) -> String {
        self.json()["error"]["code"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }
}

impl Http {
    /// A client for `base` (as `http://127.0.0.1:8080`).
    pub fn new(base: &str, token: Option<&str>) -> Http {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_millis(REQUEST_MS_MAX)))
            .build();
        Http {
            agent: config.new_agent(),
            base: base.to_owned(),
            token: token.map(str::to_owned),
        }
    }

    /// The base address.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// `GET path`.
    pub fn get(&self, path: &str) -> Result<Reply> {
        self.send("GET", path, "application/json", Vec::new())
    }

    /// `DELETE path`.
    pub fn delete(&self, path: &str) -> Result<Reply> {
        self.send("DELETE", path, "application/json", Vec::new())
    }

    /// `POST path` with a JSON body.
    pub fn post(&self, path: &str, body: &Value) -> Result<Reply> {
        self.send(
            "POST",
            path,
            "application/json",
            body.to_string().into_bytes(),
        )
    }

    /// One request with any body.
    pub fn send(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: Vec<u8>,
    ) -> Result<Reply> {
        let mut response = self.open(method, path, content_type, body)?;
        let retry_after = response.headers().get(header::RETRY_AFTER);
        Ok(Reply {
            status: response.status().as_u16(),
            retry_after: retry_after
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned),
            text: response
                .body_mut()
                .read_to_string()
                .with_context(|| format!("body of {method} {path}"))?,
        })
    }

    /// `POST path` with a JSON body whose answer is an event stream. An answer that is no stream is an error.
    pub fn stream(&self, path: &str, body: &Value) -> Result<Events> {
        let mut response = self.open(
            "POST",
            path,
            "application/json",
            body.to_string().into_bytes(),
        )?;
        let content_type = response.headers().get(header::CONTENT_TYPE);
        let is_stream =
            content_type.is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"));
        if !is_stream {
            bail!(
                "no event stream: status {}: {}",
                response.status(),
                response.body_mut().read_to_string()?
            );
        }
        Ok(Events {
            lines: BufReader::new(Box::new(response.into_body().into_reader())),
            ended: false,
        })
    }

    fn open(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: Vec<u8>,
    ) -> Result<Response<Body>> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(header::CONTENT_TYPE, content_type);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request
            .body(body)
            .context("a request made of plain parts")?;
        self.agent
            .run(request)
            .with_context(|| format!("{method} {}{path}", self.base))
    }
}

/// The `data:` events of a stream, in order, until `[DONE]`. Dropping it closes the connection: a client that hangs up.
pub struct Events {
    lines: BufReader<Box<dyn Read + Send>>,
    ended: bool,
}

impl Events {
    /// Whether `[DONE]` was seen, and not only the end of the connection.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Reads to the end and joins what the chunks say: the text of chat deltas or completion chunks of choice 0.
    pub fn text(&mut self) -> Result<String> {
        let mut text = String::new();
        for event in self.by_ref() {
            text.push_str(&delta_text(&event?)?);
        }
        ensure!(self.ended, "the stream broke off after {text:?}");
        Ok(text)
    }
}

/// The text one chunk adds to choice 0. A chunk that carries an error is an error.
pub fn delta_text(chunk: &Value) -> Result<String> {
    ensure!(
        chunk.get("error").is_none(),
        "the stream ended in an error: {chunk}"
    );
    let Some(choice) = chunk["choices"].get(0) else {
        return Ok(String::new());
    };
    let text = choice["delta"]["content"]
        .as_str()
        .or_else(|| choice["text"].as_str());
    Ok(text.unwrap_or_default().to_owned())
}

impl Iterator for Events {
    type Item = Result<Value>;

    fn next(&mut self) -> Option<Result<Value>> {
        if self.ended {
            return None;
        }
        let mut line = String::new();
        loop {
            line.clear();
            match self.lines.read_line(&mut line) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) => return Some(Err(error).context("reading the stream")),
            }
            let Some(data) = line.trim_end().strip_prefix("data:") else {
                continue;
            };
            let data = data.trim_start();
            if data == "[DONE]" {
                self.ended = true;
                return None;
            }
            return Some(
                serde_json::from_str(data)
                    .with_context(|| format!("event {data:?} is not valid JSON")),
            );
        }
    }
}
