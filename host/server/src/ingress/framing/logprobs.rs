//! Log-probabilities in OpenAI's two forms, and those of prompts in vLLM's.

use super::openai::Renderer;
use crate::ingress::generation::TokenEntry;
use crate::ingress::request::Family;
use realm_sandbox::PromptToken;
use serde_json::{Map, Value, json};
use std::fmt::Write;

/// What OpenAI says for a token that cannot come. JSON has no infinity.
const NEVER: f32 = -9999.0;

impl Renderer {
    /// The log-probabilities of tokens; null unless asked for.
    pub(in crate::ingress) fn logprobs(&self, entries: &[TokenEntry]) -> Value {
        let Some(top) = self.logprobs else {
            return Value::Null;
        };
        match self.family {
            Family::Chat => {
                let content = entries.iter().map(|entry| self.chat_entry(entry, top));
                json!({"content": content.collect::<Value>(), "refusal": null})
            }
            Family::Completion => self.completion_logprobs(entries, top),
        }
    }

    fn chat_entry(&self, entry: &TokenEntry, top: u32) -> Value {
        let value = |token: u32, logprob: Value| {
            // A control token has a name and stands for no text.
            let bytes = Some(self.text.token_bytes(token)).filter(|it| !it.is_empty());
            json!({"token": self.token_name(token, ""), "logprob": logprob, "bytes": bytes})
        };
        let alternatives = entry.top.iter().take(top as usize);
        let alternatives =
            alternatives.map(|(token, logprob)| value(*token, finite(*logprob).into()));
        let mut chosen = value(entry.token, entry.logprob.map(finite).into());
        chosen["top_logprobs"] = alternatives.collect();
        chosen
    }

    fn completion_logprobs(&self, entries: &[TokenEntry], top: u32) -> Value {
        let names = entries.iter().map(|it| self.token_name(it.token, BYTES));
        let values = entries.iter().map(|it| it.logprob.map(finite));
        let tops = entries.iter().map(|it| match it.logprob {
            Some(_) => self.named_alternatives(it, top),
            None => Value::Null,
        });
        let offsets = entries.iter().map(|it| it.offset);
        json!({
            "tokens": names.collect::<Value>(),
            "token_logprobs": values.map(Value::from).collect::<Value>(),
            "top_logprobs": tops.collect::<Value>(),
            "text_offset": offsets.collect::<Value>(),
        })
    }

    /// The alternatives by name. The name of the token that stands there is its own; of others whose names are alike the
    /// likeliest has it, and those that are left without one are told apart by their ids.
    fn named_alternatives(&self, entry: &TokenEntry, top: u32) -> Value {
        let own = self.token_name(entry.token, BYTES);
        let mut named = Map::new();
        for (token, logprob) in entry.top.iter().take(top as usize) {
            let mut name = self.token_name(*token, BYTES);
            let is_taken = named.contains_key(&name) || (*token != entry.token && name == own);
            if name.is_empty() || is_taken || name.starts_with(BY_ID) {
                name = format!("{BY_ID}{token}");
            }
            named.insert(name, finite(*logprob).into());
        }
        named.into()
    }

    /// The log-probabilities of a prompt's tokens: of each an object by id, which has the token itself and the likeliest ones.
    pub(in crate::ingress) fn prompt_logprobs(&self, prompt: Option<&[PromptToken]>) -> Value {
        let Some((prompt, top)) = prompt.zip(self.prompt_logprobs) else {
            return Value::Null;
        };
        let entry = |token: u32, logprob: f32, rank: usize| {
            let name = self.token_name(token, "");
            json!({"logprob": finite(logprob), "rank": rank, "decoded_token": name})
        };
        let of_token = |token: &PromptToken| {
            let Some(scored) = &token.scored else {
                return Value::Null;
            };
            let own = &scored.logprob;
            let mut by_id = Map::new();
            for (index, (id, logprob)) in own.top.iter().take(top as usize).enumerate() {
                by_id.insert(id.to_string(), entry(*id, *logprob, index + 1));
            }
            let itself = entry(own.token, own.logprob, scored.rank as usize);
            by_id.insert(own.token.to_string(), itself);
            by_id.into()
        };
        prompt.iter().map(of_token).collect()
    }

    /// What a token is called: its text, the name of a control token, or, after `prefix`, the bytes of one that is a part of
    /// a character.
    fn token_name(&self, token: u32, prefix: &str) -> String {
        let bytes = self.text.token_bytes(token);
        if self.text.is_control(token) || std::str::from_utf8(bytes).is_ok() {
            return self.text.token_text(token);
        }
        let mut name = prefix.to_owned();
        for byte in bytes {
            match byte {
                b' ' | b'!'..=b'[' | b']'..=b'~' => name.push(char::from(*byte)),
                // Writing to a string cannot fail.
                _ => _ = write!(name, "\\x{byte:02x}"),
            }
        }
        name
    }
}

