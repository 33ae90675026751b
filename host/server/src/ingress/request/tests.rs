//! What a request means, and how it is refused.

use super::*;
use realm_engine::text::{Chat, ChatMessage, TextSource};
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

fn chat(more: &Value) -> Chat {
    match parse(Family::Chat, more).unwrap().kind {
        RequestKind::Chat(chat) => chat,
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
fn every_field_of_a_message_arrives_as_it_was_written() {
    let said = json!([
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b", "type": "text", "more": [1]}], "name": "Ada"},
        {"more": {"b": 1, "a": [null]}, "role": "assistant", "content": null, "reasoning_content": "hm",
         "tool_calls": [{"id": "1", "type": "function", "function": {"arguments": "{}", "name": "f"}, "index": 0}]},
        {"role": "tool", "content": "3", "tool_call_id": "1"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "I cannot"}, {"type": "text", "text": null}]},
        {"role": "assistant", "refusal": "no"},
        {"role": "ipython", "content": ""},
    ]);
    let messages = chat(&json!({"messages": said})).messages;
    // As text, because that keeps the order of the fields.
    let arrived: Vec<_> = messages
        .iter()
        .map(|message| json!(message.fields()))
        .collect();
    assert_eq!(json!(arrived).to_string(), said.to_string());
    assert_eq!(messages[1].texts().collect::<String>(), "ab");
    let nulls = json!([{"role": "assistant", "content": null, "name": null, "tool_calls": null, "refusal": null}]);
    assert_eq!(
        chat(&json!({"messages": nulls})).messages,
        [ChatMessage::new("assistant", ())],
        "null is nothing, but for a content"
    );
}

/// A model of single bytes with this chat template.
fn model(template: &str) -> TextModel {
    let mut tokens: Vec<String> = (0..=255_u8).map(|byte| format!("<0x{byte:02X}>")).collect();
    tokens.extend(["<s>", "</s>"].map(str::to_owned));
    let source = TextSource {
        model: "llama".to_owned(),
        scores: vec![0.0; tokens.len()],
        token_types: [vec![6; 256], vec![3; 2]].concat(),
        tokens,
        bos: Some(256),
        eos: Some(257),
        chat_template: Some(template.to_owned()),
        ..TextSource::default()
    };
    TextModel::new(source).unwrap()
}

/// The prompt, or the field that is refused and why.
fn prompt(template: &str, more: &Value) -> Result<String, (String, String)> {
    let refused = |error: ApiError| (error.param.unwrap_or_default(), error.message);
    let request = parse(Family::Chat, more).map_err(refused)?;
    let model = model(template);
    request.check_chat(&model).map_err(refused)?;
    let RequestKind::Chat(chat) = request.kind else {
        panic!("{more}");
    };
    model
        .render_chat(&chat)
        .map_err(|error| (String::new(), error.to_string()))
}

#[test]
fn prompts_are_those_of_transformers() {
    let cases: Value = serde_json::from_str(include_str!("templates.json")).unwrap();
    let cases = cases.as_array().unwrap();
    assert_eq!(cases.len(), 13);
    for case in cases {
        let prompt = prompt(case["template"].as_str().unwrap(), &case["request"]);
        let expected = case["prompt"].as_str().unwrap().to_owned();
        assert_eq!(prompt, Ok(expected), "{}", case["name"]);
    }
}

/// Prints all messages, and calls and tools.
const ALL: &str = "{% for t in tools or [] %}T{{ t.function.name }}{% endfor %}{% for m in messages %}<{{ m.role }}>{{ m.content or '' }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
/// Prints what users and assistants say.
const TURNS: &str = "{% for m in messages %}{% if m.role in ['user', 'assistant'] %}<{{ m.role }}>{{ m.content | trim }}.{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
/// Knows no system role, and says so.
const RAISES: &str = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}";

