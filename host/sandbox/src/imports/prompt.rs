//! Prompts: a client's or a component's chat on its way to tokens, what that takes of memory, and messages and tools in the
//! contract's words and in the template's.

use crate::GuestError;
use crate::bindings::realm::llm::types::{
    Content, ContentPart, Message, PromptEnd, Tool, ToolCall,
};
use crate::imports::Failure;
use crate::imports::json_size::JsonSize;
use crate::imports::sequence::SequenceHandle;
use crate::log::{printable, printable_lines};
use crate::memory::{Held, NoMemory};
use crate::prompt_tokens::{self, PromptToken, PromptTokens};
use crate::request::{Prompt, RequestKind, SharedKind};
use crate::state::State;
use realm_engine::text::{
    self, Chat, ChatMessage, RESERVED_VARIABLES, Specials, TextError, TextModel, TextOffsets,
};
use realm_engine::{Client, PromptLogprob};
use serde::Serializer;
use serde_json::{Map, Value, json};
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
        RequestKind::Chat(chat) => text.chat_tokens(chat, tokens_max),
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
pub(crate) fn chat_tokens(client: &Client, chat: GuestChat) -> Result<Vec<u32>, Failure> {
    let tokens_max = client.facts().context_length as usize;
    let tokens = client.text().chat_tokens(&chat.read()?, tokens_max);
    tokens.map_err(|error| not_tokens(&error, tokens_max))
}

/// A component's chat, in the contract's words.
pub(crate) struct GuestChat {
    pub(crate) messages: Vec<Message>,
    pub(crate) tools: Vec<Tool>,
    pub(crate) end: PromptEnd,
    pub(crate) variables_json: String,
}

impl GuestChat {
    /// Bytes of all that it says.
    pub(crate) fn bytes(&self) -> usize {
        let messages = self.messages.iter().map(message_bytes);
        let tools = self.tools.iter().map(tool_bytes);
        messages.chain(tools).sum::<usize>() + self.variables_json.len()
    }

    /// In the template's words.
    fn read(self) -> Result<Chat, Failure> {
        let messages = self.messages.into_iter().map(chat_message);
        let tools = self.tools.into_iter().map(tool_value);
        let variables = json_object(&self.variables_json, "the variables")?;
        let reserved = |name: &&String| {
            name.as_str() != "documents" && RESERVED_VARIABLES.contains(&name.as_str())
        };
        if let Some(name) = variables.keys().find(reserved) {
            return Err(Failure::invalid(format!(
                "the variables cannot have the name {name:?}, by which the template is given something else"
            )));
        }
        Ok(Chat {
            messages: messages.collect::<Result<_, _>>()?,
            tools: tools.collect::<Result<_, _>>()?,
            end: match self.end {
                PromptEnd::OpenTurn => text::PromptEnd::OpenTurn,
                PromptEnd::ClosedTurn => text::PromptEnd::ClosedTurn,
                PromptEnd::LastMessage => text::PromptEnd::LastMessage,
            },
            variables,
        })
    }
}

