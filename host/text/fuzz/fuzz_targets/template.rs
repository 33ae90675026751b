//! Any template renders any chat or refuses it. Run with `cargo +nightly fuzz run template` in `host/text`.
#![no_main]

#[allow(dead_code, reason = "the other target uses the rest")]
#[path = "../../tests/common/properties.rs"]
mod properties;

use libfuzzer_sys::fuzz_target;
use properties::{message, renders_or_refuses};

/// Source, roles with contents, and tools as JSON.
type Input = (String, Vec<(String, String)>, Vec<String>);

fuzz_target!(|input: Input| {
    let (source, messages, tools) = input;
    let messages: Vec<_> = messages
        .iter()
        .map(|(role, content)| message(role, content))
        .collect();
    let tools: Vec<serde_json::Value> = tools
        .iter()
        .filter_map(|tool| serde_json::from_str(tool).ok())
        .collect();
    let chat = realm_text::Chat {
        tools,
        ..realm_text::Chat::new(messages)
    };
    renders_or_refuses(&source, &chat);
});
