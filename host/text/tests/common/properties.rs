//! What holds of every template and of every vocabulary. The fuzz targets and the tests with fixed seeds share it.

use realm_text::{Chat, ChatMessage, Specials, TextError, TextModel, TextSource};

/// Tokens that a chat may take here.
const TOKENS_MAX: usize = 4_000;

/// A message without calls of tools.
pub(crate) fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage::new(role, content)
}

/// A vocabulary of single bytes and two control tokens.
fn bytes_with_template(template: &str) -> TextSource {
    let mut tokens: Vec<String> = (0..=255_u8).map(|byte| format!("<0x{byte:02X}>")).collect();
    tokens.extend(["<s>", "</s>"].map(str::to_owned));
    TextSource {
        model: "llama".to_owned(),
        scores: vec![0.0; tokens.len()],
        token_types: [vec![6; 256], vec![3; 2]].concat(),
        tokens,
        bos: Some(256),
        eos: Some(257),
        chat_template: Some(template.to_owned()),
        ..TextSource::default()
    }
}

/// A template does not parse, refuses the chat or stays within its room, and says which. Whether it rendered.
pub(crate) fn renders_or_refuses(template: &str, chat: &Chat) -> bool {
    let model = TextModel::new(bytes_with_template(template));
    let model = model.expect("a template costs chats and not the model");
    match model.chat_tokens(chat, TOKENS_MAX) {
        Ok(ids) => {
            assert!(ids.len() <= TOKENS_MAX);
            true
        }
        Err(
            TextError::TemplateSyntax(_)
            | TextError::Template(_)
            | TextError::NoPlace { .. }
            | TextError::NothingToContinue { .. }
            | TextError::RenderedTooLong { .. },
        ) => false,
        Err(error) if error.is_too_long() => false,
        Err(error) => panic!("not an error of a chat: {error}"),
    }
}

/// A vocabulary is refused, or takes `text` and gives back tokens of its own, as many as it said. Whether it was accepted.
pub(crate) fn is_refused_or_works(source: TextSource, text: &str) -> bool {
    let tokens = source.tokens.len();
    let Ok(model) = TextModel::new(source) else {
        return false;
    };
    assert_eq!(model.vocab_size() as usize, tokens);
    for specials in [Specials::Parse, Specials::Literal] {
        for add_bos in [true, false] {
            let encode = |tokens_max| model.encode(text, specials, add_bos, tokens_max);
            let ids = encode(usize::MAX).expect("there is room for any number of tokens");
            assert!(ids.iter().all(|id| (*id as usize) < tokens));
            // Exactly as much room as it takes is enough, and one less is not.
            assert_eq!(encode(ids.len()).as_ref(), Ok(&ids));
            if let Some(less) = ids.len().checked_sub(1) {
                assert!(encode(less).is_err_and(|error| error.is_too_long()));
            }
            if (specials, add_bos) == (Specials::Literal, false) {
                // The unknown token apart, strangers cannot write a control token.
                let mut written = ids.iter().filter(|id| model.unknown() != Some(**id));
                assert!(written.all(|id| !model.is_control(*id)));
            }
            let decoded = String::from_utf8_lossy(&model.decode(&ids)).into_owned();
            assert_eq!(model.decode_text(&ids), decoded);
        }
    }
    true
}
