//! What the operations are told besides numbers: shapes, layouts and tables shared by `reference` and `cpu`.

/// Tokens in one block of the KV cache.
pub const BLOCK_TOKENS: usize = 16;

/// The function of a feed-forward layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU by its tanh approximation.
    GeluTanh,
    /// `x * Φ(x)`, where Φ is the normal distribution.
    Gelu,
}

/// One query row of an attention call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AttentionRow {
    /// Which of the call's block tables holds the row's sequence.
    pub table: u32,
    /// Position of the row in its sequence: it attends to `0..=position`, or to the window's end of that.
    pub position: u32,
}

/// What attention needs to know about a layer.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct AttentionShape {
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor of the scores before the softmax.
    pub scale: f32,
    /// With `Some(n)` a row sees only the last `n` positions, its own among them.
    pub window: Option<u32>,
    /// With `Some(c)` scores become `c * tanh(score / c)`.
    pub softcap: Option<f32>,
}

impl AttentionShape {
    /// The positions a row at `position` attends to, as a half-open range.
    pub(crate) fn span(&self, position: u32) -> std::ops::Range<usize> {
        let end = position as usize + 1;
        let start = self
            .window
            .map_or(0, |window| end.saturating_sub(window as usize));
        start..end
    }
}

/// Which elements of a head rotate together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RopeLayout {
    /// Pairs `(2i, 2i + 1)`: how GGUF stores the llama family.
    Adjacent,
    /// Pairs `(i, i + dims / 2)`: the "neox" layout, gemma among others.
    HalfSplit,
}

/// Positions below this square are looked up as a sum of two table angles.
const TABLE: usize = 1024;

/// Rotary position embedding of one kind of layer, with its angles tabulated.
///
/// A position is `1024 * high + low`; the rotation by the sum is the product of two tabulated rotations, so that no
/// step computes a sine. The tables are rounded from f64; the product is within 3e-7 of the true rotation.
pub struct Rope {
    pub(crate) head_dim: usize,
    pub(crate) layout: RopeLayout,
    pub(crate) frequencies: Vec<f64>, // [dims / 2], radians a position
    pub(crate) magnitude: f32,
    low: Vec<[f32; 2]>,  // [TABLE, dims / 2] of (cos, sin)
    high: Vec<[f32; 2]>, // the same for multiples of TABLE
}

impl Rope {
    /// Rotates the first `dims` elements of heads of `head_dim`; the rest stay as they are.
    ///
    /// Pair `i` turns by `position * freq_scale * base^(-2i / dims) / factors[i]`.
    ///
    /// # Panics
    /// When `dims` is odd or larger than `head_dim`, or `factors` is not one a pair: the model's loader checks its file.
    pub fn new(
        head_dim: usize,
        dims: usize,
        base: f32,
        freq_scale: f32,
        layout: RopeLayout,
        factors: Option<&[f32]>,
    ) -> Rope {
        assert!(
            dims.is_multiple_of(2) && dims <= head_dim,
            "cannot rotate {dims} elements of a head of {head_dim}: the count must be even and fit the head"
        );
        let pairs = dims / 2;
        assert!(
            factors.is_none_or(|f| f.len() == pairs),
            "there must be one frequency factor for each of the {pairs} pairs"
        );
        let frequencies: Vec<f64> = (0..pairs)
            .map(|i| {
                let frequency =
                    f64::from(base).powf(-2.0 * i as f64 / dims as f64) * f64::from(freq_scale);
                frequency / factors.map_or(1.0, |f| f64::from(f[i]))
            })
            .collect();
        let table = |step: usize| {
            let mut table = Vec::with_capacity(TABLE * pairs);
            for position in 0..TABLE {
                for frequency in &frequencies {
                    let (sin, cos) = ((position * step) as f64 * frequency).sin_cos();
                    table.push([cos as f32, sin as f32]);
                }
            }
            table
        };
        let (low, high) = (table(1), table(TABLE));
        Rope {
            head_dim,
            layout,
            frequencies,
            magnitude: 1.0,
            low,
            high,
        }
    }

    /// Multiplies what is rotated by `magnitude` as well: the attention factor of YaRN and LongRoPE.
    pub fn with_magnitude(mut self, magnitude: f32) -> Rope {
        for rotation in self.low.iter_mut().flatten() {
            *rotation *= magnitude;
        }
        self.magnitude *= magnitude;
        self
    }

    /// Number of rotated pairs in a head.
    pub(crate) fn pairs(&self) -> usize {
        self.frequencies.len()
    }

    /// The table rows whose product is the rotation at `position`; `None` past the tables.
    pub(crate) fn tables(&self, position: u32) -> Option<[&[[f32; 2]]; 2]> {
        let (high, low) = (position as usize / TABLE, position as usize % TABLE);
        let pairs = self.pairs();
        Some([
            &self.low[low * pairs..(low + 1) * pairs],
            self.high.get(high * pairs..(high + 1) * pairs)?,
        ])
    }

    /// Cosine and sine of pair `pair` at `position`.
    pub(crate) fn rotation(&self, position: u32, pair: usize) -> [f32; 2] {
        match self.tables(position) {
            Some([low, high]) => {
                let ([c0, s0], [c1, s1]) = (low[pair], high[pair]);
                [c0 * c1 - s0 * s1, s0 * c1 + c0 * s1]
            }
            None => {
                let (sin, cos) = (f64::from(position) * self.frequencies[pair]).sin_cos();
                [cos as f32 * self.magnitude, sin as f32 * self.magnitude]
            }
        }
    }

    /// Indices of the two elements of pair `pair`.
    pub(crate) fn elements(&self, pair: usize) -> (usize, usize) {
        match self.layout {
            RopeLayout::Adjacent => (2 * pair, 2 * pair + 1),
            RopeLayout::HalfSplit => (pair, pair + self.pairs()),
        }
    }
}
