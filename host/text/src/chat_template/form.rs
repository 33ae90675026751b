//! The form in which a template wants messages, found out by rendering probes when the model loads. A template is given what
//! the client said as it was said, as Hugging Face does it, unless it does not cope with that: some walk a list of parts where
//! others print a text, some print the arguments of a call where others walk them, and some print a missing content as `None`.

use crate::chat::{ChatMessage, part_text};
use minijinja::value::{Serde, Value as Given};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value, json};

/// What a template is given of a message in place of what was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    /// A text goes as a list of one part.
    pub(super) text_as_parts: bool,
    /// A list of parts goes as one text.
    pub(super) parts_as_text: bool,
    /// A part that is a refusal goes as a text.
    pub(super) refusal_as_text: bool,
    /// The arguments of a call go as JSON text, not as a map.
    pub(super) text_arguments: bool,
    /// `developer` is another word for `system`.
    pub(super) developer_as_system: bool,
    /// Of a message that calls tools.
    pub(super) beside_calls: Silence,
    /// Of one that does not.
    pub(super) alone: Silence,
}

/// The ways to say nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nothing {
    Absent,
    Null,
    Empty,
}

impl Nothing {
    pub(super) const ALL: [Nothing; 3] = [Nothing::Null, Nothing::Empty, Nothing::Absent];

    /// Whether a content says nothing, and in which way.
    fn of(content: Option<&Value>) -> Option<Nothing> {
        match content {
            None => Some(Nothing::Absent),
            Some(Value::Null) => Some(Nothing::Null),
            Some(Value::String(text)) if text.is_empty() => Some(Nothing::Empty),
            Some(_) => None,
        }
    }

    /// A message that says nothing in this way.
    fn said_by(self, role: &str) -> ChatMessage {
        match self {
            Nothing::Absent => ChatMessage::default().with("role", role),
            Nothing::Null => ChatMessage::new(role, ()),
            Nothing::Empty => ChatMessage::new(role, ""),
        }
    }
}

/// In which way the template is given each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Silence {
    pub(super) absent: Nothing,
    pub(super) null: Nothing,
    pub(super) empty: Nothing,
}

impl Silence {
    const AS_SAID: Silence = Silence {
        absent: Nothing::Absent,
        null: Nothing::Null,
        empty: Nothing::Empty,
    };

    /// Each in the first way in which the template copes with it, its own before any other.
    fn probed(copes: impl Fn(Nothing) -> bool) -> Silence {
        let [null, empty, absent] = Nothing::ALL.map(&copes);
        let copes = |nothing: Nothing| match nothing {
            Nothing::Absent => absent,
            Nothing::Null => null,
            Nothing::Empty => empty,
        };
        let instead = |said: Nothing| {
            let mut others = [said].into_iter().chain(Nothing::ALL);
            others.find(|nothing| copes(*nothing)).unwrap_or(said)
        };
        Silence {
            absent: instead(Nothing::Absent),
            null: instead(Nothing::Null),
            empty: instead(Nothing::Empty),
        }
    }

    fn given(self, said: Nothing) -> Nothing {
        match said {
            Nothing::Absent => self.absent,
            Nothing::Null => self.null,
            Nothing::Empty => self.empty,
        }
    }
}

/// Stands for what a client says.
pub(super) const SAID: &str = "said-by-the-probe";
/// Stands for what it says before that.
const FIRST: &str = "said-at-first";
/// An argument that only JSON writes in this way: its value has a control character.
const ARGUMENTS: &str = "{\"probed-argument\": \"\\u0001\"}";
const ARGUMENT: &str = "probed-argument";

impl Form {
    /// Everything as it was said.
    pub(super) const AS_SAID: Form = Form {
        text_as_parts: false,
        parts_as_text: false,
        refusal_as_text: false,
        text_arguments: false,
        developer_as_system: false,
        beside_calls: Silence::AS_SAID,
        alone: Silence::AS_SAID,
    };

