//! `realm bench --fidelity`: what rounding costs in likeness to the model as its file has it.

use super::{Bench, open, options};
use crate::cli::client::line;
use crate::config::Activations;
use anyhow::{Context, Result};
use clap::ValueEnum;
use realm_engine::bench::{FIDELITY_PROMPTS, FIDELITY_STEPS, fidelity};
use serde::Serialize;

/// What is printed as JSON.
#[derive(Serialize)]
struct Report {
    engine: &'static str,
    version: &'static str,
    file: String,
    prompts: String,
    positions: usize,
    roundings: Vec<Row>,
}

/// One precision of activations against activations that are not rounded.
#[derive(Serialize)]
struct Row {
    activations: Activations,
    kl_mean: f64,
    kl_p99: f64,
    same_top1: usize,
    logprob_rms: f64,
}

pub(super) fn print(bench: &Bench) -> Result<()> {
    let report = measure(bench)?;
    if bench.json {
        return line(&serde_json::to_string(&report).context("writing the report")?);
    }
    table(&report)
}

fn measure(bench: &Bench) -> Result<Report> {
    let path = bench.model.display();
    let (name, text) = match &bench.text {
        None => ("built-in".to_owned(), FIDELITY_PROMPTS.to_owned()),
        Some(file) => {
            let name = file.display().to_string();
            let text = std::fs::read_to_string(file);
            let text = text.with_context(|| format!("cannot read the prompts {name}"))?;
            (name, text)
        }
    };
    let (gguf, options) = (open(bench)?, options(bench));
    let mut report = Report {
        engine: "realm",
        version: env!("CARGO_PKG_VERSION"),
        file: path.to_string(),
        prompts: name,
        positions: 0,
        roundings: Vec::new(),
    };
    for &activations in Activations::value_variants() {
        let found = fidelity(&gguf, &options, activations.into(), &text)
            .with_context(|| format!("cannot measure the model {path}"))?;
        report.positions = found.positions;
        report.roundings.push(Row {
            activations,
            kl_mean: found.kl_mean,
            kl_p99: found.kl_p99,
            same_top1: found.same_top1,
            logprob_rms: found.logprob_rms,
        });
    }
    Ok(report)
}

fn table(report: &Report) -> Result<()> {
    line(&format!(
        "{}: the first {FIDELITY_STEPS} tokens of the answers to {} prompts, against the same weights with f32 activations",
        report.file, report.prompts
    ))?;
    line(&format!(
        "{:<14}{:>12}{:>12}{:>14}{:>14}",
        "activations", "mean KL", "p99 KL", "same top 1", "log-prob rms"
    ))?;
    for row in &report.roundings {
        let activations = serde_json::to_value(row.activations)?;
        line(&format!(
            "{:<14}{:>12.6}{:>12.6}{:>14}{:>14.4}",
            activations.as_str().unwrap_or_default(),
            row.kl_mean,
            row.kl_p99,
            format!("{}/{}", row.same_top1, report.positions),
            row.logprob_rms
        ))?;
    }
    Ok(())
}
