//! A chat as its client or a component says it: nothing of it is lost on the way to the template.

use serde_json::{Map, Value};

/// All that a chat template is given.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chat {
    /// Oldest first.
    pub messages: Vec<ChatMessage>,
    /// As OpenAI writes them: `{"type": "function", "function": {...}}`.
    pub tools: Vec<Value>,
    /// Where the prompt ends.
    pub end: PromptEnd,
    /// What else the template is to know by name: its own switches, `documents`.
    pub variables: Map<String, Value>,
}

impl Chat {
    /// These messages and nothing else, which the model is to answer.
    pub fn new(messages: impl Into<Vec<ChatMessage>>) -> Chat {
        Chat {
            messages: messages.into(),
            ..Chat::default()
        }
    }
}

/// Where a chat's prompt ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PromptEnd {
    /// With the header of the assistant's turn.
    #[default]
    OpenTurn,
    /// With what the template writes after the last message.
    ClosedTurn,
    /// With the text of the last message, which the model goes on with.
    LastMessage,
}

/// Names that a template's variables cannot have, since it is given something else by them.
pub const RESERVED_VARIABLES: [&str; 12] = [
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "conversation",
    "tokenize",
    "bos_token",
    "eos_token",
    "raise_exception",
    "strftime_now",
];

/// One message: a JSON object with its fields in the order in which they were said, because templates print some as they are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChatMessage(Map<String, Value>);

impl ChatMessage {
    /// A message of a role that says this: a text, parts, or null.
    pub fn new(role: &str, content: impl Into<Value>) -> ChatMessage {
        let message = ChatMessage::default();
        message.with("role", role).with("content", content)
    }

    /// The message with a field more.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> ChatMessage {
        self.0.insert(name.to_owned(), value.into());
        self
    }

    /// All that it says, by name.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.0
    }

    /// Who speaks.
    pub fn role(&self) -> &str {
        self.text("role").unwrap_or_default()
    }

    /// A field that is a text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_str()
    }

    /// The calls of tools that it made, `{"id", "type", "function": {"name", "arguments"}}`.
    pub fn tool_calls(&self) -> &[Value] {
        let calls = self.0.get("tool_calls").and_then(Value::as_array);
        calls.map_or(&[], Vec::as_slice)
    }

    /// The texts of its content, one after the other.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        let content = self.0.get("content");
        let parts = content.and_then(Value::as_array).into_iter().flatten();
        let text = content.and_then(Value::as_str);
        text.into_iter().chain(parts.filter_map(part_text))
    }
}

impl From<Map<String, Value>> for ChatMessage {
    fn from(fields: Map<String, Value>) -> ChatMessage {
        ChatMessage(fields)
    }
}

impl From<ChatMessage> for Map<String, Value> {
    fn from(message: ChatMessage) -> Map<String, Value> {
        message.0
    }
}

/// What a part says, where that is text; a refusal is what an assistant says in place of an answer.
pub(crate) fn part_text(part: &Value) -> Option<&str> {
    match part["type"].as_str()? {
        "text" => Some(part["text"].as_str().unwrap_or_default()),
        "refusal" => Some(part["refusal"].as_str().unwrap_or_default()),
        _ => None,
    }
}
