//! The document a workflow describes itself with.

use serde_json::{Value, json};

/// What a workflow serves. Starts empty.
///
/// ```
/// use realm_guest::{Description, json::json};
///
/// let description = Description::new().chat().function(
///     "shout",
///     "Returns the text in capitals.",
///     json!({"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}),
/// );
/// ```
#[derive(Clone, Debug, Default)]
pub struct Description {
    chat: bool,
    completion: bool,
    functions: Vec<Value>,
}

impl Description {
    /// Serves nothing yet.
    pub fn new() -> Description {
        Description::default()
    }

    /// Answers chats.
    #[must_use]
    pub fn chat(mut self) -> Description {
        self.chat = true;
        self
    }

    /// Answers plain completions.
    #[must_use]
    pub fn completion(mut self) -> Description {
        self.completion = true;
        self
    }

    /// Exports a function. Names are `[A-Za-z_][A-Za-z0-9_]*`; `parameters` is a JSON Schema.
    #[must_use]
    pub fn function(mut self, name: &str, description: &str, parameters: Value) -> Description {
        self.functions
            .push(json!({"name": name, "description": description, "parameters": parameters}));
        self
    }

    pub(crate) fn to_json(&self) -> String {
        json!({"chat": self.chat, "completion": self.completion, "functions": self.functions})
            .to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::Description;

    #[test]
    fn a_description_is_the_document_the_contract_names() {
        let text = Description::new()
            .chat()
            .function("f", "d", serde_json::json!({}))
            .to_json();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["chat"], true);
        assert_eq!(value["completion"], false);
        assert_eq!(value["functions"][0]["name"], "f");
    }
}
