//! `realm call`: one function of a tenant's workflow over `/ws`, its answer on standard output.

use super::client::line;
use anyhow::{Context, Result, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::Error;

#[derive(clap::Args)]
pub(super) struct Call {
    /// WORKFLOW.FUNCTION, or a built-in such as `metadata`
    function: String,
    /// Its parameters, as JSON
    #[arg(default_value = "{}")]
    parameters: String,
    /// URL of the data plane
    #[arg(long, env = "REALM_URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// The tenant's API key
    #[arg(
        long,
        env = "REALM_API_KEY",
        hide_env_values = true,
        value_name = "KEY"
    )]
    api_key: String,
}

pub(super) async fn call(call: Call) -> Result<()> {
    let parameters: Value =
        serde_json::from_str(&call.parameters).context("the parameters are not valid JSON")?;
    let address = call.url.trim_end_matches('/');
    ensure!(
        address.starts_with("http://"),
        "the URL {address} does not begin with http://"
    );
    let mut request = format!("{}/ws", address.replacen("http", "ws", 1)).into_client_request()?;
    let key = format!("Bearer {}", call.api_key)
        .parse()
        .context("the API key contains characters that no key has")?;
    request.headers_mut().insert("authorization", key);
    let mut socket = match connect_async(request).await {
        Ok((socket, _)) => socket,
        Err(Error::Http(answer)) if answer.status() == 401 => {
            bail!("the API key is unknown or revoked")
        }
        Err(error) => return Err(error).with_context(|| format!("cannot reach {address}")),
    };
    let frame = json!({"id": 1, "function": call.function, "params": parameters});
    socket
        .send(Message::text(frame.to_string()))
        .await
        .context("sending the call")?;
    while let Some(message) = socket.next().await {
        let Message::Text(text) = message.context("reading the answer")? else {
            continue;
        };
        let frame: Value =
            serde_json::from_str(&text).context("the server sent a frame that is not valid JSON")?;
        match frame["status"].as_str() {
            Some("streaming") => line(&frame["data"].to_string())?,
            Some("complete") => {
                line(&frame["data"].to_string())?;
                let _ = socket.close(None).await; // the answer is here; a close that fails changes nothing
                return Ok(());
            }
            Some("error") => {
                let (code, message) = (&frame["error"]["code"], &frame["error"]["message"]);
                bail!(
                    "{}: {}",
                    code.as_str().unwrap_or("error"),
                    message.as_str().unwrap_or_default()
                );
            }
            _ => bail!("the server sent an unexpected frame: {frame}"),
        }
    }
    bail!("the server closed the connection before it answered")
}
