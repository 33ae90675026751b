//! How byte-level tokenizers cut text into words before merging: a table by the names that GGUF files give the rules.
//!
//! Files carry the name only, so the expressions stand here. They are those of each model's own tokenizer (rules that look
//! ahead over whole runs of digits are left out). Their one look ahead is at spaces, and it is done by [`Spaces`] and not
//! in the expression: so they run on automatons, in linear time and without memory for the text.

use crate::TextError;
use regex_automata::Input;
use regex_automata::meta::{Config, Regex};
use regex_automata::util::syntax;

/// A rule for words.
#[derive(Debug)]
pub(super) struct Rule {
    /// Names in files, a space between.
    names: &'static str,
    /// Applied one after the other, each to the pieces that the one before left. What none matches is a word too.
    pub(super) expressions: &'static [Expression],
    /// A word that is itself a token is taken whole, whatever merging would make of it.
    pub(super) whole_words: bool,
    /// Texts begin with `bos` where the file does not say.
    pub(super) add_bos: bool,
}

/// One expression of a rule.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expression {
    words: &'static str,
    /// Where nothing else matches: what becomes of a run of spaces.
    spaces: Option<Spaces>,
}

/// How a run of spaces is cut. Each is a look ahead in the model's own expression.
#[derive(Debug, Clone, Copy)]
enum Spaces {
    /// `\s+(?!\S)|\s+`: the last one is left to the word behind it.
    AllButLast,
    /// `\s{512}(?!\S)|…|\s{4}(?!\S)|\s{1,2}(?!\S)|\s`: the same, and in lengths that are powers of two.
    PowersOfTwo,
}

impl Spaces {
    /// Lengths in characters of the words at the start of a run of `run` spaces; what they leave is looked at again.
    /// `is_last`: the text ends with the run.
    fn lengths(self, run: usize, is_last: bool) -> impl Iterator<Item = usize> {
        let mut left = match (run, is_last) {
            (1, _) | (_, true) => run,
            _ => run - 1,
        };
        std::iter::from_fn(move || {
            let length = match (self, left) {
                (_, 0) => return None,
                (Spaces::AllButLast, _) => left,
                (Spaces::PowersOfTwo, _) => 1 << left.ilog2().min(9),
            };
            left -= length;
            Some(length)
        })
    }
}

const fn plain(words: &'static str) -> Expression {
    Expression {
        words,
        spaces: None,
    }
}

const fn spaced(words: &'static str) -> Expression {
    Expression {
        words,
        spaces: Some(Spaces::AllButLast),
    }
}

/// Memory of one lazily built automaton, in bytes, of which every thread that searches may have one.
const AUTOMATON_BYTES: usize = 1 << 20;

/// An [`Expression`], ready to search.
#[derive(Debug)]
pub(super) struct Cut {
    regex: Regex,
    spaces: Option<Spaces>,
}

impl Cut {
    pub(super) fn new(expression: &Expression) -> Result<Cut, TextError> {
        let patterns: &[&str] = match expression.spaces {
            Some(_) => &[expression.words, r"\s+"],
            None => &[expression.words],
        };
        let regex = Regex::builder()
            .configure(Config::new().hybrid_cache_capacity(AUTOMATON_BYTES))
            .syntax(syntax::Config::new().unicode(true).utf8(true))
            .build_many(patterns)
            .map_err(|error| TextError::Vocabulary(error.to_string()))?;
        Ok(Cut {
            regex,
            spaces: expression.spaces,
        })
    }

    /// Hands every piece of `text` to `each`, in order: what matches, and what is between.
    fn each_piece<E>(
        &self,
        text: &str,
        mut each: impl FnMut(&str) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut at = 0;
        while at < text.len() {
            let input = Input::new(text).span(at..text.len());
            let Some(found) = self.regex.search(&input).filter(|found| !found.is_empty()) else {
                return each(&text[at..]);
            };
            if at < found.start() {
                each(&text[at..found.start()])?;
            }
            at = match self.spaces {
                Some(spaces) if found.pattern().as_usize() == 1 => {
                    let is_last = found.end() == text.len();
                    let run = &text[found.range()];
                    let taken = each_space(spaces, run, is_last, &mut each)?;
                    found.start() + taken
                }
                _ => {
                    each(&text[found.range()])?;
                    found.end()
                }
            };
        }
        Ok(())
    }
}

