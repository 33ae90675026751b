//! Characters and tokens: tokenizers, chat templates, incremental detokenising, stop strings.
//!
//! [`TextModel`] is what a model file says about text, checked once. It knows nothing of the file's format: whoever reads
//! the file fills a [`TextSource`]. No I/O, no unsafe code, and work that stays near-linear in the input whatever it is.

#![forbid(unsafe_code)]

mod chat_template;
mod detokenizer;
mod error;
mod stop;
mod tokenizer;

pub use chat_template::{ChatMessage, ToolCall};
pub use detokenizer::Detokenizer;
pub use error::TextError;
pub use stop::{StopMatcher, StopOutput};
pub use tokenizer::{Specials, TextModel, TextSource};
