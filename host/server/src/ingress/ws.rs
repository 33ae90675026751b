//! `/ws`: many calls at once over one connection, as JSON text frames.
//!
//! The reader decides about frames, one task runs each call, one task writes. A call ends with exactly one frame that
//! is not `streaming`; its id is free again before that frame goes out. The end of the connection ends its calls.

mod call;
mod frame;

use super::BODY_BYTES_MAX;
use crate::auth::bearer;
use crate::connections::Place;
use crate::error::{ApiError, ApiResult};
use crate::state::{App, Open};
use axum::Extension;
use axum::extract::State;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use frame::Frame;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
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
/// How often a silent client is asked whether it is there.
const PING_EVERY: Duration = Duration::from_secs(30);
/// A client that does not even answer that is gone.
const SILENCE_MAX: Duration = Duration::from_secs(90);
/// What is still to be written when a connection ends has this long.
const FLUSH_WAIT: Duration = Duration::from_secs(2);
/// Closed for want of a key.
const CLOSE_UNAUTHORIZED: u16 = 4401;
/// Closed because the server stops.
const CLOSE_GOING_AWAY: u16 = 1001;
/// Closed because the tenant has too many connections already.
const CLOSE_TRY_AGAIN: u16 = 1013;

/// `GET /ws`.
pub(super) async fn upgrade(
    State(app): State<Arc<App>>,
    Extension(place): Extension<Place>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    // A wrong key in the header is refused before there is a connection to keep.
    let owner = match bearer(&headers).map(|key| Owner::of(&app, key)).transpose() {
        Ok(owner) => owner,
        Err(error) => return error.into_response(),
    };
    if app.is_stopping() {
        return ApiError::stopping().into_response();
    }
    let held = (Open::new(&app), place);
    upgrade
        .max_message_size(BODY_BYTES_MAX)
        .max_frame_size(BODY_BYTES_MAX)
        .on_upgrade(async move |socket| serve(app, socket, owner, held).await)
}

/// Whose connection it is, and the place it takes among that tenant's.
struct Owner {
    key: String,
    tenant: u32,
    _place: OwnedSemaphorePermit,
}

impl Owner {
    fn of(app: &App, key: &str) -> ApiResult<Owner> {
        let tenant = app.authenticate(Some(key))?;
        let place = app.admit_socket(&tenant)?;
        Ok(Owner {
            key: key.to_owned(),
            tenant: tenant.row.id,
            _place: place,
        })
    }
}

async fn serve(app: Arc<App>, socket: WebSocket, owner: Option<Owner>, _held: (Open, Place)) {
    let (sink, stream) = socket.split();
    let (out, frames) = mpsc::channel(FRAMES_MAX);
    let writer = tokio::spawn(write(sink, frames));
    let mut connection = Connection {
        app,
        owner,
        out,
        stream,
        live: Live::default(),
        tasks: JoinSet::new(),
        heard: Instant::now(),
    };
    let close = connection.run().await;
    // First the calls: nothing of theirs may follow the close frame.
    connection.tasks.shutdown().await;
    if let Some((code, reason)) = close {
        let frame = CloseFrame {
            code,
            reason: reason.into(),
        };
        let _ = tokio::time::timeout(FLUSH_WAIT, connection.out.send(Message::Close(Some(frame))))
            .await;
    }
    drop(connection);
    let abort = writer.abort_handle();
    if tokio::time::timeout(FLUSH_WAIT, writer).await.is_err() {
        abort.abort();
    }
}

