//! A named tensor as it lies in the file.

use realm_kernels::MatrixView;
use realm_kernels::quant::{BlockType, dequantize};

use crate::error::SourceError;

/// A view of one tensor; `data` has exactly the bytes that type and shape ask for.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// Name in the tensor table.
    pub name: &'a str,
    /// How values are stored.
    pub ty: BlockType,
    /// In the order of the file: `shape[0]` is the length of a row. 1 to 4 lengths, none 0.
    pub shape: &'a [u64],
    /// The stored blocks.
    pub data: &'a [u8],
}

impl<'a> Tensor<'a> {
    /// The tensor as a weight matrix `[rows, cols]`.
    ///
    /// # Errors
    /// [`SourceError::WrongRank`] when it has not two dimensions, [`SourceError::NotRunnable`] when no kernel reads its
    /// type.
    pub fn matrix(&self) -> Result<MatrixView<'a>, SourceError> {
        match *self.shape {
            [cols, rows] | [cols, rows, 1] | [cols, rows, 1, 1] => {
                self.check_runnable()?;
                Ok(MatrixView {
                    ty: self.ty,
                    rows: length(rows),
                    cols: length(cols),
                    data: self.data,
                })
            }
            _ => Err(self.wrong_rank("matrix")),
        }
    }

    /// The matrices of a tensor with three dimensions, one below the other: `[count * rows, cols]`.
    ///
    /// # Errors
    /// As [`Tensor::matrix`], for three dimensions.
    pub fn stacked(&self) -> Result<MatrixView<'a>, SourceError> {
        match *self.shape {
            [cols, rows, count] | [cols, rows, count, 1] => {
                self.check_runnable()?;
                Ok(MatrixView {
                    ty: self.ty,
                    rows: length(rows * count), // the number of values is known to be below 2^63
                    cols: length(cols),
                    data: self.data,
                })
            }
            _ => Err(self.wrong_rank("stack of matrices")),
        }
    }

    /// The values of a tensor with one dimension, as f32.
    ///
    /// # Errors
    /// As [`Tensor::matrix`], for one dimension.
    pub fn vector_f32(&self) -> Result<Vec<f32>, SourceError> {
        if self.shape[1..].iter().any(|length| *length != 1) {
            return Err(self.wrong_rank("vector"));
        }
        self.check_runnable()?;
        // A block type packs at most a few hundred values into its bytes, which are in the file.
        let mut values = vec![0.0; length(self.shape[0])];
        dequantize(self.ty, self.data, &mut values);
        Ok(values)
    }

    fn check_runnable(&self) -> Result<(), SourceError> {
        if self.ty.is_runnable() {
            return Ok(());
        }
        Err(SourceError::NotRunnable {
            name: self.name.to_owned(),
            ty: self.ty,
        })
    }

    fn wrong_rank(&self, wanted: &'static str) -> SourceError {
        SourceError::WrongRank {
            name: self.name.to_owned(),
            shape: self.shape.to_vec(),
            wanted,
        }
    }
}

/// A length that the parser has already held against the size of the file.
fn length(length: u64) -> usize {
    usize::try_from(length).expect("the parser refuses lengths that do not fit the file")
}
