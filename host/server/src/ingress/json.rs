//! JSON of clients into typed values: an error names the field by its path, as `messages[2].content`, and says what is
//! wanted in a sentence. Unknown fields are ignored, `null` is the same as absent, and no list grows beyond its bound.

mod inputs;
mod number;

pub(super) use inputs::{Inputs, TextOrTokens};
pub(super) use number::{Count, Decimal, Seed, TokenId, TopK};

use crate::error::{ApiError, ApiResult, shown};
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::error::Category;
use std::fmt;
use std::marker::PhantomData;

/// Reads a JSON object. `what` names the text in messages, as "the request body".
///
/// # Errors
/// The client's 400, with the path of the field as its `param`.
pub(crate) fn parse<'de, T: Deserialize<'de>>(json: &'de [u8], what: &str) -> ApiResult<T> {
    // Some editors and languages put a mark of byte order in front.
    let json = json.strip_prefix(b"\xef\xbb\xbf").unwrap_or(json);
    if json.trim_ascii().is_empty() {
        return Err(ApiError::invalid(format!("{what} is empty")));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let Object(value) = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        refusal(what, &path, &error.into_inner())
    })?;
    deserializer
        .end()
        .map_err(|error| refusal(what, ".", &error))?;
    Ok(value)
}

/// Reads any JSON.
///
/// # Errors
/// The client's 400.
pub(super) fn parse_value(json: &str, what: &str) -> ApiResult<Value> {
    serde_json::from_str(json).map_err(|error| refusal(what, ".", &error))
}

fn refusal(what: &str, path: &str, error: &serde_json::Error) -> ApiError {
    let text = error.to_string();
    // JSON can hold such a number, and the field has a path.
    if text.starts_with("number out of range") && path != "." {
        return ApiError::field(&shown(path), "is too large a number");
    }
    if error.classify() != Category::Data {
        return ApiError::invalid(format!("{what} is not valid JSON: {}", shown(&text)));
    }
    let message = text
        .rsplit_once(" at line ")
        .map_or(text.as_str(), |(message, _)| message);
    let root = if path == "." { "" } else { path };
    let field = ["missing field `", "duplicate field `", "unknown field `"]
        .into_iter()
        .find_map(|prefix| message.strip_prefix(prefix)?.split('`').next());
    // serde knows the field, but the path may end at what it is a field of.
    let path = match field {
        Some(field) if root == field || root.ends_with(&format!(".{field}")) => root.to_owned(),
        Some(field) if root.is_empty() => field.to_owned(),
        Some(field) => format!("{root}.{field}"),
        None => root.to_owned(),
    };
    match path.as_str() {
        "" => ApiError::invalid(format!("{what} {}", sentence(message))),
        // A key of the client's choosing can be of any length.
        path => ApiError::field(&shown(path), sentence(message)),
    }
}

/// serde's words for a wrong value as a sentence without its subject.
fn sentence(message: &str) -> String {
    let wrong = ["invalid type: ", "invalid value: ", "unknown variant "]
        .into_iter()
        .find_map(|prefix| message.strip_prefix(prefix));
    if let Some((found, wanted)) = wrong.and_then(|rest| rest.rsplit_once(", expected ")) {
        return format!("must be {}, not {}", plain(wanted), shown(plain(found)));
    }
    if message.starts_with("missing field ") {
        return "is required".to_owned();
    }
    if message.starts_with("duplicate field ") {
        return "must not be given more than once".to_owned();
    }
    if message.starts_with("unknown field ") {
        return "is not a field of this request".to_owned();
    }
    shown(message).into_owned()
}

/// The words of JSON in place of serde's.
fn plain(words: &str) -> &str {
    match words {
        "a sequence" | "sequence" => "a list",
        "a map" | "map" => "an object",
        "a boolean" => "true or false",
        "null" | "unit value" | "Option value" => "null",
        other => ["integer `", "floating point `", "boolean `", "string "]
            .into_iter()
            .find_map(|kind| other.strip_prefix(kind))
            .map_or(other, |value| value.trim_end_matches('`')),
    }
}

/// An object and nothing else: derived types alone would also take a list of their fields in order.
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Object<T>, D::Error> {
        struct Fields<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = Object<T>;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(Fields(PhantomData))
    }
}

/// One of some words. Derived types alone would take a word's object, too, and call what is no text no JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Word<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Word<T>, D::Error> {
        let word = String::deserialize(deserializer)?;
        T::deserialize(word.into_deserializer()).map(Word)
    }
}

/// A list of at most `MAX` entries.
#[derive(Debug)]
pub(super) struct List<T, const MAX: usize>(pub(super) Vec<T>);

impl<T, const MAX: usize> Default for List<T, MAX> {
    fn default() -> Self {
        List(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for List<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T, const MAX: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Entries<T, MAX> {
            type Value = List<T, MAX>;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a list")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
                entries(seq, Vec::new(), MAX).map(List)
            }
        }
        deserializer.deserialize_seq(Entries(PhantomData))
    }
}

