//! The client of the admin plane: one request, its JSON answer, and the server's own words when it refuses.

use anyhow::{Context, Result, bail};
use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, header};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use std::path::PathBuf;

/// No answer of the admin plane is larger.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Where the admin plane is and what opens it.
#[derive(clap::Args)]
pub(super) struct Admin {
    /// URL of the admin plane
    #[arg(
        long,
        global = true,
        env = "REALM_ADMIN_URL",
        value_name = "URL",
        default_value = "http://127.0.0.1:8081"
    )]
    admin_url: String,
    /// The operator's token [default: the one in the data folder]
    #[arg(
        long,
        global = true,
        env = "REALM_ADMIN_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true
    )]
    admin_token: Option<String>,
    /// Data folder of a server on this machine, where its token is kept
    #[arg(
        long,
        global = true,
        env = "REALM_DATA_DIR",
        value_name = "DIR",
        default_value = ".realm"
    )]
    data_dir: PathBuf,
}

impl Admin {
    /// `GET path`.
    pub(super) async fn get(&self, path: &str) -> Result<Value> {
        self.send(Method::GET, path, "application/json", Vec::new())
            .await
    }

    /// `POST path` with a JSON body.
    pub(super) async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.send(
            Method::POST,
            path,
            "application/json",
            body.to_string().into_bytes(),
        )
        .await
    }

    /// `DELETE path`.
    pub(super) async fn delete(&self, path: &str) -> Result<Value> {
        self.send(Method::DELETE, path, "application/json", Vec::new())
            .await
    }

    /// One request; the JSON of an answer that says yes.
    ///
    /// # Errors
    /// What the server says when it says no, or that it cannot be reached.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        content: &str,
        body: Vec<u8>,
    ) -> Result<Value> {
        let url = format!("{}{path}", self.admin_url.trim_end_matches('/'));
        let request = Request::builder()
            .method(method)
            .uri(&url)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token()?))
            .header(header::CONTENT_TYPE, content)
            .body(Body::from(body))
            .with_context(|| format!("{url} is not a valid URL"))?;
        let client: Client<HttpConnector, Body> =
            Client::builder(TokioExecutor::new()).build_http();
        let response = client
            .request(request)
            .await
            .with_context(|| format!("cannot reach {}", self.admin_url))?;
        let status = response.status();
        let bytes = to_bytes(Body::new(response.into_body()), ANSWER_BYTES_MAX)
            .await
            .context("reading the answer")?;
        let answer: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        if !status.is_success() {
            match answer["error"]["message"].as_str() {
                Some(message) => bail!("{message} ({status})"),
                None => bail!("the server answered with status {status}"),
            }
        }
        Ok(answer)
    }

    fn token(&self) -> Result<String> {
        if let Some(token) = &self.admin_token {
            return Ok(token.clone());
        }
        let path = self.data_dir.join("admin-token");
        let text = std::fs::read_to_string(&path);
        let text = text
            .with_context(|| format!("no admin token is set (--admin-token) and none can be read from {}", path.display()))?;
        Ok(text.trim().to_owned())
    }
}

/// A name as one part of a path.
pub(super) fn part(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    name.bytes()
        .map(|byte| {
            if plain(byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

/// Prints a line. A reader that has gone away, as `head` does, is no failure worth a panic.
pub(super) fn line(text: &str) -> Result<()> {
    use std::io::Write;
    writeln!(std::io::stdout(), "{text}").context("writing to standard output")
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_name_cannot_leave_its_part_of_the_path() {
        assert_eq!(super::part("acme-1"), "acme-1");
        assert_eq!(super::part("../a b/ä"), "..%2Fa%20b%2F%C3%A4");
    }
}
