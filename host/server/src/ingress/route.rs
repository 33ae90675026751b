//! From the name a client uses to the component that answers: a workflow of the tenant, else a base model.

use crate::error::{ApiError, ApiResult};
use crate::registry::VersionRow;
use crate::state::{App, BaseModel, TenantEntry};
use realm_sandbox::{Description, RequestKind, Workflow};

/// A tenant's workflow of this name answers for the base models as well.
pub(super) const DEFAULT_WORKFLOW: &str = "default";

/// Who answers.
pub(super) struct Target {
    /// The component.
    pub workflow: Workflow,
    /// The model it is given.
    pub base: BaseModel,
}

/// Finds who answers a chat or a completion.
///
/// # Errors
/// 404 when the tenant has no such name, 400 when the workflow does not serve this kind of request.
pub(super) async fn resolve(
    app: &App,
    tenant: &TenantEntry,
    model: &str,
    kind: &RequestKind,
) -> ApiResult<Target> {
    if let Some(version) = tenant.active.get(model) {
        if !serves(version, kind) {
            return Err(ApiError::unsupported(
                "model",
                format!("by the workflow {model}, this kind of request"),
            ));
        }
        return Ok(Target {
            workflow: load(app, version).await?,
            base: first_model(app)?,
        });
    }
    let base = app
        .models
        .iter()
        .find(|base| base.name == model)
        .ok_or_else(|| ApiError::no_model(model))?;
    let workflow = match tenant
        .active
        .get(DEFAULT_WORKFLOW)
        .filter(|version| serves(version, kind))
    {
        Some(version) => load(app, version).await?,
        None => app.workflows.passthrough(&app.sandbox).await?,
    };
    Ok(Target {
        workflow,
        base: base.clone(),
    })
}

/// Finds who answers a call of `workflow.function`; the second part is the function's name.
///
/// # Errors
/// 404 when the tenant has no such workflow.
pub(super) async fn resolve_function<'n>(
    app: &App,
    tenant: &TenantEntry,
    name: &'n str,
) -> ApiResult<(Target, &'n str)> {
    let unknown = || {
        let message = format!("there is no function {name:?}; `metadata` lists what there is");
        ApiError {
            code: "no_such_function".into(),
            ..ApiError::not_found(message)
        }
    };
    let (workflow, function) = name.split_once('.').ok_or_else(unknown)?;
    let version = tenant.active.get(workflow).ok_or_else(unknown)?;
    Ok((
        Target {
            workflow: load(app, version).await?,
            base: first_model(app)?,
        },
        function,
    ))
}

/// What a version says about itself.
pub(super) fn description(version: &VersionRow) -> Description {
    serde_json::from_str(&version.description).unwrap_or_else(|error| {
        tracing::error!(workflow = version.workflow, %error, "a stored description cannot be read");
        Description::default()
    })
}

fn serves(version: &VersionRow, kind: &RequestKind) -> bool {
    let description = description(version);
    match kind {
        RequestKind::Chat { .. } => description.chat,
        RequestKind::Completion { .. } => description.completion,
        RequestKind::Function { .. } => true,
    }
}

async fn load(app: &App, version: &VersionRow) -> ApiResult<Workflow> {
    app.workflows
        .stored(
            &app.sandbox,
            &app.registry.blobs,
            &version.workflow,
            &version.digest,
        )
        .await
}

/// The model a workflow is given when the client named none.
fn first_model(app: &App) -> ApiResult<BaseModel> {
    app.models
        .first()
        .cloned()
        .ok_or_else(|| ApiError::internal("no model is loaded"))
}
