//! Settings: defaults, then a TOML file, then `REALM_…` variables, then flags; the later one wins.
//!
//! A key is the same word everywhere: `kv_memory_mib` in the file, `REALM_KV_MEMORY_MIB`, `--kv-memory-mib`; inside a
//! table it is `limits.cpu_ms_max` and `REALM_LIMITS__CPU_MS_MAX`. Every key has a variable, those of [`Flags`] also have a
//! flag. An unknown key is refused by its name, an unknown variable is warned of. `docs/configuration.md` lists them all, and a test holds it to that.

mod flags;

pub use flags::Flags;

use figment::Figment;
use figment::error::{Actual, Kind};
use figment::providers::{Env, Format, Serialized, Toml};
use realm_sandbox::{COMPONENT_BYTES_MAX, Limits};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Variables with our prefix that are not settings of the server: they belong to clients, tests and this loader.
const NOT_SETTINGS: [&str; 9] = [
    "config",
    "log",
    "url",
    "api_key",
    "admin_url",
    "models",
    "guests",
    "python",
    "bin",
];

/// The largest component the sandbox looks at; an upload can be limited to less.
const UPLOAD_MIB_MAX: u64 = (COMPONENT_BYTES_MAX >> 20) as u64;

/// Everything that can be set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address for clients; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Address for the operator; port 0 picks a free one.
    pub admin_listen: SocketAddr,
    /// The folder that holds all state; created if it does not exist.
    pub data_dir: PathBuf,
    /// The GGUF file to serve.
    pub model: Option<PathBuf>,
    /// The name clients use for it; by default derived from the file name.
    pub model_name: Option<String>,
    /// A chat template in place of the model's: a file, or the name of one of ours.
    pub chat_template: Option<String>,
    /// The GGUF file of a model that gives embeddings, served beside the other.
    pub embedding_model: Option<PathBuf>,
    /// The name clients use for it; by default derived from the file name.
    pub embedding_model_name: Option<String>,
    /// Threads to compute with; 0 means one per processor.
    pub threads: usize,
    /// Memory for keys and values of all sequences.
    pub kv_memory_mib: u64,
    /// How keys and values are kept.
    pub kv_type: KvType,
    /// Longest sequence in tokens; by default what the model was made for.
    pub context_max: Option<u32>,
    /// How finely activations are rounded where they meet quantised weights.
    pub activations: Activations,
    /// A folder for repacked weights, so that the next start maps them; by default every start repacks into memory.
    pub packed_dir: Option<PathBuf>,
    /// Tokens the engine computes in one step at most.
    pub step_tokens_max: u32,
    /// Sequences in one batch at most.
    pub sequences_running_max: u32,
    /// How long a step in which somebody decodes should take at most; prompts are computed in pieces that fit. 0 is no target.
    pub step_ms_target: u32,
    /// Commands that may wait for the engine.
    pub queue_max: usize,
    /// The operator's token; by default one is made once and kept in the data folder.
    pub admin_token: Option<String>,
    /// Origins whose pages may call the API from a browser; `*` is all of them, an empty list none.
    pub cors_origins: Vec<String>,
    /// How long a request's body may take to arrive, so that slow senders do not hold places.
    pub body_ms_max: u64,
    /// How long a client may take nothing of what is written to it before it is hung up on.
    pub write_ms_max: u64,
    /// How often a stream that has nothing to say says so with a comment: clients and proxies give up on silent ones.
    pub keep_alive_ms: u64,
    /// How long requests in flight may go on after the server was told to stop.
    pub drain_ms: u64,
    /// Connections at once, on each of the two addresses.
    pub connections_max: u32,
    /// Connections to `/ws` of one tenant at once.
    pub tenant_sockets_max: u32,
    /// Components that may run at once, over all tenants.
    pub instances_max: u32,
    /// Requests of one tenant at once, unless the tenant has its own number.
    pub tenant_requests_max: u32,
    /// Sequences of one tenant that may be alive, over all its components.
    pub tenant_sequences_max: usize,
    /// Percent of a model's KV blocks that a tenant may hold, unless the tenant has its own number.
    pub tenant_kv_percent_max: u32,
    /// Memory of all running components of one tenant together.
    pub tenant_memory_mib: u64,
    /// Address space of the process that compiles an upload.
    pub compile_memory_mib: u64,
    /// Time that compiling an upload may take.
    pub compile_ms_max: u64,
    /// Size of an uploaded component.
    pub upload_mib_max: u64,
    /// Limits of one call.
    pub limits: CallLimits,
}

