//! Bodies of requests: held against their limit before they are read, charged to their tenant from the first byte, read
//! into one buffer, parsed off the async threads where they are large, and dropped. Whole answers likewise: they stay
//! charged until the client has taken them.

use super::json;
use crate::background;
use crate::error::{ApiError, ApiResult, shown};
use crate::state::{App, RECEIVING_BYTES_MAX, TenantEntry};
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use futures_util::StreamExt;
use hyper::body::{Frame, SizeHint};
use realm_sandbox::MemoryCharge;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

/// Bytes of a request's body on the data plane, and of a frame of `/ws`.
pub(crate) const BODY_BYTES_MAX: usize = 4 << 20;
/// A large body waits this long for others of its tenant.
const TURN_WAIT: Duration = Duration::from_secs(10);
/// Above this a body is large: it waits for its turn, and is parsed where it may take its time.
pub(super) const LARGE_BYTES: usize = 64 << 10;
/// What parsing takes beside the text, at most, as a multiple of it: the strings made of it, in buffers that double.
const PARSE_FACTOR: usize = 3;
/// What is set aside for a body that does not say how long it is, at first.
const UNKNOWN_BYTES: usize = 16 << 10;

const _: () = assert!(
    RECEIVING_BYTES_MAX >= BODY_BYTES_MAX,
    "one body always fits"
);

/// The body of a tenant's request: all of it, its charge, and its place among those that are being received.
pub(super) struct TenantBody {
    bytes: Bytes,
    charge: MemoryCharge,
    _place: Option<OwnedSemaphorePermit>,
}

impl TenantBody {
    /// Reads a body, which has `wait` to arrive.
    ///
    /// # Errors
    /// 413 (before anything is read where the length is announced), 408, 415, 400 when it breaks off, 429 when the
    /// tenant's memory is in use.
    pub(super) async fn read(
        tenant: &TenantEntry,
        parts: &Parts,
        body: Body,
        wait: Duration,
    ) -> ApiResult<TenantBody> {
        if let Some(Compressed(length)) = parts.extensions.get() {
            length_within(length, BODY_BYTES_MAX)?;
        }
        let announced = announced_length(&parts.headers, BODY_BYTES_MAX)?;
        let expected = announced.unwrap_or(BODY_BYTES_MAX);
        let place = receiving_place(tenant, expected).await?;
        let charge = tenant.charge(expected)?;
        let bytes = read_bytes(body, announced, BODY_BYTES_MAX, wait).await?;
        Ok(TenantBody {
            bytes: bytes.into(),
            charge,
            _place: place,
        })
    }

    /// A text that has arrived in another way.
    ///
    /// # Errors
    /// 429 when the tenant's memory is in use.
    pub(super) fn arrived(tenant: &TenantEntry, text: impl Into<Bytes>) -> ApiResult<TenantBody> {
        let bytes = text.into();
        Ok(TenantBody {
            charge: tenant.charge(bytes.len())?,
            bytes,
            _place: None,
        })
    }

    /// The bytes themselves.
    pub(super) fn into_text(self) -> ApiResult<(String, MemoryCharge)> {
        let text = String::from_utf8(self.bytes.into())
            .map_err(|_| ApiError::invalid("the text is not valid UTF-8"))?;
        Ok((text, self.charge))
    }

    /// Makes a typed request of the body, which is then gone: what is held, and charged, from here on is the request.
    ///
    /// # Errors
    /// Those of `parse`, and 429 when the tenant's memory is in use.
    pub(super) async fn parse<T: Send + 'static>(
        self,
        app: &Arc<App>,
        tenant: &TenantEntry,
        parse: impl FnOnce(&[u8]) -> ApiResult<T> + Send + 'static,
        heap_bytes: impl FnOnce(&T) -> usize,
    ) -> ApiResult<(T, MemoryCharge)> {
        let TenantBody {
            bytes,
            mut charge,
            _place: place,
        } = self;
        let is_large = bytes.len() > LARGE_BYTES;
        // First among the tenant's own, so that a tenant has one in the line of all.
        let turns = match is_large {
            true => Some((
                Arc::clone(&tenant.bodies.parsing).acquire_owned().await,
                Arc::clone(&app.parsing).acquire_owned().await,
            )),
            false => None,
        };
        charge.resize(bytes.len() * (1 + PARSE_FACTOR))?;
        // The charge and the turns are the parser's: it goes on to its end when the client hangs up. The bytes go with it.
        let parse = move || {
            let _turns = (place, turns);
            (parse(&bytes), charge)
        };
        let (parsed, mut charge) = if is_large {
            let parsed = background::run(parse).await;
            parsed.map_err(|error| ApiError::internal(&error))?
        } else {
            parse()
        };
        let parsed = parsed?;
        charge.resize(heap_bytes(&parsed))?;
        Ok((parsed, charge))
    }
}

/// Bytes of an answer that are given to the connection at a time.
const ANSWER_PIECE_BYTES: usize = 64 << 10;

/// A whole answer with what it holds of its tenant's memory.
struct ChargedAnswer {
    bytes: Bytes,
    _charge: MemoryCharge,
}

