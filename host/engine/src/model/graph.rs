//! What the architectures share: their sizes, how their weights are fetched and checked, the step they compute,
//! and the feed-forward of gated linear units.

use std::collections::HashSet;

use realm_kernels::{
    Activation, Activations, AttentionRow, AttentionShape, Cpu, KvLayer, Matrix, MatrixView, Rope,
    RopeLayout,
};
use realm_weights::{Gguf, GgufError, Metadata, Tensor};

use super::LoadError;

/// One step as the kernels want it; one entry per row unless it says otherwise.
pub(crate) struct Step<'a> {
    pub(crate) tokens: &'a [u32],
    pub(crate) positions: &'a [u32],
    pub(crate) slots: &'a [u32], // block * 16 + offset, where K and V go
    pub(crate) attention: &'a [AttentionRow],
    pub(crate) tables: &'a [&'a [u32]], // per sequence
}

/// A model architecture with its weights.
pub(crate) trait Graph: Send {
    /// Sizes that the cache and the executor need.
    fn shape(&self) -> &Shape;

    /// Computes all layers: K and V of every row go to `kv`, the last hidden states to `scratch.x`.
    fn layers(&self, cpu: &Cpu, step: &Step<'_>, kv: &mut [KvLayer], scratch: &mut Scratch);

    /// The output norm, then the output matrix.
    fn head(&self) -> (&[f32], &Matrix);
}

/// Buffers that live as long as the executor and only grow.
pub(crate) struct Scratch {
    pub(crate) x: Vec<f32>,         // [rows, hidden], the residual stream
    pub(crate) attend: Activations, // [rows, hidden], normed for Q, K and V
    pub(crate) acts: Activations,
    pub(crate) q: Vec<f32>,        // [rows, heads * head_dim]
    pub(crate) k: Vec<f32>,        // [rows, kv_heads * head_dim]
    pub(crate) v: Vec<f32>,        // [rows, kv_heads * head_dim]
    pub(crate) attended: Vec<f32>, // [rows, heads * head_dim]
    pub(crate) branch: Vec<f32>,   // [rows, hidden], for models that norm it before adding
    pub(crate) gated: Activations, // [rows, feed_forward]
    pub(crate) tmp: Vec<f32>,
}

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch {
            x: Vec::new(),
            attend: Activations::sensitive(),
            acts: Activations::default(),
            q: Vec::new(),
            k: Vec::new(),
            v: Vec::new(),
            attended: Vec::new(),
            branch: Vec::new(),
            gated: Activations::default(),
            tmp: Vec::new(),
        }
    }
}

impl Scratch {
    /// Gives every buffer its length for this many rows.
    pub(crate) fn resize(&mut self, shape: &Shape, rows: usize) {
        self.x.resize(rows * shape.hidden, 0.0);
        self.branch.resize(rows * shape.hidden, 0.0);
        self.q.resize(rows * shape.heads * shape.head_dim, 0.0);
        self.attended
            .resize(rows * shape.heads * shape.head_dim, 0.0);
        self.k.resize(rows * shape.kv_heads * shape.head_dim, 0.0);
        self.v.resize(rows * shape.kv_heads * shape.head_dim, 0.0);
    }
}

/// The sizes of a model, each held against the file's tensors.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) layers: u32,
    pub(crate) context: u32,
    pub(crate) vocab: u32,
    pub(crate) hidden: usize,
    pub(crate) feed_forward: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) eps: f32,
}

impl Shape {
    /// Attention over all earlier positions, or a window of them.
    pub(crate) fn attention(&self, scale: f32, window: Option<u32>) -> AttentionShape {
        AttentionShape {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale,
            window,
            softcap: None,
        }
    }
}

/// Projections of an attention layer.
pub(crate) struct AttentionWeights {
    pub(crate) q: Matrix,
    pub(crate) k: Matrix,
    pub(crate) v: Matrix,
    pub(crate) output: Matrix,
}

