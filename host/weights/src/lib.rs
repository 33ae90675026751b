//! Model files as named tensor views over a read-only map, and where weights live that were repacked: in an [`Arena`] or
//! in a mapped file ([`Packed`]). A [`ModelSource`] is what models are loaded from; [`Gguf`] is one.
//!
//! Input is hostile: whatever the bytes, [`Gguf::open`] ends in a file or in a [`GgufError`] that names the key or
//! tensor and the numbers, without a panic and without allocating more than a small multiple of the file.
//! Weights are handed out as stored; no arithmetic happens here.
#![deny(unsafe_code)]

mod arena;
mod error;
mod gguf;
mod map;
mod metadata;
mod packed;
mod reader;
mod source;
mod tensor;
mod tokenizer;
mod writer;

pub use arena::Arena;
pub use error::{GgufError, SourceError};
pub use gguf::Gguf;
pub use metadata::{Array, Metadata, Value, ValueType};
pub use packed::{Packed, PackedError, PackedFile, PackedWriter};
pub use source::ModelSource;
pub use tensor::Tensor;
pub use tokenizer::TokenizerData;
pub use writer::GgufWriter;
