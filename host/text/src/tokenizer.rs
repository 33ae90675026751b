//! The tokenizer of a model: control tokens first, then byte-level BPE, SentencePiece or WordPiece on the text between them.

mod byte_level;
#[cfg(test)]
mod long_texts;
mod sentence_piece;
mod sink;
mod special;
mod special_ids;
mod vocabulary;
mod windows;
mod word_piece;
mod words;

use crate::chat::Chat;
use crate::chat_template::{ChatTemplates, Room, kept};
use crate::offsets::{Cursor, Origin};
use crate::{Detokenizer, TextError};
use byte_level::ByteLevel;
use sentence_piece::SentencePiece;
use sink::{Full, Sink};
use special::{Piece, SpecialTokens};
use vocabulary::{Kind, Vocabulary};
use windows::{MERGE_BYTES, WINDOW_BYTES};
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
    /// The same for chats with tools, where there is one of its own.
    pub chat_template_tools: Option<String>,
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
    templates: ChatTemplates,
    bos: Option<u32>,
    add_bos: bool,
    sep: Option<u32>,
    unk: Option<u32>,
    /// The most bytes of a text that one token stands for; `usize::MAX` where it may be any number.
    token_text_bytes_max: usize,
    /// Which bytes of a text come into its tokens.
    kept_bytes: [bool; 256],
}

impl TextModel {
    /// Checks `source` and builds the tokenizer and the chat template of it. A template that does not parse costs only
    /// chats: [`TextModel::check_chat_template`] says why.
    ///
    /// # Errors
    /// Names what is wrong with the vocabulary or the merges.
    pub fn new(mut source: TextSource) -> Result<TextModel, TextError> {
        let family = Family::of(&source.model)?;
        special_ids::settle(&mut source, family);
        let vocabulary = Vocabulary::new(&source, family)?;
        let special = SpecialTokens::new(&source.tokens, &vocabulary)?;
        let text_of = |id: Option<u32>| {
            id.map(|id| source.tokens[id as usize].clone())
                .unwrap_or_default()
        };
        let templates = ChatTemplates::new(&source, text_of(source.bos), text_of(source.eos));
        let add_bos_default = match family {
            Family::ByteLevel => words::rule(source.pre.as_deref())?.add_bos,
            Family::SentencePiece | Family::WordPiece => true,
        };
        let (bos, add_bos) = (source.bos, source.add_bos.unwrap_or(add_bos_default));
        let unk = source.unk;
        let sep = source.sep.filter(|_| family == Family::WordPiece);
        let longest = longest_token(&source, family);
        let algorithm = match family {
            Family::ByteLevel => Algorithm::ByteLevel(Box::new(ByteLevel::new(source)?)),
            Family::SentencePiece => {
                Algorithm::SentencePiece(Box::new(SentencePiece::new(source)?))
            }
            Family::WordPiece => Algorithm::WordPiece(Box::new(WordPiece::new(&source)?)),
        };
        let kept_bytes = match &algorithm {
            Algorithm::ByteLevel(bpe) => *bpe.known_bytes(),
            Algorithm::SentencePiece(_) | Algorithm::WordPiece(_) => [true; 256],
        };
        Ok(TextModel {
            token_text_bytes_max: longest,
            kept_bytes,
            vocabulary,
            special,
            algorithm,
            templates,
            bos,
            add_bos,
            sep,
            unk,
        })
    }

    /// The tokens of a text, in front of them `bos` if `add_bos` is set and the model wants one; after them `sep` where a
    /// model has it. Neither is added to a text that brings it.
    ///
    /// It takes [`TextModel::encode_bytes_max`] of memory, which hardly grows with the text.
    ///
    /// # Errors
    /// [`TextError::TextTooLong`] before any work if the text cannot fit in `tokens_max` tokens, and
    /// [`TextError::TooManyTokens`] as soon as it turns out not to.
    pub fn encode(
        &self,
        text: &str,
        specials: Specials,
        add_bos: bool,
        tokens_max: usize,
    ) -> Result<Vec<u32>, TextError> {
        let (bytes, bytes_max) = (text.len(), self.text_bytes_max(tokens_max));
        if bytes > bytes_max && kept(&self.kept_bytes, text.as_bytes()) > bytes_max {
            return Err(TextError::TextTooLong {
                bytes,
                bytes_max,
                tokens_max,
            });
        }
        let mut sink = Sink::new(tokens_max, bytes / 4 + 2);
        match self.encode_into(text, specials, add_bos, &mut sink) {
            Ok(()) => Ok(sink.into_ids()),
            Err(Full) => Err(TextError::TooManyTokens { bytes, tokens_max }),
        }
    }

    fn encode_into(
        &self,
        text: &str,
        specials: Specials,
        add_bos: bool,
        sink: &mut Sink,
    ) -> Result<(), Full> {
        let mut pieces = self.special.split(text, specials).peekable();
        if add_bos && self.add_bos && !is_special(pieces.peek(), self.bos) {
            sink.extend(self.bos)?;
        }
        let (mut after_special, mut last) = (true, None);
        for piece in pieces {
            match piece {
                Piece::Special(id) => sink.push(id)?,
                Piece::Text(text) => match &self.algorithm {
                    Algorithm::ByteLevel(bpe) => bpe.encode(text, sink)?,
                    Algorithm::SentencePiece(pieces) => pieces.encode(text, after_special, sink)?,
                    Algorithm::WordPiece(pieces) => pieces.encode(text, sink)?,
                },
            }
            after_special = matches!(piece, Piece::Special(_));
            last = Some(piece);
        }
        if add_bos && !is_special(last.as_ref(), self.sep) {
            sink.extend(self.sep)?;
        }
        Ok(())
    }

