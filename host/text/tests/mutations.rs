//! Thousands of damaged templates and vocabularies, from fixed seeds: each is refused with the error for it or works within
//! its bounds, and none panics or runs without end. One test: the memory that is counted is the whole process's.

#![allow(clippy::unwrap_used, reason = "in a test it is an assertion")]

#[expect(
    dead_code,
    reason = "vocabularies of the cache are too large for thousands of copies"
)]
mod common;
#[path = "common/properties.rs"]
mod properties;

use common::{fixtures, source};
use peak_alloc::PeakAlloc;
use properties::{is_refused_or_works, message, renders_or_refuses};
use realm_text::{Chat, PromptEnd, TextSource};
use serde_json::{Value, json};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const TEMPLATES: u64 = 6_000;
const VOCABULARIES: u64 = 4_000;
/// The longest damaged template or text.
const SUBJECT_BYTES_MAX: usize = 32 << 10;
/// What rendering one chat may take, whatever the template does.
const RENDERING_BYTES_MAX: usize = 40 << 20;
/// What a small vocabulary and a text of at most some kilobytes may take.
const TOKENISING_BYTES_MAX: usize = 16 << 20;

/// Runs `check`; names the seed if it panics or takes more than `bytes_max` bytes of memory.
fn bounded(what: &str, seed: u64, bytes_max: usize, check: impl FnOnce() -> bool) -> bool {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check));
    let bytes = ALLOCATOR.peak_usage().saturating_sub(before);
    assert!(bytes <= bytes_max, "{what}, seed {seed}: {bytes} bytes");
    result.unwrap_or_else(|panic| {
        eprintln!("{what}, seed {seed}");
        std::panic::resume_unwind(panic)
    })
}

/// SplitMix64: enough randomness, the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn one_of<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())].clone()
    }

    /// A place between two characters.
    fn place(&mut self, text: &str) -> usize {
        let mut at = self.below(text.len() + 1);
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    }

    /// A part of a text, mostly a short one.
    fn part<'t>(&mut self, text: &'t str) -> &'t str {
        let start = self.place(text);
        let rest = &text[start..];
        let length = match self.below(4) {
            0 => rest.len(),
            _ => rest.len().min(60),
        };
        let rest = &rest[..rest.floor_char_boundary(length)];
        &rest[..self.place(rest)]
    }

    /// Puts in, takes out, repeats or brings from elsewhere.
    fn damage(&mut self, text: &mut String, words: &[&str], others: &[String]) {
        match self.below(6) {
            0 | 1 => {
                let word = self.one_of(words);
                text.insert_str(self.place(text), word);
            }
            2 => {
                let other = self.one_of(others);
                let part = self.part(&other).to_owned();
                text.insert_str(self.place(text), &part);
            }
            3 => {
                let part = self.part(text).to_owned();
                *text = text.replacen(&part, self.one_of(words), 1);
            }
            4 => {
                let part = self.part(text).to_owned();
                *text = text.replacen(&part, "", 1);
            }
            _ => {
                let part = self.part(text).repeat(1 + self.below(200));
                text.insert_str(self.place(text), &part);
            }
        }
        // Repeated repetitions would outgrow any bound.
        text.truncate(text.floor_char_boundary(SUBJECT_BYTES_MAX));
    }
}

