//! Models made ready to run: hyperparameters, weights, KV cache and text model of one source.
//!
//! One architecture is one short file beside this one; what they compute is in `decoder.rs`, what they have in `layer.rs`, and
//! what that is computed with, in `ops.rs`.
//! A file is refused when anything in it would not be used or cannot be run: a model that is almost computed gives wrong
//! answers that look right.

mod bert;
mod calibration;
mod decoder;
mod experts;
mod features;
mod gemma2;
mod gemma3;
mod gptneox;
mod granite;
mod keys;
mod layer;
mod llama;
mod loader;
mod olmo2;
mod ops;
#[cfg(test)]
mod ops_tests;
mod panels;
mod phi3;
mod projection;
mod qwen2;
mod qwen3;
mod rotary;
mod starcoder2;
mod text_source;
mod windows;

use std::collections::TryReserveError;
use std::path::PathBuf;
use std::sync::Arc;

use realm_kernels::{BLOCK_TOKENS, KvLayer, Rounding};
pub use realm_kernels::{Cpu, KvType};
use realm_text::{TextError, TextModel};
use realm_weights::{ModelSource, SourceError};
use thiserror::Error;

use crate::executor::cpu::CpuExecutor;
use crate::executor::{Executor, ExecutorError, ModelFacts};
pub(crate) use bert::{Encoder, PASS_TOKENS_MAX};
pub(crate) use decoder::{Decoder, Scratch};
use keys::Keys;
use loader::{Loader, Shape};
use panels::Panels;

/// `general.architecture` of every model that runs.
const ARCHITECTURES: [&str; 11] = [
    "gemma2",
    "gemma3",
    "gptneox",
    "granite",
    "llama",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3moe",
    "starcoder2",
];

/// The same of every model that gives embeddings.
const ENCODERS: [&str; 1] = ["bert"];

/// How much of the machine a model may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelOptions {
    /// Threads that compute, the caller's included; 0 takes one per CPU the process may use.
    pub threads: usize,
    /// Bytes for keys and values; rounded down to whole blocks, over all layers.
    pub kv_bytes_max: u64,
    /// How keys and values are kept.
    pub kv_type: KvType,
    /// Longest sequence in tokens; `None` is the model's own limit, which also caps a larger value.
    pub context_max: Option<u32>,
    /// How finely activations are rounded where they meet quantised weights.
    pub activations: Activations,
    /// A folder for repacked weights: the first start of a model file leaves a file there, the next ones map it. `None`
    /// repacks at every start, into memory of the process.
    pub packed_dir: Option<PathBuf>,
    /// Jinja source of a chat template in place of those of the file.
    pub chat_template: Option<String>,
}

/// How finely activations are rounded where they meet quantised weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activations {
    /// 8 bits, as most engines do: fastest. Where two tokens are almost equally likely it may pick the other one.
    Int8,
    /// 8 bits, but channels that outweigh their neighbours as f32, and 16 bits for the groups of channels where they gain
    /// most for about a third more work. Which these are is found at load, by computing a short text.
    #[default]
    Mixed,
    /// 16 bits: up to twice the time a step; practically what unrounded activations give.
    Int16,
}

impl Default for ModelOptions {
    fn default() -> ModelOptions {
        ModelOptions {
            threads: 0,
            kv_bytes_max: 1 << 30,
            kv_type: KvType::F16,
            context_max: None,
            activations: Activations::default(),
            packed_dir: None,
            chat_template: None,
        }
    }
}

