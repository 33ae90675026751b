//! The `bert` architecture: encoders whose output is one vector for a whole text, as MiniLM, BGE and E5 are.
//!
//! Learned positions, attention in both directions, layer norms after what they normalise, GELU without a gate. The text's
//! vector is pooled from the last hidden states and scaled to length 1.

use realm_kernels::{
    Activation, Activations, AttentionRow, BLOCK_TOKENS, Cpu, KvLayer, KvType, Matrix, Precision,
};

use super::LoadError;
use super::layer::Norm;
use super::loader::{Loader, NormKind, Shape};
use super::ops::{Part, Site};
use super::projection::{Input, Projection};

/// Tokens of one forward pass at most, unless a single text has more.
pub(crate) const PASS_TOKENS_MAX: usize = 512;

/// A model with its weights and the buffers of a pass.
pub(crate) struct Encoder {
    cpu: Cpu,
    shape: Shape,
    pooling: Pooling,
    tokens: Matrix,
    positions: Matrix,
    types: Option<Matrix>,
    norm: Norm<Cpu>,
    layers: Vec<EncoderLayer>,
    kv: KvLayer, // of the layer being computed
    pass: Pass,
}

struct EncoderLayer {
    q: Projection<Cpu>,
    k: Projection<Cpu>,
    v: Projection<Cpu>,
    output: Projection<Cpu>,
    attention_norm: Norm<Cpu>,
    up: Projection<Cpu>,
    down: Projection<Cpu>,
    output_norm: Norm<Cpu>,
}

/// How the hidden states of a text become its vector.
#[derive(Clone, Copy, Debug)]
enum Pooling {
    Mean,
    First,
    Last,
}

/// The rows of a pass, and its buffers.
struct Pass {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    attention: Vec<AttentionRow>,
    x: Vec<f32>,         // [rows, hidden]
    sum: Vec<f32>,       // [rows, hidden], before a norm
    attend: Activations, // [rows, hidden]
    acts: Activations,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attended: Vec<f32>,
    inner: Vec<f32>, // [rows, feed_forward]
}

impl Encoder {
    pub(super) fn load(loader: &mut Loader<'_, Cpu>, cpu: Cpu) -> Result<Encoder, LoadError> {
        let mut shape = loader.shape(NormKind::Layer)?;
        let keys = &loader.keys;
        let causal = keys.key("attention.causal");
        let is_causal = keys.metadata().bool(&causal)?.unwrap_or(false);
        keys.check(&causal, is_causal, !is_causal, "false")?;
        let hidden = shape.hidden;
        let table = loader.rows_of("position_embd.weight")?;
        let fits = shape.context as usize <= table;
        let wanted = format!("at most the {table} positions of position_embd.weight");
        let context_length = loader.keys.key("context_length");
        loader
            .keys
            .check(&context_length, shape.context, fits, &wanted)?;
        shape.context = shape.context.min(loader.keys.context_max());
        let tokens = loader.matrix("token_embd.weight", shape.vocab as usize, hidden)?;
        let positions = loader.matrix("position_embd.weight", table, hidden)?;
        let types = match loader.has("token_types.weight") {
            true => {
                let types = loader.rows_of("token_types.weight")?;
                Some(loader.matrix("token_types.weight", types, hidden)?)
            }
            false => None,
        };
        let layers = (0..shape.layers)
            .map(|index| EncoderLayer::load(loader, &shape, index))
            .collect::<Result<Vec<EncoderLayer>, LoadError>>()?;
        let rows = PASS_TOKENS_MAX.max(shape.context as usize);
        // Every text begins a block of its own.
        let blocks = rows.div_ceil(BLOCK_TOKENS) + PASS_TOKENS_MAX;
        Ok(Encoder {
            pooling: pooling(loader)?,
            tokens,
            positions,
            types,
            norm: Norm::load(loader, "token_embd_norm", &shape)?,
            layers,
            kv: KvLayer::new(blocks, shape.kv_heads, shape.head_dim, KvType::F16),
            pass: Pass::default(),
            cpu,
            shape,
        })
    }

