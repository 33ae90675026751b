//! The shapes of real models: at least one of every architecture that runs.

use realm_weights::GgufWriter;

use super::Role;

/// A shape, under the name its model is known by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// What it is called here.
    pub name: &'static str,
    /// `general.architecture`.
    pub architecture: &'static str,
    /// Layers.
    pub layers: u32,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward; of an expert's, where there are experts.
    pub feed_forward: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Tokens.
    pub vocab: u32,
    /// Whether the output matrix is the embedding.
    pub is_tied: bool,
    /// Experts, and how many of them a token goes through; 0 where there are none.
    pub experts: [u32; 2],
}

macro_rules! shapes {
    ($($name:literal $architecture:literal $layers:literal x $hidden:literal, ffn $ffn:literal,
        $heads:literal / $kv_heads:literal heads of $head_dim:literal, vocab $vocab:literal $($tied:ident)?
        $(, experts $experts:literal / $used:literal)?;)*) => {
        /// All of them.
        pub const SHAPES: &[Shape] = &[$(Shape {
            name: $name,
            architecture: $architecture,
            layers: $layers,
            hidden: $hidden,
            feed_forward: $ffn,
            heads: $heads,
            kv_heads: $kv_heads,
            head_dim: $head_dim,
            vocab: $vocab,
            is_tied: shapes!(@is_tied $($tied)?),
            experts: shapes!(@experts $($experts $used)?),
        }),*];
    };
    (@is_tied) => { false };
    (@is_tied tied) => { true };
    (@experts) => { [0, 0] };
    (@experts $experts:literal $used:literal) => { [$experts, $used] };
}

shapes! {
    "smollm2-135m" "llama" 30 x 576, ffn 1536, 9 / 3 heads of 64, vocab 49152 tied;
    "tinyllama-1.1b" "llama" 22 x 2048, ffn 5632, 32 / 4 heads of 64, vocab 32000;
    "llama-3.2-1b" "llama" 16 x 2048, ffn 8192, 32 / 8 heads of 64, vocab 128256 tied;
    "llama-3.2-3b" "llama" 28 x 3072, ffn 8192, 24 / 8 heads of 128, vocab 128256 tied;
    "llama-3.1-8b" "llama" 32 x 4096, ffn 14336, 32 / 8 heads of 128, vocab 128256;
    "mistral-7b" "llama" 32 x 4096, ffn 14336, 32 / 8 heads of 128, vocab 32768;
    "mixtral-8x7b" "llama" 32 x 4096, ffn 14336, 32 / 8 heads of 128, vocab 32000, experts 8 / 2;
    "qwen2.5-0.5b" "qwen2" 24 x 896, ffn 4864, 14 / 2 heads of 64, vocab 151936 tied;
    "qwen2.5-1.5b" "qwen2" 28 x 1536, ffn 8960, 12 / 2 heads of 128, vocab 151936 tied;
    "qwen2.5-7b" "qwen2" 28 x 3584, ffn 18944, 28 / 4 heads of 128, vocab 152064;
    "qwen3-0.6b" "qwen3" 28 x 1024, ffn 3072, 16 / 8 heads of 128, vocab 151936 tied;
    "qwen3-8b" "qwen3" 36 x 4096, ffn 12288, 32 / 8 heads of 128, vocab 151936;
    "qwen3-30b-a3b" "qwen3moe" 48 x 2048, ffn 768, 32 / 4 heads of 128, vocab 151936, experts 128 / 8;
    "gemma-2-2b" "gemma2" 26 x 2304, ffn 9216, 8 / 4 heads of 256, vocab 256000 tied;
    "gemma-3-270m" "gemma3" 18 x 640, ffn 2048, 4 / 1 heads of 256, vocab 262144 tied;
    "gemma-3-1b" "gemma3" 26 x 1152, ffn 6912, 4 / 1 heads of 256, vocab 262144 tied;
    "phi-3.5-mini" "phi3" 32 x 3072, ffn 8192, 32 / 32 heads of 96, vocab 32064;
    "olmo-2-1b" "olmo2" 16 x 2048, ffn 8192, 16 / 16 heads of 128, vocab 100352;
    "granite-3.1-2b" "granite" 40 x 2048, ffn 8192, 32 / 8 heads of 64, vocab 49155 tied;
    "starcoder2-3b" "starcoder2" 30 x 3072, ffn 12288, 24 / 2 heads of 128, vocab 49152 tied;
    "pythia-1b" "gptneox" 16 x 2048, ffn 8192, 8 / 8 heads of 256, vocab 50304;
}