    /// The form in which everything that the probes say is in what `render` gives.
    pub(super) fn probe(render: &impl Fn(&[ChatMessage], Form) -> Option<String>) -> Form {
        let form = Form::of_content(render);
        let form = Form {
            text_arguments: takes_text_arguments(render, form),
            ..form
        };
        Form {
            beside_calls: Silence::probed(|nothing| {
                let prompt = render(&called(nothing), form);
                copes(
                    prompt,
                    |nothing| render(&called(nothing), form),
                    |prompt| shows_arguments(prompt, form.text_arguments),
                )
            }),
            alone: Silence::probed(|nothing| {
                let silent = |nothing: Nothing| {
                    render(
                        &[user(FIRST), nothing.said_by("assistant"), user(SAID)],
                        form,
                    )
                };
                copes(silent(nothing), silent, |prompt| prompt.contains(SAID))
            }),
            developer_as_system: !knows_developer(render, form),
            ..form
        }
    }

    /// The form of texts and parts.
    fn of_content(render: &impl Fn(&[ChatMessage], Form) -> Option<String>) -> Form {
        let parts = || {
            [ChatMessage::new(
                "user",
                json!([text_part(FIRST), text_part(SAID)]),
            )]
        };
        let text = render(&[user(SAID)], Form::AS_SAID).filter(|prompt| prompt.contains(SAID));
        // A list that is printed as a list names its fields.
        let named = |prompt: &str| {
            let quoted = ["'type'", "\"type\""];
            quoted
                .map(|name| prompt.matches(name).count())
                .iter()
                .sum::<usize>()
        };
        let named_anyway = text.as_deref().map_or(0, named);
        let walks = |prompt: &String| {
            prompt.contains(FIRST) && prompt.contains(SAID) && named(prompt) <= named_anyway
        };
        let walks = render(&parts(), Form::AS_SAID).is_some_and(|prompt| walks(&prompt));
        let refusal = json!([{"type": "refusal", "refusal": SAID}]);
        let refused = [
            user(FIRST),
            ChatMessage::new("assistant", refusal),
            user(FIRST),
        ];
        let shows_refusal =
            || render(&refused, Form::AS_SAID).is_some_and(|prompt| prompt.contains(SAID));
        Form {
            text_as_parts: text.is_none() && walks,
            parts_as_text: !walks,
            refusal_as_text: walks && !shows_refusal(),
            ..Form::AS_SAID
        }
    }

    /// A message in this form, with `more` at the end of what it says.
    pub(super) fn formed<'m>(self, message: &'m ChatMessage, more: &'m str) -> Formed<'m> {
        Formed {
            message,
            form: self,
            more,
        }
    }
}

/// Whether a way to say nothing renders, shows what it must, and is not printed as the word of a missing value.
fn copes(
    prompt: Option<String>,
    render: impl Fn(Nothing) -> Option<String>,
    shows: impl Fn(&str) -> bool,
) -> bool {
    let nones = |prompt: &str| prompt.to_lowercase().matches("none").count();
    let empty = render(Nothing::Empty).map_or(0, |empty| nones(&empty));
    prompt.is_some_and(|prompt| shows(&prompt) && nones(&prompt) <= empty)
}

/// Whether the arguments of a call are only there when they are text.
fn takes_text_arguments(
    render: &impl Fn(&[ChatMessage], Form) -> Option<String>,
    form: Form,
) -> bool {
    let shows = |text_arguments: bool| {
        let form = Form {
            text_arguments,
            ..form
        };
        let mut prompts = Nothing::ALL.into_iter();
        prompts.any(|nothing| {
            let prompt = render(&called(nothing), form);
            prompt.is_some_and(|prompt| shows_arguments(&prompt, text_arguments))
        })
    };
    !shows(false) && shows(true)
}

/// Whether the arguments are in a prompt, and not as a map is printed that the template took for a text, or a text quoted
/// once more that it took for a map.
pub(super) fn shows_arguments(prompt: &str, as_text: bool) -> bool {
    match as_text {
        true => prompt.contains(ARGUMENTS),
        // A map that is printed has the control character in neither way.
        false => {
            prompt.contains(ARGUMENT) && ["\u{1}", "\\u0001"].iter().any(|it| prompt.contains(it))
        }
    }
}

/// Whether a developer's words are shown, and not only as those of anybody unknown under another's name.
fn knows_developer(render: &impl Fn(&[ChatMessage], Form) -> Option<String>, form: Form) -> bool {
    let said_by = |role: &str| render(&[ChatMessage::new(role, SAID), user(FIRST)], form);
    said_by("developer").is_some_and(|prompt| {
        let is_shown = prompt.contains(SAID);
        is_shown && (prompt.contains("developer") || said_by(STRANGER) != Some(prompt))
    })
}