/// What a template can be made of, and what asks for much work or memory.
const JINJA: &[&str] = &[
    "{%",
    "%}",
    "{{",
    "}}",
    "{#",
    "#}",
    "-%}",
    "{%-",
    "(",
    ")",
    "[",
    "]",
    "'",
    "\"",
    "|",
    "~",
    "*",
    "**",
    "//",
    "%",
    "-",
    "0",
    "1e308",
    "9223372036854775807",
    "-9223372036854775808",
    "99999999999999999999999",
    "none",
    "true",
    "\u{0}",
    "\u{202e}",
    "é",
    "🚀",
    "\\",
    "\\u",
    "{% endfor %}",
    "{% endif %}",
    "{% else %}",
    "{% endmacro %}",
    "{% endset %}",
    "{% break %}",
    "{% continue %}",
    "{% generation %}",
    "{% endgeneration %}",
    "{% raw %}",
    "{% endraw %}",
    "{% for m in messages %}",
    "{% for a in range(99999) %}",
    "{% for a in range(9999) recursive %}",
    "{{ loop(range(9999)) }}",
    "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{% if messages %}",
    "{% set x = messages %}",
    "{% set x = [x, x] %}",
    "{% set x = x ~ x ~ 'x' %}",
    "{% set x = 'x' * 99999999 %}",
    "{% set ns = namespace(a=[]) %}",
    "{% set ns.a = [ns.a, ns.a] %}",
    "{% set ns.a = ns.a + ns.a %}",
    "{% macro m(a, b=a) %}",
    "{% macro m(a) %}{{ m(a) }}{% endmacro %}",
    "{{ m(m) }}",
    "{{ m(1) }}",
    "{% call m(1) %}",
    "{% endcall %}",
    "{% include 'chat' %}",
    "{% extends 'chat' %}",
    "{% import 'chat' as c %}",
    "{% block b %}",
    "{% endblock %}",
    "{{ self.b() }}",
    "{{ super() }}",
    "{% do x %}",
    "{% filter upper %}",
    "{% endfilter %}",
    "{% with x = x %}",
    "{% endwith %}",
    "{% autoescape true %}",
    "{% set x %}",
    "{{ 'x' * 999999999 }}",
    "{{ [0] * 999999999 }}",
    "{{ messages * 99999 }}",
    "{{ 10 ** 99999 }}",
    "{{ 2 ** 127 }}",
    "{{ 1 // 0 }}",
    "{{ 1 % 0 }}",
    "{{ -9223372036854775808 // -1 }}",
    "{{ messages[9223372036854775807] }}",
    "[::-1]",
    "[-9223372036854775808:]",
    "[::0]",
    "[1:2:3]",
    " | tojson",
    " | tojson(indent=999999999)",
    " | tojson(separators=['x' * 999, 1])",
    " | batch(3)",
    " | batch(0)",
    " | slice(0)",
    " | slice(99999999)",
    " | join(x)",
    " | replace('', 'xxxxxxxx')",
    " | indent(99999999)",
    " | center(99999999)",
    " | sort",
    " | map(attribute='x')",
    " | list",
    " | string",
    " | length",
    " | unique",
    " | groupby('role')",
    " | select",
    " | tojson(sort_keys=true, ensure_ascii=true)",
    " | format(1)",
    " | int(base=99)",
    " | round(999)",
    " | urlencode",
    " | items",
    " | dictsort",
    " | reverse",
    " | min",
    " | sum",
    " | title",
    " | default(x)",
    ".split('')",
    ".split()",
    ".split('x', 999)",
    ".replace('', 'xxxxxxxx')",
    ".join(messages)",
    ".format(1)",
    ".items()",
    ".startswith('')",
    ".count('')",
    ".zfill(999999999)",
    ".ljust(999999999)",
    ".strip('')",
    ".keys()",
    ".get('x', x)",
    "{{ strftime_now('%Y %-d %%%') }}",
    "{{ strftime_now('%') }}",
    "{{ raise_exception('no') }}",
    "{{ raise_exception(messages) }}",
    "{{ dict(a=1) }}",
    "{{ range(9999999999) }}",
    "{{ range(0, 10, 0) }}",
    "{{ cycler(1) }}",
    "{{ joiner() }}",
    "{{ lipsum() }}",
    "{{ messages }}",
    "{{ tools }}",
    "{{ bos_token }}",
    "{{ x }}",
    "{{ loop.index }}",
    "{{ loop.previtem }}",
    "{{ 'a' 'b' }}",
    "{{ '%s' % x }}",
    "{% set x = '%s%s' % (x, x) %}",
    "{% set x = x.replace('', x) %}",
    "{{ '{0}{0}{1:>99}'.format(x, x) }}",
    " % 3",
    " | wordwrap(1)",
    " | truncate(3)",
    " | filesizeformat",
    " | xmlattr",
    " | escape",
    " | striptags",
    " | wordcount",
    ".translate({97: x})",
    ".expandtabs(999)",
    ".partition('x')",
    ".rsplit('x', 9)",
    ".splitlines(true)",
    ".title()",
    ".index(x)",
];

