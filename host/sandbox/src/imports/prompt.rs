//! Prompts: a client's or a component's chat on its way to tokens, what that takes of memory, and messages and tools in the
//! contract's words and in the template's.

use crate::GuestError;
use crate::bindings::realm::llm::types::{Message, Role, Tool, ToolCall};
use crate::imports::Failure;
use crate::imports::json_size::JsonSize;
use crate::imports::sequence::SequenceHandle;
use crate::log::{printable, printable_lines};
use crate::memory::{Held, NoMemory};
use crate::prompt_tokens::{self, PromptToken, PromptTokens};
use crate::request::{Prompt, RequestKind, SharedKind};
use crate::state::State;
use realm_engine::text::{self, ChatMessage, Specials, TextError, TextModel, TextOffsets};
use realm_engine::{Client, PromptLogprob};
use serde_json::{Value, json};
use wasmtime::component::Resource;

/// What a template writes around a message, and around a call in it.
const FRAME_BYTES: usize = 128;
/// What a message takes as the template's value, beside its texts.
const MESSAGE_BYTES: usize = 1024;
/// What a call of a tool takes likewise, beside its arguments.
const CALL_BYTES: usize = 2048;
/// When to try again where other calls have the memory.
const MEMORY_RETRY_MS: u32 = 1000;
/// Templates write tools with indentation.
const INDENTED: usize = 2;

impl State {
    /// The request's prompt in tokens, and what pays for them. A long one takes a while, so it is made where it may.
    pub(crate) async fn prompt_tokens(&mut self) -> Result<(Vec<u32>, Held), Failure> {
        let request = self.request()?;
        let (kind, model) = (request.kind.clone(), request.model.clone());
        // An answer must have room for a token of its own, where one is wanted.
        let answer = request.policy.max_tokens.unwrap_or(1).min(1);
        let client = self.client(&model)?;
        let tokens_max = client.length_max(self.tenant.owner());
        let tokens_max = tokens_max.saturating_sub(answer) as usize;
        let bytes = prompt_bytes_max(&client, &kind);
        let work = move || prompt_tokens(&client, &kind, tokens_max);
        let (tokens, held) = self.worker().run(bytes, work).await?;
        Ok((tokens?, held))
    }

    /// The text of a completion's prompt, and what pays for it.
    pub(crate) async fn prompt_text(&mut self) -> Result<(String, Held), Failure> {
        let request = self.request()?;
        let (kind, model) = (request.kind.clone(), request.model.clone());
        let RequestKind::Completion { prompt, .. } = &*kind else {
            return Err(Failure::invalid(
                "only the prompt of a completion can be echoed",
            ));
        };
        let tokens = match prompt {
            Prompt::Text(text) => {
                let held = self.memory.hold(text.len())?;
                return Ok((text.clone(), held));
            }
            Prompt::Tokens(tokens) => tokens,
        };
        let client = self.client(&model)?;
        if tokens.len() > client.facts().context_length as usize {
            return Err(GuestError::ContextFull(client.facts().context_length).into());
        }
        // Broken characters become longer, and a text that grows is there twice for a moment.
        let text = client.text().text_bytes_max(tokens.len()).saturating_mul(6);
        let bytes = text.saturating_add(size_of_val(tokens.as_slice()));
        let tokens = tokens.clone();
        let work = move || client.text().decode_text(&tokens);
        self.worker().run(bytes, work).await
    }
}

