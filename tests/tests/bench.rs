//! `realm bench`, as the comparison with other engines calls it.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use realm_tests::paths;
use realm_tests::server::command;
use serde_json::Value;
use std::path::PathBuf;
use std::process::Output;

/// A model of 2 MB.
fn small_model() -> PathBuf {
    paths::repository().join("tests/fixtures/zoo/llama.gguf")
}

/// Runs `realm bench` on the small model with little to do.
fn bench(arguments: &[&str]) -> Result<Output> {
    Ok(command()?
        .arg("bench")
        .arg("--model")
        .arg(small_model())
        .args(["--prefill", "16", "--decode", "4", "--reps", "2"])
        .args(["--threads", "1"])
        .args(arguments)
        .output()?)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn report(arguments: &[&str]) -> Result<Value> {
    let output = bench(arguments)?;
    ensure!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).context("standard output is one JSON object")
}

fn positive(value: &Value, key: &str) -> bool {
    value[key]
        .as_f64()
        .is_some_and(|number| number.is_finite() && number > 0.0)
}

#[test]
fn the_json_is_one_object_with_a_figure_for_every_row_count_asked() -> Result<()> {
    let report = report(&["--rows", "1,3", "--json"])?;
    for key in [
        "prefill_tok_s",
        "decode_tok_s",
        "load_s",
        "kv_bytes",
        "weight_bytes",
        "peak_memory_bytes",
    ] {
        assert!(positive(&report, key), "{key}: {report}");
    }
    assert_eq!(report["engine"], "realm");
    assert_eq!(report["threads"], 1);
    assert_eq!(report["reps"], 2);
    assert_eq!(report["prefill_tokens"], 16);
    assert!(report["isa"].is_string(), "{report}");
    let batched = report["batched"].as_array().context("a list")?;
    let rows: Vec<&Value> = batched.iter().map(|entry| &entry["rows"]).collect();
    assert_eq!(rows, [1, 3]);
    assert!(batched.iter().all(|entry| positive(entry, "decode_tok_s")));
    let (least, most) = (&report["decode_tok_s_min"], &report["decode_tok_s_max"]);
    assert!(least.as_f64() <= most.as_f64(), "{report}");
    Ok(())
}

#[test]
fn operations_stand_beside_ceilings_of_the_same_run() -> Result<()> {
    let report = report(&["--rows", "2", "--ops", "--json"])?;
    for key in ["read_gb_s", "int8_gop_s", "float_gop_s", "fork_join_us"] {
        assert!(positive(&report["ceilings"], key), "{key}: {report}");
    }
    let steps = report["steps"].as_array().context("a list")?;
    assert_eq!(steps.len(), 2, "prefill and decoding of two rows");
    for step in steps {
        let ops = step["ops"].as_array().context("a list")?;
        let matmul = ops.iter().find(|op| op["weights"].is_string());
        let matmul = matmul.context("an operation with weights")?;
        assert!(
            positive(matmul, "gb_s") && positive(matmul, "gop_s"),
            "{matmul}"
        );
        let share = step["in_ops_share"].as_f64().context("a number")?;
        assert!((0.0..=1.0).contains(&share), "{step}");
    }
    Ok(())
}

/// 16 bits are much closer than 8, and what a server rounds to lies between.
#[test]
fn fidelity_tells_the_roundings_apart() -> Result<()> {
    let model = paths::repository().join("host/engine/tests/fixtures/zoo/llama-q4_k_m.gguf");
    let prompts = tempfile::NamedTempFile::new()?;
    std::fs::write(
        prompts.path(),
        "Why is the sea salty?\n\n\nCount to ten.\n\n",
    )?;
    let run = |arguments: &[&str]| -> Result<Output> {
        let mut command = command()?;
        command.args(["bench", "--threads", "1", "--fidelity", "--model"]);
        Ok(command.arg(&model).args(arguments).output()?)
    };
    let path = prompts.path().to_str().context("a path of text")?;
    let output = run(&["--json", "--text", path])?;
    ensure!(output.status.success(), "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(report["positions"], 16, "{report}");
    let rms = |name: &str| {
        let roundings = report["roundings"].as_array().into_iter().flatten();
        let mut named = roundings.filter(|row| row["activations"] == name);
        named.next().and_then(|row| row["logprob_rms"].as_f64())
    };
    let (int8, mixed, int16) = (rms("int8"), rms("mixed"), rms("int16"));
    assert!(
        int16 > Some(0.0) && int16 < mixed && mixed < int8,
        "{report}"
    );
    assert!(int16 < int8.map(|rms| rms / 10.0), "{report}");
    let refused = run(&["--rows", "2"])?;
    assert!(!refused.status.success() && stderr(&refused).contains("--rows"));
    std::fs::write(prompts.path(), "\n \n\n")?;
    let refused = run(&["--text", path])?;
    assert!(!refused.status.success() && stderr(&refused).contains("no prompt"));
    Ok(())
}

#[test]
fn a_person_gets_a_table() -> Result<()> {
    let output = bench(&[])?;
    assert!(output.status.success(), "{}", stderr(&output));
    let shown = String::from_utf8(output.stdout)?;
    assert!(
        shown.contains("prefill 16") && shown.contains("decode 4, 1 row"),
        "{shown}"
    );
    Ok(())
}

#[test]
fn what_cannot_be_measured_is_an_error_that_names_it() -> Result<()> {
    for (arguments, named) in [
        (
            &["--rows", "65"][..],
            "65 rows are too many: the most is 64",
        ),
        (&["--rows", "0"], "the number of rows is 0"),
        (&["--context", "1000000"], "1000064 tokens"),
        (&["--context", "0"], "the number of tokens before is 0"),
        (&["--threads", "100000"], "100000"),
        (&["--activations", "int3"], "int3"),
        (&["--rows", "1,x"], "x"),
    ] {
        let arguments = [&["--json"], arguments].concat();
        let mut command = command()?;
        command.arg("bench").arg("--model").arg(small_model());
        let output = command.args(&arguments).output()?;
        assert!(!output.status.success(), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        let error = stderr(&output);
        assert!(
            error.contains(named) && !error.contains("panicked"),
            "{error}"
        );
    }
    Ok(())
}

#[test]
fn a_bad_model_path_is_an_error_that_names_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let missing = folder.path().join("missing.gguf");
    let spoilt = folder.path().join("spoilt.gguf");
    std::fs::write(&spoilt, "not a model")?;
    for path in [missing, spoilt] {
        let output = command()?
            .args(["bench", "--json", "--model"])
            .arg(&path)
            .output()?;
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty());
        assert!(
            stderr(&output).contains(&path.display().to_string()),
            "{}",
            stderr(&output)
        );
    }
    Ok(())
}

#[test]
fn the_overhead_of_a_step_is_taken_apart() -> Result<()> {
    let report = report(&["--overhead", "--json"])?;
    let overhead = &report["overhead"];
    for key in ["step_ms", "forward_ms", "sampling_ms", "rest_ms"] {
        assert!(positive(overhead, key), "{key}: {report}");
    }
    assert_eq!(overhead["rows"], 64);
    assert_eq!(overhead["idle_sequences"], 16_000);
    assert_eq!(overhead["steps"], 4);
    Ok(())
}
