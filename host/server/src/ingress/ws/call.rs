//! One call over `/ws`: a built-in function, or `workflow.function`.
//!
//! Built-ins: `generate` and `chat` take what the HTTP routes take and stream unless `stream` is false; `models`,
//! `health` and `metadata` answer at once. A function that answers with several values streams all but the last,
//! which completes it.

use super::frame;
use crate::error::{ApiError, ApiResult};
use crate::ingress::answer::{self, Answer};
use crate::ingress::openai::Common;
use crate::ingress::render::{finish_reason, usage};
use crate::ingress::{chat, completions, models, route};
use crate::state::{Admission, App, TenantEntry};
use axum::extract::ws::Message;
use realm_engine::{Policy, StopReason};
use realm_sandbox::{ReplyEvent, RequestKind};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{mpsc, oneshot};

/// The route in metrics.
const ROUTE: &str = "ws";
/// What HTTP servers log for a client that left; no answer with it is ever sent.
const CANCELLED: &str = "499";

/// A call.
pub(super) struct Call {
    pub(super) app: Arc<App>,
    pub(super) tenant: Arc<TenantEntry>,
    pub(super) id: Value,
    pub(super) function: String,
    pub(super) params: Value,
    pub(super) out: mpsc::Sender<Message>,
}

impl Call {
    /// Runs to the end, or until cancelled; returns the last frame.
    pub(super) async fn run(
        mut self,
        admission: Admission,
        cancelled: oneshot::Receiver<()>,
    ) -> Value {
        let (id, app, tenant) = (
            self.id.clone(),
            Arc::clone(&self.app),
            Arc::clone(&self.tenant),
        );
        // Dropping the call is hanging up on its component, which frees everything it holds.
        let (last, status) = tokio::select! {
            biased;
            Ok(()) = cancelled => (frame::cancelled(&id), CANCELLED.to_owned()),
            ended = self.answer(admission) => match ended {
                Ok(data) => (frame::complete(&id, &data), "200".to_owned()),
                Err(error) => (frame::error(&id, &error), error.status.as_str().to_owned()),
            },
        };
        count(&app, &tenant.row.name, &status);
        last
    }

    /// Streams what there is to stream; the data that completes the call.
    async fn answer(&mut self, admission: Admission) -> ApiResult<Value> {
        match self.function.as_str() {
            "models" => Ok(models::list(&self.app, &self.tenant)),
            "health" => Ok(json!({"status": "ok"})),
            "metadata" => Ok(metadata(&self.app, &self.tenant)),
            "generate" | "chat" => self.generate(admission).await,
            _ => self.call_function(admission).await,
        }
    }

    async fn generate(&mut self, admission: Admission) -> ApiResult<Value> {
        let mut params = std::mem::take(&mut self.params);
        if let (Some(fields), Some(first)) = (params.as_object_mut(), self.app.models.first()) {
            fields
                .entry("model")
                .or_insert_with(|| first.name.clone().into());
        }
        let streams = params["stream"] != false;
        let parse = if self.function == "chat" {
            chat::parse
        } else {
            completions::parse
        };
        let (
            Common {
                model,
                policy,
                choices,
                ..
            },
            kind,
        ) = parse(&params)?;
        let target = route::resolve(&self.app, &self.tenant, &model, &kind).await?;
        let answer = self.start(&target, kind, policy, choices, admission)?;
        let mut data = json!({"model": model});
        if streams {
            let (choices, counts) = self.stream(answer, choices).await?;
            data["choices"] = choices;
            data["usage"] = counts;
        } else {
            let whole = answer.whole(None, choices).await?;
            let choices = whole.choices.iter().enumerate().map(|(index, choice)| {
                let reason = finish_reason(choice.reason.unwrap_or(StopReason::EndOfTurn));
                json!({"index": index, "text": choice.text, "finish_reason": reason})
            });
            data["choices"] = choices.collect();
            data["usage"] = usage(&whole.usage);
        }
        Ok(data)
    }

