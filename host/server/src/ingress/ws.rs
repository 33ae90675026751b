//! `/ws`: many calls at once over one connection, as JSON text frames.
//!
//! The reader decides about frames, one task runs each call, one task writes. A call ends with exactly one frame that
//! is not `streaming`; its id is free again before that frame goes out. The end of the connection ends its calls.

mod call;
mod fault;
mod frame;
mod outgoing;

pub(in crate::ingress) use outgoing::{OutFrame, Outgoing};

use super::body::{BODY_BYTES_MAX, LARGE_BYTES, TenantBody};
use crate::auth::bearer;
use crate::connections::{Connection, InUse};
use crate::error::{ApiError, ApiResult};
use crate::state::{App, Open, TenantEntry};
use axum::Extension;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, close_code};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use call::FunctionCall;
use frame::{BadFrame, Frame};
use futures_util::StreamExt;
use futures_util::stream::SplitStream;
use outgoing::write;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Calls of one connection at once.
const CALLS_MAX: usize = 32;
/// Frames that wait to be written; more, and the calls wait.
const FRAMES_MAX: usize = 64;
/// A connection without a key in its header must send one within this time.
const AUTH_WAIT: Duration = Duration::from_secs(10);
/// And this much of anything at most.
const AUTH_BYTES_MAX: usize = 16 << 10;
/// How often a silent client is asked whether it is there, at least.
const PING_EVERY: Duration = Duration::from_secs(30);
/// A client that does not even answer that is gone.
const SILENCE_MAX: Duration = Duration::from_secs(90);
/// What is still to be written when a connection ends has this long.
const FLUSH_WAIT: Duration = Duration::from_secs(2);
/// What a connection reads and writes at a time, and has set aside for as long as it is open.
const BUFFER_BYTES: usize = 16 << 10;
/// Closed for want of a key.
const CLOSE_UNAUTHORIZED: u16 = 4401;

/// `GET /ws`.
pub(super) async fn upgrade(
    State(app): State<Arc<App>>,
    Extension(connection): Extension<Connection>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(rejection) => return ApiError::from(rejection).into_response(),
    };
    // A wrong key in the header is refused before there is a connection to keep.
    let key = bearer(&headers);
    let owner = match key.map(|key| Owner::of(&app, key, &connection)).transpose() {
        Ok(owner) => owner,
        Err(error) => return error.into_response(),
    };
    if app.is_stopping() {
        return ApiError::stopping().into_response();
    }
    let open = Open::new(&app);
    upgrade
        .max_message_size(BODY_BYTES_MAX)
        .max_frame_size(BODY_BYTES_MAX)
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(BUFFER_BYTES)
        .on_upgrade(async move |socket| serve(app, socket, owner, connection, open).await)
}

/// Whose connection it is, and the place it takes among that tenant's.
struct Owner {
    key: String,
    tenant: u32,
    _permit: OwnedSemaphorePermit,
    _in_use: InUse,
}

impl Owner {
    fn of(app: &App, key: &str, connection: &Connection) -> ApiResult<Owner> {
        let tenant = app.authenticate(Some(key))?;
        let permit = app.admit_socket(&tenant)?;
        connection.meter().charge_to(&tenant.memory);
        Ok(Owner {
            key: key.to_owned(),
            tenant: tenant.row.id,
            _permit: permit,
            _in_use: connection.in_use(),
        })
    }
}