    /// Bytes of memory that [`TextModel::encode`] takes at most for a text of `bytes` bytes, its tokens included.
    pub fn encode_bytes_max(&self, bytes: usize, tokens_max: usize) -> usize {
        // A list that grows is at most half full, and for a moment there are both the old one and the new one.
        let tokens = bytes.saturating_add(2).min(tokens_max);
        let list = tokens.saturating_mul(3 * size_of::<u32>());
        bytes.min(2 * WINDOW_BYTES) * MERGE_BYTES + list
    }

    /// The same of [`TextModel::chat_tokens`] for messages of `bytes` bytes, where the template does not repeat them.
    pub fn chat_bytes_max(&self, bytes: usize, tokens_max: usize) -> usize {
        // The template's copy, and what it wrote, which is a list that grows.
        let rendered = bytes.saturating_mul(4);
        rendered.saturating_add(self.encode_bytes_max(bytes, tokens_max))
    }

    /// The bytes of the longest text that could fit in `tokens` tokens, bytes that the vocabulary lacks not counted.
    /// `usize::MAX` where there is no such length, because any word may be one token, and accents none.
    pub fn text_bytes_max(&self, tokens: usize) -> usize {
        tokens.saturating_mul(self.token_text_bytes_max)
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

    /// Where each token of `text` begins in it, in characters. A token that the text does not have, as the one that begins
    /// it or a space in front of it, takes no room; one that is a part of a character begins where the character does.
    pub fn offsets(&self, text: &str, ids: &[u32]) -> Vec<usize> {
        let mut cursor = Cursor::new(text);
        let offset = |id: &u32| match self.vocabulary.control_name(*id) {
            Some(name) if Some(*id) == self.unk => cursor.pass(name.as_bytes(), Origin::Unknown),
            Some(name) => cursor.pass(name.as_bytes(), Origin::Control),
            None => cursor.pass(self.token_bytes(*id), Origin::Text),
        };
        ids.iter().map(offset).collect()
    }

    /// Whether a token is a control token, which is no part of the text.
    pub fn is_control(&self, id: u32) -> bool {
        self.vocabulary.control_name(id).is_some()
    }

    /// Whether generation ends with this token: end of text, of turn, or a control token known for it.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.vocabulary.is_end(id)
    }

    /// All the tokens with which generation ends.
    pub fn ends_of_generation(&self) -> impl Iterator<Item = u32> {
        self.vocabulary.ends_of_generation()
    }

    /// The token that stands for what the vocabulary lacks.
    pub fn unknown(&self) -> Option<u32> {
        self.unk
    }

    /// Number of tokens.
    pub fn vocab_size(&self) -> u32 {
        self.vocabulary.len()
    }

    /// Whether there can be all chats.
    ///
    /// # Errors
    /// [`TextError::TemplateSyntax`] says what is wrong with a template.
    pub fn check_chat_template(&self) -> Result<(), TextError> {
        self.templates.check()
    }

    /// Refuses a chat of which the model's template would pass over something: it is not to be lost without a word.
    ///
    /// # Errors
    /// [`TextError::NoPlace`] and [`TextError::NothingToContinue`], with the field; [`TextError::TemplateSyntax`] where there
    /// can be no chat.
    pub fn check_chat(&self, chat: &Chat) -> Result<(), TextError> {
        self.templates.for_chat(chat)?.check(chat)
    }

    /// A chat as the model was trained to read it.
    ///
    /// # Errors
    /// Those of [`TextModel::check_chat`]; [`TextError::Template`] when the model's template refuses the messages or makes
    /// too much of them.
    pub fn render_chat(&self, chat: &Chat) -> Result<String, TextError> {
        self.templates.for_chat(chat)?.render(chat, Room::ALL)
    }

    /// The tokens of a chat, as [`TextModel::encode`] gives them: a `bos` that the template writes is not doubled.
    ///
    /// # Errors
    /// Those of [`TextModel::render_chat`]; [`TextError::ChatTooLong`] as soon as more is rendered than fits in
    /// `tokens_max` tokens, and [`TextError::TooManyTokens`] as soon as it takes more.
    pub fn chat_tokens(&self, chat: &Chat, tokens_max: usize) -> Result<Vec<u32>, TextError> {
        let bytes_max = self.text_bytes_max(tokens_max);
        let room = Room {
            kept_max: bytes_max,
            kept_bytes: &self.kept_bytes,
        };
        let rendered = self.templates.for_chat(chat)?.render(chat, room);
        let rendered = rendered.map_err(|error| match error {
            TextError::RenderedTooLong { bytes_max: most } if bytes_max <= most => {
                TextError::ChatTooLong {
                    bytes_max,
                    tokens_max,
                }
            }
            error => error,
        })?;
        self.encode(&rendered, Specials::Parse, true, tokens_max)
    }
}

/// Whether a piece is this special token.
fn is_special(piece: Option<&Piece<'_>>, wanted: Option<u32>) -> bool {
    matches!(piece, Some(Piece::Special(id)) if Some(*id) == wanted)
}

/// The most bytes of a text that one token of the vocabulary can stand for.
fn longest_token(source: &TextSource, family: Family) -> usize {
    if family == Family::WordPiece {
        return usize::MAX;
    }
    let bytes = source.tokens.iter().enumerate().map(|(id, token)| {
        match (family, vocabulary::kind_of(source, id)) {
            // One letter a byte.
            (Family::ByteLevel, Kind::Normal | Kind::Byte) => token.chars().count(),
            _ => token.len(),
        }
    });
    // The unknown token stands for a byte, however short its name is.
    bytes.max().unwrap_or(0).max(1)
}
