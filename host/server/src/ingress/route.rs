//! From the name a client uses to the component that answers: a workflow of the tenant, else a base model.

use super::request::{GenerationRequest, refused_policy};
use crate::error::{ApiError, ApiResult, shown};
use crate::models::{BaseModel, ModelTable};
use crate::registry::VersionRow;
use crate::state::{App, TenantEntry};
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

/// Finds who answers a chat or a completion, and holds the request against what that can do.
///
/// # Errors
/// 404 when the tenant has no such name, 400 when the workflow does not serve this kind of request, when a parameter is
/// out of range for the model, or when the text can never fit its context.
pub(super) async fn resolve(
    app: &App,
    tenant: &TenantEntry,
    request: &GenerationRequest,
) -> ApiResult<Target> {
    let models = app.models();
    let target = if let Some(version) = tenant.active.get(&request.model) {
        if !serves(version, &request.kind) {
            let what = format!("this kind of request to the workflow {}", version.workflow);
            return Err(ApiError::unsupported("model", what));
        }
        Target {
            workflow: load(app, version).await?,
            base: first_model(&models)?,
        }
    } else {
        let base = models.base_named(&request.model);
        let base = base.ok_or_else(|| ApiError::no_model(&request.model))?;
        let default = tenant.active.get(DEFAULT_WORKFLOW);
        let workflow = match default.filter(|version| serves(version, &request.kind)) {
            Some(version) => load(app, version).await?,
            None => {
                // A workflow may shorten what it is sent; this one may not.
                let context = base.client.length_max(app.tenant_of(tenant).owner());
                request.check_length(context, base.token_bytes_max)?;
                request.check_chat(base.client.text())?;
                app.workflows.passthrough(&app.sandbox).await?
            }
        };
        Target {
            workflow,
            base: base.clone(),
        }
    };
    let vocab_size = target.base.client.facts().vocab_size;
    request.check_tokens(vocab_size)?;
    request
        .policy
        .validate(vocab_size)
        .map_err(|message| refused_policy(request.family, message))?;
    Ok(target)
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
        let message = format!(
            "there is no function {:?}; `metadata` lists the functions there are",
            shown(name)
        );
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
            base: first_model(&app.models())?,
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
fn first_model(models: &ModelTable) -> ApiResult<BaseModel> {
    models
        .base()
        .first()
        .cloned()
        .ok_or_else(|| ApiError::internal("no model is loaded"))
}
