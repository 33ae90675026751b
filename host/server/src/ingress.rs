//! The data plane: OpenAI's routes, `/ws`, `/health` and `/ready`.
//!
//! A request is authenticated and admitted before its body is read; what it holds (its place, its component, its
//! sequences) is dropped with its future or its body, so a client that hangs up frees everything.

mod answer;
mod chat;
mod completions;
mod embeddings;
mod models;
mod openai;
mod render;
mod route;
mod sse;
mod ws;

use crate::auth::{bearer, random_hex};
use crate::error::{ApiError, ApiResult};
use crate::registry::catalog::now_ms;
use crate::state::{App, TenantEntry};
use answer::{Answer, Call};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, middleware};
use futures_util::StreamExt;
use realm_sandbox::ReplyEvent;
use render::{Family, Renderer};
use serde_json::Value;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of a request's body.
const BODY_BYTES_MAX: usize = 4 << 20;
/// A body must arrive within this time, so that slow senders do not hold places.
const BODY_WAIT: Duration = Duration::from_secs(30);

/// The routes of the data plane.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/completions", post(text_completions))
        .route("/v1/embeddings", post(embeddings_of))
        .route("/v1/models", get(list_models))
        .route("/v1/models/{*id}", get(one_model))
        .route("/ws", get(ws::upgrade))
        .route(
            "/health",
            get(async || Json(serde_json::json!({"status": "ok"}))),
        )
        .route("/ready", get(ready))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(middleware::map_response(request_id))
        .with_state(app)
}

async fn chat_completions(State(app): State<Arc<App>>, request: Request) -> Response {
    generated(app, request, Family::Chat).await
}

async fn text_completions(State(app): State<Arc<App>>, request: Request) -> Response {
    generated(app, request, Family::Completion).await
}

async fn generated(app: Arc<App>, request: Request, family: Family) -> Response {
    let route = match family {
        Family::Chat => "chat_completions",
        Family::Completion => "completions",
    };
    let tenant = app.authenticate(bearer(request.headers()));
    let answered = match &tenant {
        Ok(tenant) => generate(&app, tenant, request, family, route).await,
        Err(error) => Err(error.clone()),
    };
    counted(&app, tenant.ok().as_deref(), route, answered)
}

async fn generate(
    app: &Arc<App>,
    tenant: &TenantEntry,
    request: Request,
    family: Family,
    route: &'static str,
) -> ApiResult<Response> {
    let started = Instant::now();
    let admission = app.admit(tenant)?;
    let body = read_json(request.into_body(), BODY_BYTES_MAX).await?;
    let (mut common, kind) = match family {
        Family::Chat => chat::parse(&body)?,
        Family::Completion => completions::parse(&body)?,
    };
    if family == Family::Completion {
        common
            .policy
            .max_tokens
            .get_or_insert(completions::MAX_TOKENS);
    }
    drop(body);
    let target = route::resolve(app, tenant, &common.model, &kind).await?;
    let id = random_hex::<12>();
    let renderer = Renderer {
        family,
        id: match family {
            Family::Chat => format!("chatcmpl-{id}"),
            Family::Completion => format!("cmpl-{id}"),
        },
        model: common.model,
        created: now_ms() / 1000,
        logprobs: common.policy.logprobs.is_some(),
        include_usage: common.include_usage,
        text: Arc::clone(target.base.client.text()),
    };
    let call = Call {
        id: format!("req_{id}"),
        kind,
        policy: common.policy,
        choices: common.choices,
        started,
        route,
    };
    let request_id = call.id.clone();
    let mut answer = Answer::start(app, tenant, &target, call, admission)?;
    // The status is said before anything else, so the first event decides it.
    let first = match answer.next().await {
        Some(ReplyEvent::End(Err(error))) => return Err(error.into()),
        Some(event) => event,
        None => return Err(ApiError::internal("a call ended without its end")),
    };
    let mut response = if common.stream {
        sse::response(answer, renderer, common.choices, first)
    } else {
        Json(renderer.whole(&answer.whole(Some(first), common.choices).await?)).into_response()
    };
    set_request_id(&mut response, &request_id);
    Ok(response)
}