/// Why a model cannot be run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A key or tensor is missing, of the wrong type, or of a type without kernels.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The tokenizer is not usable.
    #[error("the model's tokenizer cannot be used")]
    Text(#[from] TextError),
    /// The chat template that was given in place of the model's is not usable.
    #[error(transparent)]
    ChatTemplate(TextError),
    /// An architecture that is not written yet.
    #[error(
        "architecture {architecture} is not supported; supported are {} for text and {} for embeddings",
        ARCHITECTURES.join(", "),
        ENCODERS.join(", ")
    )]
    UnknownArchitecture {
        /// `general.architecture` of the file.
        architecture: String,
    },
    /// A model that gives embeddings where one that generates is wanted.
    #[error(
        "architecture {architecture} makes embeddings, not text; configure it as the embedding model"
    )]
    GivesEmbeddings {
        /// `general.architecture` of the file.
        architecture: String,
    },
    /// A model that generates where one that gives embeddings is wanted.
    #[error("architecture {architecture} cannot make embeddings; {} can", ENCODERS.join(", "))]
    GivesNoEmbeddings {
        /// `general.architecture` of the file.
        architecture: String,
    },
    /// A value that contradicts another or makes no sense.
    #[error("key {key} is {value}, but it must be {wanted}")]
    BadValue {
        /// The metadata key.
        key: String,
        /// What it holds.
        value: String,
        /// What would be right.
        wanted: String,
    },
    /// A feature of the architecture that is not written yet.
    #[error("{feature} (key {key} is {value}) is not supported")]
    Unsupported {
        /// The metadata key that asks for it.
        key: String,
        /// What it holds.
        value: String,
        /// What it means.
        feature: &'static str,
    },
    /// A tensor that does not fit the hyperparameters.
    #[error("tensor {name} has shape {shape:?}, but it must be {expected:?}")]
    WrongShape {
        /// The tensor.
        name: String,
        /// Its shape in the file, row length first.
        shape: Vec<u64>,
        /// The shape that the hyperparameters ask for.
        expected: Vec<u64>,
    },
    /// A vocabulary that token ids cannot count.
    #[error("tensor {name} has {rows} rows, but token ids are 32 bits wide")]
    TooManyRows {
        /// The tensor.
        name: String,
        /// Its rows.
        rows: usize,
    },
    /// Tensors that the architecture does not have: computing without them would be another model.
    #[error("tensor {name} is not part of architecture {architecture} ({count} such tensors)")]
    UnusedTensor {
        /// The first of them.
        name: String,
        /// `general.architecture` of the file.
        architecture: String,
        /// How many there are.
        count: usize,
    },
    /// The tokenizer has ids for which the model has no embedding.
    #[error("the tokenizer has {tokens} tokens, but the embedding has only {rows} rows")]
    VocabularyMismatch {
        /// Tokens in the tokenizer.
        tokens: u32,
        /// Rows of the embedding.
        rows: u32,
    },
    /// The budget holds not even one block.
    #[error(
        "{kv_bytes_max} bytes of KV cache are too few: a block of this model takes {block_bytes}"
    )]
    KvTooSmall {
        /// The budget.
        kv_bytes_max: u64,
        /// Bytes of one block over all layers.
        block_bytes: u64,
    },
    /// The machine does not give the memory.
    #[error("cannot allocate {bytes} bytes for {what}")]
    OutOfMemory {
        /// What it is for.
        what: &'static str,
        /// How much was asked.
        bytes: u64,
        /// The allocator's answer.
        #[source]
        source: TryReserveError,
    },
    /// The model does not compute the text that it is calibrated with.
    #[error("the model cannot be calibrated")]
    Calibration(#[from] ExecutorError),
    /// The operating system gives no thread.
    #[error("cannot start the engine's thread")]
    Thread(#[source] std::io::Error),
}

/// A model ready to run: what computes it, what is known of it, and its tokenizer and templates.
pub type Loaded = (Box<dyn Executor>, ModelFacts, Arc<TextModel>);

/// Reads a model for the best instruction set of this CPU.
///
/// The executor owns its weights; the source is not needed after this returns.
///
/// # Errors
/// [`LoadError`], naming the key or tensor.
pub fn load(source: &dyn ModelSource, options: ModelOptions) -> Result<Loaded, LoadError> {
    load_on(cpu(&options), source, options)
}

/// What a model file says about text, with `chat_template` in place of its own templates. The weights are not read.
///
/// # Errors
/// [`LoadError`], naming the key, or what is wrong with the given template: that of a file only costs its chats.
pub fn text_model(
    source: &dyn ModelSource,
    chat_template: Option<String>,
) -> Result<TextModel, LoadError> {
    let mut text = text_source::text_source(source)?;
    let is_given = chat_template.is_some();
    if is_given {
        text.chat_template = chat_template;
        text.chat_template_tools = None;
    }
    let text = TextModel::new(text)?;
    match text.check_chat_template() {
        Err(error) if is_given => return Err(LoadError::ChatTemplate(error)),
        Err(error) => tracing::warn!("{error}; chats that need it are refused"),
        Ok(()) => {}
    }
    Ok(text)
}

/// The CPU back end that [`load`] takes: the best instruction set, and the threads and rounding of the options.
pub fn cpu(options: &ModelOptions) -> Cpu {
    let threads = match options.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let rounding = match options.activations {
        Activations::Int8 => Rounding::Int8,
        Activations::Mixed => Rounding::Mixed,
        Activations::Int16 => Rounding::Int16,
    };
    Cpu::new(threads).with_rounding(rounding)
}

/// [`load`] on a given CPU back end; its thread count replaces that of the options.
///
/// # Errors
/// As [`load`].
pub fn load_on(
    cpu: Cpu,
    source: &dyn ModelSource,
    options: ModelOptions,
) -> Result<Loaded, LoadError> {
    // The text first: it is quick, and a file without a tokenizer is not worth repacking.
    let text = text_model(source, options.chat_template)?;
    let architecture = source.metadata().require_str("general.architecture")?;
    let keys = Keys::new(source.metadata(), architecture, options.context_max);
    let panels = Panels::new(source, &cpu, options.packed_dir.as_deref());
    let mut loader = Loader::new(source, keys, &cpu, Box::new(panels));
    let mut decoder = match architecture {
        "gemma2" => gemma2::load(&mut loader)?,
        "gemma3" => gemma3::load(&mut loader)?,
        "gptneox" => gptneox::load(&mut loader)?,
        "granite" => granite::load(&mut loader)?,
        "llama" => llama::load(&mut loader)?,
        "olmo2" => olmo2::load(&mut loader)?,
        "phi3" => phi3::load(&mut loader)?,
        "qwen2" => qwen2::load(&mut loader)?,
        "qwen3" | "qwen3moe" => qwen3::load(&mut loader)?,
        "starcoder2" => starcoder2::load(&mut loader)?,
        other => return Err(unknown(other)),
    };
    loader.finish()?;
    let shape = decoder.shape().clone();
    check_vocabulary(&text, &shape)?;
    let mut kv = kv_cache(&shape, options.kv_bytes_max, options.kv_type)?;
    let facts = facts(source, architecture, &shape, &kv, &cpu, options.context_max)?;
    if cpu.rounding() == Rounding::Mixed {
        let tokens_max = facts.context_length as usize;
        calibration::calibrate(&mut decoder, &cpu, &text, &mut kv.layers, tokens_max)?;
    }
    let executor = CpuExecutor::new(cpu, decoder, kv.layers, kv.blocks, facts.context_length);
    Ok((Box::new(executor), facts, Arc::new(text)))
}

fn unknown(architecture: &str) -> LoadError {
    let architecture = architecture.to_owned();
    match architecture.as_str() {
        known if ENCODERS.contains(&known) => LoadError::GivesEmbeddings { architecture },
        _ => LoadError::UnknownArchitecture { architecture },
    }
}

fn check_vocabulary(text: &TextModel, shape: &Shape) -> Result<(), LoadError> {
    let (tokens, rows) = (text.vocab_size(), shape.vocab);
    match tokens <= rows {
        true => Ok(()),
        false => Err(LoadError::VocabularyMismatch { tokens, rows }),
    }
}

/// Reads a model that gives embeddings; of the options, those of keys and values do not matter to it.
///
/// # Errors
/// [`LoadError`], naming the key or tensor.
pub(crate) fn load_encoder(
    cpu: Cpu,
    source: &dyn ModelSource,
    options: &ModelOptions,
) -> Result<(Encoder, Arc<TextModel>), LoadError> {
    let architecture = source.metadata().require_str("general.architecture")?;
    if ARCHITECTURES.contains(&architecture) {
        let architecture = architecture.to_owned();
        return Err(LoadError::GivesNoEmbeddings { architecture });
    }
    if !ENCODERS.contains(&architecture) {
        return Err(unknown(architecture));
    }
    let text = TextModel::new(text_source::text_source(source)?)?;
    let keys = Keys::new(source.metadata(), architecture, options.context_max);
    let panels = Panels::new(source, &cpu, options.packed_dir.as_deref());
    let mut loader = Loader::new(source, keys, &cpu, Box::new(panels));
    let encoder = Encoder::load(&mut loader, cpu.clone())?;
    loader.finish()?;
    check_vocabulary(&text, encoder.shape())?;
    Ok((encoder, Arc::new(text)))
}

/// Keys and values of all layers.
struct KvCache {
    layers: Vec<KvLayer>,
    blocks: u32,
    bytes: u64,
}

fn kv_cache(shape: &Shape, kv_bytes_max: u64, ty: KvType) -> Result<KvCache, LoadError> {
    /// Slots (block times 16 plus offset) are u32.
    const BLOCKS_MAX: u64 = u32::MAX as u64 / BLOCK_TOKENS as u64;
    // All factors were held against tensors of the file, so the product is far from 2^64.
    let layer_block_bytes = KvLayer::block_bytes(shape.kv_heads, shape.head_dim, ty);
    let block_bytes = layer_block_bytes as u64 * u64::from(shape.layers);
    let blocks = (kv_bytes_max / block_bytes).min(BLOCKS_MAX);
    if blocks == 0 {
        return Err(LoadError::KvTooSmall {
            kv_bytes_max,
            block_bytes,
        });
    }
    let bytes = blocks * block_bytes;
    // Asked as one piece and given back: a budget beyond the machine becomes an error here, where an
    // allocation that fails later would end the process.
    let mut probe: Vec<u8> = Vec::new();
    probe
        .try_reserve_exact(usize::try_from(bytes).unwrap_or(usize::MAX))
        .map_err(|source| LoadError::OutOfMemory {
            what: "the KV cache",
            bytes,
            source,
        })?;
    drop(probe);
    let blocks = u32::try_from(blocks).expect("capped by BLOCKS_MAX");
    let layers = (0..shape.layers)
        .map(|_| KvLayer::new(blocks as usize, shape.kv_heads, shape.head_dim, ty))
        .collect();
    Ok(KvCache {
        layers,
        blocks,
        bytes,
    })
}

fn facts(
    source: &dyn ModelSource,
    architecture: &str,
    shape: &Shape,
    kv: &KvCache,
    cpu: &Cpu,
    context_max: Option<u32>,
) -> Result<ModelFacts, LoadError> {
    let name = source
        .metadata()
        .str("general.name")?
        .unwrap_or(architecture);
    let kv_tokens = kv.blocks * BLOCK_TOKENS as u32;
    Ok(ModelFacts {
        name: name.to_owned(),
        architecture: architecture.to_owned(),
        context_length: shape
            .context
            .min(context_max.unwrap_or(u32::MAX))
            .min(kv_tokens),
        vocab_size: shape.vocab,
        layers: shape.layers,
        parameters: source
            .tensors()
            .map(|tensor| tensor.shape.iter().product::<u64>())
            .sum(),
        file_bytes: source.file_bytes(),
        kv_blocks: kv.blocks,
        kv_bytes: kv.bytes,
        block_tokens: BLOCK_TOKENS as u32,
        can_rewind: true,
        isa: cpu.isa_name().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::{ARCHITECTURES, ENCODERS};

    #[test]
    fn the_documentation_names_every_architecture() {
        let text = std::fs::read_to_string("../../docs/models.md").expect("the page is there");
        for architecture in ARCHITECTURES.iter().chain(&ENCODERS) {
            assert!(
                text.contains(&format!("`{architecture}`")),
                "{architecture}"
            );
        }
    }
}
