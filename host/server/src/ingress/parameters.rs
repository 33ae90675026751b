//! Every parameter of OpenAI, vLLM and llama-server that decides what comes out: it has its effect here or is refused by its
//! name, and is never passed over. [`check`] refuses by this table, `docs/parameters.md` is written by it, and tests hold
//! each row to what it says. What is not in it (`user`, `metadata`, `store`, ...) changes no answer and passes.

use super::json;
use crate::error::{ApiError, ApiResult, shown};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use std::fmt;

/// What a request is sent to, over HTTP or `/ws`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Chat,
    Completion,
    Embedding,
}

impl Route {
    const COUNT: usize = 3;
}

/// A parameter on some routes.
#[derive(Debug)]
struct Parameter {
    name: &'static str,
    routes: &'static [Route],
    effect: Effect,
    /// A value, as JSON, that changes what comes out, or is refused.
    #[cfg_attr(not(test), expect(dead_code, reason = "for tests and the page"))]
    example: &'static str,
}

#[derive(Debug)]
enum Effect {
    /// It does this, where the second, a JSON object, is given as well.
    #[cfg_attr(not(test), expect(dead_code, reason = "for tests and the page"))]
    Honoured(&'static str, &'static str),
    /// It is refused, but for these values, which ask for what is done anyway.
    Refused(&'static [&'static str]),
}

const fn does(
    name: &'static str,
    routes: &'static [Route],
    what: &'static str,
    example: &'static str,
) -> Parameter {
    does_with(name, routes, what, example, "{}")
}

const fn does_with(
    name: &'static str,
    routes: &'static [Route],
    what: &'static str,
    example: &'static str,
    with: &'static str,
) -> Parameter {
    let effect = Effect::Honoured(what, with);
    Parameter {
        name,
        routes,
        effect,
        example,
    }
}

const fn refused(
    name: &'static str,
    routes: &'static [Route],
    neutral: &'static [&'static str],
    example: &'static str,
) -> Parameter {
    let effect = Effect::Refused(neutral);
    Parameter {
        name,
        routes,
        effect,
        example,
    }
}

const TEXT: &[Route] = &[Route::Chat, Route::Completion];
const CHAT: &[Route] = &[Route::Chat];
const COMPLETION: &[Route] = &[Route::Completion];
const EMBEDDING: &[Route] = &[Route::Embedding];
const ALL: &[Route] = &[Route::Chat, Route::Completion, Route::Embedding];

const NONE: &[&str] = &[];
const FALSE: &[&str] = &["false"];
const TRUE: &[&str] = &["true"];
const ZERO: &[&str] = &["0"];
const EMPTY: &[&str] = &["[]"];

