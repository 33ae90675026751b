//! Crates point one way: the dependency tree of the workspace must hold exactly the edges of this table.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use realm_tests::paths;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Every crate of the workspace and the workspace crates it depends on, tests apart.
const EDGES: &[(&str, &[&str])] = &[
    ("realm", &["realm-engine", "realm-sandbox"]),
    ("realm-sandbox", &["realm-engine"]),
    (
        "realm-engine",
        &["realm-kernels", "realm-text", "realm-weights"],
    ),
    ("realm-weights", &["realm-kernels"]), // its block formats only
    ("realm-text", &[]),
    ("realm-kernels", &[]),
    ("realm-guest", &[]),
    ("realm-tenant-passthrough", &["realm-guest"]),
    ("realm-tenant-best-of-n", &["realm-guest"]),
    ("realm-example-extract", &["realm-guest"]),
    ("realm-test-guests", &["realm-guest"]),
    ("realm-tests", &[]), // they know the wire only
    ("realm-loom", &[]),  // it builds single files of others
    ("componentize", &[]),
    ("xtask", &[]),
];

/// What a crate must not name itself, though crates below it may bring it: the seams that keep it replaceable.
const NEVER: &[(&str, &[&str])] = &[
    (
        "realm-kernels",
        &["tokio", "tracing", "serde_json", "memmap2"],
    ),
    ("realm-weights", &["tokio", "hyper", "ureq", "serde_json"]),
    ("realm-text", &["tokio", "hyper", "memmap2"]),
    (
        "realm-engine",
        &["hyper", "axum", "serde_json", "memmap2", "sqlx"],
    ),
    ("realm-sandbox", &["hyper", "axum", "memmap2", "sqlx"]),
    ("realm-guest", &["tokio"]),
];

#[test]
fn the_dependency_tree_holds_the_allowed_edges_and_no_others() -> Result<()> {
    let trees = members()?;
    let expected: BTreeSet<&str> = EDGES.iter().map(|(name, _)| *name).collect();
    let found: BTreeSet<&str> = trees.keys().map(String::as_str).collect();
    assert_eq!(found, expected, "the workspace's crates and this table's");
    let mut wrong = Vec::new();
    for (name, allowed) in EDGES {
        let direct = &trees[*name];
        let ours = direct
            .iter()
            .filter(|dependency| expected.contains(dependency.as_str()));
        let ours: BTreeSet<&str> = ours.map(String::as_str).collect();
        let allowed: BTreeSet<&str> = allowed.iter().copied().collect();
        wrong.extend(
            ours.difference(&allowed)
                .map(|to| format!("{name} -> {to} is not allowed")),
        );
        wrong.extend(
            allowed
                .difference(&ours)
                .map(|to| format!("{name} -> {to} is in the table but not in the tree")),
        );
        for dependency in direct {
            if dependency.starts_with("wasmtime") && *name != "realm-sandbox" {
                wrong.push(format!(
                    "{name} -> {dependency}: only realm-sandbox names wasmtime"
                ));
            }
        }
    }
    for (name, never) in NEVER {
        let named = never
            .iter()
            .filter(|dependency| trees[*name].contains(**dependency));
        wrong.extend(named.map(|dependency| format!("{name} -> {dependency} is not allowed")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

/// Every workspace crate with its direct dependencies: depth one of `cargo tree`, build scripts included and tests not.
/// Read from `cargo metadata --no-deps`, which shows every platform's edges and, unlike the tree command, needs none of
/// the packages that other platforms would have to download.
fn members() -> Result<BTreeMap<String, BTreeSet<String>>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(paths::repository())
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
        ])
        .output()?;
    ensure!(
        output.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let mut members = BTreeMap::new();
    for package in metadata["packages"]
        .as_array()
        .context("metadata lists packages")?
    {
        let name = package["name"].as_str().context("a package has a name")?;
        let dependencies = package["dependencies"]
            .as_array()
            .context("a package lists its dependencies")?;
        let direct = dependencies
            .iter()
            .filter(|dependency| dependency["kind"] != "dev");
        let names = direct
            .filter_map(|dependency| dependency["name"].as_str())
            .map(str::to_owned);
        members.insert(name.to_owned(), names.collect());
    }
    Ok(members)
}
