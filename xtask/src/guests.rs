//! Builds the ready-made components and the test guests, and keeps `tenants/prebuilt` honest.
//!
//! Components are core modules for `wasm32-unknown-unknown` with the contract's types in a custom section, encoded by
//! `componentize`; they import no WASI. Builds name no local path, so the same sources and compiler give the same bytes
//! anywhere.

use crate::paths;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const PLAIN: &str = "wasm32-unknown-unknown";
const WASI: &str = "wasm32-wasip2";

/// A ready-made component, committed under `tenants/prebuilt`.
struct Ready {
    name: &'static str,
    package: &'static str,
    folder: &'static str,
}

const READY: [Ready; 3] = [
    Ready {
        name: "passthrough",
        package: "realm-tenant-passthrough",
        folder: "tenants/passthrough",
    },
    Ready {
        name: "best_of_n",
        package: "realm-tenant-best-of-n",
        folder: "tenants/best-of-n",
    },
    Ready {
        name: "extract",
        package: "realm-example-extract",
        folder: "examples/extract",
    },
];

/// The package whose examples are the test guests, and its one guest that is built with WASI.
const GUESTS: &str = "realm-test-guests";
const WASI_GUEST: &str = "wasi_probe";

/// How `cargo xtask guests` is called.
#[derive(clap::Args, Default)]
pub(crate) struct Options {
    /// Replace `tenants/prebuilt` by what was built, after a change to the sources of a component.
    #[arg(long)]
    pub(crate) update: bool,
}

/// What `tenants/prebuilt/manifest.json` holds.
#[derive(Serialize, Deserialize, Default, PartialEq, Debug)]
struct Manifest {
    rustc: String,
    components: BTreeMap<String, Entry>,
}

#[derive(Serialize, Deserialize, PartialEq, Debug)]
struct Entry {
    /// Of the component's bytes.
    sha256: String,
    /// Of everything it is made from; see [`source_digest`].
    source: String,
}

/// `cargo xtask guests`: builds everything, then compares the ready-made components with the committed ones, or
/// replaces those.
pub(crate) fn run(options: &Options) -> Result<()> {
    build_all(options)
}

/// Builds every component into `<target>/guests/NAME.wasm`.
///
/// Fails when a committed component is not what its sources give, unless `options.update` replaces it.
pub(crate) fn build_all(options: &Options) -> Result<()> {
    if !options.update {
        check_prebuilt()?;
    }
    let out = paths::guests();
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    let toolchain = Toolchain::find()?;

    // Each with the component to make of it.
    let mut modules = Vec::new();
    for ready in &READY {
        toolchain.build(PLAIN, &["--package", ready.package, "--lib"])?;
        let file = format!("{}.wasm", ready.package.replace('-', "_"));
        modules.push(out.join(PLAIN).join("guest").join(file));
        modules.push(out.join(format!("{}.wasm", ready.name)));
    }

    let guests = guest_names()?;
    let mut arguments = vec!["--package", GUESTS];
    for guest in guests.iter().filter(|guest| *guest != WASI_GUEST) {
        arguments.extend(["--example", guest]);
    }
    toolchain.build(PLAIN, &arguments)?;
    for guest in guests.iter().filter(|guest| *guest != WASI_GUEST) {
        let file = Path::new("examples").join(format!("{guest}.wasm"));
        modules.push(out.join(PLAIN).join("guest").join(file));
        modules.push(out.join(format!("{guest}.wasm")));
    }
    crate::run(
        crate::cargo()
            .args([
                "run",
                "--release",
                "--quiet",
                "--package",
                "componentize",
                "--",
            ])
            .args(&modules),
    )?;
    if toolchain.has_target(WASI) {
        toolchain.build(WASI, &["--package", GUESTS, "--example", WASI_GUEST])?;
        let component = out
            .join(WASI)
            .join("guest")
            .join("examples")
            .join(format!("{WASI_GUEST}.wasm"));
        fs::copy(&component, out.join(format!("{WASI_GUEST}.wasm")))
            .with_context(|| format!("cannot copy {}", component.display()))?;
    } else {
        println!(
            "{WASI_GUEST} is NOT built: `rustup target add {WASI}` failed, and its test will say so"
        );
    }

    println!(
        "{} components in {}",
        READY.len() + guests.len(),
        out.display()
    );
    if options.update {
        update_prebuilt(&out, &toolchain)
    } else {
        compare_prebuilt(&out, &toolchain)
    }
}

/// Whether the committed components were made from the sources beside them. Needs no compiler.
pub(crate) fn check_prebuilt() -> Result<()> {
    let manifest = manifest()?;
    for ready in &READY {
        let entry = entry(&manifest, ready)?;
        let bytes = read(&prebuilt().join(format!("{}.wasm", ready.name)))?;
        ensure!(
            hex(&bytes) == entry.sha256,
            "tenants/prebuilt/{}.wasm is not the file its manifest names",
            ready.name
        );
        ensure!(
            source_digest(ready)? == entry.source,
            "the sources of tenants/prebuilt/{}.wasm have changed: run `cargo xtask guests --update` and commit",
            ready.name
        );
    }
    Ok(())
}

