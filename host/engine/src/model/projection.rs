//! Matrices with their place in the model. Every product of a graph with a matrix is computed here, and followed by what the
//! adapters of the batch add to it.

use realm_kernels::Activation;

use super::LoadError;
use super::loader::{Loader, Shape};
use super::ops::{Ops, Part, Site};

/// A matrix and the bias that is added to its products.
pub(super) struct Projection<O: Ops> {
    pub(super) site: Site,
    pub(super) matrix: O::Matrix,
    pub(super) bias: Option<O::Vector>,
    pub(super) width: usize, // of its products
}

/// The rows that projections are computed for.
pub(super) struct Input<'a, O: Ops> {
    pub(super) ops: &'a O,
    pub(super) x: &'a O::Acts,
    /// Of each row; empty when no row of the batch has one.
    pub(super) adapters: &'a [Option<u32>],
}

impl<'a, O: Ops> Input<'a, O> {
    pub(super) fn new(ops: &'a O, x: &'a O::Acts, adapters: &'a [Option<u32>]) -> Input<'a, O> {
        Input { ops, x, adapters }
    }
}

impl<O: Ops> Projection<O> {
    /// `name.weight`, and `name.bias` where the model has one.
    pub(super) fn load(
        loader: &mut Loader<'_, O>,
        site: Site,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Projection<O>, LoadError> {
        let bias = loader.optional_vector(&format!("{name}.bias"), rows)?;
        let plain = Projection::load_plain(loader, site, name, rows, cols)?;
        Ok(Projection { bias, ..plain })
    }

    /// `name.weight`, where no model has a bias.
    pub(super) fn load_plain(
        loader: &mut Loader<'_, O>,
        site: Site,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Projection<O>, LoadError> {
        let matrix = loader.matrix(&format!("{name}.weight"), rows, cols)?;
        Ok(Projection::new(site, matrix, rows))
    }

    /// Without a bias.
    pub(super) fn new(site: Site, matrix: O::Matrix, width: usize) -> Projection<O> {
        Projection {
            site,
            matrix,
            bias: None,
            width,
        }
    }

    /// What makes queries, keys and values: three tensors, or one in which they lie below each other.
    pub(super) fn load_qkv(
        loader: &mut Loader<'_, O>,
        shape: &Shape,
        index: u32,
    ) -> Result<[Projection<O>; 3], LoadError> {
        let name = |part: &str| format!("blk.{index}.{part}");
        let site = |part| Site::Layer(index, part);
        let (hidden, kv_width) = (shape.hidden, shape.kv_heads * shape.head_dim);
        let width = shape.heads * shape.head_dim;
        let parts = [
            (Part::Query, width),
            (Part::Key, kv_width),
            (Part::Value, kv_width),
        ];
        if loader.has(&name("attn_qkv.weight")) {
            let parts = parts.map(|(part, rows)| (site(part), rows));
            return Projection::load_fused(loader, &name("attn_qkv"), parts, hidden);
        }
        let [q, k, v] = parts;
        Ok([
            Projection::load(loader, site(q.0), &name("attn_q"), q.1, hidden)?,
            Projection::load(loader, site(k.0), &name("attn_k"), k.1, hidden)?,
            Projection::load(loader, site(v.0), &name("attn_v"), v.1, hidden)?,
        ])
    }

    /// Projections that the file keeps one below the other in one tensor, by site and number of rows.
    fn load_fused<const N: usize>(
        loader: &mut Loader<'_, O>,
        name: &str,
        parts: [(Site, usize); N],
        cols: usize,
    ) -> Result<[Projection<O>; N], LoadError> {
        let rows = parts.map(|(_, rows)| rows);
        let matrices = loader.fused_matrices(&format!("{name}.weight"), rows, cols)?;
        let bias = loader.optional_values(&format!("{name}.bias"), rows.iter().sum())?;
        let mut bias = bias.as_deref();
        let mut parts = parts.into_iter();
        Ok(matrices.map(|matrix| {
            let (site, rows) = parts.next().unwrap_or((Site::Logits, 0));
            let (of_this, rest) = bias.map(|bias| bias.split_at(rows)).unzip();
            bias = rest;
            Projection {
                bias: of_this.map(|bias: &[f32]| loader.ops().vector(bias.to_vec())),
                ..Projection::new(site, matrix, rows)
            }
        }))
    }

    /// `out = x · Wᵀ + bias`; `out` has its length.
    pub(super) fn apply(&self, input: &Input<'_, O>, out: &mut O::Rows) {
        Projection::apply_each([(self, out)], input);
    }

    /// The same for several that take the same rows.
    pub(super) fn apply_each<const N: usize>(
        mut products: [(&Projection<O>, &mut O::Rows); N],
        input: &Input<'_, O>,
    ) {
        let bare = products
            .each_mut()
            .map(|(projection, out)| (&projection.matrix, &mut **out));
        input.ops.matmul(bare, input.x);
        for (projection, out) in products {
            projection.complete(input, out);
        }
    }

    /// `sum += x · Wᵀ + bias`.
    pub(super) fn apply_add(&self, input: &Input<'_, O>, sum: &mut O::Rows) {
        input.ops.matmul_add(&self.matrix, input.x, sum);
        self.complete(input, sum);
    }

    /// `out = act(gate x) * up x`, ready for the next matrix; `tmp` is scratch.
    ///
    /// One operation where nothing is added to the two products.
    pub(super) fn apply_gated(
        [gate, up]: [&Projection<O>; 2],
        act: Activation,
        input: &Input<'_, O>,
        [tmp, tmp_up]: [&mut O::Rows; 2],
        out: &mut O::Acts,
    ) {
        let &Input { ops, x, adapters } = input;
        let is_bare = gate.bias.is_none() && up.bias.is_none();
        if is_bare && adapters.is_empty() {
            return ops.gate_up_act([&gate.matrix, &up.matrix], act, x, tmp, out);
        }
        for products in [&mut *tmp, &mut *tmp_up] {
            ops.resize(products, O::rows(x) * up.width);
        }
        Projection::apply_each([(gate, &mut *tmp), (up, &mut *tmp_up)], input);
        ops.gate_quantize(act, tmp, tmp_up, up.width, out);
    }

    /// Adds what is more than the product.
    fn complete(&self, input: &Input<'_, O>, out: &mut O::Rows) {
        if let Some(bias) = &self.bias {
            input.ops.add_bias(bias, out);
        }
        input.ops.adapt(self.site, input.x, input.adapters, out);
    }
}
