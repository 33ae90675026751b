//! `realm tenant`, `realm key` and `realm workflow`: what the admin API does, from a shell.

use super::client::{Admin, line, part};
use anyhow::{Context, Result};
use axum::http::Method;
use clap::Subcommand;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

#[derive(Subcommand)]
pub(super) enum Tenant {
    /// Create a tenant
    Create {
        /// Its name
        name: String,
        /// Its share of the engine relative to other tenants
        #[arg(long, default_value_t = 1)]
        weight: u32,
        /// Most KV blocks it may hold [default: the server's share for a tenant]
        #[arg(long, value_name = "N")]
        kv_blocks_max: Option<u32>,
        /// Most requests it may have in progress at once [default: the server's]
        #[arg(long, value_name = "N")]
        requests_max: Option<u32>,
    },
    /// List tenants
    List,
    /// Delete a tenant with its keys and workflows
    Delete {
        /// Its name
        name: String,
    },
}

#[derive(Subcommand)]
pub(super) enum Key {
    /// Create a key and print it; it cannot be shown again
    Create {
        /// The tenant's name
        tenant: String,
        /// A note to tell keys apart
        #[arg(long, default_value = "")]
        label: String,
    },
    /// List a tenant's keys
    List {
        /// The tenant's name
        tenant: String,
    },
    /// Revoke a key, effective immediately
    Revoke {
        /// The tenant's name
        tenant: String,
        /// The key's id
        id: String,
    },
}

#[derive(Subcommand)]
pub(super) enum Workflow {
    /// Upload a component as the next version of a workflow
    Push {
        /// The tenant's name
        tenant: String,
        /// The workflow's name
        name: String,
        /// The component (a .wasm file)
        file: PathBuf,
        /// Make the new version the active one
        #[arg(long)]
        activate: bool,
    },
    /// List a tenant's workflows and their versions
    List {
        /// The tenant's name
        tenant: String,
    },
    /// Make a version the active one
    Activate {
        /// The tenant's name
        tenant: String,
        /// The workflow's name
        name: String,
        /// The version
        version: u32,
    },
    /// Return to the version that was active before
    Rollback {
        /// The tenant's name
        tenant: String,
        /// The workflow's name
        name: String,
    },
}

pub(super) async fn tenant(admin: &Admin, command: Tenant) -> Result<()> {
    match command {
        Tenant::Create {
            name,
            weight,
            kv_blocks_max,
            requests_max,
        } => {
            let body = json!({
                "name": name, "weight": weight, "kv_blocks_max": kv_blocks_max, "requests_max": requests_max,
            });
            admin.post("/admin/v1/tenants", &body).await?;
            line(&format!("tenant {name} created"))
        }
        Tenant::List => {
            let answer = admin.get("/admin/v1/tenants").await?;
            for tenant in each(&answer["tenants"]) {
                line(&format!(
                    "{}\tweight {}",
                    text(&tenant["name"]),
                    tenant["weight"]
                ))?;
            }
            Ok(())
        }
        Tenant::Delete { name } => {
            admin
                .delete(&format!("/admin/v1/tenants/{}", part(&name)))
                .await?;
            line(&format!("tenant {name} deleted"))
        }
    }
}

pub(super) async fn key(admin: &Admin, command: Key) -> Result<()> {
    match command {
        Key::Create { tenant, label } => {
            let path = format!("/admin/v1/tenants/{}/keys", part(&tenant));
            let made = admin.post(&path, &json!({"label": label})).await?;
            line(&format!("{}\t{}", text(&made["id"]), text(&made["key"])))
        }
        Key::List { tenant } => {
            let answer = admin
                .get(&format!("/admin/v1/tenants/{}/keys", part(&tenant)))
                .await?;
            for key in each(&answer["keys"]) {
                let state = if key["revoked_ms"].is_null() {
                    "active"
                } else {
                    "revoked"
                };
                let (id, prefix, label) =
                    (text(&key["id"]), text(&key["prefix"]), text(&key["label"]));
                line(&format!("{id}\t{prefix}...\t{state}\t{label}"))?;
            }
            Ok(())
        }
        Key::Revoke { tenant, id } => {
            admin
                .delete(&format!(
                    "/admin/v1/tenants/{}/keys/{}",
                    part(&tenant),
                    part(&id)
                ))
                .await?;
            line(&format!("key {id} revoked"))
        }
    }
}

pub(super) async fn workflow(admin: &Admin, command: Workflow) -> Result<()> {
    match command {
        Workflow::Push {
            tenant,
            name,
            file,
            activate: is_active,
        } => {
            let version = push(admin, &tenant, &name, &file).await?;
            if is_active {
                activate(admin, &tenant, &name, &version).await?;
            }
            Ok(())
        }
        Workflow::List { tenant } => list_workflows(admin, &tenant).await,
        Workflow::Activate {
            tenant,
            name,
            version,
        } => activate(admin, &tenant, &name, &version.into()).await,
        Workflow::Rollback { tenant, name } => {
            let path = workflow_path(&tenant, &name, "rollback");
            let answer = admin.post(&path, &json!({})).await?;
            line(&format!(
                "{name} version {} is active again",
                answer["active"]
            ))
        }
    }
}

fn workflow_path(tenant: &str, name: &str, what: &str) -> String {
    let (tenant, name) = (part(tenant), part(name));
    format!("/admin/v1/tenants/{tenant}/workflows/{name}/{what}")
}

/// Uploads a component; its version.
async fn push(admin: &Admin, tenant: &str, name: &str, file: &Path) -> Result<Value> {
    let wasm = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let path = workflow_path(tenant, name, "versions");
    let mut stored = admin
        .send(Method::POST, &path, "application/wasm", wasm)
        .await?;
    let version = stored["version"].take();
    let digest = text(&stored["digest"]);
    line(&format!("{name} version {version} stored, {digest}"))?;
    Ok(version)
}

async fn activate(admin: &Admin, tenant: &str, name: &str, version: &Value) -> Result<()> {
    let path = workflow_path(tenant, name, "activate");
    admin.post(&path, &json!({"version": version})).await?;
    line(&format!("{name} version {version} is active"))
}

async fn list_workflows(admin: &Admin, tenant: &str) -> Result<()> {
    let path = format!("/admin/v1/tenants/{}/workflows", part(tenant));
    let answer = admin.get(&path).await?;
    for workflow in each(&answer["workflows"]) {
        for version in each(&workflow["versions"]) {
            let active = if version["version"] == workflow["active"] {
                "\tactive"
            } else {
                ""
            };
            let (name, digest) = (text(&workflow["name"]), text(&version["digest"]));
            line(&format!("{name}\t{}\t{digest}{active}", version["version"]))?;
        }
    }
    Ok(())
}

fn each(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
