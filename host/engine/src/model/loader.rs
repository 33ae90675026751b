//! Weights by name and shape, and the sizes of a model, each held against its tensors.

use std::collections::HashSet;

use realm_kernels::{AttentionShape, MatrixView};
use realm_weights::{ModelSource, Tensor};

use super::LoadError;
use super::experts::ExpertShape;
use super::keys::Keys;
use super::ops::Ops;

/// The sizes of a model.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) layers: u32,
    pub(crate) context: u32,
    pub(crate) vocab: u32,
    pub(crate) hidden: usize,
    pub(crate) feed_forward: usize,
    pub(crate) experts: Option<ExpertShape>,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) norm: NormKind,
    pub(crate) eps: f32,
}

/// The norms before attention, feed-forward and output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NormKind {
    Rms,
    Layer,
}

impl Shape {
    /// Attention over all earlier positions, or a window of them, with the usual scale.
    pub(crate) fn attention(&self, window: Option<u32>) -> AttentionShape {
        AttentionShape {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            window,
            softcap: None,
        }
    }
}

/// Where matrices are made ready for the operations that read them.
pub(crate) trait Weights<'s, O: Ops> {
    /// The matrix of this name, whose stored form is `view`.
    ///
    /// # Errors
    /// [`LoadError::OutOfMemory`].
    fn matrix(&mut self, name: &str, view: MatrixView<'s>) -> Result<O::Matrix, LoadError>;

    /// All matrices of the model were made.
    fn finish(self: Box<Self>);
}

/// Fetches weights and hyperparameters, and remembers which were taken.
pub(crate) struct Loader<'s, O: Ops> {
    pub(super) keys: Keys<'s>,
    source: &'s dyn ModelSource,
    ops: &'s O,
    weights: Box<dyn Weights<'s, O> + 's>,
    taken: HashSet<&'s str>,
}