#[test]
fn what_a_template_has_no_place_for_is_refused_by_its_name() {
    let user = json!({"role": "user", "content": "u"});
    let tool = json!([{"type": "function", "function": {"name": "f"}}]);
    let calls = json!({"role": "assistant", "content": null, "tool_calls": [call("{\"a\": 1}")]});
    let result = json!({"role": "tool", "content": "r", "tool_call_id": "1"});
    for (template, request, expected) in [
        (ALL, json!({"tools": tool}), Ok("Tf<user>hi<assistant>")),
        (TURNS, json!({"tools": tool}), Err("tools")),
        (
            TURNS,
            json!({"tools": tool, "tool_choice": "none"}),
            Ok("<user>hi.<assistant>"),
        ),
        (
            ALL,
            json!({"messages": [user, calls, result], "add_generation_prompt": false}),
            Ok("<user>u<assistant>{\"name\": \"f\", \"arguments\": {\"a\": 1}}<tool>r"),
        ),
        (
            TURNS,
            json!({"messages": [user, calls]}),
            Err("messages[1].tool_calls"),
        ),
        (
            TURNS,
            json!({"messages": [user, result]}),
            Err("messages[1].role"),
        ),
        (
            TURNS,
            json!({"messages": [{"role": "system", "content": "s"}, user]}),
            Err("messages[0].role"),
        ),
        (
            TURNS,
            json!({"messages": [{"role": "developer", "content": "s"}, user]}),
            Err("messages[0].role"),
        ),
        (
            TURNS,
            json!({"messages": [{"role": "robot", "content": "s"}, user]}),
            Err("messages[0].role"),
        ),
        (
            ALL,
            json!({"messages": [{"role": "robot", "content": "s"}]}),
            Ok("<robot>s<assistant>"),
        ),
        (
            ALL,
            json!({"messages": [{"role": "developer", "content": "s"}]}),
            Ok("<developer>s<assistant>"),
        ),
        (ALL, json!({"documents": [{"text": "d"}]}), Err("documents")),
        (ALL, json!({"documents": []}), Ok("<user>hi<assistant>")),
        (
            "{% for d in documents or [] %}{{ d.title }}: {{ d.text }};{% endfor %}",
            json!({"documents": [{"title": "a", "text": "b"}, {"title": "c", "text": "d"}]}),
            Ok("a: b;c: d;"),
        ),
        (
            ALL,
            json!({"messages": [{"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}]}),
            Err("messages[0].function_call"),
        ),
    ] {
        let found = prompt(template, &request);
        if let Err((param, message)) = &found {
            assert!(message.starts_with(&format!("{param}: ")), "{message}");
        }
        let found = found.as_deref().map_err(|(param, _)| param.as_str());
        assert_eq!(found, expected, "{request}");
    }
    let system = json!({"messages": [{"role": "system", "content": "s"}, user]});
    let raised = prompt(RAISES, &system).unwrap_err().1;
    assert!(raised.ends_with("no system here"), "{raised}");
}

#[test]
fn a_prompt_ends_where_the_client_wants_it() {
    let said = |last: Value| json!({"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": last}]});
    let with = |mut request: Value, name: &str, on: bool| {
        request[name] = json!(on);
        request
    };
    let goes_on = |last: Value| with(said(last), "continue_final_message", true);
    let parts = json!([{"type": "text", "text": "one"}, {"type": "text", "text": " two "}]);
    for (template, request, expected) in [
        (
            ALL,
            said(json!("Once ")),
            Ok("<user>u<assistant>Once <assistant>"),
        ),
        (
            ALL,
            with(said(json!("Once ")), "add_generation_prompt", false),
            Ok("<user>u<assistant>Once "),
        ),
        (
            TURNS,
            with(said(json!("a")), "add_generation_prompt", false),
            Ok("<user>u.<assistant>a."),
        ),
        (ALL, goes_on(json!("Once ")), Ok("<user>u<assistant>Once ")),
        // The template trims it, and writes a full stop that is not to be there.
        (
            TURNS,
            goes_on(json!(" Once ")),
            Ok("<user>u.<assistant>Once"),
        ),
        (
            TURNS,
            with(goes_on(json!("a")), "add_generation_prompt", false),
            Ok("<user>u.<assistant>a"),
        ),
        (ALL, goes_on(parts), Ok("<user>u<assistant>one two ")),
        (ALL, goes_on(json!("")), Err("messages[1].content")),
        (ALL, goes_on(Value::Null), Err("messages[1].content")),
        (
            ALL,
            with(goes_on(json!("a")), "add_generation_prompt", true),
            Err("continue_final_message"),
        ),
        ("{{ messages[0].content }}", goes_on(json!("a")), Err("")),
    ] {
        let found = prompt(template, &request);
        let found = found.as_deref().map_err(|(param, _)| param.as_str());
        assert_eq!(found, expected, "{request}");
    }
}

#[test]
fn a_template_is_given_what_it_copes_with_where_nothing_is_said() {
    let printed = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
    let raising = "{% for m in messages %}{% if m.content is none %}{{ raise_exception('none') }}{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}";
    let told = "{% for m in messages %}<{{ m.role }}>{{ 'null' if m.content is none else m.content }}{% endfor %}";
    let user = json!({"role": "user", "content": "u"});
    for (template, assistant, expected) in [
        (
            printed,
            json!({"role": "assistant", "content": null}),
            "<user>u<assistant><user>u",
        ),
        (
            printed,
            json!({"role": "assistant"}),
            "<user>u<assistant><user>u",
        ),
        (
            raising,
            json!({"role": "assistant", "content": null}),
            "<user>u<assistant><user>u",
        ),
        (
            told,
            json!({"role": "assistant", "content": null}),
            "<user>u<assistant>null<user>u",
        ),
        (
            told,
            json!({"role": "assistant", "content": ""}),
            "<user>u<assistant><user>u",
        ),
    ] {
        let request = json!({"messages": [user, assistant, user]});
        assert_eq!(
            prompt(template, &request).as_deref(),
            Ok(expected),
            "{request}"
        );
    }
}

#[test]
fn a_refusal_is_not_lost_where_a_template_walks_texts() {
    let texts = "{% for m in messages %}<{{ m.role }}>{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}{% endfor %}";
    let refusal = json!([{"type": "refusal", "refusal": "I cannot"}]);
    let messages =
        json!([{"role": "user", "content": "u"}, {"role": "assistant", "content": refusal}]);
    let request = json!({"messages": messages});
    assert_eq!(
        prompt(texts, &request).as_deref(),
        Ok("<user>u<assistant>I cannot")
    );
    assert_eq!(
        prompt(ALL, &request).as_deref(),
        Ok("<user>u<assistant>I cannot<assistant>")
    );
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
    let tools = |more: Value| chat(&more).tools;
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
        (
            json!({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}),
            ".content[0].type",
        ),
        (
            json!({"role": "user", "content": "x", "more": vec![0; 16_384 * 8]}),
            "",
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
            json!({"chat_template_kwargs": 3}),
            "chat_template_kwargs",
            INVALID,
        ),
        (
            json!({"chat_template_kwargs": {"a": 1, "bos_token": ""}}),
            "chat_template_kwargs.bos_token",
            INVALID,
        ),
        (
            json!({"chat_template_kwargs": {"a": values}}),
            "chat_template_kwargs",
            INVALID,
        ),
        (json!({"documents": {}}), "documents", INVALID),
        (json!({"documents": [{}, "a"]}), "documents[1]", INVALID),
        (
            json!({"add_generation_prompt": 1}),
            "add_generation_prompt",
            INVALID,
        ),
        (
            json!({"continue_final_message": "a"}),
            "continue_final_message",
            INVALID,
        ),
        (
            json!({"chat_template": "{{ messages }}"}),
            "chat_template",
            UNSUPPORTED,
        ),
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
        json!({"messages": [{"role": "user", "content": "", "more": [text]}]}),
        json!({"chat_template_kwargs": {"a": text}}),
        json!({"documents": [{"a": text}]}),
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
