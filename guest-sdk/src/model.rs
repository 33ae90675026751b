//! Models, and token sequences with KV behind them.

use crate::bindings::realm::llm::{model, sequence};
use crate::json::{Map, Value};
use crate::{Content, ContentPart, Error, Facts, Message, PromptEnd, Token, Tool, ToolCall};

/// A model the tenant may use.
#[derive(Debug)]
pub struct Model(model::Model);

impl Model {
    /// Opens a base model or alias by name; [`Request::model`](crate::Request::model) is the one the client means.
    ///
    /// # Errors
    /// `Denied` when the tenant has no such model.
    pub fn open(name: &str) -> Result<Model, Error> {
        model::Model::open(name).map(Model)
    }

    /// Context length, vocabulary and abilities.
    pub fn facts(&self) -> Facts {
        self.0.facts()
    }

    /// Tokens of plain text; names of control tokens in it stay text, and none is added that begins or ends a text.
    ///
    /// # Errors
    /// `Invalid` when the text is over the host's limit.
    pub fn encode(&self, text: &str) -> Result<Vec<Token>, Error> {
        self.0.encode(text)
    }

    /// The text of tokens; half a character at either end becomes U+FFFD.
    ///
    /// # Errors
    /// `Invalid` when there are more tokens than the host accepts.
    pub fn decode(&self, tokens: &[Token]) -> Result<String, Error> {
        Ok(String::from_utf8_lossy(&self.0.decode(tokens)?).into_owned())
    }

    /// Tokens of a chat by the model's own template, which the model is to answer.
    ///
    /// # Errors
    /// Those of [`Model::render_with`].
    pub fn render(&self, messages: &[Message]) -> Result<Vec<Token>, Error> {
        self.render_with(messages, &[], PromptEnd::OpenTurn, &Map::new())
    }

    /// The same with tools, another end, and what else the template is to know by name, as a switch of its own.
    /// [`Request::tools`](crate::Request::tools), [`Request::prompt_end`](crate::Request::prompt_end) and
    /// [`Request::variables`](crate::Request::variables) are what the client said.
    ///
    /// # Errors
    /// `Invalid` when the template refuses the messages, or has no place for something in them.
    pub fn render_with(
        &self,
        messages: &[Message],
        tools: &[Tool],
        end: PromptEnd,
        variables: &Map<String, Value>,
    ) -> Result<Vec<Token>, Error> {
        let variables = serde_json::to_string(variables)?;
        self.0.render(messages, tools, end, &variables)
    }

    /// A new, empty sequence.
    ///
    /// # Errors
    /// `Quota` when the tenant holds too many blocks, `Overloaded` when the host is full.
    pub fn sequence(&self) -> Result<Sequence, Error> {
        sequence::Sequence::create(&self.0).map(Sequence)
    }
}

/// Tokens of one context with the KV behind them. Dropping it frees its blocks.
///
/// While a [`Run`](crate::Run) decodes a sequence it belongs to that run.
#[derive(Debug)]
pub struct Sequence(pub(crate) sequence::Sequence);

impl Sequence {
    /// Adds tokens and returns the new length. Prefill starts at once and is not waited for.
    ///
    /// # Errors
    /// `ContextFull` with the room left; `Invalid` for ids outside the vocabulary.
    pub fn append(&self, tokens: &[Token]) -> Result<u32, Error> {
        self.0.append(tokens)
    }

    /// A second sequence with the same tokens, in constant time: blocks are shared until one side writes.
    ///
    /// # Errors
    /// `Quota` or `Overloaded`, as for a new sequence.
    pub fn fork(&self) -> Result<Sequence, Error> {
        self.0.fork().map(Sequence)
    }

    /// This sequence and its forks, `n` together, for answering one prompt several ways.
    ///
    /// # Errors
    /// Those of [`Sequence::fork`].
    pub fn split(self, n: u32) -> Result<Vec<Sequence>, Error> {
        let mut all = Vec::new();
        for _ in 1..n {
            all.push(self.fork()?);
        }
        all.insert(0, self);
        Ok(all)
    }

    /// Forgets everything from position `length` on.
    ///
    /// # Errors
    /// `Invalid` beyond the end; `Unsupported` for models whose state cannot be rewound.
    pub fn rewind(&self, length: u32) -> Result<(), Error> {
        self.0.rewind(length)
    }

    /// How many tokens it holds.
    ///
    /// # Errors
    /// Those of a host that is going away.
    pub fn length(&self) -> Result<u32, Error> {
        self.0.length()
    }

    /// The tokens of positions `start..end`.
    ///
    /// # Errors
    /// `Invalid` when the range does not lie inside the sequence.
    pub fn tokens(&self, start: u32, end: u32) -> Result<Vec<Token>, Error> {
        self.0.tokens(start, end)
    }
}

impl Message {
    /// What a user says.
    pub fn user(content: impl Into<Content>) -> Message {
        Message::new("user", content)
    }

    /// What the model is told before anything else.
    pub fn system(content: impl Into<Content>) -> Message {
        Message::new("system", content)
    }

    /// What the model has answered.
    pub fn assistant(content: impl Into<Content>) -> Message {
        Message::new("assistant", content)
    }

    /// What a tool answers to the call of this id.
    pub fn tool(call_id: impl Into<String>, content: impl Into<Content>) -> Message {
        Message {
            tool_call_id: Some(call_id.into()),
            ..Message::new("tool", content)
        }
    }

    /// A message of any role, with nothing but a content.
    pub fn new(role: &str, content: impl Into<Content>) -> Message {
        Message {
            role: role.to_owned(),
            content: content.into(),
            name: None,
            tool_call_id: None,
            tool_calls: Vec::new(),
            more_json: "{}".to_owned(),
        }
    }

    /// What it says as one text: that of its parts one after the other.
    pub fn text(&self) -> String {
        match &self.content {
            Content::Absent => String::new(),
            Content::Text(text) => text.clone(),
            Content::Parts(parts) => {
                let texts = parts.iter().map(|part| match part {
                    ContentPart::Text(text) => text.clone(),
                    ContentPart::Json(json) => part_text(json),
                });
                texts.collect()
            }
        }
    }

    /// Its other fields, as `reasoning_content`.
    ///
    /// # Errors
    /// `Invalid` when somebody has put something else than a JSON object there.
    pub fn more(&self) -> Result<Map<String, Value>, Error> {
        Ok(serde_json::from_str(&self.more_json)?)
    }

    /// The same message with these as its other fields.
    #[must_use]
    pub fn with_more(mut self, more: Map<String, Value>) -> Message {
        self.more_json = Value::Object(more).to_string();
        self
    }
}

/// The text of a part that has more to it than text.
fn part_text(json: &str) -> String {
    let part: Value = serde_json::from_str(json).unwrap_or_default();
    part["text"].as_str().unwrap_or_default().to_owned()
}

impl From<&str> for Content {
    fn from(text: &str) -> Content {
        Content::Text(text.to_owned())
    }
}

impl From<String> for Content {
    fn from(text: String) -> Content {
        Content::Text(text)
    }
}

impl ToolCall {
    /// A call of a function; its arguments are a JSON object.
    pub fn new(id: &str, name: &str, arguments: &Value) -> ToolCall {
        ToolCall {
            id: id.to_owned(),
            name: name.to_owned(),
            arguments_json: arguments.to_string(),
            more_json: "{}".to_owned(),
        }
    }
}
