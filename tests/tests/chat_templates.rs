//! Chat templates: of a model's file, of the settings, and as `realm model render` shows them.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use realm_tests::paths;
use realm_tests::server::{DataDir, MODEL, Server, chat_body, command};
use serde_json::{Value, json};
use std::io::Write;
use std::process::{Output, Stdio};

/// `realm model render` of the small model with these flags, and these requests one a line.
fn render(flags: &[&str], requests: &[&str]) -> Result<Output> {
    let mut child = command()?
        .args(["model", "render", "--model"])
        .arg(paths::model(paths::SMOLLM2)?)
        .args(flags)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("standard input")?;
    // A program that refuses its arguments reads nothing.
    let _ = stdin.write_all(requests.join("\n").as_bytes());
    drop(stdin);
    Ok(child.wait_with_output()?)
}

#[test]
fn model_render_prints_one_line_for_each_request() -> Result<()> {
    let requests = [
        r#"{"messages": [{"role": "user", "content": "hi"}]}"#,
        "",
        r#"{"model": "any", "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}"#,
        r#"{"messages": []}"#,
        "no JSON",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"a\u{2028}b\u{85}c\"}]}",
    ];
    let output = render(&[], &requests)?;
    ensure!(output.status.success(), "{output:?}");
    let printed = String::from_utf8(output.stdout)?;
    let lines: Vec<Value> = printed
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let prompt = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";
    let ok = json!({ "ok": prompt });
    ensure!(
        lines.len() == 5 && lines[..2] == [ok.clone(), ok],
        "{lines:?}"
    );
    let why = |line: &Value| line["err"].as_str().unwrap_or_default().to_owned();
    ensure!(
        why(&lines[2]).contains("messages: must not be empty"),
        "{lines:?}"
    );
    ensure!(why(&lines[3]).contains("JSON"), "{lines:?}");
    // Python's `splitlines` and others would take these for ends of lines.
    let kept = lines[4]["ok"].as_str().unwrap_or_default();
    ensure!(kept.contains("a\u{2028}b\u{85}c"), "{lines:?}");
    ensure!(!printed.contains(['\u{2028}', '\u{85}']), "{printed}");

    let named = render(&["--chat-template", "llama3"], &requests[..1])?;
    let expected = json!({"ok": "<|im_start|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"});
    ensure!(
        serde_json::from_slice::<Value>(&named.stdout)? == expected,
        "{named:?}"
    );

    let unknown = render(&["--chat-template", "nobody"], &requests[..1])?;
    let said = String::from_utf8_lossy(&unknown.stderr);
    ensure!(
        unknown.status.code() == Some(1) && unknown.stdout.is_empty(),
        "{said}"
    );
    ensure!(said.contains("nobody") && said.contains("chatml"), "{said}");
    Ok(())
}

#[test]
fn a_file_with_a_broken_template_serves_completions_and_says_why_it_refuses_chats() -> Result<()> {
    let data = DataDir::new()?;
    let mut bytes = std::fs::read(paths::model(paths::SMOLLM2)?)?;
    let tag = b"{% for message in messages %}";
    let at = bytes.windows(tag.len()).position(|window| window == tag);
    let at = at.context("the template of the model")?;
    bytes[at..at + tag.len()].copy_from_slice(b"{% fox message in messages %}");
    let path = data.path().join("broken.gguf");
    std::fs::write(&path, bytes)?;
    let server = Server::start_with(data, &["--model", path.to_str().context("UTF-8")?])?;
    let http = server.tenant("acme")?.http;
    let completion = json!({"model": MODEL, "prompt": "One, two,", "max_tokens": 2});
    http.post("/v1/completions", &completion)?.ok()?;
    let refused = http.post("/v1/chat/completions", &chat_body(MODEL, "Hello", 2))?;
    let message = refused.json()["error"]["message"].to_string();
    ensure!(refused.status == 400, "{message}");
    ensure!(
        message.contains("the chat template is not valid") && message.contains("fox"),
        "{message}"
    );
    Ok(())
}

#[test]
fn a_template_of_the_settings_is_used_and_its_words_keep_their_lines() -> Result<()> {
    let data = DataDir::new()?;
    let path = data.path().join("own.jinja");
    std::fs::write(&path, r"{{ raise_exception('first line\nsecond line') }}")?;
    let path = path.to_str().context("UTF-8")?.to_owned();
    let server = Server::start_with(data, &["--chat-template", &path])?;
    let http = server.tenant("acme")?.http;
    let refused = http.post("/v1/chat/completions", &chat_body(MODEL, "Hello", 2))?;
    let error = refused.json()["error"].clone();
    let message = error["message"].as_str().unwrap_or_default();
    ensure!(refused.status == 400, "{error}");
    ensure!(message.ends_with("first line\nsecond line"), "{error}");
    Ok(())
}

#[test]
fn a_broken_template_of_the_settings_is_an_error_of_the_operator() -> Result<()> {
    let data = DataDir::new()?;
    let path = data.path().join("own.jinja");
    std::fs::write(&path, "{% if %}")?;
    let refused = render(&["--chat-template", path.to_str().context("UTF-8")?], &[])?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(refused.status.code() == Some(1), "{said}");
    ensure!(said.contains("the chat template is not valid"), "{said}");
    Ok(())
}
