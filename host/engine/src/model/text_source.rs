//! The tokenizer keys of a GGUF file, in the words of `realm-text`.

use realm_text::TextSource;
use realm_weights::{GgufError, Metadata};

/// Collects what a text model needs; what is right about it is for `realm-text` to say.
pub(super) fn text_source(metadata: &Metadata) -> Result<TextSource, GgufError> {
    let owned = |key| Ok::<_, GgufError>(metadata.str(key)?.map(str::to_owned));
    let id = |name: &str| metadata.u32(&format!("tokenizer.ggml.{name}_token_id"));
    Ok(TextSource {
        model: metadata.require_str("tokenizer.ggml.model")?.to_owned(),
        pre: owned("tokenizer.ggml.pre")?,
        tokens: metadata.require_strings("tokenizer.ggml.tokens")?.to_vec(),
        scores: metadata.f32s("tokenizer.ggml.scores")?.unwrap_or_default(),
        token_types: metadata
            .i32s("tokenizer.ggml.token_type")?
            .unwrap_or_default(),
        merges: metadata
            .strings("tokenizer.ggml.merges")?
            .map(<[String]>::to_vec)
            .unwrap_or_default(),
        // Files of `bert` call it `cls`; the misspelt word is what most of them have.
        bos: id("bos")?.or(id("cls")?),
        sep: id("seperator")?.or(id("separator")?),
        eos: id("eos")?,
        eot: id("eot")?,
        unk: id("unknown")?,
        pad: id("padding")?,
        add_bos: metadata.bool("tokenizer.ggml.add_bos_token")?,
        add_eos: metadata.bool("tokenizer.ggml.add_eos_token")?,
        add_space_prefix: metadata.bool("tokenizer.ggml.add_space_prefix")?,
        chat_template: owned("tokenizer.chat_template")?,
    })
}
