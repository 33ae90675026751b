//! Connections: accepted up to a bound, served, and hung up on when they take nothing or ask for nothing.

use crate::error::ApiError;
use crate::state::{App, Open};
use axum::Router;
use axum::extract::Request;
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_io_timeout::TimeoutStream;

/// The headers of a request must arrive within this time, counted from the answer before it: longer than common clients
/// keep an idle connection, so that a request does not meet a connection that is just being closed.
const HEADER_WAIT: Duration = Duration::from_secs(30);
/// Connections beyond the bound that are told so at once; what comes while these are all taken is closed without a word.
const REFUSALS_MAX: usize = 64;
/// How long one of those may take to ask and to hear it.
const REFUSAL_WAIT: Duration = Duration::from_secs(1);

/// One of the connections there may be. Every request of the connection carries it, since one that becomes a WebSocket
/// outlives the connection's own task.
#[derive(Clone)]
pub struct Place {
    _permit: Arc<OwnedSemaphorePermit>,
}

/// Accepts until it is aborted. While the server stops it goes on, so that `/ready` can say so: new requests are
/// refused then, and their connections are not waited for.
pub async fn accept(app: Arc<App>, listener: TcpListener, router: Router) {
    let places = Arc::new(Semaphore::new(app.config.connections_max as usize));
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if let Ok(permit) = Arc::clone(&places).try_acquire_owned() {
                    let place = Place {
                        _permit: Arc::new(permit),
                    };
                    let open = (!app.is_stopping()).then(|| Open::new(&app));
                    let served = connection(Arc::clone(&app), stream, router.clone(), place, open);
                    tokio::spawn(served);
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

async fn connection(
    app: Arc<App>,
    stream: TcpStream,
    router: Router,
    place: Place,
    open: Option<Open>,
) {
    // Tokens go out one by one; waiting for more to send would only delay them.
    let _ = stream.set_nodelay(true);
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_WAIT)
        .keep_alive(open.is_some());
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(place.clone());
        router.call(request)
    });
    // A client that takes nothing is hung up on like one that left: what it has open would be held for ever.
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(Duration::from_millis(app.config.write_ms_max)));
    let connection = builder
        .serve_connection(TokioIo::new(Box::pin(stream)), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = app.until_stopping(), if open.is_some() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke off");
    }
}

/// Answers one request with a 503, whatever it asks.
async fn refuse(connections_max: u32, stream: TcpStream, _permit: OwnedSemaphorePermit) {
    let service = service_fn(move |_: Request<Incoming>| async move {
        let refused = ApiError::too_many_connections(connections_max).into_response();
        Ok::<_, Infallible>(refused)
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // Whether it is heard or not: the connection ends.
    let _ = tokio::time::timeout(REFUSAL_WAIT, connection).await;
}
