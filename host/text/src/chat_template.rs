//! Chat templates: the model file's Jinja source, rendered by minijinja as Hugging Face renders it.
//!
//! The source is as hostile as the file: steps, memory and output of a rendering are bounded.

mod arguments;
mod form;
mod named;
mod operators;
mod places;
mod python_filters;
mod python_format;
mod python_globals;
mod python_json;
mod python_repr;
mod python_text;
mod source;
mod strftime;
mod templates;
mod wordwrap;

pub use named::{chat_template_names, named_chat_template};
pub(crate) use templates::ChatTemplates;

use crate::TextError;
use crate::chat::{Chat, PromptEnd};
use form::Form;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value, ValueKind};
use minijinja::{Environment, ErrorKind, Output, State, escape_formatter};
use places::Places;
use std::collections::BTreeMap;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

/// Fuel of one rendering: an instruction costs one, and so do 64 bytes that it produces. Chats of hundreds of messages
/// take some ten thousand; a template that loops or grows without end is cut off within a second and 32 MiB.
const FUEL: u64 = 500_000;
/// Stack of one rendering, twice what lists as deep as the fuel can nest them need, and of compiling, of which the same holds
/// for an expression as deep as the source can nest it. Only what is used takes memory.
const STACK_BYTES: usize = 256 << 20;
/// Size of a template, in bytes; those of large models have some ten thousand. A chain of this length takes half of the stack
/// to compile, and seconds.
const SOURCE_BYTES_MAX: usize = 64 << 10;
/// Size of a rendered prompt, in bytes, whatever the model can read.
const RENDERED_BYTES_MAX: usize = 16 << 20;
/// The same for a probe, of which more than one is held at a time.
const PROBE_BYTES_MAX: usize = 1 << 20;

/// The token of vocabularies that have turns as Gemma's do.
const TURN: &str = "<start_of_turn>";

/// Stands behind the text that the model goes on with; the same as transformers', and what follows it is not written.
const CONTINUED: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// A parsed template with the texts of the special tokens it may print.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
    form: Form,
    places: Places,
}

impl ChatTemplate {
    /// Parses `source`, or takes the built-in template that fits the vocabulary.
    ///
    /// # Errors
    /// [`TextError::TemplateSyntax`] says where the source is wrong.
    pub(crate) fn new(
        source: Option<&str>,
        tokens: &[String],
        bos_token: String,
        eos_token: String,
    ) -> Result<ChatTemplate, TextError> {
        let source = source.unwrap_or_else(|| match tokens.iter().any(|token| token == TURN) {
            true => named::GEMMA,
            false => named::CHATML,
        });
        if source.len() > SOURCE_BYTES_MAX {
            let bytes = source.len();
            return Err(TextError::TemplateSyntax(format!(
                "it has {bytes} bytes; at most {SOURCE_BYTES_MAX} are allowed"
            )));
        }
        let build = || {
            let environment = environment(source, now)?;
            let (bos, eos) = (bos_token, eos_token);
            Ok(ChatTemplate::probed(source, environment, bos, eos))
        };
        on_large_stack(build, TextError::TemplateSyntax)
    }

    /// The template with the form of messages that it wants, and what it has a place for.
    fn probed(
        source: &str,
        environment: Environment<'static>,
        bos_token: String,
        eos_token: String,
    ) -> ChatTemplate {
        let mut template = ChatTemplate {
            environment,
            bos_token,
            eos_token,
            form: Form::AS_SAID,
            places: Places::all(source),
        };
        let room = Room {
            kept_max: PROBE_BYTES_MAX,
            ..Room::ALL
        };
        template.form = Form::probe(&|messages, form| {
            template.render_here(&Chat::new(messages), room, form).ok()
        });
        let places = Places::probe(source, template.form, |chat| {
            template.render_here(chat, room, template.form).ok()
        });
        ChatTemplate { places, ..template }
    }

    /// Refuses a chat of which the template would pass over something.
    ///
    /// # Errors
    /// [`TextError::NoPlace`] and [`TextError::NothingToContinue`], with the field.
    pub(crate) fn check(&self, chat: &Chat) -> Result<(), TextError> {
        self.places.check(chat)
    }

