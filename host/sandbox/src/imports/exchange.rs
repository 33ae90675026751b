//! `realm:host/exchange`: the client's request, and the bounded way back.
//!
//! The handles are empty: there is one request and one reply, and they live in the store.

use crate::bindings::realm::host::exchange::{Host, HostReply, HostRequest, Kind};
use crate::bindings::realm::llm::generation::{Event, Finish};
use crate::bindings::realm::llm::types::{Message, Role, StopReason, Tool, ToolCall, Usage};
use crate::cpu::off_thread;
use crate::imports::generation::{PolicyHandle, RunHandle, engine_logprob, usage};
use crate::imports::model::not_tokens;
use crate::imports::sequence::SequenceHandle;
use crate::imports::{Failure, engine_reason};
use crate::invocation::Queued;
use crate::memory::CallMemory;
use crate::request::{Prompt, Request, RequestKind};
use crate::state::State;
use crate::{GuestError, ReplyEvent};
use realm_engine as engine;
use realm_engine::text::{ChatMessage, Specials, TextModel};
use serde_json::Value;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc;
use wasmtime::component::Resource;

/// Stands for the request of the store.
#[allow(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct RequestHandle;
/// Stands for the reply of the store.
#[allow(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct ReplyHandle;

/// One call's request and what has been answered so far.
pub(crate) struct Exchange {
    request: Request,
    events: mpsc::Sender<Queued>,
    memory: Arc<CallMemory>,
    choices: Vec<Choice>,
    json_sent: bool,
}

/// How far an answer has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Choice {
    Untouched,
    Open,
    Ended,
}

impl Exchange {
    pub(crate) fn new(
        request: Request,
        events: mpsc::Sender<Queued>,
        memory: Arc<CallMemory>,
    ) -> Exchange {
        let choices = vec![Choice::Untouched; request.choices as usize];
        Exchange {
            request,
            events,
            memory,
            choices,
            json_sent: false,
        }
    }

    pub(crate) fn id(&self) -> &str {
        &self.request.id
    }

    fn is_function(&self) -> bool {
        matches!(*self.request.kind, RequestKind::Function { .. })
    }

    /// Whether the client got anything at all.
    pub(crate) fn has_answered(&self) -> bool {
        self.json_sent
            || self
                .choices
                .iter()
                .any(|choice| *choice != Choice::Untouched)
    }

    /// Ends the answers a workflow wrote to and returned from: the program, which is their author, has ended its turn.
    /// Answers it never began stay absent.
    pub(crate) async fn end_open(&mut self) {
        for choice in 0..self.choices.len() {
            if self.choices[choice] == Choice::Open && !self.is_function() {
                // A client that is gone needs no ending.
                let _ = self
                    .finish(choice as u32, engine::StopReason::EndOfTurn)
                    .await;
            }
        }
    }

    /// Marks a choice as begun, or says why it cannot be written to.
    fn open(&mut self, choice: u32) -> Result<(), Failure> {
        let most = self.choices.len();
        match self.choices.get_mut(choice as usize) {
            None => Err(Failure::invalid(format!(
                "there is no choice {choice}: the client asked for {most}"
            ))),
            Some(Choice::Ended) => Err(Failure::invalid(format!("choice {choice} has ended"))),
            Some(state) => {
                *state = Choice::Open;
                Ok(())
            }
        }
    }

    async fn delta(
        &mut self,
        choice: u32,
        text: String,
        tokens: Vec<u32>,
        logprobs: Vec<engine::TokenLogprob>,
    ) -> Result<(), Failure> {
        self.open(choice)?;
        if text.is_empty() && tokens.is_empty() {
            return Ok(());
        }
        self.send(ReplyEvent::Delta {
            choice,
            text,
            tokens,
            logprobs,
        })
        .await
    }

    async fn finish(&mut self, choice: u32, reason: engine::StopReason) -> Result<(), Failure> {
        self.open(choice)?;
        self.choices[choice as usize] = Choice::Ended;
        self.send(ReplyEvent::ChoiceFinished { choice, reason })
            .await
    }

    /// Waits while the client is behind.
    async fn send(&self, event: ReplyEvent) -> Result<(), Failure> {
        let held = self.memory.hold(event_bytes(&event))?;
        let queued = Queued { event, _held: held };
        self.events
            .send(queued)
            .await
            .map_err(|_| GuestError::Cancelled.into())
    }
}

/// What an event takes of the host's memory.
fn event_bytes(event: &ReplyEvent) -> usize {
    size_of::<Queued>()
        + match event {
            ReplyEvent::Delta {
                text,
                tokens,
                logprobs,
                ..
            } => {
                let top = logprobs.iter().map(|one| size_of_val(one.top.as_slice()));
                text.len()
                    + size_of_val(tokens.as_slice())
                    + size_of_val(logprobs.as_slice())
                    + top.sum::<usize>()
            }
            ReplyEvent::Json(value) => value.len(),
            ReplyEvent::ChoiceFinished { .. } | ReplyEvent::End(_) => 0,
        }
}

impl Host for State {}