impl State {
    /// The tokens of a sequence with their log-probabilities and `top` alternatives each.
    pub(crate) async fn score_prompt(
        &mut self,
        sequence: &Resource<SequenceHandle>,
        top: u32,
    ) -> Result<PromptTokens, Failure> {
        let kind = self.request()?.kind.clone();
        let handle = self.table.get_mut(sequence)?;
        let client = handle.client.clone();
        let length = handle.sequence.length().await;
        let mut held = self.hold_scores(length as usize, top as usize)?;
        let handle = self.table.get_mut(sequence)?;
        let scored = handle.sequence.score(top).await;
        let handle = self.table.get_mut(sequence)?;
        let ids = handle.sequence.tokens(0, length).await;
        let found = scored.and_then(|scored| Ok((ids?, scored)));
        let (ids, scored) = found.map_err(|error| self.engine_error(error))?;
        let place = move || scored_tokens(client.text(), &kind, &ids, scored);
        let (tokens, _) = self.worker().run(0, place).await?;
        held.resize(prompt_tokens::bytes(&tokens))?;
        Ok(PromptTokens::paid(tokens, held))
    }

    /// Pays for log-probabilities of so many tokens while they are found. It is the client who asks for them, so it is told
    /// where they are too many.
    fn hold_scores(&self, length: usize, top: usize) -> Result<Held, Failure> {
        // They are collected in a list, which is there twice for a moment when it grows, and then put to their places.
        let alternatives = top * size_of::<(u32, f32)>();
        let token = 3 * size_of::<PromptLogprob>() + size_of::<PromptToken>() + alternatives;
        let bytes = length * token;
        self.memory.hold(bytes).map_err(|NoMemory { bytes_max, .. }| {
            if bytes <= bytes_max && bytes_max != self.tenant.limits.memory_bytes_max {
                return GuestError::Quota {
                    what: "too much of the memory is in use".to_owned(),
                    retry_after_ms: MEMORY_RETRY_MS,
                }
                .into();
            }
            Failure::invalid(format!(
                "log-probabilities of a prompt of {length} tokens with {top} alternatives each take {bytes} bytes; a call has {bytes_max}"
            ))
        })
    }
}

/// A prompt's tokens, put to the places in its text.
fn scored_tokens(
    text: &TextModel,
    kind: &RequestKind,
    ids: &[u32],
    scored: Vec<PromptLogprob>,
) -> Vec<PromptToken> {
    let offsets = match kind {
        RequestKind::Completion {
            prompt: Prompt::Text(prompt),
            ..
        } => text.offsets(prompt, ids),
        _ => {
            let mut offsets = TextOffsets::default();
            let push = |id: &u32| offsets.push(text.token_bytes(*id));
            ids.iter().map(push).collect()
        }
    };
    // There is nothing before the first.
    let scored = std::iter::once(None).chain(scored.into_iter().map(Some));
    let tokens = ids.iter().zip(offsets).zip(scored);
    let tokens = tokens.map(|((token, offset), scored)| PromptToken {
        token: *token,
        offset,
        scored,
    });
    tokens.collect()
}

/// The tokens of what a client asks. `kind` is held until they are made, whether anybody waits for them or not.
fn prompt_tokens(
    client: &Client,
    kind: &SharedKind,
    tokens_max: usize,
) -> Result<Vec<u32>, Failure> {
    let text = client.text();
    let tokens = match &**kind {
        RequestKind::Chat { messages, tools } => {
            text.chat_tokens(messages, tools, true, tokens_max)
        }
        RequestKind::Completion {
            prompt: Prompt::Text(prompt),
            ..
        } => text.encode(prompt, Specials::Parse, true, tokens_max),
        RequestKind::Completion {
            prompt: Prompt::Tokens(tokens),
            ..
        } if tokens.len() > tokens_max => return Err(does_not_fit(tokens_max)),
        RequestKind::Completion {
            prompt: Prompt::Tokens(tokens),
            ..
        } => Ok(tokens.clone()),
        RequestKind::Function { .. } => {
            return Err(Failure::invalid(
                "a function call has parameters, not a prompt",
            ));
        }
    };
    tokens.map_err(|error| not_tokens(&error, tokens_max))
}

