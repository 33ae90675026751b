//! The chat templates of a model: one for all chats, and, where the file has it, another for those with tools.

use super::ChatTemplate;
use crate::{Chat, TextError, TextSource};

/// The templates, or why they cannot be used: a broken template costs chats and not the model.
#[derive(Debug)]
pub(crate) struct ChatTemplates {
    usual: Result<ChatTemplate, TextError>,
    with_tools: Option<Result<ChatTemplate, TextError>>,
}

impl ChatTemplates {
    /// Parses those of `source`, whose special tokens are `bos` and `eos`.
    pub(crate) fn new(source: &TextSource, bos: String, eos: String) -> ChatTemplates {
        let parse = |template: Option<&str>| {
            ChatTemplate::new(template, &source.tokens, bos.clone(), eos.clone())
        };
        ChatTemplates {
            usual: parse(source.chat_template.as_deref()),
            with_tools: (source.chat_template_tools.as_deref()).map(|source| parse(Some(source))),
        }
    }

    /// The one for this chat, which has tools or has none.
    ///
    /// # Errors
    /// [`TextError::TemplateSyntax`] where it does not parse.
    pub(crate) fn for_chat(&self, chat: &Chat) -> Result<&ChatTemplate, TextError> {
        let with_tools = self.with_tools.as_ref().filter(|_| !chat.tools.is_empty());
        with_tools
            .unwrap_or(&self.usual)
            .as_ref()
            .map_err(Clone::clone)
    }

    /// What is wrong with them, if anything is.
    pub(crate) fn check(&self) -> Result<(), TextError> {
        let with_tools = self.with_tools.as_ref();
        let all = [&self.usual].into_iter().chain(with_tools);
        let mut errors = all.filter_map(|template| template.as_ref().err());
        errors.next().map_or(Ok(()), |error| Err(error.clone()))
    }
}
