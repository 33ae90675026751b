//! The form in which a template wants messages, found out by rendering probes when the model loads: some walk a list of
//! parts where others print a text, some print the arguments of a call where others walk them, and some do not expect a
//! message without content.

use super::{ChatMessage, ToolCall};
use minijinja::value::{Serde, Value};
use serde::ser::{Serialize, SerializeMap, Serializer};

/// What a template does with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    /// The content is a list of parts.
    pub(super) parts: bool,
    /// The arguments of a call are JSON text, not a map.
    pub(super) text_arguments: bool,
    /// A message of nothing but calls has none as its content, not an empty text.
    pub(super) absent_content: bool,
}

/// Stands for what a client says.
const SAID: &str = "said-by-the-probe";
/// An argument that only JSON writes in this way: its value has a control character.
const ARGUMENTS: &str = "{\"probed-argument\": \"\\u0001\"}";
const ARGUMENT: &str = "probed-argument";

impl Form {
    /// As most templates want it.
    pub(super) const USUAL: Form = Form {
        parts: false,
        text_arguments: false,
        absent_content: false,
    };

    /// The form in which everything that the probes say is in what `render` gives.
    pub(super) fn probe(render: impl Fn(&[ChatMessage], Form) -> Option<String>) -> Form {
        let parts = |parts| Form {
            parts,
            ..Form::USUAL
        };
        let said = |form| {
            render(&[message("user", SAID)], form).is_some_and(|prompt| prompt.contains(SAID))
        };
        let form = parts(!said(parts(false)) && said(parts(true)));
        let chat = called();
        let calls = |absent_content: bool, text_arguments: bool| Form {
            text_arguments,
            absent_content,
            ..form
        };
        let nones = |prompt: &str| prompt.to_lowercase().matches("none").count();
        [true, false]
            .into_iter()
            .flat_map(|absent| [calls(absent, false), calls(absent, true)])
            .find(|form| {
                let Some(prompt) = render(&chat, *form) else {
                    return false;
                };
                // An absent content that is printed as a word is worse than an empty one.
                let prints_none = form.absent_content
                    && render(&chat, calls(false, form.text_arguments))
                        .is_some_and(|empty| nones(&prompt) > nones(&empty));
                !prints_none && shows_arguments(&prompt, form.text_arguments)
            })
            .unwrap_or(form)
    }
}

/// Whether the arguments are in a prompt, and not as a map is printed that the template took for a text, or a text quoted
/// once more that it took for a map.
fn shows_arguments(prompt: &str, as_text: bool) -> bool {
    let printed = serde_json::from_str::<serde_json::Value>(ARGUMENTS)
        .map(|map| Value::from(Serde(map)).to_string())
        .unwrap_or_default();
    match as_text {
        true => prompt.contains(ARGUMENTS),
        false => prompt.contains(ARGUMENT) && !prompt.contains(&printed),
    }
}

fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage {
        role: role.to_owned(),
        content: content.to_owned(),
        name: None,
        tool_call_id: None,
        tool_calls: Vec::new(),
    }
}

/// A chat in which a tool was called. The id is one that Mistral's templates take: nine letters and digits.
fn called() -> [ChatMessage; 3] {
    let id = "call00001".to_owned();
    let call = ToolCall {
        id: id.clone(),
        name: "probe".to_owned(),
        arguments_json: ARGUMENTS.to_owned(),
    };
    let assistant = ChatMessage {
        tool_calls: vec![call],
        ..message("assistant", "")
    };
    let tool = ChatMessage {
        tool_call_id: Some(id),
        name: Some("probe".to_owned()),
        ..message("tool", "answer")
    };
    [message("user", SAID), assistant, tool]
}

/// A message in the form that the template wants.
pub(super) struct Formed<'m>(pub(super) &'m ChatMessage, pub(super) Form);

impl Serialize for Formed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Formed(message, form) = *self;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("role", &message.role)?;
        let nothing_said = message.content.is_empty() && !message.tool_calls.is_empty();
        match (nothing_said && form.absent_content, form.parts) {
            (true, _) => map.serialize_entry("content", &())?,
            (false, true) => map.serialize_entry("content", &[Part(&message.content)])?,
            (false, false) => map.serialize_entry("content", &message.content)?,
        }
        if let Some(name) = &message.name {
            map.serialize_entry("name", name)?;
        }
        if let Some(id) = &message.tool_call_id {
            map.serialize_entry("tool_call_id", id)?;
        }
        if !message.tool_calls.is_empty() {
            let calls: Vec<_> = message.tool_calls.iter().map(|c| call(c, form)).collect();
            map.serialize_entry("tool_calls", &calls)?;
        }
        map.end()
    }
}

/// One part of a content.
struct Part<'t>(&'t str);

impl Serialize for Part<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("type", "text")?;
        map.serialize_entry("text", self.0)?;
        map.end()
    }
}

/// A call in the API's nested shape.
fn call(call: &ToolCall, form: Form) -> serde_json::Value {
    let text = || serde_json::Value::String(call.arguments_json.clone());
    let arguments = match form.text_arguments {
        true => text(),
        false => serde_json::from_str(&call.arguments_json).unwrap_or_else(|_| text()),
    };
    serde_json::json!({
        "id": call.id,
        "type": "function",
        "function": { "name": call.name, "arguments": arguments },
    })
}