/// Hands the words at the start of a run of spaces to `each`; returns their length in bytes.
fn each_space<E>(
    spaces: Spaces,
    run: &str,
    is_last: bool,
    each: &mut impl FnMut(&str) -> Result<(), E>,
) -> Result<usize, E> {
    let mut rest = run;
    for length in spaces.lengths(run.chars().count(), is_last) {
        let end = rest
            .char_indices()
            .nth(length)
            .map_or(rest.len(), |(at, _)| at);
        let (word, after) = rest.split_at(end);
        each(word)?;
        rest = after;
    }
    Ok(run.len() - rest.len())
}

/// Hands every word of `text` to `each`, in order: each expression cuts the pieces that the one before it left.
pub(super) fn each_word<E>(
    cuts: &[Cut],
    text: &str,
    each: &mut dyn FnMut(&str) -> Result<(), E>,
) -> Result<(), E> {
    match cuts.split_first() {
        Some((cut, rest)) => cut.each_piece(text, |piece| each_word(rest, piece, each)),
        None => each(text),
    }
}

/// The rule named `pre`; `default` where a file names none.
///
/// # Errors
/// [`TextError::UnknownPreTokenizer`] with the name.
pub(super) fn rule(pre: Option<&str>) -> Result<&'static Rule, TextError> {
    let pre = pre.filter(|pre| !pre.is_empty()).unwrap_or("default");
    RULES
        .iter()
        .find(|rule| rule.names.split(' ').any(|name| name == pre))
        .ok_or_else(|| TextError::UnknownPreTokenizer {
            found: pre.to_owned(),
            supported: names().collect::<Vec<_>>().join(", "),
        })
}

/// Every name of the table.
fn names() -> impl Iterator<Item = &'static str> {
    RULES.iter().flat_map(|rule| rule.names.split(' '))
}

const NUMBER: Expression = plain(r"\p{N}");
const GPT2: Expression = spaced(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+");
/// Punctuation that takes the line ends behind it, then lines: how most rules since GPT-4 end.
macro_rules! tail {
    () => {
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    };
}
macro_rules! contractions {
    () => {
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    };
}
const LLAMA3: Expression = spaced(concat!(
    contractions!(),
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
    tail!()
));
const QWEN2: Expression = spaced(concat!(
    contractions!(),
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
    tail!()
));
const QWEN35: Expression = spaced(concat!(
    contractions!(),
    r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
));
const JAIS2: Expression = Expression {
    words: concat!(
        contractions!(),
        r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
    ),
    spaces: Some(Spaces::PowersOfTwo),
};
/// Words by case: capitals then small letters; letters without case and marks count as either.
macro_rules! capitals {
    () => {
        r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
    };
}
macro_rules! smalls {
    () => {
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    };
}
const TEKKEN: Expression = spaced(concat!(
    r"[^\r\n\p{L}\p{N}]?",
    capitals!(),
    "*",
    smalls!(),
    r"+|[^\r\n\p{L}\p{N}]?",
    capitals!(),
    "+",
    smalls!(),
    r"*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+"
));
const GPT4O: Expression = spaced(concat!(
    r"[^\r\n\p{L}\p{N}]?",
    capitals!(),
    "*",
    smalls!(),
    "+",
    contractions!(),
    r"?|[^\r\n\p{L}\p{N}]?",
    capitals!(),
    "+",
    smalls!(),
    "*",
    contractions!(),
    r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+"
));
const BAILING: Expression = spaced(
    r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]",
);
const SEED: Expression = spaced(concat!(
    contractions!(),
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+"
));
const DEEPSEEK3: Expression = spaced(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+"##,
);
/// Letters that have case, as DeepSeek's first tokenizer lists them; escaped, since normalising an editor's text would
/// change several of them.
const CASED: Expression = plain(concat!(
    r"\s?[",
    r"A-Za-z\x{b5}\x{c0}-\x{d6}\x{d8}-\x{f6}\x{f8}-\x{1ba}\x{1bc}-\x{1bf}\x{1c4}-\x{293}\x{295}-\x{2af}",
    r"\x{370}-\x{373}\x{376}\x{377}\x{37b}-\x{37d}\x{37f}\x{386}\x{388}-\x{38a}\x{38c}\x{38e}-\x{3a1}",
    r"\x{3a3}-\x{3f5}\x{3f7}-\x{481}\x{48a}-\x{52f}\x{531}-\x{556}\x{10a0}-\x{10c5}\x{13a0}-\x{13f5}",
    r"\x{13f8}-\x{13fd}\x{1c90}-\x{1cba}\x{1cbd}-\x{1cbf}\x{1d00}-\x{1d2b}\x{1d6b}-\x{1d77}\x{1d79}-\x{1d9a}",
    r"\x{1e00}-\x{1f15}\x{1f18}-\x{1f1d}\x{1f20}-\x{1f45}\x{1f48}-\x{1f4d}\x{1f50}-\x{1f57}\x{1f59}\x{1f5b}",
    r"\x{1f5d}\x{1f5f}-\x{1f7d}\x{1f80}-\x{1fb4}\x{1fb6}-\x{1fbc}\x{1fbe}\x{1fc2}-\x{1fc4}\x{1fc6}-\x{1fcc}",
    r"\x{1fd0}-\x{1fd3}\x{1fd6}-\x{1fdb}\x{1fe0}-\x{1fec}\x{1ff2}-\x{1ff4}\x{1ff6}-\x{1ffc}\x{2102}\x{2107}",
    r"\x{210a}-\x{2113}\x{2115}\x{2119}-\x{211d}\x{2124}\x{2126}\x{2128}\x{212a}-\x{212d}\x{212f}-\x{2134}",
    r"\x{2139}\x{213c}-\x{213f}\x{2145}-\x{2149}\x{214e}\x{2183}\x{2184}\x{2c00}-\x{2c7b}\x{2c7e}-\x{2ce4}",
    r"\x{2ceb}-\x{2cee}\x{2cf2}\x{2cf3}\x{a640}-\x{a66d}\x{a680}-\x{a69b}\x{a722}-\x{a76f}\x{a771}-\x{a787}",
    r"\x{a78b}-\x{a78e}\x{ab70}-\x{abbf}\x{fb00}-\x{fb06}\x{fb13}-\x{fb17}\x{ff21}-\x{ff3a}\x{ff41}-\x{ff5a}",
    r"\x{10400}-\x{1044f}\x{104b0}-\x{104d3}\x{104d8}-\x{104fb}\x{10c80}-\x{10cb2}\x{10cc0}-\x{10cf2}",
    r"\x{118a0}-\x{118df}\x{1e900}-\x{1e943}",
    r"]+"
));
const HAN: Expression = plain(r"[\x{4e00}-\x{9fa5}\x{800}-\x{4e00}\x{ac00}-\x{d7ff}]+");
const HAN_KANA: Expression = plain(r"[\x{4e00}-\x{9fa5}\x{3040}-\x{309f}\x{30a0}-\x{30ff}]+");
const BLOOM: Expression =
    plain(r" ?[^(\s|.,!?\x{2026}\x{3002}\x{ff0c}\x{3001}\x{964}\x{6d4}\x{60c})]+");

