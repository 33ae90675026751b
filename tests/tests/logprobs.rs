//! Log-probabilities of answers and of prompts, as real clients get them: values against those of single steps, places in
//! the text, names, and what they cost.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use realm_tests::paths::{guest, repository};
use realm_tests::server::{MODEL, Server, Tenant};
use realm_tests::socket::Socket;
use serde_json::{Value, json};

/// The token with which the model ends its turn.
const END: u32 = 2;
/// "Crabs 🦀 and é" in the model's tokens: the third to the fifth have the crab, a space in front of it, and the sixth is a word.
const CRABS: &str = "Crabs 🦀 and é";
/// Its first token, "Cra".
const FIRST: u64 = 27_485;

fn with(mut body: Value, more: &Value) -> Value {
    for (name, value) in more.as_object().into_iter().flatten() {
        body[name] = value.clone();
    }
    body
}

/// A greedy completion's answer.
fn complete(tenant: &Tenant, more: &Value) -> Result<Value> {
    let body = with(json!({"model": MODEL, "temperature": 0}), more);
    let reply = tenant.http.post("/v1/completions", &body)?;
    reply.ok().with_context(|| body.to_string())
}

fn list<'a>(value: &'a Value, of: &str) -> Result<&'a Vec<Value>> {
    value.as_array().with_context(|| format!("{of}: {value}"))
}

/// Ids of a prompt's tokens but the first, by `prompt_logprobs` without alternatives.
fn tokens_after_the_first(tenant: &Tenant, prompt: &str) -> Result<Vec<u64>> {
    let answer = complete(
        tenant,
        &json!({"prompt": prompt, "max_tokens": 0, "prompt_logprobs": 0}),
    )?;
    let scored = list(&answer["choices"][0]["prompt_logprobs"], "a list")?;
    let id = |entry: &Value| {
        let (id, _) = entry.as_object()?.iter().next()?;
        id.parse().ok()
    };
    let ids = scored.iter().skip(1).map(id);
    ids.collect::<Option<Vec<u64>>>().context("ids")
}

/// Some words, some of them in parts of characters, of `length` tokens.
fn prompt_of(tenant: &Tenant, length: usize) -> Result<Vec<u64>> {
    let words = "In a village by the sea 🦀 the fishermen of 日本 said: é, ü and 42 boats. ";
    let mut tokens = vec![FIRST];
    tokens.extend(tokens_after_the_first(tenant, words)?);
    Ok(tokens.into_iter().cycle().take(length).collect())
}

#[test]
fn a_prompts_tokens_are_as_likely_as_single_steps_find_them() -> Result<()> {
    let server = Server::start()?;
    let tenant = server.tenant("acme")?;
    let prompt = prompt_of(&tenant, 40)?;
    let ask = json!({"prompt": prompt, "max_tokens": 0, "echo": true, "logprobs": 5, "prompt_logprobs": 20});
    let answer = complete(&tenant, &ask)?;
    let choice = &answer["choices"][0];
    let (legacy, scored) = (&choice["logprobs"], &choice["prompt_logprobs"]);
    ensure!(answer["usage"]["prompt_tokens"] == 40, "{answer}");
    ensure!(answer["usage"]["completion_tokens"] == 0, "{answer}");
    ensure!(list(scored, "prompt_logprobs")?.len() == 40);
    ensure!(legacy["token_logprobs"][0].is_null() && scored[0].is_null());
    for place in 1..prompt.len() {
        // What comes after the tokens before it: by a bias the token itself, with the value that the model gives it.
        let step = json!({
            "prompt": prompt[..place], "max_tokens": 1, "logprobs": 5, "ignore_eos": true,
            "logit_bias": {prompt[place].to_string(): 100},
        });
        let step = complete(&tenant, &step)?;
        let step = &step["choices"][0]["logprobs"];
        for field in ["tokens", "token_logprobs", "top_logprobs"] {
            let (scored, made) = (&legacy[field][place], &step[field][0]);
            ensure!(scored == made, "{field} of {place}: {scored}, not {made}");
        }
        let own = &scored[place][prompt[place].to_string()];
        ensure!(
            own["logprob"] == step["token_logprobs"][0],
            "{place}: {own}"
        );
        // Twenty of them, likeliest first, and the token itself where it is none of them.
        let entries = scored[place].as_object().context("an object")?;
        let mut ranks: Vec<u64> = entries
            .values()
            .filter_map(|it| it["rank"].as_u64())
            .collect();
        ranks.sort_unstable();
        ensure!(ranks[..20] == (1..=20).collect::<Vec<u64>>(), "{ranks:?}");
        ensure!(ranks.len() == 20 + usize::from(own["rank"].as_u64() > Some(20)));
    }
    server.until_idle()
}