    /// Sizes for whoever asks the model.
    pub(crate) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// One vector of length 1 for each text; a vector does not depend on the texts beside it.
    ///
    /// # Panics
    /// When a text is empty or longer than the context, has an id outside the vocabulary, or when there are more than
    /// [`PASS_TOKENS_MAX`] tokens in several texts.
    pub(crate) fn embed(&mut self, texts: &[Vec<u32>]) -> Vec<Vec<f32>> {
        let _turn = self.cpu.turn();
        let tables = self.pass.lay_out(texts, &self.shape);
        let tables: Vec<&[u32]> = tables.iter().map(Vec::as_slice).collect();
        self.embed_tokens();
        for layer in &self.layers {
            layer.run(
                &self.cpu,
                &self.shape,
                &tables,
                &mut self.kv,
                &mut self.pass,
            );
        }
        let mut rows = self.pass.x.chunks_exact(self.shape.hidden);
        texts
            .iter()
            .map(|text| self.pooling.pool(rows.by_ref().take(text.len())))
            .collect()
    }

    fn embed_tokens(&mut self) {
        let Pass {
            tokens,
            positions,
            x,
            sum,
            inner,
            ..
        } = &mut self.pass;
        let cpu = &self.cpu;
        cpu.embed(&self.tokens, tokens, 1.0, sum);
        cpu.embed(&self.positions, positions, 1.0, x);
        cpu.add_scaled(x, 1.0, sum);
        if let Some(types) = &self.types {
            // All text is of the first type; the second is for pairs of texts.
            inner.resize(self.shape.hidden, 0.0);
            cpu.embed(types, &[0], 1.0, inner);
            cpu.add_bias(inner, sum);
        }
        self.norm.layer_norm(cpu, sum, x);
    }
}

impl EncoderLayer {
    fn load(
        loader: &mut Loader<'_, Cpu>,
        shape: &Shape,
        index: u32,
    ) -> Result<EncoderLayer, LoadError> {
        let name = |part: &str| format!("blk.{index}.{part}");
        let (hidden, inner) = (shape.hidden, shape.feed_forward);
        let [q, k, v] = Projection::load_qkv(loader, shape, index)?;
        let width = shape.heads * shape.head_dim;
        let mut projection = |part, tensor: &str, rows, cols| {
            Projection::load(loader, Site::Layer(index, part), &name(tensor), rows, cols)
        };
        let output = projection(Part::AttentionOutput, "attn_output", hidden, width)?;
        let up = projection(Part::Up, "ffn_up", inner, hidden)?;
        let down = projection(Part::Down, "ffn_down", hidden, inner)?;
        Ok(EncoderLayer {
            q,
            k,
            v,
            output,
            attention_norm: Norm::load(loader, &name("attn_output_norm"), shape)?,
            up,
            down,
            output_norm: Norm::load(loader, &name("layer_output_norm"), shape)?,
        })
    }

    fn run(&self, cpu: &Cpu, shape: &Shape, tables: &[&[u32]], kv: &mut KvLayer, pass: &mut Pass) {
        let Pass { x, sum, acts, .. } = pass;
        cpu.quantize(x, shape.hidden, &mut pass.attend);
        let (q, k, v) = (&mut pass.q, &mut pass.k, &mut pass.v);
        let products = [(&self.q, q), (&self.k, k), (&self.v, v)];
        Projection::apply_each(products, &Input::new(cpu, &pass.attend, &[]));
        cpu.kv_write(&pass.k, &pass.v, kv, &pass.slots);
        let attention = shape.attention(None);
        let attended = &mut pass.attended;
        cpu.attention(&pass.q, kv, &pass.attention, tables, &attention, attended);
        cpu.quantize(attended, shape.heads * shape.head_dim, acts);
        self.output.apply(&Input::new(cpu, acts, &[]), sum);
        cpu.add_scaled(x, 1.0, sum);
        self.attention_norm.layer_norm(cpu, sum, x);

        cpu.quantize(x, shape.hidden, acts);
        let inner = &mut pass.inner;
        inner.resize(pass.tokens.len() * shape.feed_forward, 0.0);
        self.up.apply(&Input::new(cpu, acts, &[]), inner);
        cpu.activate_quantize(inner, shape.feed_forward, Activation::Gelu, acts);
        self.down.apply(&Input::new(cpu, acts, &[]), sum);
        cpu.add_scaled(x, 1.0, sum);
        self.output_norm.layer_norm(cpu, sum, x);
    }
}

