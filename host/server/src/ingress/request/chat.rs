//! The fields of a chat.

use super::super::json::{Count, List, Object, Word};
use super::tools::{self, TOOLS_MAX};
use crate::error::{ApiError, ApiResult};
use realm_engine::text::{ChatMessage, ToolCall};
use realm_engine::{LOGPROBS_MAX, Policy};
use realm_sandbox::RequestKind;
use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use std::fmt;
use std::mem::size_of;

/// Messages of a chat.
const MESSAGES_MAX: usize = 16_384;

/// A chat as clients write it.
#[derive(Deserialize)]
pub(super) struct ChatFields<'a> {
    messages: List<Object<Message>, MESSAGES_MAX>,
    #[serde(borrow, default)]
    tools: Option<List<&'a RawValue, TOOLS_MAX>>,
    #[serde(borrow, default)]
    tool_choice: Option<&'a RawValue>,
    #[serde(default)]
    logprobs: Option<bool>,
    #[serde(default)]
    top_logprobs: Option<Count>,
}

#[derive(Deserialize)]
struct Message {
    role: Word<Role>,
    #[serde(default)]
    content: Option<Content>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    tool_call_id: Option<String>,
    #[serde(default)]
    tool_calls: Option<List<Object<Call>, TOOLS_MAX>>,
}

/// Who speaks. `developer` is the later word for `system`, and this is where it becomes that.
#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Role {
    #[serde(alias = "developer")]
    System,
    User,
    Assistant,
    Tool,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }
}

/// A message's text: one string, or parts that are put together.
struct Content(String);

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Content, D::Error> {
        struct ContentVisitor;
        impl<'de> Visitor<'de> for ContentVisitor {
            type Value = Content;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a string or a list of text parts")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Content, E> {
                Ok(Content(text.to_owned()))
            }
            fn visit_string<E: de::Error>(self, text: String) -> Result<Content, E> {
                Ok(Content(text))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Content, A::Error> {
                let mut content = String::new();
                while let Some(Object(part)) = parts.next_element::<Object<Part>>()? {
                    let text = match part.r#type {
                        Word(PartType::Text) => part.text,
                        Word(PartType::Refusal) => part.refusal,
                    };
                    content.push_str(&text.unwrap_or_default());
                }
                Ok(Content(content))
            }
        }
        deserializer.deserialize_any(ContentVisitor)
    }
}

#[derive(Deserialize)]
struct Part {
    r#type: Word<PartType>,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    refusal: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum PartType {
    Text,
    /// What an assistant said in place of an answer.
    Refusal,
}

/// A tool's call by the assistant.
#[derive(Deserialize)]
struct Call {
    id: String,
    function: Object<CalledFunction>,
}

#[derive(Deserialize)]
struct CalledFunction {
    name: String,
    arguments: String,
}

/// The request that a chat is.
///
/// # Errors
/// The client's 400.
pub(super) fn read(fields: ChatFields<'_>, policy: &mut Policy) -> ApiResult<RequestKind> {
    policy.logprobs = logprobs(&fields)?;
    let mut room = tools::Room::default();
    let tools = fields.tools.as_ref().map_or(&[][..], |tools| &tools.0);
    let tools = tools::read(tools, fields.tool_choice, &mut room)?;
    if fields.messages.0.is_empty() {
        return Err(ApiError::field("messages", "must not be empty"));
    }
    let messages = fields.messages.0.into_iter().enumerate();
    let messages = messages.map(|(index, Object(message))| message_of(index, message, &mut room));
    Ok(RequestKind::Chat {
        messages: messages.collect::<ApiResult<_>>()?,
        tools,
    })
}

fn message_of(index: usize, message: Message, room: &mut tools::Room) -> ApiResult<ChatMessage> {
    let Word(role) = message.role;
    let content = match message.content {
        Some(Content(content)) => content,
        // An assistant that called tools said nothing else.
        None if role == Role::Assistant => String::new(),
        None => {
            let what = format!("is required for the role {}", role.name());
            return Err(ApiError::field(&format!("messages[{index}].content"), what));
        }
    };
    let calls = message.tool_calls.map(|calls| calls.0).unwrap_or_default();
    let calls = calls.into_iter().enumerate();
    let calls = calls.map(|(number, Object(call))| {
        let Object(CalledFunction { name, arguments }) = call.function;
        let path = || format!("messages[{index}].tool_calls[{number}].function.arguments");
        room.take(&arguments, path)?;
        Ok(ToolCall {
            id: call.id,
            name,
            arguments_json: arguments,
        })
    });
    Ok(ChatMessage {
        role: role.name().to_owned(),
        content,
        name: message.name,
        tool_call_id: message.tool_call_id,
        tool_calls: calls.collect::<ApiResult<_>>()?,
    })
}

fn logprobs(fields: &ChatFields<'_>) -> ApiResult<Option<u32>> {
    let top = fields.top_logprobs.map(|top| top.0);
    if top.is_some_and(|top| top > LOGPROBS_MAX) {
        let what = format!("must be from 0 to {LOGPROBS_MAX}");
        return Err(ApiError::field("top_logprobs", what));
    }
    match (fields.logprobs.unwrap_or(false), top) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => {
            let what = "can only be used when logprobs is true";
            Err(ApiError::field("top_logprobs", what))
        }
    }
}

/// Bytes of everything in messages that becomes part of the prompt. Space around a text does not count: templates drop it.
pub(super) fn message_bytes(messages: &[ChatMessage]) -> usize {
    let call = |call: &ToolCall| call.id.len() + call.name.len() + call.arguments_json.len();
    let message = |message: &ChatMessage| {
        let ids = [&message.name, &message.tool_call_id];
        let ids = ids.into_iter().flatten().map(String::len).sum::<usize>();
        let calls = message.tool_calls.iter().map(call).sum::<usize>();
        message.content.trim().len() + ids + calls
    };
    messages.iter().map(message).sum()
}

/// Bytes of tools, which become part of it as JSON.
pub(super) fn tool_bytes(tools: &[Value]) -> usize {
    tools.iter().map(|tool| tool.to_string().len()).sum()
}

/// Bytes a chat holds on the heap, and what is made of its JSON for the template; of JSON at most.
pub(super) fn heap_bytes(messages: &[ChatMessage], tools: &[Value]) -> usize {
    let optional = |text: &Option<String>| text.as_ref().map_or(0, String::capacity);
    let call = |call: &ToolCall| {
        size_of::<ToolCall>()
            + call.id.capacity()
            + call.name.capacity()
            + call.arguments_json.capacity()
            + tools::value_bytes(&call.arguments_json)
    };
    let message = |message: &ChatMessage| {
        size_of::<ChatMessage>()
            + message.role.capacity()
            + message.content.capacity()
            + optional(&message.name)
            + optional(&message.tool_call_id)
            + message.tool_calls.iter().map(call).sum::<usize>()
    };
    // Written out and not kept, to count only.
    let tools = tools
        .iter()
        .map(|tool| tools::value_bytes(&tool.to_string()));
    messages.iter().map(message).sum::<usize>() + tools.sum::<usize>()
}
