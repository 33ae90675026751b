//! The tokenizer of a model: control tokens first, then byte-level BPE, SentencePiece or WordPiece on the text between them.

mod byte_level;
mod sentence_piece;
mod special;
mod vocabulary;
mod word_piece;
mod words;

use crate::chat_template::{ChatMessage, ChatTemplate};
use crate::{Detokenizer, TextError};
use byte_level::ByteLevel;
use sentence_piece::SentencePiece;
use special::{Piece, SpecialTokens};
use vocabulary::Vocabulary;
use word_piece::WordPiece;

/// What a model file says about its text, in the file's own terms. Nothing here is trusted.
#[derive(Debug, Clone, Default)]
pub struct TextSource {
    /// `gpt2` (byte-level BPE), `llama` (SentencePiece) or `bert` (WordPiece).
    pub model: String,
    /// How `gpt2` cuts text into words: `smollm`, `llama-bpe`, `qwen2`, ….
    pub pre: Option<String>,
    /// The vocabulary; the place of a token is its id.
    pub tokens: Vec<String>,
    /// `llama`: what a token is worth; merges with higher scores come first.
    pub scores: Vec<f32>,
    /// 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte. Empty: all normal.
    pub token_types: Vec<i32>,
    /// `gpt2`: pairs to join, two tokens with a space between, most important first.
    pub merges: Vec<String>,
    /// Begins a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Ends a turn.
    pub eot: Option<u32>,
    /// `bert`: ends a text, which is read as a whole.
    pub sep: Option<u32>,
    /// Stands for what the vocabulary lacks.
    pub unk: Option<u32>,
    /// Fills batches; never generated on purpose.
    pub pad: Option<u32>,
    /// Whether texts begin with `bos`; the default depends on the model.
    pub add_bos: Option<bool>,
    /// Whether texts end with `eos`: for training. A prompt is there to be continued, so nothing here adds it.
    pub add_eos: Option<bool>,
    /// `llama`: whether a space goes in front of a text; the default is yes.
    pub add_space_prefix: Option<bool>,
    /// Jinja source.
    pub chat_template: Option<String>,
}

/// What to make of the names of control tokens in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Specials {
    /// They are the tokens: for text that a template rendered.
    Parse,
    /// They are text like any other: for text of strangers.
    Literal,
}

/// The kinds of tokenizer there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    ByteLevel,
    SentencePiece,
    WordPiece,
}

impl Family {
    fn of(model: &str) -> Result<Family, TextError> {
        match model {
            "gpt2" => Ok(Family::ByteLevel),
            "llama" => Ok(Family::SentencePiece),
            "bert" => Ok(Family::WordPiece),
            _ => Err(TextError::UnknownModel {
                found: model.to_owned(),
            }),
        }
    }
}

/// The algorithm between the special tokens.
#[derive(Debug)]
enum Algorithm {
    ByteLevel(Box<ByteLevel>),
    SentencePiece(Box<SentencePiece>),
    WordPiece(Box<WordPiece>),
}

/// Everything a model knows about text. Immutable; share it by `Arc`.
#[derive(Debug)]
pub struct TextModel {
    vocabulary: Vocabulary,
    special: SpecialTokens,
    algorithm: Algorithm,
    template: ChatTemplate,
    bos: Option<u32>,
    add_bos: bool,
    sep: Option<u32>,
}

impl TextModel {
    /// Checks `source` and builds the tokenizer and the chat template of it.
    ///
    /// # Errors
    /// Names what is wrong with the vocabulary, the merges or the template.
    pub fn new(source: TextSource) -> Result<TextModel, TextError> {
        let family = Family::of(&source.model)?;
        let vocabulary = Vocabulary::new(&source, family)?;
        let special = SpecialTokens::new(&source.tokens, &vocabulary)?;
        let text_of = |id: Option<u32>| {
            id.map(|id| source.tokens[id as usize].clone())
                .unwrap_or_default()
        };
        let template = ChatTemplate::new(
            source.chat_template.as_deref(),
            &source.tokens,
            text_of(source.bos),
            text_of(source.eos),
        )?;
        let add_bos_default = match family {
            Family::ByteLevel => words::rule(source.pre.as_deref())?.add_bos,
            Family::SentencePiece | Family::WordPiece => true,
        };
        let (bos, add_bos) = (source.bos, source.add_bos.unwrap_or(add_bos_default));
        let sep = source.sep.filter(|_| family == Family::WordPiece);
        let algorithm = match family {
            Family::ByteLevel => Algorithm::ByteLevel(Box::new(ByteLevel::new(source)?)),
            Family::SentencePiece => {
                Algorithm::SentencePiece(Box::new(SentencePiece::new(source)?))
            }
            Family::WordPiece => Algorithm::WordPiece(Box::new(WordPiece::new(&source)?)),
        };
        Ok(TextModel {
            vocabulary,
            special,
            algorithm,
            template,
            bos,
            add_bos,
            sep,
        })
    }

