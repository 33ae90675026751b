//! Block formats of GGUF: their ids, names and sizes, and how to turn blocks back into f32.
//!
//! Every id that GGUF knows is recognised here, so that a file can be described even when it cannot be run.

mod code_books;
mod codes;
mod dequantize;

pub(crate) use codes::{Coding, GROUP, GroupCodes, Scales, coding};
pub use dequantize::dequantize;

use std::ops::Range;

/// Declares [`BlockType`] and its tables from one list of `variant name id block_len block_bytes`.
macro_rules! block_types {
    ($($variant:ident $name:literal $id:literal $len:literal $bytes:literal;)*) => {
        /// How the numbers of a tensor are stored: the block types of ggml, by their GGUF ids.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[allow(missing_docs, non_camel_case_types, reason = "the names are the formats' own")]
        pub enum BlockType { $($variant,)* }

        impl BlockType {
            /// Every type, in the order of the ids.
            pub const ALL: &'static [BlockType] = &[$(BlockType::$variant,)*];

            /// The type with this GGUF id; `None` for ids that are removed, reserved or private to other programs.
            pub fn from_ggml(id: u32) -> Option<BlockType> {
                match id { $($id => Some(BlockType::$variant),)* _ => None }
            }

            /// The id in a GGUF tensor table.
            pub fn ggml_id(self) -> u32 {
                match self { $(BlockType::$variant => $id,)* }
            }

            /// The usual name, such as `"Q4_K"`.
            pub fn name(self) -> &'static str {
                match self { $(BlockType::$variant => $name,)* }
            }

            /// Elements in one block.
            pub fn block_len(self) -> usize {
                match self { $(BlockType::$variant => $len,)* }
            }

            /// Bytes of one block.
            pub fn block_bytes(self) -> usize {
                match self { $(BlockType::$variant => $bytes,)* }
            }
        }
    };
}

block_types! {
    F32 "F32" 0 1 4;
    F16 "F16" 1 1 2;
    Q4_0 "Q4_0" 2 32 18;
    Q4_1 "Q4_1" 3 32 20;
    Q5_0 "Q5_0" 6 32 22;
    Q5_1 "Q5_1" 7 32 24;
    Q8_0 "Q8_0" 8 32 34;
    Q8_1 "Q8_1" 9 32 36;
    Q2_K "Q2_K" 10 256 84;
    Q3_K "Q3_K" 11 256 110;
    Q4_K "Q4_K" 12 256 144;
    Q5_K "Q5_K" 13 256 176;
    Q6_K "Q6_K" 14 256 210;
    Q8_K "Q8_K" 15 256 292;
    IQ2_XXS "IQ2_XXS" 16 256 66;
    IQ2_XS "IQ2_XS" 17 256 74;
    IQ3_XXS "IQ3_XXS" 18 256 98;
    IQ1_S "IQ1_S" 19 256 50;
    IQ4_NL "IQ4_NL" 20 32 18;
    IQ3_S "IQ3_S" 21 256 110;
    IQ2_S "IQ2_S" 22 256 82;
    IQ4_XS "IQ4_XS" 23 256 136;
    I8 "I8" 24 1 1;
    I16 "I16" 25 1 2;
    I32 "I32" 26 1 4;
    I64 "I64" 27 1 8;
    F64 "F64" 28 1 8;
    IQ1_M "IQ1_M" 29 256 56;
    BF16 "BF16" 30 1 2;
    TQ1_0 "TQ1_0" 34 256 54;
    TQ2_0 "TQ2_0" 35 256 66;
    MXFP4 "MXFP4" 39 32 17;
    NVFP4 "NVFP4" 40 64 36;
    Q1_0 "Q1_0" 41 128 18;
    Q2_0 "Q2_0" 42 64 18;
}

impl BlockType {
    /// The types [`dequantize()`] and the matrix operations take.
    pub const RUNNABLE: [BlockType; 27] = [
        BlockType::F32,
        BlockType::F16,
        BlockType::BF16,
        BlockType::Q4_0,
        BlockType::Q4_1,
        BlockType::Q5_0,
        BlockType::Q5_1,
        BlockType::Q8_0,
        BlockType::Q2_K,
        BlockType::Q3_K,
        BlockType::Q4_K,
        BlockType::Q5_K,
        BlockType::Q6_K,
        BlockType::IQ2_XXS,
        BlockType::IQ2_XS,
        BlockType::IQ3_XXS,
        BlockType::IQ1_S,
        BlockType::IQ4_NL,
        BlockType::IQ3_S,
        BlockType::IQ2_S,
        BlockType::IQ4_XS,
        BlockType::IQ1_M,
        BlockType::TQ1_0,
        BlockType::TQ2_0,
        BlockType::MXFP4,
        BlockType::Q1_0,
        BlockType::Q2_0,
    ];

    /// Whether tensors of this type can be computed with, and not only recognised.
    pub fn is_runnable(self) -> bool {
        BlockType::RUNNABLE.contains(&self)
    }

    /// Bytes of a row of `cols` elements; `None` when `cols` is no multiple of the block length or the size overflows.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_len()) {
            return None;
        }
        (cols / self.block_len()).checked_mul(self.block_bytes())
    }
}

/// A stored weight matrix `[rows, cols]`: row-major blocks, each row a whole number of blocks.
///
/// The operations compute `y = x · Wᵀ`, so `rows` is the width of the output and `cols` that of the input.
#[derive(Clone, Copy, Debug)]
pub struct MatrixView<'a> {
    /// How `data` is stored.
    pub ty: BlockType,
    /// Output width.
    pub rows: usize,
    /// Input width.
    pub cols: usize,
    /// `rows` times `ty.row_bytes(cols)` bytes.
    pub data: &'a [u8],
}

impl<'a> MatrixView<'a> {
    /// The blocks of one row.
    ///
    /// # Panics
    /// When `row` is out of range or `data` is not of the size `rows` and `cols` ask for.
    pub fn row(&self, row: usize) -> &'a [u8] {
        let bytes = self.row_bytes();
        &self.data[row * bytes..(row + 1) * bytes]
    }

    /// Some of the rows.
    ///
    /// # Panics
    /// As [`row`](MatrixView::row).
    pub fn rows(&self, rows: Range<usize>) -> MatrixView<'a> {
        let bytes = self.row_bytes();
        MatrixView {
            rows: rows.len(),
            data: &self.data[rows.start * bytes..rows.end * bytes],
            ..*self
        }
    }

    /// Bytes of one row.
    ///
    /// # Panics
    /// When `cols` is no multiple of the block length: whoever made the view should have refused the file.
    pub fn row_bytes(&self) -> usize {
        self.ty
            .row_bytes(self.cols)
            .expect("a matrix row is a whole number of blocks")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_types_are_one_to_one() {
        for &ty in BlockType::ALL {
            assert_eq!(BlockType::from_ggml(ty.ggml_id()), Some(ty));
        }
        for id in [4, 5, 31, 32, 33, 36, 37, 38, 43, 137, 202, u32::MAX] {
            assert_eq!(BlockType::from_ggml(id), None, "id {id}");
        }
    }

    #[test]
    fn a_row_is_a_whole_number_of_blocks() {
        assert_eq!(BlockType::Q4_K.row_bytes(512), Some(288));
        assert_eq!(BlockType::Q4_K.row_bytes(500), None);
        assert_eq!(BlockType::F64.row_bytes(usize::MAX / 4), None);
        assert_eq!(BlockType::F32.row_bytes(0), Some(0));
    }
}