/// Limits of one call of a component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CallLimits {
    /// Linear memory.
    pub memory_mib_max: u64,
    /// Processor time.
    pub cpu_ms_max: u64,
    /// Time on the clock, waiting included.
    pub wall_ms_max: u64,
    /// Sequences, runs and policies held at once.
    pub handles_max: u32,
    /// Log lines.
    pub log_kib_max: u64,
}

/// How finely activations are rounded where they meet quantised weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Activations {
    /// To 8 bits: most tokens a second.
    Int8,
    /// To 8 bits, with more for the inputs and channels that need it: nearly as fast, and closer to the model.
    Mixed,
    /// To 16 bits: answers as of unrounded activations, in up to twice the time.
    Int16,
}

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum KvType {
    /// As 16-bit floats.
    F16,
    /// As 8-bit codes with a scale for every 32: room for nearly twice the tokens, with a little error.
    #[value(name = "q8_0")]
    #[serde(rename = "q8_0")]
    Q8_0,
}

impl From<KvType> for realm_engine::model::KvType {
    fn from(ty: KvType) -> realm_engine::model::KvType {
        match ty {
            KvType::F16 => realm_engine::model::KvType::F16,
            KvType::Q8_0 => realm_engine::model::KvType::Q8_0,
        }
    }
}

impl From<Activations> for realm_engine::Activations {
    fn from(activations: Activations) -> realm_engine::Activations {
        match activations {
            Activations::Int8 => realm_engine::Activations::Int8,
            Activations::Mixed => realm_engine::Activations::Mixed,
            Activations::Int16 => realm_engine::Activations::Int16,
        }
    }
}

impl Config {
    /// [`Config::body_ms_max`].
    pub fn body_wait(&self) -> Duration {
        Duration::from_millis(self.body_ms_max)
    }

    /// [`Config::keep_alive_ms`].
    pub fn keep_alive(&self) -> Duration {
        Duration::from_millis(self.keep_alive_ms)
    }
}

impl Default for Config {
    fn default() -> Config {
        let here = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Config {
            listen: here(8080),
            admin_listen: here(8081),
            data_dir: PathBuf::from(".realm"),
            model: None,
            model_name: None,
            chat_template: None,
            embedding_model: None,
            embedding_model_name: None,
            threads: 0,
            kv_memory_mib: 1024,
            kv_type: KvType::F16,
            context_max: None,
            activations: Activations::Mixed,
            packed_dir: None,
            step_tokens_max: 256,
            sequences_running_max: 64,
            step_ms_target: 50,
            queue_max: 256,
            admin_token: None,
            cors_origins: vec!["*".to_owned()],
            body_ms_max: 30_000,
            write_ms_max: 30_000,
            keep_alive_ms: 3_000,
            drain_ms: 30_000,
            connections_max: 512,
            tenant_sockets_max: 128,
            instances_max: 128,
            tenant_requests_max: 64,
            tenant_sequences_max: 2048,
            tenant_kv_percent_max: 50,
            tenant_memory_mib: 1024,
            compile_memory_mib: 4096,
            compile_ms_max: 60_000,
            upload_mib_max: UPLOAD_MIB_MAX,
            limits: CallLimits::default(),
        }
    }
}

impl Default for CallLimits {
    fn default() -> CallLimits {
        let limits = Limits::default();
        CallLimits {
            memory_mib_max: (limits.memory_bytes_max >> 20) as u64,
            cpu_ms_max: limits.cpu_ms_max,
            wall_ms_max: limits.wall_ms_max,
            handles_max: limits.handles_max,
            log_kib_max: (limits.log_bytes_max >> 10) as u64,
        }
    }
}

impl CallLimits {
    /// As the sandbox counts them.
    pub fn to_sandbox(&self) -> Limits {
        let bytes = |units: u64, shift: u32| {
            usize::try_from(units.saturating_mul(1 << shift)).unwrap_or(usize::MAX)
        };
        Limits {
            memory_bytes_max: bytes(self.memory_mib_max, 20),
            cpu_ms_max: self.cpu_ms_max,
            wall_ms_max: self.wall_ms_max,
            handles_max: self.handles_max,
            log_bytes_max: bytes(self.log_kib_max, 10),
            ..Limits::default()
        }
    }
}

impl Config {
    /// Every key with those of tables as `table.key`.
    fn keys(&self) -> Vec<String> {
        let Ok(Value::Object(keys)) = serde_json::to_value(self) else {
            return Vec::new(); // the settings are a table
        };
        let names = keys.into_iter().flat_map(|(key, value)| match value {
            Value::Object(table) => table
                .into_iter()
                .map(|(inner, _)| format!("{key}.{inner}"))
                .collect(),
            _ => vec![key],
        });
        names.collect()
    }

