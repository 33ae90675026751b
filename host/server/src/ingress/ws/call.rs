//! One call over `/ws`: a built-in function, or `workflow.function`.
//!
//! Built-ins: `generate` and `chat` take what the HTTP routes take and stream unless `stream` is false; `models`,
//! `health` and `metadata` answer at once.

use super::{OutFrame, Outgoing};
use crate::auth::random_hex;
use crate::error::ApiResult;
use crate::ingress::begin::{Incoming, begin};
use crate::ingress::body::TenantBody;
use crate::ingress::framing::ws;
use crate::ingress::generation::{Generation, Start};
use crate::ingress::request::{Defaults, Family};
use crate::ingress::{models, route};
use crate::state::{Admission, App, TenantEntry};
use realm_engine::Policy;
use realm_sandbox::RequestKind;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::oneshot;

/// The route in metrics.
const ROUTE: &str = "ws";
/// What HTTP servers log for a client that left; no answer with it is ever sent.
const CANCELLED: &str = "499";

/// A call of a function.
pub(super) struct FunctionCall {
    pub(super) app: Arc<App>,
    pub(super) tenant: Arc<TenantEntry>,
    pub(super) function: String,
    pub(super) params: TenantBody,
    pub(super) out: Outgoing,
}

impl FunctionCall {
    /// Runs to the end, or until cancelled; returns the last frame.
    pub(super) async fn run(
        self,
        admission: Admission,
        cancelled: oneshot::Receiver<()>,
    ) -> OutFrame {
        let (app, tenant) = (Arc::clone(&self.app), Arc::clone(&self.tenant));
        let out = self.out.clone();
        // Dropping the call is hanging up on its component, which frees everything it holds.
        let (last, status) = tokio::select! {
            biased;
            Ok(()) = cancelled => (out.cancelled(), CANCELLED.to_owned()),
            ended = self.answer(admission) => match ended {
                Ok(last) => (last, "200".to_owned()),
                Err(error) => (out.failed(&error), error.status.as_str().to_owned()),
            },
        };
        count(&app, &tenant.row.name, &status);
        last
    }

    /// Streams what there is to stream; the frame that completes the call.
    async fn answer(self, admission: Admission) -> ApiResult<OutFrame> {
        let out = self.out.clone();
        match self.function.as_str() {
            "models" => out.complete(&models::list(&self.app, &self.tenant)),
            "health" => out.complete(&json!({"status": "ok"})),
            "metadata" => out.complete(&metadata(&self.app, &self.tenant)),
            "generate" => out.complete(&self.generate(Family::Completion, admission).await?),
            "chat" => out.complete(&self.generate(Family::Chat, admission).await?),
            _ => out.complete(&self.call_function(admission).await?),
        }
    }

    async fn generate(self, family: Family, admission: Admission) -> ApiResult<Value> {
        let first = self
            .app
            .models()
            .base()
            .first()
            .map(|base| base.name.clone());
        let incoming = Incoming {
            family,
            what: "params",
            defaults: Defaults {
                model: first,
                stream: true,
            },
            route: ROUTE,
            started: Instant::now(),
            admission,
        };
        let begun = begin(&self.app, &self.tenant, self.params, incoming).await?;
        if begun.stream {
            let keep_alive = self.app.config.keep_alive();
            ws::stream(begun.generation, &begun.renderer, &self.out, keep_alive).await
        } else {
            ws::whole(begun.generation, &begun.renderer, &self.tenant).await
        }
    }

    async fn call_function(self, admission: Admission) -> ApiResult<Box<RawValue>> {
        let started = Instant::now();
        let (target, name) =
            route::resolve_function(&self.app, &self.tenant, &self.function).await?;
        let (parameters_json, charge) = self.params.into_text()?;
        let start = Start {
            id: format!("req_{}", random_hex::<12>()),
            kind: RequestKind::Function {
                name: name.to_owned(),
                parameters_json,
            },
            policy: Policy::default(),
            prompt_logprobs: None,
            choices: 1,
            started,
            route: ROUTE,
            charge,
            admission,
        };
        let generation = Generation::start(&self.app, &self.tenant, &target, start);
        ws::function(generation, &self.out).await
    }
}

/// Counts a call by the status HTTP would have answered it with.
pub(super) fn count(app: &App, tenant: &str, status: &str) {
    let labels = [tenant, ROUTE, status];
    app.metrics.requests.with_label_values(&labels).inc();
}

/// Every function this tenant can call, with its parameters.
fn metadata(app: &App, tenant: &TenantEntry) -> Value {
    let schema = |properties: Value, required: &[&str]| json!({"type": "object", "properties": properties, "required": required});
    let nothing = schema(json!({}), &[]);
    let text = json!({"type": "string"});
    let function = |name: &str, description: &str, parameters: Value| json!({"name": name, "description": description, "parameters": parameters});
    let sampling = json!({"type": "number"});
    let mut functions = vec![
        function(
            "generate",
            "Continues a text. Takes what POST /v1/completions takes and streams unless stream is false.",
            schema(
                json!({"model": text, "prompt": text, "max_tokens": sampling, "temperature": sampling}),
                &["prompt"],
            ),
        ),
        function(
            "chat",
            "Continues a chat. Takes what POST /v1/chat/completions takes and streams unless stream is false.",
            schema(
                json!({"model": text, "messages": {"type": "array"}, "max_tokens": sampling, "temperature": sampling}),
                &["messages"],
            ),
        ),
        function(
            "models",
            "Lists the models and workflows that can be used.",
            nothing.clone(),
        ),
        function(
            "health",
            "Says that the server is running.",
            nothing.clone(),
        ),
        function(
            "metadata",
            "Lists the functions that can be called.",
            nothing,
        ),
    ];
    for version in tenant.active.values() {
        let exported = route::description(version)
            .functions
            .into_iter()
            .map(|exported| {
                let name = format!("{}.{}", version.workflow, exported.name);
                function(&name, &exported.description, exported.parameters)
            });
        functions.extend(exported);
    }
    json!({"tenant": tenant.row.name, "functions": functions, "models": models::list(app, tenant)["data"]})
}
