//! What a component says it serves. It is asked once, at upload, and its answer is hostile input.

use crate::component::Workflow;
use crate::invocation::LimitedStore;
use crate::log::printable;
use crate::state::Charges;
use crate::{CallError, Inner, Limits, Tenant};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

const DESCRIPTION_BYTES_MAX: usize = 64 << 10;
const FUNCTIONS_MAX: usize = 64;
const NAME_BYTES_MAX: usize = 64;
/// Describing is returning a constant: it gets little time.
const CPU_MS_MAX: u64 = 200;
const WALL_MS_MAX: u64 = 5_000;

/// What a workflow serves.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// Answers chats.
    #[serde(default)]
    pub chat: bool,
    /// Answers plain completions.
    #[serde(default)]
    pub completion: bool,
    /// The functions it exports.
    #[serde(default)]
    pub functions: Vec<FunctionDescription>,
}

/// One function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FunctionDescription {
    /// `[A-Za-z_][A-Za-z0-9_]*`, so that it can stand behind `workflow.`
    pub name: String,
    /// For people and for models.
    #[serde(default)]
    pub description: String,
    /// A JSON Schema; `{}` accepts anything.
    #[serde(default = "anything")]
    pub parameters: serde_json::Value,
}

fn anything() -> serde_json::Value {
    serde_json::json!({})
}

/// Asks the component.
pub(crate) async fn describe(
    inner: &Inner,
    workflow: &Workflow,
    tenant: &Tenant,
) -> Result<Description, CallError> {
    let mut tenant = tenant.clone();
    tenant.limits = Limits {
        cpu_ms_max: tenant.limits.cpu_ms_max.min(CPU_MS_MAX),
        wall_ms_max: tenant.limits.wall_ms_max.min(WALL_MS_MAX),
        hostcall_bytes_max: tenant
            .limits
            .hostcall_bytes_max
            .min(2 * DESCRIPTION_BYTES_MAX),
        ..tenant.limits
    };
    let wall = Duration::from_millis(tenant.limits.wall_ms_max);
    let charges = Charges::new(&tenant);
    let store = LimitedStore::new(inner, workflow, tenant, wall, None, charges)?;
    let text = store
        .run(async |store, component| {
            let text = component.call_describe(&mut *store).await?;
            Ok(Ok(text))
        })
        .await?;
    parse(&text).map_err(CallError::BadDescription)
}

/// The description a loaded workflow has given, asking it where nobody has yet.
pub(crate) async fn known(
    inner: &Inner,
    workflow: &Workflow,
    tenant: &Tenant,
) -> Result<Arc<Description>, CallError> {
    if let Some(description) = workflow.description().get() {
        return Ok(Arc::clone(description));
    }
    let description = Arc::new(describe(inner, workflow, tenant).await?);
    Ok(Arc::clone(
        workflow.description().get_or_init(|| description),
    ))
}

fn parse(text: &str) -> Result<Description, String> {
    if text.len() > DESCRIPTION_BYTES_MAX {
        return Err(format!(
            "it is {} bytes long, at most {DESCRIPTION_BYTES_MAX} are allowed",
            text.len()
        ));
    }
    let description: Description = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if description.functions.len() > FUNCTIONS_MAX {
        return Err(format!(
            "it has {} functions, at most {FUNCTIONS_MAX} are allowed",
            description.functions.len()
        ));
    }
    let mut names = BTreeSet::new();
    for function in &description.functions {
        let name = &function.name;
        let starts = name.starts_with(|char: char| char.is_ascii_alphabetic() || char == '_');
        let goes_on = name
            .chars()
            .all(|char| char.is_ascii_alphanumeric() || char == '_');
        if !starts || !goes_on || name.len() > NAME_BYTES_MAX {
            return Err(format!(
                "{:?} is not a valid function name: use letters, digits and _, at most {NAME_BYTES_MAX} of them, and no digit first",
                printable(name)
            ));
        }
        if !names.insert(name) {
            return Err(format!("two functions have the name {name}"));
        }
        if !function.parameters.is_object() {
            return Err(format!(
                "the parameters of {name} are not a JSON Schema object"
            ));
        }
    }
    if !description.chat && !description.completion && description.functions.is_empty() {
        return Err("it serves neither chats nor completions and has no functions".to_owned());
    }
    Ok(description)
}

#[cfg(test)]
mod tests {
    use super::parse;

    fn check(text: &str, expected: Result<(), &str>) {
        match (parse(text), expected) {
            (Ok(_), Ok(())) => {}
            (Err(error), Err(part)) => assert!(error.contains(part), "{error:?} lacks {part:?}"),
            (result, expected) => panic!("{text}: {result:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn a_description_is_checked_before_it_is_believed() {
        check(r#"{"chat": true}"#, Ok(()));
        check(r#"{"functions": [{"name": "f"}]}"#, Ok(()));
        check(r#"{}"#, Err("serves neither"));
        check(r#"{"chat": tru"#, Err("line 1"));
        check(r#"{"chat": true, "admin": true}"#, Err("unknown field"));
        check(
            r#"{"functions": [{"name": "a.b"}]}"#,
            Err("not a valid function name"),
        );
        check(
            r#"{"functions": [{"name": ""}]}"#,
            Err("not a valid function name"),
        );
        check(
            r#"{"functions": [{"name": "f"}, {"name": "f"}]}"#,
            Err("two functions"),
        );
        check(
            r#"{"functions": [{"name": "f", "parameters": 7}]}"#,
            Err("not a JSON Schema"),
        );
        check(
            &format!(
                "{{\"functions\": [{{\"name\": \"f\", \"parameters\": {}",
                "[".repeat(60_000)
            ),
            Err("recursion"),
        );
        check(&"x".repeat(70_000), Err("at most"));
    }
}
