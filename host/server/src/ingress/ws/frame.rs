//! The frames of `/ws`, in and out.

use crate::error::ApiError;
use crate::ingress::json;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

/// A frame from a client.
#[derive(Debug)]
pub(super) enum Frame {
    /// The key, where no header was possible.
    Auth {
        /// `rk_...`
        api_key: String,
    },
    /// Start a call.
    Call {
        /// A string or a whole number.
        id: Value,
        /// A built-in, or `workflow.function`.
        function: String,
        /// JSON as the client wrote it; an empty object when left out.
        params: String,
    },
    /// End a call.
    Cancel {
        /// That of the call.
        id: Value,
    },
}

/// Why a frame is refused.
#[derive(Debug)]
pub(super) struct BadFrame {
    /// Its id where it has a good one, else `null`.
    pub(super) id: Value,
    /// What is wrong.
    pub(super) error: ApiError,
}

/// Ids are repeated in every frame.
const ID_BYTES_MAX: usize = 128;
/// A workflow's name and a function's.
const FUNCTION_BYTES_MAX: usize = 256;

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow, default)]
    r#type: Option<&'a RawValue>,
    #[serde(borrow, default)]
    api_key: Option<&'a RawValue>,
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    cancel: Option<&'a RawValue>,
    #[serde(borrow, default)]
    function: Option<&'a RawValue>,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
}

/// Reads a frame. The parameters stay text: they are parsed once it is known what they are for.
///
/// # Errors
/// What is wrong with it.
pub(super) fn parse(text: &str) -> Result<Frame, Box<BadFrame>> {
    let refuse = |id: &Value, error: ApiError| {
        let id = id.clone();
        Err(Box::new(BadFrame { id, error }))
    };
    let fields: Fields<'_> = match json::parse(text.as_bytes(), "the frame") {
        Ok(fields) => fields,
        Err(error) => return refuse(&Value::Null, error),
    };
    if string(fields.r#type).as_deref() == Some("auth") {
        return match string(fields.api_key) {
            Some(api_key) => Ok(Frame::Auth { api_key }),
            None => refuse(&Value::Null, ApiError::field("api_key", "must be a string")),
        };
    }
    let Some(id) = fields.id.and_then(call_id) else {
        let what = "must be a whole number or a string of at most 128 bytes";
        return refuse(&Value::Null, ApiError::field("id", what));
    };
    if fields.cancel.is_some_and(|cancel| cancel.get() == "true") {
        return Ok(Frame::Cancel { id });
    }
    match string(fields.function) {
        Some(function) if function.len() <= FUNCTION_BYTES_MAX => Ok(Frame::Call {
            id,
            function,
            params: fields.params.map_or("{}", RawValue::get).to_owned(),
        }),
        _ => {
            let what = "must be a string of at most 256 bytes";
            refuse(&id, ApiError::field("function", what))
        }
    }
}

fn string(raw: Option<&RawValue>) -> Option<String> {
    serde_json::from_str(raw?.get()).ok()
}

fn call_id(raw: &RawValue) -> Option<Value> {
    // Escapes make six bytes of one.
    if raw.get().len() > 6 * ID_BYTES_MAX + 2 {
        return None;
    }
    match serde_json::from_str(raw.get()).ok()? {
        Value::String(id) if id.len() <= ID_BYTES_MAX => Some(Value::String(id)),
        Value::Number(id) if id.is_u64() || id.is_i64() => Some(Value::Number(id)),
        _ => None,
    }
}

/// A frame with data.
#[derive(Serialize)]
struct WithData<'a, T> {
    id: &'a Value,
    status: &'static str,
    data: &'a T,
}

fn with_data<T: Serialize>(id: &Value, status: &'static str, data: &T) -> String {
    let frame = serde_json::to_string(&WithData { id, status, data });
    frame.expect("values of JSON can be written as JSON")
}

/// More of an answer.
pub(super) fn streaming<T: Serialize>(id: &Value, data: &T) -> String {
    with_data(id, "streaming", data)
}

/// The end of an answer.
pub(super) fn complete<T: Serialize>(id: &Value, data: &T) -> String {
    with_data(id, "complete", data)
}

/// The end of a call that the client wanted to end.
pub(super) fn cancelled(id: &Value) -> String {
    json!({"id": id, "status": "cancelled"}).to_string()
}

/// The end of a call that failed, or the refusal of a frame.
pub(super) fn error(id: &Value, error: &ApiError) -> String {
    json!({"id": id, "status": "error", "error": error.frame()}).to_string()
}

/// The refusal of a frame whose id belongs to a call under way: it must not look like that call's end.
pub(super) fn error_beside(id: &Value, error: &ApiError) -> String {
    let mut body = error.frame();
    body["id"] = id.clone();
    json!({"id": null, "status": "error", "error": body}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read() {
        let is_call = |text: &str, expected_id: Value, expected_params: &str| {
            let Ok(Frame::Call {
                id,
                function,
                params,
            }) = parse(text)
            else {
                panic!("{text} is a call");
            };
            assert_eq!(
                (id, function.as_str(), params.as_str()),
                (expected_id, "chat", expected_params),
                "{text}"
            );
        };
        is_call(
            r#"{"id":"a","function":"chat","params":{ "n":1}}"#,
            json!("a"),
            r#"{ "n":1}"#,
        );
        is_call(r#"{"id":7,"function":"chat"}"#, json!(7), "{}");
        is_call(
            r#"{"id":7,"function":"chat","params":null}"#,
            json!(7),
            "{}",
        );
        is_call(
            r#"{"cancel":false,"id":"\u0061","function":"chat","type":5}"#,
            json!("a"),
            "{}",
        );
        let auth = parse(r#"{"type":"auth","api_key":"rk_1"}"#);
        assert!(matches!(auth, Ok(Frame::Auth { api_key }) if api_key == "rk_1"));
        let cancel = parse(r#"{"id":"a","cancel":true}"#);
        assert!(matches!(cancel, Ok(Frame::Cancel { id }) if id == "a"));
    }

    #[test]
    fn a_bad_frame_is_refused_under_its_id_if_it_has_one() {
        let long = format!(r#"{{"id":"{}","function":"chat"}}"#, "x".repeat(200));
        for (text, id) in [
            ("no json", json!(null)),
            ("[]", json!(null)),
            ("{}", json!(null)),
            (r#"{"id":{},"function":"chat"}"#, json!(null)),
            (r#"{"id":1.5,"function":"chat"}"#, json!(null)),
            (r#"{"type":"auth"}"#, json!(null)),
            (long.as_str(), json!(null)),
            (r#"{"id":"a"}"#, json!("a")),
            (r#"{"id":"a","function":3}"#, json!("a")),
            (r#"{"id":"a","cancel":false}"#, json!("a")),
        ] {
            assert_eq!(parse(text).unwrap_err().id, id, "{text}");
        }
    }
}
