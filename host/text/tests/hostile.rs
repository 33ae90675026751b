//! Vocabularies and texts made to break things: every one gives an error or a model that works, and none a panic.

use realm_text::{Chat, ChatMessage, Specials, TextModel, TextSource};

/// A small generator with a period of 2^64; a failing seed is printed and can be run alone.
struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }

    fn one_of<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())].clone()
    }

    fn id(&mut self, tokens: usize) -> Option<u32> {
        match self.below(8) {
            0 => None,
            1 => Some(u32::MAX),
            2 => Some(tokens as u32),
            _ => Some(self.below(tokens + 1) as u32),
        }
    }
}

const WORDS: [&str; 24] = [
    "a",
    "b",
    "ab",
    "aa",
    "aaaa",
    "é",
    "Ġ",
    "Ġa",
    "▁",
    "▁a",
    "<0x41>",
    "<0xC3>",
    "<0x+A>",
    "<0x>",
    "",
    " ",
    "a b",
    "<|im_end|>",
    "</s>",
    "<unk>",
    "\u{0}",
    "Ċ",
    "🚀",
    "<start_of_turn>",
];

const TEXT: &str = "ab aaaa é 🚀 <|im_end|> </s>\n\n ▁a <0x41> 123 \u{0}";

fn hostile(draw: &mut Draw) -> TextSource {
    let tokens: Vec<String> = (0..draw.below(40))
        .map(|_| draw.one_of(&WORDS).to_owned())
        .collect();
    let count = tokens.len();
    let length = |draw: &mut Draw| match draw.below(6) {
        0 => 0,
        1 => draw.below(count + 3),
        _ => count,
    };
    let (scores, types) = (length(draw), length(draw));
    let numbers = [
        0.0,
        -1.0,
        1.0,
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        -0.0,
    ];
    let merges = (0..draw.below(4)).map(|_| match draw.below(6) {
        0 => draw.one_of(&WORDS).to_owned(),
        1 => "a a".to_owned(),
        2 => "aa aa".to_owned(),
        _ => format!("{} {}", draw.one_of(&WORDS), draw.one_of(&WORDS)),
    });
    let merges: Vec<String> = merges.collect();
    let templates = [
        None,
        Some("{{ messages[0].content }}{{ bos_token }}"),
        Some("{{"),
        Some("{% for m in messages %}{{ m.x.y }}{% endfor %}"),
    ];
    TextSource {
        model: draw
            .one_of(&["gpt2", "llama", "llama", "gpt2", "bert"])
            .to_owned(),
        pre: draw
            .one_of(&[
                None,
                Some("smollm"),
                Some("llama-bpe"),
                Some("tekken"),
                Some("?"),
            ])
            .map(str::to_owned),
        scores: (0..scores).map(|_| draw.one_of(&numbers)).collect(),
        token_types: (0..types)
            .map(|_| draw.one_of(&[1, 1, 1, 2, 3, 4, 5, 6, 0, -7, i32::MAX]))
            .collect(),
        merges,
        bos: draw.id(count),
        eos: draw.id(count),
        eot: draw.id(count),
        sep: draw.id(count),
        unk: draw.id(count),
        pad: draw.id(count),
        add_bos: draw.one_of(&[None, Some(true), Some(false)]),
        add_eos: draw.one_of(&[None, Some(true)]),
        add_space_prefix: draw.one_of(&[None, Some(true), Some(false)]),
        chat_template: draw.one_of(&templates).map(str::to_owned),
        chat_template_tools: draw.one_of(&templates).map(str::to_owned),
        tokens,
    }
}

#[test]
fn any_vocabulary_is_an_error_or_works() {
    let mut built = 0;
    for seed in 0..30_000 {
        let source = hostile(&mut Draw(seed));
        let tokens = source.tokens.len();
        let Ok(model) = TextModel::new(source.clone()) else {
            continue;
        };
        built += 1;
        let check = || {
            assert_eq!(model.vocab_size() as usize, tokens);
            for specials in [Specials::Parse, Specials::Literal] {
                for add_bos in [true, false] {
                    let ids = model.encode(TEXT, specials, add_bos, usize::MAX).unwrap();
                    assert!(ids.iter().all(|id| (*id as usize) < tokens));
                    model.decode_text(&ids);
                }
            }
            // The unknown token apart, strangers cannot write a control token.
            let literal = model
                .encode(TEXT, Specials::Literal, false, usize::MAX)
                .unwrap();
            assert!(
                literal
                    .iter()
                    .all(|id| !model.is_control(*id) || model.unknown() == Some(*id))
            );
            for id in (0..tokens as u32 + 2).chain([u32::MAX]) {
                model.token_text(id);
                assert!(!model.is_control(id) || model.token_bytes(id).is_empty());
                model.is_end_of_generation(id);
            }
            let message = ChatMessage::new("user", TEXT);
            // An error is fine: the template may refuse.
            let _ = model.chat_tokens(&Chat::new([message]), usize::MAX);
        };
        if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)) {
            eprintln!("seed {seed}: {source:?}");
            std::panic::resume_unwind(panic);
        }
    }
    assert!(
        built > 500,
        "only {built} of 30,000 could be built: the test tests nothing"
    );
}

/// Every rule for words on a quarter of a megabyte of what is made to exhaust it. Work that grew with the square of it would
/// not end today.
#[test]
fn every_rule_keeps_long_texts() {
    // GPT-2's letters for bytes, in any order; all bytes are tokens.
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut tokens: Vec<String> = (0..=255_u8)
        .filter(printable)
        .map(|byte| char::from(byte).to_string())
        .collect();
    tokens.extend((0x100..0x144).filter_map(char::from_u32).map(String::from));
    assert_eq!(tokens.len(), 256);
    let rules = [
        "default",
        "gpt-2",
        "smollm",
        "llama-bpe",
        "qwen2",
        "qwen35",
        "jais-2",
        "tekken",
        "gpt-4o",
        "bailingmoe",
        "seed-coder",
        "deepseek-llm",
        "deepseek-coder",
        "deepseek-v3",
        "falcon",
        "bloom",
        "viking",
    ];
    for rule in rules {
        let model = TextModel::new(TextSource {
            model: "gpt2".into(),
            pre: Some(rule.into()),
            tokens: tokens.clone(),
            ..TextSource::default()
        })
        .unwrap();
        for unit in [
            "a", "A", " ", "\t\n", "1", "'", "aA", "A1", " \u{a0}x", "é", "日", "a\u{301}", "  !",
        ] {
            let text = unit.repeat((1 << 18) / unit.len());
            let ids = model
                .encode(&text, Specials::Parse, false, usize::MAX)
                .unwrap();
            assert!(model.decode(&ids) == text.as_bytes(), "{rule}, {unit:?}");
        }
    }
}
