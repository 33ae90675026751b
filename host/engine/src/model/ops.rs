//! What a graph asks of whatever computes it: the operations, and the forms in which weights and rows are kept between them.
//!
//! A graph never looks into the rows it passes on, so that they may lie in another memory than the host's; what must come
//! to the host is read with [`Ops::read`]. Calls are dispatched at compile time.

use realm_kernels::{
    Activation, Activations, AttentionRow, AttentionShape, Cpu, KvLayer, LayerNorm, Matrix,
    Precision, Rope,
};

use super::layer::Norm;

/// Where a projection stands in a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Site {
    /// A part of a layer.
    Layer(u32, Part),
    /// The output matrix.
    Logits,
}

/// Which of a layer's projections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Query,
    Key,
    Value,
    AttentionOutput,
    Gate,
    Up,
    Down,
    Router,
    ExpertGate(u32),
    ExpertUp(u32),
    ExpertDown(u32),
}

/// The operations of a graph. Shapes are `[rows, width]`; an operation panics when they do not fit.
pub(crate) trait Ops: Sized {
    /// Weights to multiply with. A clone shares them.
    type Matrix: Clone;
    /// A row of weights: a norm or a bias.
    type Vector;
    /// Rows of f32.
    type Rows: Default;
    /// Rows made ready to be multiplied.
    type Acts: Default;
    /// Keys and values of a layer.
    type Kv;

    /// Takes a norm or a bias to where it is used.
    fn vector(&self, values: Vec<f32>) -> Self::Vector;
    /// How finely the rows that the buffer gets next are rounded.
    fn set_precision(x: &mut Self::Acts, precision: &Precision);
    /// Number of rows.
    fn rows(x: &Self::Acts) -> usize;
    /// Gives a buffer so many elements, whatever they are.
    fn resize(&self, x: &mut Self::Rows, elements: usize);
    /// Moves the elements of `x` to the host; what `x` holds afterwards is undefined.
    fn read(&self, x: &mut Self::Rows, out: &mut Vec<f32>);

    /// `out = scale * table[ids]`.
    fn embed(&self, table: &Self::Matrix, ids: &[u32], scale: f32, out: &mut Self::Rows);
    /// Makes rows ready for matrices, normed where there is a norm.
    fn quantize(
        &self,
        norm: Option<&Norm<Self>>,
        x: &Self::Rows,
        width: usize,
        out: &mut Self::Acts,
    );
    /// `out = x · Wᵀ` for each of the products.
    fn matmul<const N: usize>(
        &self,
        products: [(&Self::Matrix, &mut Self::Rows); N],
        x: &Self::Acts,
    );
    /// `sum += x · Wᵀ`.
    fn matmul_add(&self, w: &Self::Matrix, x: &Self::Acts, sum: &mut Self::Rows);
    /// `x += bias`.
    fn add_bias(&self, bias: &Self::Vector, x: &mut Self::Rows);
    /// What the adapters of the rows add to the products of a projection: `out += delta(x)`. There is one entry of `adapters`
    /// for each row of `x`, or none at all when no row of the batch has an adapter.
    fn adapt(&self, site: Site, x: &Self::Acts, adapters: &[Option<u32>], out: &mut Self::Rows);
    /// The root-mean-square norm of every piece of `x` that is as wide as the norm: a head, or all of them.
    fn norm_heads(&self, norm: &Self::Vector, eps: f32, x: &mut Self::Rows);
    /// Rotates every head.
    fn rope(&self, rope: &Rope, heads: usize, positions: &[u32], x: &mut Self::Rows);
    /// Writes keys and values to their slots: block times 16, plus the place in the block.
    fn kv_write(&self, k: &Self::Rows, v: &Self::Rows, slots: &[u32], kv: &mut Self::Kv);
    /// Attention of every row over its sequence.
    fn attention(
        &self,
        shape: &AttentionShape,
        q: &Self::Rows,
        kv: &Self::Kv,
        rows: &[AttentionRow],
        tables: &[&[u32]],
        out: &mut Self::Rows,
    );
    /// `out = act(x · Gᵀ) * (x · Uᵀ)`; `tmp` is scratch.
    fn gate_up_act(
        &self,
        weights: [&Self::Matrix; 2],
        act: Activation,
        x: &Self::Acts,
        tmp: &mut Self::Rows,
        out: &mut Self::Acts,
    );
    /// `out = act(gate) * up`.
    fn gate_quantize(
        &self,
        act: Activation,
        gate: &Self::Rows,
        up: &Self::Rows,
        width: usize,
        out: &mut Self::Acts,
    );
    /// `out = act(x)`.
    fn activate_quantize(
        &self,
        act: Activation,
        x: &Self::Rows,
        width: usize,
        out: &mut Self::Acts,
    );
    /// `sum += norm(x)`.
    fn norm_add(&self, norm: &Self::Vector, eps: f32, x: &Self::Rows, sum: &mut Self::Rows);
    /// `sum += factor * x`.
    fn add_scaled(&self, factor: f32, x: &Self::Rows, sum: &mut Self::Rows);
    /// `sum = 0`.
    fn clear(&self, sum: &mut Self::Rows);
    /// `sum[row] += factor * x[i]` for the `i`-th of `to`, a row and its factor.
    fn scatter_add(
        &self,
        x: &Self::Rows,
        width: usize,
        to: impl Iterator<Item = (u32, f32)>,
        sum: &mut Self::Rows,
    );
    /// `out[i] = x[rows[i]]`.
    fn gather(&self, x: &Self::Rows, width: usize, rows: &[u32], out: &mut Self::Rows);
    /// The same of ready rows.
    fn gather_acts(&self, x: &Self::Acts, rows: &[u32], out: &mut Self::Acts);
    /// `x *= factor`.
    fn scale(&self, factor: f32, x: &mut Self::Rows);
    /// `x = cap * tanh(x / cap)`.
    fn softcap(&self, cap: f32, width: usize, x: &mut Self::Rows);
}