/// The tokens of a component's chat.
pub(crate) fn chat_tokens(
    client: &Client,
    messages: Vec<Message>,
    tools: Vec<Tool>,
    open_turn: bool,
) -> Result<Vec<u32>, Failure> {
    let messages: Vec<ChatMessage> = messages.into_iter().map(chat_message).collect();
    let tools: Vec<Value> = tools
        .into_iter()
        .map(tool_value)
        .collect::<Result<_, _>>()?;
    let tokens_max = client.facts().context_length as usize;
    let tokens = (client.text()).chat_tokens(&messages, &tools, open_turn, tokens_max);
    tokens.map_err(|error| not_tokens(&error, tokens_max))
}

/// Why a prompt has no tokens: the model's context does not hold it, or the template refuses it.
fn not_tokens(error: &TextError, tokens_max: usize) -> Failure {
    match error.is_too_long() {
        true => does_not_fit(tokens_max),
        // A template can put as much as it likes of a chat into its words; the ends of its lines are its own.
        false => Failure::invalid(printable_lines(&error.to_string())),
    }
}

/// A prompt of more tokens than these.
fn does_not_fit(tokens_max: usize) -> Failure {
    let room = u32::try_from(tokens_max).unwrap_or(u32::MAX);
    GuestError::ContextFull(room).into()
}

/// Bytes of the host that it takes at most to make the tokens of what a client asks.
fn prompt_bytes_max(client: &Client, kind: &RequestKind) -> usize {
    let (text, tokens_max) = (client.text(), client.facts().context_length as usize);
    match kind {
        RequestKind::Chat { messages, tools } => {
            let mut chat = ChatSize::default();
            for message in messages {
                let calls = message.tool_calls.iter();
                let calls =
                    calls.map(|call| (call.id.len() + call.name.len(), &*call.arguments_json));
                chat.add_message(chat_message_bytes(message), calls);
            }
            for tool in tools {
                let size = JsonSize::of_value(tool);
                chat.add_tool(size.text(), size.parsed_max());
            }
            chat.bytes_max(text, tokens_max)
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

/// Sizes of a chat, from which follows what making its tokens takes.
#[derive(Default)]
pub(crate) struct ChatSize {
    /// Bytes of what the template may write.
    written: usize,
    /// Bytes of the values it is given, beside their texts.
    values: usize,
}

impl ChatSize {
    /// Of a component's chat.
    pub(crate) fn of(messages: &[Message], tools: &[Tool]) -> ChatSize {
        let mut chat = ChatSize::default();
        for message in messages {
            let calls = message.tool_calls.iter();
            let calls = calls.map(|call| (call.id.len() + call.name.len(), &*call.arguments_json));
            chat.add_message(message_bytes(message), calls);
        }
        for tool in tools {
            let parameters = JsonSize::of_text(&tool.parameters_json).parsed_max();
            chat.add_tool(tool_bytes(tool), CALL_BYTES + parameters);
        }
        chat
    }

    /// `texts` are the bytes of all it says; of a call there are the bytes of its names, and its arguments.
    fn add_message<'a>(&mut self, texts: usize, calls: impl Iterator<Item = (usize, &'a str)>) {
        self.written += FRAME_BYTES + texts;
        self.values += MESSAGE_BYTES;
        for (names, arguments_json) in calls {
            self.written += FRAME_BYTES + names + INDENTED * arguments_json.len();
            self.values += CALL_BYTES + JsonSize::of_text(arguments_json).parsed_max();
        }
    }

    fn add_tool(&mut self, text: usize, values: usize) {
        self.written += FRAME_BYTES + INDENTED * text;
        self.values += values;
    }

    /// Bytes of the host that it takes at most to make its tokens.
    pub(crate) fn bytes_max(&self, text: &TextModel, tokens_max: usize) -> usize {
        text.chat_bytes_max(self.written, tokens_max)
            .saturating_add(self.values)
    }
}

fn optional(text: Option<&String>) -> usize {
    text.map_or(0, String::len)
}

/// Bytes of all that a component's message says.
pub(crate) fn message_bytes(message: &Message) -> usize {
    let calls = message.tool_calls.iter();
    let calls = calls.map(|call| call.id.len() + call.name.len() + call.arguments_json.len());
    let names = optional(message.name.as_ref()) + optional(message.tool_call_id.as_ref());
    message.content.len() + names + calls.sum::<usize>()
}

/// Bytes of all that a client's message says.
fn chat_message_bytes(message: &ChatMessage) -> usize {
    let calls = message.tool_calls.iter();
    let calls = calls.map(|call| call.id.len() + call.name.len() + call.arguments_json.len());
    let names = optional(message.name.as_ref()) + optional(message.tool_call_id.as_ref());
    message.content.len() + names + calls.sum::<usize>()
}

/// Bytes of all that a component's tool says.
pub(crate) fn tool_bytes(tool: &Tool) -> usize {
    tool.name.len() + tool.description.len() + tool.parameters_json.len()
}

/// What a client's message takes of the host's memory while a component is given it.
pub(crate) fn given_message_bytes(message: &ChatMessage) -> usize {
    let calls = message.tool_calls.len() * size_of::<ToolCall>();
    size_of::<Message>() + calls + chat_message_bytes(message)
}

/// What a client's tool takes likewise.
pub(crate) fn given_tool_bytes(tool: &Value) -> usize {
    size_of::<Tool>() + JsonSize::of_value(tool).text()
}

/// The roles there are, in the template's words and in the contract's.
const ROLES: [(&str, Role); 4] = [
    ("system", Role::System),
    ("user", Role::User),
    ("assistant", Role::Assistant),
    ("tool", Role::Tool),
];

/// The role of this name.
pub(crate) fn role_named(name: &str) -> Option<Role> {
    let found = ROLES.iter().find(|(known, _)| *known == name);
    found.map(|(_, role)| *role)
}

fn role_name(role: Role) -> &'static str {
    let found = ROLES.iter().find(|(_, known)| *known == role);
    found.map_or("user", |(name, _)| name)
}