impl<'s, O: Ops> Loader<'s, O> {
    pub(crate) fn new(
        source: &'s dyn ModelSource,
        keys: Keys<'s>,
        ops: &'s O,
        weights: Box<dyn Weights<'s, O> + 's>,
    ) -> Loader<'s, O> {
        Loader {
            keys,
            source,
            ops,
            weights,
            taken: HashSet::new(),
        }
    }

    pub(super) fn ops(&self) -> &'s O {
        self.ops
    }

    /// The sizes every architecture states under the same names.
    pub(crate) fn shape(&self, norm: NormKind) -> Result<Shape, LoadError> {
        self.keys.refuse("expert_count", "mixture of experts")?;
        self.sizes(norm)
    }

    /// The sizes of an architecture that may have experts.
    pub(crate) fn shape_with_experts(&self) -> Result<Shape, LoadError> {
        let key = self.keys.key("expert_count");
        let mut shape = self.sizes(NormKind::Rms)?;
        let count = self.keys.metadata().u32(&key)?.unwrap_or(0) as usize;
        if count == 0 {
            return Ok(shape);
        }
        let used = self.keys.count("expert_used_count")? as usize;
        let wanted = format!("a number up to {count} experts");
        self.keys.check(
            &self.keys.key("expert_used_count"),
            used,
            used <= count,
            &wanted,
        )?;
        let gating = self.keys.key("expert_gating_func");
        /// Softmax; the others came with later architectures.
        const SOFTMAX: u32 = 1;
        let gating_func = self.keys.metadata().u32(&gating)?.unwrap_or(SOFTMAX);
        self.keys
            .check(&gating, gating_func, gating_func == SOFTMAX, "1 (softmax)")?;
        self.refuse_other_mixtures()?;
        shape.experts = Some(ExpertShape {
            count,
            used,
            feed_forward: match self
                .keys
                .metadata()
                .u32(&self.keys.key("expert_feed_forward_length"))?
            {
                None | Some(0) => shape.feed_forward,
                Some(_) => self.keys.count("expert_feed_forward_length")? as usize,
            },
        });
        Ok(shape)
    }

    /// Refuses what other architectures do with experts: a key that is ignored would be another model.
    fn refuse_other_mixtures(&self) -> Result<(), LoadError> {
        let norm = self.keys.key("expert_weights_norm");
        let is_normed = self.keys.metadata().bool(&norm)?.unwrap_or(true);
        self.keys.check(&norm, is_normed, is_normed, "true")?;
        let scale = self.keys.key("expert_weights_scale");
        let factor = self.keys.metadata().f32(&scale)?.unwrap_or(1.0);
        // 0 is how files say that there is none.
        let is_plain = factor == 0.0 || factor == 1.0;
        self.keys.check(&scale, factor, is_plain, "1")?;
        self.keys.refuse("expert_shared_count", "shared experts")?;
        self.keys
            .refuse("expert_group_count", "groups of experts")?;
        self.keys
            .refuse("leading_dense_block_count", "layers without experts")
    }

    fn sizes(&self, norm: NormKind) -> Result<Shape, LoadError> {
        let hidden = self.keys.count("embedding_length")?;
        let heads = self.keys.count("attention.head_count")?;
        let kv_heads_key = self.keys.key("attention.head_count_kv");
        let kv_heads = self.keys.metadata().u32(&kv_heads_key)?.unwrap_or(heads);
        let fits = kv_heads > 0 && heads.is_multiple_of(kv_heads);
        self.keys.check(
            &kv_heads_key,
            kv_heads,
            fits,
            &format!("a divisor of {heads} heads"),
        )?;
        let eps = match norm {
            NormKind::Rms => "attention.layer_norm_rms_epsilon",
            NormKind::Layer => "attention.layer_norm_epsilon",
        };
        self.keys.metadata().require_f32(&self.keys.key(eps))?;
        let embedding = self.source.require("token_embd.weight")?;
        Ok(Shape {
            layers: self.keys.count("block_count")?,
            context: self.keys.count("context_length")?,
            vocab: rows(&embedding)?,
            hidden: hidden as usize,
            feed_forward: self.keys.count("feed_forward_length")? as usize,
            experts: None,
            heads: heads as usize,
            kv_heads: kv_heads as usize,
            head_dim: self.head_dim(hidden, heads)? as usize,
            norm,
            eps: self.keys.positive(eps, 0.0)?,
        })
    }

    fn head_dim(&self, hidden: u32, heads: u32) -> Result<u32, LoadError> {
        /// The kernels keep one head in registers and stack buffers; no known model has wider ones.
        const HEAD_DIM_MAX: u32 = 512;
        let key = self.keys.key("attention.key_length");
        let head_dim = self.keys.metadata().u32(&key)?.unwrap_or(hidden / heads);
        let fits = head_dim > 0 && head_dim.is_multiple_of(2) && head_dim <= HEAD_DIM_MAX;
        self.keys
            .check(&key, head_dim, fits, "an even number up to 512")?;
        let key = self.keys.key("attention.value_length");
        let value_dim = self.keys.metadata().u32(&key)?.unwrap_or(head_dim);
        let wanted = format!("the key length {head_dim}");
        self.keys
            .check(&key, value_dim, value_dim == head_dim, &wanted)
    }

    /// A matrix of exactly this shape, made ready to be multiplied with.
    pub(crate) fn matrix(
        &mut self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<O::Matrix, LoadError> {
        let view = self.view(name, rows, cols)?;
        self.weights.matrix(name, view)
    }

    /// Matrices of one width that the file keeps one below the other, as one tensor of exactly their rows.
    pub(crate) fn fused_matrices<const N: usize>(
        &mut self,
        name: &str,
        rows: [usize; N],
        cols: usize,
    ) -> Result<[O::Matrix; N], LoadError> {
        let view = self.view(name, rows.iter().sum(), cols)?;
        let mut start = 0;
        let mut matrices = Vec::with_capacity(N);
        for (index, rows) in rows.into_iter().enumerate() {
            let part = view.rows(start..start + rows);
            matrices.push(self.weights.matrix(&format!("{name}[{index}]"), part)?);
            start += rows;
        }
        let matrices: Result<[O::Matrix; N], _> = matrices.try_into();
        Ok(matrices.unwrap_or_else(|_| unreachable!("one matrix for each of N")))
    }

    /// Matrices of one shape that the file keeps as one tensor of three dimensions.
    pub(crate) fn stacked_matrices(
        &mut self,
        name: &str,
        rows: usize,
        cols: usize,
        count: usize,
    ) -> Result<Vec<O::Matrix>, LoadError> {
        let tensor = self.source.require(name)?;
        self.taken.insert(tensor.name);
        if *tensor.shape != [cols as u64, rows as u64, count as u64] {
            return Err(wrong_shape(
                &tensor,
                &[cols as u64, rows as u64, count as u64],
            ));
        }
        let all = tensor.stacked()?;
        (0..count)
            .map(|index| {
                let part = all.rows(index * rows..(index + 1) * rows);
                self.weights.matrix(&format!("{name}[{index}]"), part)
            })
            .collect()
    }

    fn view(&mut self, name: &str, rows: usize, cols: usize) -> Result<MatrixView<'s>, LoadError> {
        let tensor = self.source.require(name)?;
        self.taken.insert(tensor.name);
        let view = tensor.matrix()?;
        match (view.rows, view.cols) == (rows, cols) {
            true => Ok(view),
            false => Err(wrong_shape(&tensor, &[cols as u64, rows as u64])),
        }
    }

    /// Rows of a matrix whose height nothing else says.
    pub(crate) fn rows_of(&self, name: &str) -> Result<usize, LoadError> {
        Ok(self.source.require(name)?.matrix()?.rows)
    }

    /// Whether the file has a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.source.tensor(name).is_some()
    }

    /// The values of a vector of exactly this length.
    pub(crate) fn values(&mut self, name: &str, length: usize) -> Result<Vec<f32>, LoadError> {
        let tensor = self.source.require(name)?;
        self.taken.insert(tensor.name);
        if tensor.shape.iter().product::<u64>() != length as u64 {
            return Err(wrong_shape(&tensor, &[length as u64]));
        }
        Ok(tensor.vector_f32()?)
    }

    /// The same where the model has one.
    pub(crate) fn optional_values(
        &mut self,
        name: &str,
        length: usize,
    ) -> Result<Option<Vec<f32>>, LoadError> {
        match self.source.tensor(name) {
            None => Ok(None),
            Some(_) => self.values(name, length).map(Some),
        }
    }

    /// A vector of exactly this length, where the operations read it.
    pub(crate) fn vector(&mut self, name: &str, length: usize) -> Result<O::Vector, LoadError> {
        Ok(self.ops.vector(self.values(name, length)?))
    }

    /// The same where the model has one.
    pub(crate) fn optional_vector(
        &mut self,
        name: &str,
        length: usize,
    ) -> Result<Option<O::Vector>, LoadError> {
        let values = self.optional_values(name, length)?;
        Ok(values.map(|values| self.ops.vector(values)))
    }

    /// Ends the loading. Refuses a model with tensors that nobody took: biases, experts, more layers than it says; and with
    /// keys that nobody read and that mean another model.
    pub(crate) fn finish(self) -> Result<(), LoadError> {
        self.keys.refuse_unread()?;
        let unused = |tensor: &Tensor<'_>| !self.taken.contains(tensor.name);
        let count = self.source.tensors().filter(unused).count();
        match self.source.tensors().find(unused) {
            None => {
                self.weights.finish();
                Ok(())
            }
            Some(tensor) => Err(LoadError::UnusedTensor {
                name: tensor.name.to_owned(),
                architecture: self.keys.architecture().to_owned(),
                count,
            }),
        }
    }
}

/// Rows of a matrix; token ids are u32.
fn rows(tensor: &Tensor<'_>) -> Result<u32, LoadError> {
    let rows = tensor.matrix()?.rows;
    u32::try_from(rows).map_err(|_| LoadError::TooManyRows {
        name: tensor.name.to_owned(),
        rows,
    })
}

fn wrong_shape(tensor: &Tensor<'_>, expected: &[u64]) -> LoadError {
    LoadError::WrongShape {
        name: tensor.name.to_owned(),
        shape: tensor.shape.to_vec(),
        expected: expected.to_vec(),
    }
}
