//! The frames of `/ws`, in and out.

use crate::error::ApiError;
use serde_json::{Value, json};

/// A frame from a client.
#[derive(Debug, PartialEq)]
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
        /// Anything; an empty object when left out.
        params: Value,
    },
    /// End a call.
    Cancel {
        /// That of the call.
        id: Value,
    },
}

/// What is wrong with a frame.
#[derive(Debug)]
pub(super) struct NoFrame {
    /// Its id where it has a good one, else `null`.
    pub(super) id: Value,
    /// What is wrong.
    pub(super) error: ApiError,
}

/// Ids are repeated in every frame.
const ID_BYTES_MAX: usize = 128;

/// Reads a frame.
///
/// # Errors
/// What is wrong with it.
pub(super) fn parse(text: &str) -> Result<Frame, Box<NoFrame>> {
    let wrong = |id: &Value, what: &str| {
        let error = ApiError::invalid(what);
        Err(Box::new(NoFrame {
            id: id.clone(),
            error,
        }))
    };
    let mut frame: Value = match serde_json::from_str(text) {
        Ok(frame @ Value::Object(_)) => frame,
        Ok(_) => return wrong(&Value::Null, "a frame must be a JSON object"),
        Err(error) => return wrong(&Value::Null, &format!("the frame is no JSON: {error}")),
    };
    if frame["type"] == "auth" {
        return match frame["api_key"].as_str() {
            Some(key) => Ok(Frame::Auth {
                api_key: key.to_owned(),
            }),
            None => wrong(&Value::Null, "api_key: must be a string"),
        };
    }
    let id = match frame["id"].take() {
        Value::String(id) if id.len() <= ID_BYTES_MAX => Value::String(id),
        Value::Number(id) if id.is_u64() || id.is_i64() => Value::Number(id),
        _ => {
            return wrong(
                &Value::Null,
                "id: must be a whole number or a string of 128 bytes at most",
            );
        }
    };
    if frame["cancel"] == true {
        return Ok(Frame::Cancel { id });
    }
    match (
        frame["function"].take(),
        frame.get_mut("params").map(Value::take),
    ) {
        (Value::String(function), params) => {
            let params = params
                .filter(|params| !params.is_null())
                .unwrap_or_else(|| json!({}));
            Ok(Frame::Call {
                id,
                function,
                params,
            })
        }
        _ => wrong(&id, "function: must be a string"),
    }
}

/// More of an answer.
pub(super) fn streaming(id: &Value, data: &Value) -> Value {
    json!({"id": id, "status": "streaming", "data": data})
}

/// The end of an answer.
pub(super) fn complete(id: &Value, data: &Value) -> Value {
    json!({"id": id, "status": "complete", "data": data})
}

/// The end of a call that the client wanted to end.
pub(super) fn cancelled(id: &Value) -> Value {
    json!({"id": id, "status": "cancelled"})
}

/// The end of a call that failed, or the answer to a frame that was none.
pub(super) fn error(id: &Value, error: &ApiError) -> Value {
    json!({"id": id, "status": "error", "error": error.frame()})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read() {
        let call = |id: Value, params: Value| Frame::Call {
            id,
            function: "chat".to_owned(),
            params,
        };
        for (text, frame) in [
            (
                r#"{"type":"auth","api_key":"rk_1"}"#,
                Frame::Auth {
                    api_key: "rk_1".to_owned(),
                },
            ),
            (
                r#"{"id":"a","function":"chat","params":{"n":1}}"#,
                call(json!("a"), json!({"n": 1})),
            ),
            (r#"{"id":7,"function":"chat"}"#, call(json!(7), json!({}))),
            (
                r#"{"id":7,"function":"chat","params":null}"#,
                call(json!(7), json!({})),
            ),
            (
                r#"{"id":"a","cancel":true}"#,
                Frame::Cancel { id: json!("a") },
            ),
        ] {
            assert_eq!(parse(text).unwrap(), frame, "{text}");
        }
    }

    #[test]
    fn what_is_no_frame_is_told_under_its_id_if_it_has_one() {
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