/// What OpenAI's completions begin the name of a token with that is a part of a character.
const BYTES: &str = "bytes:";
/// What vLLM begins the name of a token with that is called by its id.
const BY_ID: &str = "token_id:";

fn finite(logprob: f32) -> f32 {
    logprob.max(NEVER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use realm_engine::text::{TextModel, TextSource};
    use realm_engine::{PromptLogprob, TokenLogprob};
    use std::sync::Arc;

    /// Bytes, a letter that is also one of them, two control tokens of one name, a token without a name, and one that looks
    /// like the id of another.
    fn renderer(family: Family) -> Renderer {
        let mut tokens: Vec<String> = (0..=255_u8).map(|byte| format!("<0x{byte:02X}>")).collect();
        tokens.extend(["A", "<|x|>", "<|x|>", "", "token_id:256"].map(str::to_owned));
        let text = TextModel::new(TextSource {
            model: "llama".to_owned(),
            scores: vec![0.0; tokens.len()],
            token_types: [vec![6; 256], vec![1, 3, 3, 1, 1]].concat(),
            tokens,
            ..TextSource::default()
        });
        Renderer {
            family,
            id: String::new(),
            model: String::new(),
            created: 0,
            logprobs: Some(5),
            prompt_logprobs: Some(2),
            include_usage: false,
            text: Arc::new(text.unwrap()),
        }
    }

    fn entry() -> TokenEntry {
        TokenEntry {
            token: 0xe2,
            logprob: Some(-0.5),
            top: vec![
                (0xe2, -0.5),
                (0x80, -1.0),
                (0x41, -2.0),
                (256, -3.0),
                (258, f32::NEG_INFINITY),
            ],
            offset: 3,
        }
    }

    #[test]
    fn alternatives_of_a_completion_are_never_merged() {
        let first = TokenEntry {
            token: 257,
            logprob: None,
            top: Vec::new(),
            offset: 0,
        };
        // The second letter stands there, though the first is likelier.
        let letter = TokenEntry {
            token: 256,
            logprob: Some(-3.0),
            top: vec![(260, -1.0), (0x41, -2.0), (256, -3.0), (259, -4.0)],
            offset: 4,
        };
        let found = renderer(Family::Completion).logprobs(&[first, entry(), letter]);
        let expected = json!({
            "tokens": ["<|x|>", "bytes:\\xe2", "A"],
            "token_logprobs": [null, -0.5, -3.0],
            "top_logprobs": [null, {
                "bytes:\\xe2": -0.5, "bytes:\\x80": -1.0, "A": -2.0, "token_id:256": -3.0, "<|x|>": -9999.0,
            }, {
                "token_id:260": -1.0, "token_id:65": -2.0, "A": -3.0, "token_id:259": -4.0,
            }],
            "text_offset": [0, 3, 4],
        });
        assert_eq!(found, expected);
    }

    #[test]
    fn alternatives_of_a_chat_have_their_bytes() {
        let found = renderer(Family::Chat).logprobs(&[entry()]);
        let entry = &found["content"][0];
        assert_eq!(entry["token"], "\\xe2");
        assert_eq!(entry["bytes"], json!([0xe2]));
        let top = entry["top_logprobs"].as_array().unwrap();
        let names: Vec<&str> = top.iter().filter_map(|it| it["token"].as_str()).collect();
        assert_eq!(names, ["\\xe2", "\\x80", "A", "A", "<|x|>"]);
        assert_eq!(top[2]["bytes"], top[3]["bytes"]);
        assert_eq!(
            (&top[4]["logprob"], &top[4]["bytes"]),
            (&json!(-9999.0), &Value::Null)
        );
    }

    #[test]
    fn tokens_of_a_prompt_stand_beside_the_likeliest_in_the_form_of_vllm() {
        let token = |scored| PromptToken {
            token: 0x41,
            offset: 0,
            scored,
        };
        let scored = PromptLogprob {
            logprob: TokenLogprob {
                token: 0x41,
                logprob: -4.0,
                top: vec![(0x42, -0.5), (0x80, -1.0), (0x43, -2.0)],
            },
            rank: 9,
        };
        let prompt = [token(None), token(Some(scored))];
        let found = renderer(Family::Chat).prompt_logprobs(Some(&prompt));
        let expected = json!([null, {
            "66": {"logprob": -0.5, "rank": 1, "decoded_token": "B"},
            "128": {"logprob": -1.0, "rank": 2, "decoded_token": "\\x80"},
            "65": {"logprob": -4.0, "rank": 9, "decoded_token": "A"},
        }]);
        assert_eq!(found, expected);
    }
}
