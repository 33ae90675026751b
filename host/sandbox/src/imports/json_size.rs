//! What JSON takes of memory as values, from what it is as text: small values take a hundred times their text and more.

use serde_json::Value;
use std::io;

/// A value in a list that grows in leaps, with its old place while it moves: serde's, and after it the template's.
const ENTRY_BYTES: usize = 3 * (size_of::<Value>() + 24);
/// What a named value takes beyond that: the name, its hash and its place in an index.
const NAME_BYTES: usize = 320;
/// Headers of a text's allocations.
const STRING_BYTES: usize = 64;
/// What a list or an object takes beside its entries.
const CONTAINER_BYTES: usize = 384;
/// How often a text is there: in serde's buffer, which grows, as its value, and as the template's.
const TEXT_FACTOR: usize = 4;

/// How much there is in a JSON text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct JsonSize {
    /// Bytes of the text.
    text: usize,
    containers: usize,
    /// Of lists and objects; at least as many as there are.
    entries: usize,
    /// Of objects' entries.
    names: usize,
    /// Names and values; at least as many as there are.
    strings: usize,
}

impl JsonSize {
    /// Of a text, which need not be valid.
    pub(crate) fn of_text(text: &str) -> JsonSize {
        let mut size = JsonSize {
            text: text.len(),
            entries: 1,
            ..JsonSize::default()
        };
        let (mut in_string, mut is_escaped) = (false, false);
        for byte in text.bytes() {
            match byte {
                _ if is_escaped => is_escaped = false,
                b'\\' if in_string => is_escaped = true,
                b'"' => {
                    in_string = !in_string;
                    size.strings += usize::from(in_string);
                }
                _ if in_string => {}
                b'{' | b'[' => {
                    size.containers += 1;
                    size.entries += 1;
                }
                b',' => size.entries += 1,
                b':' => size.names += 1,
                _ => {}
            }
        }
        size
    }

    /// Of a value.
    pub(crate) fn of_value(value: &Value) -> JsonSize {
        let mut size = JsonSize {
            text: text_bytes(value),
            ..JsonSize::default()
        };
        size.add(value);
        size
    }

    /// Serde reads no deeper than 128, so this goes no deeper.
    fn add(&mut self, value: &Value) {
        self.entries += 1;
        match value {
            Value::Array(list) => {
                self.containers += 1;
                list.iter().for_each(|inner| self.add(inner));
            }
            Value::Object(map) => {
                self.containers += 1;
                self.names += map.len();
                self.strings += map.len();
                map.values().for_each(|inner| self.add(inner));
            }
            Value::String(_) => self.strings += 1,
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// Bytes of the text.
    pub(crate) fn text(self) -> usize {
        self.text
    }

    /// Bytes that it takes at most as a value of serde and once more as one of a chat template.
    pub(crate) fn parsed_max(self) -> usize {
        TEXT_FACTOR * self.text
            + CONTAINER_BYTES * self.containers
            + ENTRY_BYTES * self.entries
            + NAME_BYTES * self.names
            + STRING_BYTES * self.strings
    }
}

/// Bytes of a value's text.
fn text_bytes(value: &Value) -> usize {
    struct Counted(usize);
    impl io::Write for Counted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut counted = Counted(0);
    // Counting does not fail, and a value has no names that are not text.
    let _ = serde_json::to_writer(&mut counted, value);
    counted.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_text_is_at_least_as_large_as_the_value_it_becomes() {
        for value in [
            json!(7),
            json!({"a": 0, "b": [1, 2, {"c": "x, [y] \" {z}\\"}], "": {}}),
            json!([[], [], [[]], {}]),
            json!("\\\"[[[[,,,,::::"),
        ] {
            let text = value.to_string();
            let (of_text, of_value) = (JsonSize::of_text(&text), JsonSize::of_value(&value));
            assert_eq!(of_text.text, of_value.text, "{text}");
            assert_eq!(of_text.containers, of_value.containers, "{text}");
            assert_eq!(of_text.names, of_value.names, "{text}");
            assert_eq!(of_text.strings, of_value.strings, "{text}");
            // An empty list counts as one with an entry.
            let empty = of_text.entries.checked_sub(of_value.entries);
            assert!(empty.is_some_and(|empty| empty <= 4), "{text}");
        }
    }

    #[test]
    fn what_is_not_valid_is_counted_all_the_same() {
        assert_eq!(JsonSize::of_text("[[[[,{:").containers, 5);
        assert_eq!(JsonSize::of_text("\"[[[[\\\"").containers, 0);
        assert_eq!(JsonSize::of_text("").parsed_max(), ENTRY_BYTES);
    }
}