impl State {
    /// The exchange of a call. While a component describes itself nobody can hand it a request or a reply.
    fn exchange(&mut self) -> wasmtime::Result<&mut Exchange> {
        self.exchange
            .as_mut()
            .ok_or_else(|| wasmtime::Error::msg("there is no request here"))
    }

    fn request(&mut self) -> wasmtime::Result<&Request> {
        Ok(&self.exchange()?.request)
    }

    /// The request's prompt in tokens. A long one takes a while, so it is made where it may.
    async fn prompt_tokens(&mut self) -> Result<Vec<u32>, Failure> {
        let request = self.request()?;
        let (kind, model) = (Arc::clone(&request.kind), request.model.clone());
        let client = self.client(&model)?;
        let context = client.facts().context_length;
        let tokens_max = context as usize;
        let _held = (self.memory).hold(prompt_bytes_max(client.text(), &kind, tokens_max))?;
        let tokens = off_thread(&self.cpu, move || match &*kind {
            RequestKind::Chat { messages, tools } => client
                .text()
                .chat_tokens(messages, tools, true, tokens_max)
                .map_err(|error| not_tokens(error, context)),
            RequestKind::Completion {
                prompt: Prompt::Text(text),
                ..
            } => client
                .text()
                .encode(text, Specials::Parse, true, tokens_max)
                .map_err(|error| not_tokens(error, context)),
            RequestKind::Completion {
                prompt: Prompt::Tokens(tokens),
                ..
            } => Ok(tokens.clone()),
            RequestKind::Function { .. } => Err(Failure::invalid(
                "a function call has parameters, not a prompt",
            )),
        });
        tokens.await?
    }

    fn check_reply_bytes(&self, bytes: usize) -> Result<(), Failure> {
        let most = self.tenant.limits.json_bytes_max;
        if bytes > most {
            return Err(Failure::invalid(format!(
                "{bytes} bytes in one reply, at most {most} are allowed"
            )));
        }
        Ok(())
    }
}

/// Bytes of the host that it takes to make a prompt's tokens.
fn prompt_bytes_max(text: &TextModel, kind: &RequestKind, tokens_max: usize) -> usize {
    match kind {
        RequestKind::Chat { messages, .. } => {
            let calls = |message: &ChatMessage| {
                let calls = message.tool_calls.iter();
                calls.map(|call| call.arguments_json.len()).sum::<usize>()
            };
            let bytes = messages.iter();
            let bytes = bytes.map(|message| message.content.len() + calls(message));
            text.chat_bytes_max(bytes.sum(), tokens_max)
        }
        RequestKind::Completion {
            prompt: Prompt::Text(prompt),
            ..
        } => text.encode_bytes_max(prompt.len(), tokens_max),
        RequestKind::Completion {
            prompt: Prompt::Tokens(tokens),
            ..
        } => size_of_val(tokens.as_slice()),
        RequestKind::Function { .. } => 0,
    }
}

impl HostRequest for State {
    async fn kind(&mut self, _: Resource<RequestHandle>) -> wasmtime::Result<Kind> {
        Ok(match *self.request()?.kind {
            RequestKind::Chat { .. } => Kind::Chat,
            RequestKind::Completion { .. } => Kind::Completion,
            RequestKind::Function { .. } => Kind::Function,
        })
    }

    async fn id(&mut self, _: Resource<RequestHandle>) -> wasmtime::Result<String> {
        Ok(self.request()?.id.clone())
    }

    async fn model(&mut self, _: Resource<RequestHandle>) -> wasmtime::Result<String> {
        Ok(self.request()?.model.clone())
    }

    async fn messages(&mut self, _: Resource<RequestHandle>) -> wasmtime::Result<Vec<Message>> {
        Ok(match &*self.request()?.kind {
            RequestKind::Chat { messages, .. } => messages.iter().map(message).collect(),
            _ => Vec::new(),
        })
    }

    async fn tools(&mut self, _: Resource<RequestHandle>) -> wasmtime::Result<Vec<Tool>> {
        Ok(match &*self.request()?.kind {
            RequestKind::Chat { tools, .. } => tools.iter().map(tool).collect(),
            _ => Vec::new(),
        })
    }

    async fn prompt(&mut self, _: Resource<RequestHandle>) -> Result<Vec<u32>, Failure> {
        self.prompt_tokens().await
    }

    async fn append_to(
        &mut self,
        _: Resource<RequestHandle>,
        sequence: Resource<SequenceHandle>,
    ) -> Result<u32, Failure> {
        let tokens = self.prompt_tokens().await?;
        self.append_tokens(&sequence, tokens)
    }

    async fn echo(&mut self, _: Resource<RequestHandle>) -> wasmtime::Result<bool> {
        Ok(matches!(
            *self.request()?.kind,
            RequestKind::Completion { echo: true, .. }
        ))
    }

    async fn policy(
        &mut self,
        _: Resource<RequestHandle>,
    ) -> wasmtime::Result<Resource<PolicyHandle>> {
        let policy = self.request()?.policy.clone();
        self.push_policy(policy)
    }

    async fn choices(&mut self, _: Resource<RequestHandle>) -> wasmtime::Result<u32> {
        Ok(self.request()?.choices)
    }