    /// Sends text as it comes; how each choice ended, and the token counts.
    async fn stream(&self, mut answer: Answer, choices: u32) -> ApiResult<(Value, Value)> {
        let mut reasons = vec![StopReason::EndOfTurn; choices as usize];
        loop {
            match answer.next().await {
                Some(ReplyEvent::Delta { choice, text, .. }) if !text.is_empty() => {
                    self.send(&json!({"choice": choice, "text": text})).await?;
                }
                Some(ReplyEvent::ChoiceFinished { choice, reason }) => {
                    if let Some(slot) = reasons.get_mut(choice as usize) {
                        *slot = reason;
                    }
                }
                Some(ReplyEvent::Delta { .. } | ReplyEvent::Json(_)) => {}
                Some(ReplyEvent::End(Ok(counts))) => {
                    let ends = reasons.iter().enumerate();
                    let ends = ends.map(|(index, reason)| json!({"index": index, "finish_reason": finish_reason(*reason)}));
                    return Ok((ends.collect(), usage(&counts)));
                }
                Some(ReplyEvent::End(Err(error))) => return Err(error.into()),
                None => return Err(ApiError::internal("a call ended without its end")),
            }
        }
    }

    async fn call_function(&mut self, admission: Admission) -> ApiResult<Value> {
        let (target, name) =
            route::resolve_function(&self.app, &self.tenant, &self.function).await?;
        let kind = RequestKind::Function {
            name: name.to_owned(),
            parameters_json: self.params.to_string(),
        };
        let mut answer = self.start(&target, kind, Policy::default(), 1, admission)?;
        let mut last = Value::Null;
        loop {
            match answer.next().await {
                Some(ReplyEvent::Json(value)) => {
                    if !last.is_null() {
                        self.send(&last).await?;
                    }
                    last = serde_json::from_str(&value)
                        .map_err(|_| ApiError::internal("the sandbox passed on what is no JSON"))?;
                }
                Some(ReplyEvent::Delta { choice, text, .. }) if !text.is_empty() => {
                    self.send(&json!({"choice": choice, "text": text})).await?;
                }
                Some(ReplyEvent::Delta { .. } | ReplyEvent::ChoiceFinished { .. }) => {}
                Some(ReplyEvent::End(Ok(_))) => return Ok(last),
                Some(ReplyEvent::End(Err(error))) => return Err(error.into()),
                None => return Err(ApiError::internal("a call ended without its end")),
            }
        }
    }

    fn start(
        &self,
        target: &route::Target,
        kind: RequestKind,
        policy: Policy,
        choices: u32,
        admission: Admission,
    ) -> ApiResult<Answer> {
        let id = format!("req_{}", crate::auth::random_hex::<12>());
        let call = answer::Call {
            id,
            kind,
            policy,
            choices,
            started: Instant::now(),
            route: ROUTE,
        };
        Answer::start(&self.app, &self.tenant, target, call, admission)
    }

    /// Waits while the client is behind, and with it the component.
    async fn send(&self, data: &Value) -> ApiResult<()> {
        let frame = Message::text(frame::streaming(&self.id, data).to_string());
        self.out
            .send(frame)
            .await
            .map_err(|_| ApiError::invalid("the client is gone"))
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
            "Continues a text. Takes what POST /v1/completions takes; streams unless stream is false.",
            schema(
                json!({"model": text, "prompt": text, "max_tokens": sampling, "temperature": sampling}),
                &["prompt"],
            ),
        ),
        function(
            "chat",
            "Continues a chat. Takes what POST /v1/chat/completions takes; streams unless stream is false.",
            schema(
                json!({"model": text, "messages": {"type": "array"}, "max_tokens": sampling, "temperature": sampling}),
                &["messages"],
            ),
        ),
        function(
            "models",
            "Lists the models and workflows there are.",
            nothing.clone(),
        ),
        function("health", "Says that the server is there.", nothing.clone()),
        function("metadata", "Lists the functions there are.", nothing),
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