#[test]
fn a_text_is_as_likely_as_float32_makes_it() -> Result<()> {
    let golden = std::fs::read_to_string(repository().join("tests/fixtures/golden/smollm2.json"))?;
    let golden: Value = serde_json::from_str(&golden)?;
    let golden = &golden["score"];
    let server = Server::start()?;
    let tenant = server.tenant("acme")?;
    let text = golden["text"].as_str().context("a text")?;
    let ids = list(&golden["ids"], "ids")?.iter().skip(1);
    let ids: Vec<u64> = ids.filter_map(Value::as_u64).collect();
    ensure!(
        tokens_after_the_first(&tenant, text)? == ids,
        "other tokens"
    );
    let ask = json!({"prompt": text, "max_tokens": 0, "echo": true, "logprobs": 0});
    let answer = complete(&tenant, &ask)?;
    let choice = whole(&answer)?.remove(0);
    follows_its_text(&choice)?;
    ensure!(choice["text"] == text);
    let numbers = |list: &[Value]| list.iter().filter_map(Value::as_f64).collect::<Vec<f64>>();
    let expected = numbers(list(&golden["nll_per_token"], "numbers")?);
    let found = numbers(&list(&choice["logprobs"]["token_logprobs"], "numbers")?[1..]);
    ensure!(found.len() == expected.len() && found.len() == ids.len());
    let off = found
        .iter()
        .zip(&expected)
        .map(|(found, expected)| -found - expected);
    let (sum, squares) = off.fold((0.0, 0.0), |(sum, squares), off| {
        (sum + off, squares + off * off)
    });
    let (mean, rms) = (
        sum / found.len() as f64,
        (squares / found.len() as f64).sqrt(),
    );
    // What rounding may do to this file, by the fixtures' own page, and far less than a neighbour's logits would.
    ensure!(mean.abs() < 0.02 && rms < 0.2, "off by {mean}, rms {rms}");
    server.until_idle()
}

#[test]
fn a_workflow_gives_them_as_the_model_does_or_says_that_it_cannot() -> Result<()> {
    let server = Server::start()?;
    let tenant = server.tenant("acme")?;
    server.deploy("acme", "likeliest", &guest("best_of_n")?)?;
    server.deploy("acme", "echo", &guest("echo")?)?;
    let ask = |model: &str| {
        json!({
            "model": model, "prompt": CRABS, "echo": true, "logprobs": 2, "max_tokens": 4, "prompt_logprobs": 1, "seed": 1,
        })
    };
    let prompt = &complete(&tenant, &ask(MODEL))?["choices"][0];
    let choice = &complete(&tenant, &ask("likeliest"))?["choices"][0];
    follows_its_text(choice)?;
    ensure!(
        choice["prompt_logprobs"] == prompt["prompt_logprobs"],
        "{choice}"
    );
    for field in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        let (found, expected) = (&choice["logprobs"][field], &prompt["logprobs"][field]);
        let (found, expected) = (list(found, field)?, list(expected, field)?);
        ensure!(
            found.len() == 11 && found[..7] == expected[..7],
            "{field}: {choice}"
        );
    }
    let messages = json!([{"role": "user", "content": "hi"}]);
    let chat = json!({"model": "echo", "messages": messages, "prompt_logprobs": 1});
    let refused = tenant.http.post("/v1/chat/completions", &chat)?;
    ensure!(
        refused.status == 400 && refused.error_code() == "unsupported",
        "{}",
        refused.text
    );
    let chat = with(chat, &json!({"prompt_logprobs": null}));
    ensure!(tenant.http.post("/v1/chat/completions", &chat)?.status == 200);
    server.until_idle()
}