impl AttentionWeights {
    /// Fills `scratch.q`, `.k` and `.v` from the normed rows in `scratch.attend`.
    pub(crate) fn project(&self, cpu: &Cpu, scratch: &mut Scratch) {
        cpu.matmul(&self.q, &scratch.attend, &mut scratch.q);
        cpu.matmul(&self.k, &scratch.attend, &mut scratch.k);
        cpu.matmul(&self.v, &scratch.attend, &mut scratch.v);
    }
}

/// A gated feed-forward: `down(act(gate x) * up x)`.
pub(crate) struct FeedForward {
    pub(crate) gate: Matrix,
    pub(crate) up: Matrix,
    pub(crate) down: Matrix,
}

impl FeedForward {
    /// Fills `scratch.gated` from the normed rows in `scratch.acts`; `down` is left to the model.
    pub(crate) fn gate(&self, cpu: &Cpu, act: Activation, scratch: &mut Scratch) {
        let Scratch {
            acts, gated, tmp, ..
        } = scratch;
        cpu.gate_up_act(&self.gate, &self.up, act, acts, tmp, gated);
    }
}

/// Fetches weights and hyperparameters, and remembers which tensors were taken.
pub(crate) struct Loader<'g> {
    gguf: &'g Gguf,
    cpu: &'g Cpu,
    architecture: &'g str,
    taken: HashSet<&'g str>,
}

impl<'g> Loader<'g> {
    pub(crate) fn new(gguf: &'g Gguf, cpu: &'g Cpu, architecture: &'g str) -> Loader<'g> {
        Loader {
            gguf,
            cpu,
            architecture,
            taken: HashSet::new(),
        }
    }

    pub(crate) fn metadata(&self) -> &'g Metadata {
        self.gguf.metadata()
    }

    /// A key of this architecture: `llama.block_count` for `block_count`.
    pub(crate) fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
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

    /// Refuses a key that turns on a feature we do not compute.
    pub(crate) fn refuse(&self, name: &str, feature: &'static str) -> Result<(), LoadError> {
        let key = self.key(name);
        let value = self.metadata().get(&key);
        let off = match value {
            None => true,
            Some(_) => {
                self.metadata()
                    .u64(&key)
                    .is_ok_and(|value| value == Some(0))
                    || self
                        .metadata()
                        .f32(&key)
                        .is_ok_and(|value| value == Some(0.0))
            }
        };
        match value {
            Some(value) if !off => Err(LoadError::Unsupported {
                key,
                value: value.to_string(),
                feature,
            }),
            _ => Ok(()),
        }
    }

