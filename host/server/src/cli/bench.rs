//! `realm bench`: how fast a model runs on this machine, as a table for people or one line of JSON for programs.
//!
//! `bench/engines` has other engines behind the same options and the same JSON.

mod fidelity;
mod table;

use super::client::line;
use crate::config::{Activations, KvType};
use anyhow::{Context, Result};
use realm_engine::bench::{
    Bench as Model, Ceilings, Overhead, Profile, Rate, Unit, Work, Workload,
};
use realm_engine::{Gguf, ModelOptions};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Instant;

/// More than any machine has; each takes a stack.
const THREADS_MAX: i64 = 1024;
/// Rows whose steps are taken apart when none are asked for.
const OPS_ROWS: [u32; 3] = [1, 8, 32];

#[derive(clap::Args)]
pub(super) struct Bench {
    /// GGUF file
    #[arg(long, value_name = "PATH")]
    model: PathBuf,
    /// Length of the prompt, in tokens
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    prefill: u32,
    /// Tokens to decode for each sequence
    #[arg(long, value_name = "TOKENS", default_value_t = 64)]
    decode: u32,
    /// Also decode this many sequences at once, up to 64; a list such as 1,8,32
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    rows: Vec<u32>,
    /// Tokens already in each sequence before it decodes
    #[arg(long, value_name = "TOKENS", default_value_t = 16)]
    context: u32,
    /// Most tokens of a prompt computed in one step
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    step_tokens_max: u32,
    /// Threads to compute with; 0 means one per processor
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(..=THREADS_MAX))]
    threads: u16,
    /// Precision of activations
    #[arg(long, value_name = "BITS", default_value = "mixed")]
    activations: Activations,
    /// Memory for keys and values, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    kv_memory_mib: u64,
    /// How keys and values are stored
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    kv_type: KvType,
    /// Folder in which repacked weights are kept for the next start
    #[arg(long, value_name = "DIR")]
    packed_dir: Option<PathBuf>,
    /// How many times everything is measured; medians are reported
    #[arg(long, value_name = "N", default_value_t = 5)]
    reps: u32,
    /// Also break steps down by operation, next to what this machine can reach at best
    #[arg(long)]
    ops: bool,
    /// Also measure what a step costs beside the model: 64 sequences decode while 16,000 are idle
    #[arg(long)]
    overhead: bool,
    /// Measure instead how far rounded activations move the answers, for every precision of activations
    #[arg(long, conflicts_with_all = ["prefill", "decode", "rows", "context", "step_tokens_max", "activations", "reps", "ops", "overhead"])]
    fidelity: bool,
    /// Prompts to measure that with instead of the built-in ones, parted by empty lines
    #[arg(long, value_name = "FILE", requires = "fidelity")]
    text: Option<PathBuf>,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// What is printed as JSON; medians where `min` and `max` stand beside.
#[derive(Serialize)]
struct Report {
    engine: &'static str,
    version: &'static str,
    file: String,
    model: String,
    architecture: String,
    parameters: u64,
    file_bytes: u64,
    weight_bytes: u64, // of the file's tensors
    kv_bytes: u64,     // that the cache may grow to
    isa: String,
    threads: usize,
    activations: Activations,
    kv_type: KvType,
    reps: u32,
    prefill_tokens: u32,
    decode_tokens: u32,
    context_tokens: u32,
    load_s: f64,
    prefill_tok_s: f64,
    prefill_tok_s_min: f64,
    prefill_tok_s_max: f64,
    #[serde(flatten)]
    decode: Decode,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    batched: Vec<Batched>,
    peak_memory_bytes: Option<u64>, // null where the system does not say
    #[serde(skip_serializing_if = "Option::is_none")]
    ceilings: Option<Limits>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    steps: Vec<Step>,
    #[serde(skip_serializing_if = "Option::is_none")]
    overhead: Option<Beside>,
}

/// Where the time of a decoding step goes; medians.
#[derive(Serialize)]
struct Beside {
    rows: u32,
    idle_sequences: u32,
    tenants: u32,
    steps: u32,
    step_ms: f64,
    forward_ms: f64,
    sampling_ms: f64,
    rest_ms: f64,
    sampling_share: f64, // of the forward pass
    rest_share: f64,     // of the forward pass
}

#[derive(Serialize)]
struct Decode {
    decode_tok_s: f64,
    decode_tok_s_min: f64,
    decode_tok_s_max: f64,
}

#[derive(Serialize)]
struct Batched {
    rows: u32,
    #[serde(flatten)]
    decode: Decode,
}

