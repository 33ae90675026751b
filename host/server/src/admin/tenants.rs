//! Tenants, their keys and their logs.

use super::{JSON_BYTES_MAX, check_name};
use crate::auth::NewKey;
use crate::error::{ApiError, ApiResult};
use crate::ingress::read_json;
use crate::path::Path;
use crate::state::App;
use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use hyper::body::Body as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::sync::Arc;

/// What a tenant is created with.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewTenant {
    name: String,
    weight: Option<u32>,
    kv_blocks_max: Option<u32>,
    requests_max: Option<u32>,
}

/// `POST /admin/v1/tenants`.
pub(super) async fn create(
    State(app): State<Arc<App>>,
    request: Request,
) -> ApiResult<(StatusCode, Json<Value>)> {
    let new: NewTenant = read(&app, request).await?;
    check_name("tenant", &new.name, &['.'])?;
    let weight = new.weight.unwrap_or(1);
    if !(1..=1000).contains(&weight) {
        return Err(ApiError::field("weight", "must be from 1 to 1000"));
    }
    for (name, limit) in [
        ("kv_blocks_max", new.kv_blocks_max),
        ("requests_max", new.requests_max),
    ] {
        if limit == Some(0) {
            return Err(ApiError::field(name, "must be at least 1"));
        }
    }
    let catalog = app.registry.catalog.clone();
    let work = async move {
        Ok(catalog
            .create_tenant(&new.name, weight, new.kv_blocks_max, new.requests_max)
            .await?)
    };
    let row = app.change(work).await?;
    tracing::info!(tenant = row.name, "tenant created");
    Ok((StatusCode::CREATED, Json(json!(row))))
}

/// `GET /admin/v1/tenants`.
pub(super) async fn list(State(app): State<Arc<App>>) -> ApiResult<Json<Value>> {
    Ok(Json(
        json!({"tenants": app.registry.catalog.tenants().await?}),
    ))
}

/// `DELETE /admin/v1/tenants/{tenant}`. Calls under way end by themselves; new ones are refused at once.
pub(super) async fn remove(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> ApiResult<StatusCode> {
    let row = app.registry.catalog.tenant(&name).await?;
    let catalog = app.registry.catalog.clone();
    app.change(async move { Ok(catalog.delete_tenant(&name).await?) })
        .await?;
    app.logs.forget(row.id);
    tracing::info!(tenant = row.name, "tenant deleted");
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /admin/v1/tenants/{tenant}/logs`.
pub(super) async fn logs(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> ApiResult<Json<Value>> {
    let row = app.registry.catalog.tenant(&name).await?;
    Ok(Json(json!({"lines": app.logs.of(row.id)})))
}

/// What a key is created with.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewKeyFields {
    label: Option<String>,
}

/// `POST /admin/v1/tenants/{tenant}/keys`: the only answer that ever holds the key.
pub(super) async fn create_key(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    request: Request,
) -> ApiResult<(StatusCode, Json<Value>)> {
    let fields: NewKeyFields = read_optional(&app, request).await?;
    let label = fields.label.unwrap_or_default();
    if label.len() > 200 {
        return Err(ApiError::field("label", "must be at most 200 bytes long"));
    }
    let row = app.registry.catalog.tenant(&name).await?;
    let (new, catalog) = (NewKey::draw(), app.registry.catalog.clone());
    let answer = json!({"id": new.id, "key": new.key, "prefix": new.prefix, "label": label});
    app.change(async move {
        Ok(catalog
            .add_key(row.id, &new.id, &label, &new.prefix, &new.hash)
            .await?)
    })
    .await?;
    tracing::info!(tenant = row.name, "key created");
    Ok((StatusCode::CREATED, Json(answer)))
}

/// `GET /admin/v1/tenants/{tenant}/keys`.
pub(super) async fn keys(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> ApiResult<Json<Value>> {
    let row = app.registry.catalog.tenant(&name).await?;
    Ok(Json(
        json!({"keys": app.registry.catalog.keys(row.id).await?}),
    ))
}

/// `DELETE /admin/v1/tenants/{tenant}/keys/{key}`.
pub(super) async fn revoke_key(
    State(app): State<Arc<App>>,
    Path((name, key)): Path<(String, String)>,
) -> ApiResult<StatusCode> {
    let row = app.registry.catalog.tenant(&name).await?;
    let catalog = app.registry.catalog.clone();
    app.change(async move { Ok(catalog.revoke_key(row.id, &key).await?) })
        .await?;
    tracing::info!(tenant = row.name, "key revoked");
    Ok(StatusCode::NO_CONTENT)
}

/// A JSON body of one of our own types.
pub(super) async fn read<T: DeserializeOwned>(app: &App, request: Request) -> ApiResult<T> {
    let (parts, body) = request.into_parts();
    let wait = app.config.body_wait();
    read_json(&parts.headers, body, JSON_BYTES_MAX, wait).await
}

/// The same where no body says as much as an empty object.
async fn read_optional<T: DeserializeOwned + Default>(app: &App, request: Request) -> ApiResult<T> {
    match request.body().is_end_stream() {
        true => Ok(T::default()),
        false => read(app, request).await,
    }
}
