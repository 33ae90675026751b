//! Frames on their way to a client: each is charged to its tenant until it is written.

use super::frame;
use crate::error::{ApiError, ApiResult};
use axum::extract::ws::{Message, WebSocket};
use futures_util::SinkExt;
use futures_util::stream::SplitSink;
use realm_sandbox::{MemoryCharge, TenantMemory};
use serde::Serialize;
use serde_json::Value;
use std::sync::Arc;
use tokio::sync::mpsc;

/// A frame with what it holds of its tenant's memory.
pub(in crate::ingress) struct OutFrame {
    message: Message,
    _charge: Option<MemoryCharge>,
}

impl OutFrame {
    /// A small one that the server says of itself.
    pub(super) fn free(message: Message) -> OutFrame {
        OutFrame {
            message,
            _charge: None,
        }
    }
}

/// Where the frames of one call go.
#[derive(Clone)]
pub(in crate::ingress) struct Outgoing {
    id: Value,
    frames: mpsc::Sender<OutFrame>,
    memory: Arc<TenantMemory>,
}

impl Outgoing {
    pub(super) fn new(
        id: Value,
        frames: mpsc::Sender<OutFrame>,
        memory: Arc<TenantMemory>,
    ) -> Outgoing {
        Outgoing { id, frames, memory }
    }

    /// Sends more of the answer. Waits while the client is behind, and with it the component.
    ///
    /// # Errors
    /// When the client is gone or the tenant's memory is in use.
    pub(in crate::ingress) async fn streaming<T: Serialize>(&self, data: &T) -> ApiResult<()> {
        let frame = self.charged(frame::streaming(&self.id, data))?;
        self.frames
            .send(frame)
            .await
            .map_err(|_| ApiError::invalid("the client has disconnected"))
    }

    /// The frame that completes the call.
    ///
    /// # Errors
    /// When the tenant's memory is in use.
    pub(super) fn complete<T: Serialize>(&self, data: &T) -> ApiResult<OutFrame> {
        self.charged(frame::complete(&self.id, data))
    }

    /// The frame that ends the call as the client wanted.
    pub(super) fn cancelled(&self) -> OutFrame {
        OutFrame::free(Message::text(frame::cancelled(&self.id)))
    }

    /// The frame that ends the call with an error.
    pub(super) fn failed(&self, error: &ApiError) -> OutFrame {
        OutFrame::free(Message::text(frame::error(&self.id, error)))
    }

    /// Sends the last frame.
    pub(super) async fn send(&self, frame: OutFrame) {
        // It fails when the writer is gone, and then the reader is about to find out as well.
        let _ = self.frames.send(frame).await;
    }

    fn charged(&self, text: String) -> ApiResult<OutFrame> {
        let charge = MemoryCharge::new(&self.memory, text.len())?;
        Ok(OutFrame {
            message: Message::text(text),
            _charge: Some(charge),
        })
    }
}

/// Writes frames until there are no more, or the client takes none.
pub(super) async fn write(
    mut sink: SplitSink<WebSocket, Message>,
    mut frames: mpsc::Receiver<OutFrame>,
) {
    while let Some(frame) = frames.recv().await {
        if sink.send(frame.message).await.is_err() {
            return;
        }
    }
    let _ = sink.close().await;
}
