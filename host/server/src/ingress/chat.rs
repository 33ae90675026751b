//! `POST /v1/chat/completions`: what the client asks.

use super::openai::{Common, Fields, chat_logprobs, shown};
use crate::error::{ApiError, ApiResult};
use realm_engine::text::{ChatMessage, ToolCall};
use realm_sandbox::RequestKind;
use serde_json::Value;

/// Reads a chat.
///
/// # Errors
/// The client's 400, which names the field.
pub(super) fn parse(body: &Value) -> ApiResult<(Common, RequestKind)> {
    let fields = Fields::of(body)?;
    let mut common = Common::parse(fields)?;
    common.policy.logprobs = chat_logprobs(fields)?;
    let messages = fields
        .list("messages")?
        .ok_or_else(|| ApiError::field("messages", "is missing"))?;
    if messages.is_empty() {
        return Err(ApiError::field("messages", "must not be empty"));
    }
    let messages = messages.iter().enumerate().map(|(index, message)| {
        self::message(message)
            .map_err(|what| ApiError::field("messages", format!("message {index} {what}")))
    });
    let messages = messages.collect::<ApiResult<_>>()?;
    refuse_response_format(fields)?;
    Ok((
        common,
        RequestKind::Chat {
            messages,
            tools: tools(fields)?,
        },
    ))
}

fn message(value: &Value) -> Result<ChatMessage, String> {
    let text = |name: &str| match &value[name] {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        other => Err(format!(
            "has a {name} that is no string but {}",
            shown(other)
        )),
    };
    let role = match text("role")?.as_deref() {
        Some("developer") => "system".to_owned(),
        Some(role @ ("system" | "user" | "assistant" | "tool")) => role.to_owned(),
        Some(role) => return Err(format!("has the unknown role {}", shown(&role.into()))),
        None => return Err("has no role, or is no object".to_owned()),
    };
    let tool_calls = match &value["tool_calls"] {
        Value::Null => Vec::new(),
        Value::Array(calls) => calls.iter().map(tool_call).collect::<Result<_, _>>()?,
        _ => return Err("has tool_calls that are no list".to_owned()),
    };
    let content = match &value["content"] {
        // An assistant that called tools said nothing else.
        Value::Null if role == "assistant" => String::new(),
        Value::Null => return Err("has no content".to_owned()),
        Value::String(content) => content.clone(),
        Value::Array(parts) => parts.iter().map(text_part).collect::<Result<_, _>>()?,
        other => return Err(format!("has content that is no text but {}", shown(other))),
    };
    Ok(ChatMessage {
        role,
        content,
        name: text("name")?,
        tool_call_id: text("tool_call_id")?,
        tool_calls,
    })
}

fn text_part(part: &Value) -> Result<&str, String> {
    match (part["type"].as_str(), part["text"].as_str()) {
        (Some("text"), Some(text)) => Ok(text),
        (Some(kind), _) => Err(format!(
            "has a content part {}, only text is supported",
            shown(&kind.into())
        )),
        (None, _) => Err("has a content part without a type".to_owned()),
    }
}

fn tool_call(call: &Value) -> Result<ToolCall, String> {
    let text = |value: &Value, name: &str| {
        value
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| format!("has a tool call without {name}"))
    };
    Ok(ToolCall {
        id: text(&call["id"], "an id")?,
        name: text(&call["function"]["name"], "a function name")?,
        arguments_json: text(&call["function"]["arguments"], "arguments")?,
    })
}

/// The tools go to the model's template. That the model must call one cannot be promised.
fn tools(fields: Fields<'_>) -> ApiResult<Vec<Value>> {
    let tools = fields.list("tools")?.cloned().unwrap_or_default();
    for tool in &tools {
        if tool["type"] != "function" || !tool["function"]["name"].is_string() {
            return Err(ApiError::field(
                "tools",
                "each must be of type function and have a name",
            ));
        }
    }
    match fields.get("tool_choice") {
        None => Ok(tools),
        Some(choice) if choice == "auto" => Ok(tools),
        Some(choice) if choice == "none" => Ok(Vec::new()),
        Some(choice) => Err(ApiError::unsupported("tool_choice", shown(choice))),
    }
}

fn refuse_response_format(fields: Fields<'_>) -> ApiResult<()> {
    match fields.get("response_format") {
        Some(format) if format["type"] != "text" => Err(ApiError::unsupported(
            "response_format",
            shown(&format["type"]),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse_with(more: Value) -> Result<(Vec<ChatMessage>, Vec<Value>), ApiError> {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        match parse(&body)?.1 {
            RequestKind::Chat { messages, tools } => Ok((messages, tools)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn messages_come_in_many_forms() {
        let (messages, _) = parse_with(json!({"messages": [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "Ada"},
            {"role": "assistant", "content": null,
             "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "content": "3", "tool_call_id": "1"},
        ]}))
        .unwrap();
        assert_eq!(
            (messages[0].role.as_str(), messages[0].content.as_str()),
            ("system", "be brief")
        );
        assert_eq!(
            (messages[1].content.as_str(), messages[1].name.as_deref()),
            ("ab", Some("Ada"))
        );
        assert_eq!(
            (
                messages[2].content.as_str(),
                messages[2].tool_calls[0].name.as_str()
            ),
            ("", "f")
        );
        assert_eq!(messages[3].tool_call_id.as_deref(), Some("1"));
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]);
        for (more, name, code) in [
            (json!({"messages": []}), "messages", "invalid_request"),
            (json!({"messages": "hi"}), "messages", "invalid_request"),
            (json!({"messages": [1]}), "messages", "invalid_request"),
            (
                json!({"messages": [{"role": "user"}]}),
                "messages",
                "invalid_request",
            ),
            (
                json!({"messages": [{"role": "robot", "content": "x"}]}),
                "messages",
                "invalid_request",
            ),
            (json!({"messages": image}), "messages", "invalid_request"),
            (
                json!({"tools": [{"type": "retrieval"}]}),
                "tools",
                "invalid_request",
            ),
            (
                json!({"tool_choice": "required"}),
                "tool_choice",
                "unsupported",
            ),
            (
                json!({"response_format": {"type": "json_object"}}),
                "response_format",
                "unsupported",
            ),
        ] {
            let error = parse_with(more.clone()).unwrap_err();
            assert_eq!(
                (error.param.as_deref(), &*error.code),
                (Some(name), code),
                "{more}"
            );
        }
    }

    #[test]
    fn tools_reach_the_template_unless_the_client_wants_none() {
        let tools = json!([{"type": "function", "function": {"name": "f"}}]);
        assert_eq!(
            parse_with(json!({"tools": tools, "tool_choice": "auto"}))
                .unwrap()
                .1
                .len(),
            1
        );
        assert!(
            parse_with(json!({"tools": tools, "tool_choice": "none"}))
                .unwrap()
                .1
                .is_empty()
        );
        assert!(parse_with(json!({"response_format": {"type": "text"}})).is_ok());
    }
}
