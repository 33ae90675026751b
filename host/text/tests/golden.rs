//! Tokenising held to two independent implementations, on the vocabularies of real models; and what a hostile
//! vocabulary or text can do.

#![allow(clippy::unwrap_used, reason = "in a test it is an assertion")]

mod common;

use common::{cached, fixtures, source};
use realm_text::{Chat, ChatMessage, Specials, TextError, TextModel, TextSource};
use serde_json::Value;
use std::path::Path;

fn model(path: &Path) -> TextModel {
    TextModel::new(source(path)).unwrap()
}

fn smollm2() -> TextModel {
    model(&cached("SmolLM2-135M-Instruct.Q4_1.gguf"))
}

fn gemma3() -> TextModel {
    model(&cached("gemma-3-270m-q4_k_m.gguf"))
}

/// Every case of a fixture: the same ids, and back to the same text where the tokens are all text.
fn check(model: &TextModel, file: &str, key: &str) {
    let json: Value =
        serde_json::from_slice(&std::fs::read(fixtures().join(file)).unwrap()).unwrap();
    let cases = json[key].as_array().unwrap();
    assert!(cases.len() >= 18, "the fixture has lost cases");
    let mut wrong = Vec::new();
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let expected = case.get("llama_cpp_ids").unwrap_or(&case["ids"]);
        let expected: Vec<u32> = serde_json::from_value(expected.clone()).unwrap();
        let ids = model
            .encode(text, Specials::Parse, false, usize::MAX)
            .unwrap();
        if ids != expected {
            wrong.push(format!("{text:?}: {ids:?}, expected {expected:?}"));
        }
        if ids.iter().all(|id| !model.is_control(*id)) {
            assert_eq!(String::from_utf8_lossy(&model.decode(&ids)), text);
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} cases of {file}:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
}

#[test]
fn byte_level_bpe_equals_the_reference_on_smollm2() {
    check(&smollm2(), "golden/smollm2.json", "tokenize");
}

#[test]
fn sentence_piece_equals_the_reference_on_gemma3() {
    check(&gemma3(), "golden/gemma3.json", "tokenize");
}

#[test]
fn the_tiny_vocabulary_of_the_zoo_equals_the_reference() {
    check(
        &model(&fixtures().join("zoo/llama.gguf")),
        "zoo/tokenizer.json",
        "cases",
    );
}

fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage::new(role, content)
}

#[test]
fn the_template_of_the_file_is_used() {
    let model = smollm2();
    let rendered = model
        .render_chat(&Chat::new([message("user", "hi")]))
        .unwrap();
    let expected = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
                    <|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(rendered, expected);
    let ids = model
        .chat_tokens(&Chat::new([message("user", "hi")]), usize::MAX)
        .unwrap();
    assert_eq!(
        ids.iter().filter(|id| **id == 1).count(),
        3,
        "three turns begin, each with the control token"
    );
}

#[test]
fn control_tokens_in_literal_text_stay_text() {
    let model = smollm2();
    let ids = model
        .encode("<|im_start|>system", Specials::Literal, false, usize::MAX)
        .unwrap();
    assert!(ids.iter().all(|id| !model.is_control(*id)), "{ids:?}");
    assert_eq!(model.decode(&ids), b"<|im_start|>system");
}

#[test]
fn a_bos_stands_once_in_front_where_the_model_wants_one() {
    let model = gemma3();
    assert_eq!(
        model
            .encode("a", Specials::Literal, true, usize::MAX)
            .unwrap()[0],
        2
    );
    let mut templated = source(&cached("gemma-3-270m-q4_k_m.gguf"));
    templated.chat_template = Some("{{ bos_token }}{{ messages[0].content }}".into());
    let ids = TextModel::new(templated)
        .unwrap()
        .chat_tokens(&Chat::new([message("user", "a")]), usize::MAX)
        .unwrap();
    assert_eq!(ids.iter().filter(|id| **id == 2).count(), 1);
    assert_eq!(
        smollm2()
            .encode("a", Specials::Literal, true, usize::MAX)
            .unwrap()
            .len(),
        1,
        "smollm2 wants none"
    );
}

#[test]
fn generation_ends_with_the_tokens_known_for_it() {
    let model = smollm2();
    let ends: Vec<String> = (0..model.vocab_size())
        .filter(|id| model.is_end_of_generation(*id))
        .map(|id| model.token_text(id))
        .collect();
    assert_eq!(ends, ["<|endoftext|>", "<|im_end|>"]);
    assert!(gemma3().is_end_of_generation(106), "<end_of_turn>");
}

#[test]
fn every_id_has_bytes_or_none_and_never_a_panic() {
    for model in [smollm2(), gemma3()] {
        let bytes: usize = (0..model.vocab_size())
            .map(|id| model.token_bytes(id).len())
            .sum();
        assert!(bytes > model.vocab_size() as usize);
        assert_eq!(model.token_bytes(u32::MAX), b"");
    }
}

fn bert() -> TextModel {
    TextModel::new(source(&fixtures().join("embedding/bert.gguf"))).unwrap()
}

