//! `realm:host/exchange`: the client's request, and the bounded way back.
//!
//! The handles are empty: there is one request and one reply, and they live in the store.

use crate::bindings::realm::host::exchange::{Host, HostReply, HostRequest, Kind};
use crate::bindings::realm::llm::generation::{Event, Finish};
use crate::bindings::realm::llm::types::{Message, PromptEnd, StopReason, Tool, Usage};
use crate::imports::generation::{PolicyHandle, RunHandle, engine_logprob, policy_bytes, usage};
use crate::imports::sequence::SequenceHandle;
use crate::imports::{Failure, engine_reason, prompt};
use crate::invocation::{Outbox, Queued};
use crate::memory::CallMemory;
use crate::prompt_tokens::PromptTokens;
use crate::request::{CallRequest, JSON_AT_ONCE_MAX, RequestKind};
use crate::state::State;
use crate::{GuestError, ReplyEvent};
use realm_engine as engine;
use std::sync::Arc;
use std::time::Instant;
use wasmtime::component::Resource;

/// Stands for the request of the store.
#[allow(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct RequestHandle;
/// Stands for the reply of the store.
#[allow(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct ReplyHandle;

/// One call's request and what has been answered so far.
pub(crate) struct Exchange {
    request: CallRequest,
    out: Outbox,
    memory: Arc<CallMemory>,
    choices: Vec<Choice>,
    json_sent: bool,
    /// The tokens of the prompt with their log-probabilities, once the component had them found out.
    prompt: Option<PromptTokens>,
}

/// How far an answer has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Choice {
    Untouched,
    Open,
    Ended,
}