/// A role that no template knows.
pub(super) const STRANGER: &str = "probed-role";

/// What a user says.
pub(super) fn user(text: &str) -> ChatMessage {
    ChatMessage::new("user", text)
}

/// A chat in which a tool was called and answered [`SAID`]. The id is one that Mistral's templates take: nine letters and
/// digits.
pub(super) fn called(content: Nothing) -> [ChatMessage; 3] {
    let id = "call00001";
    let function = json!({"name": "probe", "arguments": ARGUMENTS});
    let calls = json!([{"id": id, "type": "function", "function": function}]);
    let result = ChatMessage::new("tool", SAID);
    [
        user(FIRST),
        content.said_by("assistant").with("tool_calls", calls),
        result.with("tool_call_id", id).with("name", "probe"),
    ]
}

fn text_part(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

/// A message in the form that the template wants.
pub(super) struct Formed<'m> {
    message: &'m ChatMessage,
    form: Form,
    more: &'m str,
}

impl Formed<'_> {
    /// As a value of the template's.
    pub(super) fn value(&self) -> Given {
        Given::from(Serde(self))
    }

    /// What the template is given as the content, if anything.
    fn content(&self) -> Option<Value> {
        let said = self.message.fields().get("content");
        let silence = match self.message.tool_calls() {
            [] => self.form.alone,
            _ => self.form.beside_calls,
        };
        if let Some(nothing) = Nothing::of(said) {
            return match silence.given(nothing) {
                Nothing::Absent => None,
                Nothing::Null => Some(Value::Null),
                Nothing::Empty => self.text(""),
            };
        }
        match said? {
            Value::String(text) => self.text(text),
            Value::Array(parts) => self.parts(parts),
            other => Some(other.clone()),
        }
    }

    fn text(&self, text: &str) -> Option<Value> {
        let text = format!("{text}{}", self.more);
        Some(match self.form.text_as_parts {
            true => json!([text_part(&text)]),
            false => Value::String(text),
        })
    }

    fn parts(&self, parts: &[Value]) -> Option<Value> {
        if self.form.parts_as_text {
            let text: String = parts.iter().filter_map(part_text).collect();
            return self.text(&text);
        }
        let is_refusal = |part: &Value| part["type"] == "refusal";
        let mut parts: Vec<Value> = parts
            .iter()
            .map(|part| match part_text(part) {
                Some(text) if self.form.refusal_as_text && is_refusal(part) => text_part(text),
                _ => part.clone(),
            })
            .collect();
        if let Some(text) = last_text(&mut parts) {
            text.push_str(self.more);
        }
        Some(Value::Array(parts))
    }
}

/// The text of the last part that has one.
fn last_text(parts: &mut [Value]) -> Option<&mut String> {
    let mut texts = parts.iter_mut().rev();
    texts.find_map(|part| match part.get_mut("text") {
        Some(Value::String(text)) => Some(text),
        _ => None,
    })
}

impl Serialize for Formed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut content = self.content();
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in self.message.fields() {
            match name.as_str() {
                "role" if value == "developer" && self.form.developer_as_system => {
                    map.serialize_entry(name, "system")?;
                }
                "content" => {
                    if let Some(content) = content.take() {
                        map.serialize_entry(name, &content)?;
                    }
                }
                "tool_calls" => {
                    let calls = self.message.tool_calls().iter();
                    let calls: Vec<_> = calls.map(|it| call(it, self.form)).collect();
                    map.serialize_entry(name, &calls)?;
                }
                _ => map.serialize_entry(name, value)?,
            }
        }
        if let Some(content) = content {
            map.serialize_entry("content", &content)?;
        }
        map.end()
    }
}

/// A call with its arguments as a map or as text; where they are no JSON, as text.
fn call(call: &Value, form: Form) -> Value {
    let mut call = call.clone();
    let Some(arguments) = call.pointer_mut("/function/arguments") else {
        return call;
    };
    match arguments {
        Value::String(text) if !form.text_arguments => {
            if text.trim().is_empty() {
                *arguments = Value::Object(Map::new());
            } else if let Ok(map) = serde_json::from_str(text) {
                *arguments = map;
            }
        }
        Value::String(_) => {}
        map if form.text_arguments => *map = Value::String(map.to_string()),
        _ => {}
    }
    call
}
