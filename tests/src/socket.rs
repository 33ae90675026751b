//! A WebSocket client of `/ws`: JSON frames out, JSON frames in, nothing waits for ever.

use anyhow::{Context, Result, bail};
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{WebSocketStream, client_async};

/// A frame that does not come within this time fails the test.
const FRAME_WAIT: Duration = Duration::from_secs(60);

/// One open connection.
pub struct Socket {
    stream: WebSocketStream<TcpStream>,
}

impl Socket {
    /// Connects to `/ws` of a server at `base` (`http://...`), with the key in the header when there is one.
    pub async fn connect(base: &str, key: Option<&str>) -> Result<Socket> {
        let stream = TcpStream::connect(base.trim_start_matches("http://")).await?;
        Socket::connect_over(stream, base, key).await
    }

    /// The same over a TCP connection to the server that the caller has opened.
    pub async fn connect_over(stream: TcpStream, base: &str, key: Option<&str>) -> Result<Socket> {
        let url = format!("{}/ws", base.replacen("http", "ws", 1));
        let mut request = url.into_client_request()?;
        if let Some(key) = key {
            request
                .headers_mut()
                .insert("authorization", format!("Bearer {key}").parse()?);
        }
        let (stream, _) = client_async(request, stream)
            .await
            .context("the WebSocket handshake")?;
        Ok(Socket { stream })
    }

    /// Sends one JSON frame.
    pub async fn send(&mut self, frame: &Value) -> Result<()> {
        self.send_text(&frame.to_string()).await
    }

    /// Sends one text frame as it is.
    pub async fn send_text(&mut self, text: &str) -> Result<()> {
        self.send_message(Message::text(text)).await
    }

    /// Sends any frame.
    pub async fn send_message(&mut self, message: Message) -> Result<()> {
        self.stream.send(message).await.context("sending a frame")
    }

    /// The next JSON frame; `None` when the server closed the connection.
    pub async fn next(&mut self) -> Result<Option<Value>> {
        loop {
            let message = tokio::time::timeout(FRAME_WAIT, self.stream.next())
                .await
                .context("no frame came")?;
            match message {
                None | Some(Ok(Message::Close(_))) => return Ok(None),
                Some(Ok(Message::Text(text))) => {
                    return Ok(Some(
                        serde_json::from_str(&text).with_context(|| format!("frame {text:?}"))?,
                    ));
                }
                Some(Ok(Message::Binary(_))) => bail!("the server sent a binary frame"),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error).context("reading a frame"),
            }
        }
    }

    /// The next frame, which must come.
    pub async fn frame(&mut self) -> Result<Value> {
        self.next()
            .await?
            .context("the server closed the connection")
    }

    /// Reads frames until one of call `id` has a status other than `streaming`; returns that one. Frames of other calls
    /// are passed over, so use it for a call that runs alone.
    pub async fn finish(&mut self, id: &str) -> Result<Value> {
        loop {
            let frame = self.frame().await?;
            if frame["id"] == id && frame["status"] != "streaming" {
                return Ok(frame);
            }
        }
    }

    /// One call from start to end.
    pub async fn call(&mut self, id: &str, function: &str, params: Value) -> Result<Value> {
        self.send(&serde_json::json!({"id": id, "function": function, "params": params}))
            .await?;
        self.finish(id).await
    }
}
