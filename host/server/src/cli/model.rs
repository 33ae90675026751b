//! `realm model`: the model files there are, and what stands in one.

use super::client::line;
use super::render;
use anyhow::{Context, Result};
use clap::Subcommand;
use realm_engine::Gguf;
use realm_engine::synthetic::{self, Quant, SHAPES, Shape};
use std::path::{Path, PathBuf};

#[derive(Subcommand)]
pub(super) enum Model {
    /// List the GGUF files in a folder
    List {
        /// The folder [default: where `cargo xtask models` puts them]
        #[arg(env = "REALM_MODELS")]
        folder: Option<PathBuf>,
    },
    /// Show what a GGUF file contains
    Inspect {
        /// The file
        path: PathBuf,
    },
    /// Print the prompts of chats: one request of /v1/chat/completions a line in, {"ok": prompt} or {"err": why} a line out
    Render(render::Render),
    /// Write a model of a known shape with random weights, to measure how fast the real one would run
    Synthetic {
        /// The shape, for example tinyllama-1.1b
        #[arg(long, value_parser = shape)]
        shape: &'static Shape,
        /// How the matrices are stored: a block type, or the mix q4_k_m
        #[arg(long, value_name = "TYPE", default_value = "q4_k_m", value_parser = quant)]
        quant: Quant,
        /// The file to write
        #[arg(long, value_name = "PATH")]
        out: PathBuf,
        /// The same seed gives the same file
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
}

fn shape(name: &str) -> Result<&'static Shape, String> {
    let names: Vec<&str> = SHAPES.iter().map(|shape| shape.name).collect();
    Shape::named(name).ok_or_else(|| format!("the known shapes are {}", names.join(", ")))
}

fn quant(name: &str) -> Result<Quant, String> {
    Quant::from_name(name)
        .ok_or_else(|| format!("the known types are {}", Quant::names().join(", ")))
}

pub(super) fn model(command: Model) -> Result<()> {
    match command {
        Model::List { folder } => list(&folder.map_or_else(cache_folder, Ok)?),
        Model::Inspect { path } => inspect(&path),
        Model::Render(arguments) => render::render(&arguments),
        Model::Synthetic {
            shape,
            quant,
            out,
            seed,
        } => {
            let file = std::fs::File::create(&out)
                .with_context(|| format!("cannot write {}", out.display()))?;
            synthetic::write(shape, quant, seed, std::io::BufWriter::new(file))
                .with_context(|| format!("cannot write {}", out.display()))
        }
    }
}

fn list(folder: &Path) -> Result<()> {
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    paths.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "gguf")
    });
    paths.sort();
    for path in paths {
        let size = std::fs::metadata(&path)
            .map(|facts| facts.len() / 1_000_000)
            .unwrap_or_default();
        line(&format!("{}\t{size} MB", path.display()))?;
    }
    Ok(())
}

fn inspect(path: &Path) -> Result<()> {
    let gguf =
        Gguf::open(path).with_context(|| format!("cannot read the model {}", path.display()))?;
    let metadata = gguf.metadata();
    let architecture = metadata
        .str("general.architecture")?
        .unwrap_or("unknown")
        .to_owned();
    let number = |name: &str| metadata.u64(&format!("{architecture}.{name}"));
    let show = |name: &str, value: Option<String>| match value {
        Some(value) => line(&format!("{name:<14} {value}")),
        None => Ok(()),
    };
    show("file", Some(path.display().to_string()))?;
    show("bytes", Some(gguf.file_bytes().to_string()))?;
    show("name", metadata.str("general.name")?.map(str::to_owned))?;
    show("architecture", Some(architecture.clone()))?;
    let tokens = metadata.strings("tokenizer.ggml.tokens")?;
    show("vocabulary", tokens.map(|tokens| tokens.len().to_string()))?;
    show(
        "tokenizer",
        metadata.str("tokenizer.ggml.model")?.map(str::to_owned),
    )?;
    show(
        "context",
        number("context_length")?.map(|value| value.to_string()),
    )?;
    show(
        "layers",
        number("block_count")?.map(|value| value.to_string()),
    )?;
    show(
        "hidden",
        number("embedding_length")?.map(|value| value.to_string()),
    )?;
    let (mut count, mut parameters) = (0_u64, 0_u64);
    for tensor in gguf.tensors() {
        count += 1;
        // A file may claim any shape; the sum is for people.
        let size = tensor
            .shape
            .iter()
            .fold(1_u64, |product, &dim| product.saturating_mul(dim));
        parameters = parameters.saturating_add(size);
    }
    show("tensors", Some(count.to_string()))?;
    show("parameters", Some(parameters.to_string()))
}

/// `$REALM_MODELS`, `$XDG_CACHE_HOME/realm/models`, or that below `~/.cache`.
pub(super) fn cache_folder() -> Result<PathBuf> {
    let variable = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(folder) = variable("REALM_MODELS") {
        return Ok(folder);
    }
    let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    Ok(cache
        .context("neither XDG_CACHE_HOME nor HOME is set; give the folder as an argument")?
        .join("realm")
        .join("models"))
}
