//! Models, and token sequences with KV behind them.

use crate::bindings::realm::llm::{model, sequence};
use crate::{Error, Facts, Message, Role, Token, Tool};

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

    /// Tokens of a chat by the model's own template; `open_turn` adds the header of the assistant's turn.
    ///
    /// # Errors
    /// `Invalid` when the template refuses the messages.
    pub fn render(
        &self,
        messages: &[Message],
        tools: &[Tool],
        open_turn: bool,
    ) -> Result<Vec<Token>, Error> {
        self.0.render(messages, tools, open_turn)
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
    pub fn user(content: impl Into<String>) -> Message {
        Message::new(Role::User, content)
    }

    /// A message without a name, and without tools.
    pub fn new(role: Role, content: impl Into<String>) -> Message {
        Message {
            role,
            content: content.into(),
            name: None,
            tool_call_id: None,
            tool_calls: Vec::new(),
        }
    }
}