async fn serve(
    app: Arc<App>,
    socket: WebSocket,
    owner: Option<Owner>,
    connection: Connection,
    _open: Open,
) {
    if owner.is_none() {
        connection.meter().allow(AUTH_BYTES_MAX);
    }
    let (sink, stream) = socket.split();
    let (out, frames) = mpsc::channel(FRAMES_MAX);
    let writer = tokio::spawn(write(sink, frames));
    let mut session = Session {
        app,
        owner,
        connection,
        out,
        stream,
        live: Live::default(),
        tasks: JoinSet::new(),
        heard: Instant::now(),
    };
    let close = session.run().await;
    // First the calls: nothing of theirs may follow the close frame.
    session.tasks.shutdown().await;
    if let Some((code, reason)) = close {
        let frame = CloseFrame {
            code,
            reason: reason.into(),
        };
        let frame = OutFrame::free(Message::Close(Some(frame)));
        let _ = tokio::time::timeout(FLUSH_WAIT, session.out.send(frame)).await;
    }
    drop(session);
    let abort = writer.abort_handle();
    if tokio::time::timeout(FLUSH_WAIT, writer).await.is_err() {
        abort.abort();
    }
}

/// The calls under way by id, each with what cancels it. Tasks take themselves out.
#[derive(Clone, Default)]
struct Live(Arc<Mutex<HashMap<String, oneshot::Sender<()>>>>);

impl Live {
    /// Enters a call.
    fn enter(&self, id: &Value) -> ApiResult<oneshot::Receiver<()>> {
        let mut live = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = id.to_string();
        if live.contains_key(&key) {
            let message = format!("the id {id} already belongs to a call in progress");
            return Err(ApiError {
                code: "duplicate_id".into(),
                ..ApiError::invalid(message)
            });
        }
        if live.len() >= CALLS_MAX {
            let error = ApiError::too_many_requests(CALLS_MAX);
            let message = format!(
                "this connection already has {CALLS_MAX} calls in progress, which is the limit"
            );
            return Err(ApiError {
                code: "too_many_calls".into(),
                message,
                ..error
            });
        }
        let (cancel, cancelled) = oneshot::channel();
        live.insert(key, cancel);
        Ok(cancelled)
    }

    /// Whether a call has this id.
    fn has(&self, id: &Value) -> bool {
        let live = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        live.contains_key(&id.to_string())
    }

    /// Takes a call out; whether it was there.
    fn leave(&self, id: &Value) -> Option<oneshot::Sender<()>> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&id.to_string())
    }

    /// Cancels a call, which stays entered until it has said so.
    fn cancel(&self, id: &Value) -> ApiResult<()> {
        let mut live = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(cancel) = live.get_mut(&id.to_string()) else {
            let message = format!("this connection has no call in progress with the id {id}");
            return Err(ApiError {
                code: "no_such_call".into(),
                ..ApiError::not_found(message)
            });
        };
        // A sender that nobody waits for takes its place: cancelling twice is no error.
        let _ = std::mem::replace(cancel, oneshot::channel().0).send(());
        Ok(())
    }
}

/// One connection's conversation.
struct Session {
    app: Arc<App>,
    /// Nobody's only until the first frame.
    owner: Option<Owner>,
    connection: Connection,
    out: mpsc::Sender<OutFrame>,
    stream: SplitStream<WebSocket>,
    live: Live,
    tasks: JoinSet<()>,
    heard: Instant,
}