    /// Variables with our prefix that mean nothing here. That is no error: others may have set them, as Kubernetes sets
    /// `REALM_PORT` for a service of the name `realm`.
    pub fn unknown_variables() -> Vec<String> {
        let known = Config::default().keys();
        let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        let is_unknown = |name: &String| {
            let key = name.to_lowercase();
            key.strip_prefix("realm_").is_some_and(|key| {
                !NOT_SETTINGS.contains(&key) && !known.contains(&key.replace("__", "."))
            })
        };
        let mut unknown: Vec<String> = names.filter(is_unknown).collect();
        unknown.sort();
        unknown
    }

    /// Puts the four sources together.
    ///
    /// # Errors
    /// When the file cannot be read, or a key is unknown or its value is wrong; the message names the key.
    pub fn load(file: Option<&Path>, flags: &Flags) -> Result<Config, ConfigError> {
        let mut sources = Figment::from(Serialized::defaults(Config::default()));
        if let Some(path) = file {
            let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
                path: path.to_owned(),
                source,
            })?;
            sources = sources.merge(Toml::string(&text));
        }
        let known = Config::default().keys();
        let environment = Env::prefixed("REALM_").filter_map(move |name| {
            let key = name.as_str().to_lowercase().replace("__", ".");
            known.contains(&key).then(|| key.into())
        });
        let config: Config = sources
            .merge(environment)
            .merge(Serialized::defaults(flags))
            .extract()
            .map_err(|error| refusal(&error))?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        for (key, value, min, max) in self.ranges() {
            if !(min..=max).contains(&value) {
                let wanted = format!("from {min} to {max}, not {value}");
                return Err(ConfigError::Value { key, wanted });
            }
        }
        if let Some(origin) = self.cors_origins.iter().find(|origin| !is_origin(origin)) {
            let wanted = format!(
                "a list of \"*\" or of origins such as \"https://app.example.com\", not {origin:?}"
            );
            let key = "cors_origins";
            return Err(ConfigError::Value { key, wanted });
        }
        self.check_texts()
    }

    /// Every number with the least and the most it can be. The most is what can still be counted, added to a clock or
    /// reserved, far above what anybody needs: a setting never makes the server fail later.
    fn ranges(&self) -> Vec<(&'static str, u64, u64, u64)> {
        const MS: u64 = 7 * 24 * 60 * 60 * 1000;
        const MIB: u64 = 1 << 24; // 16 TiB
        const COUNT: u64 = 1 << 20;
        let limits = &self.limits;
        let time = |key, ms: u64| (key, ms, 1, MS);
        let size = |key, mib: u64| (key, mib, 1, MIB);
        let count = |key, count: usize| (key, count as u64, 1, COUNT);
        let mut ranges = vec![
            ("threads", self.threads as u64, 0, 4096),
            size("kv_memory_mib", self.kv_memory_mib),
            ("step_tokens_max", self.step_tokens_max.into(), 1, 1 << 16),
            (
                "sequences_running_max",
                self.sequences_running_max.into(),
                1,
                1 << 16,
            ),
            ("step_ms_target", self.step_ms_target.into(), 0, MS),
            count("tenant_sequences_max", self.tenant_sequences_max),
            (
                "tenant_kv_percent_max",
                self.tenant_kv_percent_max.into(),
                1,
                100,
            ),
            count("queue_max", self.queue_max),
            time("body_ms_max", self.body_ms_max),
            time("write_ms_max", self.write_ms_max),
            time("keep_alive_ms", self.keep_alive_ms),
            ("drain_ms", self.drain_ms, 0, MS),
            count("connections_max", self.connections_max as usize),
            count("tenant_sockets_max", self.tenant_sockets_max as usize),
            ("instances_max", self.instances_max.into(), 1, 1 << 14),
            count("tenant_requests_max", self.tenant_requests_max as usize),
            size("tenant_memory_mib", self.tenant_memory_mib),
            size("compile_memory_mib", self.compile_memory_mib),
            time("compile_ms_max", self.compile_ms_max),
            ("upload_mib_max", self.upload_mib_max, 1, UPLOAD_MIB_MAX),
            // A component's memory has 32-bit addresses.
            ("limits.memory_mib_max", limits.memory_mib_max, 1, 4096),
            time("limits.cpu_ms_max", limits.cpu_ms_max),
            time("limits.wall_ms_max", limits.wall_ms_max),
            count("limits.handles_max", limits.handles_max as usize),
            ("limits.log_kib_max", limits.log_kib_max, 0, COUNT),
        ];
        let context_max = self.context_max.map(u64::from);
        ranges.extend(context_max.map(|tokens| ("context_max", tokens, 1, 1 << 24)));
        ranges
    }

    fn check_texts(&self) -> Result<(), ConfigError> {
        if self
            .admin_token
            .as_ref()
            .is_some_and(|token| token.len() < 16)
        {
            return Err(ConfigError::Value {
                key: "admin_token",
                wanted: "at least 16 characters long".to_owned(),
            });
        }
        let names = [
            ("model_name", &self.model_name),
            ("embedding_model_name", &self.embedding_model_name),
        ];
        let misfits = |name: &String| name.is_empty() || name.len() > 200;
        if let Some((key, _)) = names
            .into_iter()
            .find(|(_, name)| name.as_ref().is_some_and(misfits))
        {
            return Err(ConfigError::Value {
                key,
                wanted: "1 to 200 characters long".to_owned(),
            });
        }
        Ok(())
    }
}