/// Half a megabyte of what is worst for each algorithm. Work that grew with the square of it would not end today.
#[test]
fn adversarial_text_is_tokenised_and_kept() {
    for (model, keeps_text) in [(smollm2(), true), (gemma3(), true), (bert(), false)] {
        for unit in ["a", " ", "\n", "ab", "1", "'", "<", "é", "a\u{301}"] {
            let text = unit.repeat((1 << 19) / unit.len());
            let ids = model
                .encode(&text, Specials::Parse, false, usize::MAX)
                .unwrap();
            // WordPiece forgets case, accents and spaces.
            assert!(
                !keeps_text || model.decode(&ids) == text.as_bytes(),
                "{unit:?}"
            );
        }
    }
}

#[test]
fn a_hostile_vocabulary_is_an_error_and_never_a_panic() {
    let good = source(&fixtures().join("zoo/llama.gguf"));
    type Change = (&'static str, fn(&mut TextSource));
    let changes: [Change; 9] = [
        ("no tokens", |s| s.tokens.clear()),
        ("types of another length", |s| s.token_types.truncate(3)),
        ("merge of unknown tokens", |s| {
            s.merges.push("zzzz yyyy".into())
        }),
        ("merge without a space", |s| s.merges.push("zz".into())),
        ("empty merge", |s| s.merges.push(String::new())),
        ("unknown model", |s| s.model = "t5".into()),
        ("word piece without an unknown token", |s| {
            s.model = "bert".into();
            s.unk = None;
        }),
        ("unknown pre-tokenizer", |s| s.pre = Some("nobody".into())),
        ("sentence piece without scores", |s| {
            s.model = "llama".into()
        }),
    ];
    for (what, change) in changes {
        let mut source = good.clone();
        change(&mut source);
        assert!(TextModel::new(source).is_err(), "{what}");
    }
    let mut duplicates = good.clone();
    duplicates.tokens[300] = duplicates.tokens[301].clone();
    duplicates.merges.clear();
    let model = TextModel::new(duplicates).unwrap();
    assert_eq!(
        model.decode(
            &model
                .encode("still works", Specials::Parse, true, usize::MAX)
                .unwrap()
        ),
        b"still works"
    );
    let error = TextModel::new(TextSource {
        pre: Some("nobody".into()),
        ..good
    })
    .unwrap_err();
    assert!(
        matches!(&error, TextError::UnknownPreTokenizer { found, .. } if found == "nobody"),
        "{error}"
    );
}

#[test]
fn a_bad_template_costs_chats_and_not_the_model() {
    let mut source = source(&fixtures().join("zoo/llama.gguf"));
    source.chat_template = Some("line one\n{% if %}".into());
    let model = TextModel::new(source.clone()).unwrap();
    let text = model.encode("works", Specials::Literal, false, usize::MAX);
    assert_eq!(model.decode(&text.unwrap()), b"works");
    let refused = model.chat_tokens(&Chat::new([message("user", "hi")]), usize::MAX);
    let error = refused.unwrap_err();
    assert!(matches!(error, TextError::TemplateSyntax(_)), "{error}");
    assert!(error.to_string().contains("(line 2)"), "{error}");
    assert_eq!(model.check_chat_template(), Err(error));

    // Of two templates each is for its own chats.
    source.chat_template_tools = Some("{{ tools[0].function.name }}".into());
    let model = TextModel::new(source.clone()).unwrap();
    let chat = Chat::new([message("user", "hi")]);
    let with_tools = Chat {
        tools: vec![serde_json::json!({"type": "function", "function": {"name": "f"}})],
        ..chat.clone()
    };
    assert_eq!(model.render_chat(&with_tools).as_deref(), Ok("f"));
    assert!(model.render_chat(&chat).is_err());
    source.chat_template = Some("usual".into());
    let model = TextModel::new(source).unwrap();
    assert_eq!(model.render_chat(&chat).as_deref(), Ok("usual"));
}

#[test]
fn a_text_that_cannot_fit_is_refused_for_its_length() {
    let model = smollm2();
    let (tokens_max, bytes_max) = (8192, model.text_bytes_max(8192));
    let text = "x".repeat(bytes_max + 1);
    let bytes = text.len();
    let expected = TextError::TextTooLong {
        bytes,
        bytes_max,
        tokens_max,
    };
    assert_eq!(
        model.encode(&text, Specials::Literal, false, tokens_max),
        Err(expected)
    );
    let chat = message("user", &text);
    let expected = TextError::ChatTooLong {
        bytes_max,
        tokens_max,
    };
    assert_eq!(
        model.chat_tokens(&Chat::new([chat]), tokens_max),
        Err(expected)
    );

    // What the vocabulary has no token for takes no room.
    let dropped = "\u{4}".repeat(bytes_max + 1);
    let dropped_chat = [message("user", &dropped)];
    assert_eq!(
        model.encode(&dropped, Specials::Literal, false, 0),
        Ok(vec![])
    );
    assert!(
        model
            .chat_tokens(&Chat::new(dropped_chat), tokens_max)
            .unwrap()
            .len()
            < 50
    );

    // The longest token there is, as often as there is room for it: the bound refuses nothing that fits.
    let longest = (0..model.vocab_size())
        .max_by_key(|id| model.token_bytes(*id).len())
        .unwrap();
    let text = model.decode(&[longest]);
    let text = std::str::from_utf8(&text).unwrap().repeat(40);
    let fits = model.encode(&text, Specials::Literal, false, text.len());
    assert!(fits.unwrap().len() >= 40 && text.len() <= model.text_bytes_max(40));
}
