//! The report for people.

use super::{Beside, Decode, Report, Step};
use crate::cli::client::line;
use anyhow::Result;

pub(super) fn print(report: &Report) -> Result<()> {
    let mb = |bytes: u64| bytes as f64 / 1e6;
    line(&format!(
        "{} ({}, {:.0} M parameters, {:.0} MB), loaded in {:.2} s",
        report.model,
        report.architecture,
        report.parameters as f64 / 1e6,
        mb(report.file_bytes),
        report.load_s
    ))?;
    let activations = serde_json::to_value(report.activations)?;
    line(&format!(
        "{}, {} threads, {} activations; medians of {}; {} tokens before decoding",
        report.isa,
        report.threads,
        activations.as_str().unwrap_or_default(),
        report.reps,
        report.context_tokens
    ))?;
    if let Some(peak) = report.peak_memory_bytes {
        line(&format!(
            "memory: {:.0} MB at the most, {:.0} MB of weights in the file",
            mb(peak),
            mb(report.weight_bytes)
        ))?;
    }
    line("")?;
    rates(report)?;
    if let Some(overhead) = &report.overhead {
        line("")?;
        beside(overhead)?;
    }
    for step in &report.steps {
        line("")?;
        operations(step)?;
    }
    let Some(limits) = &report.ceilings else {
        return Ok(());
    };
    line("")?;
    line(&format!(
        "100 % is what this machine did in this run: read {:.1} GB/s, int8 {:.0} GOP/s, f32 {:.0} GOP/s. \
         A fork and join takes {:.1} us.",
        limits.read_gb_s, limits.int8_gop_s, limits.float_gop_s, limits.fork_join_us
    ))?;
    line("Bytes of operations without weights may come from a cache.")
}

fn rates(report: &Report) -> Result<()> {
    let row = |what: &str, median: f64, min: f64, max: f64| {
        line(&format!("{what:<24}{median:>10.1}{min:>10.1}{max:>10.1}"))
    };
    let decode = |rows: u32, rate: &Decode| {
        let plural = if rows == 1 { "" } else { "s" };
        row(
            &format!("decode {}, {rows} row{plural}", report.decode_tokens),
            rate.decode_tok_s,
            rate.decode_tok_s_min,
            rate.decode_tok_s_max,
        )
    };
    line(&format!(
        "{:<24}{:>10}{:>10}{:>10}",
        "tokens/s", "median", "min", "max"
    ))?;
    row(
        &format!("prefill {}", report.prefill_tokens),
        report.prefill_tok_s,
        report.prefill_tok_s_min,
        report.prefill_tok_s_max,
    )?;
    decode(1, &report.decode)?;
    report
        .batched
        .iter()
        .try_for_each(|batched| decode(batched.rows, &batched.decode))
}

fn beside(overhead: &Beside) -> Result<()> {
    line(&format!(
        "{} sequences decode while {} of {} tenants are idle; medians of {} steps of {:.3} ms:",
        overhead.rows, overhead.idle_sequences, overhead.tenants, overhead.steps, overhead.step_ms
    ))?;
    let row = |what: &str, ms: f64, share: f64| {
        line(&format!(
            "  {what:<22}{ms:>10.3} ms{:>9.2} %",
            100.0 * share
        ))
    };
    row("forward", overhead.forward_ms, 1.0)?;
    row("sampling", overhead.sampling_ms, overhead.sampling_share)?;
    row("everything else", overhead.rest_ms, overhead.rest_share)
}

fn operations(step: &Step) -> Result<()> {
    line(&format!(
        "{}: {:.3} ms a step for {:.0} MB of weights, {:.0} % of reading; {:.1} % in operations, of which forking and \
         joining {:.1} % at the most",
        step.work,
        step.ms,
        step.weight_mb,
        100.0 * step.read_share,
        100.0 * step.in_ops_share,
        100.0 * step.fork_join_share
    ))?;
    line(&format!(
        "  {:<16}{:<22}{:>6}{:>11}{:>7}{:>9}{:>7}{:>10}{:>7}",
        "operation", "weights", "calls", "us/call", "time", "GB/s", "", "GOP/s", ""
    ))?;
    for op in &step.ops {
        line(&format!(
            "  {:<16}{:<22}{:>6.0}{:>11.1}{:>5.1} %{:>9.2}{:>5.0} %{:>10.2}{:>5.0} % {}",
            op.name,
            op.weights.as_deref().unwrap_or(""),
            op.calls,
            op.us,
            100.0 * op.share,
            op.gb_s,
            100.0 * op.gb_s_share,
            op.gop_s,
            100.0 * op.gop_s_share,
            op.unit
        ))?;
    }
    Ok(())
}