    /// The sizes every architecture states under the same names.
    pub(crate) fn shape(&self) -> Result<Shape, LoadError> {
        self.refuse("expert_count", "mixture of experts")?;
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
        let eps = self.key("attention.layer_norm_rms_epsilon");
        self.metadata().require_f32(&eps)?;
        let embedding = self.gguf.require("token_embd.weight")?;
        Ok(Shape {
            layers: self.count("block_count")?,
            context: self.count("context_length")?,
            vocab: rows(&embedding)?,
            hidden: hidden as usize,
            feed_forward: self.count("feed_forward_length")? as usize,
            heads: heads as usize,
            kv_heads: kv_heads as usize,
            head_dim: self.head_dim(hidden, heads)? as usize,
            eps: self.positive("attention.layer_norm_rms_epsilon", 0.0)?,
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

    /// The rotary embedding with this base; `scaled` applies the file's linear scaling and factors.
    pub(crate) fn rope(
        &mut self,
        shape: &Shape,
        base: f32,
        layout: RopeLayout,
        scaled: bool,
    ) -> Result<Rope, LoadError> {
        let key = self.key("rope.dimension_count");
        let dims = self.metadata().u32(&key)?.unwrap_or(shape.head_dim as u32);
        let fits = dims > 0 && dims.is_multiple_of(2) && dims as usize <= shape.head_dim;
        let wanted = format!("an even number up to {}", shape.head_dim);
        let dims = self.check(&key, dims, fits, &wanted)? as usize;
        let mut freq_scale = 1.0;
        let mut factors = None;
        if scaled {
            freq_scale = 1.0 / self.rope_scaling_factor()?;
            factors = self.optional_vector("rope_freqs.weight", dims / 2)?;
        }
        let (head_dim, factors) = (shape.head_dim, factors.as_deref());
        Ok(Rope::new(head_dim, dims, base, freq_scale, layout, factors))
    }

    fn rope_scaling_factor(&self) -> Result<f32, LoadError> {
        let key = self.key("rope.scaling.type");
        match self.metadata().str(&key)? {
            None | Some("none") => Ok(1.0),
            Some("linear") => self.positive("rope.scaling.factor", 1.0),
            Some(other) => Err(LoadError::Unsupported {
                key,
                value: other.to_owned(),
                feature: "this scaling of rotary embeddings",
            }),
        }
    }

    /// A matrix of exactly this shape, prepared for the CPU.
    pub(crate) fn matrix(
        &mut self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Matrix, LoadError> {
        let tensor = self.gguf.require(name)?;
        self.taken.insert(tensor.name);
        let view: MatrixView<'_> = tensor.matrix()?;
        if (view.rows, view.cols) != (rows, cols) {
            return Err(wrong_shape(&tensor, &[cols as u64, rows as u64]));
        }
        Ok(self.cpu.prepare(view))
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

    fn optional_vector(
        &mut self,
        name: &str,
        length: usize,
    ) -> Result<Option<Vec<f32>>, LoadError> {
        match self.gguf.tensor(name) {
            None => Ok(None),
            Some(_) => self.vector(name, length).map(Some),
        }
    }

    /// The projections of layer `index`.
    pub(crate) fn attention(
        &mut self,
        index: u32,
        shape: &Shape,
    ) -> Result<AttentionWeights, LoadError> {
        let width = shape.heads * shape.head_dim;
        let kv_width = shape.kv_heads * shape.head_dim;
        let hidden = shape.hidden;
        Ok(AttentionWeights {
            q: self.matrix(&format!("blk.{index}.attn_q.weight"), width, hidden)?,
            k: self.matrix(&format!("blk.{index}.attn_k.weight"), kv_width, hidden)?,
            v: self.matrix(&format!("blk.{index}.attn_v.weight"), kv_width, hidden)?,
            output: self.matrix(&format!("blk.{index}.attn_output.weight"), hidden, width)?,
        })
    }

    /// The feed-forward of layer `index`.
    pub(crate) fn feed_forward(
        &mut self,
        index: u32,
        shape: &Shape,
    ) -> Result<FeedForward, LoadError> {
        let (hidden, inner) = (shape.hidden, shape.feed_forward);
        Ok(FeedForward {
            gate: self.matrix(&format!("blk.{index}.ffn_gate.weight"), inner, hidden)?,
            up: self.matrix(&format!("blk.{index}.ffn_up.weight"), inner, hidden)?,
            down: self.matrix(&format!("blk.{index}.ffn_down.weight"), hidden, inner)?,
        })
    }

    /// A norm of layer `index`.
    pub(crate) fn norm(
        &mut self,
        index: u32,
        name: &str,
        length: usize,
    ) -> Result<Vec<f32>, LoadError> {
        self.vector(&format!("blk.{index}.{name}.weight"), length)
    }

    /// Refuses a file with tensors that nobody took: biases, experts, more layers than it says.
    pub(crate) fn refuse_unused(&self) -> Result<(), LoadError> {
        let unused = |tensor: &Tensor<'_>| !self.taken.contains(tensor.name);
        let count = self.gguf.tensors().filter(unused).count();
        match self.gguf.tensors().find(unused) {
            None => Ok(()),
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
