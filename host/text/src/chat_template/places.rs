//! What a template has a place for, found out by probes like its form. A template that does not know of something passes over
//! it; nobody notices until the model answers as if it had not been said. So that is refused.

use super::form::{Form, Nothing, SAID, STRANGER, called, shows_arguments, user};
use crate::TextError;
use crate::chat::{Chat, ChatMessage, PromptEnd, part_text};
use serde_json::{Value, json};

/// What a template writes down. A probe that it refuses tells nothing: it says in its own words why when it is asked again.
#[derive(Debug, Clone)]
pub(super) struct Places {
    system: bool,
    calls: bool,
    results: bool,
    tools: bool,
    /// Some give tools with the system message only, others only without one.
    tools_beside_system: bool,
    documents: bool,
    /// Any role, by its name.
    roles: bool,
    parts: bool,
    /// The template's own text, which names what else it knows.
    source: Box<str>,
}

impl Places {
    /// Of everything, while nothing is known.
    pub(super) fn all(source: &str) -> Places {
        Places {
            system: true,
            calls: true,
            results: true,
            tools: true,
            tools_beside_system: true,
            documents: true,
            roles: true,
            parts: true,
            source: source.into(),
        }
    }

    /// Those that the probes find.
    pub(super) fn probe(
        source: &str,
        form: Form,
        render: impl Fn(&Chat) -> Option<String>,
    ) -> Places {
        let system = || ChatMessage::new("system", SAID);
        let tool = |name: &str| {
            let parameters = json!({"type": "object", "properties": {"a": {"type": "string"}}});
            let function = json!({"name": name, "description": "d", "parameters": parameters});
            vec![json!({"type": "function", "function": function})]
        };
        let chat = |messages: &[ChatMessage], tools: Vec<Value>| {
            let messages = messages.to_vec();
            render(&Chat {
                messages,
                tools,
                ..Chat::default()
            })
        };
        let has_place = |prompts: &[Option<String>], shows: &dyn Fn(&str) -> bool| {
            let mut rendered = prompts.iter().flatten().peekable();
            rendered.peek().is_none() || rendered.any(|prompt| shows(prompt))
        };
        let says = |prompt: &str| prompt.contains(SAID);
        let calls = Nothing::ALL.map(called);
        let with_calls: Vec<_> = (calls.iter())
            .flat_map(|messages| [chat(messages, Vec::new()), chat(messages, tool("probe"))])
            .collect();
        let documents =
            json!([{"title": "t", "text": SAID, "content": SAID, "contents": SAID, "doc_id": "1"}]);
        let with_documents = Chat {
            messages: vec![user("u")],
            variables: [("documents".to_owned(), documents)].into_iter().collect(),
            ..Chat::default()
        };
        let stranger = |messages: &[ChatMessage]| {
            chat(messages, Vec::new()).is_some_and(|it| says(&it) && it.contains(STRANGER))
        };
        let strange = || ChatMessage::new(STRANGER, SAID);
        Places {
            system: has_place(&[chat(&[system(), user("u")], Vec::new())], &says),
            calls: has_place(&with_calls, &|prompt| {
                shows_arguments(prompt, form.text_arguments)
            }),
            results: has_place(&with_calls, &says),
            tools: has_place(&[chat(&[user("u")], tool(SAID))], &says),
            tools_beside_system: has_place(
                &[chat(
                    &[ChatMessage::new("system", "s"), user("u")],
                    tool(SAID),
                )],
                &says,
            ),
            documents: has_place(&[render(&with_documents)], &says),
            roles: stranger(&[user("u"), strange()]) || stranger(&[strange(), user("u")]),
            parts: !form.parts_as_text,
            source: source.into(),
        }
    }

    /// Refuses what would be passed over.
    ///
    /// # Errors
    /// [`TextError::NoPlace`] with the field.
    pub(super) fn check(&self, chat: &Chat) -> Result<(), TextError> {
        for (index, message) in chat.messages.iter().enumerate() {
            self.check_message(message)
                .map_err(|(field, what)| no_place(&format!("messages[{index}]{field}"), &what))?;
        }
        let has_system = chat.messages.iter().any(|it| is_system(it.role()));
        let takes_tools = match has_system {
            true => self.tools_beside_system,
            false => self.tools,
        };
        if !chat.tools.is_empty() && !takes_tools {
            let beside = match (has_system, self.tools || self.tools_beside_system) {
                (true, true) => "tools beside a system message",
                (false, true) => "tools without a system message",
                (_, false) => "tools",
            };
            return Err(no_place("tools", beside));
        }
        let documents = chat.variables.get("documents").and_then(Value::as_array);
        if documents.is_some_and(|documents| !documents.is_empty()) && !self.documents {
            return Err(no_place("documents", "documents"));
        }
        match chat.end {
            PromptEnd::LastMessage => check_last(chat),
            PromptEnd::OpenTurn | PromptEnd::ClosedTurn => Ok(()),
        }
    }

    /// The field that is passed over, and what it is.
    fn check_message(&self, message: &ChatMessage) -> Result<(), (String, String)> {
        let refused = |field: &str, what: &str| Err((field.to_owned(), what.to_owned()));
        match message.role() {
            "user" | "assistant" => {}
            role if is_system(role) && !self.system => {
                return refused(".role", &format!("a {role} message"));
            }
            role if is_system(role) => {}
            "tool" if !self.results => return refused(".role", "the answers of tools"),
            "tool" => {}
            role if self.roles || self.names(role) => {}
            _ => return refused(".role", "messages of this role"),
        }
        if !message.tool_calls().is_empty() && !self.calls {
            return refused(".tool_calls", "calls of tools");
        }
        let function_call = message.fields().get("function_call");
        if function_call.is_some_and(|call| !call.is_null()) && !self.names("function_call") {
            return refused(
                ".function_call",
                "a function_call; give it as one of tool_calls",
            );
        }
        let parts = message.fields().get("content").and_then(Value::as_array);
        let mut parts = parts.into_iter().flatten();
        match parts.position(|part| !self.parts && part_text(part).is_none()) {
            Some(index) => refused(&format!(".content[{index}].type"), "parts other than text"),
            None => Ok(()),
        }
    }

    /// Whether the template has this word in quotes or behind a point.
    fn names(&self, word: &str) -> bool {
        let ways = [
            format!("'{word}'"),
            format!("\"{word}\""),
            format!(".{word}"),
        ];
        ways.iter().any(|way| self.source.contains(way.as_str()))
    }
}

fn is_system(role: &str) -> bool {
    matches!(role, "system" | "developer")
}

fn no_place(field: &str, what: &str) -> TextError {
    TextError::NoPlace {
        field: field.to_owned(),
        what: what.to_owned(),
    }
}

/// Refuses to go on with a message that says nothing.
fn check_last(chat: &Chat) -> Result<(), TextError> {
    let last = chat.messages.last();
    match last.is_some_and(|message| message.texts().any(|text| !text.trim().is_empty())) {
        true => Ok(()),
        false => Err(TextError::NothingToContinue {
            field: match chat.messages.len().checked_sub(1) {
                Some(last) => format!("messages[{last}].content"),
                None => "messages".to_owned(),
            },
        }),
    }
}
