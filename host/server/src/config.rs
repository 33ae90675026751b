//! Settings: defaults, then a TOML file, then `REALM_…` variables, then flags; the later one wins.
//!
//! A key is the same word everywhere: `kv_memory_mib` in the file, `REALM_KV_MEMORY_MIB`, `--kv-memory-mib`; inside a
//! table it is `limits.cpu_ms_max` and `REALM_LIMITS__CPU_MS_MAX`. Every key has a variable, those of [`Flags`] also have a
//! flag. An unknown key is refused by its name. `docs/configuration.md` lists them all, and a test holds it to that.

use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use realm_sandbox::{COMPONENT_BYTES_MAX, Limits};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

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
    /// Address for clients; port 0 takes a free port.
    pub listen: SocketAddr,
    /// Address for the operator; port 0 takes a free port.
    pub admin_listen: SocketAddr,
    /// The folder that holds all state; created if it does not exist.
    pub data_dir: PathBuf,
    /// The GGUF file to serve.
    pub model: Option<PathBuf>,
    /// The name clients use for it; by default derived from the file name.
    pub model_name: Option<String>,
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
    /// How long a client may take nothing of what is written to it before it is hung up on.
    pub write_ms_max: u64,
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
    /// To 8 bits, but to 16 where attention begins: nearly as fast, and closer to the model.
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

