//! Characters and tokens: tokenizers, chat templates, incremental detokenising, stop strings.
//!
//! [`TextModel`] is what a model file says about text, checked once. It knows nothing of the file's format: whoever reads
//! the file fills a [`TextSource`]. No I/O, no unsafe code, and work that stays near-linear in the input whatever it is.
//!
//! ```
//! use realm_text::{Chat, ChatMessage, Detokenizer, Specials, StopMatcher, TextModel, TextSource};
//!
//! // A vocabulary of single bytes and two control tokens; a model file has more.
//! let mut tokens: Vec<String> = (0..=255).map(|byte: u8| format!("<0x{byte:02X}>")).collect();
//! tokens.extend(["<|im_start|>", "<|im_end|>"].map(str::to_owned));
//! let model = TextModel::new(TextSource {
//!     model: "llama".into(),
//!     scores: vec![0.0; tokens.len()],
//!     token_types: [vec![6; 256], vec![3; 2]].concat(),
//!     tokens,
//!     eos: Some(257),
//!     add_bos: Some(false),
//!     add_space_prefix: Some(false),
//!     ..TextSource::default()
//! })?;
//!
//! // In: a chat as the model reads it. Names of control tokens count here, and not in text of strangers.
//! let chat = Chat::new([ChatMessage::new("user", "hi")]);
//! let prompt = model.chat_tokens(&chat, 100)?;
//! assert_eq!(prompt[0], 256);
//! assert_eq!(model.encode("<|im_start|>", Specials::Literal, true, 100)?.len(), 12);
//!
//! // Out: tokens to characters to text before a stop string, a token at a time.
//! let (mut characters, mut stops) = (Detokenizer::new(), StopMatcher::new(vec!["\n\n".into()]));
//! let mut answer = String::new();
//! for id in model.encode("café\n\nmore", Specials::Literal, true, 100)? {
//!     let output = stops.push(&characters.push(model.token_bytes(id)));
//!     answer.push_str(&output.text);
//!     if output.matched.is_some() || model.is_end_of_generation(id) {
//!         break;
//!     }
//! }
//! assert_eq!(answer, "café");
//! # Ok::<(), realm_text::TextError>(())
//! ```

#![forbid(unsafe_code)]

// For what the unit tests share with the others.
#[cfg(test)]
extern crate self as realm_text;

mod chat;
mod chat_template;
mod detokenizer;
mod error;
mod offsets;
mod stop;
mod tokenizer;

pub use chat::{Chat, ChatMessage, PromptEnd, RESERVED_VARIABLES};
pub use chat_template::{chat_template_names, named_chat_template};
pub use detokenizer::Detokenizer;
pub use error::TextError;
pub use offsets::TextOffsets;
pub use stop::{StopMatcher, StopOutput};
pub use tokenizer::{Specials, TextModel, TextSource};
