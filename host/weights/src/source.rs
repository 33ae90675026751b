//! What a model is read from, whatever form its files have.

use std::path::Path;

use crate::error::SourceError;
use crate::metadata::Metadata;
use crate::tensor::Tensor;
use crate::tokenizer::TokenizerData;

/// A model at rest: its hyperparameters, its tokenizer and its tensors.
///
/// Keys and tensors have the names that GGUF gives them, and tensors lie as GGUF has them; a source of another form
/// translates. Input is hostile: whoever implements this has held every length against the bytes that are there before it
/// hands out a view of them.
pub trait ModelSource: Send + Sync {
    /// Hyperparameters by key, such as `general.architecture` and `llama.block_count`.
    fn metadata(&self) -> &Metadata;

    /// What a tokenizer and a chat template are made of.
    ///
    /// # Errors
    /// [`SourceError`] when something is missing or of another type; whether it makes sense is for the tokenizer to say.
    fn tokenizer(&self) -> Result<TokenizerData, SourceError>;

    /// The tensor of this name, such as `blk.0.attn_q.weight`.
    fn tensor(&self, name: &str) -> Option<Tensor<'_>>;

    /// All tensors, always in the same order.
    fn tensors(&self) -> Box<dyn Iterator<Item = Tensor<'_>> + '_>;

    /// Size of the model's files.
    fn file_bytes(&self) -> u64;

    /// Where the model was opened; `None` for one that was given as bytes.
    fn path(&self) -> Option<&Path>;

    /// Lets go of the memory behind a part of a tensor's data, which is fetched again when it is read again. A model that
    /// is turned into something else piece by piece is then never in memory whole.
    fn release(&self, data: &[u8]);

    /// What tells this model from another, or from a later state of its files. `None` for one that was given as bytes.
    fn fingerprint(&self) -> Option<u128>;

    /// The tensor of this name, which must be there.
    ///
    /// # Errors
    /// [`SourceError::MissingTensor`].
    fn require(&self, name: &str) -> Result<Tensor<'_>, SourceError> {
        self.tensor(name).ok_or_else(|| SourceError::MissingTensor {
            name: name.to_owned(),
        })
    }
}