fn pooling(loader: &Loader<'_, Cpu>) -> Result<Pooling, LoadError> {
    let key = loader.keys.key("pooling_type");
    let found = loader.keys.metadata().require_u32(&key)?;
    match found {
        1 => Ok(Pooling::Mean),
        2 => Ok(Pooling::First),
        3 => Ok(Pooling::Last),
        _ => loader
            .keys
            .check(&key, found, false, "1 (mean), 2 (first) or 3 (last)")
            .map(|_| Pooling::Mean),
    }
}

impl Pooling {
    /// The vector of a text with at least one token.
    fn pool<'a>(self, mut rows: impl Iterator<Item = &'a [f32]>) -> Vec<f32> {
        let first = rows.next().unwrap_or_default();
        let mut pooled = first.to_vec();
        match self {
            Pooling::First => rows.for_each(drop),
            Pooling::Last => rows.for_each(|row| pooled.copy_from_slice(row)),
            // The sum serves as well: only the direction is left in the end.
            Pooling::Mean => {
                rows.for_each(|row| pooled.iter_mut().zip(row).for_each(|(sum, x)| *sum += x));
            }
        }
        let length = pooled.iter().map(|x| x * x).sum::<f32>().sqrt();
        // A vector of zeros has no direction to keep.
        if length > 0.0 {
            pooled.iter_mut().for_each(|x| *x /= length);
        }
        pooled
    }
}

impl Default for Pass {
    fn default() -> Pass {
        Pass {
            tokens: Vec::new(),
            positions: Vec::new(),
            slots: Vec::new(),
            attention: Vec::new(),
            x: Vec::new(),
            sum: Vec::new(),
            attend: Activations::with_precision(Precision::Int16),
            acts: Activations::default(),
            q: Vec::new(),
            k: Vec::new(),
            v: Vec::new(),
            attended: Vec::new(),
            inner: Vec::new(),
        }
    }
}

impl Pass {
    /// Makes every text a sequence; returns their block tables.
    fn lay_out(&mut self, texts: &[Vec<u32>], shape: &Shape) -> Vec<Vec<u32>> {
        self.tokens.clear();
        self.positions.clear();
        self.slots.clear();
        self.attention.clear();
        let mut tables = Vec::with_capacity(texts.len());
        let mut block = 0;
        for (table, text) in (0..).zip(texts) {
            let length = text.len() as u32;
            assert!(
                (1..=shape.context).contains(&length),
                "a text has 1 to {} tokens, not {length}",
                shape.context
            );
            self.tokens.extend_from_slice(text);
            self.positions.extend(0..length);
            let first_slot = block * BLOCK_TOKENS as u32;
            self.slots.extend(first_slot..first_slot + length);
            // Every row sees the whole text, so all of them stand at its end.
            let row = AttentionRow {
                table,
                position: length - 1,
            };
            self.attention.extend(std::iter::repeat_n(row, text.len()));
            let blocks = length.div_ceil(BLOCK_TOKENS as u32);
            tables.push((block..block + blocks).collect());
            block += blocks;
        }
        let rows = self.tokens.len();
        assert!(
            texts.len() == 1 || rows <= PASS_TOKENS_MAX,
            "{rows} tokens are more than a pass has"
        );
        let width = rows * shape.heads * shape.head_dim;
        let kv_width = rows * shape.kv_heads * shape.head_dim;
        for (buffer, length) in [
            (&mut self.x, rows * shape.hidden),
            (&mut self.sum, rows * shape.hidden),
            (&mut self.q, width),
            (&mut self.attended, width),
            (&mut self.k, kv_width),
            (&mut self.v, kv_width),
        ] {
            buffer.resize(length, 0.0);
        }
        tables
    }
}
