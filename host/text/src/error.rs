//! What can be wrong with a tokenizer, a template or a chat.

/// An error of this crate. The last seven are the client's fault; the others are the model file's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// The tokenizer's algorithm is not one of ours.
    #[error("tokenizer model '{found}' is not supported (supported: gpt2, llama, bert)")]
    UnknownModel {
        /// `tokenizer.ggml.model` of the file.
        found: String,
    },
    /// The rule that cuts text into words is not one of ours.
    #[error("pre-tokenizer '{found}' is not supported (supported: {supported})")]
    UnknownPreTokenizer {
        /// `tokenizer.ggml.pre` of the file.
        found: String,
        /// The names that are supported.
        supported: String,
    },
    /// A list of the vocabulary has another length than the tokens.
    #[error("the vocabulary has {tokens} tokens, but {found} {what}")]
    LengthMismatch {
        /// Which list.
        what: &'static str,
        /// Its length.
        found: usize,
        /// Number of tokens.
        tokens: usize,
    },
    /// A vocabulary without tokens, or with more than 16 million.
    #[error("the vocabulary has {tokens} tokens; it must have between 1 and 16777216")]
    VocabularySize {
        /// Number of tokens.
        tokens: usize,
    },
    /// A merge that does not join two tokens to a third.
    #[error("merge {index} ('{merge}') does not join two tokens of the vocabulary into a third")]
    BadMerge {
        /// Its place in the list.
        index: usize,
        /// The merge as the file has it.
        merge: String,
    },
    /// The vocabulary cannot be used for another reason.
    #[error("the tokenizer cannot be built: {0}")]
    Vocabulary(String),
    /// The chat template does not parse, so there are no chats.
    #[error("the chat template is not valid: {0}")]
    TemplateSyntax(String),
    /// The chat template refused these messages, or needed too much work for them.
    #[error("the chat template cannot render these messages: {0}")]
    Template(String),
    /// The chat template would pass over something that the client said.
    #[error("{field}: this model's chat template has no place for {what}")]
    NoPlace {
        /// The path of the field.
        field: String,
        /// What it is.
        what: String,
    },
    /// The last message has no text to go on with.
    #[error("{field}: must have a text that the model can continue")]
    NothingToContinue {
        /// The path of the field.
        field: String,
    },
    /// The chat template wrote too much.
    #[error("the rendered chat is longer than the {bytes_max} bytes that are allowed")]
    RenderedTooLong {
        /// Bytes that are allowed.
        bytes_max: usize,
    },
    /// A text has more bytes than the tokens allowed can stand for, even if each were the longest there is.
    #[error(
        "the text is too long: it has {bytes} bytes, and {tokens_max} tokens can hold at most {bytes_max} bytes"
    )]
    TextTooLong {
        /// Its length.
        bytes: usize,
        /// The most that can fit.
        bytes_max: usize,
        /// Tokens that are allowed.
        tokens_max: usize,
    },
    /// The same for a rendered chat. Rendering stopped there, so nobody knows how long it would be.
    #[error(
        "the chat is too long: it takes more than {bytes_max} bytes, which is the most that {tokens_max} tokens can hold"
    )]
    ChatTooLong {
        /// The most that can fit.
        bytes_max: usize,
        /// Tokens that are allowed.
        tokens_max: usize,
    },
    /// A text takes more tokens than are allowed. Counting stopped there.
    #[error("the text is too long: its {bytes} bytes take more than {tokens_max} tokens")]
    TooManyTokens {
        /// Its length.
        bytes: usize,
        /// Tokens that are allowed.
        tokens_max: usize,
    },
}

impl TextError {
    /// Whether the text or the chat is right but takes too many tokens.
    pub fn is_too_long(&self) -> bool {
        matches!(
            self,
            TextError::TextTooLong { .. }
                | TextError::ChatTooLong { .. }
                | TextError::TooManyTokens { .. }
        )
    }
}
