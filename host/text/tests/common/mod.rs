//! Vocabularies of real models, as their files have them.

use realm_text::TextSource;
use realm_weights::Gguf;
use std::path::{Path, PathBuf};

pub(crate) fn fixtures() -> PathBuf {
    PathBuf::from("../../tests/fixtures")
}

/// A model of the cache that `cargo xtask models` fills.
pub(crate) fn cached(file: &str) -> PathBuf {
    let folder = std::env::var_os("REALM_MODELS")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
            cache
                .unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache"))
                .join("realm/models")
        });
    let path = folder.join(file);
    assert!(
        path.exists(),
        "{} is missing: run `cargo xtask models`",
        path.display()
    );
    path
}

pub(crate) fn source(path: &Path) -> TextSource {
    let gguf = Gguf::open(path).unwrap();
    let metadata = gguf.metadata();
    let id = |name: &str| {
        metadata
            .u32(&format!("tokenizer.ggml.{name}_token_id"))
            .unwrap()
    };
    TextSource {
        model: metadata
            .require_str("tokenizer.ggml.model")
            .unwrap()
            .to_owned(),
        pre: metadata
            .str("tokenizer.ggml.pre")
            .unwrap()
            .map(str::to_owned),
        tokens: metadata
            .require_strings("tokenizer.ggml.tokens")
            .unwrap()
            .to_vec(),
        scores: metadata
            .f32s("tokenizer.ggml.scores")
            .unwrap()
            .unwrap_or_default(),
        token_types: metadata
            .i32s("tokenizer.ggml.token_type")
            .unwrap()
            .unwrap_or_default(),
        merges: metadata
            .strings("tokenizer.ggml.merges")
            .unwrap()
            .map(<[String]>::to_vec)
            .unwrap_or_default(),
        bos: id("bos").or(id("cls")),
        eos: id("eos"),
        eot: id("eot"),
        sep: id("seperator"),
        unk: id("unknown"),
        pad: id("padding"),
        add_bos: metadata.bool("tokenizer.ggml.add_bos_token").unwrap(),
        add_eos: metadata.bool("tokenizer.ggml.add_eos_token").unwrap(),
        add_space_prefix: metadata.bool("tokenizer.ggml.add_space_prefix").unwrap(),
        chat_template_tools: None,
        chat_template: metadata
            .str("tokenizer.chat_template")
            .unwrap()
            .map(str::to_owned),
    }
}