/// A rule that merges as usual and adds no `bos`.
const fn rule_of(names: &'static str, expressions: &'static [Expression]) -> Rule {
    Rule {
        names,
        expressions,
        whole_words: false,
        add_bos: false,
    }
}

const RULES: [Rule; 19] = [
    rule_of(
        "default",
        &[
            plain(r"[\p{P}\$\+<=>\^~\|]+"),
            GPT2,
            plain(r"\p{N}+"),
            plain(r"[0-9][0-9][0-9]"),
        ],
    ),
    rule_of(
        "gpt-2 gpt2 phi-2 mpt olmo jais trillion exaone4 gigachat a.x-4.0 mellum modern-bert \
         granite-docling jina-es jina-de jina-v2-es jina-v2-de",
        &[GPT2],
    ),
    rule_of(
        "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
        &[NUMBER, GPT2],
    ),
    Rule {
        names: "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        expressions: &[LLAMA3],
        whole_words: true,
        add_bos: true,
    },
    rule_of("dbrx smaug-bpe chatglm-bpe", &[LLAMA3]),
    Rule {
        names: "glm4 glm5",
        expressions: &[LLAMA3],
        whole_words: true,
        add_bos: false,
    },
    rule_of(
        "qwen2 deepseek-r1-qwen stablelm2 hunyuan megrez grok-2 solar-open kormo f2llmv2",
        &[QWEN2],
    ),
    rule_of("qwen35", &[QWEN35]),
    rule_of("jais-2", &[JAIS2]),
    Rule {
        names: "tekken",
        expressions: &[TEKKEN],
        whole_words: true,
        add_bos: true,
    },
    rule_of("gpt-4o llama4 kanana2 talkie minimax-m2", &[GPT4O]),
    rule_of("bailingmoe bailingmoe2 llada-moe", &[BAILING]),
    rule_of("seed-coder", &[SEED]),
    rule_of(
        "deepseek-llm",
        &[
            plain(r"[\r\n]"),
            CASED,
            plain(
                r"\s?[!-/:-~\x{ff01}-\x{ff0f}\x{ff1a}-\x{ff5e}\x{2018}-\x{201f}\x{3000}-\x{3002}]+",
            ),
            plain(r"\s+$"),
            HAN,
            plain(r"\p{N}+"),
        ],
    ),
    rule_of(
        "deepseek-coder",
        &[
            plain(r"[\r\n]"),
            plain(r"\s?\p{L}+"),
            plain(r"\s?\p{P}+"),
            HAN,
            NUMBER,
        ],
    ),
    rule_of(
        "deepseek-v3 hunyuan-dense joyai-llm hy_v4",
        &[plain(r"\p{N}{1,3}"), HAN_KANA, DEEPSEEK3],
    ),
    rule_of(
        "falcon",
        &[
            plain(r"[\p{P}\$\+<=>\^~\|`]+"),
            GPT2,
            plain(r"[0-9][0-9][0-9]"),
        ],
    ),
    rule_of("bloom poro-chat gpt3-finnish", &[BLOOM]),
    rule_of("viking", &[BLOOM, NUMBER]),
];

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
    use tokenizers::tokenizer::{
        OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior,
    };

    /// The words by the `tokenizers` crate, from the expressions as their models' own tokenizers have them.
    fn reference(rule: &Rule, text: &str) -> Vec<String> {
        let mut words = PreTokenizedString::from(text);
        for expression in rule.expressions {
            let look_ahead = match expression.spaces {
                None => "",
                Some(Spaces::AllButLast) => r"|\s+(?!\S)|\s+",
                Some(Spaces::PowersOfTwo) => concat!(
                    r"|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)",
                    r"|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s"
                ),
            };
            let pattern = SplitPattern::Regex(format!("{}{look_ahead}", expression.words));
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).unwrap();
            split.pre_tokenize(&mut words).unwrap();
        }
        let words = words.get_splits(OffsetReferential::Original, OffsetType::Byte);
        words
            .into_iter()
            .map(|(word, _, _)| word.to_owned())
            .collect()
    }

    fn next(state: &mut u64, below: usize) -> usize {
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) as usize % below
    }

    /// A text of runs: words, numbers, punctuation, spaces of every kind, marks, ideographs, joined emoji.
    fn text(state: &mut u64) -> String {
        let units = [
            "a",
            "B",
            "aB",
            "é",
            "e\u{301}",
            "ǅ",
            "ʰ",
            "日",
            "本",
            "あ",
            "ア",
            "한",
            "1",
            "٣",
            "²",
            "'",
            "'s",
            "'LL",
            "!",
            "。",
            "\u{2026}",
            "$",
            "+",
            "/",
            "(",
            "|",
            "_",
            " ",
            " ",
            "  ",
            "\t",
            "\u{a0}",
            "\u{3000}",
            "\u{2028}",
            "\n",
            "\r\n",
            "\u{85}",
            "\u{200d}",
            "👩\u{200d}👩",
            "🚀",
            "\u{301}",
            "\0",
        ];
        let mut text = String::new();
        for _ in 0..next(state, 12) {
            let run = match next(state, 6) {
                0 => 1 + next(state, 1100),
                1 => 1 + next(state, 9),
                _ => 1,
            };
            text.push_str(&units[next(state, units.len())].repeat(run));
        }
        text
    }

    #[test]
    fn words_are_those_of_the_models_own_expressions() {
        let mut state = 11;
        for rule in &RULES {
            let cuts: Vec<Cut> = rule
                .expressions
                .iter()
                .map(|one| Cut::new(one).unwrap())
                .collect();
            for _ in 0..150 {
                let text = text(&mut state);
                let mut words: Vec<String> = Vec::new();
                let all = each_word::<()>(&cuts, &text, &mut |word| {
                    words.push(word.to_owned());
                    Ok(())
                });
                assert_eq!(all, Ok(()));
                if words != reference(rule, &text) {
                    assert_eq!(words, reference(rule, &text), "{} on {text:?}", rule.names);
                }
            }
        }
    }

    #[test]
    fn every_name_stands_once_and_every_expression_compiles() {
        let mut seen: Vec<&str> = names().collect();
        seen.sort_unstable();
        let all = seen.len();
        seen.dedup();
        assert_eq!(seen.len(), all, "a name stands twice");
        for name in seen {
            let source = crate::TextSource {
                model: "gpt2".into(),
                pre: Some(name.into()),
                tokens: vec!["a".into()],
                ..Default::default()
            };
            let model = crate::TextModel::new(source);
            assert!(model.is_ok(), "{name}: {model:?}");
        }
    }

    #[test]
    fn an_unknown_name_is_an_error_with_that_name() {
        let error = rule(Some("nobody")).unwrap_err();
        assert!(error.to_string().contains("'nobody'"), "{error}");
        assert!(error.to_string().contains("smollm"), "{error}");
    }
}
