//! The data plane: OpenAI's routes, `/ws`, `/health` and `/ready`.
//!
//! A request is authenticated and admitted before its body is read; what it holds (its place, its memory, its component,
//! its sequences) is dropped with its future or its body, so a client that hangs up frees everything.
//!
//! One way for all: `body` reads, `request` gives it a type, `route` finds who answers, `begin` puts these together,
//! `generation` drives the answer, and a file of `framing` writes it down.

mod begin;
mod body;
mod embeddings;
mod framing;
mod generation;
mod json;
mod models;
mod parameters;
mod render;
mod request;
mod route;
mod ws;

pub(crate) use body::{BODY_BYTES_MAX, read_body, read_json};
pub(crate) use render::prompt;

use crate::auth::{bearer, random_hex};
use crate::connections::InUse;
use crate::error::{ApiError, ApiResult, shown};
use crate::path::Path;
use crate::state::{App, TenantEntry};
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, middleware};
use begin::{Incoming, begin};
use body::TenantBody;
use framing::openai::Renderer;
use framing::{sse, whole};
use generation::Generation;
use request::{Defaults, Family};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};
use tower_http::decompression::RequestDecompressionLayer;

/// How long a browser may remember the answer to a preflight.
const PREFLIGHT_AGE: Duration = Duration::from_secs(3600);

/// The routes of the data plane.
pub fn router(app: Arc<App>) -> Router {
    let api = Router::new()
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/completions", post(text_completions))
        .route("/v1/embeddings", post(embeddings_of))
        .route("/v1/models", get(list_models))
        .route("/v1/models/{*id}", get(one_model))
        .layer(RequestDecompressionLayer::new().pass_through_unaccepted(true))
        .layer(middleware::map_request(body::one_encoding));
    Router::new()
        .merge(api)
        .route("/ws", get(ws::upgrade))
        .route(
            "/health",
            get(async || Json(serde_json::json!({"status": "ok"}))),
        )
        .route("/ready", get(ready))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(cors(&app.config.cors_origins))
        .layer(middleware::map_response(request_id))
        .with_state(app)
}

/// Lets pages of these origins call the API. They carry a key and no cookie, so any origin is as safe as none.
fn cors(origins: &[String]) -> CorsLayer {
    let origin = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        let origins = origins.iter();
        AllowOrigin::list(origins.filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    CorsLayer::new()
        .allow_origin(origin)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([REQUEST_ID, header::RETRY_AFTER])
        .max_age(PREFLIGHT_AGE)
}

async fn chat_completions(State(app): State<Arc<App>>, request: Request) -> Response {
    generated(app, request, Family::Chat, "chat_completions").await
}

async fn text_completions(State(app): State<Arc<App>>, request: Request) -> Response {
    generated(app, request, Family::Completion, "completions").await
}

async fn generated(
    app: Arc<App>,
    request: Request,
    family: Family,
    route: &'static str,
) -> Response {
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
    let incoming = Incoming {
        family,
        what: "the request body",
        defaults: Defaults::default(),
        route,
        started: Instant::now(),
        admission: app.admit(tenant, InUse::of(request.extensions()))?,
    };
    let (parts, body) = request.into_parts();
    let wait = app.config.body_wait();
    let body = TenantBody::read(tenant, &parts, body, wait).await?;
    let begun = begin(app, tenant, body, incoming).await?;
    let mut response = if begun.stream {
        let keep_alive = app.config.keep_alive();
        streamed(begun.generation, begun.renderer, keep_alive).await?
    } else {
        let whole = whole::collect(begun.generation, tenant).await?;
        body::json_answer(&begun.renderer.whole(&whole), whole.charge)?
    };
    set_request_id(&mut response, &begun.request_id);
    Ok(response)
}

/// The first event decides the status, since that is said before anything else; but once the model is at work on the
/// prompt little can go wrong and it may take a while, and then a client is not left without an answer.
async fn streamed(
    mut generation: Generation,
    renderer: Renderer,
    keep_alive: Duration,
) -> ApiResult<Response> {
    let accepted = generation.accepted();
    let first = tokio::select! {
        biased;
        first = generation.next() => Some(first?),
        () = accepted => None,
        () = tokio::time::sleep(keep_alive) => None,
    };
    Ok(sse::response(generation, renderer, keep_alive, first))
}

async fn embeddings_of(State(app): State<Arc<App>>, request: Request) -> Response {
    const ROUTE: &str = "embeddings";
    let started = Instant::now();
    let tenant = app.authenticate(bearer(request.headers()));
    let embed = async |tenant: &TenantEntry| {
        let _admission = app.admit(tenant, InUse::of(request.extensions()))?;
        let (parts, body) = request.into_parts();
        let wait = app.config.body_wait();
        let body = TenantBody::read(tenant, &parts, body, wait).await?;
        embeddings::embed(&app, tenant, body).await
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
    if app.is_stopping() || !app.models().is_running() {
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            Json(serde_json::json!({"ready": false})),
        )
            .into_response();
    }
    Json(serde_json::json!({"ready": true})).into_response()
}

/// The 404 of either plane.
pub(crate) async fn no_route(request: Request) -> ApiError {
    ApiError::not_found(format!(
        "there is no route {} {}",
        request.method(),
        shown(request.uri().path())
    ))
}

/// The 405 of either plane.
pub(crate) async fn no_method(request: Request) -> ApiError {
    let message = format!(
        "the method {} is not allowed for {}",
        request.method(),
        shown(request.uri().path())
    );
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "invalid_request_error",
        "method_not_allowed",
        message,
    )
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