#[test]
fn a_prompt_of_many_steps_is_scored_the_same_beside_others_and_again() -> Result<()> {
    let server = Server::start()?;
    let tenant = server.tenant("acme")?;
    let prompt = prompt_of(&tenant, 1500)?;
    let ask = |length: usize| -> Result<Vec<Value>> {
        let ask = json!({"prompt": prompt[..length], "max_tokens": 0, "prompt_logprobs": 1});
        let answer = complete(&tenant, &ask)?;
        let scored = list(&answer["choices"][0]["prompt_logprobs"], "a list")?.clone();
        ensure!(scored.len() == length, "{} of {length}", scored.len());
        Ok(scored)
    };
    let alone = ask(1500)?;
    ensure!(ask(333)? == alone[..333], "a part is as the whole");
    let other = server.tenant("other")?;
    let endless = json!({"model": MODEL, "prompt": "Once", "max_tokens": 4000, "ignore_eos": true, "stream": true});
    let mut stream = other.http.stream("/v1/completions", &endless)?;
    stream.next().context("the stream has begun")??;
    let beside = ask(1500)?;
    stream.next().context("the stream goes on")??;
    drop(stream);
    ensure!(beside == alone, "what else is computed changes nothing");
    server.until_idle()
}

/// The log-probabilities of each choice, joined from the pieces of a stream, and its text.
fn joined(pieces: impl Iterator<Item = Result<Value>>, choices: usize) -> Result<Vec<Value>> {
    let mut all = vec![json!({"text": "", "logprobs": {}}); choices];
    for piece in pieces {
        let piece = piece?;
        let Some(index) = piece["index"].as_u64() else {
            continue;
        };
        let whole = &mut all[index as usize];
        let text = piece["text"]
            .as_str()
            .or(piece["delta"]["content"].as_str());
        let so_far = whole["text"].as_str().unwrap_or_default().to_owned();
        whole["text"] = json!(so_far + text.unwrap_or_default());
        for (field, values) in piece["logprobs"].as_object().into_iter().flatten() {
            let values = values.as_array().cloned().unwrap_or_default();
            match whole["logprobs"]
                .get_mut(field)
                .and_then(Value::as_array_mut)
            {
                Some(list) => list.extend(values),
                None => whole["logprobs"][field] = json!(values),
            }
        }
    }
    Ok(all)
}

/// Text and log-probabilities of each choice of a whole answer.
fn whole(answer: &Value) -> Result<Vec<Value>> {
    let choice = |choice: &Value| {
        let text = choice["text"]
            .as_str()
            .or(choice["message"]["content"].as_str());
        let mut logprobs = choice["logprobs"].clone();
        if logprobs["refusal"].is_null() && logprobs.get("refusal").is_some() {
            logprobs["refusal"] = json!([]);
        }
        json!({"text": text, "logprobs": logprobs})
    };
    Ok(list(&answer["choices"], "choices")?
        .iter()
        .map(choice)
        .collect())
}

/// Every token begins where `text_offset` says; those that are parts of a character where that begins.
fn follows_its_text(choice: &Value) -> Result<()> {
    let text: Vec<char> = choice["text"].as_str().context("a text")?.chars().collect();
    let logprobs = &choice["logprobs"];
    let mut last = 0;
    for (token, offset) in list(&logprobs["tokens"], "tokens")?
        .iter()
        .zip(list(&logprobs["text_offset"], "text_offset")?)
    {
        let (token, offset) = (
            token.as_str().context("a name")?,
            offset.as_u64().context("a number")? as usize,
        );
        ensure!(
            last <= offset && offset <= text.len(),
            "{token} at {offset}: {choice}"
        );
        last = offset;
        let is_text = !token.starts_with("bytes:") && !token.starts_with("<|");
        let rest = text[offset..].iter().collect::<String>();
        ensure!(
            !is_text || rest.starts_with(token),
            "{token} at {offset}: {choice}"
        );
    }
    Ok(())
}