async fn write(mut sink: SplitSink<WebSocket, Message>, mut frames: mpsc::Receiver<Message>) {
    while let Some(frame) = frames.recv().await {
        if sink.send(frame).await.is_err() {
            return;
        }
    }
    let _ = sink.close().await;
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
            let message = format!("the id {id} belongs to a call that has not ended");
            return Err(ApiError {
                code: "duplicate_id".into(),
                ..ApiError::invalid(message)
            });
        }
        if live.len() >= CALLS_MAX {
            let error = ApiError::too_many_requests(CALLS_MAX);
            let message =
                format!("{CALLS_MAX} calls are under way, which is the limit of a connection");
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
            let message = format!("no call with the id {id} is under way on this connection");
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

struct Connection {
    app: Arc<App>,
    /// Nobody's only until the first frame.
    owner: Option<Owner>,
    out: mpsc::Sender<Message>,
    stream: SplitStream<WebSocket>,
    live: Live,
    tasks: JoinSet<()>,
    heard: Instant,
}

/// Why the server closes a connection; nothing when the client did.
type Close = Option<(u16, &'static str)>;

impl Connection {
    async fn run(&mut self) -> Close {
        if self.owner.is_none()
            && let Err(close) = self.authenticate().await
        {
            return close;
        }
        let app = Arc::clone(&self.app);
        let out = self.out.clone();
        let mut pings = tokio::time::interval(PING_EVERY);
        let mut stopping = false;
        loop {
            if stopping && self.tasks.is_empty() {
                return Some((CLOSE_GOING_AWAY, "the server is stopping"));
            }
            tokio::select! {
                message = self.stream.next() => {
                    self.heard = Instant::now();
                    match message {
                        Some(Ok(Message::Text(text))) => self.receive(&text).await,
                        Some(Ok(Message::Binary(_))) => {
                            self.send(frame::error(&Value::Null, &ApiError::invalid("frames must be text"))).await;
                        }
                        Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                        Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                    }
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
                    let _ = self.out.try_send(Message::Ping(Vec::new().into()));
                }
            }
        }
    }

    /// Waits for the frame with the key.
    async fn authenticate(&mut self) -> Result<(), Close> {
        let unauthorized = Some((CLOSE_UNAUTHORIZED, "no valid API key"));
        let first = tokio::time::timeout(AUTH_WAIT, async {
            loop {
                match self.stream.next().await {
                    Some(Ok(Message::Text(text))) => return Some(text),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    _ => return None,
                }
            }
        });
        let Ok(first) = first.await else {
            return Err(unauthorized);
        };
        let Some(text) = first else { return Err(None) };
        match frame::parse(&text) {
            Ok(Frame::Auth { api_key }) => match self.take_key(&api_key).await {
                Ok(()) => Ok(()),
                Err(StatusCode::TOO_MANY_REQUESTS) => {
                    Err(Some((CLOSE_TRY_AGAIN, "too many connections")))
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
                self.send(json!({"type": "auth_success", "tenant": tenant}))
                    .await;
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
            owner => *owner = Some(Owner::of(&self.app, key)?),
        }
        Ok(name)
    }

    async fn receive(&mut self, text: &str) {
        let refused = match frame::parse(text) {
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
            Err(wrong) => Some((wrong.id, wrong.error)),
        };
        if let Some((id, error)) = refused {
            self.send(frame::error(&id, &error)).await;
        }
    }

    fn start(&mut self, id: &Value, function: String, params: Value) -> ApiResult<()> {
        // Looked up for every call: a key can be revoked while a connection is open.
        let key = self.owner.as_ref().map(|owner| owner.key.as_str());
        let tenant = self.app.authenticate(key)?;
        let admission = self.app.admit(&tenant)?;
        let cancelled = self.live.enter(id)?;
        let (app, id, live, out) = (
            Arc::clone(&self.app),
            id.clone(),
            self.live.clone(),
            self.out.clone(),
        );
        self.tasks.spawn(async move {
            let call = call::Call {
                app,
                tenant,
                id: id.clone(),
                function,
                params,
                out: out.clone(),
            };
            let last = call.run(admission, cancelled).await;
            live.leave(&id);
            let _ = out.send(Message::text(last.to_string())).await;
        });
        Ok(())
    }

    /// Counts a call that was refused before it began, as HTTP counts such requests.
    fn count_refused(&self, error: &ApiError) {
        let key = self.owner.as_ref().map(|owner| owner.key.as_str());
        let tenant = self.app.authenticate(key);
        let name = tenant.as_ref().map_or("-", |tenant| &tenant.row.name);
        call::count(&self.app, name, error.status.as_str());
    }

    async fn send(&self, frame: Value) {
        // It fails when the writer is gone, and then the reader is about to find out as well.
        let _ = self.out.send(Message::text(frame.to_string())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