/// With the compiler the committed components were built with, a new build must give the same bytes.
fn compare_prebuilt(out: &Path, toolchain: &Toolchain) -> Result<()> {
    let manifest = manifest()?;
    if manifest.rustc != toolchain.version {
        println!(
            "tenants/prebuilt was built by {}, this is {}: their bytes are not compared, only their sources",
            manifest.rustc, toolchain.version
        );
        return Ok(());
    }
    for ready in &READY {
        ensure!(
            hex(&read(&out.join(format!("{}.wasm", ready.name)))?)
                == entry(&manifest, ready)?.sha256,
            "tenants/prebuilt/{}.wasm differs from a new build by the same compiler: run `cargo xtask guests --update`",
            ready.name
        );
    }
    println!("tenants/prebuilt equals this build, byte for byte");
    Ok(())
}

fn update_prebuilt(out: &Path, toolchain: &Toolchain) -> Result<()> {
    let mut manifest = Manifest {
        rustc: toolchain.version.clone(),
        ..Manifest::default()
    };
    fs::create_dir_all(prebuilt())?;
    for ready in &READY {
        let file = format!("{}.wasm", ready.name);
        let bytes = read(&out.join(&file))?;
        fs::write(prebuilt().join(&file), &bytes)?;
        manifest.components.insert(
            ready.name.to_owned(),
            Entry {
                sha256: hex(&bytes),
                source: source_digest(ready)?,
            },
        );
        println!("tenants/prebuilt/{file}: {} bytes", bytes.len());
    }
    fs::write(
        prebuilt().join("manifest.json"),
        serde_json::to_string_pretty(&manifest)? + "\n",
    )?;
    Ok(())
}

/// SHA-256 over the contract, the SDK, the component's own files, and the locked versions of what they bind with.
fn source_digest(ready: &Ready) -> Result<String> {
    let root = paths::root();
    let mut files = Vec::new();
    for folder in ["wit", "guest-sdk/src", &format!("{}/src", ready.folder)] {
        collect(&root.join(folder), &mut files)?;
    }
    files.push(root.join("guest-sdk/Cargo.toml"));
    files.push(root.join(ready.folder).join("Cargo.toml"));
    let mut named: Vec<(String, PathBuf)> = Vec::new();
    for file in files {
        let name = file
            .strip_prefix(&root)?
            .to_string_lossy()
            .replace('\\', "/");
        named.push((name, file));
    }
    named.sort();

    let mut digest = Sha256::new();
    for (name, file) in named {
        let bytes = read(&file)?;
        digest.update(format!("{name}\n{}\n", bytes.len()));
        digest.update(bytes);
    }
    let lock = fs::read_to_string(root.join("Cargo.lock")).context("cannot read Cargo.lock")?;
    for package in ["wit-bindgen", "serde_json"] {
        digest.update(format!(
            "{package} {}\n",
            locked(&lock, "realm-guest", package)?
        ));
    }
    Ok(to_hex(&digest.finalize()))
}

/// The version of `dependency` that `package` is locked to.
fn locked(lock: &str, package: &str, dependency: &str) -> Result<String> {
    let entries = || lock.split("[[package]]");
    let named = |name: &str| format!("\nname = \"{name}\"\n");
    let user = entries()
        .find(|entry| entry.contains(&named(package)))
        .context("the package is not in Cargo.lock")?;
    // The version stands beside the name only where several are locked.
    if let Some((_, rest)) = user.split_once(&format!("\"{dependency} ")) {
        return Ok(rest.split('"').next().unwrap_or_default().to_owned());
    }
    let entry = entries()
        .find(|entry| entry.contains(&named(dependency)))
        .context("no such dependency is locked")?;
    let (_, rest) = entry
        .split_once("version = \"")
        .context("a package without a version in Cargo.lock")?;
    Ok(rest.split('"').next().unwrap_or_default().to_owned())
}

/// The compiler guests are built with.
struct Toolchain {
    /// `rustc --version`, recorded beside the committed components.
    version: String,
    commit: String,
    sysroot: PathBuf,
    /// Debian's compiler, which builds its own std; where rustup cannot fetch a target.
    debian: bool,
}

impl Toolchain {
    /// The active toolchain with the wasm target, fetching that if need be; else Debian's.
    fn find() -> Result<Toolchain> {
        let active = Toolchain::of("rustc", false)?;
        for target in [PLAIN, WASI] {
            if !active.has_target(target) {
                println!("fetching the compilation target {target}");
                // Its failure is judged by whether the target is there afterwards.
                let _ = Command::new("rustup")
                    .args(["target", "add", target])
                    .status();
            }
        }
        if active.has_target(PLAIN) {
            return Ok(active);
        }
        if ["/usr/bin/rustc", "/usr/bin/cargo", "/usr/bin/wasm-ld-19"]
            .iter()
            .all(|file| Path::new(file).exists())
        {
            println!(
                "rustup has no {PLAIN}: building with Debian's compiler and its own std, which takes minutes"
            );
            return Toolchain::of("/usr/bin/rustc", true);
        }
        bail!(
            "guests need the compilation target {PLAIN}. Either of these brings it:\n  rustup target add {PLAIN} {WASI}\n  \
             apt-get install rustc-web cargo-web rust-web-src lld-19   (Debian)\nThe server itself needs neither: \
             tenants/prebuilt holds its components."
        )
    }