/// Requests whose answers have parts of characters, several choices, an end at once, and a stop string.
fn asked() -> Vec<Value> {
    vec![
        json!({"prompt": CRABS, "echo": true, "logprobs": 3, "max_tokens": 8}),
        json!({"prompt": CRABS, "echo": true, "logprobs": 0, "max_tokens": 0}),
        json!({"prompt": CRABS, "echo": true, "logprobs": 2, "max_tokens": 12, "n": 3, "temperature": 3, "seed": 5}),
        json!({"prompt": "日本", "logprobs": 5, "max_tokens": 24, "n": 2, "temperature": 2, "seed": 1}),
        json!({"prompt": "Once upon a time", "logprobs": 1, "max_tokens": 20, "stop": ["village", "a small"]}),
        json!({"prompt": "Once", "logprobs": 4, "max_tokens": 3, "logit_bias": {END.to_string(): 100}}),
        json!({"prompt": "A ".repeat(400), "echo": true, "logprobs": 1, "max_tokens": 3}),
    ]
}

#[test]
fn a_stream_says_the_same_of_its_tokens_as_a_whole_answer() -> Result<()> {
    let server = Server::start()?;
    let tenant = server.tenant("acme")?;
    for more in asked() {
        let answer = complete(&tenant, &more)?;
        let expected = whole(&answer)?;
        for choice in &expected {
            follows_its_text(choice)?;
        }
        let body = with(
            json!({"model": MODEL, "temperature": 0, "stream": true}),
            &more,
        );
        let chunks = tenant.http.stream("/v1/completions", &body)?;
        let pieces = chunks.map(|chunk| chunk.map(|chunk| chunk["choices"][0].clone()));
        let streamed = joined(pieces, expected.len())?;
        ensure!(
            streamed == expected,
            "{more}: {streamed:?} streamed, {expected:?} whole"
        );
    }
    let body = json!({
        "model": MODEL, "messages": [{"role": "user", "content": "Say crab in emoji: 🦀"}], "temperature": 2, "seed": 3,
        "max_tokens": 24, "logprobs": true, "top_logprobs": 4,
    });
    let answer = tenant.http.post("/v1/chat/completions", &body)?.ok()?;
    let body = with(body, &json!({"stream": true}));
    let chunks = tenant.http.stream("/v1/chat/completions", &body)?;
    let pieces = chunks.map(|chunk| chunk.map(|chunk| chunk["choices"][0].clone()));
    let (streamed, expected) = (joined(pieces, 1)?, whole(&answer)?);
    ensure!(
        streamed == expected,
        "{streamed:?} streamed, {expected:?} whole"
    );
    server.until_idle()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_says_the_same_of_its_tokens_as_http() -> Result<()> {
    let server = Server::start()?;
    let tenant = server.tenant("acme")?;
    let mut socket = Socket::connect(server.url(), Some(&tenant.key)).await?;
    for more in asked() {
        let expected = whole(&complete(&tenant, &more)?)?;
        let params = with(json!({"temperature": 0}), &more);
        let call = json!({"id": 1, "function": "generate", "params": params});
        socket.send(&call).await?;
        let mut pieces = Vec::new();
        loop {
            let mut frame = socket.frame().await?;
            if frame["status"] != "streaming" {
                ensure!(frame["status"] == "complete", "{frame}");
                break;
            }
            let data = &mut frame["data"];
            data["index"] = data["choice"].take();
            pieces.push(Ok(data.take()));
        }
        let streamed = joined(pieces.into_iter(), expected.len())?;
        ensure!(
            streamed == expected,
            "{more}: {streamed:?} on /ws, {expected:?} over HTTP"
        );
        let params = with(params, &json!({"stream": false, "prompt_logprobs": 2}));
        let frame = socket.call("2", "generate", params).await?;
        ensure!(whole(&frame["data"])? == expected, "{more}: {frame}");
        let http = complete(&tenant, &with(more, &json!({"prompt_logprobs": 2})))?;
        let scored = &http["choices"][0]["prompt_logprobs"];
        ensure!(frame["data"]["prompt_logprobs"] == *scored && scored[0].is_null());
    }
    Ok(())
}

#[test]
fn parts_of_a_character_have_names_and_places_of_their_own() -> Result<()> {
    let server = Server::start()?;
    let tenant = server.tenant("acme")?;
    let answer = complete(
        &tenant,
        &json!({"prompt": CRABS, "echo": true, "logprobs": 0, "max_tokens": 0}),
    )?;
    let choice = &answer["choices"][0];
    ensure!(
        choice["text"] == CRABS && choice["finish_reason"] == "length",
        "{choice}"
    );
    let logprobs = &choice["logprobs"];
    let names = json!([
        "Cra",
        "bs",
        "bytes: \\xf0\\x9f",
        "bytes:\\xa6",
        "bytes:\\x80",
        " and",
        " é"
    ]);
    ensure!(logprobs["tokens"] == names, "{logprobs}");
    ensure!(
        logprobs["text_offset"] == json!([0, 3, 5, 6, 6, 7, 11]),
        "{logprobs}"
    );
    // A token that is never more than the beginning of a character: a space and what stands for the rest of it.
    let ids = tokens_after_the_first(&tenant, CRABS)?;
    let forced = |token: u64| {
        let bias = json!({token.to_string(): 100});
        complete(
            &tenant,
            &json!({"prompt": "a", "logprobs": 5, "max_tokens": 4, "logit_bias": bias}),
        )
    };
    let begins = forced(ids[1])?;
    ensure!(
        begins["choices"][0]["text"] == " \u{fffd} \u{fffd} \u{fffd} \u{fffd}",
        "{begins}"
    );
    let logprobs = &begins["choices"][0]["logprobs"];
    ensure!(logprobs["text_offset"] == json!([0, 2, 4, 6]), "{logprobs}");
    let ends = forced(ids[2])?;
    ensure!(ends["choices"][0]["text"] == "\u{fffd}".repeat(4), "{ends}");
    let logprobs = &ends["choices"][0]["logprobs"];
    ensure!(logprobs["text_offset"] == json!([0, 1, 2, 3]), "{logprobs}");
    // After the beginning of a character its ends are likely, each by its own name.
    let last = &begins["choices"][0]["logprobs"]["top_logprobs"][3];
    let names: Vec<&String> = last.as_object().context("an object")?.keys().collect();
    let parts = names.iter().filter(|name| name.starts_with("bytes:\\x"));
    ensure!(names.len() == 5 && parts.count() > 1, "{names:?}");
    let messages = json!([{"role": "user", "content": "a"}]);
    let body = json!({
        "model": MODEL, "messages": messages, "logprobs": true, "max_tokens": 2, "logit_bias": {ids[1].to_string(): 100},
    });
    let chat = tenant.http.post("/v1/chat/completions", &body)?.ok()?;
    let entry = &chat["choices"][0]["logprobs"]["content"][0];
    ensure!(
        entry["token"] == " \\xf0\\x9f" && entry["bytes"] == json!([32, 240, 159]),
        "{entry}"
    );
    server.until_idle()
}

#[test]
fn there_are_as_many_alternatives_as_asked_for_whatever_is_left_to_choose_from() -> Result<()> {
    let server = Server::start()?;
    let tenant = server.tenant("acme")?;
    let ask = |more: &Value| {
        let base = json!({"prompt": "Once upon a time", "logprobs": 5, "max_tokens": 4, "seed": 1});
        complete(&tenant, &with(base, more))
    };
    let plain = ask(&json!({}))?;
    let first = &plain["choices"][0]["logprobs"]["top_logprobs"][0];
    for more in [
        json!({"top_k": 1, "temperature": 1}),
        json!({"top_p": 0, "temperature": 1}),
        json!({"min_p": 1, "temperature": 1}),
        json!({"temperature": 100}),
        json!({"logit_bias": {"28": -100, "665": -100, END.to_string(): 100}, "ignore_eos": true}),
        json!({"presence_penalty": 2, "frequency_penalty": 2, "repetition_penalty": 10}),
        json!({"min_tokens": 4, "stop_token_ids": [28, 30, 253, 665]}),
    ] {
        let answer = ask(&more)?;
        let tops = list(&answer["choices"][0]["logprobs"]["top_logprobs"], "a list")?;
        ensure!(tops.len() == 4, "{more}: {answer}");
        for top in tops {
            ensure!(
                top.as_object().is_some_and(|top| top.len() == 5),
                "{more}: {top}"
            );
        }
        ensure!(
            tops[0] == *first,
            "they are the model's own: {more}: {}",
            tops[0]
        );
    }
    server.until_idle()
}

#[test]
fn an_answer_that_ends_at_once_has_an_entry_and_counts_one_token() -> Result<()> {
    let server = Server::start()?;
    let tenant = server.tenant("acme")?;
    let plain = json!({"prompt": "Once upon", "logprobs": 3, "max_tokens": 5});
    let would_be = complete(&tenant, &plain)?["choices"][0]["logprobs"]["top_logprobs"][0].clone();
    let end = json!({"logit_bias": {END.to_string(): 100}});
    let stop = json!({"logit_bias": {"30": 100}, "stop_token_ids": [30]});
    for (more, name) in [(&end, "<|im_end|>"), (&stop, ".")] {
        let answer = complete(&tenant, &with(plain.clone(), more))?;
        let choice = &answer["choices"][0];
        ensure!(
            choice["text"] == "" && choice["finish_reason"] == "stop",
            "{choice}"
        );
        ensure!(choice["logprobs"]["tokens"] == json!([name]), "{choice}");
        ensure!(choice["logprobs"]["text_offset"] == json!([0]), "{choice}");
        ensure!(
            choice["logprobs"]["top_logprobs"] == json!([would_be]),
            "{choice}"
        );
        ensure!(answer["usage"]["completion_tokens"] == 1, "{answer}");
    }
    let messages = json!([{"role": "user", "content": "hi"}]);
    let body = json!({"model": MODEL, "messages": messages, "logprobs": true, "top_logprobs": 2, "max_tokens": 5, "n": 2});
    let body = with(body, &end);
    let answer = tenant.http.post("/v1/chat/completions", &body)?.ok()?;
    ensure!(
        answer["usage"]["completion_tokens"] == 2,
        "one of each: {answer}"
    );
    for choice in list(&answer["choices"], "choices")? {
        let entries = list(&choice["logprobs"]["content"], "content")?;
        ensure!(
            entries.len() == 1 && choice["message"]["content"] == "",
            "{choice}"
        );
        ensure!(
            entries[0]["token"] == "<|im_end|>" && entries[0]["bytes"].is_null(),
            "{choice}"
        );
        ensure!(
            list(&entries[0]["top_logprobs"], "top")?.len() == 2,
            "{choice}"
        );
    }
    // Without log-probabilities it is counted the same, and an end after a token is only an end.
    let silent = complete(
        &tenant,
        &with(json!({"prompt": "Once", "max_tokens": 5}), &end),
    )?;
    ensure!(silent["usage"]["completion_tokens"] == 1, "{silent}");
    let later = json!({"min_tokens": 2});
    let later = complete(&tenant, &with(with(plain, &end), &later))?;
    ensure!(later["usage"]["completion_tokens"] == 2, "{later}");
    ensure!(
        list(&later["choices"][0]["logprobs"]["tokens"], "tokens")?.len() == 2,
        "{later}"
    );
    server.until_idle()
}

#[test]
fn nothing_is_generated_only_where_the_prompt_is_asked_about() -> Result<()> {
    let server = Server::start_configured("context_max = 64\n")?;
    let tenant = server.tenant("acme")?;
    let prompt = vec![FIRST; 64];
    let ask = |route: &str, more: Value| {
        let body = with(json!({"model": MODEL, "max_tokens": 0}), &more);
        tenant.http.post(route, &body)
    };
    // A prompt that takes all of the context, where no answer has to fit.
    for more in [
        json!({"echo": true}),
        json!({"echo": true, "logprobs": 5}),
        json!({"prompt_logprobs": 20}),
    ] {
        let full = ask("/v1/completions", with(json!({"prompt": prompt}), &more))?.ok()?;
        ensure!(full["usage"]["prompt_tokens"] == 64, "{full}");
        let choice = &full["choices"][0];
        ensure!(choice["finish_reason"] == "length", "{full}");
        let told = if more["logprobs"].is_null() {
            &choice["prompt_logprobs"]
        } else {
            &choice["logprobs"]["tokens"]
        };
        ensure!(told.is_null() == (more == json!({"echo": true})), "{full}");
        ensure!(
            told.is_null() || list(told, "tokens")?.len() == 64,
            "{full}"
        );
        let longer = with(json!({"prompt": vec![FIRST; 65]}), &more);
        let refused = ask("/v1/completions", longer)?;
        ensure!(
            refused.status == 400 && refused.error_code() == "context_length_exceeded",
            "{}",
            refused.text
        );
    }
    let messages = json!([{"role": "user", "content": "hi"}]);
    let chat = ask(
        "/v1/chat/completions",
        json!({"messages": messages, "prompt_logprobs": 1}),
    )?
    .ok()?;
    ensure!(chat["choices"][0]["message"]["content"] == "", "{chat}");
    let told = list(&chat["prompt_logprobs"], "prompt_logprobs")?;
    ensure!(chat["usage"]["prompt_tokens"] == told.len(), "{chat}");
    for (more, param) in [
        (json!({}), "max_tokens"),
        (json!({"logprobs": 1}), "max_tokens"),
        (json!({"prompt_logprobs": 21}), "prompt_logprobs"),
        (json!({"prompt_logprobs": -1}), "prompt_logprobs"),
        (
            json!({"prompt_logprobs": 1, "stream": true}),
            "prompt_logprobs",
        ),
    ] {
        let refused = ask("/v1/completions", with(json!({"prompt": "a"}), &more))?;
        ensure!(refused.status == 400, "{more}: {}", refused.text);
        ensure!(
            refused.json()["error"]["param"] == param,
            "{more}: {}",
            refused.text
        );
    }
    server.until_idle()
}

#[test]
fn log_probabilities_of_a_long_prompt_fit_or_are_refused_for_good() -> Result<()> {
    let server = Server::start_configured("tenant_memory_mib = 64\ncontext_max = 2048\n")?;
    let tenant = server.tenant("acme")?;
    let prompt = prompt_of(&tenant, 2000)?;
    let ask = |choices: u32| {
        let body = json!({"model": MODEL, "prompt": prompt, "max_tokens": 0, "prompt_logprobs": 20, "n": choices});
        tenant.http.post("/v1/completions", &body)
    };
    let answer = ask(1)?.ok()?;
    ensure!(list(&answer["choices"][0]["prompt_logprobs"], "a list")?.len() == 2000);
    let refused = ask(8)?;
    ensure!(
        refused.status == 400 && refused.retry_after.is_none(),
        "{}",
        refused.text
    );
    ensure!(
        refused.error_code() == "reply_too_large",
        "{}",
        refused.text
    );
    ensure!(
        refused.text.contains("67108864"),
        "it says how much there is: {}",
        refused.text
    );
    ensure!(ask(1)?.status == 200, "and nothing of it is kept");
    server.until_idle()
}