    /// Renders a chat.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::check`]; [`TextError::Template`] with the template's own words where it refuses the messages;
    /// [`TextError::RenderedTooLong`] as soon as it writes more than there is room for.
    pub(crate) fn render(&self, chat: &Chat, room: Room<'_>) -> Result<String, TextError> {
        self.check(chat)?;
        let render = || self.render_here(chat, room, self.form);
        on_large_stack(render, TextError::Template)
    }

    fn render_here(&self, chat: &Chat, room: Room<'_>, form: Form) -> Result<String, TextError> {
        let refused = |error: minijinja::Error| TextError::Template(describe(&error));
        let template = self.environment.get_template("chat").map_err(refused)?;
        let variables = self.variables(chat, form);
        let mut rendered = Bounded::new(room);
        let result = template.render_captured_to(variables, &mut rendered);
        if rendered.is_full {
            return Err(TextError::RenderedTooLong {
                bytes_max: room.kept_max.min(RENDERED_BYTES_MAX),
            });
        }
        result.map_err(refused)?;
        let prompt = String::from_utf8(rendered.bytes)
            .map_err(|error| TextError::Template(error.to_string()))?;
        match chat.end {
            PromptEnd::LastMessage => up_to_last(prompt, chat),
            PromptEnd::OpenTurn | PromptEnd::ClosedTurn => Ok(prompt),
        }
    }

    /// What the template knows by name. Its own variables come first: nothing that a client names shadows the rest.
    fn variables(&self, chat: &Chat, form: Form) -> Value {
        let last = chat.messages.len().wrapping_sub(1);
        let messages = chat.messages.iter().enumerate().map(|(index, message)| {
            let is_continued = chat.end == PromptEnd::LastMessage && index == last;
            let more = if is_continued { CONTINUED } else { "" };
            form.formed(message, more).value()
        });
        let tools = match chat.tools.as_slice() {
            [] => Value::from(()),
            tools => Value::from(Serde(tools)),
        };
        let given = |(name, value): (&String, _)| (name.clone(), Value::from(Serde(value)));
        let own = [
            ("messages", messages.collect::<Value>()),
            ("tools", tools),
            (
                "add_generation_prompt",
                (chat.end == PromptEnd::OpenTurn).into(),
            ),
            ("bos_token", self.bos_token.as_str().into()),
            ("eos_token", self.eos_token.as_str().into()),
        ];
        let documents = ("documents".to_owned(), Value::from(()));
        let variables = std::iter::once(documents).chain(chat.variables.iter().map(given));
        let own = own.map(|(name, value)| (name.to_owned(), value));
        let all: BTreeMap<String, Value> = variables.chain(own).collect();
        all.into()
    }
}

/// The prompt up to the end of the last message's text, as transformers cuts it.
fn up_to_last(mut prompt: String, chat: &Chat) -> Result<String, TextError> {
    let text = chat
        .messages
        .last()
        .and_then(|message| message.texts().last());
    let is_there = text.is_some_and(|text| prompt.contains(text.trim()));
    match prompt.rfind(CONTINUED.trim_end()).filter(|_| is_there) {
        Some(end) => {
            // A template that trims the text took the space behind the tag as well.
            let is_trimmed = !prompt[end..].starts_with(CONTINUED);
            prompt.truncate(end);
            if is_trimmed {
                prompt.truncate(prompt.trim_end().len());
            }
            Ok(prompt)
        }
        None => {
            let why = "it does not write the text of the last message as it is, so it cannot be continued";
            Err(TextError::Template(why.to_owned()))
        }
    }
}

/// Runs `work` on a thread of its own. A template can nest lists as deep as its fuel lasts, and printing, comparing or just
/// dropping them recurses; so does compiling an expression that is nested as deeply as its source is long. On a stack of the
/// caller's size that would end the process; some 30 µs for a thread are the price.
fn on_large_stack<T: Send>(
    work: impl FnOnce() -> Result<T, TextError> + Send,
    failed: fn(String) -> TextError,
) -> Result<T, TextError> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("chat template".to_owned())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, work)
            .map_err(|error| failed(error.to_string()))?
            .join()
            .unwrap_or_else(|_| Err(failed("an internal error".to_owned())))
    })
}