#[derive(Serialize)]
struct Limits {
    read_gb_s: f64,
    int8_gop_s: f64,
    float_gop_s: f64,
    fork_join_us: f64,
}

/// One kind of step, taken apart.
#[derive(Serialize)]
struct Step {
    work: String,
    ms: f64,              // of one step
    in_ops_share: f64,    // of that
    fork_join_share: f64, // at most: a fork and join for each operation
    weight_mb: f64,       // read in a step
    read_share: f64,      // of the ceiling: those weights in this time
    ops: Vec<Operation>,
}

/// All calls of an operation with weights of one shape.
#[derive(Serialize)]
struct Operation {
    name: &'static str,
    weights: Option<String>,
    calls: f64, // in a step
    us: f64,    // of a call
    share: f64, // of the step
    gb_s: f64,
    gb_s_share: f64, // of the ceiling
    gop_s: f64,
    gop_s_share: f64, // of the ceiling of its unit
    unit: &'static str,
}

pub(super) fn bench(bench: &Bench) -> Result<()> {
    if bench.fidelity {
        return fidelity::print(bench);
    }
    let report = measure(bench)?;
    if bench.json {
        return line(&serde_json::to_string(&report).context("writing the report")?);
    }
    table::print(&report)
}

fn open(bench: &Bench) -> Result<Gguf> {
    let path = bench.model.display();
    Gguf::open(&bench.model).with_context(|| format!("cannot read the model {path}"))
}

fn options(bench: &Bench) -> ModelOptions {
    ModelOptions {
        threads: bench.threads.into(),
        kv_bytes_max: bench.kv_memory_mib.saturating_mul(1 << 20),
        kv_type: bench.kv_type.into(),
        activations: bench.activations.into(),
        packed_dir: bench.packed_dir.clone(),
        ..ModelOptions::default()
    }
}

fn measure(bench: &Bench) -> Result<Report> {
    let path = bench.model.display();
    let start = Instant::now();
    let gguf = open(bench)?;
    let weight_bytes = gguf.tensors().map(|tensor| tensor.data.len() as u64).sum();
    let model = Model::load(&gguf, options(bench), bench.ops)
        .with_context(|| format!("cannot run the model {path}"))?;
    drop(gguf);
    let load_s = start.elapsed().as_secs_f64();
    let (facts, threads) = (model.facts().clone(), model.threads());
    let figures = Figures::of(model, bench)?;
    Ok(Report {
        engine: "realm",
        version: env!("CARGO_PKG_VERSION"),
        file: path.to_string(),
        model: facts.name,
        architecture: facts.architecture,
        parameters: facts.parameters,
        file_bytes: facts.file_bytes,
        weight_bytes,
        kv_bytes: facts.kv_bytes,
        isa: facts.isa,
        threads,
        activations: bench.activations,
        kv_type: bench.kv_type,
        reps: bench.reps,
        prefill_tokens: bench.prefill,
        decode_tokens: bench.decode,
        context_tokens: bench.context,
        load_s,
        prefill_tok_s: figures.prefill.median,
        prefill_tok_s_min: figures.prefill.min,
        prefill_tok_s_max: figures.prefill.max,
        decode: figures.decode.into(),
        batched: figures.batched,
        peak_memory_bytes: figures.peak_memory_bytes,
        ceilings: figures.ceilings,
        steps: figures.steps,
        overhead: figures.overhead,
    })
}

/// What is measured of a model.
struct Figures {
    prefill: Rate,
    decode: Rate,
    batched: Vec<Batched>,
    peak_memory_bytes: Option<u64>,
    ceilings: Option<Limits>,
    steps: Vec<Step>,
    overhead: Option<Beside>,
}

