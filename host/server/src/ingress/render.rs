//! The prompt of a chat, for `realm model render`: the requests are read by the server's own code.

use super::request::{Defaults, Family, GenerationRequest};
use realm_engine::text::TextModel;
use realm_sandbox::RequestKind;

/// What a server of this model makes of the body of a request to `/v1/chat/completions`.
///
/// # Errors
/// What the client would be told.
pub(crate) fn prompt(text: &TextModel, body: &[u8]) -> Result<String, String> {
    let defaults = Defaults {
        model: Some(String::new()), // any will do here
        stream: false,
    };
    let request = GenerationRequest::parse(body, "the request", Family::Chat, defaults);
    match request.map_err(|error| error.message)?.kind {
        RequestKind::Chat(chat) => text.render_chat(&chat).map_err(|error| error.to_string()),
        RequestKind::Completion { .. } | RequestKind::Function { .. } => {
            Err("the request is not a chat".to_owned())
        }
    }
}
