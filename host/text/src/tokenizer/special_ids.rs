//! Which tokens a file means by `bos`, `eos` and the like. Files leave them out, and some name ids that their vocabulary lacks.

use super::vocabulary::{CONTROL, UNKNOWN};
use super::{Family, TextSource};

/// Where the token of a role is when the file does not say so, and what it is called there. They are llama.cpp's, which come
/// from the vocabularies that SentencePiece and BERT make on their own.
fn default_of(family: Family, role: &str) -> Option<(u32, &'static str)> {
    match (family, role) {
        (Family::SentencePiece, "unk") => Some((0, "<unk>")),
        (Family::SentencePiece, "bos") => Some((1, "<s>")),
        (Family::SentencePiece, "eos") => Some((2, "</s>")),
        (Family::WordPiece, "pad") => Some((0, "[PAD]")),
        (Family::WordPiece, "unk") => Some((100, "[UNK]")),
        (Family::WordPiece, "bos") => Some((101, "[CLS]")),
        (Family::WordPiece, "sep") => Some((102, "[SEP]")),
        _ => None,
    }
}

/// Forgets ids that the vocabulary lacks, with a warning, and fills in those that are always at the same place.
pub(super) fn settle(source: &mut TextSource, family: Family) {
    let TextSource {
        tokens,
        token_types,
        bos,
        eos,
        eot,
        sep,
        unk,
        pad,
        ..
    } = source;
    // A text token at that place is a vocabulary of another making, in which the default means nothing.
    let is_meant = |id: u32, name: &str| {
        let named = tokens.get(id as usize).is_some_and(|token| token == name);
        named || matches!(token_types.get(id as usize), Some(&(CONTROL | UNKNOWN)))
    };
    let roles = [
        ("bos", bos),
        ("eos", eos),
        ("eot", eot),
        ("sep", sep),
        ("unk", unk),
        ("pad", pad),
    ];
    for (role, id) in roles {
        let missing = id.take_if(|id| *id as usize >= tokens.len());
        let default = default_of(family, role).filter(|(id, name)| is_meant(*id, name));
        *id = id.or(default.map(|(id, _)| id));
        if let Some(missing) = missing {
            let instead = id.map_or("there is none".to_owned(), |id| format!("it is {id}"));
            tracing::warn!(
                "the file says that the {role} token is {missing}, but the vocabulary has {} tokens; {instead}",
                tokens.len()
            );
        }
    }
}