impl Ops for Cpu {
    type Matrix = Matrix;
    type Vector = Vec<f32>;
    type Rows = Vec<f32>;
    type Acts = Activations;
    type Kv = KvLayer;

    fn vector(&self, values: Vec<f32>) -> Vec<f32> {
        values
    }

    fn set_precision(x: &mut Activations, precision: &Precision) {
        x.set_precision(precision);
    }

    fn rows(x: &Activations) -> usize {
        x.rows()
    }

    fn resize(&self, x: &mut Vec<f32>, elements: usize) {
        x.resize(elements, 0.0);
    }

    fn read(&self, x: &mut Vec<f32>, out: &mut Vec<f32>) {
        std::mem::swap(x, out);
    }

    fn embed(&self, table: &Matrix, ids: &[u32], scale: f32, out: &mut Vec<f32>) {
        self.embed(table, ids, scale, out);
    }

    fn quantize(
        &self,
        norm: Option<&Norm<Cpu>>,
        x: &Vec<f32>,
        width: usize,
        out: &mut Activations,
    ) {
        let Some(Norm { weight, bias, eps }) = norm else {
            return self.quantize(x, width, out);
        };
        match bias {
            None => self.norm_quantize(x, weight, *eps, out),
            Some(bias) => {
                let eps = *eps;
                self.layer_norm_quantize(x, LayerNorm { weight, bias, eps }, out);
            }
        }
    }

    fn matmul<const N: usize>(&self, products: [(&Matrix, &mut Vec<f32>); N], x: &Activations) {
        self.matmul_each(products.map(|(w, out)| (w, out.as_mut_slice())), x);
    }

    fn matmul_add(&self, w: &Matrix, x: &Activations, sum: &mut Vec<f32>) {
        self.matmul_add(w, x, sum);
    }

    fn add_bias(&self, bias: &Vec<f32>, x: &mut Vec<f32>) {
        self.add_bias(bias, x);
    }

    fn adapt(&self, _: Site, _: &Activations, adapters: &[Option<u32>], _: &mut Vec<f32>) {
        // The executor has none to load, and refuses the rows that ask for one.
        debug_assert!(adapters.is_empty(), "no row has an adapter");
    }

    fn norm_heads(&self, norm: &Vec<f32>, eps: f32, x: &mut Vec<f32>) {
        self.qk_norm(x, norm.len(), norm, eps);
    }

    fn rope(&self, rope: &Rope, heads: usize, positions: &[u32], x: &mut Vec<f32>) {
        self.rope(x, heads, rope, positions);
    }

    fn kv_write(&self, k: &Vec<f32>, v: &Vec<f32>, slots: &[u32], kv: &mut KvLayer) {
        self.kv_write(k, v, kv, slots);
    }

    fn attention(
        &self,
        shape: &AttentionShape,
        q: &Vec<f32>,
        kv: &KvLayer,
        rows: &[AttentionRow],
        tables: &[&[u32]],
        out: &mut Vec<f32>,
    ) {
        self.attention(q, kv, rows, tables, shape, out);
    }

    fn gate_up_act(
        &self,
        [gate, up]: [&Matrix; 2],
        act: Activation,
        x: &Activations,
        tmp: &mut Vec<f32>,
        out: &mut Activations,
    ) {
        self.gate_up_act(gate, up, act, x, tmp, out);
    }

    fn gate_quantize(
        &self,
        act: Activation,
        gate: &Vec<f32>,
        up: &Vec<f32>,
        width: usize,
        out: &mut Activations,
    ) {
        self.gate_quantize(gate, up, width, act, out);
    }

    fn activate_quantize(
        &self,
        act: Activation,
        x: &Vec<f32>,
        width: usize,
        out: &mut Activations,
    ) {
        self.activate_quantize(x, width, act, out);
    }

    fn norm_add(&self, norm: &Vec<f32>, eps: f32, x: &Vec<f32>, sum: &mut Vec<f32>) {
        self.norm_add(x, norm, eps, sum);
    }

    fn add_scaled(&self, factor: f32, x: &Vec<f32>, sum: &mut Vec<f32>) {
        self.add_scaled(x, factor, sum);
    }

    fn clear(&self, sum: &mut Vec<f32>) {
        sum.fill(0.0);
    }

    fn scatter_add(
        &self,
        x: &Vec<f32>,
        width: usize,
        to: impl Iterator<Item = (u32, f32)>,
        sum: &mut Vec<f32>,
    ) {
        for (x, (row, factor)) in x.chunks_exact(width).zip(to) {
            let row = row as usize * width;
            self.add_scaled(x, factor, &mut sum[row..row + width]);
        }
    }

    fn gather(&self, x: &Vec<f32>, width: usize, rows: &[u32], out: &mut Vec<f32>) {
        out.clear();
        for &row in rows {
            let row = row as usize * width;
            out.extend_from_slice(&x[row..row + width]);
        }
    }

    fn gather_acts(&self, x: &Activations, rows: &[u32], out: &mut Activations) {
        out.gather(x, rows);
    }

    fn scale(&self, factor: f32, x: &mut Vec<f32>) {
        self.scale(factor, x);
    }

    fn softcap(&self, cap: f32, width: usize, x: &mut Vec<f32>) {
        self.softcap(cap, width, x);
    }
}
