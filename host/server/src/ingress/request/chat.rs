//! The fields of a chat.

use super::super::json::{self, Count, List, Object, Word};
use super::tools::{self, Room, TOOLS_MAX};
use crate::error::{ApiError, ApiResult, shown};
use realm_engine::text::{Chat, ChatMessage, PromptEnd, RESERVED_VARIABLES};
use realm_engine::{LOGPROBS_MAX, Policy};
use realm_sandbox::RequestKind;
use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::fmt;
use std::mem::size_of;

/// Messages of a chat.
const MESSAGES_MAX: usize = 16_384;
/// Documents of a chat.
const DOCUMENTS_MAX: usize = 1_024;

/// A chat as clients write it.
#[derive(Deserialize)]
pub(super) struct ChatFields<'a> {
    #[serde(borrow)]
    messages: List<&'a RawValue, MESSAGES_MAX>,
    #[serde(borrow, default)]
    tools: Option<List<&'a RawValue, TOOLS_MAX>>,
    #[serde(borrow, default)]
    tool_choice: Option<&'a RawValue>,
    #[serde(borrow, default)]
    chat_template_kwargs: Option<&'a RawValue>,
    #[serde(borrow, default)]
    documents: Option<List<&'a RawValue, DOCUMENTS_MAX>>,
    #[serde(default)]
    add_generation_prompt: Option<bool>,
    #[serde(default)]
    continue_final_message: Option<bool>,
    #[serde(default)]
    logprobs: Option<bool>,
    #[serde(default)]
    top_logprobs: Option<Count>,
}

/// What a message must be. It is given to the model's chat template as it was written, with what is not here as well.
#[derive(Deserialize)]
struct Message {
    /// Which roles there are is the template's matter.
    role: String,
    #[serde(default)]
    content: Option<Content>,
    #[serde(default, rename = "name")]
    _name: Option<Text>,
    #[serde(default, rename = "tool_call_id")]
    _tool_call_id: Option<Text>,
    #[serde(default, rename = "tool_calls")]
    _tool_calls: Option<List<Object<Call>, TOOLS_MAX>>,
    #[serde(default, rename = "function_call")]
    _function_call: Option<Object<CalledFunction>>,
}

/// A text that is looked at and not kept.
struct Text;

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Text, D::Error> {
        struct TextVisitor;
        impl Visitor<'_> for TextVisitor {
            type Value = Text;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a string")
            }
            fn visit_str<E: de::Error>(self, _: &str) -> Result<Text, E> {
                Ok(Text)
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

/// A message's content: one string, or a list of parts.
struct Content;

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Content, D::Error> {
        struct ContentVisitor;
        impl<'de> Visitor<'de> for ContentVisitor {
            type Value = Content;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a string or a list of text parts")
            }
            fn visit_str<E: de::Error>(self, _: &str) -> Result<Content, E> {
                Ok(Content)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Content, A::Error> {
                while parts.next_element::<Object<Part>>()?.is_some() {}
                Ok(Content)
            }
        }
        deserializer.deserialize_any(ContentVisitor)
    }
}

/// A part of one. No model here takes images or sound.
#[derive(Deserialize)]
struct Part {
    #[serde(rename = "type")]
    _type: Word<PartType>,
    #[serde(default, rename = "text")]
    _text: Option<Text>,
    #[serde(default, rename = "refusal")]
    _refusal: Option<Text>,
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
    #[serde(rename = "id")]
    _id: Text,
    #[serde(rename = "function")]
    _function: Object<CalledFunction>,
}

#[derive(Deserialize)]
struct CalledFunction {
    #[serde(rename = "name")]
    _name: Text,
    #[serde(rename = "arguments")]
    _arguments: Text,
}

/// The request that a chat is.
///
/// # Errors
/// The client's 400.
pub(super) fn read(fields: ChatFields<'_>, policy: &mut Policy) -> ApiResult<RequestKind> {
    policy.logprobs = logprobs(&fields)?;
    let mut room = Room::of_values();
    let tools = fields.tools.as_ref().map_or(&[][..], |tools| &tools.0);
    let tools = tools::read(tools, fields.tool_choice, &mut room)?;
    if fields.messages.0.is_empty() {
        return Err(ApiError::field("messages", "must not be empty"));
    }
    let mut message_room = Room::of_messages(MESSAGES_MAX);
    let messages = fields.messages.0.iter().enumerate();
    let messages = messages.map(|(index, message)| {
        let path = format!("messages[{index}]");
        message_room.take(message.get(), || path.clone())?;
        let message = message_of(message.get()).map_err(|error| error.below(&path))?;
        take_arguments(&message, &path, &mut room)?;
        Ok(message)
    });
    Ok(RequestKind::Chat(Chat {
        messages: messages.collect::<ApiResult<_>>()?,
        tools,
        end: end(&fields)?,
        variables: variables(&fields, &mut room)?,
    }))
}

