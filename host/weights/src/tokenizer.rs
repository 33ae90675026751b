//! What a model's files say of its tokenizer, and how GGUF says it.

use crate::error::SourceError;
use crate::metadata::Metadata;

/// What a tokenizer and a chat template are made of. The place of a token in `tokens` is its id.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenizerData {
    /// The kind: `gpt2` (byte-level BPE), `llama` (SentencePiece) or `bert` (WordPiece).
    pub model: String,
    /// How text is cut into words, by name.
    pub pre: Option<String>,
    /// The vocabulary.
    pub tokens: Vec<String>,
    /// What each token is worth; may be empty.
    pub scores: Vec<f32>,
    /// The type of each token, as GGUF numbers them; may be empty.
    pub token_types: Vec<i32>,
    /// Pairs of tokens to join, most important first; may be empty.
    pub merges: Vec<String>,
    /// Begins a text. This and the other ids may lie outside the vocabulary.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Ends a turn.
    pub eot: Option<u32>,
    /// Separates texts.
    pub sep: Option<u32>,
    /// Stands for what the vocabulary lacks.
    pub unk: Option<u32>,
    /// Fills batches.
    pub pad: Option<u32>,
    /// Whether texts begin with `bos`.
    pub add_bos: Option<bool>,
    /// Whether texts end with `eos`.
    pub add_eos: Option<bool>,
    /// Whether a space goes in front of a text.
    pub add_space_prefix: Option<bool>,
    /// Jinja source.
    pub chat_template: Option<String>,
    /// The same for chats with tools, where there is one of its own.
    pub chat_template_tools: Option<String>,
}

impl TokenizerData {
    /// From the keys of a GGUF file.
    pub(crate) fn from_keys(metadata: &Metadata) -> Result<TokenizerData, SourceError> {
        let owned = |key| Ok::<_, SourceError>(metadata.str(key)?.map(str::to_owned));
        let id = |name: &str| metadata.token_id(&format!("tokenizer.ggml.{name}_token_id"));
        let strings = |key| {
            metadata
                .strings(key)
                .map(|list| list.map(<[String]>::to_vec))
        };
        Ok(TokenizerData {
            model: metadata.require_str("tokenizer.ggml.model")?.to_owned(),
            pre: owned("tokenizer.ggml.pre")?,
            tokens: metadata.require_strings("tokenizer.ggml.tokens")?.to_vec(),
            scores: metadata.f32s("tokenizer.ggml.scores")?.unwrap_or_default(),
            token_types: metadata
                .i32s("tokenizer.ggml.token_type")?
                .unwrap_or_default(),
            merges: strings("tokenizer.ggml.merges")?.unwrap_or_default(),
            // Files of `bert` call it `cls`; the misspelt word is what most of them have.
            bos: id("bos")?.or(id("cls")?),
            sep: id("seperator")?.or(id("separator")?),
            eos: id("eos")?,
            eot: id("eot")?,
            unk: id("unknown")?,
            pad: id("padding")?,
            add_bos: metadata.bool("tokenizer.ggml.add_bos_token")?,
            add_eos: metadata.bool("tokenizer.ggml.add_eos_token")?,
            add_space_prefix: metadata.bool("tokenizer.ggml.add_space_prefix")?,
            chat_template: owned("tokenizer.chat_template")?,
            // Of the named ones this is the one that is chosen without being named.
            chat_template_tools: owned("tokenizer.chat_template.tool_use")?,
        })
    }
}