/// Reads the rest of a list after what stands in `list` already.
pub(super) fn entries<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(
    mut seq: A,
    mut list: Vec<T>,
    max: usize,
) -> Result<Vec<T>, A::Error> {
    while let Some(entry) = seq.next_element()? {
        if list.len() >= max {
            return Err(A::Error::custom(format!(
                "has more than {max} entries, which is the limit"
            )));
        }
        list.push(entry);
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Sample {
        #[serde(default)]
        text: Option<String>,
        #[serde(default)]
        list: List<Count, 3>,
        #[serde(default)]
        inputs: Option<Inputs<2>>,
        #[expect(dead_code, reason = "only its absence matters")]
        needed: bool,
    }

    fn refused(json: &str) -> (String, String) {
        let error = parse::<Sample>(json.as_bytes(), "the request body").unwrap_err();
        assert_eq!(error.status, 400, "{json}");
        (error.param.unwrap_or_default(), error.message)
    }

    /// A text, the path by which its fault is named, and the whole message.
    const FAULTS: [(&str, &str, &str); 14] = [
        (
            "{",
            "",
            "the request body is not valid JSON: EOF while parsing an object at line 1 column 1",
        ),
        (" \n", "", "the request body is empty"),
        (
            "[true]",
            "",
            "the request body must be an object, not a list",
        ),
        ("7 8", "", "the request body must be an object, not 7"),
        ("{}", "needed", "needed: is required"),
        (
            r#"{"needed":1}"#,
            "needed",
            "needed: must be true or false, not 1",
        ),
        (
            r#"{"needed":true,"text":{}}"#,
            "text",
            "text: must be a string, not an object",
        ),
        (
            r#"{"needed":true,"list":[1,"x"]}"#,
            "list[1]",
            "list[1]: must be a whole number from 0 to 4294967295, not \"x\"",
        ),
        (
            r#"{"needed":true,"list":[1,2,3,4]}"#,
            "list",
            "list: has more than 3 entries, which is the limit",
        ),
        (
            r#"{"needed":true,"list":[1,-1e999]}"#,
            "list[1]",
            "list[1]: is too large a number",
        ),
        (
            r#"{"needed":true,"needed":true}"#,
            "needed",
            "needed: must not be given more than once",
        ),
        (
            r#"{"needed":true,"inputs":[1,-2]}"#,
            "inputs[1]",
            "inputs[1]: must be a token id, not -2",
        ),
        (
            r#"{"needed":true,"inputs":["a",1]}"#,
            "inputs[1]",
            "inputs[1]: must be text or a list of token ids, not 1",
        ),
        (
            r#"{"needed":true,"inputs":["a","b","c"]}"#,
            "inputs",
            "inputs: has more than 2 entries, which is the limit",
        ),
    ];

    #[test]
    fn a_wrong_field_is_named_by_its_path_and_told_in_a_sentence() {
        for (json, path, message) in FAULTS {
            assert_eq!(
                refused(json),
                (path.to_owned(), message.to_owned()),
                "{json}"
            );
        }
        let long = format!(
            r#"{{"needed":true,"text":null,"list":"{}"}}"#,
            "x".repeat(1 << 20)
        );
        assert!(refused(&long).1.len() < 200, "a message stays short");
        let deep = format!(r#"{{"needed":true,"inputs":{}"#, "[".repeat(100_000));
        assert_eq!(refused(&deep).0, "inputs[0][0]");
    }

    #[test]
    fn an_unknown_field_is_named_where_none_may_be() {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Strict {
            #[expect(dead_code, reason = "only the other field matters")]
            name: String,
        }
        let error = parse::<Strict>(br#"{"name":"a","nam":1}"#, "the request body").unwrap_err();
        assert_eq!(
            (error.param.as_deref(), &*error.message),
            (Some("nam"), "nam: is not a field of this request")
        );
    }

    #[test]
    fn a_mark_of_byte_order_and_a_point_in_a_whole_number_do_not_matter() {
        let json = "\u{feff}{\"needed\":true,\"list\":[6.0,-0.0,1e3],\"inputs\":[5.0]}";
        let sample: Sample = parse(json.as_bytes(), "the request body").unwrap();
        let counts: Vec<u32> = sample.list.0.iter().map(|count| count.0).collect();
        assert_eq!(counts, [6, 0, 1000]);
        let tokens = TextOrTokens::Tokens(vec![5]);
        assert_eq!(sample.inputs.unwrap().0, [tokens]);
        for (json, message) in [
            (r#"{"needed":true,"list":[6.5]}"#, "not 6.5"),
            (r#"{"needed":true,"list":[1e300]}"#, "not 1e+300"),
            (r#"{"needed":true,"list":[-1.0]}"#, "not -1.0"),
        ] {
            assert!(refused(json).1.ends_with(message), "{:?}", refused(json));
        }
        assert_eq!(refused("\u{feff}").1, "the request body is empty");
    }

    #[test]
    fn null_is_absent_and_unknown_fields_are_ignored() {
        let json = br#"{"needed":false,"text":null,"inputs":null,"other":[{"a":1}]}"#;
        let sample: Sample = parse(json, "the request body").unwrap();
        assert!(sample.text.is_none() && sample.inputs.is_none() && sample.list.0.is_empty());
    }
}
