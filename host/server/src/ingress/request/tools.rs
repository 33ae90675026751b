//! What a chat says of tools. It is JSON that becomes trees of values, which take many times the memory of their text: so
//! values are counted before there are any.

use super::super::json::{self, Object, Word};
use crate::error::{ApiError, ApiResult};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// Tools of a chat, and calls of tools in one message.
pub(super) const TOOLS_MAX: usize = 1_024;
/// Values of JSON in all tools of a chat and all arguments of its calls.
const VALUES_MAX: usize = 32_768;

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
pub(super) struct Room(usize);

impl Default for Room {
    fn default() -> Room {
        Room(VALUES_MAX)
    }
}

impl Room {
    /// Takes the values of a JSON text, whose path names it where they are too many.
    ///
    /// # Errors
    /// The client's 400.
    pub(super) fn take(&mut self, json: &str, path: impl FnOnce() -> String) -> ApiResult<()> {
        let left = self.0.checked_sub(Size::of(json).values());
        self.0 = left.ok_or_else(|| {
            let what = format!(
                "all tools of a chat and the arguments of its calls can have at most {VALUES_MAX} JSON values together"
            );
            ApiError::field(&path(), what)
        })?;
        Ok(())
    }
}

/// What decides how much memory the values of a JSON text take.
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

    /// Values: each is the whole, the first of a list or an object, or follows a comma.
    fn values(&self) -> usize {
        1 + self.nested - self.empty + self.further
    }
}

/// Bytes that the values of a JSON text take at most: as values of serde's, and as those that the template is given.
pub(super) fn value_bytes(json: &str) -> usize {
    // With one entry an object has room for three, and a table that finds them; both kinds together take 14 values' room.
    const NESTED: usize = 16 * size_of::<Value>();
    // A key, a value, their place in the table; lists grow in leaps, so all but the texts of it twice.
    const FURTHER: usize = 6 * size_of::<Value>();
    let size = Size::of(json);
    size.nested * NESTED + (1 + size.further) * FURTHER + 2 * size.bytes
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
            let seen = seen_bytes(&serde_json::from_str(&json).unwrap());
            let counted = value_bytes(&json);
            assert!(counted >= seen, "{part}: {counted} < {seen}");
            assert!(counted <= 40 * seen, "{part}: {counted} for {seen}");
        }
        let text = format!(r#""{}""#, "plain text, and more of it ".repeat(1000));
        assert!(
            value_bytes(&text) < 3 * text.len(),
            "commas of a text are none"
        );
    }

    #[test]
    fn tools_and_arguments_share_their_room() {
        let mut room = Room::default();
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