impl Exchange {
    pub(crate) fn new(request: CallRequest, out: Outbox, memory: Arc<CallMemory>) -> Exchange {
        let choices = vec![Choice::Untouched; request.choices as usize];
        Exchange {
            request,
            out,
            memory,
            choices,
            json_sent: false,
            prompt: None,
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

    /// Whether the client wants log-probabilities of its prompt that the component has not had found out.
    pub(crate) fn owes_prompt(&self) -> bool {
        self.request.scored_alternatives().is_some() && self.prompt.is_none()
    }

    /// Ends the answers a workflow wrote to and returned from: the program, which is their author, has ended its turn.
    /// Answers it never began stay absent.
    ///
    /// # Errors
    /// When there is no memory for an ending: an answer without one would look as if it were not all.
    pub(crate) async fn end_open(&mut self) -> wasmtime::Result<()> {
        for choice in 0..self.choices.len() {
            if self.choices[choice] == Choice::Open && !self.is_function() {
                let end = self.finish(choice as u32, engine::StopReason::EndOfTurn);
                match end.await {
                    // A client that is gone needs no ending.
                    Ok(()) | Err(Failure::Typed(_)) => {}
                    Err(Failure::Trap(error)) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// The engine has taken a prompt.
    pub(crate) fn accepted(&self) {
        self.out.accepted.send_replace(true);
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
        if text.is_empty() && tokens.is_empty() && logprobs.is_empty() {
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
        self.out
            .events
            .send(queued)
            .await
            .map_err(|_| GuestError::Cancelled.into())
    }
}

/// A client wants log-probabilities of its prompt and the component does not have them found out.
pub(crate) fn no_prompt_logprobs() -> GuestError {
    let what = "the workflow gives no log-probabilities of its prompt";
    GuestError::Unsupported(what.to_owned())
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
            // The tokens of a prompt are paid for.
            ReplyEvent::Echo { text, .. } => text.len(),
            ReplyEvent::Prompt(_) | ReplyEvent::ChoiceFinished { .. } | ReplyEvent::End(_) => 0,
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

    pub(crate) fn request(&mut self) -> wasmtime::Result<&CallRequest> {
        Ok(&self.exchange()?.request)
    }

    /// Gives the client all that a run says, job `i` as choice `i`.
    async fn forward_events(&mut self, run: &mut engine::Run) -> Result<Usage, Failure> {
        while let Some(events) = run.next().await {
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
        Ok(usage(run.usage()))
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
        let kind = self.request()?.kind.clone();
        let RequestKind::Chat(chat) = &*kind else {
            return Ok(Vec::new());
        };
        let messages = &chat.messages;
        let bytes = messages.iter().map(prompt::given_message_bytes).sum();
        self.handed_over.resize(bytes)?;
        Ok(messages.iter().map(prompt::given_message).collect())
    }

    async fn tools(&mut self, _: Resource<RequestHandle>) -> wasmtime::Result<Vec<Tool>> {
        let kind = self.request()?.kind.clone();
        let RequestKind::Chat(chat) = &*kind else {
            return Ok(Vec::new());
        };
        let tools = &chat.tools;
        let bytes = tools.iter().map(prompt::given_tool_bytes).sum();
        self.handed_over.resize(bytes)?;
        Ok(tools.iter().map(prompt::given_tool).collect())
    }

    async fn prompt_end(&mut self, _: Resource<RequestHandle>) -> wasmtime::Result<PromptEnd> {
        Ok(match &*self.request()?.kind {
            RequestKind::Chat(chat) => prompt::given_end(chat.end),
            RequestKind::Completion { .. } | RequestKind::Function { .. } => PromptEnd::OpenTurn,
        })
    }

    async fn variables_json(&mut self, _: Resource<RequestHandle>) -> wasmtime::Result<String> {
        let kind = self.request()?.kind.clone();
        let RequestKind::Chat(chat) = &*kind else {
            return Ok("{}".to_owned());
        };
        self.handed_over
            .resize(prompt::given_variables_bytes(chat))?;
        Ok(prompt::given_variables(chat))
    }

    async fn prompt(&mut self, _: Resource<RequestHandle>) -> Result<Vec<u32>, Failure> {
        let (tokens, held) = self.prompt_tokens().await?;
        self.hand_over(held, size_of_val(tokens.as_slice()))?;
        Ok(tokens)
    }

    async fn append_to(
        &mut self,
        _: Resource<RequestHandle>,
        sequence: Resource<SequenceHandle>,
    ) -> Result<u32, Failure> {
        let (tokens, held) = self.prompt_tokens().await?;
        // From here on the sequence pays.
        drop(held);
        self.append_tokens(&sequence, tokens).await
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
        let bytes = policy_bytes(&self.request()?.policy);
        let held = self.memory.hold(bytes)?;
        let policy = self.request()?.policy.clone();
        self.push_policy(policy, held)
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
        let kind = self.request()?.kind.clone();
        let RequestKind::Function {
            parameters_json, ..
        } = &*kind
        else {
            return Ok("null".to_owned());
        };
        self.handed_over.resize(parameters_json.len())?;
        Ok(parameters_json.clone())
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

    async fn prompt_logprobs(
        &mut self,
        _: Resource<ReplyHandle>,
        sequence: Resource<SequenceHandle>,
    ) -> Result<(), Failure> {
        let request = self.request()?;
        let Some(top) = request.scored_alternatives() else {
            return Ok(());
        };
        let is_told = request.prompt_logprobs.is_some();
        let tokens = self.score_prompt(&sequence, top).await?;
        let exchange = self.exchange()?;
        let is_first = exchange.prompt.replace(tokens.clone()).is_none();
        match is_told && is_first {
            true => exchange.send(ReplyEvent::Prompt(tokens)).await,
            false => Ok(()),
        }
    }

    async fn echo(&mut self, _: Resource<ReplyHandle>, choice: u32) -> Result<(), Failure> {
        let (text, held) = self.prompt_text().await?;
        let exchange = self.exchange()?;
        let tokens = match exchange.request.echo_logprobs() {
            None => PromptTokens::default(),
            Some(_) => exchange.prompt.clone().ok_or_else(no_prompt_logprobs)?,
        };
        // From here on the event pays.
        drop(held);
        exchange.open(choice)?;
        exchange
            .send(ReplyEvent::Echo {
                choice,
                text,
                tokens,
            })
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
        let bytes = value.len();
        let is_long = bytes > JSON_AT_ONCE_MAX;
        let check = move || {
            let checked = serde_json::from_str::<serde::de::IgnoredAny>(&value);
            checked.map(|_| value)
        };
        let (checked, held) = match is_long {
            true => self.worker().run(bytes, check).await?,
            false => self.worker().run_here(bytes, check)?,
        };
        let value = checked
            .map_err(|error| Failure::invalid(format!("the value is not valid JSON: {error}")))?;
        // From here on the event pays.
        drop(held);
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
        let place = run.rep();
        let mut handle = self.table.delete(run)?;
        let forwarded = self.forward_events(&mut handle.run).await;
        // Whatever became of it: jobs that are still decoded are cancelled with it.
        self.end_run(place, handle).await?;
        forwarded
    }

    async fn closed(&mut self, _: Resource<ReplyHandle>) -> wasmtime::Result<bool> {
        Ok(self.exchange()?.out.events.is_closed())
    }

    async fn drop(&mut self, reply: Resource<ReplyHandle>) -> wasmtime::Result<()> {
        self.table.delete(reply)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TenantMemory;
    use crate::memory::NoMemory;
    use std::time::Duration;
    use tokio::sync::{mpsc, watch};

    fn exchange(memory: &Arc<CallMemory>) -> (Exchange, mpsc::Receiver<Queued>) {
        let (sender, events) = mpsc::channel(16);
        let kind = RequestKind::Chat(engine::text::Chat::default());
        let request = CallRequest {
            id: String::new(),
            kind: kind.into(),
            model: String::new(),
            policy: engine::Policy::default(),
            prompt_logprobs: None,
            choices: 2,
            deadline: Duration::from_secs(1),
        };
        let out = Outbox {
            events: sender,
            accepted: watch::Sender::new(false),
        };
        (Exchange::new(request, out, Arc::clone(memory)), events)
    }

    #[tokio::test]
    async fn an_ending_without_memory_is_no_ending() {
        let tenant = Arc::new(TenantMemory::new(1 << 20));
        let memory = CallMemory::new(1 << 20, Arc::clone(&tenant));
        let (mut exchange, mut events) = exchange(&memory);
        let said = exchange.delta(1, "said".to_owned(), Vec::new(), Vec::new());
        assert!(said.await.is_ok());
        let rest = memory.hold((1 << 20) - tenant.bytes()).unwrap();
        let error = exchange.end_open().await.unwrap_err();
        assert!(error.is::<NoMemory>(), "{error}");
        drop((rest, exchange));
        assert!(matches!(
            events.recv().await.map(|queued| queued.event),
            Some(ReplyEvent::Delta { choice: 1, .. })
        ));
        assert!(events.recv().await.is_none(), "nothing looks like an end");
    }

    #[tokio::test]
    async fn a_client_that_is_gone_needs_no_ending() {
        let tenant = Arc::new(TenantMemory::new(1 << 20));
        let memory = CallMemory::new(1 << 20, tenant);
        let (mut exchange, events) = exchange(&memory);
        let said = exchange.delta(0, "said".to_owned(), Vec::new(), Vec::new());
        assert!(said.await.is_ok());
        drop(events);
        assert!(exchange.end_open().await.is_ok());
    }
}
