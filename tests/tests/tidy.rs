//! Rules of the house that a reader can rely on and the compiler does not hold.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use realm_tests::paths;
use std::path::{Path, PathBuf};

/// Where `unsafe` may be written: SIMD, the memory map, loading our own compiled artefacts.
const UNSAFE: &[&str] = &[
    "kernels/src/cpu",
    "host/weights/src/map.rs",
    "host/sandbox/src/component.rs",
];
/// Crates whose root forbids it outright; the others have one of the places above or generated bindings.
const FORBID: &[&str] = &[
    "host/text/src/lib.rs",
    "host/engine/src/lib.rs",
    "host/server/src/lib.rs",
    "host/server/src/main.rs",
    "tests/src/lib.rs",
    "xtask/src/main.rs",
];
/// A ready-made component stays small enough to read at one sitting.
const COMPONENT_LINES_MAX: usize = 150;

#[test]
fn every_ready_made_component_is_under_150_lines() -> Result<()> {
    for folder in ["tenants", "examples"] {
        for entry in std::fs::read_dir(paths::repository().join(folder))? {
            let source = entry?.path().join("src");
            if !source.is_dir() {
                continue;
            }
            let mut lines = 0;
            for file in rust_files(&source)? {
                lines += std::fs::read_to_string(&file)?.lines().count();
            }
            assert!(
                lines > 0 && lines < COMPONENT_LINES_MAX,
                "{} has {lines} lines",
                source.display()
            );
        }
    }
    Ok(())
}

#[test]
fn crates_without_a_reason_for_unsafe_forbid_it() -> Result<()> {
    for root in FORBID {
        let text = std::fs::read_to_string(paths::repository().join(root))
            .with_context(|| (*root).to_owned())?;
        assert!(
            text.contains("#![forbid(unsafe_code)]"),
            "{root} does not forbid unsafe code"
        );
    }
    Ok(())
}

#[test]
fn unsafe_stays_where_it_may_be() -> Result<()> {
    // Written in two halves, so that this file does not find itself.
    let forms = ["{", "fn", "impl", "extern", "trait"]
        .map(|next| format!("{} {next}", concat!("un", "safe")));
    let mut outside = code_lines()?;
    outside.retain(|line| forms.iter().any(|form| line.code.contains(form)));
    // Test guests do what hostile tenants do.
    outside.retain(|line| {
        !UNSAFE
            .iter()
            .chain(&["tests/guests"])
            .any(|allowed| line.file.starts_with(allowed))
    });
    assert!(outside.is_empty(), "{outside:#?}");
    Ok(())
}

#[test]
fn nothing_is_left_undone_or_skipped() -> Result<()> {
    let forms = [
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("#[ig", "nore]"),
        concat!("#[ig", "nore ="),
    ];
    let mut found = code_lines()?;
    found.retain(|line| forms.iter().any(|form| line.code.contains(form)));
    assert!(found.is_empty(), "{found:#?}");
    Ok(())
}

#[derive(Debug)]
struct CodeLine {
    file: PathBuf, // below the repository's root
    #[expect(dead_code, reason = "shown when a rule is broken")]
    line: usize,
    code: String,
}

/// Every line of Rust in the repository, without its comment.
fn code_lines() -> Result<Vec<CodeLine>> {
    let root = paths::repository();
    let mut lines = Vec::new();
    for folder in [
        "kernels",
        "host",
        "guest-sdk",
        "tenants",
        "examples",
        "tests",
        "xtask",
    ] {
        for file in rust_files(&root.join(folder))? {
            let text = std::fs::read_to_string(&file)?;
            let file = file.strip_prefix(&root)?.to_path_buf();
            lines.extend(text.lines().enumerate().map(|(index, line)| CodeLine {
                file: file.clone(),
                line: index + 1,
                code: line.split("//").next().unwrap_or_default().to_owned(),
            }));
        }
    }
    Ok(lines)
}

/// The `.rs` files below `folder`, build output left out.
fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in
        std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?
    {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("target") {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(files)
}