/// Where a client's prompt ends, for a component.
pub(crate) fn given_end(end: text::PromptEnd) -> PromptEnd {
    match end {
        text::PromptEnd::OpenTurn => PromptEnd::OpenTurn,
        text::PromptEnd::ClosedTurn => PromptEnd::ClosedTurn,
        text::PromptEnd::LastMessage => PromptEnd::LastMessage,
    }
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
        RequestKind::Chat(chat) => ChatSize::said(chat).bytes_max(text, tokens_max),
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
    pub(crate) fn of(chat: &GuestChat) -> ChatSize {
        let mut size = ChatSize::default();
        for message in &chat.messages {
            size.add_message(message_text_bytes(message));
            if let Content::Parts(parts) = &message.content {
                parts.iter().for_each(|part| size.add_part(part));
            }
            size.add_json(JsonSize::of_text(&message.more_json));
            for call in &message.tool_calls {
                size.add_message(call.id.len() + call.name.len());
                size.add_json(JsonSize::of_text(&call.arguments_json));
                size.add_json(JsonSize::of_text(&call.more_json));
                size.values += CALL_BYTES;
            }
        }
        for tool in &chat.tools {
            let parameters = JsonSize::of_text(&tool.parameters_json).parsed_max();
            size.add_tool(tool_bytes(tool), CALL_BYTES + parameters);
        }
        size.add_json(JsonSize::of_text(&chat.variables_json));
        size
    }

    /// Of a client's chat.
    fn said(chat: &Chat) -> ChatSize {
        let mut size = ChatSize::default();
        for message in &chat.messages {
            size.add_message(0);
            for value in message.fields().values() {
                match value {
                    Value::String(text) => size.written += text.len(),
                    other => size.add_json(JsonSize::of_value(other)),
                }
            }
            // Their text is there already; as a map it is there once more.
            let arguments = message
                .tool_calls()
                .iter()
                .map(|call| &call["function"]["arguments"]);
            for arguments in arguments.filter_map(Value::as_str) {
                size.values += CALL_BYTES + JsonSize::of_text(arguments).parsed_max();
            }
        }
        for tool in &chat.tools {
            let tool = JsonSize::of_value(tool);
            size.add_tool(tool.text(), tool.parsed_max());
        }
        for value in chat.variables.values() {
            size.add_json(JsonSize::of_value(value));
        }
        size
    }

    /// `texts` are the bytes of what it says as text.
    fn add_message(&mut self, texts: usize) {
        self.written += FRAME_BYTES + texts;
        self.values += MESSAGE_BYTES;
    }

    fn add_part(&mut self, part: &ContentPart) {
        match part {
            ContentPart::Text(text) => self.written += text.len(),
            ContentPart::Json(json) => self.add_json(JsonSize::of_text(json)),
        }
        self.values += MESSAGE_BYTES;
    }

    fn add_json(&mut self, json: JsonSize) {
        self.written += INDENTED * json.text();
        self.values += json.parsed_max();
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

/// Bytes of what a component's message says as text.
fn message_text_bytes(message: &Message) -> usize {
    let names = [&message.name, &message.tool_call_id].into_iter().flatten();
    let text = match &message.content {
        Content::Text(text) => text.len(),
        Content::Absent | Content::Parts(_) => 0,
    };
    message.role.len() + text + names.map(String::len).sum::<usize>()
}

/// Bytes of all that a component's message says.
fn message_bytes(message: &Message) -> usize {
    let calls = message.tool_calls.iter().map(|call| {
        call.id.len() + call.name.len() + call.arguments_json.len() + call.more_json.len()
    });
    let parts = match &message.content {
        Content::Parts(parts) => parts.as_slice(),
        Content::Absent | Content::Text(_) => &[],
    };
    let parts = parts.iter().map(|part| match part {
        ContentPart::Text(text) | ContentPart::Json(text) => text.len(),
    });
    let texts = message_text_bytes(message) + message.more_json.len();
    texts + calls.sum::<usize>() + parts.sum::<usize>()
}

/// Bytes of all that a component's tool says.
fn tool_bytes(tool: &Tool) -> usize {
    tool.name.len() + tool.description.len() + tool.parameters_json.len()
}

/// What a client's message takes of the host's memory while a component is given it.
pub(crate) fn given_message_bytes(message: &ChatMessage) -> usize {
    let calls = message.tool_calls().len() * size_of::<ToolCall>();
    let parts = message.fields().get("content").and_then(Value::as_array);
    let parts = parts.map_or(0, |parts| size_of_val(parts.as_slice()));
    // Every text in it is no longer than its JSON; what it has no name for is JSON.
    size_of::<Message>() + calls + parts + fields_bytes(message.fields())
}

/// Bytes of an object as JSON, at most.
fn fields_bytes(fields: &Map<String, Value>) -> usize {
    let field = |(name, value): (&String, &Value)| {
        // A name's characters are six bytes at most.
        6 * name.len() + FIELD_BYTES + JsonSize::of_value(value).text()
    };
    2 + fields.iter().map(field).sum::<usize>()
}

/// Quotes and commas around a field, and the braces of an object of them.
const FIELD_BYTES: usize = 8;

/// What a client's tool takes likewise.
pub(crate) fn given_tool_bytes(tool: &Value) -> usize {
    size_of::<Tool>() + JsonSize::of_value(tool).text()
}

/// A client's message for a component.
pub(crate) fn given_message(message: &ChatMessage) -> Message {
    const NAMED: [&str; 5] = ["role", "content", "name", "tool_call_id", "tool_calls"];
    let content = match message.fields().get("content") {
        None | Some(Value::Null) => Content::Absent,
        Some(Value::String(text)) => Content::Text(text.clone()),
        Some(Value::Array(parts)) => Content::Parts(parts.iter().map(given_part).collect()),
        // A client's content is none of these; it is a part as it is.
        Some(other) => Content::Parts(vec![ContentPart::Json(other.to_string())]),
    };
    Message {
        role: message.role().to_owned(),
        content,
        name: message.text("name").map(str::to_owned),
        tool_call_id: message.text("tool_call_id").map(str::to_owned),
        tool_calls: message.tool_calls().iter().map(given_call).collect(),
        more_json: more_json(message.fields(), &NAMED),
    }
}

fn given_part(part: &Value) -> ContentPart {
    match (part.as_object().map(Map::len), &part["type"], &part["text"]) {
        (Some(2), Value::String(kind), Value::String(text)) if kind == "text" => {
            ContentPart::Text(text.clone())
        }
        _ => ContentPart::Json(part.to_string()),
    }
}

fn given_call(call: &Value) -> ToolCall {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut more = call.as_object().cloned().unwrap_or_default();
    let mut function = match more.get_mut("function") {
        Some(Value::Object(function)) => std::mem::take(function),
        _ => Map::new(),
    };
    let arguments = function.shift_remove("arguments").unwrap_or_default();
    let name = function.shift_remove("name").unwrap_or_default();
    match function.is_empty() {
        true => more.shift_remove("function"),
        false => more.insert("function".to_owned(), Value::Object(function)),
    };
    ToolCall {
        id: text(&call["id"]),
        name: text(&name),
        arguments_json: match arguments {
            Value::String(arguments) => arguments,
            other => other.to_string(),
        },
        more_json: more_json(&more, &["id"]),
    }
}

/// An object's fields but for those that have a name of their own in the contract, as JSON.
fn more_json(fields: &Map<String, Value>, named: &[&str]) -> String {
    let others = fields
        .iter()
        .filter(|(name, _)| !named.contains(&name.as_str()));
    let mut json = Vec::new();
    // A vector takes all that is written, and names are text.
    let _ = serde_json::Serializer::new(&mut json).collect_map(others);
    String::from_utf8(json).unwrap_or_default()
}

/// What the template is to know of a client besides, for a component.
pub(crate) fn given_variables(chat: &Chat) -> String {
    more_json(&chat.variables, &[])
}

/// What that takes of the host's memory.
pub(crate) fn given_variables_bytes(chat: &Chat) -> usize {
    fields_bytes(&chat.variables)
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

/// A component's message for the template: the way OpenAI writes them.
fn chat_message(message: Message) -> Result<ChatMessage, Failure> {
    let content = match message.content {
        Content::Absent => Value::Null,
        Content::Text(text) => Value::String(text),
        Content::Parts(parts) => Value::Array(
            parts
                .into_iter()
                .map(part_value)
                .collect::<Result<_, _>>()?,
        ),
    };
    let mut fields: Map<String, Value> = Map::new();
    fields.insert("role".to_owned(), Value::String(message.role));
    fields.insert("content".to_owned(), content);
    let named = [
        ("name", message.name),
        ("tool_call_id", message.tool_call_id),
    ];
    for (name, value) in named {
        if let Some(value) = value {
            fields.insert(name.to_owned(), Value::String(value));
        }
    }
    let more = json_object(&message.more_json, "the further fields of a message")?;
    add_fields(&mut fields, more, "a message")?;
    if !message.tool_calls.is_empty() {
        let calls = message.tool_calls.into_iter().map(call_value);
        let calls = Value::Array(calls.collect::<Result<_, _>>()?);
        let twice = fields.insert("tool_calls".to_owned(), calls).is_some();
        if twice {
            return Err(twice_named("a message", "tool_calls"));
        }
    }
    Ok(ChatMessage::from(fields))
}

fn part_value(part: ContentPart) -> Result<Value, Failure> {
    match part {
        ContentPart::Text(text) => Ok(json!({"type": "text", "text": text})),
        ContentPart::Json(json) => json_object(&json, "a part of a message").map(Value::Object),
    }
}

fn call_value(call: ToolCall) -> Result<Value, Failure> {
    let mut more = json_object(&call.more_json, "the further fields of a call")?;
    let mut function = Map::new();
    function.insert("name".to_owned(), Value::String(call.name));
    function.insert("arguments".to_owned(), Value::String(call.arguments_json));
    if let Some(Value::Object(further)) = more.shift_remove("function") {
        add_fields(&mut function, further, "a call")?;
    }
    let mut fields = Map::new();
    fields.insert("id".to_owned(), Value::String(call.id));
    fields.insert(
        "type".to_owned(),
        more.shift_remove("type")
            .unwrap_or_else(|| "function".into()),
    );
    fields.insert("function".to_owned(), Value::Object(function));
    add_fields(&mut fields, more, "a call")?;
    Ok(Value::Object(fields))
}

/// Adds further fields, none of which may be there already.
fn add_fields(
    fields: &mut Map<String, Value>,
    more: Map<String, Value>,
    what: &str,
) -> Result<(), Failure> {
    for (name, value) in more {
        if fields.contains_key(&name) {
            return Err(twice_named(what, &name));
        }
        fields.insert(name, value);
    }
    Ok(())
}

fn twice_named(what: &str, name: &str) -> Failure {
    let name = printable(name);
    Failure::invalid(format!(
        "the further fields of {what} cannot have {name:?}, which has its own place"
    ))
}

/// A component's JSON, which is to be an object.
fn json_object(json: &str, what: &str) -> Result<Map<String, Value>, Failure> {
    serde_json::from_str(json)
        .map_err(|error| Failure::invalid(format!("{what} must be a JSON object: {error}")))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn messages() -> Vec<ChatMessage> {
        let said = json!([
            {"role": "developer", "content": "be brief", "name": "Ada"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "more": "\n"}]},
            {"role": "assistant", "content": null, "reasoning_content": "\u{1}hm", "tool_calls": [
                {"id": "1", "type": "function", "index": 0, "function": {"name": "f", "arguments": "{\"a\": 1}", "strict": true}},
                {"id": "2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
            ]},
            {"role": "tool", "content": "", "tool_call_id": "1"},
        ]);
        let said = said.as_array().cloned().unwrap_or_default();
        let fields = said
            .into_iter()
            .filter_map(|message| message.as_object().cloned());
        fields.map(ChatMessage::from).collect()
    }

    #[test]
    fn what_a_component_hands_on_is_what_the_client_said() {
        for message in messages() {
            let back = chat_message(given_message(&message)).ok();
            assert_eq!(back.as_ref(), Some(&message));
        }
    }

    #[test]
    fn all_that_a_component_is_given_of_a_message_is_paid_for() {
        for message in messages() {
            let given = given_message(&message);
            let calls = size_of_val(given.tool_calls.as_slice());
            let parts = match &given.content {
                Content::Parts(parts) => size_of_val(parts.as_slice()),
                Content::Absent | Content::Text(_) => 0,
            };
            let held = size_of::<Message>() + calls + parts + message_bytes(&given);
            let paid = given_message_bytes(&message);
            assert!(paid >= held, "{message:?}: {paid} < {held}");
        }
    }

    #[test]
    fn a_component_cannot_say_a_field_twice_or_in_another_way_than_json() {
        let said = given_message(&ChatMessage::new("user", "a"));
        for more_json in [r#"{"role": "system"}"#, r#"{"content": ""}"#, "[]", "{", ""] {
            let more_json = more_json.to_owned();
            let message = Message {
                more_json,
                ..said.clone()
            };
            assert!(chat_message(message).is_err());
        }
    }
}