impl Default for Config {
    fn default() -> Config {
        let here = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Config {
            listen: here(8080),
            admin_listen: here(8081),
            data_dir: PathBuf::from(".realm"),
            model: None,
            model_name: None,
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
            write_ms_max: 30_000,
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

/// The flags that are settings. A flag that was not given says nothing.
#[derive(Clone, Debug, Default, clap::Args, Serialize)]
pub struct Flags {
    /// Address for clients; port 0 takes a free port [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// Address for the operator; port 0 takes a free port [default: 127.0.0.1:8081]
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

impl Config {
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
        let environment = Env::prefixed("REALM_").ignore(&NOT_SETTINGS).split("__");
        let config: Config = sources
            .merge(environment)
            .merge(Serialized::defaults(flags))
            .extract()
            .map_err(Box::new)?;
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
        let mut ranges = vec![
            ("threads", self.threads as u64, 0, 4096),
            ("kv_memory_mib", self.kv_memory_mib, 1, MIB),
            ("step_tokens_max", self.step_tokens_max.into(), 1, 1 << 16),
            (
                "sequences_running_max",
                self.sequences_running_max.into(),
                1,
                1 << 16,
            ),
            ("step_ms_target", self.step_ms_target.into(), 0, MS),
            (
                "tenant_sequences_max",
                self.tenant_sequences_max as u64,
                1,
                COUNT,
            ),
            (
                "tenant_kv_percent_max",
                self.tenant_kv_percent_max.into(),
                1,
                100,
            ),
            ("queue_max", self.queue_max as u64, 1, COUNT),
            ("write_ms_max", self.write_ms_max, 1, MS),
            ("drain_ms", self.drain_ms, 0, MS),
            ("connections_max", self.connections_max.into(), 1, COUNT),
            (
                "tenant_sockets_max",
                self.tenant_sockets_max.into(),
                1,
                COUNT,
            ),
            ("instances_max", self.instances_max.into(), 1, 1 << 14),
            (
                "tenant_requests_max",
                self.tenant_requests_max.into(),
                1,
                COUNT,
            ),
            ("tenant_memory_mib", self.tenant_memory_mib, 1, MIB),
            ("compile_memory_mib", self.compile_memory_mib, 1, MIB),
            ("compile_ms_max", self.compile_ms_max, 1, MS),
            ("upload_mib_max", self.upload_mib_max, 1, UPLOAD_MIB_MAX),
            // A component's memory has 32-bit addresses.
            ("limits.memory_mib_max", limits.memory_mib_max, 1, 4096),
            ("limits.cpu_ms_max", limits.cpu_ms_max, 1, MS),
            ("limits.wall_ms_max", limits.wall_ms_max, 1, MS),
            ("limits.handles_max", limits.handles_max.into(), 1, COUNT),
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
    Refused(#[from] Box<figment::Error>),
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
mod tests {
    use super::*;
    use figment::Jail;

    fn load(flags: &Flags) -> Result<Config, String> {
        Config::load(Some(Path::new("realm.toml")), flags).map_err(|error| error.to_string())
    }

    #[test]
    fn a_flag_wins_over_the_environment_over_the_file_over_the_default() {
        Jail::expect_with(|jail| {
            jail.clear_env();
            jail.create_file("realm.toml", "")?;
            assert_eq!(load(&Flags::default()).unwrap(), Config::default());
            jail.create_file(
                "realm.toml",
                "threads = 2\ndrain_ms = 2\n[limits]\ncpu_ms_max = 2\n",
            )?;
            let config = load(&Flags::default()).unwrap();
            assert_eq!(
                (config.threads, config.drain_ms, config.limits.cpu_ms_max),
                (2, 2, 2)
            );
            assert_eq!(
                config.limits.wall_ms_max,
                CallLimits::default().wall_ms_max,
                "others of the table stay"
            );
            jail.set_env("REALM_THREADS", "3");
            jail.set_env("REALM_LIMITS__CPU_MS_MAX", "3");
            let config = load(&Flags::default()).unwrap();
            assert_eq!(
                (config.threads, config.drain_ms, config.limits.cpu_ms_max),
                (3, 2, 3)
            );
            let flags = Flags {
                threads: Some(4),
                ..Flags::default()
            };
            assert_eq!(load(&flags).unwrap().threads, 4);
            Ok(())
        });
    }

    #[test]
    fn what_is_wrong_is_named() {
        Jail::expect_with(|jail| {
            jail.clear_env();
            for (text, key) in [
                ("lisen = \"127.0.0.1:0\"", "lisen"),
                ("listen = \"nowhere\"", "listen"),
                ("threads = \"many\"", "threads"),
                ("[limits]\nmemory_mib_mx = 4", "memory_mib_mx"),
                ("[limits]\ncpu_ms_max = 0", "cpu_ms_max"),
                ("admin_token = \"short\"", "admin_token"),
                ("upload_mib_max = 17", "upload_mib_max"),
                ("connections_max = 0", "connections_max"),
                ("cors_origins = [\"app.example.com\"]", "cors_origins"),
                ("cors_origins = [\"https://a/b\"]", "cors_origins"),
                ("context_max = 0", "context_max"),
            ] {
                jail.create_file("realm.toml", text)?;
                let error = load(&Flags::default()).unwrap_err();
                assert!(error.contains(key), "{text}: {error}");
            }
            jail.create_file("realm.toml", "")?;
            jail.set_env("REALM_MODELS", "/models");
            assert!(load(&Flags::default()).is_ok(), "not a setting");
            jail.set_env("REALM_MODLE", "x");
            assert!(load(&Flags::default()).unwrap_err().contains("modle"));
            Ok(())
        });
    }

    #[test]
    fn no_number_is_too_large_for_what_is_made_of_it() {
        let numbers = Config::default().ranges();
        for (key, value) in keys("", &serde_json::to_value(Config::default()).unwrap()) {
            let is_checked = numbers.iter().any(|(name, ..)| *name == key);
            assert_eq!(is_checked, value.is_number(), "{key} has a range");
        }
        Jail::expect_with(|jail| {
            jail.clear_env();
            for (key, _, _, max) in &numbers {
                let toml = |value: u64| match key.split_once('.') {
                    Some((table, key)) => format!("[{table}]\n{key} = {value}\n"),
                    None => format!("{key} = {value}\n"),
                };
                jail.create_file("realm.toml", &toml(*max))?;
                let config = load(&Flags::default()).unwrap();
                let far = std::time::Instant::now()
                    .checked_add(std::time::Duration::from_millis(config.limits.wall_ms_max));
                assert!(far.is_some());
                for over in [*max + 1, i64::MAX.unsigned_abs()] {
                    jail.create_file("realm.toml", &toml(over))?;
                    let error = load(&Flags::default()).unwrap_err();
                    assert!(error.contains(key.rsplit('.').next().unwrap()), "{error}");
                }
            }
            Ok(())
        });
    }

    /// Every key with its value, those of tables as `table.key`.
    fn keys(prefix: &str, value: &serde_json::Value) -> Vec<(String, serde_json::Value)> {
        let Some(table) = value.as_object() else {
            return vec![(prefix.to_owned(), value.clone())];
        };
        let dot = if prefix.is_empty() { "" } else { "." };
        let entries = table.iter();
        let entries = entries.flat_map(|(key, value)| keys(&format!("{prefix}{dot}{key}"), value));
        entries.collect()
    }

    #[test]
    fn the_page_lists_every_key_with_its_default_and_whether_it_has_a_flag() {
        let page = include_str!("../../../docs/configuration.md");
        let all = keys("", &serde_json::to_value(Config::default()).unwrap());
        let flags = <Flags as clap::Args>::augment_args(clap::Command::new("flags"));
        let has_flag = |key: &str| flags.get_arguments().any(|flag| flag.get_id() == key);
        for (key, value) in &all {
            let default = if value.is_null() {
                "none".to_owned()
            } else {
                format!("`{value}`")
            };
            let flag = if has_flag(key) { " yes" } else { "" };
            let row = format!("\n| `{key}` | {default} |{flag} | ");
            assert!(page.contains(&row), "no row {row:?}");
        }
        assert_eq!(page.matches("\n| `").count(), all.len(), "and no other");
    }

    #[test]
    fn a_model_is_called_by_its_file_without_the_quantisation() {
        for (file, name) in [
            ("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct"),
            ("gemma-3-270m-q4_k_m.gguf", "gemma-3-270m"),
            ("/a/qwen3.gguf", "qwen3"),
            ("model-f16.gguf", "model"),
        ] {
            assert_eq!(model_name_of(Path::new(file)), name);
        }
    }
}
