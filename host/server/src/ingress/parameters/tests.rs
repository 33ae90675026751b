//! That every row of the table is as it says, and the page the same as the table.

use super::*;
use crate::ingress::embeddings;
use crate::ingress::request::{Defaults, Family, GenerationRequest};
use serde_json::json;

/// What is understood of a request with these parameters, all of it as text.
fn understood(route: Route, more: &[Value]) -> Result<String, ApiError> {
    let mut body = match route {
        Route::Chat => json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]}),
        Route::Completion => json!({"model": "m", "prompt": "once"}),
        Route::Embedding => json!({"model": "m", "input": "once"}),
    };
    for (name, value) in more.iter().flat_map(|more| more.as_object().unwrap()) {
        body[name] = value.clone();
    }
    let text = body.to_string();
    let family = match route {
        Route::Chat => Family::Chat,
        Route::Completion => Family::Completion,
        Route::Embedding => return embeddings::parse(text.as_bytes()).map(|it| format!("{it:?}")),
    };
    let what = "the request body";
    let request = GenerationRequest::parse(text.as_bytes(), what, family, Defaults::default());
    request.map(|request| format!("{request:?}"))
}

fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Every row on each of its routes.
fn rows() -> impl Iterator<Item = (&'static Parameter, Route)> {
    PARAMETERS
        .iter()
        .flat_map(|row| row.routes.iter().map(move |route| (row, *route)))
}

#[test]
fn every_parameter_that_is_honoured_makes_a_difference() {
    for (row, route) in rows() {
        let Effect::Honoured(_, with) = row.effect else {
            continue;
        };
        let with = value(with);
        let without = understood(route, std::slice::from_ref(&with)).unwrap();
        let one = |value: Value| json!({row.name: value});
        let null = understood(route, &[with.clone(), one(Value::Null)]).unwrap();
        assert_eq!(null, without, "{}: null is as good as nothing", row.name);
        match row.name {
            // Its one value that is taken is what is done without it.
            "best_of" => {
                let error = understood(route, &[one(json!(3))]).unwrap_err();
                assert_eq!(error.param.as_deref(), Some("best_of"));
            }
            name => {
                let given = understood(route, &[with, one(value(row.example))]).unwrap();
                assert_ne!(given, without, "{name} has no effect on {route:?}");
            }
        }
    }
}

#[test]
fn every_parameter_that_is_refused_is_named_with_its_value() {
    for (row, route) in rows() {
        let Effect::Refused(neutral) = row.effect else {
            continue;
        };
        let without = understood(route, &[]).unwrap();
        for harmless in neutral.iter().chain(&["null"]) {
            let given = understood(route, &[json!({row.name: value(harmless)})]);
            assert_eq!(given.as_ref(), Ok(&without), "{}: {harmless}", row.name);
        }
        let error = understood(route, &[json!({row.name: value(row.example)})]).unwrap_err();
        let found = (error.status.as_u16(), &*error.code, error.param.as_deref());
        assert_eq!(found, (400, "unsupported", Some(row.name)), "on {route:?}");
        let shown = value(row.example).to_string();
        assert!(error.message.contains(&shown), "{}", error.message);
    }
}

#[test]
fn no_parameter_stands_twice_on_a_route() {
    let mut seen = Vec::new();
    for (row, route) in rows() {
        assert!(!seen.contains(&(row.name, route)), "{} twice", row.name);
        seen.push((row.name, route));
    }
}

#[test]
fn what_changes_no_answer_passes() {
    let harmless = json!({
        "user": "a", "metadata": {"a": 1}, "store": true, "service_tier": "auto", "prompt_cache_key": "a",
        "safety_identifier": "a", "cache_prompt": true, "id_slot": 1, "request_id": "a", "priority": 1,
    });
    for route in [Route::Chat, Route::Completion, Route::Embedding] {
        let with = understood(route, std::slice::from_ref(&harmless));
        assert_eq!(with, understood(route, &[]));
    }
}

#[test]
fn a_value_is_the_same_however_it_is_written() {
    assert!(is_same("1", "1.0") && is_same("0", "-0") && is_same("[]", "[ ]"));
    assert!(is_same(r#"{"type": "text"}"#, "{ \"type\" :\"text\"}"));
    assert!(!is_same("1", "true") && !is_same("false", "0") && !is_same("[]", "{}"));
    let long = format!("[{}]", "[],".repeat(1 << 20));
    assert!(!is_same("[]", &long));
}

/// The table as the page has it.
fn page() -> String {
    let routes = |row: &Parameter| {
        let names = row.routes.iter().map(|route| match route {
            Route::Chat => "chat",
            Route::Completion => "completion",
            Route::Embedding => "embedding",
        });
        names.collect::<Vec<_>>().join(", ")
    };
    let line = |row: &Parameter| {
        let what = match row.effect {
            Effect::Honoured(what, _) => what.to_owned(),
            Effect::Refused([]) => "refused".to_owned(),
            Effect::Refused(neutral) => format!("refused, except `{}`", neutral.join("`, `")),
        };
        format!(
            "| `{}` | {} | {what} | `{}` |\n",
            row.name,
            routes(row),
            row.example
        )
    };
    PARAMETERS.iter().map(line).collect()
}

#[test]
fn the_page_is_the_table() {
    let file = include_str!("../../../../../docs/parameters.md");
    let rows = file.split_once("|---|---|---|---|\n").unwrap().1;
    assert_eq!(rows, page(), "docs/parameters.md is to have these rows");
}
