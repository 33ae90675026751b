//! KV blocks as bytes: a header that says what they are made of, then one block after another.
//!
//! Layout, little-endian: magic of 8 bytes; u32 each of layers, heads of keys and values, width of a head, tokens of a
//! block, code of the type and number of blocks; then the blocks, each with all of its layers in order. The header knows
//! nothing of the weights that made the blocks, nor of the tokens: whoever keeps blocks keeps that beside them.

use std::fmt;

use thiserror::Error;

/// The last two digits count versions of the layout.
const MAGIC: &[u8; 8] = b"REALMKV1";
const HEADER_BYTES: usize = MAGIC.len() + 6 * 4;

/// What the blocks of a cache are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockLayout {
    /// Transformer blocks.
    pub layers: u32,
    /// Heads of keys and of values.
    pub kv_heads: u32,
    /// Elements of a head.
    pub head_dim: u32,
    /// Tokens of a KV block.
    pub block_tokens: u32,
    /// How elements are kept.
    pub element: BlockElement,
    /// Bytes of a block over all layers, which follows from the rest.
    pub block_bytes: u64,
}

/// How the elements of keys and values are kept. The numbers are those of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum BlockElement {
    /// 16-bit floats.
    F16 = 1,
    /// 8-bit codes with scales.
    Q8_0 = 2,
    /// Token ids, as the scripted model keeps them.
    TokenId = 3,
}

/// Why bytes are not taken as blocks. Nothing was changed then.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImportError {
    /// They are something else, or blocks of another version.
    #[error("these bytes are not exported KV blocks of this version")]
    NotBlocks,
    /// They are blocks of a cache that is made otherwise.
    #[error("the KV blocks are of another layout: {found}, but this cache has {expected}")]
    OtherLayout {
        /// What the header says.
        found: String,
        /// What this cache is made of.
        expected: BlockLayout,
    },
    /// There are more or fewer blocks than places for them.
    #[error("{found} KV blocks were exported, but there are {expected} to fill")]
    WrongCount {
        /// Blocks that the header announces.
        found: u32,
        /// Blocks to fill.
        expected: usize,
    },
    /// The bytes end early or go on too long.
    #[error("{expected} bytes of KV blocks are announced, but there are {found}")]
    WrongLength {
        /// Bytes after the header.
        found: usize,
        /// Bytes that the blocks take.
        expected: u64,
    },
}

impl fmt::Display for BlockLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&described(&self.numbers()))
    }
}

/// The numbers of a header in words.
fn described([layers, kv_heads, head_dim, block_tokens, element]: &[u32; 5]) -> String {
    let element = match *element {
        code if code == BlockElement::F16 as u32 => "f16".to_owned(),
        code if code == BlockElement::Q8_0 as u32 => "q8_0".to_owned(),
        code if code == BlockElement::TokenId as u32 => "token ids".to_owned(),
        code => format!("type {code}"),
    };
    format!(
        "{layers} layers of {kv_heads} heads of {head_dim} ({element}), {block_tokens} tokens a block"
    )
}

impl BlockLayout {
    fn numbers(&self) -> [u32; 5] {
        let element = self.element as u32;
        let BlockLayout {
            layers,
            kv_heads,
            head_dim,
            block_tokens,
            ..
        } = *self;
        [layers, kv_heads, head_dim, block_tokens, element]
    }

    /// Appends the header of `blocks` blocks, and reserves room for them.
    pub(crate) fn begin(&self, blocks: usize, out: &mut Vec<u8>) {
        out.reserve(HEADER_BYTES + blocks * self.block_bytes as usize);
        out.extend_from_slice(MAGIC);
        for number in self.numbers().into_iter().chain([blocks as u32]) {
            out.extend_from_slice(&number.to_le_bytes());
        }
    }

    /// The bytes of each block, when they are `expected` blocks of this layout.
    pub(crate) fn blocks<'b>(
        &self,
        bytes: &'b [u8],
        expected: usize,
    ) -> Result<std::slice::ChunksExact<'b, u8>, ImportError> {
        let header = bytes.split_at_checked(HEADER_BYTES);
        let (header, data) = header.ok_or(ImportError::NotBlocks)?;
        let numbers = header.strip_prefix(MAGIC).ok_or(ImportError::NotBlocks)?;
        let (numbers, _) = numbers.as_chunks::<4>();
        let number = |index: usize| u32::from_le_bytes(numbers[index]);
        let found: [u32; 5] = std::array::from_fn(number);
        if found != self.numbers() {
            return Err(ImportError::OtherLayout {
                found: described(&found),
                expected: *self,
            });
        }
        let count = number(found.len());
        if count as usize != expected {
            return Err(ImportError::WrongCount {
                found: count,
                expected,
            });
        }
        let announced = u64::from(count) * self.block_bytes;
        if data.len() as u64 != announced {
            return Err(ImportError::WrongLength {
                found: data.len(),
                expected: announced,
            });
        }
        Ok(data.chunks_exact(self.block_bytes as usize))
    }
}