impl Figures {
    fn of(mut model: Model, bench: &Bench) -> Result<Figures> {
        let load = Workload {
            prefill: bench.prefill,
            decode: bench.decode,
            context: bench.context,
            step_tokens_max: bench.step_tokens_max,
            reps: bench.reps,
        };
        let single = [Work::Prefill, Work::Decode { rows: 1 }];
        let batched = bench.rows.iter().map(|&rows| Work::Decode { rows });
        let ops = works_of_ops(bench);
        // All are checked before the first is measured: that may take long.
        for work in single.into_iter().chain(batched).chain(ops.iter().copied()) {
            model.check(&load, work)?;
        }
        if bench.overhead {
            model.check_overhead(&load)?;
        }
        let prefill = model.rate(&load, Work::Prefill)?;
        let decode = model.rate(&load, Work::Decode { rows: 1 })?;
        let mut batched = Vec::new();
        for &rows in &bench.rows {
            let decode = model.rate(&load, Work::Decode { rows })?.into();
            batched.push(Batched { rows, decode });
        }
        let peak_memory_bytes = peak_memory_bytes(); // before the ceilings, which take a buffer
        let mut steps = Vec::new();
        let ceilings = match bench.ops {
            true => Some(model.ceilings()?),
            false => None,
        };
        if let Some(ceilings) = &ceilings {
            for work in ops {
                let profile = model.profile(&load, work)?;
                steps.push(Step::new(work_name(&load, work), &profile, ceilings));
            }
        }
        let overhead = match bench.overhead {
            true => Some(model.overhead(&load)?.into()),
            false => None,
        };
        Ok(Figures {
            prefill,
            decode,
            batched,
            peak_memory_bytes,
            ceilings: ceilings.map(Limits::from),
            steps,
            overhead,
        })
    }
}

/// The works whose steps are taken apart.
fn works_of_ops(bench: &Bench) -> Vec<Work> {
    if !bench.ops {
        return Vec::new();
    }
    let rows = match bench.rows.is_empty() {
        true => &OPS_ROWS[..],
        false => &bench.rows,
    };
    let decode = rows.iter().map(|&rows| Work::Decode { rows });
    std::iter::once(Work::Prefill).chain(decode).collect()
}

fn work_name(load: &Workload, work: Work) -> String {
    match work {
        Work::Prefill => format!("prefill {}", load.prefill),
        Work::Decode { rows: 1 } => "decode, 1 row".to_owned(),
        Work::Decode { rows } => format!("decode, {rows} rows"),
    }
}

/// The most memory this process ever had, as Linux counts it.
fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

impl From<Rate> for Decode {
    fn from(rate: Rate) -> Decode {
        Decode {
            decode_tok_s: rate.median,
            decode_tok_s_min: rate.min,
            decode_tok_s_max: rate.max,
        }
    }
}

impl From<Overhead> for Beside {
    fn from(overhead: Overhead) -> Beside {
        Beside {
            rows: overhead.rows,
            idle_sequences: overhead.idle_sequences,
            tenants: overhead.tenants,
            steps: overhead.steps,
            step_ms: overhead.step_s * 1e3,
            forward_ms: overhead.forward_s * 1e3,
            sampling_ms: overhead.sampling_s * 1e3,
            rest_ms: overhead.rest_s * 1e3,
            sampling_share: overhead.sampling_s / overhead.forward_s,
            rest_share: overhead.rest_s / overhead.forward_s,
        }
    }
}

impl From<Ceilings> for Limits {
    fn from(ceilings: Ceilings) -> Limits {
        Limits {
            read_gb_s: ceilings.read_bytes_s / 1e9,
            int8_gop_s: ceilings.int8_ops_s / 1e9,
            float_gop_s: ceilings.float_ops_s / 1e9,
            fork_join_us: ceilings.fork_join_s * 1e6,
        }
    }
}

impl Step {
    fn new(work: String, profile: &Profile, ceilings: &Ceilings) -> Step {
        let steps = profile.steps as f64;
        let weight_bytes = profile.weight_bytes() as f64;
        let ops = profile.ops.iter().map(|op| {
            let (unit, arithmetic_max) = match op.unit {
                Unit::Int8 => ("int8", ceilings.int8_ops_s),
                Unit::Float => ("f32", ceilings.float_ops_s),
            };
            let bytes_s = op.bytes as f64 / op.seconds;
            let arithmetic_s = op.arithmetic as f64 / op.seconds;
            Operation {
                name: op.name,
                weights: op
                    .weights
                    .map(|w| format!("{} {} x {}", w.ty.name(), w.rows, w.cols)),
                calls: op.calls as f64 / steps,
                us: op.seconds * 1e6 / op.calls as f64,
                share: op.seconds / profile.seconds,
                gb_s: bytes_s / 1e9,
                gb_s_share: bytes_s / ceilings.read_bytes_s,
                gop_s: arithmetic_s / 1e9,
                gop_s_share: arithmetic_s / arithmetic_max,
                unit,
            }
        });
        Step {
            work,
            ms: profile.seconds * 1e3 / steps,
            in_ops_share: profile.seconds_in_ops() / profile.seconds,
            fork_join_share: profile.calls() as f64 * ceilings.fork_join_s / profile.seconds,
            weight_mb: weight_bytes / steps / 1e6,
            read_share: weight_bytes / profile.seconds / ceilings.read_bytes_s,
            ops: ops.collect(),
        }
    }
}
