//! Tokens per second of a model file on this machine, without the engine around it.
//!
//! `cargo run --release -p realm-engine --example speed -- MODEL [THREADS]`. Each line is the best of three runs, so
//! that a busy neighbour counts less; compare figures of one machine and one quarter of an hour only.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use realm_engine::{BatchRow, Executor, Gguf, ModelFacts, ModelOptions, StepBatch, model};

const PREFILL: u32 = 512;
const DECODE: u32 = 64;
/// Tokens before the ones that are timed in decoding.
const CONTEXT: u32 = 128;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let Some(path) = args.next() else {
        eprintln!("usage: speed MODEL [THREADS]");
        return ExitCode::FAILURE;
    };
    let threads = args.next().and_then(|text| text.parse().ok()).unwrap_or(0);
    let start = Instant::now();
    let options = ModelOptions {
        threads,
        ..ModelOptions::default()
    };
    let loaded = Gguf::open(Path::new(&path))
        .map_err(model::LoadError::from)
        .and_then(|gguf| model::load(Arc::new(gguf), options));
    let (mut executor, facts, _) = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            eprintln!("{path}: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!(
        "{} ({}), {}: loaded in {:.2} s",
        facts.name,
        facts.architecture,
        facts.isa,
        start.elapsed().as_secs_f64()
    );
    report("prefill 512, one step", || {
        prefill(executor.as_mut(), &facts, 512)
    });
    report("prefill 512, steps of 128", || {
        prefill(executor.as_mut(), &facts, 128)
    });
    for streams in [1, 2, 4, 8, 16, 32] {
        report(&format!("decode 64, {streams} streams"), || {
            decode(executor.as_mut(), &facts, streams)
        });
    }
    ExitCode::SUCCESS
}

/// Prints the best of three runs, each of which returns tokens and seconds.
fn report(what: &str, mut run: impl FnMut() -> (u32, f64)) {
    let best = (0..3)
        .map(|_| run())
        .map(|(tokens, seconds)| f64::from(tokens) / seconds)
        .fold(0.0, f64::max);
    println!("{what}: {best:.1} tokens/s");
}

/// One sequence of 512 tokens; only the last row asks for logits.
fn prefill(executor: &mut dyn Executor, facts: &ModelFacts, step: u32) -> (u32, f64) {
    let table = table(0);
    let start = Instant::now();
    let mut logits = Vec::new();
    for first in (0..PREFILL).step_by(step as usize) {
        let rows: Vec<BatchRow> = (first..first + step)
            .map(|position| row(facts, 0, position, position + 1 == PREFILL))
            .collect();
        forward(executor, &rows, &[&table], &mut logits);
    }
    (PREFILL, start.elapsed().as_secs_f64())
}

/// So many sequences with 128 tokens behind them, 64 more tokens each, all in one batch.
fn decode(executor: &mut dyn Executor, facts: &ModelFacts, streams: u32) -> (u32, f64) {
    let tables: Vec<Vec<u32>> = (0..streams).map(table).collect();
    let tables: Vec<&[u32]> = tables.iter().map(Vec::as_slice).collect();
    let mut logits = Vec::new();
    for stream in 0..streams {
        let rows: Vec<BatchRow> = (0..CONTEXT)
            .map(|position| row(facts, stream, position, false))
            .collect();
        forward(executor, &rows, &tables, &mut logits);
    }
    let start = Instant::now();
    for position in CONTEXT..CONTEXT + DECODE {
        let rows: Vec<BatchRow> = (0..streams)
            .map(|stream| row(facts, stream, position, true))
            .collect();
        forward(executor, &rows, &tables, &mut logits);
    }
    (streams * DECODE, start.elapsed().as_secs_f64())
}

/// Blocks of sequence `stream`.
fn table(stream: u32) -> Vec<u32> {
    let blocks = PREFILL / 16;
    (stream * blocks..(stream + 1) * blocks).collect()
}

/// Some token or other: the time does not depend on which.
fn row(facts: &ModelFacts, table: u32, position: u32, logits: bool) -> BatchRow {
    BatchRow {
        token: (position * 7919 + table * 104_729) % facts.vocab_size,
        position,
        table,
        logits,
        adapter: None,
    }
}

fn forward(
    executor: &mut dyn Executor,
    rows: &[BatchRow],
    tables: &[&[u32]],
    logits: &mut Vec<f32>,
) {
    let batch = StepBatch { rows, tables };
    executor
        .forward(&batch, logits)
        .expect("a GiB of KV holds these sequences");
}