/// A client's message for a component. Roles were checked when the call began.
pub(crate) fn given_message(message: &ChatMessage) -> Message {
    let call = |call: &text::ToolCall| ToolCall {
        id: call.id.clone(),
        name: call.name.clone(),
        arguments_json: call.arguments_json.clone(),
    };
    Message {
        role: role_named(&message.role).unwrap_or(Role::User),
        content: message.content.clone(),
        name: message.name.clone(),
        tool_call_id: message.tool_call_id.clone(),
        tool_calls: message.tool_calls.iter().map(call).collect(),
    }
}

/// A client's tool for a component.
pub(crate) fn given_tool(tool: &Value) -> Tool {
    let function = &tool["function"];
    let text = |key: &str| function[key].as_str().unwrap_or_default().to_owned();
    Tool {
        name: text("name"),
        description: text("description"),
        parameters_json: function["parameters"].to_string(),
        strict: function["strict"].as_bool().unwrap_or(false),
    }
}

/// A component's message for the template.
fn chat_message(message: Message) -> ChatMessage {
    let call = |call: ToolCall| text::ToolCall {
        id: call.id,
        name: call.name,
        arguments_json: call.arguments_json,
    };
    ChatMessage {
        role: role_name(message.role).to_owned(),
        content: message.content,
        name: message.name,
        tool_call_id: message.tool_call_id,
        tool_calls: message.tool_calls.into_iter().map(call).collect(),
    }
}

/// A component's tool for the template: the way OpenAI writes them.
fn tool_value(tool: Tool) -> Result<Value, Failure> {
    let parameters: Value = serde_json::from_str(&tool.parameters_json).map_err(|error| {
        let name = printable(&tool.name);
        Failure::invalid(format!(
            "the parameters of the tool {name:?} are not valid JSON: {error}"
        ))
    })?;
    Ok(json!({
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": parameters,
            "strict": tool.strict,
        }
    }))
}