/// One row a parameter.
#[rustfmt::skip]
const PARAMETERS: &[Parameter] = &[
    // How much, and where it ends.
    does("max_tokens", TEXT, "tokens to generate at most, from 1, or from 0 with `echo` or `prompt_logprobs`; by default 16 for a completion", "3"),
    does("max_completion_tokens", TEXT, "the same; wins where both are given", "3"),
    does("n_predict", TEXT, "the same, where neither of them is given", "3"),
    does("min_tokens", TEXT, "until so many tokens are made, no token that would end the answer is chosen and no stop string is looked for", "5"),
    does("ignore_eos", TEXT, "true goes on when the model ends its turn", "true"),
    does("stop", TEXT, "a string, or up to 16: the answer ends before the first of them; an empty one is none", "\"e\""),
    does("stop_token_ids", TEXT, "up to 1,024 tokens: the answer ends before the first of them", "[28, 29, 30, 253, 260, 284, 288, 327, 338]"),
    does("n", TEXT, "answers, 1 to 8", "2"),
    does_with("best_of", COMPLETION, "can only be the same as `n`", "2", r#"{"n": 2}"#),
    // Which token is next.
    does("temperature", TEXT, "0 takes the likeliest token; 0 to 100", "0"),
    does("top_p", TEXT, "only the likeliest tokens that make up this much probability; 0 is the likeliest alone", "0"),
    does("top_k", TEXT, "only so many of the likeliest tokens; 0 and -1 are all", "1"),
    does("min_p", TEXT, "only tokens at least so many times as likely as the likeliest", "1.0"),
    does("seed", TEXT, "makes sampling repeatable", "6"),
    does("presence_penalty", TEXT, "-2 to 2", "-2"),
    does("frequency_penalty", TEXT, "-2 to 2", "-2"),
    does("repetition_penalty", TEXT, "above 1 makes tokens that were there, in the prompt too, less likely; above 0, at most 10", "0.1"),
    does("repeat_penalty", TEXT, "the same, where that is not given", "0.1"),
    does("logit_bias", TEXT, "an object of up to 4,096 token ids, each with a number from -100 to 100", r#"{"28": 100}"#),
    // What is told beside it.
    does("logprobs", CHAT, "true tells the log-probability of each token", "true"),
    does_with("top_logprobs", CHAT, "0 to 20 likeliest tokens at each place; needs `logprobs`", "2", r#"{"logprobs": true}"#),
    does("logprobs", COMPLETION, "the log-probability of each token, and of 0 to 5 likeliest at its place", "2"),
    does("echo", COMPLETION, "true begins the answer with the prompt, and with `logprobs` those of its tokens", "true"),
    does("prompt_logprobs", TEXT, "the log-probability of each token of the prompt, and of 0 to 20 likeliest at its place; not with `stream`", "1"),
    does("stream", TEXT, "true sends text as it is made", "true"),
    does_with("stream_options", TEXT, "`include_usage`; needs `stream`", r#"{"include_usage": true}"#, r#"{"stream": true}"#),
    does("tools", CHAT, "given to the model's chat template", r#"[{"type": "function", "function": {"name": "f"}}]"#),
    does_with("tool_choice", CHAT, "`auto` or `none`", "\"none\"", r#"{"tools": [{"type": "function", "function": {"name": "f"}}]}"#),
    does("chat_template_kwargs", CHAT, "an object of what the model's chat template is to know by name, as a switch of its own; its own names, as `messages`, are refused", r#"{"enable_thinking": false}"#),
    does("documents", CHAT, "up to 1,024 objects, given to the model's chat template", r#"[{"title": "a", "text": "b"}]"#),
    does("add_generation_prompt", CHAT, "false does not open the assistant's turn", "false"),
    does("continue_final_message", CHAT, "true goes on with the text of the last message and opens no turn; not with `add_generation_prompt`", "true"),
    does("encoding_format", EMBEDDING, "`float` or `base64`", "\"base64\""),
    does("dimensions", EMBEDDING, "can only be the number that the model has", "7"),
    // OpenAI.
    refused("response_format", TEXT, &[r#"{"type": "text"}"#], r#"{"type": "json_object"}"#),
    refused("functions", TEXT, EMPTY, r#"[{"name": "f"}]"#),
    refused("function_call", TEXT, &["\"auto\"", "\"none\""], r#"{"name": "f"}"#),
    refused("parallel_tool_calls", TEXT, TRUE, "false"),
    refused("modalities", TEXT, &[r#"["text"]"#, "[]"], r#"["text", "audio"]"#),
    refused("audio", TEXT, NONE, r#"{"voice": "alloy", "format": "wav"}"#),
    refused("reasoning_effort", TEXT, NONE, "\"low\""),
    refused("verbosity", TEXT, &["\"medium\""], "\"low\""),
    refused("web_search_options", TEXT, NONE, "{}"),
    refused("tools", COMPLETION, EMPTY, r#"[{"type": "function", "function": {"name": "f"}}]"#),
    refused("tool_choice", COMPLETION, &["\"auto\"", "\"none\""], "\"required\""),
    refused("top_logprobs", COMPLETION, ZERO, "2"),
    refused("echo", CHAT, FALSE, "true"),
    refused("suffix", TEXT, &["\"\""], "\" the end\""),
    refused("best_of", CHAT, &["1"], "3"),
    // vLLM.
    refused("add_generation_prompt", COMPLETION, TRUE, "false"),
    refused("continue_final_message", COMPLETION, FALSE, "true"),
    refused("chat_template", TEXT, NONE, "\"{{ messages }}\""),
    refused("chat_template_kwargs", COMPLETION, &["{}"], r#"{"enable_thinking": false}"#),
    refused("documents", COMPLETION, EMPTY, r#"[{"title": "a", "text": "b"}]"#),
    refused("mm_processor_kwargs", TEXT, &["{}"], r#"{"num_crops": 4}"#),
    refused("media_io_kwargs", TEXT, &["{}"], r#"{"video": {"num_frames": 4}}"#),
    refused("use_beam_search", TEXT, FALSE, "true"),
    refused("length_penalty", TEXT, &["1"], "2.0"),
    refused("early_stopping", TEXT, FALSE, "true"),
    refused("include_stop_str_in_output", TEXT, FALSE, "true"),
    refused("skip_special_tokens", TEXT, TRUE, "false"),
    refused("spaces_between_special_tokens", TEXT, TRUE, "false"),
    refused("add_special_tokens", CHAT, FALSE, "true"),
    refused("add_special_tokens", &[Route::Completion, Route::Embedding], TRUE, "false"),
    refused("truncate_prompt_tokens", ALL, NONE, "10"),
    refused("truncation_side", ALL, NONE, "\"left\""),
    refused("allowed_token_ids", TEXT, NONE, "[1, 2]"),
    refused("bad_words", TEXT, EMPTY, r#"["no"]"#),
    refused("guided_json", TEXT, NONE, r#"{"type": "object"}"#),
    refused("guided_regex", TEXT, NONE, "\"[a-z]+\""),
    refused("guided_choice", TEXT, NONE, r#"["a", "b"]"#),
    refused("guided_grammar", TEXT, NONE, "\"root ::= [a-z]\""),
    refused("guided_json_object", TEXT, FALSE, "true"),
    refused("guided_whitespace_pattern", TEXT, NONE, "\" \""),
    refused("guided_decoding_backend", TEXT, NONE, "\"xgrammar\""),
    refused("structured_outputs", TEXT, NONE, r#"{"choice": ["a", "b"]}"#),
    refused("structural_tag", TEXT, NONE, "\"{}\""),
    refused("logits_processors", TEXT, EMPTY, r#"["module.Processor"]"#),
    refused("prompt_embeds", TEXT, NONE, "\"AAAA\""),
    refused("return_tokens_as_token_ids", TEXT, FALSE, "true"),
    refused("return_token_ids", TEXT, FALSE, "true"),
    refused("include_reasoning", TEXT, TRUE, "false"),
    refused("thinking_token_budget", TEXT, NONE, "100"),
    refused("vllm_xargs", TEXT, &["{}"], r#"{"a": 1}"#),
    refused("repetition_detection", TEXT, NONE, r#"{"max_pattern_size": 4}"#),
    refused("normalize", EMBEDDING, TRUE, "false"),
    refused("use_activation", EMBEDDING, TRUE, "false"),
    refused("embed_dtype", EMBEDDING, &["\"float32\""], "\"float16\""),
    refused("endianness", EMBEDDING, &["\"native\"", "\"little\""], "\"big\""),
    refused("messages", EMBEDDING, NONE, r#"[{"role": "user", "content": "a"}]"#),
    // llama-server.
    refused("grammar", TEXT, &["\"\""], "\"root ::= [a-z]\""),
    refused("grammar_lazy", TEXT, FALSE, "true"),
    refused("grammar_triggers", TEXT, EMPTY, r#"[{"type": 1, "value": "a"}]"#),
    refused("json_schema", TEXT, NONE, r#"{"type": "object"}"#),
    refused("mirostat", TEXT, ZERO, "2"),
    refused("mirostat_tau", TEXT, &["5"], "3.0"),
    refused("mirostat_eta", TEXT, &["0.1"], "0.2"),
    refused("dynatemp_range", TEXT, ZERO, "0.5"),
    refused("dynatemp_exponent", TEXT, &["1"], "2"),
    refused("typical_p", TEXT, &["1"], "0.5"),
    refused("typ_p", TEXT, &["1"], "0.5"),
    refused("tfs_z", TEXT, &["1"], "0.5"),
    refused("top_n_sigma", TEXT, &["-1"], "1"),
    refused("xtc_probability", TEXT, ZERO, "0.5"),
    refused("xtc_threshold", TEXT, &["0.1"], "0.2"),
    refused("dry_multiplier", TEXT, ZERO, "0.8"),
    refused("dry_base", TEXT, &["1.75"], "2"),
    refused("dry_allowed_length", TEXT, &["2"], "3"),
    refused("dry_penalty_last_n", TEXT, &["-1"], "64"),
    refused("dry_sequence_breakers", TEXT, &[r#"["\n", ":", "\"", "*"]"#], r#"["."]"#),
    refused("adaptive_target", TEXT, &["-1"], "0.5"),
    refused("adaptive_decay", TEXT, NONE, "0.9"),
    refused("repeat_last_n", TEXT, &["-1"], "64"),
    refused("penalize_nl", TEXT, TRUE, "false"),
    refused("min_keep", TEXT, ZERO, "2"),
    refused("samplers", TEXT, NONE, r#"["top_k", "temperature"]"#),
    refused("n_indent", TEXT, ZERO, "4"),
    refused("n_keep", TEXT, ZERO, "5"),
    refused("n_discard", TEXT, ZERO, "5"),
    refused("n_probs", TEXT, ZERO, "3"),
    refused("n_cmpl", TEXT, &["1"], "2"),
    refused("post_sampling_probs", TEXT, FALSE, "true"),
    refused("t_max_predict_ms", TEXT, ZERO, "100"),
    refused("return_tokens", TEXT, FALSE, "true"),
    refused("response_fields", TEXT, EMPTY, r#"["content"]"#),
    refused("lora", TEXT, EMPTY, r#"[{"id": 0, "scale": 0.5}]"#),
    refused("image_data", TEXT, EMPTY, r#"[{"data": "AAAA", "id": 1}]"#),
    refused("multimodal_data", TEXT, EMPTY, r#"["AAAA"]"#),
    refused("system_prompt", TEXT, &["\"\""], "\"be brief\""),
    refused("reasoning_format", TEXT, &["\"none\"", "\"auto\""], "\"deepseek\""),
    refused("reasoning_budget_tokens", TEXT, &["-1"], "100"),
    refused("thinking_forced_open", TEXT, FALSE, "true"),
    refused("parse_tool_calls", TEXT, FALSE, "true"),
    refused("content", EMBEDDING, NONE, "\"a\""),
    refused("embd_normalize", EMBEDDING, &["2"], "-1"),
];

/// Refuses a request with a parameter that would be passed over. `what` names the text in messages.
///
/// # Errors
/// The client's 400, with the parameter as its `param` and the value in its message.
pub(super) fn check(text: &[u8], what: &str, route: Route) -> ApiResult<()> {
    let Refusals(mut refusals) = json::parse(text, what)?;
    refusals[route as usize].take().map_or(Ok(()), Err)
}

/// The first refusal of each route.
struct Refusals([Option<ApiError>; Route::COUNT]);

impl<'de> Deserialize<'de> for Refusals {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Refusals, D::Error> {
        struct RefusalsVisitor;
        impl<'de> Visitor<'de> for RefusalsVisitor {
            type Value = Refusals;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Refusals, A::Error> {
                let mut refusals = Refusals([const { None }; Route::COUNT]);
                while let Some(name) = map.next_key::<String>()? {
                    if PARAMETERS.iter().any(|known| known.name == name) {
                        let value: &RawValue = map.next_value()?;
                        refusals.see(&name, value.get());
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(refusals)
            }
        }
        deserializer.deserialize_map(RefusalsVisitor)
    }
}

impl Refusals {
    fn see(&mut self, name: &str, value: &str) {
        for known in PARAMETERS.iter().filter(|known| known.name == name) {
            let Some(refusal) = known.refusal(value) else {
                continue;
            };
            for route in known.routes {
                self.0[*route as usize].get_or_insert_with(|| refusal.clone());
            }
        }
    }
}

impl Parameter {
    /// Why a value of it is refused, if it is.
    fn refusal(&self, value: &str) -> Option<ApiError> {
        let Effect::Refused(neutral) = self.effect else {
            return None;
        };
        if value == "null" || neutral.iter().any(|neutral| is_same(neutral, value)) {
            return None;
        }
        let but = match neutral {
            [] => "leave it out".to_owned(),
            some => format!("leave it out, or give {}", some.join(" or ")),
        };
        let what = format!("{} is not supported; {but}", shown(value));
        Some(ApiError {
            code: "unsupported".into(),
            ..ApiError::field(self.name, what)
        })
    }
}

/// Whether two texts of JSON are the same value; numbers are what they count.
fn is_same(neutral: &str, value: &str) -> bool {
    // As much space around it as anybody writes; what is longer is another value.
    if value.len() > 4 * neutral.len() {
        return false;
    }
    let parse = |text: &str| serde_json::from_str::<Value>(text).ok();
    match (parse(neutral), parse(value)) {
        (Some(Value::Number(one)), Some(Value::Number(other))) => one.as_f64() == other.as_f64(),
        (one, other) => one == other,
    }
}

#[cfg(test)]
mod tests;
