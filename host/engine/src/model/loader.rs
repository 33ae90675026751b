//! What a model's file says: hyperparameters, each held against the tensors, and weights by name and shape.

use std::cell::RefCell;
use std::collections::HashSet;

use realm_kernels::{AttentionShape, Matrix, MatrixView};
use realm_weights::{Gguf, GgufError, Metadata, Tensor};

use super::LoadError;
use super::experts::ExpertShape;
use super::panels::Panels;

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

/// Fetches weights and hyperparameters, and remembers which were taken.
pub(crate) struct Loader<'g> {
    gguf: &'g Gguf,
    panels: Panels<'g>,
    architecture: &'g str,
    context_max: u32, // that was asked for
    taken: HashSet<&'g str>,
    asked: RefCell<HashSet<String>>, // keys, without the architecture
}

impl<'g> Loader<'g> {
    pub(crate) fn new(
        gguf: &'g Gguf,
        panels: Panels<'g>,
        architecture: &'g str,
        context_max: Option<u32>,
    ) -> Loader<'g> {
        Loader {
            gguf,
            panels,
            context_max: context_max.unwrap_or(u32::MAX),
            architecture,
            taken: HashSet::new(),
            asked: RefCell::default(),
        }
    }

    pub(crate) fn metadata(&self) -> &'g Metadata {
        self.gguf.metadata()
    }

    /// Longest sequence that was asked for.
    pub(crate) fn context_max(&self) -> u32 {
        self.context_max
    }

    /// A key of this architecture: `llama.block_count` for `block_count`. It counts as read.
    pub(crate) fn key(&self, name: &str) -> String {
        self.asked.borrow_mut().insert(name.to_owned());
        format!("{}.{name}", self.architecture)
    }

    /// Whether anybody asked for this key.
    pub(super) fn was_asked(&self, name: &str) -> bool {
        self.asked.borrow().contains(name)
    }

    /// A count that is there and not 0.
    pub(crate) fn count(&self, name: &str) -> Result<u32, LoadError> {
        let key = self.key(name);
        let value = self.metadata().require_u32(&key)?;
        self.check(&key, value, value > 0, "a positive number")
    }

    /// A float above 0, or the default where the key is absent.
    pub(crate) fn positive(&self, name: &str, default: f32) -> Result<f32, LoadError> {
        let key = self.key(name);
        let value = self.metadata().f32(&key)?.unwrap_or(default);
        let fits = value.is_finite() && value > 0.0;
        self.check(&key, value, fits, "a positive number")
    }

    /// `value` when it fits, an error that names the key when not.
    pub(crate) fn check<T: ToString>(
        &self,
        key: &str,
        value: T,
        fits: bool,
        wanted: &str,
    ) -> Result<T, LoadError> {
        match fits {
            true => Ok(value),
            false => Err(LoadError::BadValue {
                key: key.to_owned(),
                value: value.to_string(),
                wanted: wanted.to_owned(),
            }),
        }
    }

    /// The sizes every architecture states under the same names.
    pub(crate) fn shape(&self, norm: NormKind) -> Result<Shape, LoadError> {
        self.refuse("expert_count", "mixture of experts")?;
        self.sizes(norm)
    }

    /// The sizes of an architecture that may have experts.
    pub(crate) fn shape_with_experts(&self) -> Result<Shape, LoadError> {
        let key = self.key("expert_count");
        let mut shape = self.sizes(NormKind::Rms)?;
        let count = self.metadata().u32(&key)?.unwrap_or(0) as usize;
        if count == 0 {
            return Ok(shape);
        }
        let used = self.count("expert_used_count")? as usize;
        let wanted = format!("a number up to {count} experts");
        self.check(&self.key("expert_used_count"), used, used <= count, &wanted)?;
        let gating = self.key("expert_gating_func");
        /// Softmax; the others came with later architectures.
        const SOFTMAX: u32 = 1;
        let gating_func = self.metadata().u32(&gating)?.unwrap_or(SOFTMAX);
        self.check(&gating, gating_func, gating_func == SOFTMAX, "1 (softmax)")?;
        self.refuse_other_mixtures()?;
        shape.experts = Some(ExpertShape {
            count,
            used,
            feed_forward: match self
                .metadata()
                .u32(&self.key("expert_feed_forward_length"))?
            {
                None => shape.feed_forward,
                Some(_) => self.count("expert_feed_forward_length")? as usize,
            },
        });
        Ok(shape)
    }

    /// Refuses what other architectures do with experts: a key that is ignored would be another model.
    fn refuse_other_mixtures(&self) -> Result<(), LoadError> {
        let norm = self.key("expert_weights_norm");
        let is_normed = self.metadata().bool(&norm)?.unwrap_or(true);
        self.check(&norm, is_normed, is_normed, "true")?;
        let scale = self.key("expert_weights_scale");
        let factor = self.metadata().f32(&scale)?.unwrap_or(1.0);
        // 0 is how files say that there is none.
        let is_plain = factor == 0.0 || factor == 1.0;
        self.check(&scale, factor, is_plain, "1")?;
        self.refuse("expert_shared_count", "shared experts")?;
        self.refuse("expert_group_count", "groups of experts")?;
        self.refuse("leading_dense_block_count", "layers without experts")
    }

    fn sizes(&self, norm: NormKind) -> Result<Shape, LoadError> {
        let hidden = self.count("embedding_length")?;
        let heads = self.count("attention.head_count")?;
        let kv_heads_key = self.key("attention.head_count_kv");
        let kv_heads = self.metadata().u32(&kv_heads_key)?.unwrap_or(heads);
        let fits = kv_heads > 0 && heads.is_multiple_of(kv_heads);
        self.check(
            &kv_heads_key,
            kv_heads,
            fits,
            &format!("a divisor of {heads} heads"),
        )?;
        let eps = match norm {
            NormKind::Rms => "attention.layer_norm_rms_epsilon",
            NormKind::Layer => "attention.layer_norm_epsilon",
        };
        self.metadata().require_f32(&self.key(eps))?;
        let embedding = self.gguf.require("token_embd.weight")?;
        Ok(Shape {
            layers: self.count("block_count")?,
            context: self.count("context_length")?,
            vocab: rows(&embedding)?,
            hidden: hidden as usize,
            feed_forward: self.count("feed_forward_length")? as usize,
            experts: None,
            heads: heads as usize,
            kv_heads: kv_heads as usize,
            head_dim: self.head_dim(hidden, heads)? as usize,
            norm,
            eps: self.positive(eps, 0.0)?,
        })
    }

    fn head_dim(&self, hidden: u32, heads: u32) -> Result<u32, LoadError> {
        /// The kernels keep one head in registers and stack buffers; no known model has wider ones.
        const HEAD_DIM_MAX: u32 = 512;
        let key = self.key("attention.key_length");
        let head_dim = self.metadata().u32(&key)?.unwrap_or(hidden / heads);
        let fits = head_dim > 0 && head_dim.is_multiple_of(2) && head_dim <= HEAD_DIM_MAX;
        self.check(&key, head_dim, fits, "an even number up to 512")?;
        let key = self.key("attention.value_length");
        let value_dim = self.metadata().u32(&key)?.unwrap_or(head_dim);
        let wanted = format!("the key length {head_dim}");
        self.check(&key, value_dim, value_dim == head_dim, &wanted)
    }

    /// A matrix of exactly this shape, prepared for the CPU.
    pub(crate) fn matrix(
        &mut self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Matrix, LoadError> {
        let view = self.view(name, rows, cols)?;
        self.panels.matrix(name, view)
    }

    /// Matrices of one width that the file keeps one below the other, as one tensor of exactly their rows.
    pub(crate) fn fused_matrices<const N: usize>(
        &mut self,
        name: &str,
        rows: [usize; N],
        cols: usize,
    ) -> Result<[Matrix; N], LoadError> {
        let view = self.view(name, rows.iter().sum(), cols)?;
        let mut start = 0;
        let mut matrices = Vec::with_capacity(N);
        for (index, rows) in rows.into_iter().enumerate() {
            let part = view.rows(start..start + rows);
            matrices.push(self.panels.matrix(&format!("{name}[{index}]"), part)?);
            start += rows;
        }
        let matrices: Result<[Matrix; N], _> = matrices.try_into();
        Ok(matrices.unwrap_or_else(|_| unreachable!("one matrix for each of N")))
    }

    /// Matrices of one shape that the file keeps as one tensor of three dimensions.
    pub(crate) fn stacked_matrices(
        &mut self,
        name: &str,
        rows: usize,
        cols: usize,
        count: usize,
    ) -> Result<Vec<Matrix>, LoadError> {
        let tensor = self.gguf.require(name)?;
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
                self.panels.matrix(&format!("{name}[{index}]"), part)
            })
            .collect()
    }

    fn view(&mut self, name: &str, rows: usize, cols: usize) -> Result<MatrixView<'g>, LoadError> {
        let tensor = self.gguf.require(name)?;
        self.taken.insert(tensor.name);
        let view = tensor.matrix()?;
        match (view.rows, view.cols) == (rows, cols) {
            true => Ok(view),
            false => Err(wrong_shape(&tensor, &[cols as u64, rows as u64])),
        }
    }

    /// Rows of a matrix whose height nothing else says.
    pub(crate) fn rows_of(&self, name: &str) -> Result<usize, LoadError> {
        Ok(self.gguf.require(name)?.matrix()?.rows)
    }

    /// Whether the file has a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.gguf.tensor(name).is_some()
    }

    /// The matrix `output.weight` where the file has one; models without it use the embedding again.
    pub(crate) fn optional_output(&mut self, shape: &Shape) -> Result<Option<Matrix>, LoadError> {
        match self.gguf.tensor("output.weight") {
            None => Ok(None),
            Some(_) => self
                .matrix("output.weight", shape.vocab as usize, shape.hidden)
                .map(Some),
        }
    }

    /// A vector of exactly this length.
    pub(crate) fn vector(&mut self, name: &str, length: usize) -> Result<Vec<f32>, LoadError> {
        let tensor = self.gguf.require(name)?;
        self.taken.insert(tensor.name);
        if tensor.shape.iter().product::<u64>() != length as u64 {
            return Err(wrong_shape(&tensor, &[length as u64]));
        }
        Ok(tensor.vector_f32()?)
    }

    /// The vector where the file has one.
    pub(crate) fn optional_vector(
        &mut self,
        name: &str,
        length: usize,
    ) -> Result<Option<Vec<f32>>, LoadError> {
        match self.gguf.tensor(name) {
            None => Ok(None),
            Some(_) => self.vector(name, length).map(Some),
        }
    }

    /// Ends the loading. Refuses a file with tensors that nobody took: biases, experts, more layers than it says; and with
    /// keys that nobody read and that mean another model.
    pub(crate) fn finish(self) -> Result<(), LoadError> {
        self.refuse_unread_keys()?;
        let unused = |tensor: &Tensor<'_>| !self.taken.contains(tensor.name);
        let count = self.gguf.tensors().filter(unused).count();
        match self.gguf.tensors().find(unused) {
            None => {
                self.panels.finish();
                Ok(())
            }
            Some(tensor) => Err(LoadError::UnusedTensor {
                name: tensor.name.to_owned(),
                architecture: self.architecture.to_owned(),
                count,
            }),
        }
    }
}

/// Rows of a matrix; token ids are u32.
fn rows(tensor: &Tensor<'_>) -> Result<u32, LoadError> {
    let view = tensor.matrix()?;
    u32::try_from(view.rows).map_err(|_| {
        LoadError::Gguf(GgufError::TensorTooLarge {
            name: tensor.name.to_owned(),
            shape: tensor.shape.to_vec(),
        })
    })
}

fn wrong_shape(tensor: &Tensor<'_>, expected: &[u64]) -> LoadError {
    LoadError::WrongShape {
        name: tensor.name.to_owned(),
        shape: tensor.shape.to_vec(),
        expected: expected.to_vec(),
    }
}
