//! JSON of clients into typed values: an error names the field by its path, as `messages[2].content`, and says what is
//! wanted in a sentence. Unknown fields are ignored, `null` is the same as absent, and no list grows beyond its bound.

use crate::error::{ApiError, ApiResult, shown};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, de};
use serde_json::error::Category;
use std::fmt;
use std::marker::PhantomData;

/// Reads a JSON object. `what` names the text in messages, as "the request body".
///
/// # Errors
/// The client's 400, with the path of the field as its `param`.
pub(crate) fn parse<'de, T: Deserialize<'de>>(json: &'de [u8], what: &str) -> ApiResult<T> {
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

fn refusal(what: &str, path: &str, error: &serde_json::Error) -> ApiError {
    let text = error.to_string();
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

/// A whole number from 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct Count(pub(super) u32);

/// Any number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decimal(pub(super) f32);

/// A seed: a negative one is as good as any other, its bits count.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seed(pub(super) u64);

/// A count of candidates; -1 is a common way to write "all", which is 0 here.
#[derive(Clone, Copy, Debug)]
pub(super) struct TopK(pub(super) u32);

/// A number as JSON has them.
#[derive(Clone, Copy)]
pub(super) enum Number {
    Whole(i128),
    Fraction(f64),
}

impl Number {
    fn count(self) -> Option<u32> {
        match self {
            Number::Whole(number) => u32::try_from(number).ok(),
            Number::Fraction(_) => None,
        }
    }
}

/// Reads a number of some range.
struct NumberVisitor<T> {
    wanted: &'static str,
    read: fn(Number) -> Option<T>,
}

impl<T> Visitor<'_> for NumberVisitor<T> {
    type Value = T;
    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.wanted)
    }
    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        let wrong = Unexpected::Unsigned(number);
        (self.read)(Number::Whole(number.into())).ok_or_else(|| E::invalid_value(wrong, &self))
    }
    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        let wrong = Unexpected::Signed(number);
        (self.read)(Number::Whole(number.into())).ok_or_else(|| E::invalid_value(wrong, &self))
    }
    fn visit_f64<E: de::Error>(self, number: f64) -> Result<T, E> {
        let wrong = Unexpected::Float(number);
        (self.read)(Number::Fraction(number)).ok_or_else(|| E::invalid_value(wrong, &self))
    }
}

macro_rules! number {
    ($name:ident, $wanted:literal, $read:expr) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                let read: fn(Number) -> Option<_> = $read;
                let wanted = $wanted;
                deserializer
                    .deserialize_any(NumberVisitor { wanted, read })
                    .map($name)
            }
        }
    };
}

number!(Count, "a whole number from 0 to 4294967295", Number::count);
number!(Decimal, "a number", |number| Some(match number {
    Number::Whole(number) => number as f32,
    Number::Fraction(number) => number as f32,
}));
number!(Seed, "a whole number", |number| match number {
    Number::Whole(number) => u64::try_from(number)
        .ok()
        .or_else(|| i64::try_from(number).ok().map(i64::cast_unsigned)),
    Number::Fraction(_) => None,
});
number!(
    TopK,
    "a whole number from 0 to 4294967295, or -1",
    |number| {
        match number {
            Number::Whole(-1) => Some(0),
            number => number.count(),
        }
    }
);

/// Text, or the ids of its tokens.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum TextOrTokens {
    Text(String),
    Tokens(Vec<u32>),
}

impl TextOrTokens {
    pub(super) fn is_empty(&self) -> bool {
        match self {
            TextOrTokens::Text(text) => text.is_empty(),
            TextOrTokens::Tokens(tokens) => tokens.is_empty(),
        }
    }
}

/// Text, token ids, or a list of at most `MAX` of either.
#[derive(Debug)]
pub(super) struct Inputs<const MAX: usize>(pub(super) Vec<TextOrTokens>);

impl<'de, const MAX: usize> Deserialize<'de> for Inputs<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InputsVisitor<const MAX: usize>;
        impl<'de, const MAX: usize> Visitor<'de> for InputsVisitor<MAX> {
            type Value = Inputs<MAX>;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("text, a list of token ids, or a list of these")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                self.visit_string(text.to_owned())
            }
            fn visit_string<E: de::Error>(self, text: String) -> Result<Self::Value, E> {
                Ok(Inputs(vec![TextOrTokens::Text(text)]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                Ok(Inputs(match seq.next_element()? {
                    None => Vec::new(),
                    Some(Entry::Token(id)) => {
                        let ids: Vec<TokenId> = entries(seq, vec![TokenId(id)], usize::MAX)?;
                        let ids = ids.into_iter().map(|id| id.0).collect();
                        vec![TextOrTokens::Tokens(ids)]
                    }
                    Some(Entry::Input(first)) => {
                        let inputs: Vec<Input> = entries(seq, vec![Input(first)], MAX)?;
                        inputs.into_iter().map(|input| input.0).collect()
                    }
                }))
            }
        }
        deserializer.deserialize_any(InputsVisitor::<MAX>)
    }
}

/// The first entry of a list decides what the list is of.
enum Entry {
    Token(u32),
    Input(TextOrTokens),
}

struct TokenId(u32);
number!(TokenId, "a token id", Number::count);

struct Input(TextOrTokens);

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Input, D::Error> {
        deserializer
            .deserialize_any(EntryVisitor {
                wanted: "text or a list of token ids",
                takes_ids: false,
            })
            .map(|entry| match entry {
                Entry::Input(input) => Input(input),
                Entry::Token(id) => Input(TextOrTokens::Tokens(vec![id])), // not with `takes_ids` off
            })
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Entry, D::Error> {
        deserializer.deserialize_any(EntryVisitor {
            wanted: "text, a token id or a list of token ids",
            takes_ids: true,
        })
    }
}

struct EntryVisitor {
    wanted: &'static str,
    takes_ids: bool,
}

impl<'de> Visitor<'de> for EntryVisitor {
    type Value = Entry;
    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.wanted)
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<Entry, E> {
        self.visit_string(text.to_owned())
    }
    fn visit_string<E: de::Error>(self, text: String) -> Result<Entry, E> {
        Ok(Entry::Input(TextOrTokens::Text(text)))
    }
    fn visit_u64<E: de::Error>(self, id: u64) -> Result<Entry, E> {
        match u32::try_from(id) {
            Ok(id) if self.takes_ids => Ok(Entry::Token(id)),
            _ => Err(E::invalid_type(Unexpected::Unsigned(id), &self)),
        }
    }
    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Entry, A::Error> {
        let ids: Vec<TokenId> = entries(seq, Vec::new(), usize::MAX)?;
        let ids = ids.into_iter().map(|id| id.0).collect();
        Ok(Entry::Input(TextOrTokens::Tokens(ids)))
    }
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

    #[test]
    fn a_wrong_field_is_named_by_its_path_and_told_in_a_sentence() {
        for (json, path, message) in [
            (
                "{",
                "",
                "the request body is not valid JSON: EOF while parsing an object at line 1 column 1",
            ),
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
        ] {
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
    fn null_is_absent_and_unknown_fields_are_ignored() {
        let json = br#"{"needed":false,"text":null,"inputs":null,"other":[{"a":1}]}"#;
        let sample: Sample = parse(json, "the request body").unwrap();
        assert!(sample.text.is_none() && sample.inputs.is_none() && sample.list.0.is_empty());
    }
}