    /// The tokens of a text, in front of them `bos` if `add_bos` is set and the model wants one; after them `sep` where a
    /// model has it.
    pub fn encode(&self, text: &str, specials: Specials, add_bos: bool) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 1);
        if add_bos && self.add_bos {
            ids.extend(self.bos);
        }
        let mut after_special = true;
        for piece in self.special.split(text, specials) {
            match piece {
                Piece::Special(id) => ids.push(id),
                Piece::Text(text) => match &self.algorithm {
                    Algorithm::ByteLevel(bpe) => bpe.encode(text, &mut ids),
                    Algorithm::SentencePiece(pieces) => {
                        pieces.encode(text, after_special, &mut ids)
                    }
                    Algorithm::WordPiece(pieces) => pieces.encode(text, &mut ids),
                },
            }
            after_special = matches!(piece, Piece::Special(_));
        }
        if add_bos {
            ids.extend(self.sep);
        }
        ids
    }

    /// The bytes a token adds to a text: none for control tokens and for ids outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.vocabulary.bytes(id)
    }

    /// A token for people to read: control tokens by their name, broken characters as U+FFFD.
    pub fn token_text(&self, id: u32) -> String {
        match self.vocabulary.control_name(id) {
            Some(name) => name.to_owned(),
            None => String::from_utf8_lossy(self.token_bytes(id)).into_owned(),
        }
    }

    /// The bytes of several tokens.
    pub fn decode(&self, ids: &[u32]) -> Vec<u8> {
        ids.iter()
            .flat_map(|id| self.token_bytes(*id))
            .copied()
            .collect()
    }

    /// The text of several tokens, as a [`Detokenizer`] would give it.
    pub fn decode_text(&self, ids: &[u32]) -> String {
        let mut detokenizer = Detokenizer::new();
        let mut text: String = ids
            .iter()
            .map(|id| detokenizer.push(self.token_bytes(*id)))
            .collect();
        text.push_str(&detokenizer.finish());
        text
    }

    /// Whether a token is a control token, which is no part of the text.
    pub fn is_control(&self, id: u32) -> bool {
        self.vocabulary.control_name(id).is_some()
    }

    /// Whether generation ends with this token: end of text, of turn, or a control token known for it.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.vocabulary.is_end(id)
    }

    /// Number of tokens.
    pub fn vocab_size(&self) -> u32 {
        self.vocabulary.len()
    }

    /// A chat as the model was trained to read it; `open_turn` adds the header of the assistant's turn.
    ///
    /// # Errors
    /// [`TextError::Template`] when the model's template refuses the messages.
    pub fn render_chat(
        &self,
        messages: &[ChatMessage],
        tools: &[serde_json::Value],
        open_turn: bool,
    ) -> Result<String, TextError> {
        self.template.render(messages, tools, open_turn)
    }

    /// The tokens of a chat. A `bos` that the template writes is not doubled.
    ///
    /// # Errors
    /// Those of [`TextModel::render_chat`].
    pub fn chat_tokens(
        &self,
        messages: &[ChatMessage],
        tools: &[serde_json::Value],
        open_turn: bool,
    ) -> Result<Vec<u32>, TextError> {
        let rendered = self.render_chat(messages, tools, open_turn)?;
        let mut ids = self.encode(&rendered, Specials::Parse, false);
        if let Some(bos) = self
            .bos
            .filter(|bos| self.add_bos && ids.first() != Some(bos))
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }
}