/// What is null is not there, but for a content: a message that says nothing is not one that says `""`, nor one without.
fn message_of(text: &str) -> ApiResult<ChatMessage> {
    let message: Message = json::parse(text.as_bytes(), "the message")?;
    // An assistant that called tools said nothing else.
    if message.content.is_none() && message.role != "assistant" {
        let what = format!("is required for the role {}", shown(&message.role));
        return Err(ApiError::field("content", what));
    }
    let mut fields: Map<String, Value> = json::parse(text.as_bytes(), "the message")?;
    fields.retain(|name, value| name == "content" || !value.is_null());
    Ok(ChatMessage::from(fields))
}

/// Counts the values that arguments of calls become for some templates.
fn take_arguments(message: &ChatMessage, path: &str, room: &mut Room) -> ApiResult<()> {
    for (number, call) in message.tool_calls().iter().enumerate() {
        let path = || format!("{path}.tool_calls[{number}].function.arguments");
        room.take(arguments_of(call), path)?;
    }
    Ok(())
}

fn arguments_of(call: &Value) -> &str {
    call["function"]["arguments"].as_str().unwrap_or_default()
}

/// Where the prompt ends.
fn end(fields: &ChatFields<'_>) -> ApiResult<PromptEnd> {
    match (fields.continue_final_message, fields.add_generation_prompt) {
        (Some(true), Some(true)) => {
            let what = "cannot be true when add_generation_prompt is: a message that is gone on with opens no new turn";
            Err(ApiError::field("continue_final_message", what))
        }
        (Some(true), _) => Ok(PromptEnd::LastMessage),
        (_, Some(false)) => Ok(PromptEnd::ClosedTurn),
        (_, _) => Ok(PromptEnd::OpenTurn),
    }
}

/// What the template is to know by name: its own switches, and documents.
fn variables(fields: &ChatFields<'_>, room: &mut Room) -> ApiResult<Map<String, Value>> {
    const KWARGS: &str = "chat_template_kwargs";
    let mut variables = match fields.chat_template_kwargs {
        None => Map::new(),
        Some(kwargs) => {
            room.take(kwargs.get(), || KWARGS.to_owned())?;
            let kwargs = json::parse::<Map<String, Value>>(kwargs.get().as_bytes(), "it");
            kwargs.map_err(|error| error.below(KWARGS))?
        }
    };
    let reserved = |name: &&String| RESERVED_VARIABLES.contains(&name.as_str());
    if let Some(name) = variables.keys().find(reserved) {
        let what = "is a name by which the template is given something else";
        return Err(ApiError::field(&format!("{KWARGS}.{name}"), what));
    }
    let documents = fields.documents.as_ref().map_or(&[][..], |list| &list.0);
    if !documents.is_empty() {
        let documents = documents.iter().enumerate().map(|(index, document)| {
            let path = format!("documents[{index}]");
            room.take(document.get(), || path.clone())?;
            let document = json::parse::<Map<String, Value>>(document.get().as_bytes(), "it");
            document
                .map(Value::Object)
                .map_err(|error| error.below(&path))
        });
        let documents = documents.collect::<ApiResult<Vec<Value>>>()?;
        variables.insert("documents".to_owned(), Value::Array(documents));
    }
    Ok(variables)
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
    let length = |value: &Value| value.as_str().map_or(0, str::len);
    let call = |call: &Value| {
        length(&call["id"]) + length(&call["function"]["name"]) + arguments_of(call).len()
    };
    let message = |message: &ChatMessage| {
        let ids = ["name", "tool_call_id"].into_iter();
        let ids = ids.filter_map(|name| message.text(name)).map(str::len);
        let calls = message.tool_calls().iter().map(call);
        message
            .texts()
            .map(|text| text.trim().len())
            .chain(ids)
            .chain(calls)
            .sum::<usize>()
    };
    messages.iter().map(message).sum()
}

/// Bytes of tools, which become part of it as JSON.
pub(super) fn tool_bytes(tools: &[Value]) -> usize {
    tools.iter().map(|tool| tool.to_string().len()).sum()
}

/// Bytes a chat holds on the heap, and what is made of its JSON for the template; of JSON at most.
pub(super) fn heap_bytes(chat: &Chat) -> usize {
    let arguments = |call: &Value| tools::json_bytes(arguments_of(call));
    let message = |message: &ChatMessage| {
        let calls = message.tool_calls().iter().map(arguments);
        size_of::<ChatMessage>() + fields_bytes(message.fields()) + calls.sum::<usize>()
    };
    let messages = chat.messages.iter().map(message);
    let tools = chat.tools.iter().map(tools::value_bytes);
    messages.chain(tools).sum::<usize>() + fields_bytes(&chat.variables)
}

/// A text is there once, and what else there is as the template's value, too.
fn fields_bytes(fields: &Map<String, Value>) -> usize {
    let value = |value: &Value| match value {
        Value::String(text) => tools::FURTHER_BYTES + text.capacity(),
        other => tools::value_bytes(other),
    };
    let names = fields.keys().map(String::capacity).sum::<usize>();
    names + fields.values().map(value).sum::<usize>()
}