/// Why the server closes a connection; nothing when the client did.
type Close = Option<(u16, &'static str)>;

impl Session {
    async fn run(&mut self) -> Close {
        if self.owner.is_none()
            && let Err(close) = self.authenticate().await
        {
            return close;
        }
        let app = Arc::clone(&self.app);
        let out = self.out.clone();
        let mut pings = tokio::time::interval(PING_EVERY.min(app.config.keep_alive()));
        let mut stopping = false;
        loop {
            if stopping && self.tasks.is_empty() {
                return Some((close_code::AWAY, "the server is stopping"));
            }
            tokio::select! {
                message = self.stream.next() => {
                    self.heard = Instant::now();
                    match message {
                        Some(Ok(Message::Text(text))) => self.receive(text).await,
                        Some(Ok(Message::Binary(_))) => {
                            let error = ApiError::invalid("binary frames are not supported; frames must be text");
                            self.send(frame::error(&Value::Null, &error)).await;
                        }
                        Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                        Some(Err(error)) => return fault::close_for(&error),
                        Some(Ok(Message::Close(_))) | None => return None,
                    }
                    self.connection.meter().message_ended();
                }
                Some(_) = self.tasks.join_next() => {}
                // The writer gave up: the client is gone, or takes nothing.
                () = out.closed() => return None,
                () = app.until_stopping(), if !stopping => stopping = true,
                _ = pings.tick() => {
                    if self.heard.elapsed() > SILENCE_MAX {
                        return None;
                    }
                    // A full queue means that the client is behind, and then it is silence that decides.
                    let _ = self.out.try_send(OutFrame::free(Message::Ping(Vec::new().into())));
                }
            }
        }
    }

    /// Waits for the frame with the key.
    async fn authenticate(&mut self) -> Result<(), Close> {
        let unauthorized = Some((CLOSE_UNAUTHORIZED, "a valid API key is required"));
        let first = tokio::time::timeout(AUTH_WAIT, async {
            loop {
                match self.stream.next().await {
                    Some(Ok(Message::Text(text))) => return Ok(text),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    Some(Ok(Message::Binary(_))) => return Err(unauthorized),
                    Some(Err(error)) => return Err(fault::close_for(&error)),
                    Some(Ok(Message::Close(_))) | None => return Err(None),
                }
            }
        });
        let first = tokio::select! {
            first = first => first,
            () = self.connection.evicted() => return Err(None),
        };
        let text = first.unwrap_or(Err(unauthorized))?;
        match frame::parse(&text) {
            Ok(Frame::Auth { api_key }) => match self.take_key(&api_key).await {
                Ok(()) => Ok(()),
                Err(StatusCode::TOO_MANY_REQUESTS) => {
                    Err(Some((close_code::AGAIN, "too many connections")))
                }
                Err(_) => Err(unauthorized),
            },
            Ok(Frame::Call { id, .. } | Frame::Cancel { id }) => {
                self.send(frame::error(&id, &ApiError::unauthorized()))
                    .await;
                Err(unauthorized)
            }
            Err(wrong) => {
                self.send(frame::error(&wrong.id, &ApiError::unauthorized()))
                    .await;
                Err(unauthorized)
            }
        }
    }

    /// Checks a key, keeps it, and answers. A refusal is also answered; its status comes back.
    async fn take_key(&mut self, key: &str) -> Result<(), StatusCode> {
        match self.change_owner(key) {
            Ok(tenant) => {
                let frame = serde_json::json!({"type": "auth_success", "tenant": tenant});
                self.send(frame.to_string()).await;
                Ok(())
            }
            Err(error) => {
                self.send(frame::error(&Value::Null, &error)).await;
                Err(error.status)
            }
        }
    }

    /// The name of the tenant whose connection it is now. Another key of the same tenant takes no further place.
    fn change_owner(&mut self, key: &str) -> ApiResult<String> {
        let tenant = self.app.authenticate(Some(key))?;
        let name = tenant.row.name.clone();
        match &mut self.owner {
            Some(owner) if owner.tenant == tenant.row.id => {
                owner.key = key.to_owned();
            }
            owner => *owner = Some(Owner::of(&self.app, key, &self.connection)?),
        }
        Ok(name)
    }

    /// Reads a frame, a large one off this thread.
    async fn parse(&self, text: Utf8Bytes) -> Result<Frame, Box<BadFrame>> {
        if text.len() <= LARGE_BYTES {
            return frame::parse(&text);
        }
        let parsed = async {
            let tenant = self.tenant()?;
            let parse = |text: &[u8]| {
                let text = std::str::from_utf8(text).map_err(|error| ApiError::internal(&error))?;
                Ok(frame::parse(text))
            };
            let body = TenantBody::arrived(&tenant, text)?;
            let (frame, _) = body.parse(&self.app, &tenant, parse, |_| 0).await?;
            Ok(frame)
        };
        parsed.await.unwrap_or_else(|error| {
            Err(Box::new(BadFrame {
                id: Value::Null,
                error,
            }))
        })
    }

    /// Whose connection it is. Looked up each time: a key can be revoked while a connection is open.
    fn tenant(&self) -> ApiResult<Arc<TenantEntry>> {
        let key = self.owner.as_ref().map(|owner| owner.key.as_str());
        self.app.authenticate(key)
    }

    async fn receive(&mut self, text: Utf8Bytes) {
        let refused = match self.parse(text).await {
            Ok(Frame::Auth { api_key }) => {
                // A refused key changes nothing, and was answered.
                let _ = self.take_key(&api_key).await;
                return;
            }
            Ok(Frame::Call {
                id,
                function,
                params,
            }) => match self.start(&id, function, params) {
                Ok(()) => None,
                Err(error) => {
                    self.count_refused(&error);
                    Some((id, error))
                }
            },
            Ok(Frame::Cancel { id }) => self.live.cancel(&id).err().map(|error| (id, error)),
            Err(bad) => Some((bad.id, bad.error)),
        };
        if let Some((id, error)) = refused {
            self.send(match self.live.has(&id) {
                true => frame::error_beside(&id, &error),
                false => frame::error(&id, &error),
            })
            .await;
        }
    }

    fn start(&mut self, id: &Value, function: String, params: String) -> ApiResult<()> {
        let tenant = self.tenant()?;
        let admission = self.app.admit(&tenant, self.connection.in_use())?;
        let params = TenantBody::arrived(&tenant, params)?;
        let cancelled = self.live.enter(id)?;
        let out = Outgoing::new(id.clone(), self.out.clone(), Arc::clone(&tenant.memory));
        let call = FunctionCall {
            app: Arc::clone(&self.app),
            tenant,
            function,
            params,
            out: out.clone(),
        };
        let (id, live) = (id.clone(), self.live.clone());
        self.tasks.spawn(async move {
            let last = call.run(admission, cancelled).await;
            live.leave(&id);
            out.send(last).await;
        });
        Ok(())
    }

    /// Counts a call that was refused before it began, as HTTP counts such requests.
    fn count_refused(&self, error: &ApiError) {
        let tenant = self.tenant();
        let name = tenant.as_ref().map_or("-", |tenant| &tenant.row.name);
        call::count(&self.app, name, error.status.as_str());
    }

    async fn send(&self, frame: String) {
        // It fails when the writer is gone, and then the reader is about to find out as well.
        let frame = OutFrame::free(Message::text(frame));
        let _ = self.out.send(frame).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_id_is_taken_until_its_call_has_left() {
        let live = Live::default();
        let id = json!("a");
        let mut cancelled = live.enter(&id).unwrap();
        assert_eq!(live.enter(&id).unwrap_err().code, "duplicate_id");
        assert!(
            live.enter(&json!(1)).is_ok() && live.enter(&json!("1")).is_ok(),
            "a number is no string"
        );
        assert_eq!(live.cancel(&json!("b")).unwrap_err().code, "no_such_call");
        assert!(cancelled.try_recv().is_err());
        live.cancel(&id).unwrap();
        live.cancel(&id).unwrap();
        assert!(cancelled.try_recv().is_ok());
        assert!(live.enter(&id).is_err(), "cancelled, but not yet ended");
        live.leave(&id);
        assert!(live.enter(&id).is_ok());
    }

    #[test]
    fn a_connection_has_a_bounded_number_of_calls() {
        let live = Live::default();
        let entered: Vec<_> = (0..CALLS_MAX)
            .map(|id| live.enter(&json!(id)).unwrap())
            .collect();
        assert_eq!(
            live.enter(&json!("more")).unwrap_err().code,
            "too_many_calls"
        );
        drop(entered);
    }
}