/// The templates and chats that are compared with Jinja2 elsewhere.
struct Chats {
    templates: Vec<String>,
    chats: Vec<Chat>,
}

fn chats() -> Chats {
    let json = std::fs::read("tests/chat_templates.json").unwrap();
    let json: Value = serde_json::from_slice(&json).unwrap();
    let templates = json["templates"].as_object().unwrap().values();
    let mut chats: Vec<_> = json["chats"]
        .as_object()
        .unwrap()
        .values()
        .map(|chat| {
            let messages = chat["messages"].as_array().unwrap().iter().map(|json| {
                let text = |key: &str| json[key].as_str().unwrap_or_default();
                message(text("role"), text("content"))
            });
            Chat {
                tools: chat["tools"].as_array().cloned().unwrap_or_default(),
                ..Chat::new(messages.collect::<Vec<_>>())
            }
        })
        .collect();
    // What a client may send beside them: names of control tokens, templates, arguments that are no JSON.
    let calls = ["{\"a\": [[[[1e999]]]]}", "{", "[]"]
        .map(|arguments| json!({"id": "1", "function": {"name": "", "arguments": arguments}}));
    let odd =
        message("assistant", "</s>{{ x }}{% for %}\u{0}\u{202e}").with("name", "<s>".repeat(100));
    // Most templates have no place for calls and refuse them before they render, so the rest is there without them, too.
    chats.push(Chat::new(vec![odd.clone(); 20]));
    chats.push(Chat {
        tools: vec![Value::Null],
        ..Chat::new(vec![odd.with("tool_calls", calls.to_vec()); 20])
    });
    chats.push(Chat::new([message("user", &"é{{".repeat(1_000))]));
    chats.push(Chat {
        end: PromptEnd::LastMessage,
        ..Chat::new([message("user", "CONTINUE_FINAL_MESSAGE_TAG")])
    });
    chats.push(Chat::default());
    Chats {
        templates: templates
            .map(|text| text.as_str().unwrap().to_owned())
            .collect(),
        chats,
    }
}

fn damaged_templates() {
    let Chats { templates, chats } = chats();
    // What is built on first use.
    for template in &templates {
        renders_or_refuses(template, &chats[0]);
    }
    let (mut rendered, mut refused) = (0, 0);
    for seed in 0..TEMPLATES {
        let mut random = Random(seed);
        // Half of them begin as a template of a model, half as nothing.
        let mut template = match seed % 2 {
            0 => random.one_of(&templates),
            _ => String::new(),
        };
        for _ in 0..1 + random.below(8) {
            random.damage(&mut template, JINJA, &templates);
        }
        let chat = &chats[random.below(chats.len())];
        let check = || renders_or_refuses(&template, chat);
        match bounded("template", seed, RENDERING_BYTES_MAX, check) {
            true => rendered += 1,
            false => refused += 1,
        }
    }
    println!("{rendered} templates rendered, {refused} refused");
    assert!(
        rendered > TEMPLATES / 10 && refused > TEMPLATES / 10,
        "the damage is too small or too large to test anything: {rendered} rendered, {refused} refused"
    );
}

const TOKENS: &[&str] = &[
    "",
    " ",
    "a",
    "b",
    "ab",
    "Ġ",
    "Ġa",
    "▁",
    "▁▁",
    "▁a",
    "##a",
    "##",
    "[UNK]",
    "<0x41>",
    "<0xC3>",
    "<0x>",
    "<0xXY>",
    "é",
    "🚀",
    "\u{301}",
    "<s>",
    "</s>",
    "<unk>",
    "\u{0}",
    "\n",
    "Ċ",
    "a b",
    "a b c",
    " a",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
];

/// A small byte-level vocabulary; those of the other algorithms are read from fixtures.
fn byte_level() -> TextSource {
    // GPT-2's letters for bytes, in any order.
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let letters = (0..=255_u8).filter(printable).map(char::from);
    let letters = letters.chain((0x100..0x144).filter_map(char::from_u32));
    let merges = ["a b", "Ġ a", "Ġa b", "ab ab", "Ã ©", "1 2"];
    let mut tokens: Vec<String> = letters.map(String::from).collect();
    tokens.extend(merges.map(|merge| merge.replace(' ', "")));
    tokens.push("<|end|>".to_owned());
    TextSource {
        model: "gpt2".to_owned(),
        pre: Some("llama-bpe".to_owned()),
        token_types: [vec![1; tokens.len() - 1], vec![3]].concat(),
        eos: Some(tokens.len() as u32 - 1),
        tokens,
        merges: merges.map(str::to_owned).into(),
        ..TextSource::default()
    }
}