/// figment's words as a sentence about the setting that its reader wrote: a variable's name, or a key of the file.
fn refusal(error: &figment::Error) -> ConfigError {
    let source = error.metadata.as_ref().map_or("", |source| &*source.name);
    let is_variable = source.contains("environment");
    let name = |path: &[String]| match is_variable {
        true => format!("REALM_{}", path.join("__").to_uppercase()),
        false => path.join("."),
    };
    let what = match &error.kind {
        Kind::InvalidType(found, wanted) | Kind::InvalidValue(found, wanted) => {
            format!("must be {}, not {}", plain_kind(wanted), plain_value(found))
        }
        Kind::UnknownVariant(found, wanted) => {
            format!("must be one of {}, not {found:?}", wanted.join(", "))
        }
        Kind::ISizeOutOfRange(_) | Kind::USizeOutOfRange(_) => "is too large".to_owned(),
        Kind::UnknownField(field, _) => {
            let mut path = error.path.clone();
            if path.last() != Some(field) {
                path.push(field.clone());
            }
            return ConfigError::Refused(format!("{} is not a setting", name(&path)));
        }
        // A file that is not TOML has no key, and the message says where it is wrong.
        other => other.to_string(),
    };
    ConfigError::Refused(match &error.path[..] {
        [] => format!("the settings file: {what}"),
        path => format!("{} {what}", name(path)),
    })
}

/// What serde wants, in words that are not Rust's.
fn plain_kind(wanted: &str) -> &str {
    match wanted {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or greater",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "a table",
        "a string" => "a text",
        "socket address" => "an address such as 127.0.0.1:8080",
        table if table.starts_with("struct ") => "a table",
        other => other,
    }
}

/// What was written.
fn plain_value(found: &Actual) -> String {
    match found {
        Actual::Str(text) => format!("{text:?}"),
        Actual::Char(char) => format!("{:?}", char.to_string()),
        Actual::Bool(value) => value.to_string(),
        Actual::Unsigned(value) => value.to_string(),
        Actual::Signed(value) => value.to_string(),
        Actual::Float(value) => value.to_string(),
        Actual::Seq => "a list".to_owned(),
        Actual::Map => "a table".to_owned(),
        other => other.to_string(),
    }
}

/// Whether a browser could name this as the origin of a page.
fn is_origin(text: &str) -> bool {
    let Some((scheme, host)) = text.split_once("://") else {
        return text == "*";
    };
    let is_host = |c: char| c.is_ascii_alphanumeric() || "-.:[]_".contains(c);
    matches!(scheme, "http" | "https") && !host.is_empty() && host.chars().all(is_host)
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not there or not readable.
    #[error("cannot read the settings file {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
    /// A key is unknown, or its value is of another kind.
    #[error("invalid settings: {0}")]
    Refused(String),
    /// A value is out of range.
    #[error("invalid settings: {key} must be {wanted}")]
    Value {
        /// The key.
        key: &'static str,
        /// What would be right.
        wanted: String,
    },
}

/// The name clients see for a model file: its stem in lower case, without the quantisation at the end.
pub fn model_name_of(path: &Path) -> String {
    let stem = path
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .to_lowercase();
    let is_quantisation = |word: &str| {
        matches!(word, "f16" | "f32" | "bf16")
            || word
                .strip_prefix("iq")
                .or_else(|| word.strip_prefix('q'))
                .is_some_and(|rest| {
                    rest.starts_with(|c: char| c.is_ascii_digit())
                        && rest.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
                })
    };
    match stem.rsplit_once(['.', '-']) {
        Some((name, last)) if !name.is_empty() && is_quantisation(last) => name.to_owned(),
        _ if stem.is_empty() => "model".to_owned(),
        _ => stem,
    }
}

#[cfg(test)]
#[expect(
    clippy::result_large_err,
    reason = "the type of figment's own test helper"
)]
mod tests;
