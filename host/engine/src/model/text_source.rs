//! What a model says of its tokenizer, in the words of `realm-text`.

use realm_text::TextSource;
use realm_weights::{ModelSource, SourceError, TokenizerData};

/// Collects what a text model needs; what is right about it is for `realm-text` to say.
pub(super) fn text_source(source: &dyn ModelSource) -> Result<TextSource, SourceError> {
    // By name, so that a field that comes later is not forgotten here.
    let TokenizerData {
        model,
        pre,
        tokens,
        scores,
        token_types,
        merges,
        bos,
        eos,
        eot,
        sep,
        unk,
        pad,
        add_bos,
        add_eos,
        add_space_prefix,
        chat_template,
        chat_template_tools,
    } = source.tokenizer()?;
    Ok(TextSource {
        model,
        pre,
        tokens,
        scores,
        token_types,
        merges,
        bos,
        eos,
        eot,
        sep,
        unk,
        pad,
        add_bos,
        add_eos,
        add_space_prefix,
        chat_template,
        chat_template_tools,
    })
}
