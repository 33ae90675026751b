//! Every answer that is an error: the one place where causes become statuses, codes and OpenAI bodies.

use crate::registry::{BlobError, CatalogError};
use axum::Json;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use realm_sandbox::{CallError, GuestError, NoMemory};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::time::Duration;

/// An error as the client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// OpenAI's `type`: the family.
    pub kind: &'static str,
    /// The stable word for programs.
    pub code: Cow<'static, str>,
    /// For people. Holds nothing that only the operator may know.
    pub message: String,
    /// The field of the request that is at fault.
    pub param: Option<String>,
    /// When to try again.
    pub retry_after_ms: Option<u32>,
}

/// A parse or a check that ends in the client's error.
pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    /// Any error.
    pub fn new(
        status: StatusCode,
        kind: &'static str,
        code: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) -> ApiError {
        ApiError {
            status,
            kind,
            code: code.into(),
            message: message.into(),
            param: None,
            retry_after_ms: None,
        }
    }

    /// The request is wrong.
    pub fn invalid(message: impl Into<String>) -> ApiError {
        ApiError::new(
            StatusCode::BAD_REQUEST,
            "invalid_request_error",
            "invalid_request",
            message,
        )
    }

    /// One field of the request is wrong; the message names it.
    pub fn field(name: &str, what: impl std::fmt::Display) -> ApiError {
        ApiError {
            param: Some(name.to_owned()),
            ..ApiError::invalid(format!("{name}: {what}"))
        }
    }

    /// One field of the request asks for something that is not done here.
    pub fn unsupported(name: &str, what: impl std::fmt::Display) -> ApiError {
        ApiError {
            code: "unsupported".into(),
            ..ApiError::field(name, format!("{what} is not supported"))
        }
    }

    /// The prompt, in the field `name` where it has one, and an answer cannot both fit. Clients look for these words.
    pub fn context_full(name: Option<&str>, context_tokens: u32) -> ApiError {
        let what = format!(
            "this model's maximum context length is {context_tokens} tokens, and the prompt does not leave room in it for an answer"
        );
        ApiError {
            code: "context_length_exceeded".into(),
            ..name.map_or_else(
                || ApiError::invalid(&*what),
                |name| ApiError::field(name, &what),
            )
        }
    }

    /// The same error of a part of the request: `path` goes in front of the field's own.
    #[must_use]
    pub fn below(mut self, path: &str) -> ApiError {
        match self.param.as_mut() {
            Some(param) if self.message.starts_with(&*param) => {
                self.message = format!("{path}.{}", self.message);
                *param = format!("{path}.{param}");
            }
            _ => {
                self.message = format!("{path}: {}", self.message);
                self.param = Some(path.to_owned());
            }
        }
        self
    }

    /// No key, or one that has been revoked.
    pub fn unauthorized() -> ApiError {
        let message = "the API key is missing, unknown or revoked";
        ApiError::new(
            StatusCode::UNAUTHORIZED,
            "invalid_request_error",
            "invalid_api_key",
            message,
        )
    }

    /// No such model for this tenant.
    pub fn no_model(name: &str) -> ApiError {
        let message = format!(
            "the model {:?} does not exist, or this tenant may not use it",
            shown(name)
        );
        let error = ApiError::new(
            StatusCode::NOT_FOUND,
            "invalid_request_error",
            "model_not_found",
            message,
        );
        ApiError {
            param: Some("model".to_owned()),
            ..error
        }
    }

    /// No such thing.
    pub fn not_found(message: impl Into<String>) -> ApiError {
        ApiError::new(
            StatusCode::NOT_FOUND,
            "invalid_request_error",
            "not_found",
            message,
        )
    }

    /// The tenant's own limit of requests.
    pub fn too_many_requests(limit: usize) -> ApiError {
        let message =
            format!("this tenant already has {limit} requests in progress, which is its limit");
        let error = ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            "rate_limit_error",
            "rate_limit_exceeded",
            message,
        );
        ApiError {
            retry_after_ms: Some(1000),
            ..error
        }
    }

    /// The server's own limit of connections.
    pub fn too_many_connections(limit: u32) -> ApiError {
        let error = ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "overloaded_error",
            "too_many_connections",
            format!("the server already has {limit} connections in use, which is its limit"),
        );
        ApiError {
            retry_after_ms: Some(1000),
            ..error
        }
    }

    /// The tenant's own limit of connections to `/ws`.
    pub fn too_many_sockets(limit: u32) -> ApiError {
        ApiError {
            code: "too_many_sockets".into(),
            message: format!(
                "this tenant already has {limit} connections to /ws, which is its limit"
            ),
            ..ApiError::too_many_requests(0)
        }
    }

    /// The body is larger than is read.
    pub fn too_large(bytes_max: usize) -> ApiError {
        let message =
            format!("the request body is larger than {bytes_max} bytes, which is the limit");
        ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "invalid_request_error",
            "request_too_large",
            message,
        )
    }

    /// Too much of the tenant's memory is in use for this request.
    pub fn memory_in_use() -> ApiError {
        ApiError {
            code: "quota_exceeded".into(),
            message: "too much of this tenant's memory is in use; try again when other requests have ended"
                .to_owned(),
            ..ApiError::too_many_requests(0)
        }
    }

    /// The body takes too long to arrive.
    pub fn body_timeout(wait: Duration) -> ApiError {
        ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "invalid_request_error",
            "request_timeout",
            format!("the request body did not arrive within {wait:?}"),
        )
    }

    /// The server is going down.
    pub fn stopping() -> ApiError {
        let error = ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "overloaded_error",
            "stopping",
            "the server is shutting down",
        );
        ApiError {
            retry_after_ms: Some(1000),
            ..error
        }
    }

    /// Our own failure. The detail goes to the log, an id to the client.
    pub fn internal(detail: &(impl std::fmt::Display + ?Sized)) -> ApiError {
        let trace = crate::auth::random_hex::<6>();
        tracing::error!(%trace, %detail, "internal error");
        let message = format!("an internal error occurred; the trace id is {trace}");
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "server_error",
            "internal_error",
            message,
        )
    }

    /// The OpenAI body: `{"error": {...}}`.
    pub fn body(&self) -> Value {
        json!({"error": {
            "message": self.message, "type": self.kind, "param": self.param, "code": self.code,
        }})
    }

    /// The error of a WebSocket frame.
    pub fn frame(&self) -> Value {
        let mut error = json!({"code": self.code, "message": self.message});
        if let Some(param) = &self.param {
            error["param"] = param.as_str().into();
        }
        if let Some(ms) = self.retry_after_ms {
            error["retry_after_ms"] = ms.into();
        }
        error
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(ms) = self.retry_after_ms {
            let seconds = HeaderValue::from(ms.div_ceil(1000).max(1));
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<CallError> for ApiError {
    fn from(error: CallError) -> ApiError {
        if let CallError::Internal { detail } = &error {
            return ApiError::internal(detail);
        }
        let (status, kind) = status_of(&error);
        ApiError {
            retry_after_ms: error.retry_after_ms(),
            ..ApiError::new(status, kind, error.code(), error.public())
        }
    }
}

/// What a component did wrong, running out of its time included, is 422: the server is well and trying again would not help. What the client did wrong,
/// though the component may have said so, keeps the status it has without one.
fn status_of(error: &CallError) -> (StatusCode, &'static str) {
    const WORKFLOW: &str = "workflow_error";
    const CLIENT: &str = "invalid_request_error";
    match error {
        CallError::Busy { .. } | CallError::Host(GuestError::Overloaded { .. }) => {
            (StatusCode::SERVICE_UNAVAILABLE, "overloaded_error")
        }
        CallError::NoFunction { .. } => (StatusCode::NOT_FOUND, CLIENT),
        CallError::Internal { .. } | CallError::Host(_) => {
            (StatusCode::INTERNAL_SERVER_ERROR, "server_error")
        }
        CallError::Guest(error) => match error {
            GuestError::Invalid(_) | GuestError::ContextFull(_) | GuestError::Unsupported(_) => {
                (StatusCode::BAD_REQUEST, CLIENT)
            }
            GuestError::Denied(_) => (StatusCode::FORBIDDEN, "permission_error"),
            GuestError::Quota { .. } => (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error"),
            GuestError::Overloaded { .. }
            | GuestError::Deadline
            | GuestError::Cancelled
            | GuestError::Internal(_) => (StatusCode::UNPROCESSABLE_ENTITY, WORKFLOW),
        },
        _ => (StatusCode::UNPROCESSABLE_ENTITY, WORKFLOW),
    }
}

impl From<NoMemory> for ApiError {
    fn from(error: NoMemory) -> ApiError {
        if error.is_for_good() {
            let message = format!(
                "the request needs {} bytes of memory, more than the {} that the tenant has in all",
                error.bytes, error.bytes_max
            );
            let status = StatusCode::BAD_REQUEST;
            return ApiError::new(
                status,
                "invalid_request_error",
                "request_too_large",
                message,
            );
        }
        ApiError::memory_in_use()
    }
}

impl From<CatalogError> for ApiError {
    fn from(error: CatalogError) -> ApiError {
        let client = |status, code: &'static str| {
            ApiError::new(status, "invalid_request_error", code, error.to_string())
        };
        match &error {
            CatalogError::Exists { .. } => client(StatusCode::CONFLICT, "already_exists"),
            CatalogError::NotFound { .. } => client(StatusCode::NOT_FOUND, "not_found"),
            CatalogError::NothingBefore { .. } => client(StatusCode::CONFLICT, "nothing_before"),
            CatalogError::Database(sqlx::Error::Database(cause))
                if cause.is_foreign_key_violation() =>
            {
                let message = "the tenant or the version has been removed in the meantime";
                ApiError::new(
                    StatusCode::NOT_FOUND,
                    "invalid_request_error",
                    "not_found",
                    message,
                )
            }
            CatalogError::Newer { .. } | CatalogError::Database(_) => {
                ApiError::internal(&chain(&error))
            }
        }
    }
}

impl From<WebSocketUpgradeRejection> for ApiError {
    fn from(rejection: WebSocketUpgradeRejection) -> ApiError {
        let message = format!(
            "this is not a valid WebSocket handshake: {}",
            rejection.body_text()
        );
        ApiError::new(
            rejection.status(),
            "invalid_request_error",
            "invalid_request",
            message,
        )
    }
}

impl From<BlobError> for ApiError {
    fn from(error: BlobError) -> ApiError {
        ApiError::internal(&chain(&error))
    }
}

/// The longest name of a client's choosing that a message repeats.
const SHOWN_BYTES_MAX: usize = 100;

/// A client's word as a message repeats it: cut where it is long.
pub fn shown(text: &str) -> Cow<'_, str> {
    if text.len() <= SHOWN_BYTES_MAX {
        return text.into();
    }
    format!("{}…", &text[..text.floor_char_boundary(SHOWN_BYTES_MAX)]).into()
}

/// An error with all its causes, for the log.
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status_kind_and_code(error: CallError) -> (u16, &'static str, String) {
        let mapped = ApiError::from(error);
        assert!(!mapped.message.contains("secret"), "{}", mapped.message);
        (
            mapped.status.as_u16(),
            mapped.kind,
            mapped.code.into_owned(),
        )
    }

    #[test]
    fn what_a_component_does_wrong_or_makes_up_is_a_422() {
        let public = "x".to_owned();
        for (error, status, code) in [
            (CallError::Trap { public }, 422, "guest_trap"),
            (CallError::CpuBudget { ms: 1 }, 422, "cpu_budget_exceeded"),
            (
                CallError::MemoryLimit { bytes_max: 1 },
                422,
                "memory_limit_exceeded",
            ),
            (CallError::StackOverflow, 422, "stack_overflow"),
            (CallError::NoReply, 422, "no_reply"),
            (CallError::Deadline { ms: 1 }, 422, "deadline_exceeded"),
            (
                CallError::Guest(GuestError::Deadline),
                422,
                "deadline_exceeded",
            ),
            (
                CallError::Guest(GuestError::Internal("made up".to_owned())),
                422,
                "guest_error",
            ),
            (
                CallError::Guest(GuestError::Overloaded {
                    what: "made up".to_owned(),
                    retry_after_ms: 5,
                }),
                422,
                "guest_error",
            ),
        ] {
            let expected = (status, "workflow_error", code.to_owned());
            assert_eq!(status_kind_and_code(error), expected);
        }
    }

    #[test]
    fn what_others_do_wrong_keeps_its_status() {
        let guest = CallError::Guest;
        let text = || "x".to_owned();
        let quota = GuestError::Quota {
            what: text(),
            retry_after_ms: 1500,
        };
        let detail = "secret".to_owned();
        for (error, status, kind, code) in [
            (
                CallError::Busy { retry_after_ms: 10 },
                503,
                "overloaded_error",
                "busy",
            ),
            (
                CallError::Internal { detail },
                500,
                "server_error",
                "internal_error",
            ),
            (
                guest(GuestError::Invalid(text())),
                400,
                "invalid_request_error",
                "invalid_request",
            ),
            (
                guest(GuestError::ContextFull(3)),
                400,
                "invalid_request_error",
                "context_length_exceeded",
            ),
            (
                CallError::Host(GuestError::Internal(text())),
                500,
                "server_error",
                "internal_error",
            ),
            (
                CallError::Host(GuestError::Overloaded {
                    what: text(),
                    retry_after_ms: 5,
                }),
                503,
                "overloaded_error",
                "overloaded",
            ),
            (guest(quota), 429, "rate_limit_error", "quota_exceeded"),
            (
                guest(GuestError::Denied(text())),
                403,
                "permission_error",
                "permission_denied",
            ),
        ] {
            assert_eq!(status_kind_and_code(error), (status, kind, code.to_owned()));
        }
    }

    #[test]
    fn a_wait_is_given_in_whole_seconds_and_never_as_zero() {
        for (ms, seconds) in [(1, "1"), (1000, "1"), (1001, "2"), (0, "1")] {
            let error = ApiError {
                retry_after_ms: Some(ms),
                ..ApiError::invalid("x")
            };
            assert_eq!(
                error.into_response().headers()[header::RETRY_AFTER],
                seconds
            );
        }
    }
}
