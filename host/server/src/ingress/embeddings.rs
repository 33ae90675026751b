//! `POST /v1/embeddings`: texts or tokens in, a vector for each out.

use super::openai::{Fields, shown, token_ids};
use crate::error::{ApiError, ApiResult};
use crate::state::{App, EmbeddingModel, TenantEntry};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use realm_engine::{EMBED_TEXTS_MAX, EngineError, Owner};
use realm_sandbox::{CallError, GuestError};
use serde_json::{Value, json};

/// What a client asks.
#[derive(Debug, PartialEq)]
struct Request {
    model: String,
    inputs: Vec<Input>,
    /// Whether vectors are wanted as the bytes of their numbers.
    is_base64: bool,
    dimensions: Option<u32>,
}

#[derive(Debug, PartialEq)]
enum Input {
    Text(String),
    Tokens(Vec<u32>),
}

/// Answers a request with OpenAI's body.
///
/// # Errors
/// 400 that names the field, 404 for a model that gives no embeddings, 503 when too many texts of the tenant wait.
pub(super) async fn embed(app: &App, tenant: &TenantEntry, body: Value) -> ApiResult<Value> {
    let request = parse(&body)?;
    drop(body);
    let model = app
        .embedding
        .as_ref()
        .filter(|model| model.name == request.model)
        .ok_or_else(|| ApiError::no_model(&request.model))?;
    let dimensions = model.client.dimensions();
    if request
        .dimensions
        .is_some_and(|asked| asked as usize != dimensions)
    {
        let what = format!("another number than the model's {dimensions}");
        return Err(ApiError::unsupported("dimensions", what));
    }
    let inputs = tokens(model, request.inputs).await?;
    let count: usize = inputs.iter().map(Vec::len).sum();
    let owner = Owner {
        tenant: tenant.row.id,
        weight: tenant.row.weight,
        kv_blocks_max: 0, // embeddings take none
    };
    let vectors = model.client.embed(owner, inputs).await.map_err(refused)?;
    app.metrics
        .tokens_prompt
        .with_label_values(&[tenant.row.name.as_str(), model.name.as_str()])
        .inc_by(count as u64);
    let vectors = vectors.iter().enumerate().map(|(index, vector)| {
        let embedding = match request.is_base64 {
            true => encoded(vector),
            false => json!(vector),
        };
        json!({"object": "embedding", "index": index, "embedding": embedding})
    });
    Ok(json!({
        "object": "list",
        "data": vectors.collect::<Vec<Value>>(),
        "model": model.name,
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }))
}

/// Texts become tokens on a thread that may take its time.
async fn tokens(model: &EmbeddingModel, inputs: Vec<Input>) -> ApiResult<Vec<Vec<u32>>> {
    let client = model.client.clone();
    let tokens = move |input| match input {
        Input::Text(text) => client.encode(&text),
        Input::Tokens(tokens) => tokens,
    };
    tokio::task::spawn_blocking(move || inputs.into_iter().map(tokens).collect())
        .await
        .map_err(|error| ApiError::internal(&error))
}

fn refused(error: EngineError) -> ApiError {
    match error {
        EngineError::Invalid(what) => ApiError::field("input", what),
        EngineError::Overloaded { retry_after_ms } => {
            let what = "too many of the tenant's texts wait already".to_owned();
            CallError::Guest(GuestError::Overloaded {
                what,
                retry_after_ms,
            })
            .into()
        }
        other => ApiError::internal(&other),
    }
}

/// As OpenAI's clients ask for it unless told otherwise: little-endian f32.
fn encoded(vector: &[f32]) -> Value {
    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
    Value::String(STANDARD.encode(bytes))
}

fn parse(body: &Value) -> ApiResult<Request> {
    let fields = Fields::of(body)?;
    let is_base64 = match fields.string("encoding_format")? {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => {
            return Err(ApiError::field(
                "encoding_format",
                "must be float or base64",
            ));
        }
    };
    Ok(Request {
        model: fields
            .string("model")?
            .ok_or_else(|| ApiError::field("model", "is missing"))?
            .to_owned(),
        inputs: inputs(
            fields
                .get("input")
                .ok_or_else(|| ApiError::field("input", "is missing"))?,
        )?,
        is_base64,
        dimensions: fields.count("dimensions")?,
    })
}

/// A text, texts, tokens, or lists of tokens.
fn inputs(value: &Value) -> ApiResult<Vec<Input>> {
    let inputs = match value {
        Value::String(text) => vec![Input::Text(text.clone())],
        Value::Array(list) if list.first().is_some_and(Value::is_number) => {
            vec![Input::Tokens(token_ids("input", list)?)]
        }
        Value::Array(list) => list.iter().map(input).collect::<ApiResult<_>>()?,
        other => return Err(wrong(other)),
    };
    if inputs.is_empty() || inputs.len() > EMBED_TEXTS_MAX {
        let what = format!(
            "has {} texts, 1 to {EMBED_TEXTS_MAX} are allowed",
            inputs.len()
        );
        return Err(ApiError::field("input", what));
    }
    let is_empty = |input: &Input| match input {
        Input::Text(text) => text.is_empty(),
        Input::Tokens(tokens) => tokens.is_empty(),
    };
    match inputs.iter().any(is_empty) {
        true => Err(ApiError::field("input", "must not be empty")),
        false => Ok(inputs),
    }
}

fn input(value: &Value) -> ApiResult<Input> {
    match value {
        Value::String(text) => Ok(Input::Text(text.clone())),
        Value::Array(tokens) => token_ids("input", tokens).map(Input::Tokens),
        other => Err(wrong(other)),
    }
}

fn wrong(value: &Value) -> ApiError {
    let what = format!(
        "must be text, token ids, or a list of them, not {}",
        shown(value)
    );
    ApiError::field("input", what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(more: Value) -> Result<Request, String> {
        let mut body = json!({"model": "m", "input": "once"});
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        parse(&body).map_err(|error| error.param.unwrap())
    }

    #[test]
    fn an_input_is_text_or_tokens_or_a_list_of_them() {
        let inputs = |value: Value| check(json!({"input": value})).unwrap().inputs;
        let text = |text: &str| Input::Text(text.to_owned());
        assert_eq!(inputs(json!("a")), [text("a")]);
        assert_eq!(inputs(json!(["a", "b"])), [text("a"), text("b")]);
        assert_eq!(inputs(json!([1, 2])), [Input::Tokens(vec![1, 2])]);
        assert_eq!(
            inputs(json!([[1, 2], "a"])),
            [Input::Tokens(vec![1, 2]), text("a")]
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (more, name) in [
            (json!({"input": null}), "input"),
            (json!({"input": ""}), "input"),
            (json!({"input": []}), "input"),
            (json!({"input": ["a", ""]}), "input"),
            (json!({"input": [[]]}), "input"),
            (json!({"input": ["a", 1]}), "input"),
            (json!({"input": [1, "a"]}), "input"),
            (json!({"input": {}}), "input"),
            (json!({"input": vec!["a"; EMBED_TEXTS_MAX + 1]}), "input"),
            (json!({"model": 5}), "model"),
            (json!({"encoding_format": "hex"}), "encoding_format"),
            (json!({"dimensions": -1}), "dimensions"),
        ] {
            assert_eq!(check(more.clone()), Err(name.to_owned()), "{more}");
        }
    }

    #[test]
    fn base64_holds_little_endian_floats() {
        assert_eq!(encoded(&[1.0]), json!("AACAPw=="));
    }
}