impl Shape {
    /// The shape of this name.
    pub fn named(name: &str) -> Option<&'static Shape> {
        SHAPES.iter().find(|shape| shape.name == name)
    }

    fn has_layer_norm(&self) -> bool {
        matches!(self.architecture, "starcoder2" | "gptneox")
    }

    /// Tells `add` of every tensor: name, sizes with the row length first, what it is for, and its layer.
    pub(super) fn tensors(&self, mut add: impl FnMut(&str, &[usize], Role, usize)) {
        let (hidden, vocab) = (self.hidden, self.vocab as usize);
        add("token_embd.weight", &[hidden, vocab], Role::Embedding, 0);
        for layer in 0..self.layers as usize {
            self.layer(|part, sizes, role| add(&format!("blk.{layer}.{part}"), sizes, role, layer));
        }
        add("output_norm.weight", &[hidden], Role::Other, 0);
        if self.has_layer_norm() {
            add("output_norm.bias", &[hidden], Role::Other, 0);
        }
        if !self.is_tied {
            add("output.weight", &[hidden, vocab], Role::Output, 0);
        }
    }

    fn layer(&self, mut add: impl FnMut(&str, &[usize], Role)) {
        let hidden = self.hidden;
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let architecture = self.architecture;
        let is_fused = matches!(architecture, "phi3" | "gptneox");
        let mut linear = |name: &str, cols: usize, rows: usize, role: Role| {
            add(&format!("{name}.weight"), &[cols, rows], role);
            let is_qkv = matches!(name, "attn_q" | "attn_k" | "attn_v");
            if self.has_layer_norm() || architecture == "qwen2" && is_qkv {
                add(&format!("{name}.bias"), &[rows], Role::Other);
            }
        };
        if is_fused {
            linear("attn_qkv", hidden, q + 2 * kv, Role::Other);
        } else {
            linear("attn_q", hidden, q, Role::Other);
            linear("attn_k", hidden, kv, Role::Other);
            linear("attn_v", hidden, kv, Role::Value);
        }
        linear("attn_output", q, hidden, Role::Other);
        let inner = self.feed_forward;
        match (self.experts[0] as usize, architecture) {
            (0, "starcoder2" | "gptneox") => {
                linear("ffn_up", hidden, inner, Role::Other);
                linear("ffn_down", inner, hidden, Role::Down);
            }
            (0, "phi3") => {
                linear("ffn_up", hidden, 2 * inner, Role::Other);
                linear("ffn_down", inner, hidden, Role::Down);
            }
            (0, _) => {
                linear("ffn_gate", hidden, inner, Role::Other);
                linear("ffn_up", hidden, inner, Role::Other);
                linear("ffn_down", inner, hidden, Role::Down);
            }
            (experts, _) => {
                add("ffn_gate_inp.weight", &[hidden, experts], Role::Router);
                add(
                    "ffn_gate_exps.weight",
                    &[hidden, inner, experts],
                    Role::Other,
                );
                add("ffn_up_exps.weight", &[hidden, inner, experts], Role::Other);
                add(
                    "ffn_down_exps.weight",
                    &[inner, hidden, experts],
                    Role::Down,
                );
            }
        }
        self.norms(|name, length| add(name, &[length], Role::Other));
    }

    fn norms(&self, mut add: impl FnMut(&str, usize)) {
        let hidden = self.hidden;
        if self.architecture != "olmo2" {
            add("attn_norm.weight", hidden);
            add("ffn_norm.weight", hidden);
        }
        if self.has_layer_norm() {
            add("attn_norm.bias", hidden);
            add("ffn_norm.bias", hidden);
        }
        if matches!(self.architecture, "gemma2" | "gemma3" | "olmo2") {
            add("post_attention_norm.weight", hidden);
            add("post_ffw_norm.weight", hidden);
        }
        match self.architecture {
            "qwen3" | "qwen3moe" | "gemma3" => {
                add("attn_q_norm.weight", self.head_dim);
                add("attn_k_norm.weight", self.head_dim);
            }
            "olmo2" => {
                add("attn_q_norm.weight", self.heads * self.head_dim);
                add("attn_k_norm.weight", self.kv_heads * self.head_dim);
            }
            _ => {}
        }
    }
}

/// Whether a tensor is a norm or a bias.
pub(super) fn is_vector(name: &str) -> bool {
    name.ends_with("norm.weight") || name.ends_with(".bias")
}

/// The hyperparameters.
pub(super) fn keys(shape: &Shape, file: &mut GgufWriter) {
    let architecture = shape.architecture;
    let key = |name: &str| format!("{architecture}.{name}");
    file.str("general.architecture", architecture);
    file.str("general.name", &format!("synthetic {}", shape.name));
    file.u32(&key("block_count"), shape.layers);
    file.u32(&key("context_length"), 8192);
    file.u32(&key("embedding_length"), shape.hidden as u32);
    file.u32(&key("feed_forward_length"), shape.feed_forward as u32);
    file.u32(&key("attention.head_count"), shape.heads as u32);
    file.u32(&key("attention.head_count_kv"), shape.kv_heads as u32);
    file.u32(&key("attention.key_length"), shape.head_dim as u32);
    file.u32(&key("attention.value_length"), shape.head_dim as u32);
    let rotated = if architecture == "gptneox" { 4 } else { 1 }; // a quarter of a head
    file.u32(
        &key("rope.dimension_count"),
        (shape.head_dim / rotated) as u32,
    );
    file.f32(&key("rope.freq_base"), 10_000.0);
    let eps = if shape.has_layer_norm() {
        "attention.layer_norm_epsilon"
    } else {
        "attention.layer_norm_rms_epsilon"
    };
    file.f32(&key(eps), 1e-5);
    let [experts, used] = shape.experts;
    if experts > 0 {
        file.u32(&key("expert_count"), experts);
        file.u32(&key("expert_used_count"), used);
        file.u32(
            &key("expert_feed_forward_length"),
            shape.feed_forward as u32,
        );
    }
    match architecture {
        "gemma2" => {
            file.u32(&key("attention.sliding_window"), 4096);
            file.f32(&key("attn_logit_softcapping"), 50.0);
            file.f32(&key("final_logit_softcapping"), 30.0);
        }
        "gemma3" => file.u32(&key("attention.sliding_window"), 512),
        "phi3" => file.u32(&key("rope.scaling.original_context_length"), 8192),
        "granite" => {
            file.f32(&key("attention.scale"), 0.015_625);
            file.f32(&key("embedding_scale"), 12.0);
            file.f32(&key("residual_scale"), 0.22);
            file.f32(&key("logit_scale"), 8.0);
        }
        "gptneox" => file.bool(&key("use_parallel_residual"), true),
        _ => {}
    }
}
