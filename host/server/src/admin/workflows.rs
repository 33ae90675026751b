//! Workflows: uploads, versions, which one is active.

use super::check_name;
use super::tenants::read;
use crate::error::{ApiError, ApiResult, chain};
use crate::ingress::read_body;
use crate::path::Path;
use crate::registry::VersionRow;
use crate::state::App;
use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use realm_sandbox::TenantMemory;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// `POST /admin/v1/tenants/{tenant}/workflows/{workflow}/versions`: the body is the component.
pub(super) async fn upload(
    State(app): State<Arc<App>>,
    Path((tenant, workflow)): Path<(String, String)>,
    request: Request,
) -> ApiResult<(StatusCode, Json<Value>)> {
    let answered = store(&app, &tenant, &workflow, request).await;
    let result = match &answered {
        Ok(_) => "stored",
        Err(error) if error.status.is_client_error() => "refused",
        Err(_) => "failed",
    };
    // A name nobody has would be a label of the client's making.
    let known = !matches!(&answered, Err(error) if error.status == StatusCode::NOT_FOUND);
    app.metrics
        .uploads
        .with_label_values(&[if known { tenant.as_str() } else { "-" }, result])
        .inc();
    let row = answered?;
    tracing::info!(
        tenant,
        workflow,
        version = row.version,
        digest = row.digest,
        "workflow version stored"
    );
    Ok((StatusCode::CREATED, Json(version(&row))))
}

/// Judges, compiles and asks the component before anything is kept; then the blob, the row, and what was compiled.
async fn store(
    app: &Arc<App>,
    tenant: &str,
    workflow: &str,
    request: Request,
) -> ApiResult<VersionRow> {
    let row = app.registry.catalog.tenant(tenant).await?;
    check_name("workflow", workflow, &[])?;
    let bytes_max = usize::try_from(app.config.upload_mib_max << 20).unwrap_or(usize::MAX);
    let (parts, body) = request.into_parts();
    let wait = app.config.body_wait();
    let wasm = read_body(&parts.headers, body, bytes_max, wait).await?;
    let (ready, artifact) = app
        .workflows
        .compile(&app.sandbox, workflow, wasm.clone())
        .await?;
    // Memory of its own: an upload does not compete with the tenant's calls.
    let memory = Arc::new(TenantMemory::new(
        app.config.limits.to_sandbox().memory_bytes_max,
    ));
    let asked = app
        .sandbox
        .describe(&ready, &app.sandbox_tenant(&row, memory))
        .await;
    let description = asked.map_err(|error| {
        let cause = ApiError::from(error);
        let status = if cause.status.is_server_error() {
            cause.status
        } else {
            StatusCode::UNPROCESSABLE_ENTITY
        };
        ApiError {
            status,
            message: format!("calling describe: {}", cause.message),
            ..cause
        }
    })?;
    let description =
        serde_json::to_string(&description).map_err(|error| ApiError::internal(&chain(&error)))?;
    let (changed, workflow) = (Arc::clone(app), workflow.to_owned());
    let stored = app
        .change(async move {
            let registry = &changed.registry;
            let digest = registry.blobs.put(&wasm).await?;
            Ok(registry
                .catalog
                .add_version(row.id, &workflow, &digest, wasm.len() as u64, &description)
                .await?)
        })
        .await?;
    app.workflows
        .keep(&app.sandbox, &stored.digest, artifact)
        .await;
    Ok(stored)
}

/// `GET /admin/v1/tenants/{tenant}/workflows`.
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Path(tenant): Path<String>,
) -> ApiResult<Json<Value>> {
    let catalog = &app.registry.catalog;
    let row = catalog.tenant(&tenant).await?;
    let active = catalog.snapshot().await?.active;
    let mut workflows: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for stored in catalog.versions(row.id).await? {
        let value = version(&stored);
        workflows.entry(stored.workflow).or_default().push(value);
    }
    let workflows = workflows.into_iter().map(|(name, versions)| {
        let key = (row.id, name);
        let active = active.get(&key).map(|version| version.version);
        json!({"name": key.1, "active": active, "versions": versions})
    });
    Ok(Json(json!({"workflows": workflows.collect::<Vec<_>>()})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Activation {
    version: u32,
}

/// `POST /admin/v1/tenants/{tenant}/workflows/{workflow}/activate`.
pub(super) async fn activate(
    State(app): State<Arc<App>>,
    Path((tenant, workflow)): Path<(String, String)>,
    request: Request,
) -> ApiResult<Json<Value>> {
    let Activation { version } = read(&app, request).await?;
    let row = app.registry.catalog.tenant(&tenant).await?;
    let answer = json!({"workflow": workflow, "active": version});
    let (catalog, name) = (app.registry.catalog.clone(), workflow.clone());
    app.change(async move { Ok(catalog.activate(row.id, &name, version).await?) })
        .await?;
    tracing::info!(tenant, workflow, version, "workflow version activated");
    Ok(Json(answer))
}

/// `POST /admin/v1/tenants/{tenant}/workflows/{workflow}/rollback`.
pub(super) async fn rollback(
    State(app): State<Arc<App>>,
    Path((tenant, workflow)): Path<(String, String)>,
) -> ApiResult<Json<Value>> {
    let row = app.registry.catalog.tenant(&tenant).await?;
    let (catalog, name) = (app.registry.catalog.clone(), workflow.clone());
    let version = app
        .change(async move { Ok(catalog.rollback(row.id, &name).await?) })
        .await?;
    tracing::info!(tenant, workflow, version, "workflow rolled back");
    Ok(Json(json!({"workflow": workflow, "active": version})))
}

fn version(row: &VersionRow) -> Value {
    let description: Value = serde_json::from_str(&row.description).unwrap_or(Value::Null);
    json!({
        "workflow": row.workflow, "version": row.version, "digest": row.digest, "bytes": row.bytes,
        "created_ms": row.created_ms, "description": description,
    })
}