impl hyper::body::Body for ChargedAnswer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        // The connection asks for more when what it has is written.
        let piece = self.bytes.len().min(ANSWER_PIECE_BYTES);
        let piece = self.bytes.split_to(piece);
        Poll::Ready((!piece.is_empty()).then_some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.len() as u64)
    }
}

/// An answer of JSON, which stays charged until the client has taken it.
pub(super) fn json_answer(body: &Value, mut charge: MemoryCharge) -> ApiResult<Response> {
    let bytes = Bytes::from(body.to_string());
    charge.resize(bytes.len())?;
    let answer = ChargedAnswer {
        bytes,
        _charge: charge,
    };
    let mut response = Response::new(Body::new(answer));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    Ok(response)
}

/// A place for a large body among those of its tenant.
async fn receiving_place(
    tenant: &TenantEntry,
    bytes: usize,
) -> ApiResult<Option<OwnedSemaphorePermit>> {
    if bytes <= LARGE_BYTES {
        return Ok(None);
    }
    let permits = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
    let place = Arc::clone(&tenant.bodies.receiving).acquire_many_owned(permits);
    match timeout(TURN_WAIT, place).await {
        Ok(Ok(place)) => Ok(Some(place)),
        _ => Err(ApiError::memory_in_use()),
    }
}

/// The length that the headers announce, of a body in a form that is read.
fn announced_length(headers: &HeaderMap, bytes_max: usize) -> ApiResult<Option<usize>> {
    // Where gzip is read it was taken off before this; what is left is something else.
    let mut encodings = headers.get_all(header::CONTENT_ENCODING).into_iter();
    if let Some(encoding) = encodings.find(|it| !it.as_bytes().eq_ignore_ascii_case(b"identity")) {
        let name = String::from_utf8_lossy(encoding.as_bytes());
        let message = format!(
            "the content encoding {:?} is not supported; send the request body uncompressed",
            shown(&name)
        );
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "invalid_request_error",
            "unsupported_encoding",
            message,
        ));
    }
    let Some(length) = headers.get(header::CONTENT_LENGTH) else {
        return Ok(None);
    };
    length_within(length, bytes_max).map(Some)
}

fn length_within(length: &HeaderValue, bytes_max: usize) -> ApiResult<usize> {
    let length = length.to_str().ok().and_then(|length| length.parse().ok());
    match length {
        Some(length) if length <= bytes_max => Ok(length),
        // hyper refuses what is no number, so this is one that no machine can hold.
        _ => Err(ApiError::too_large(bytes_max)),
    }
}

/// The length that was announced for a body that is decompressed: what does it takes the header away.
#[derive(Clone)]
struct Compressed(HeaderValue);

/// Writes the one encoding of a body in the one way by which what decompresses it knows it.
pub(super) async fn one_encoding(mut request: Request) -> Request {
    let values = request.headers().get_all(header::CONTENT_ENCODING);
    let words = values
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let mut words = words
        .map(<[u8]>::trim_ascii)
        .filter(|word| !word.is_empty() && !word.eq_ignore_ascii_case(b"identity"));
    let is_gzip = |word: &[u8]| {
        [&b"gzip"[..], b"x-gzip"]
            .iter()
            .any(|it| word.eq_ignore_ascii_case(it))
    };
    let first_is_gzip = words.next().map(is_gzip);
    let is_one = words.next().is_none();
    match first_is_gzip {
        None => {
            request.headers_mut().remove(header::CONTENT_ENCODING);
        }
        Some(true) if is_one => {
            let gzip = HeaderValue::from_static("gzip");
            request.headers_mut().insert(header::CONTENT_ENCODING, gzip);
            if let Some(length) = request.headers().get(header::CONTENT_LENGTH).cloned() {
                request.extensions_mut().insert(Compressed(length));
            }
        }
        _ => {} // refused where the body is read
    }
    request
}

/// Reads a JSON body of the operator's, which has `wait` to arrive.
///
/// # Errors
/// 413, 408, 415, or 400 when it is not what is asked for.
pub(crate) async fn read_json<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Body,
    bytes_max: usize,
    wait: Duration,
) -> ApiResult<T> {
    json::parse(
        &read_body(headers, body, bytes_max, wait).await?,
        "the request body",
    )
}

/// Reads a body of the operator's, which has `wait` to arrive.
///
/// # Errors
/// 413, 408, 415, or 400 when it breaks off.
pub(crate) async fn read_body(
    headers: &HeaderMap,
    body: Body,
    bytes_max: usize,
    wait: Duration,
) -> ApiResult<Vec<u8>> {
    let announced = announced_length(headers, bytes_max)?;
    read_bytes(body, announced, bytes_max, wait).await
}

async fn read_bytes(
    body: Body,
    announced: Option<usize>,
    bytes_max: usize,
    wait: Duration,
) -> ApiResult<Vec<u8>> {
    let read = async {
        let mut bytes = Vec::with_capacity(announced.unwrap_or(UNKNOWN_BYTES.min(bytes_max)));
        let mut pieces = body.into_data_stream();
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|_| {
                ApiError::invalid("the request body ended early or could not be decoded")
            })?;
            if bytes.len() + piece.len() > bytes_max {
                return Err(ApiError::too_large(bytes_max));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    };
    timeout(wait, read)
        .await
        .unwrap_or_else(|_| Err(ApiError::body_timeout(wait)))
}
