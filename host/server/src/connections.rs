//! Connections: accepted up to a bound, served, and hung up on when they take nothing or ask for nothing.
//!
//! A connection is *in use* while a request of somebody with a key is being answered on it; those are safe. Every other
//! one is idle, whatever it sends, and where there is no room the longest idle one makes it, first among those that never had
//! a key: strangers shut nobody out.

mod stream;

use crate::error::ApiError;
use crate::state::{App, Open};
use axum::Router;
use axum::extract::Request;
use axum::http::{Extensions, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use realm_sandbox::Allowance;
use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::context::TokioContext;

use stream::ClientStream;
pub(crate) use stream::ReadMeter;

/// The headers of a request must arrive within this time, counted from the answer before it: longer than common clients
/// keep an idle connection, so that a request does not meet a connection that is just being closed.
const HEADER_WAIT: Duration = Duration::from_secs(30);
/// A new connection has only this long until its first request is there.
const FIRST_REQUEST_WAIT: Duration = Duration::from_secs(10);
/// Bytes of a request's headers, and of what is read ahead of a body that nobody has asked for yet.
const READ_BUFFER_BYTES: usize = 64 << 10;
/// Headers of one request.
const HEADERS_MAX: usize = 100;
/// Connections beyond the bound that are told so at once; what comes while these are all taken is closed without a word.
const REFUSALS_MAX: usize = 64;
/// What a connection may compute at once before it gives way to others: ten times what a request and a page of text take,
/// and a megabyte's way through it.
const BURST: Duration = Duration::from_millis(1);
/// How long one of those may take to ask and to hear it.
const REFUSAL_WAIT: Duration = Duration::from_secs(1);

/// The connections of one listener.
struct Connections {
    open_max: usize,
    slots: Mutex<Slots>,
}

#[derive(Default)]
struct Slots {
    open: usize,
    /// The idle ones: those that never had a key before those that had, and then the longest idle first.
    idle: BTreeMap<IdleKey, Idle>,
    /// The key of the next one that becomes idle.
    next: u64,
}

/// Whether a request with a key was ever answered on the connection, and since when it is idle.
type IdleKey = (bool, u64);

struct Idle {
    peer: IpAddr,
    evict: watch::Sender<bool>,
}

/// One of the connections there may be. Every request carries it, since one that becomes a WebSocket outlives the
/// connection's own task.
#[derive(Clone)]
pub struct Connection(Arc<Slot>);

struct Slot {
    of: Arc<Connections>,
    peer: IpAddr,
    evict: watch::Sender<bool>,
    usage: Mutex<Usage>,
    meter: Arc<ReadMeter>,
}

enum Usage {
    /// Under this key among the idle ones.
    Idle(IdleKey),
    /// By so many requests.
    InUse(usize),
}

/// Keeps a connection from making room for others, until it is dropped.
pub struct InUse(Option<Connection>);

impl Connections {
    fn new(open_max: usize) -> Arc<Connections> {
        Arc::new(Connections {
            open_max,
            slots: Mutex::default(),
        })
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place, an idle connection's if need be; `None` when all are in use.
    fn admit(self: &Arc<Connections>, peer: IpAddr) -> Option<Connection> {
        let mut slots = self.slots();
        if slots.open >= self.open_max {
            slots.evict_one()?;
        }
        slots.open += 1;
        let evict = watch::Sender::new(false);
        let key = slots.enter(false, peer, evict.clone());
        Some(Connection(Arc::new(Slot {
            of: Arc::clone(self),
            peer,
            evict,
            usage: Mutex::new(Usage::Idle(key)),
            meter: Arc::default(),
        })))
    }
}

impl Slots {
    fn enter(&mut self, had_key: bool, peer: IpAddr, evict: watch::Sender<bool>) -> IdleKey {
        let key = (had_key, self.next);
        self.next += 1;
        self.idle.insert(key, Idle { peer, evict });
        key
    }

    /// Hangs up on the longest idle connection of the address that has most of them.
    fn evict_one(&mut self) -> Option<()> {
        let had_key = self.idle.first_key_value()?.0.0;
        let candidates = || self.idle.iter().filter(|(key, _)| key.0 == had_key);
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        for (_, idle) in candidates() {
            *counts.entry(idle.peer).or_default() += 1;
        }
        let most = counts.values().copied().max()?;
        let key = *candidates().find(|(_, idle)| counts[&idle.peer] == most)?.0;
        let idle = self.idle.remove(&key)?;
        self.open -= 1;
        idle.evict.send_replace(true);
        Some(())
    }
}

impl Connection {
    /// Keeps the connection while a request of somebody with a key is answered.
    pub fn in_use(&self) -> InUse {
        let slot = &self.0;
        let mut slots = slot.of.slots();
        let mut usage = slot.usage.lock().unwrap_or_else(PoisonError::into_inner);
        *usage = match *usage {
            Usage::Idle(key) => {
                slots.idle.remove(&key);
                Usage::InUse(1)
            }
            Usage::InUse(requests) => Usage::InUse(requests + 1),
        };
        InUse(Some(self.clone()))
    }

    /// Waits until another connection has been given the place of this one. Safe to drop.
    pub async fn evicted(&self) {
        // The sender is a field of this very connection, so the channel cannot close first.
        let _ = self.0.evict.subscribe().wait_for(|evicted| *evicted).await;
    }

    /// Counts what is read from it.
    pub(crate) fn meter(&self) -> &Arc<ReadMeter> {
        &self.0.meter
    }
}

impl InUse {
    /// Of the connection that a request came over.
    pub fn of(extensions: &Extensions) -> InUse {
        let connection = extensions.get::<Connection>();
        connection.map_or(InUse(None), Connection::in_use)
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let Some(connection) = self.0.take() else {
            return;
        };
        let slot = &connection.0;
        let mut slots = slot.of.slots();
        let mut usage = slot.usage.lock().unwrap_or_else(PoisonError::into_inner);
        *usage = match *usage {
            Usage::InUse(1) if !*slot.evict.borrow() => {
                Usage::Idle(slots.enter(true, slot.peer, slot.evict.clone()))
            }
            Usage::InUse(requests) => Usage::InUse(requests.saturating_sub(1)),
            Usage::Idle(key) => Usage::Idle(key),
        };
        drop(usage);
        drop(slots);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut slots = self.of.slots();
        if let Usage::Idle(key) = *self.usage.get_mut().unwrap_or_else(PoisonError::into_inner) {
            slots.idle.remove(&key);
        }
        // An evicted one has given its place away already.
        if !*self.evict.borrow() {
            slots.open -= 1;
        }
    }
}

/// Accepts until it is aborted. While the server stops it goes on, so that `/ready` can say so: new requests are
/// refused then, and their connections are not waited for.
pub async fn accept(app: Arc<App>, listener: TcpListener, router: Router) {
    let connections = Connections::new(app.config.connections_max as usize);
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                if let Some(connection) = connections.admit(peer.ip()) {
                    let open = (!app.is_stopping()).then(|| Open::new(&app));
                    let served = serve(Arc::clone(&app), stream, router.clone(), connection, open);
                    tokio::spawn(giving_way(Arc::clone(&app), served));
                } else if let Ok(permit) = Arc::clone(&refusals).try_acquire_owned() {
                    tokio::spawn(refuse(app.config.connections_max, stream, permit));
                }
            }
            Err(error) => {
                // Out of descriptors, most likely: they come back when connections end.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Serves a connection, on the threads for what computes while it takes in or gives out more than its share. What it
/// begins (calls, WebSockets) begins on the threads of all in any case.
async fn giving_way(app: Arc<App>, served: impl Future<Output = ()> + Send + 'static) {
    let served = TokioContext::new(served, Handle::current());
    let allowance = Arc::new(Allowance::new(BURST));
    app.sandbox.compute_threads().run(&allowance, served).await;
}

async fn serve(
    app: Arc<App>,
    stream: TcpStream,
    router: Router,
    connection: Connection,
    open: Option<Open>,
) {
    // Tokens go out one by one; waiting for more to send would only delay them.
    let _ = stream.set_nodelay(true);
    let asked = watch::Sender::new(false);
    let router = TowerToHyperService::new(router);
    let (mark, carried) = (asked.clone(), connection.clone());
    let service = service_fn(move |mut request: Request<Incoming>| {
        mark.send_replace(true);
        // With a length beside it, of which nothing may be left by now, only the end of the connection is safe.
        let chunked = request.headers().contains_key(header::TRANSFER_ENCODING);
        let answer = match framing_fault(&request) {
            None => {
                request.extensions_mut().insert(carried.clone());
                Ok(router.call(request))
            }
            Some(fault) => Err(fault),
        };
        async move {
            match answer {
                Ok(answer) if chunked => answer.await.map(closing),
                Ok(answer) => answer.await,
                Err(fault) => Ok(closing(fault.into_response())),
            }
        }
    });
    // A client that takes nothing is hung up on like one that left: what it has open would be held for ever.
    let write_wait = Duration::from_millis(app.config.write_ms_max);
    let stream = ClientStream::new(stream, write_wait, Arc::clone(connection.meter()));
    let served = http(open.is_some())
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut served = std::pin::pin!(served);
    let silent = async {
        tokio::time::sleep(FIRST_REQUEST_WAIT).await;
        let _ = asked.subscribe().wait_for(|asked| !*asked).await;
    };
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = connection.evicted() => return,
        () = silent => return,
        () = app.until_stopping(), if open.is_some() => {
            served.as_mut().graceful_shutdown();
            tokio::select! {
                ended = served => ended,
                () = connection.evicted() => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke off");
    }
}

fn http(keep_alive: bool) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_WAIT)
        .max_buf_size(READ_BUFFER_BYTES)
        .max_headers(HEADERS_MAX)
        .keep_alive(keep_alive);
    builder
}

/// What two readers of the same bytes could understand differently, or an expectation that is not met here.
fn framing_fault(request: &Request<Incoming>) -> Option<ApiError> {
    let headers = request.headers();
    let chunked = headers.contains_key(header::TRANSFER_ENCODING);
    if chunked && headers.contains_key(header::CONTENT_LENGTH) {
        let what = "a request must not have both Content-Length and Transfer-Encoding";
        return Some(ApiError::invalid(what));
    }
    let expected = headers.get(header::EXPECT)?;
    (!expected.as_bytes().eq_ignore_ascii_case(b"100-continue")).then(|| {
        ApiError::new(
            StatusCode::EXPECTATION_FAILED,
            "invalid_request_error",
            "expectation_failed",
            "the only expectation that can be met is 100-continue",
        )
    })
}

fn closing(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Answers one request with a 503, whatever it asks.
async fn refuse(connections_max: u32, stream: TcpStream, _permit: OwnedSemaphorePermit) {
    let service = service_fn(move |_: Request<Incoming>| async move {
        let refused = ApiError::too_many_connections(connections_max).into_response();
        Ok::<_, Infallible>(refused)
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(READ_BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    // Whether it is heard or not: the connection ends.
    let _ = tokio::time::timeout(REFUSAL_WAIT, connection).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    fn is_evicted(connection: &Connection) -> bool {
        *connection.0.evict.borrow()
    }

    #[test]
    fn the_longest_idle_connection_makes_room_and_one_in_use_never_does() {
        let connections = Connections::new(3);
        let admit = || connections.admit(ONE);
        let (first, second, third) = (admit().unwrap(), admit().unwrap(), admit().unwrap());
        let used = first.in_use();
        let fourth = admit().unwrap();
        assert!(is_evicted(&second) && !is_evicted(&first) && !is_evicted(&third));
        drop(second); // it gave its place away and has none to give back
        drop(used); // idle again, but it had a key
        let fifth = admit().unwrap();
        assert!(is_evicted(&third) && !is_evicted(&first));
        let sixth = admit().unwrap();
        assert!(is_evicted(&fourth) && !is_evicted(&first));
        let all = [first.in_use(), fifth.in_use(), sixth.in_use()];
        assert!(admit().is_none(), "all are in use");
        drop(all);
        drop((first, third, fourth, fifth, sixth));
        let slots = connections.slots();
        assert_eq!((slots.open, slots.idle.len()), (0, 0));
    }

    #[test]
    fn the_address_with_most_idle_connections_makes_room() {
        let connections = Connections::new(3);
        let lone = connections.admit(OTHER).unwrap();
        let flood = [
            connections.admit(ONE).unwrap(),
            connections.admit(ONE).unwrap(),
        ];
        let more = connections.admit(ONE).unwrap();
        assert!(!is_evicted(&lone) && is_evicted(&flood[0]) && !is_evicted(&more));
    }
}
