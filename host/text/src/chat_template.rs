//! Chat templates: the model file's Jinja source, rendered by minijinja as Hugging Face renders it.

use crate::TextError;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, ErrorKind, context};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use std::io;

/// Jinja instructions one rendering may take. A long chat takes some ten thousand; a template that loops without end
/// is cut off in milliseconds.
const FUEL: u64 = 20_000_000;
/// Size of a rendered prompt, in bytes.
const RENDERED_BYTES_MAX: usize = 16 << 20;

/// What is used when the model file has no template: ChatML.
const CHATML: &str = "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n\
                      {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// One message of a chat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// Its text.
    pub content: String,
    /// Name of the participant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Of a tool's message: the call it answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Of an assistant's message: the calls it made.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "tool_calls")]
    pub tool_calls: Vec<ToolCall>,
}

/// A call of a tool by the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// Id that the tool's answer names.
    pub id: String,
    /// Name of the function.
    pub name: String,
    /// Its arguments, a JSON text.
    pub arguments_json: String,
}

/// Templates expect the API's nested shape, with the arguments as a value and not as a text.
fn tool_calls<S: serde::Serializer>(calls: &[ToolCall], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(calls.iter().map(|call| {
        let arguments = serde_json::from_str(&call.arguments_json)
            .unwrap_or_else(|_| serde_json::Value::String(call.arguments_json.clone()));
        serde_json::json!({
            "id": call.id,
            "type": "function",
            "function": { "name": call.name, "arguments": arguments },
        })
    }))
}

/// A parsed template with the texts of the special tokens it may print.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

impl ChatTemplate {
    /// Parses `source`, or takes ChatML.
    ///
    /// # Errors
    /// [`TextError::TemplateSyntax`] says where the source is wrong.
    pub(crate) fn new(
        source: Option<String>,
        bos_token: String,
        eos_token: String,
    ) -> Result<ChatTemplate, TextError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment
            .set_syntax(syntax.map_err(|error| TextError::TemplateSyntax(describe(&error)))?);
        environment.set_fuel(Some(FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", tojson);
        environment
            .add_template_owned("chat", source.unwrap_or_else(|| CHATML.to_owned()))
            .map_err(|error| TextError::TemplateSyntax(describe(&error)))?;
        Ok(ChatTemplate {
            environment,
            bos_token,
            eos_token,
        })
    }

    /// Renders a chat; `open_turn` adds the header of the assistant's turn.
    ///
    /// # Errors
    /// [`TextError::Template`] with the template's own words where it refuses the messages.
    pub(crate) fn render(
        &self,
        messages: &[ChatMessage],
        tools: &[serde_json::Value],
        open_turn: bool,
    ) -> Result<String, TextError> {
        let template = self
            .environment
            .get_template("chat")
            .map_err(|error| TextError::Template(describe(&error)))?;
        let tools = if tools.is_empty() {
            Value::from(())
        } else {
            Value::from(Serde(tools))
        };
        let mut rendered = Bounded(Vec::new());
        template
            .render_captured_to(
                context! {
                    messages => Value::from(Serde(messages)),
                    tools => tools,
                    add_generation_prompt => open_turn,
                    bos_token => self.bos_token.as_str(),
                    eos_token => self.eos_token.as_str(),
                },
                &mut rendered,
            )
            .map_err(|error| TextError::Template(describe(&error)))?;
        String::from_utf8(rendered.0).map_err(|error| TextError::Template(error.to_string()))
    }
}

/// Output that refuses to grow beyond [`RENDERED_BYTES_MAX`].
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > RENDERED_BYTES_MAX {
            return Err(io::Error::other(format!(
                "the rendered chat is larger than {RENDERED_BYTES_MAX} bytes"
            )));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The error in one line; of `raise_exception` just the template's words.
fn describe(error: &minijinja::Error) -> String {
    match (error.kind(), error.detail(), error.line()) {
        (ErrorKind::OutOfFuel, _, _) => "it takes too many steps".to_owned(),
        (ErrorKind::InvalidOperation, Some(detail), _) if detail.starts_with(RAISED) => {
            detail[RAISED.len()..].to_owned()
        }
        (kind, Some(detail), Some(line)) => format!("{kind}: {detail} (line {line})"),
        _ => error.to_string(),
    }
}

/// Marks what a template raised itself.
const RAISED: &str = "raised: ";

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(
        ErrorKind::InvalidOperation,
        format!("{RAISED}{message}"),
    ))
}

/// JSON as Python's `json.dumps(ensure_ascii=False)` spaces it, which is what the templates were written against.
/// minijinja's own filter escapes for HTML.
fn tojson(value: Value, kwargs: Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    kwargs.assert_all_used()?;
    let mut out = Vec::new();
    let written = match indent {
        Some(width) => {
            let indent = " ".repeat(width.min(16));
            value.serialize(&mut Serializer::with_formatter(
                &mut out,
                PrettyFormatter::with_indent(indent.as_bytes()),
            ))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut out, PythonFormatter)),
    };
    let invalid = |error: &dyn std::fmt::Display| {
        minijinja::Error::new(ErrorKind::BadSerialization, error.to_string())
    };
    written.map_err(|error| invalid(&error))?;
    String::from_utf8(out)
        .map(Value::from)
        .map_err(|error| invalid(&error))
}

/// One line with a space after `,` and `:`.
struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: &str, content: &str) -> ChatMessage {
        ChatMessage {
            role: role.into(),
            content: content.into(),
            name: None,
            tool_call_id: None,
            tool_calls: Vec::new(),
        }
    }

    fn render(source: Option<&str>, messages: &[ChatMessage]) -> Result<String, TextError> {
        ChatTemplate::new(source.map(str::to_owned), "<s>".into(), "</s>".into())?.render(
            messages,
            &[],
            true,
        )
    }

    #[test]
    fn chatml_stands_in_for_a_missing_template() {
        let rendered = render(
            None,
            &[message("system", "Be brief."), message("user", "hi")],
        );
        let expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(rendered.as_deref(), Ok(expected));
    }

    #[test]
    fn the_templates_own_words_reach_the_client() {
        let source = "{{ raise_exception('Conversation roles must alternate') }}";
        let error = render(Some(source), &[message("user", "hi")]);
        assert_eq!(
            error,
            Err(TextError::Template(
                "Conversation roles must alternate".into()
            ))
        );
    }

    #[test]
    fn a_template_that_does_not_end_is_cut_off() {
        let source = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}";
        assert!(matches!(
            render(Some(source), &[]),
            Err(TextError::Template(_))
        ));
    }

    #[test]
    fn a_template_that_grows_without_bound_is_cut_off() {
        let source = "{% for a in range(9999) %}{{ messages[0].content }}{% endfor %}";
        let error = render(Some(source), &[message("user", &"x".repeat(1 << 16))]);
        assert!(matches!(error, Err(TextError::Template(_))), "{error:?}");
    }

    #[test]
    fn python_methods_blocks_and_json_come_out_as_in_jinja2() {
        let source = "{%- if messages[0]['role'] == 'system' -%}\n{% endif %}\n{{ messages[0].content.strip() | upper }} \
                      {{ {'a': [1, \"é<\"], 'b': none} | tojson }}";
        assert_eq!(
            render(Some(source), &[message("user", " x ")]).as_deref(),
            Ok("X {\"a\": [1, \"é<\"], \"b\": null}")
        );
    }

    #[test]
    fn bad_source_is_refused_when_the_model_loads() {
        assert!(matches!(
            render(Some("{% if %}"), &[]),
            Err(TextError::TemplateSyntax(_))
        ));
    }
}