    async fn function_name(&mut self, _: Resource<RequestHandle>) -> wasmtime::Result<String> {
        Ok(match &*self.request()?.kind {
            RequestKind::Function { name, .. } => name.clone(),
            _ => String::new(),
        })
    }

    async fn parameters_json(&mut self, _: Resource<RequestHandle>) -> wasmtime::Result<String> {
        Ok(match &*self.request()?.kind {
            RequestKind::Function {
                parameters_json, ..
            } => parameters_json.clone(),
            _ => "null".to_owned(),
        })
    }

    async fn deadline_ms(&mut self, _: Resource<RequestHandle>) -> wasmtime::Result<u32> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        Ok(u32::try_from(left.as_millis()).unwrap_or(u32::MAX))
    }

    async fn drop(&mut self, request: Resource<RequestHandle>) -> wasmtime::Result<()> {
        self.table.delete(request)?;
        Ok(())
    }
}

impl HostReply for State {
    async fn text(
        &mut self,
        _: Resource<ReplyHandle>,
        choice: u32,
        delta: String,
    ) -> Result<(), Failure> {
        self.check_reply_bytes(delta.len())?;
        self.exchange()?
            .delta(choice, delta, Vec::new(), Vec::new())
            .await
    }

    async fn emit(
        &mut self,
        _: Resource<ReplyHandle>,
        choice: u32,
        event: Event,
    ) -> Result<(), Failure> {
        self.check_reply_bytes(event.text.len())?;
        let logprobs = event.logprobs.into_iter().map(engine_logprob).collect();
        let exchange = self.exchange()?;
        exchange
            .delta(choice, event.text, event.tokens, logprobs)
            .await?;
        match event.finish {
            None => Ok(()),
            Some(Finish::Stopped(reason)) => exchange.finish(choice, engine_reason(reason)?).await,
            Some(Finish::Failed(error)) => Err(GuestError::from(error).into()),
        }
    }

    async fn json(&mut self, _: Resource<ReplyHandle>, value: String) -> Result<(), Failure> {
        self.check_reply_bytes(value.len())?;
        if !self.exchange()?.is_function() {
            return Err(Failure::invalid(
                "`json` can only be used to answer a function call",
            ));
        }
        serde_json::from_str::<serde::de::IgnoredAny>(&value)
            .map_err(|error| Failure::invalid(format!("the value is not valid JSON: {error}")))?;
        let exchange = self.exchange()?;
        exchange.json_sent = true;
        exchange.send(ReplyEvent::Json(value)).await
    }

    async fn finish(
        &mut self,
        _: Resource<ReplyHandle>,
        choice: u32,
        reason: StopReason,
    ) -> Result<(), Failure> {
        let reason = engine_reason(reason)?;
        self.exchange()?.finish(choice, reason).await
    }

    /// The program sleeps here until the run has ended; events go from the engine to the client.
    async fn forward(
        &mut self,
        _: Resource<ReplyHandle>,
        run: Resource<RunHandle>,
    ) -> Result<Usage, Failure> {
        let mut run = self.table.delete(run)?;
        while let Some(events) = run.run.next().await {
            for event in events {
                let exchange = self.exchange()?;
                exchange
                    .delta(event.job, event.text, event.tokens, event.logprobs)
                    .await?;
                match event.finished {
                    None => {}
                    Some(engine::Finish::Stopped(reason)) => {
                        exchange.finish(event.job, reason).await?
                    }
                    // The answers are incomplete: dropping the run cancels the other jobs.
                    Some(engine::Finish::Failed(error)) => {
                        return Err(self.engine_error(error).into());
                    }
                }
            }
        }
        Ok(usage(run.run.usage()))
    }

    async fn closed(&mut self, _: Resource<ReplyHandle>) -> wasmtime::Result<bool> {
        Ok(self.exchange()?.events.is_closed())
    }

    async fn drop(&mut self, reply: Resource<ReplyHandle>) -> wasmtime::Result<()> {
        self.table.delete(reply)?;
        Ok(())
    }
}

/// Roles were checked when the call began; "developer" is OpenAI's later word for "system".
fn message(message: &ChatMessage) -> Message {
    let role = match message.role.as_str() {
        "system" | "developer" => Role::System,
        "assistant" => Role::Assistant,
        "tool" => Role::Tool,
        _ => Role::User,
    };
    Message {
        role,
        content: message.content.clone(),
        name: message.name.clone(),
        tool_call_id: message.tool_call_id.clone(),
        tool_calls: message
            .tool_calls
            .iter()
            .map(|call| ToolCall {
                id: call.id.clone(),
                name: call.name.clone(),
                arguments_json: call.arguments_json.clone(),
            })
            .collect(),
    }
}

fn tool(tool: &Value) -> Tool {
    let function = &tool["function"];
    let text = |key: &str| function[key].as_str().unwrap_or_default().to_owned();
    Tool {
        name: text("name"),
        description: text("description"),
        parameters_json: function["parameters"].to_string(),
        strict: function["strict"].as_bool().unwrap_or(false),
    }
}
