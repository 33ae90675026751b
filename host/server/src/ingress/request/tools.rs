//! What a chat says of tools. It is JSON that becomes trees of values, which take many times the memory of their text: so
//! values are counted before there are any.

use super::super::json::{self, Object, Word};
use crate::error::{ApiError, ApiResult};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// Tools of a chat, and calls of tools in one message.
pub(super) const TOOLS_MAX: usize = 1_024;
/// Values of JSON in a chat, but for its messages.
const VALUES_MAX: usize = 32_768;
/// Values of a message for which there is room in as many as a chat can have; one of a role and a text has three.
const MESSAGE_VALUES: usize = 8;

/// What is in a tool's JSON that this server looks at.
#[derive(Deserialize)]
struct Tool {
    r#type: Word<ToolType>,
    function: Object<ToolFunction>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum ToolType {
    Function,
}

#[derive(Deserialize)]
struct ToolFunction {
    name: String,
}

/// Reads tools, which go to the model's template. That the model must call one cannot be promised.
///
/// # Errors
/// The client's 400.
pub(super) fn read(
    tools: &[&RawValue],
    choice: Option<&RawValue>,
    room: &mut Room,
) -> ApiResult<Vec<Value>> {
    let read = tools.iter().enumerate();
    let read = read.map(|(index, tool)| {
        let path = format!("tools[{index}]");
        room.take(tool.get(), || path.clone())?;
        tool_of(tool.get()).map_err(|error| error.below(&path))
    });
    let read = read.collect::<ApiResult<Vec<Value>>>()?;
    match choice.map(RawValue::get) {
        None | Some("\"auto\"" | "null") => Ok(read),
        Some("\"none\"") => Ok(Vec::new()),
        Some("\"required\"") => Err(ApiError::unsupported("tool_choice", "required")),
        Some(_) => Err(ApiError::unsupported(
            "tool_choice",
            "a value other than auto or none",
        )),
    }
}

fn tool_of(text: &str) -> ApiResult<Value> {
    let Tool { r#type, function } = json::parse(text.as_bytes(), "the tool")?;
    let (Word(ToolType::Function), _) = (r#type, function.0.name);
    json::parse_value(text, "the tool")
}

/// How many more values of JSON a chat may have.
pub(super) struct Room {
    left: usize,
    /// What there was at first, and in what.
    all: usize,
    of: &'static str,
}

impl Room {
    /// In everything but its messages.
    pub(super) fn of_values() -> Room {
        Room {
            left: VALUES_MAX,
            all: VALUES_MAX,
            of: "tools, documents, variables of the template and arguments of calls",
        }
    }

    /// In so many messages.
    pub(super) fn of_messages(messages: usize) -> Room {
        let all = messages * MESSAGE_VALUES;
        Room {
            left: all,
            all,
            of: "messages",
        }
    }

    /// Takes the values of a JSON text, whose path names it where they are too many.
    ///
    /// # Errors
    /// The client's 400.
    pub(super) fn take(&mut self, json: &str, path: impl FnOnce() -> String) -> ApiResult<()> {
        let left = self.left.checked_sub(Size::of(json).values());
        self.left = left.ok_or_else(|| {
            let (of, all) = (self.of, self.all);
            let what = format!("all {of} of a chat can have at most {all} JSON values together");
            ApiError::field(&path(), what)
        })?;
        Ok(())
    }
}

/// What decides how much memory the values of a JSON text take.
#[derive(Default)]
struct Size {
    /// Lists and objects.
    nested: usize,
    /// Those of them that are empty.
    empty: usize,
    /// Entries after the first of one.
    further: usize,
    bytes: usize,
}

impl Size {
    fn of(json: &str) -> Size {
        let bytes = json.len();
        let (mut nested, mut empty, mut further) = (0, 0, 0);
        let (mut in_string, mut is_escaped, mut has_begun) = (false, false, false);
        for byte in json.bytes().filter(|byte| !byte.is_ascii_whitespace()) {
            match byte {
                _ if is_escaped => is_escaped = false,
                b'\\' => is_escaped = in_string,
                b'"' => in_string = !in_string,
                b'[' | b'{' if !in_string => nested += 1,
                b']' | b'}' if !in_string && has_begun => empty += 1,
                b',' if !in_string => further += 1,
                _ => {}
            }
            has_begun = !in_string && matches!(byte, b'[' | b'{');
        }
        Size {
            nested,
            empty,
            further,
            bytes,
        }
    }

    /// Adds a value.
    fn add(&mut self, value: &Value) {
        match value {
            Value::Array(list) => {
                self.add_nested(list.len());
                list.iter().for_each(|inner| self.add(inner));
            }
            Value::Object(map) => {
                self.add_nested(map.len());
                self.bytes += map.keys().map(String::capacity).sum::<usize>();
                map.values().for_each(|inner| self.add(inner));
            }
            Value::String(text) => self.bytes += text.capacity(),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn add_nested(&mut self, entries: usize) {
        self.nested += 1;
        self.further += entries.saturating_sub(1);
    }

    /// Values: each is the whole, the first of a list or an object, or follows a comma.
    fn values(&self) -> usize {
        1 + self.nested - self.empty + self.further
    }

    /// Bytes that they take at most: as values of serde's, and as those that the template is given.
    fn heap(&self) -> usize {
        self.nested * NESTED_BYTES + (1 + self.further) * FURTHER_BYTES + 2 * self.bytes
    }
}

/// With one entry an object has room for three, and a table that finds them; both kinds together take 14 values' room.
const NESTED_BYTES: usize = 16 * size_of::<Value>();
/// A key, a value, their place in the table; lists grow in leaps, so all but the texts of it twice.
pub(super) const FURTHER_BYTES: usize = 6 * size_of::<Value>();

/// Bytes that a JSON text takes at most as values.
pub(super) fn json_bytes(json: &str) -> usize {
    Size::of(json).heap()
}

/// Bytes that a value takes at most, together with the one that is made of it for the template.
pub(super) fn value_bytes(value: &Value) -> usize {
    let mut size = Size::default();
    size.add(value);
    size.heap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_outside_of_strings() {
        for (json, nested, values) in [
            ("1", 0, 1),
            (r#"[{"a,[": "\",[\\"}, 2, [ ]]"#, 3, 5),
            (r#"{"[":"]","a":{},"b":[[]]}"#, 4, 5),
            (r#""\\", [1"#, 1, 3),
            (r#""never closed, [["#, 0, 1),
        ] {
            let size = Size::of(json);
            assert_eq!((size.nested, size.values()), (nested, values), "{json}");
        }
    }

    /// Bytes of a value's parts, as far as they can be seen: what allocators and tables add is not.
    fn seen_bytes(value: &Value) -> usize {
        size_of::<Value>()
            + match value {
                Value::String(text) => text.capacity(),
                Value::Array(list) => {
                    let spare = list.capacity() - list.len();
                    spare * size_of::<Value>() + list.iter().map(seen_bytes).sum::<usize>()
                }
                Value::Object(map) => {
                    let entry = |(key, value): (&String, &Value)| {
                        size_of::<usize>()
                            + size_of::<String>()
                            + key.capacity()
                            + seen_bytes(value)
                    };
                    map.iter().map(entry).sum::<usize>()
                }
                _ => 0,
            }
    }

    #[test]
    fn no_value_takes_more_than_is_counted() {
        for part in [
            "[]",
            "[0]",
            "0",
            r#"{"":0}"#,
            r#"{"a":{"b":[]}}"#,
            r#""a""#,
            r#"{"a":1,"b":"c","d":[1,2]}"#,
        ] {
            let json = format!("[{}]", [part; 1000].join(","));
            let value = serde_json::from_str(&json).unwrap();
            let seen = seen_bytes(&value);
            for counted in [json_bytes(&json), value_bytes(&value)] {
                assert!(counted >= seen, "{part}: {counted} < {seen}");
                assert!(counted <= 40 * seen, "{part}: {counted} for {seen}");
            }
        }
        let text = format!(r#""{}""#, "plain text, and more of it ".repeat(1000));
        assert!(
            json_bytes(&text) < 3 * text.len(),
            "commas of a text are none"
        );
    }

    #[test]
    fn tools_and_arguments_share_their_room() {
        let mut room = Room::of_values();
        let list = |entries: usize| format!("[{}]", vec!["1"; entries].join(","));
        let path = || "tools[0]".to_owned();
        assert!(room.take(&list(VALUES_MAX / 2), path).is_ok());
        let error = room.take(&list(VALUES_MAX / 2), path).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("tools[0]"));
        assert!(
            room.take("1", path).is_ok(),
            "what is refused takes nothing"
        );
    }
}
