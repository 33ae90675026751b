//! One call from a client, and the way back.

use crate::bindings::realm::host::exchange;
use crate::json::{Map, Value};
use crate::{
    Error, Event, Kind, Message, Policy, PromptEnd, Run, Sequence, StopReason, Token, Tool, Usage,
};

/// What the client asks.
#[derive(Debug)]
pub struct Request(exchange::Request);

impl Request {
    pub(crate) fn new(request: exchange::Request) -> Request {
        Request(request)
    }

    /// Chat, completion or function.
    pub fn kind(&self) -> Kind {
        self.0.kind()
    }

    /// The id the client sees as well.
    pub fn id(&self) -> String {
        self.0.id()
    }

    /// The base model the client means, for [`Model::open`](crate::Model::open).
    pub fn model(&self) -> String {
        self.0.model()
    }

    /// The chat; empty for other kinds.
    pub fn messages(&self) -> Vec<Message> {
        self.0.messages()
    }

    /// The tools of a chat.
    pub fn tools(&self) -> Vec<Tool> {
        self.0.tools()
    }

    /// Where the chat's prompt is to end.
    pub fn prompt_end(&self) -> PromptEnd {
        self.0.prompt_end()
    }

    /// What the chat template is to know by name besides, for [`Model::render_with`](crate::Model::render_with).
    ///
    /// # Errors
    /// `Invalid` when it is not a JSON object, which the host has already ruled out.
    pub fn variables(&self) -> Result<Map<String, Value>, Error> {
        Ok(serde_json::from_str(&self.0.variables_json())?)
    }

    /// The prompt as the client meant it: the rendered chat, or raw text or ids.
    ///
    /// # Errors
    /// `Invalid` when the chat template refuses, and for functions, which have none.
    pub fn prompt(&self) -> Result<Vec<Token>, Error> {
        self.0.prompt()
    }

    /// Adds the prompt to a sequence of the request's model and returns the new length. Its tokens stay in the host.
    ///
    /// # Errors
    /// Those of [`Request::prompt`] and of [`Sequence::append`].
    pub fn append_to(&self, sequence: &Sequence) -> Result<u32, Error> {
        self.0.append_to(&sequence.0)
    }

    /// Whether the client wants the prompt's text in front of the completion; [`Reply::echo`] puts it there.
    pub fn echo(&self) -> bool {
        self.0.echo()
    }

    /// The client's sampling, stops and token limits.
    pub fn policy(&self) -> Policy {
        Policy(self.0.policy())
    }

    /// How many answers the client wants, from 1.
    pub fn choices(&self) -> u32 {
        self.0.choices()
    }

    /// The function that is called; empty for other kinds.
    pub fn function_name(&self) -> String {
        self.0.function_name()
    }

    /// The function's parameters.
    ///
    /// # Errors
    /// `Invalid` when they are not valid JSON, which the host has already ruled out.
    pub fn parameters(&self) -> Result<Value, Error> {
        Ok(serde_json::from_str(&self.0.parameters_json())?)
    }

    /// What is left of the time for this call, in milliseconds.
    pub fn deadline_ms(&self) -> u32 {
        self.0.deadline_ms()
    }
}

/// The way back. Writes wait while the client is behind, and fail with `Cancelled` after it is gone.
#[derive(Debug)]
pub struct Reply(exchange::Reply);

impl Reply {
    pub(crate) fn new(reply: exchange::Reply) -> Reply {
        Reply(reply)
    }

    /// Adds text to an answer.
    ///
    /// # Errors
    /// `Cancelled` without a client; `Invalid` for a choice out of range or already ended.
    pub fn text(&self, choice: u32, delta: &str) -> Result<(), Error> {
        self.0.text(choice, delta)
    }

    /// Gives the client the log-probabilities of the prompt's tokens where it asked for them, and does nothing where it did
    /// not. Before [`Reply::echo`], which puts them beside the text.
    ///
    /// # Errors
    /// `Cancelled` without a client; `Invalid` while a run decodes the sequence.
    pub fn prompt_logprobs(&self, prompt: &Sequence) -> Result<(), Error> {
        self.0.prompt_logprobs(&prompt.0)
    }

    /// Adds the text of a completion's prompt to an answer. It stays in the host.
    ///
    /// # Errors
    /// Those of [`Request::prompt`] and [`Reply::text`]; `Invalid` for chats and functions.
    pub fn echo(&self, choice: u32) -> Result<(), Error> {
        self.0.echo(choice)
    }

    /// Passes an event of any job on as part of `choice`, with its log-probabilities and its end.
    ///
    /// # Errors
    /// As [`Reply::text`]; the failure of a failed job comes back.
    pub fn emit(&self, choice: u32, event: &Event) -> Result<(), Error> {
        self.0.emit(choice, event)
    }

    /// One JSON value for the caller of a function; call it again to stream.
    ///
    /// # Errors
    /// `Cancelled` without a client; `Invalid` when this is not a call of a function, or the value is too large.
    pub fn json(&self, value: &Value) -> Result<(), Error> {
        self.0.json(&value.to_string())
    }

    /// Ends an answer.
    ///
    /// # Errors
    /// `Invalid` for a choice out of range or already ended.
    pub fn finish(&self, choice: u32, reason: StopReason) -> Result<(), Error> {
        self.0.finish(choice, reason)
    }

    /// Streams job `i` of a run as choice `i`, without waking this program until all is said.
    ///
    /// # Errors
    /// The failure of a job; the others are cancelled then.
    pub fn forward(&self, run: Run) -> Result<Usage, Error> {
        self.0.forward(run.0)
    }

    /// Whether the client has hung up.
    pub fn closed(&self) -> bool {
        self.0.closed()
    }
}
