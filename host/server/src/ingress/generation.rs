//! A call of a component from its start to its end, metered; and the whole answers that are made of it.

use super::route::Target;
use crate::error::{ApiError, ApiResult};
use crate::metrics::Metrics;
use crate::state::{Admission, App, TenantEntry};
use axum::http::StatusCode;
use realm_engine::{Policy, StopReason, TokenLogprob, Usage};
use realm_sandbox::{Invocation, ReplyEvent, Request, RequestKind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Text of a whole answer, all choices together. A component could write without end; a stream need not hold it.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// A call under way. Dropping it is hanging up.
pub(super) struct Answer {
    invocation: Invocation,
    meter: Meter,
    _admission: Admission,
}

/// What a call is started with.
pub(super) struct Call {
    /// The id the client sees.
    pub id: String,
    /// What is asked.
    pub kind: RequestKind,
    /// Sampling, stops and limits.
    pub policy: Policy,
    /// How many answers.
    pub choices: u32,
    /// When the request came in.
    pub started: Instant,
    /// Its route, for the metrics.
    pub route: &'static str,
}

impl Answer {
    /// Checks the policy against the model and starts the component.
    ///
    /// # Errors
    /// The client's 400 for a policy out of range.
    pub(super) fn start(
        app: &Arc<App>,
        tenant: &TenantEntry,
        target: &Target,
        call: Call,
        admission: Admission,
    ) -> ApiResult<Answer> {
        let Call {
            id,
            kind,
            policy,
            choices,
            started,
            route,
        } = call;
        policy
            .validate(target.base.client.facts().vocab_size)
            .map_err(ApiError::invalid)?;
        let request = Request {
            id,
            kind,
            model: target.base.name.clone(),
            policy,
            choices,
            deadline: Duration::from_millis(tenant.tenant.limits.wall_ms_max),
        };
        let invocation = app
            .sandbox
            .invoke(&target.workflow, &tenant.tenant, request);
        let meter = Meter {
            metrics: Arc::clone(&app.metrics),
            tenant: tenant.row.name.clone(),
            model: target.base.name.clone(),
            route,
            started,
            last: None,
            counted: 0,
        };
        Ok(Answer {
            invocation,
            meter,
            _admission: admission,
        })
    }

    /// The next event; `None` after the end. Safe to drop and call again.
    pub(super) async fn next(&mut self) -> Option<ReplyEvent> {
        let event = self.invocation.next().await?;
        self.meter.see(&event);
        Some(event)
    }

    /// Reads to the end.
    ///
    /// # Errors
    /// What the call ended with, or that it wrote too much.
    pub(super) async fn whole(
        mut self,
        first: Option<ReplyEvent>,
        choices: u32,
    ) -> ApiResult<Whole> {
        let mut whole = Whole {
            choices: vec![Choice::default(); choices as usize],
            ..Whole::default()
        };
        let mut bytes = 0;
        let mut next = first;
        loop {
            let event = match next.take() {
                Some(event) => event,
                None => self
                    .next()
                    .await
                    .ok_or_else(|| ApiError::internal("a call ended without its end"))?,
            };
            match event {
                ReplyEvent::Delta {
                    choice,
                    text,
                    logprobs,
                    ..
                } => {
                    bytes += text.len();
                    if bytes > ANSWER_BYTES_MAX {
                        let error = too_large();
                        self.meter.failed(&error.code);
                        return Err(error);
                    }
                    if let Some(choice) = whole.choices.get_mut(choice as usize) {
                        choice.text.push_str(&text);
                        choice.logprobs.extend(logprobs);
                    }
                }
                ReplyEvent::ChoiceFinished { choice, reason } => {
                    if let Some(choice) = whole.choices.get_mut(choice as usize) {
                        choice.reason = Some(reason);
                    }
                }
                ReplyEvent::Json(_) => {} // a function's way to answer; chats and completions are text
                ReplyEvent::End(Ok(usage)) => {
                    whole.usage = usage;
                    return Ok(whole);
                }
                ReplyEvent::End(Err(error)) => return Err(error.into()),
            }
        }
    }
}

fn too_large() -> ApiError {
    let message = format!("the workflow answered with more than {ANSWER_BYTES_MAX} bytes");
    ApiError::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        "workflow_error",
        "reply_too_large",
        message,
    )
}

/// A whole answer.
#[derive(Clone, Debug, Default)]
pub(super) struct Whole {
    /// As many as were asked for.
    pub choices: Vec<Choice>,
    /// Tokens.
    pub usage: Usage,
}

/// One answer of several.
#[derive(Clone, Debug, Default)]
pub(super) struct Choice {
    /// All of its text.
    pub text: String,
    /// One for each token, when asked for.
    pub logprobs: Vec<TokenLogprob>,
    /// Why it ended.
    pub reason: Option<StopReason>,
}

/// Counts what goes by.
struct Meter {
    metrics: Arc<Metrics>,
    tenant: String,
    model: String,
    route: &'static str,
    started: Instant,
    /// When the last piece went by.
    last: Option<Instant>,
    /// Generated tokens counted so far.
    counted: u32,
}

impl Meter {
    fn see(&mut self, event: &ReplyEvent) {
        let tenant = self.tenant.as_str();
        match event {
            ReplyEvent::Delta { tokens, .. } => {
                let now = Instant::now();
                let count = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
                match self.last.replace(now) {
                    None => {
                        let seconds = (now - self.started).as_secs_f64();
                        self.metrics
                            .first_token_seconds
                            .with_label_values(&[tenant])
                            .observe(seconds);
                    }
                    Some(last) if count > 0 => {
                        // A piece of several tokens was late by its first; the others came with it.
                        let seconds = (now - last).as_secs_f64() / f64::from(count);
                        let histogram = self
                            .metrics
                            .inter_token_seconds
                            .with_label_values(&[tenant]);
                        (0..count).for_each(|_| histogram.observe(seconds));
                    }
                    Some(_) => {}
                }
                self.count(count);
            }
            ReplyEvent::End(Ok(usage)) => {
                let labels = [tenant, self.model.as_str()];
                self.metrics
                    .tokens_prompt
                    .with_label_values(&labels)
                    .inc_by(usage.prompt.into());
                // Tokens that the component used itself were in no delta.
                self.count(usage.completion.saturating_sub(self.counted));
            }
            ReplyEvent::End(Err(error)) => self.failed(error.code()),
            ReplyEvent::Json(_) | ReplyEvent::ChoiceFinished { .. } => {}
        }
    }

    fn failed(&self, code: &str) {
        let labels = [self.tenant.as_str(), code];
        self.metrics.guest_errors.with_label_values(&labels).inc();
    }

    fn count(&mut self, tokens: u32) {
        self.counted = self.counted.saturating_add(tokens);
        let labels = [self.tenant.as_str(), self.model.as_str()];
        self.metrics
            .tokens_completion
            .with_label_values(&labels)
            .inc_by(tokens.into());
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        let seconds = self.started.elapsed().as_secs_f64();
        self.metrics
            .request_seconds
            .with_label_values(&[self.route])
            .observe(seconds);
    }
}
