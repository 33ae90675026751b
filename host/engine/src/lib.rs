//! The engine: one owner thread of the weights in use, the KV blocks and the batch.
//!
//! A caller holds a [`Client`]. It makes [`Sequence`]s, appends tokens to them, forks and rewinds them, and starts a
//! [`Run`] that decodes one or a group of them as a [`Policy`] says. All callers' work shares one batch: each step
//! computes one row for every decoding sequence and fills what is left of its token budget with pieces of prompts,
//! the least served tenant first. Everything is given back by dropping the handle.
//!
//! ```text
//! client ── commands ──> receive ─ schedule ─ forward ─ sample ─ emit ──> events ── run
//!           inbox.rs     batch/   scheduler/ executor  sampler/ emitter/  outlet.rs
//! ```
//!
//! The engine knows no sockets, files or programs. A tenant is a number with a weight and a budget of KV blocks, and
//! what computes is behind the [`Executor`] trait. The futures here need no runtime.

#![forbid(unsafe_code)]

mod account;
mod batch;
pub mod bench;
mod client;
mod clock;
mod embedder;
mod emitter;
mod engine;
mod error;
mod executor;
mod inbox;
mod kv_cache;
pub mod model;
mod outlet;
mod policy;
mod run;
mod sampler;
mod scheduler;
#[cfg(any(test, feature = "scripted"))]
pub mod scripted;
mod sequence;
#[cfg(test)]
mod sim;
mod stats;
mod step;
mod sync;
pub mod synthetic;
#[cfg(test)]
mod tests;

pub use account::{Account, TenantUsage};
pub use client::{Client, Owner};
pub use clock::{Clock, SystemClock};
pub use embedder::{EMBED_TEXTS_MAX, Embedder, EmbedderClient};
pub use engine::{Engine, EngineConfig, UNREAD_TOKENS_MAX};
pub use error::EngineError;
pub use executor::{
    BlockElement, BlockLayout, Executor, ExecutorError, ImportError, ModelFacts, SequenceRows,
    StepBatch,
};
pub use model::{Activations, LoadError, ModelOptions};
pub use outlet::{Event, Finish, StopReason, Usage};
pub use policy::{LOGPROBS_MAX, Policy, STOP_BYTES_MAX, STOP_TOKENS_MAX, STOPS_MAX};
pub use realm_text as text;
pub use realm_weights::{Gguf, GgufError, ModelSource, SourceError};
pub use run::{Job, Run};
pub use sampler::{PromptLogprob, TokenLogprob};
pub use sequence::Sequence;
pub use stats::{Observer, Stats, StepReport};
