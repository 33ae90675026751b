//! `GET /v1/models`: exactly the names a tenant's requests may use.

use crate::error::{ApiError, ApiResult};
use crate::state::{App, TenantEntry};
use serde_json::{Value, json};

/// The tenant's workflows, the base models and the embedding model.
pub(super) fn list(app: &App, tenant: &TenantEntry) -> Value {
    json!({"object": "list", "data": entries(app, tenant)})
}

/// One of them.
///
/// # Errors
/// 404.
pub(super) fn one(app: &App, tenant: &TenantEntry, name: &str) -> ApiResult<Value> {
    entries(app, tenant)
        .into_iter()
        .find(|entry| entry["id"] == name)
        .ok_or_else(|| ApiError::no_model(name))
}

fn entries(app: &App, tenant: &TenantEntry) -> Vec<Value> {
    let entry = |id: &str, created: i64, owner: &str| json!({"id": id, "object": "model", "created": created, "owned_by": owner});
    // A workflow with a base model's name stands in front of it.
    let table = app.models();
    let base = table
        .base()
        .iter()
        .filter(|model| !tenant.active.contains_key(&model.name));
    let base = base.map(|model| entry(&model.name, model.created, "realm"));
    let own = tenant.active.values();
    let own = own.map(|version| {
        entry(
            &version.workflow,
            version.created_ms / 1000,
            &tenant.row.name,
        )
    });
    let embedding = table.embedding().iter();
    let embedding = embedding.map(|model| entry(&model.name, model.created, "realm"));
    base.chain(own).chain(embedding).collect()
}
