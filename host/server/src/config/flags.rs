//! The settings that are also flags of the command line.

use super::{Activations, KvType};
use serde::Serialize;
use std::path::PathBuf;

/// The flags that are settings. A flag that was not given says nothing.
#[derive(Clone, Debug, Default, clap::Args, Serialize)]
pub struct Flags {
    /// Address for clients; port 0 picks a free one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// Address for the operator; port 0 picks a free one [default: 127.0.0.1:8081]
    #[arg(long, value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_listen: Option<String>,
    /// Folder that holds all state; created if it does not exist [default: .realm]
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    /// GGUF file to serve
    #[arg(long, value_name = "PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<PathBuf>,
    /// Name that clients use for the model [default: derived from the file name]
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_name: Option<String>,
    /// Chat template to use in place of the model's: a Jinja file, or a name such as chatml
    #[arg(long, value_name = "FILE|NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// GGUF file of an embedding model, served beside the other
    #[arg(long, value_name = "PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding_model: Option<PathBuf>,
    /// Name that clients use for that model [default: derived from the file name]
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding_model_name: Option<String>,
    /// Threads to compute with; 0 means one per processor
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Memory for the keys and values of all sequences, in MiB [default: 1024]
    #[arg(long, value_name = "MIB")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_memory_mib: Option<u64>,
    /// How keys and values are stored [default: f16]
    #[arg(long, value_name = "TYPE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_type: Option<KvType>,
    /// Longest sequence, in tokens [default: the model's context length]
    #[arg(long, value_name = "TOKENS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_max: Option<u32>,
    /// Precision of activations [default: mixed]
    #[arg(long, value_name = "BITS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activations: Option<Activations>,
    /// Folder in which repacked weights are kept for the next start [default: none; every start repacks]
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packed_dir: Option<PathBuf>,
    /// Most tokens computed in one step [default: 256]
    #[arg(long, value_name = "TOKENS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_tokens_max: Option<u32>,
    /// The operator's token; safer in REALM_ADMIN_TOKEN, where other users of the machine cannot see it
    #[arg(long, value_name = "TOKEN")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_token: Option<String>,
    /// How long requests in progress may continue after the server is told to stop [default: 30000]
    #[arg(long, value_name = "MS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_ms: Option<u64>,
}