/// How much a template may write: [`RENDERED_BYTES_MAX`] bytes, of which `kept_max` may come into tokens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room<'k> {
    pub(crate) kept_max: usize,
    pub(crate) kept_bytes: &'k [bool; 256],
}

impl Room<'static> {
    /// All that any template may write.
    pub(crate) const ALL: Room<'static> = Room {
        kept_max: RENDERED_BYTES_MAX,
        kept_bytes: &[true; 256],
    };
}

/// How many of `bytes` are kept.
pub(crate) fn kept(kept_bytes: &[bool; 256], bytes: &[u8]) -> usize {
    let kept = bytes.iter().filter(|byte| kept_bytes[**byte as usize]);
    kept.count()
}

/// Output that refuses to grow beyond its room.
struct Bounded<'k> {
    bytes: Vec<u8>,
    kept: usize,
    room: Room<'k>,
    is_full: bool,
}

impl Bounded<'_> {
    fn new(room: Room<'_>) -> Bounded<'_> {
        Bounded {
            bytes: Vec::new(),
            kept: 0,
            room,
            is_full: false,
        }
    }
}

impl io::Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.kept += kept(self.room.kept_bytes, bytes);
        self.is_full =
            self.kept > self.room.kept_max || self.bytes.len() + bytes.len() > RENDERED_BYTES_MAX;
        if self.is_full {
            return Err(io::Error::other("there is no room for more"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The error in one line; of `raise_exception` just the template's words.
fn describe(error: &minijinja::Error) -> String {
    match (error.kind(), error.detail(), error.line()) {
        (ErrorKind::OutOfFuel, _, _) => "it takes too many steps to render".to_owned(),
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

/// Seconds after 1970-01-01 00:00 UTC.
fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map(|since| since.as_secs()).unwrap_or(0)
}

/// The template as `chat`, with the functions, the whitespace rules and the texts of values that Python's Jinja has, and
/// those that Hugging Face adds.
fn environment(source: &str, clock: fn() -> u64) -> Result<Environment<'static>, TextError> {
    let invalid = |error: minijinja::Error| TextError::TemplateSyntax(describe(&error));
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
        .map_err(invalid)?;
    environment.set_syntax(syntax.clone());
    environment.set_fuel(Some(FUEL));
    environment.set_formatter(print);
    environment.set_unknown_method_callback(python_text::unknown_method);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", move |format: &str| {
        strftime::strftime(clock(), format)
    });
    environment.add_function(source::CONCAT, operators::concat);
    environment.add_function(source::SUM, operators::sum);
    environment.add_function(source::COMPARED, operators::compared);
    environment.add_function(source::ITEMS, python_globals::items);
    environment.add_filter(source::REMAINDER, operators::remainder);
    environment.add_filter("tojson", python_json::tojson);
    python_filters::add(&mut environment);
    python_globals::add(&mut environment);
    // These indent what is nested deeply without paying for it; no chat needs them.
    environment.remove_filter("pprint");
    environment.remove_global("debug");
    add_tests(&mut environment);
    environment
        .add_template_owned("chat", source::rewritten(source, syntax))
        .map_err(invalid)?;
    Ok(environment)
}

/// Tests that compare a value with another.
type Comparison = fn(&Value, &Value) -> bool;
const COMPARISONS: [(&[&str], Comparison); 6] = [
    (&["eq", "equalto", "=="], |left, right| left == right),
    (&["ne", "!="], |left, right| left != right),
    (&["lt", "lessthan", "<"], |left, right| left < right),
    (&["le", "<="], |left, right| left <= right),
    (&["gt", "greaterthan", ">"], |left, right| left > right),
    (&["ge", ">="], |left, right| left >= right),
];

fn add_tests(environment: &mut Environment<'_>) {
    // Python's sequences are whatever has a length and items: texts and maps too, and here the parts of lists.
    environment.add_test("sequence", |value: &Value| match value.kind() {
        ValueKind::Seq | ValueKind::Map | ValueKind::String => true,
        ValueKind::Iterable => value.len().is_some(),
        _ => false,
    });
    // minijinja iterates over none, Python does not; templates ask this of `tools`.
    environment.add_test("iterable", |value: &Value| {
        !value.is_none() && value.try_iter().is_ok()
    });
    for (names, test) in COMPARISONS {
        let compare = move |state: &State, left: Value, right: Value| {
            operators::sized(state, &left)?;
            Ok::<_, minijinja::Error>(test(&left, &right))
        };
        for name in names {
            environment.add_test(*name, compare);
        }
    }
    for (name, of) in [("lower", "islower"), ("upper", "isupper")] {
        environment.add_test(name, move |state: &mut State, value: &Value| {
            Value::from(&*python_repr::text(value)?).call_method(state, of, &[])
        });
    }
    environment.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
}

/// What `{{ value }}` prints.
fn print(out: &mut Output, state: &mut State, value: &Value) -> Result<(), minijinja::Error> {
    match value.as_str() {
        Some(_) => escape_formatter(out, state, value),
        None => escape_formatter(out, state, &Value::from(python_repr::text(value)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ChatMessage;
    use serde_json::json;
    use std::collections::HashMap;

    fn message(role: &str, content: &str) -> ChatMessage {
        ChatMessage::new(role, content)
    }

    fn chat(messages: &[ChatMessage]) -> Chat {
        Chat::new(messages)
    }

    fn render(source: Option<&str>, messages: &[ChatMessage]) -> Result<String, TextError> {
        let template = ChatTemplate::new(source, &[], "<s>".into(), "</s>".into())?;
        template.render(&chat(messages), Room::ALL)
    }

    /// Expressions and statements one by one, and what Python's Jinja makes of them.
    #[test]
    fn every_expression_is_what_jinja2_makes_of_it() {
        let table: serde_json::Value =
            serde_json::from_str(include_str!("../tests/python_jinja.json")).unwrap();
        let cases = table["cases"].as_array().unwrap();
        assert!(cases.len() > 1000, "the table has lost cases");
        let mut wrong = Vec::new();
        for case in cases {
            let source = case["source"].as_str().unwrap();
            let render = || {
                let environment = environment(source, || 1_721_984_703)?;
                let failed = |error: minijinja::Error| TextError::Template(describe(&error));
                let template = environment.get_template("chat").map_err(failed)?;
                let context = Value::from(Serde(&table["context"]));
                template.render(context).map_err(failed)
            };
            let rendered = on_large_stack(render, TextError::Template);
            let right = match (&rendered, case["expected"].as_str()) {
                (Ok(rendered), Some(expected)) => rendered == expected,
                (Err(_), None) => true,
                _ => false,
            };
            if !right {
                let (expected, refused) = (&case["expected"], &case["refused"]);
                wrong.push(format!(
                    "{source:?}\n   is {rendered:?}\n   not {expected} {refused}"
                ));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
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
        let bytes_max = RENDERED_BYTES_MAX;
        assert_eq!(error, Err(TextError::RenderedTooLong { bytes_max }));
    }

    #[derive(serde::Deserialize)]
    struct Fixture {
        templates: HashMap<String, String>,
        chats: HashMap<String, Said>,
        cases: Vec<Case>,
    }

    #[derive(serde::Deserialize)]
    struct Said {
        messages: Vec<serde_json::Value>,
        #[serde(default)]
        tools: Vec<serde_json::Value>,
        open_turn: Option<bool>,
    }

    #[derive(serde::Deserialize)]
    struct Case {
        template: String,
        chat: String,
        expected: Option<String>,
        error: Option<String>,
    }

    /// A message as clients write it: calls are there in OpenAI's nested shape.
    fn from_json(json: &serde_json::Value) -> ChatMessage {
        let mut fields = json.as_object().unwrap().clone();
        if let Some(calls) = fields
            .get_mut("tool_calls")
            .and_then(|calls| calls.as_array_mut())
        {
            for call in calls {
                let function = json!({"name": call["name"], "arguments": call["arguments_json"]});
                *call = json!({"id": call["id"], "type": "function", "function": function});
            }
        }
        ChatMessage::from(fields)
    }

    /// Every case of a file that `tests/chat_templates.py` wrote.
    fn check(fixture: &str) -> Vec<String> {
        let fixture: Fixture = serde_json::from_str(fixture).unwrap();
        let mut wrong = Vec::new();
        for case in &fixture.cases {
            let said = &fixture.chats[&case.chat];
            let messages: Vec<ChatMessage> = said.messages.iter().map(from_json).collect();
            let source = &fixture.templates[&case.template];
            let environment = environment(source, || 1_721_984_703);
            let rendered = environment.and_then(|environment| {
                let (bos, eos) = ("<bos>".to_owned(), "<eos>".to_owned());
                let template = ChatTemplate::probed(source, environment, bos, eos);
                let chat = Chat {
                    messages,
                    tools: said.tools.clone(),
                    end: match said.open_turn {
                        Some(false) => PromptEnd::ClosedTurn,
                        _ => PromptEnd::OpenTurn,
                    },
                    ..Chat::default()
                };
                template.render_here(&chat, Room::ALL, template.form)
            });
            let right = match (&case.expected, &case.error, &rendered) {
                (Some(expected), _, Ok(rendered)) => expected == rendered,
                (None, Some(words), Err(TextError::Template(error))) => error == words,
                _ => false,
            };
            if !right {
                wrong.push(format!(
                    "{} / {}:\n   {rendered:?}\n   {:?} {:?}",
                    case.template, case.chat, case.expected, case.error
                ));
            }
        }
        wrong
    }

    #[test]
    fn rendering_equals_jinja2() {
        let wrong = check(include_str!("../tests/chat_templates.json"));
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn a_vocabulary_with_turns_gets_turns_where_the_file_has_no_template() {
        let template = ChatTemplate::new(None, &[TURN.into()], "<bos>".into(), "<eos>".into());
        let template = template.unwrap();
        let said = [
            message("system", "Be brief."),
            message("user", " hi "),
            message("assistant", "Hello."),
            message("user", "bye"),
        ];
        assert_eq!(
            template.render(&chat(&said), Room::ALL).as_deref(),
            Ok(concat!(
                "<bos><start_of_turn>user\nBe brief.\n\nhi<end_of_turn>\n",
                "<start_of_turn>model\nHello.<end_of_turn>\n",
                "<start_of_turn>user\nbye<end_of_turn>\n<start_of_turn>model\n"
            ))
        );
        let refused = template.render(&chat(&said[2..3]), Room::ALL);
        assert!(
            matches!(refused, Err(TextError::Template(_))),
            "{refused:?}"
        );
    }

    /// What the families' own templates make of a chat (those of Llama 2 and 3, Gemma 3, Phi 3 and 4, Zephyr, OpenChat,
    /// Command R, DeepSeek R1 and Mistral 7B), and for Vicuna and Alpaca what their authors trained on.
    #[test]
    fn named_templates_write_what_their_families_read() {
        let chat = [
            message("system", "Be brief."),
            message("user", "Hi"),
            message("assistant", "Hello."),
            message("user", "Bye"),
        ];
        let cases = [
            (
                "alpaca",
                "<s>Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello.</s>\n\n### Instruction:\nBye\n\n### Response:\n",
            ),
            (
                "chatml",
                "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
            ),
            (
                "command-r",
                "<s><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Be brief.<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hi<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>Hello.<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Bye<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
            ),
            (
                "deepseek",
                "<s>Be brief.<｜User｜>Hi<｜Assistant｜>Hello.<｜end▁of▁sentence｜><｜User｜>Bye<｜Assistant｜>",
            ),
            (
                "gemma",
                "<s><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
            ),
            (
                "llama2",
                "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello. </s><s>[INST] Bye [/INST]",
            ),
            (
                "llama3",
                "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
            ),
            (
                "mistral",
                "<s> [INST] Be brief.\n\nHi [/INST] Hello.</s> [INST] Bye [/INST]",
            ),
            (
                "openchat",
                "<s>GPT4 Correct System: Be brief.<|end_of_turn|>GPT4 Correct User: Hi<|end_of_turn|>GPT4 Correct Assistant: Hello.<|end_of_turn|>GPT4 Correct User: Bye<|end_of_turn|>GPT4 Correct Assistant:",
            ),
            (
                "phi3",
                "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello.<|end|>\n<|user|>\nBye<|end|>\n<|assistant|>\n",
            ),
            (
                "phi4",
                "<|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|>Hi<|im_end|><|im_start|>assistant<|im_sep|>Hello.<|im_end|><|im_start|>user<|im_sep|>Bye<|im_end|><|im_start|>assistant<|im_sep|>",
            ),
            (
                "vicuna",
                "<s>Be brief. USER: Hi ASSISTANT: Hello.</s>USER: Bye ASSISTANT:",
            ),
            (
                "zephyr",
                "<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\nHello.</s>\n<|user|>\nBye</s>\n<|assistant|>\n",
            ),
        ];
        for (name, expected) in cases {
            let rendered = render(named_chat_template(name), &chat);
            assert_eq!(rendered.as_deref(), Ok(expected), "{name}");
        }
        assert!(chat_template_names().eq(cases.map(|(name, _)| name)));
        assert_eq!(named_chat_template("nobody"), None);
        let without_system = render(named_chat_template("llama2"), &chat[1..2]);
        assert_eq!(without_system.as_deref(), Ok("<s>[INST] Hi [/INST]"));
        let tool = render(named_chat_template("llama2"), &[message("tool", "21")]);
        assert!(matches!(tool, Err(TextError::Template(_))), "{tool:?}");
    }

    #[test]
    fn values_nested_as_deep_as_the_fuel_lasts_do_not_overflow_the_stack() {
        let lists = |times: usize| {
            let (open, close) = ("[".repeat(50), "]".repeat(50));
            format!(
                "{{% set ns = namespace(x=[]) %}}{{% for i in range({times}) %}}{{% set ns.x = {open}ns.x{close} %}}{{% endfor %}}"
            )
        };
        let maps = "{% set ns = namespace(x={}) %}{% for i in range(20000) %}{% set ns.x = {'a': ns.x} %}{% endfor %}";
        // The first number uses most of the fuel, the second all of it.
        for build in [lists(6000), lists(90_000), maps.to_owned()] {
            for uses in [
                "",
                "{{ ns.x }}",
                "{{ ns.x | tojson }}",
                "{{ ns.x | tojson(indent=1, sort_keys=true) }}",
                "{% if ns.x == [ns.x] or ns.x < [ns.x] %}{% endif %}",
                "{{ [ns.x, [ns.x]] | unique | sort | length }}",
                "{{ {ns.x: 1} | length }}",
            ] {
                // Whether it renders is no matter; that it returns is.
                let _ = render(Some(&format!("{build}{uses}")), &[]);
            }
        }
        let macros = "{% macro m(x) %}{{ m([x]) }}{% endmacro %}{{ m([]) }}";
        assert!(matches!(
            render(Some(macros), &[]),
            Err(TextError::Template(_))
        ));
    }

    #[test]
    fn what_takes_more_room_than_the_fuel_pays_for_is_cut_off() {
        let huge = [
            "'%999999999d' % 1",
            "'%*d' % (999999999, 1)",
            "'{:>999999999}'.format('x')",
            "'{:{}}'.format('x', 999999999)",
            "'%.99999999f' % 1",
            "'x'.center(999999999)",
            "'x'.zfill(999999999)",
            "'x' | center(999999999)",
            "'a\n' | indent(999999999)",
            "('\t' * 100000).expandtabs(10000)",
            "('a' * 10000).replace('', 'b' * 10000)",
            "('a' * 10000) | replace('a', 'b' * 10000)",
            "('b' * 10000).join('a' * 10000)",
            "('%(a)s' * 10000) % {'a': 'b' * 10000}",
            "('{0}' * 10000).format('b' * 10000)",
            "['b' * 10000] * 10000",
            "[['b' * 10000] * 10000] | tojson",
            "(['b' * 10000] * 10000) | join",
            "(['b' * 10000] * 10000) ~ ''",
            "('a' * 10000).translate({97: 'b' * 10000})",
            "('a' * 10000) | wordwrap(1, true, 'b' * 10000)",
        ];
        for expression in huge {
            let error = render(Some(&format!("{{{{ {expression} }}}}")), &[]);
            assert!(matches!(error, Err(TextError::Template(_))), "{expression}");
        }
    }

    #[test]
    fn comparing_and_looking_at_much_is_cut_off() {
        let doubled = "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}";
        for uses in [
            "ns.x == ns.y",
            "ns.x != ns.y",
            "ns.x < ns.y",
            "1 < 2 and ns.x == ns.y",
            "ns.x in [ns.y]",
            "ns.x not in [ns.y]",
            "ns.x is eq ns.y",
            "[ns.x] | select('eq', ns.y) | list",
            "[ns.x, ns.y] | sort",
            "[ns.x, ns.y] | unique | list",
            "[ns.x, ns.y] | max",
            "[ns.x].index(ns.y)",
            "[ns.x].count(ns.y)",
        ] {
            let error = render(Some(&format!("{doubled}{{{{ {uses} }}}}")), &[]);
            assert!(matches!(error, Err(TextError::Template(_))), "{uses}");
        }
        let long = "{% set x = 'ab' * 400000 %}{% set l = range(90000) | list %}{% for i in range(100000) %}";
        for uses in [
            "x.isalpha()",
            "x is lower",
            "l.index(89999)",
            "l.count(5)",
            "x.find('c')",
        ] {
            let error = render(
                Some(&format!(
                    "{long}{{% if {uses} %}}{{% endif %}}{{% endfor %}}"
                )),
                &[],
            );
            assert!(matches!(error, Err(TextError::Template(_))), "{uses}");
        }
    }

    #[test]
    fn a_template_that_doubles_its_memory_is_cut_off() {
        let source = "{% set ns = namespace(x='xxxxxxxx') %}{% for a in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}";
        let error = render(Some(source), &[]);
        assert!(matches!(error, Err(TextError::Template(_))), "{error:?}");
    }

    /// A call without other content, as clients send it.
    fn call(arguments_json: &str) -> [ChatMessage; 3] {
        let function = json!({"name": "f", "arguments": arguments_json});
        let calls = json!([{"id": "c1", "type": "function", "function": function}]);
        let assistant = ChatMessage::new("assistant", ()).with("tool_calls", calls);
        [message("user", "x"), assistant, message("tool", "r")]
    }

    #[test]
    fn a_template_gets_messages_in_the_form_that_it_expects() {
        let parts = "{% for m in messages %}<{{ m.role }}>{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}";
        let none = "{% for m in messages %}<{{ m.role }}>{% if m.content is none %}{% for c in m.tool_calls %}CALL {{ c.function.name }} {{ c.function.arguments | tojson }}{% endfor %}{% else %}{{ m.content }}{% endif %}{% endfor %}";
        let glued = "{% for m in messages %}<{{ m.role }}>{% for c in m.tool_calls or [] %}{{ 'CALL ' + c['function']['name'] + ' ' + c['function']['arguments'] }}{% endfor %}{{ m.content or '' }}{% endfor %}";
        let printed = "{% for m in messages %}<{{ m.role }}>{% for c in m.tool_calls or [] %}{{ c.function.arguments }}{% endfor %}{{ m.content }}{% endfor %}";
        let items = "{% for m in messages %}<{{ m.role }}>{% for c in m.tool_calls or [] %}{{ c.function.name }}({% for k, v in c.function.arguments | items %}{{ k }}={{ v }};{% endfor %}){% endfor %}{{ m.content or '' }}{% endfor %}";
        let hello = [message("user", "hello")];
        let cases: [(&str, &[ChatMessage], &str); 8] = [
            (parts, &hello, "<user>hello"),
            (none, &hello, "<user>hello"),
            (
                none,
                &call("{\"a\": 1}"),
                "<user>x<assistant>CALL f {\"a\": 1}<tool>r",
            ),
            (
                glued,
                &call("{\"a\": \"é\"}"),
                "<user>x<assistant>CALL f {\"a\": \"é\"}<tool>r",
            ),
            (glued, &call("{}"), "<user>x<assistant>CALL f {}<tool>r"),
            (
                printed,
                &call("{\"a\":1}"),
                "<user>x<assistant>{\"a\":1}<tool>r",
            ),
            (
                items,
                &call("{\"a\": 1, \"b\": \"two\"}"),
                "<user>x<assistant>f(a=1;b=two;)<tool>r",
            ),
            (items, &call("{}"), "<user>x<assistant>f()<tool>r"),
        ];
        for (template, chat, expected) in cases {
            assert_eq!(
                render(Some(template), chat).as_deref(),
                Ok(expected),
                "{template}"
            );
        }
    }

    #[test]
    fn texts_and_tests_are_pythons() {
        let cases = [
            ("'a-b-c'.rsplit('-', 1) | tojson", r#"["a-b", "c"]"#),
            ("'a-b-c'.rsplit('-') | tojson", r#"["a", "b", "c"]"#),
            ("' a  b c '.rsplit(none, 1) | tojson", r#"[" a  b", "c"]"#),
            ("' a  b c '.rsplit() | tojson", r#"["a", "b", "c"]"#),
            ("'a-b-c'.partition('-') | tojson", r#"["a", "-", "b-c"]"#),
            ("'abc'.partition('-') | tojson", r#"["abc", "", ""]"#),
            ("'a-b-c'.rpartition('-') | tojson", r#"["a-b", "-", "c"]"#),
            ("'abc'.rpartition('-') | tojson", r#"["", "", "abc"]"#),
            (
                "'abab'.removeprefix('ab') ~ 'abab'.removesuffix('b')",
                "ababa",
            ),
            (
                "[[] is sequence, 'a' is sequence, {} is sequence, 1 is sequence, none is sequence] | tojson",
                "[true, true, true, false, false]",
            ),
        ];
        for (expression, expected) in cases {
            let source = format!("{{{{ {expression} }}}}");
            assert_eq!(
                render(Some(&source), &[]).as_deref(),
                Ok(expected),
                "{expression}"
            );
        }
        let cycled = "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}";
        assert_eq!(render(Some(cycled), &[]).as_deref(), Ok("aba"));
    }

    #[test]
    fn bad_source_is_refused_when_the_model_loads() {
        assert!(matches!(
            render(Some("{% if %}"), &[]),
            Err(TextError::TemplateSyntax(_))
        ));
    }

    /// The parser bounds how deep brackets and blocks are nested, but not how long a chain is, and a chain is a nested
    /// expression too. The time for one grows with the square of its length, so these are not the longest.
    #[test]
    fn an_expression_as_deep_as_its_source_is_long_ends_no_process() {
        for link in ["~x", "|a", ".a", "()", " if x"] {
            let links = link.repeat(SOURCE_BYTES_MAX / 4 / link.len());
            // Whether it is wrong does not matter.
            let _ = render(Some(&format!("{{{{ x{links} }}}}")), &[]);
        }
        for prefix in ["not ", "-", "(", "[", "{0:"] {
            let prefixes = prefix.repeat(SOURCE_BYTES_MAX / 4 / prefix.len());
            let _ = render(Some(&format!("{{{{ {prefixes}x }}}}")), &[]);
        }
        let long = "x".repeat(SOURCE_BYTES_MAX + 1);
        let refused = render(Some(&long), &[]);
        assert!(matches!(refused, Err(TextError::TemplateSyntax(_))));
        let fits = render(Some(&long[1..]), &[]);
        assert_eq!(fits.map(|text| text.len()), Ok(SOURCE_BYTES_MAX));
    }
}