    fn of(rustc: &str, debian: bool) -> Result<Toolchain> {
        let ask = |arguments: &[&str]| -> Result<String> {
            let output = Command::new(rustc)
                .args(arguments)
                .current_dir(paths::root())
                .stderr(Stdio::inherit())
                .output()
                .with_context(|| format!("cannot run {rustc}"))?;
            ensure!(
                output.status.success(),
                "{rustc} {} failed",
                arguments.join(" ")
            );
            Ok(String::from_utf8(output.stdout)?.trim().to_owned())
        };
        let verbose = ask(&["-vV"])?;
        let commit = verbose
            .lines()
            .find_map(|line| line.strip_prefix("commit-hash: "))
            .unwrap_or("unknown")
            .to_owned();
        Ok(Toolchain {
            version: ask(&["--version"])?,
            commit,
            sysroot: PathBuf::from(ask(&["--print", "sysroot"])?),
            debian,
        })
    }

    fn has_target(&self, target: &str) -> bool {
        self.sysroot
            .join("lib/rustlib")
            .join(target)
            .join("lib")
            .is_dir()
    }

    /// Runs cargo with the guest profile, with no local path in what comes out.
    fn build(&self, target: &str, arguments: &[&str]) -> Result<()> {
        let mut cargo = if self.debian {
            let mut cargo = Command::new("/usr/bin/cargo");
            cargo
                .env("RUSTC", "/usr/bin/rustc")
                .env("RUSTC_BOOTSTRAP", "1")
                .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", "wasm-ld-19")
                .env_remove("RUSTUP_TOOLCHAIN");
            cargo
        } else {
            Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")))
        };
        cargo
            .current_dir(paths::root())
            .args([
                "build",
                "--quiet",
                "--locked",
                "--profile",
                "guest",
                "--target",
                target,
            ])
            .args(arguments)
            .env("CARGO_TARGET_DIR", paths::guests())
            .env("CARGO_ENCODED_RUSTFLAGS", self.flags());
        if self.debian {
            cargo.arg("-Zbuild-std=std,panic_abort");
        }
        let status = cargo.status().context("cannot run cargo")?;
        ensure!(status.success(), "building guests for {target} failed");
        Ok(())
    }

    /// Flags separated as `CARGO_ENCODED_RUSTFLAGS` wants them, so that paths may hold spaces.
    fn flags(&self) -> OsString {
        let home = std::env::var_os("CARGO_HOME")
            .map(PathBuf::from)
            .unwrap_or_else(|| {
                PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cargo")
            });
        let std = format!("/rustc/{}", self.commit);
        let mut flags = OsString::new();
        for (from, to) in [
            (home, "/cargo"),
            (paths::root(), "/realm"),
            (self.sysroot.join("lib/rustlib/src/rust"), &std),
        ] {
            if !flags.is_empty() {
                flags.push("\u{1f}");
            }
            flags.push("--remap-path-prefix=");
            flags.push(from);
            flags.push("=");
            flags.push(to);
        }
        flags
    }
}

/// Every example of the guests' package: one file, one guest.
fn guest_names() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(paths::root().join("tests/guests/examples"))
        .context("cannot list tests/guests")?
    {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(
                path.file_stem()
                    .map(|stem| stem.to_string_lossy().into_owned()),
            );
        }
    }
    names.sort();
    Ok(names)
}

fn prebuilt() -> PathBuf {
    paths::root().join("tenants/prebuilt")
}

fn manifest() -> Result<Manifest> {
    serde_json::from_slice(&read(&prebuilt().join("manifest.json"))?)
        .context("tenants/prebuilt/manifest.json is damaged")
}

fn entry<'a>(manifest: &'a Manifest, ready: &Ready) -> Result<&'a Entry> {
    manifest
        .components
        .get(ready.name)
        .with_context(|| format!("tenants/prebuilt does not know {}", ready.name))
}

/// All files under a folder.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?
    {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

fn hex(bytes: &[u8]) -> String {
    to_hex(&Sha256::digest(bytes))
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_committed_components_are_made_from_the_sources_beside_them() {
        super::check_prebuilt().unwrap();
    }

    #[test]
    fn the_locked_version_is_the_one_the_package_uses() {
        let lock = "[[package]]\nname = \"a\"\ndependencies = [\n \"b 2.0.0\",\n \"c\",\n]\n[[package]]\nname = \"b\"\nversion = \"1.0.0\"\n[[package]]\nname = \"b\"\nversion = \"2.0.0\"\n[[package]]\nname = \"c\"\nversion = \"3.0.0\"\n";
        assert_eq!(super::locked(lock, "a", "b").unwrap(), "2.0.0");
        assert_eq!(super::locked(lock, "a", "c").unwrap(), "3.0.0");
    }
}