/// Damages a vocabulary in one place.
fn damage(random: &mut Random, source: &mut TextSource, others: &[String]) {
    let tokens = source.tokens.len();
    match random.below(12) {
        0..=3 if tokens > 0 => {
            let at = random.below(tokens);
            random.damage(&mut source.tokens[at], TOKENS, others);
        }
        4 if tokens > 0 => source
            .tokens
            .swap(random.below(tokens), random.below(tokens)),
        5 if tokens > 0 => {
            let (from, to) = (random.below(tokens), random.below(tokens));
            source.tokens[to] = source.tokens[from].clone();
        }
        6 if !source.merges.is_empty() => {
            let at = random.below(source.merges.len());
            random.damage(&mut source.merges[at], TOKENS, others);
        }
        7 if !source.scores.is_empty() => {
            let at = random.below(source.scores.len());
            source.scores[at] = random.one_of(&[
                0.0,
                -0.0,
                f32::NAN,
                f32::INFINITY,
                f32::NEG_INFINITY,
                1e38,
                -1e38,
            ]);
        }
        8 | 9 if !source.token_types.is_empty() => {
            let at = random.below(source.token_types.len());
            source.token_types[at] = random.one_of(&[1, 2, 3, 4, 5, 6, 0, -1, i32::MAX]);
        }
        10 => {
            let id = random.one_of(&[None, Some(0), Some(tokens as u32), Some(u32::MAX)]);
            let ids = [
                &mut source.bos,
                &mut source.eos,
                &mut source.eot,
                &mut source.sep,
                &mut source.unk,
            ];
            let at = random.below(ids.len());
            *ids.into_iter().nth(at).unwrap() = id.or(Some(random.below(tokens + 1) as u32));
        }
        11 => {
            let length = random.below(tokens + 2);
            match random.below(8) {
                0 => source.tokens.truncate(length),
                1 => source.scores.truncate(length),
                2 => source.token_types.truncate(length),
                _ => source.add_space_prefix = random.one_of(&[None, Some(true), Some(false)]),
            }
        }
        _ => {
            source.pre = Some(
                random
                    .one_of(&["smollm", "qwen2", "gpt-4o", "tekken", "?"])
                    .to_owned(),
            );
        }
    }
}

fn damaged_vocabularies() {
    let seeds = [
        byte_level(),
        source(&fixtures().join("zoo/llama.gguf")),
        source(&fixtures().join("embedding/bert.gguf")),
    ];
    let texts = [
        "ab aaaa é 🚀 <|end|> </s> [SEP]\n\n ▁a <0x41> 123 \u{0}".to_owned(),
        "The quick brown fox, e\u{301}\u{301}\u{301} naïve 日本語 don't\t\t\r\n".repeat(3),
        "aAbB '\u{a0}  ".repeat(40),
    ];
    let (mut accepted, mut refused) = (0, 0);
    for seed in 0..VOCABULARIES {
        let mut random = Random(seed);
        let mut vocabulary = random.one_of(&seeds);
        for _ in 0..1 + random.below(6) {
            damage(&mut random, &mut vocabulary, &texts);
        }
        let mut text = random.one_of(&texts);
        random.damage(&mut text, TOKENS, &texts);
        let check = || is_refused_or_works(vocabulary, &text);
        match bounded("vocabulary", seed, TOKENISING_BYTES_MAX, check) {
            true => accepted += 1,
            false => refused += 1,
        }
    }
    println!("{accepted} vocabularies accepted, {refused} refused");
    assert!(
        accepted > VOCABULARIES / 10 && refused > VOCABULARIES / 10,
        "the damage is too small or too large to test anything: {accepted} accepted, {refused} refused"
    );
}

#[test]
fn damage_is_refused_or_stays_within_bounds() {
    damaged_templates();
    damaged_vocabularies();
}
