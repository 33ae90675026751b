//! What a request means, and how it is refused.

use super::*;
use realm_engine::text::ChatMessage;
use serde_json::{Value, json};

fn parse(family: Family, more: &Value) -> ApiResult<GenerationRequest> {
    let mut body = match family {
        Family::Chat => json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]}),
        Family::Completion => json!({"model": "m", "prompt": "once"}),
    };
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    let text = body.to_string();
    let what = "the request body";
    GenerationRequest::parse(text.as_bytes(), what, family, Defaults::default())
}

fn messages(more: &Value) -> Vec<ChatMessage> {
    match parse(Family::Chat, more).unwrap().kind {
        RequestKind::Chat { messages, .. } => messages,
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_said_is_the_default() {
    let request = parse(
        Family::Chat,
        &json!({"temperature": null, "unknown": {"a": 1}}),
    )
    .unwrap();
    assert_eq!(request.policy, Policy::default());
    assert_eq!(
        (request.choices, request.stream, request.include_usage),
        (1, false, false)
    );
    let request = parse(Family::Completion, &json!({})).unwrap();
    assert_eq!(request.policy.max_tokens, Some(16), "as OpenAI has it");
    let defaults = Defaults {
        model: Some("first".to_owned()),
        stream: true,
    };
    let text = br#"{"prompt":"a","stream_options":{"include_usage":true}}"#;
    let request = GenerationRequest::parse(text, "params", Family::Completion, defaults).unwrap();
    assert_eq!(
        (&*request.model, request.stream, request.include_usage),
        ("first", true, true),
        "what is the default counts as said"
    );
}

#[test]
fn every_field_arrives() {
    let more = json!({
        "max_tokens": 5, "max_completion_tokens": 7, "temperature": 0, "top_p": 0.5, "top_k": 3, "min_p": 0.1,
        "n": 2, "seed": -1, "stop": "x", "presence_penalty": 1, "frequency_penalty": -1,
        "repetition_penalty": 1.5, "logit_bias": {"7": -100}, "stream": true,
        "stream_options": {"include_usage": true}, "logprobs": true, "top_logprobs": 3,
    });
    let request = parse(Family::Chat, &more).unwrap();
    let expected = Policy {
        max_tokens: Some(7),
        temperature: 0.0,
        top_p: 0.5,
        top_k: 3,
        min_p: 0.1,
        seed: Some(u64::MAX),
        stop: vec!["x".to_owned()],
        presence_penalty: 1.0,
        frequency_penalty: -1.0,
        repetition_penalty: 1.5,
        logit_bias: vec![(7, -100.0)],
        logprobs: Some(3),
        ..Policy::default()
    };
    assert_eq!(request.policy, expected);
    assert_eq!(
        (request.choices, request.stream, request.include_usage),
        (2, true, true)
    );
    let more = json!({"top_k": -1, "stop": ["a", "b"], "logprobs": 2, "seed": u64::MAX});
    let policy = parse(Family::Completion, &more).unwrap().policy;
    assert_eq!(
        (
            policy.top_k,
            policy.stop.len(),
            policy.logprobs,
            policy.seed
        ),
        (0, 2, Some(2), Some(u64::MAX))
    );
    let policy = parse(Family::Chat, &json!({"logprobs": true}))
        .unwrap()
        .policy;
    assert_eq!(policy.logprobs, Some(0));
}

#[test]
fn clients_write_the_same_in_many_ways() {
    let policy = |more: Value| parse(Family::Completion, &more).unwrap().policy;
    let plain = policy(json!({}));
    for nothing in [
        json!({"stop": ""}),
        json!({"stop": ["", null]}),
        json!({"stop": []}),
        json!({"logit_bias": {"7": null}}),
        json!({"stop_token_ids": []}),
        json!({"min_tokens": 0, "ignore_eos": false}),
    ] {
        assert_eq!(policy(nothing.clone()), plain, "{nothing}");
    }
    let full = policy(json!({
        "max_tokens": 6.0, "min_tokens": 2, "ignore_eos": true, "stop": ["", "a"], "stop_token_ids": [3, 5.0],
        "top_k": -1.0, "seed": 7.0, "top_p": 0,
    }));
    let expected = Policy {
        max_tokens: Some(6),
        min_tokens: 2,
        ignore_eos: true,
        stop: vec!["a".to_owned()],
        stop_token_ids: vec![3, 5],
        seed: Some(7),
        top_p: 0.0,
        ..plain
    };
    assert_eq!(full, expected);
    assert_eq!(full.validate(50), Ok(()));
    let (least, most) = (json!({"min_tokens": 20}), policy(json!({"min_tokens": 20})));
    assert_eq!(
        most.max_tokens,
        Some(20),
        "{least} is not refused for a default"
    );
    let both =
        json!({"n_predict": 3, "max_tokens": 4, "repeat_penalty": 2, "repetition_penalty": 3});
    let both = policy(both);
    assert_eq!((both.max_tokens, both.repetition_penalty), (Some(4), 3.0));
    let theirs = policy(json!({"n_predict": 3, "repeat_penalty": 2}));
    assert_eq!(
        (theirs.max_tokens, theirs.repetition_penalty),
        (Some(3), 2.0)
    );
}

#[test]
fn an_answer_without_tokens_is_for_those_who_ask_about_the_prompt() {
    let nothing = |family, more| parse(family, &more).unwrap();
    let request = nothing(
        Family::Completion,
        json!({"max_tokens": 0, "echo": true, "logprobs": 5}),
    );
    assert_eq!(request.policy.max_tokens, Some(0));
    assert_eq!(
        (request.policy.logprobs, request.prompt_logprobs),
        (Some(5), None)
    );
    let request = nothing(Family::Chat, json!({"max_tokens": 0, "prompt_logprobs": 0}));
    assert_eq!(request.policy.max_tokens, Some(0));
    assert_eq!(
        (request.policy.logprobs, request.prompt_logprobs),
        (None, Some(0))
    );
}

#[test]
fn a_bias_of_what_is_no_token_is_shown() {
    for (key, family) in [
        ("abc", Family::Chat),
        ("-1", Family::Completion),
        ("1.5", Family::Chat),
    ] {
        let error = parse(family, &json!({"logit_bias": {key: 1}})).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("logit_bias"));
        assert!(
            error.message.contains(&format!("{key:?}")),
            "{}",
            error.message
        );
    }
}

#[test]
fn messages_come_in_many_forms() {
    let messages = messages(&json!({"messages": [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b", "type": "text"}], "name": "Ada"},
        {"role": "assistant", "content": null,
         "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "content": "3", "tool_call_id": "1"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "I cannot"}, {"type": "text", "text": null}]},
    ]}));
    assert_eq!(messages[4].content, "I cannot");
    let role_and_content = |index: usize| {
        let message: &ChatMessage = &messages[index];
        (message.role.as_str(), message.content.as_str())
    };
    assert_eq!(role_and_content(0), ("system", "be brief"));
    assert_eq!(role_and_content(1), ("user", "ab"));
    assert_eq!(messages[1].name.as_deref(), Some("Ada"));
    assert_eq!(role_and_content(2), ("assistant", ""));
    assert_eq!(messages[2].tool_calls[0].name, "f");
    assert_eq!(messages[3].tool_call_id.as_deref(), Some("1"));
}

#[test]
fn a_prompt_is_text_or_token_ids() {
    let prompt = |value: Value| {
        let request = parse(Family::Completion, &json!({"prompt": value})).unwrap();
        match request.kind {
            RequestKind::Completion {
                prompt: Prompt::Text(text),
                ..
            } => (text, vec![]),
            RequestKind::Completion {
                prompt: Prompt::Tokens(tokens),
                ..
            } => (String::new(), tokens),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(prompt(json!("a")).0, "a");
    assert_eq!(prompt(json!(["a"])).0, "a");
    assert_eq!(prompt(json!([1, 2])).1, [1, 2]);
    assert_eq!(prompt(json!([[1, 2]])).1, [1, 2]);
}

#[test]
fn tools_reach_the_template_unless_the_client_wants_none() {
    let tools = |more: Value| match parse(Family::Chat, &more).unwrap().kind {
        RequestKind::Chat { tools, .. } => tools,
        other => panic!("{other:?}"),
    };
    let some = json!([{"type": "function", "function": {"name": "f", "parameters": {"a": [1]}}}]);
    let auto = tools(json!({"tools": some, "tool_choice": "auto"}));
    assert_eq!(json!(auto), some);
    assert!(tools(json!({"tools": some, "tool_choice": "none"})).is_empty());
    assert!(tools(json!({"tools": null})).is_empty());
}

/// A wrong field, the path it is named by, and the code.
fn refusals(family: Family, cases: &[(Value, &str, &str)]) {
    for (more, path, code) in cases {
        let error = parse(family, more).unwrap_err();
        assert_eq!(
            (error.param.as_deref(), &*error.code, error.status.as_u16()),
            (Some(*path), *code, 400),
            "{more}: {}",
            error.message
        );
        assert!(error.message.starts_with(path), "{}", error.message);
    }
}

const INVALID: &str = "invalid_request";
const UNSUPPORTED: &str = "unsupported";

#[test]
fn a_wrong_field_of_either_kind_is_named_by_its_path() {
    let biases = (0..=BIASES_MAX).map(|token| (token.to_string(), json!(1)));
    let biases: serde_json::Map<String, Value> = biases.collect();
    let cases = [
        (json!({"model": 1}), "model", INVALID),
        (json!({"max_tokens": -3}), "max_tokens", INVALID),
        (json!({"max_tokens": 0}), "max_tokens", INVALID),
        (
            json!({"max_completion_tokens": 0}),
            "max_completion_tokens",
            INVALID,
        ),
        (json!({"max_tokens": 1e40}), "max_tokens", INVALID),
        (json!({"max_tokens": 2.5}), "max_tokens", INVALID),
        (json!({"n_predict": -1}), "n_predict", INVALID),
        (json!({"min_tokens": -1}), "min_tokens", INVALID),
        (json!({"ignore_eos": 1}), "ignore_eos", INVALID),
        (
            json!({"stop_token_ids": [1, -2]}),
            "stop_token_ids[1]",
            INVALID,
        ),
        (
            json!({"stop_token_ids": vec![1; 1025]}),
            "stop_token_ids",
            INVALID,
        ),
        (json!({"temperature": "hot"}), "temperature", INVALID),
        (json!({"prompt_logprobs": 21}), "prompt_logprobs", INVALID),
        (
            json!({"prompt_logprobs": 1, "stream": true}),
            "prompt_logprobs",
            INVALID,
        ),
        (json!({"n": 0}), "n", INVALID),
        (json!({"n": 9}), "n", INVALID),
        (json!({"stop": [1]}), "stop[0]", INVALID),
        (json!({"stop": vec!["a"; STOPS_MAX + 1]}), "stop", INVALID),
        (json!({"seed": 1.5}), "seed", INVALID),
        (json!({"logit_bias": {"a": 1}}), "logit_bias", INVALID),
        (json!({"logit_bias": []}), "logit_bias", INVALID),
        (json!({"logit_bias": biases}), "logit_bias", INVALID),
        (json!({"stream": 1}), "stream", INVALID),
        (json!({"stream_options": {}}), "stream_options", INVALID),
        (
            json!({"stream": true, "stream_options": {"include_usage": 1}}),
            "stream_options.include_usage",
            INVALID,
        ),
        (
            json!({"stream": true, "stream_options": [true]}),
            "stream_options",
            INVALID,
        ),
        (json!({"top_k": -2}), "top_k", INVALID),
    ];
    refusals(Family::Chat, &cases);
    refusals(Family::Completion, &cases);
}

#[test]
fn a_wrong_field_of_a_message_is_named_by_its_path() {
    let cases = [
        (json!(1), ""),
        (json!(["user", "hi"]), ""),
        (json!({"role": "user"}), ".content"),
        (json!({"content": "x"}), ".role"),
        (json!({"role": "robot", "content": "x"}), ".role"),
        (json!({"role": ["user"], "content": "x"}), ".role"),
        (json!({"role": {"user": null}, "content": "x"}), ".role"),
        (
            json!({"role": "user", "content": [{"type": 5}]}),
            ".content[0].type",
        ),
        (json!({"role": "user", "content": 7}), ".content"),
        (
            json!({"role": "user", "content": [{"type": "image_url"}]}),
            ".content[0].type",
        ),
        (json!({"role": "user", "content": "x", "name": 1}), ".name"),
        (
            json!({"role": "assistant", "tool_calls": [{"id": "1"}]}),
            ".tool_calls[0].function",
        ),
        (
            json!({"role": "assistant", "tool_calls": [call("{}"), call(&many_values())]}),
            ".tool_calls[1].function.arguments",
        ),
    ];
    for (message, path) in cases {
        let messages = json!([{"role": "user", "content": "a"}, message]);
        let path = format!("messages[1]{path}");
        refusals(
            Family::Chat,
            &[(json!({"messages": messages}), &path, INVALID)],
        );
    }
}

/// JSON of more values than a chat may have.
fn many_values() -> String {
    format!("[{}]", "0,".repeat(40_000) + "0")
}

fn call(arguments: &str) -> Value {
    json!({"id": "1", "function": {"name": "f", "arguments": arguments}})
}

#[test]
fn a_wrong_field_of_a_chat_is_named_by_its_path() {
    let values: Value = serde_json::from_str(&many_values()).unwrap();
    let large = json!({"type": "function", "function": {"name": "f", "parameters": values}});
    let cases = [
        (json!({"messages": []}), "messages", INVALID),
        (json!({"messages": null}), "messages", INVALID),
        (json!({"messages": "hi"}), "messages", INVALID),
        (
            json!({"tools": [{"type": "retrieval"}]}),
            "tools[0].type",
            INVALID,
        ),
        (json!({"tools": [{"type": null}]}), "tools[0].type", INVALID),
        (
            json!({"tools": [{"type": "function"}]}),
            "tools[0].function",
            INVALID,
        ),
        (json!({"tools": [7]}), "tools[0]", INVALID),
        (json!({"tools": {}}), "tools", INVALID),
        (json!({"tools": [large]}), "tools[0]", INVALID),
        (
            json!({"tool_choice": "required"}),
            "tool_choice",
            UNSUPPORTED,
        ),
        (
            json!({"tool_choice": {"type": "function"}}),
            "tool_choice",
            UNSUPPORTED,
        ),
        (
            json!({"response_format": {"type": "json_object"}}),
            "response_format",
            UNSUPPORTED,
        ),
        (json!({"top_logprobs": 3}), "top_logprobs", INVALID),
        (
            json!({"logprobs": true, "top_logprobs": 100}),
            "top_logprobs",
            INVALID,
        ),
        (json!({"logprobs": 2}), "logprobs", INVALID),
    ];
    refusals(Family::Chat, &cases);
}

#[test]
fn a_wrong_field_of_a_completion_is_named_by_its_path() {
    let cases = [
        (json!({"prompt": ["a", "b"]}), "prompt", UNSUPPORTED),
        (json!({"prompt": []}), "prompt", INVALID),
        (json!({"prompt": ""}), "prompt", INVALID),
        (json!({"prompt": [1, -2]}), "prompt[1]", INVALID),
        (json!({"prompt": {}}), "prompt", INVALID),
        (json!({"suffix": "x"}), "suffix", UNSUPPORTED),
        (json!({"best_of": 3}), "best_of", UNSUPPORTED),
        (json!({"logprobs": 6}), "logprobs", INVALID),
    ];
    refusals(Family::Completion, &cases);
}

#[test]
fn text_that_can_never_fit_is_refused_by_its_length_whatever_field_it_is_in() {
    let check = |family, more: Value| refused_length(parse(family, &more).unwrap(), 10);
    let long = "x".repeat(41);
    let call = json!([call(&long)]);
    let spaces = format!("x{}", " ".repeat(100));
    for (message, fits) in [
        (json!({"role": "user", "content": "x".repeat(40)}), true),
        (json!({"role": "user", "content": spaces}), true),
        (json!({"role": "user", "content": long}), false),
        (json!({"role": "user", "content": "", "name": long}), false),
        (
            json!({"role": "tool", "content": "", "tool_call_id": long}),
            false,
        ),
        (json!({"role": "assistant", "tool_calls": call}), false),
    ] {
        let refused = check(Family::Chat, json!({"messages": [message]}));
        let expected = ("context_length_exceeded".to_owned(), "messages".to_owned());
        assert_eq!(refused, (!fits).then_some(expected), "{message}");
    }
    let prompt = |value: Value| check(Family::Completion, json!({"prompt": value})).is_none();
    assert!(prompt(json!("x".repeat(40))) && !prompt(json!(long)));
    assert!(prompt(json!(vec![1; 10])) && !prompt(json!(vec![1; 11])));
}

#[test]
fn a_token_that_the_model_does_not_have_is_named() {
    let check = |prompt: Value| {
        let request = parse(Family::Completion, &json!({"prompt": prompt})).unwrap();
        request.check_tokens(50).err().and_then(|error| error.param)
    };
    assert_eq!(check(json!([0, 49])), None);
    assert_eq!(check(json!([0, 49, 50])).as_deref(), Some("prompt[2]"));
    assert_eq!(check(json!("text")), None);
}

#[test]
fn tools_count_as_text_of_the_prompt() {
    let tool = json!({"type": "function", "function": {"name": "f"}});
    let bytes = tool.to_string().len();
    let check = |content: usize, tokens: usize| {
        let messages = json!([{"role": "user", "content": "x".repeat(content)}]);
        let request = parse(
            Family::Chat,
            &json!({"messages": messages, "tools": [tool]}),
        );
        refused_length(request.unwrap(), u32::try_from(tokens).unwrap()).map(|(_, param)| param)
    };
    // Of four bytes a token.
    let tokens = bytes.div_ceil(4) + 1;
    assert_eq!(check(4 * tokens - bytes, tokens), None, "all of it fits");
    assert_eq!(
        check(4 * tokens - bytes + 1, tokens).as_deref(),
        Some("messages")
    );
    assert_eq!(
        check(1, bytes / 4 - 1).as_deref(),
        Some("tools"),
        "without a message, too"
    );
}

/// The code and the field by which a request is refused where a prompt can have so many tokens, of four bytes each.
fn refused_length(request: GenerationRequest, tokens: u32) -> Option<(String, String)> {
    // And one for an answer.
    let error = request.check_length(tokens + 1, 4).err()?;
    let context = format!(
        "this model's maximum context length is {} tokens",
        tokens + 1
    );
    assert!(error.message.contains(&context), "{}", error.message);
    Some((error.code.into_owned(), error.param.unwrap()))
}

#[test]
fn what_a_request_holds_is_counted_in_every_field() {
    let held = |more: Value| parse(Family::Chat, &more).unwrap().heap_bytes();
    let text = "x".repeat(1000);
    let plain = held(json!({}));
    for more in [
        json!({"model": text}),
        json!({"stop": [text]}),
        json!({"messages": [{"role": "user", "content": text}]}),
        json!({"messages": [{"role": "user", "content": [{"type": "text", "text": text}]}]}),
        json!({"messages": [{"role": "user", "content": "", "name": text}]}),
        json!({"messages": [{"role": "tool", "content": "", "tool_call_id": text}]}),
        json!({"messages": [{"role": "assistant", "tool_calls": [{"id": text, "function": {"name": "", "arguments": ""}}]}]}),
        json!({"messages": [{"role": "assistant", "tool_calls": [{"id": "", "function": {"name": "", "arguments": text}}]}]}),
        json!({"messages": [{"role": "assistant", "tool_calls": [call("[[],[]]")]}]}),
        json!({"messages": vec![json!({"role": "user", "content": ""}); 20]}),
        json!({"tools": [{"type": "function", "function": {"name": text}}]}),
    ] {
        assert!(held(more.clone()) >= plain + 900, "{more}");
    }
}

#[test]
fn a_policy_that_the_engine_refuses_names_its_field() {
    for (family, change, path) in [
        (Family::Chat, json!({"temperature": -1}), "temperature"),
        (Family::Chat, json!({"stop": "x".repeat(300)}), "stop"),
        (
            Family::Chat,
            json!({"stop_token_ids": [50]}),
            "stop_token_ids",
        ),
        (
            Family::Chat,
            json!({"min_tokens": 3, "max_tokens": 2}),
            "min_tokens",
        ),
        (Family::Chat, json!({"logit_bias": {"99": 1}}), "logit_bias"),
        (Family::Completion, json!({"top_p": 1.5}), "top_p"),
        (Family::Completion, json!({"min_p": 2}), "min_p"),
    ] {
        let request = parse(family, &change).unwrap();
        let message = request.policy.validate(50).unwrap_err();
        let error = refused_policy(family, message);
        assert_eq!(error.param.as_deref(), Some(path), "{}", error.message);
    }
}
