//! The admin plane: tenants, keys, workflows, models, status, logs; and `/metrics`, which alone needs no token because
//! it holds no secret and scrapers rarely have one. The plane listens on its own, by default local, address.

mod tenants;
mod workflows;

use crate::auth::{bearer, same_secret};
use crate::connections::InUse;
use crate::error::{ApiError, ApiResult};
use crate::ingress::{no_method, no_route};
use crate::state::App;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use std::sync::Arc;

/// Bytes of a JSON body; an upload has its own limit.
const JSON_BYTES_MAX: usize = 64 << 10;

/// The routes of the admin plane.
pub fn router(app: Arc<App>) -> Router {
    let versions = post(workflows::upload).put(workflows::upload);
    let guarded = Router::new()
        .route(
            "/admin/v1/tenants",
            get(tenants::list).post(tenants::create),
        )
        .route("/admin/v1/tenants/{tenant}", delete(tenants::remove))
        .route("/admin/v1/tenants/{tenant}/logs", get(tenants::logs))
        .route(
            "/admin/v1/tenants/{tenant}/keys",
            get(tenants::keys).post(tenants::create_key),
        )
        .route(
            "/admin/v1/tenants/{tenant}/keys/{key}",
            delete(tenants::revoke_key),
        )
        .route("/admin/v1/tenants/{tenant}/workflows", get(workflows::list))
        .route(
            "/admin/v1/tenants/{tenant}/workflows/{workflow}/versions",
            versions,
        )
        .route(
            "/admin/v1/tenants/{tenant}/workflows/{workflow}/activate",
            post(workflows::activate),
        )
        .route(
            "/admin/v1/tenants/{tenant}/workflows/{workflow}/rollback",
            post(workflows::rollback),
        )
        .route("/admin/v1/models", get(models))
        .route("/admin/v1/status", get(status))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&app), guard));
    Router::new()
        .merge(guarded)
        .route("/metrics", get(metrics))
        .route("/health", get(async || Json(json!({"status": "ok"}))))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .with_state(app)
}

async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if bearer(request.headers()).is_some_and(|token| same_secret(token, &app.admin_token)) {
        let _connection = InUse::of(request.extensions());
        return next.run(request).await;
    }
    let message = "the admin token is missing or wrong";
    ApiError {
        code: "invalid_admin_token".into(),
        message: message.to_owned(),
        ..ApiError::unauthorized()
    }
    .into_response()
}

async fn metrics(State(app): State<Arc<App>>) -> ApiResult<Response> {
    let text = app.scrape().map_err(|error| ApiError::internal(&error))?;
    let mut response = text.into_response();
    let format = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, format);
    Ok(response)
}

async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    let table = app.models();
    let models = table.base().iter().map(|model| {
        let facts = model.client.facts();
        json!({
            "name": model.name,
            "architecture": facts.architecture,
            "context_length": facts.context_length,
            "vocab_size": facts.vocab_size,
            "layers": facts.layers,
            "parameters": facts.parameters,
            "file_bytes": facts.file_bytes,
            "kv_blocks": facts.kv_blocks,
            "block_tokens": facts.block_tokens,
            "isa": facts.isa,
        })
    });
    Json(json!({"models": models.collect::<Vec<_>>()}))
}

async fn status(State(app): State<Arc<App>>) -> Json<Value> {
    let table = app.models();
    let engines = table.base().iter().map(|model| {
        let stats = model.client.stats();
        json!({
            "model": model.name,
            "running": !model.client.is_stopped(),
            "sequences_running": stats.sequences_running,
            "sequences_waiting": stats.sequences_waiting,
            "queue_depth": stats.queue_depth,
            "kv_blocks": {
                "total": stats.blocks_total, "free": stats.blocks_free,
                "held": stats.blocks_held, "cached": stats.blocks_cached,
            },
            "steps": stats.steps_total,
        })
    });
    let engines: Vec<Value> = engines.collect();
    Json(
        json!({"version": env!("CARGO_PKG_VERSION"), "stopping": app.is_stopping(), "engines": engines}),
    )
}

/// A name that fits in a URL, a file name and a metric label.
fn check_name(what: &'static str, name: &str, more: &[char]) -> ApiResult<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || more.contains(&c);
    let starts = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if starts && name.len() <= 64 && name.chars().all(plain) {
        return Ok(());
    }
    let allowed = match more {
        [] => "letters, digits, '-' and '_'",
        _ => "letters, digits, '-', '_' and '.'",
    };
    let message = format!(
        "the name of a {what} must be 1 to 64 characters long, begin with a letter or a digit, and contain only {allowed}"
    );
    Err(ApiError {
        param: Some("name".to_owned()),
        ..ApiError::invalid(message)
    })
}