async fn embeddings_of(State(app): State<Arc<App>>, request: Request) -> Response {
    const ROUTE: &str = "embeddings";
    let started = Instant::now();
    let tenant = app.authenticate(bearer(request.headers()));
    let embed = async |tenant: &TenantEntry| {
        let _admission = app.admit(tenant)?;
        let body = read_json(request.into_body(), BODY_BYTES_MAX).await?;
        Ok(Json(embeddings::embed(&app, tenant, body).await?).into_response())
    };
    let answered = match &tenant {
        Ok(tenant) => embed(tenant).await,
        Err(error) => Err(error.clone()),
    };
    app.metrics
        .request_seconds
        .with_label_values(&[ROUTE])
        .observe(started.elapsed().as_secs_f64());
    counted(&app, tenant.ok().as_deref(), ROUTE, answered)
}

async fn list_models(State(app): State<Arc<App>>, request: Request) -> Response {
    let tenant = app.authenticate(bearer(request.headers()));
    let answered = tenant.as_deref().map_err(Clone::clone);
    let answered = answered.map(|tenant| Json(models::list(&app, tenant)).into_response());
    counted(&app, tenant.ok().as_deref(), "models", answered)
}

async fn one_model(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    let tenant = app.authenticate(bearer(request.headers()));
    let answered = tenant.as_deref().map_err(Clone::clone);
    let answered =
        answered.and_then(|tenant| Ok(Json(models::one(&app, tenant, &id)?).into_response()));
    counted(&app, tenant.ok().as_deref(), "models", answered)
}

async fn ready(State(app): State<Arc<App>>) -> Response {
    let engines_stopped = app.models.iter().any(|model| model.client.is_stopped());
    let embedding = app.embedding.as_ref();
    let embedder_stopped = embedding.is_some_and(|model| model.client.is_stopped());
    if app.is_stopping() || engines_stopped || embedder_stopped {
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            Json(serde_json::json!({"ready": false})),
        )
            .into_response();
    }
    Json(serde_json::json!({"ready": true})).into_response()
}

async fn no_route(request: Request) -> ApiError {
    ApiError::not_found(format!(
        "there is no {} {}",
        request.method(),
        request.uri().path()
    ))
}

/// The 405 of either plane.
pub async fn no_method(request: Request) -> ApiError {
    let message = format!(
        "{} does not take {}",
        request.uri().path(),
        request.method()
    );
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "invalid_request_error",
        "method_not_allowed",
        message,
    )
}

/// Reads a JSON body.
///
/// # Errors
/// 413, 408, or 400 when it is no JSON.
pub async fn read_json(body: Body, bytes_max: usize) -> ApiResult<Value> {
    let bytes = read_body(body, bytes_max).await?;
    serde_json::from_slice(&bytes)
        .map_err(|error| ApiError::invalid(format!("the body is no JSON: {error}")))
}

/// Reads a body.
///
/// # Errors
/// 413, 408, or 400 when it breaks off.
pub async fn read_body(body: Body, bytes_max: usize) -> ApiResult<Vec<u8>> {
    let read = async {
        let mut bytes = Vec::new();
        let mut pieces = body.into_data_stream();
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|_| ApiError::invalid("the body broke off"))?;
            if bytes.len() + piece.len() > bytes_max {
                return Err(ApiError::too_large(bytes_max));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    };
    let timely = tokio::time::timeout(BODY_WAIT, read).await;
    timely.unwrap_or_else(|_| {
        let message = format!("the body did not arrive within {} s", BODY_WAIT.as_secs());
        Err(ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "invalid_request_error",
            "request_timeout",
            message,
        ))
    })
}

fn counted(
    app: &App,
    tenant: Option<&TenantEntry>,
    route: &str,
    answered: ApiResult<Response>,
) -> Response {
    let response = answered.unwrap_or_else(IntoResponse::into_response);
    let tenant = tenant.map_or("-", |tenant| tenant.row.name.as_str());
    let status = response.status();
    app.metrics
        .requests
        .with_label_values(&[tenant, route, status.as_str()])
        .inc();
    tracing::debug!(tenant, route, status = status.as_u16(), "answered");
    response
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Every answer has an id by which the operator finds it.
async fn request_id(mut response: Response) -> Response {
    if !response.headers().contains_key(REQUEST_ID) {
        set_request_id(&mut response, &format!("req_{}", random_hex::<12>()));
    }
    response
}

fn set_request_id(response: &mut Response, id: &str) {
    if let Ok(value) = HeaderValue::from_str(id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
}
