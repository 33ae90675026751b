//! `POST /v1/embeddings`: texts or tokens in, a vector for each out.

use super::body::{TenantBody, json_answer};
use super::json::{self, Count, Inputs, TextOrTokens, Word};
use super::parameters::{self, Route};
use crate::error::{ApiError, ApiResult};
use crate::models::EmbeddingModel;
use crate::state::{App, TenantEntry};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use realm_engine::{EMBED_TEXTS_MAX, EngineError, Owner};
use realm_sandbox::{CallError, GuestError, MemoryCharge};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// Bytes for each number of a vector: the number, its JSON value and its text.
const VECTOR_NUMBER_BYTES: usize = 56;

/// What a client asks.
#[derive(Debug, Deserialize)]
pub(super) struct EmbeddingRequest {
    model: String,
    input: Inputs<EMBED_TEXTS_MAX>,
    #[serde(default)]
    encoding_format: Option<Word<Encoding>>,
    #[serde(default)]
    dimensions: Option<Count>,
}

/// How vectors are written.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    Float,
    /// The bytes of the numbers.
    Base64,
}

/// Answers a request with OpenAI's body.
///
/// # Errors
/// 400 that names the field, 404 for a model that gives no embeddings, 503 when too many texts of the tenant wait.
pub(super) async fn embed(
    app: &Arc<App>,
    tenant: &TenantEntry,
    body: TenantBody,
) -> ApiResult<Response> {
    let (request, mut charge) = body.parse(app, tenant, parse, heap_bytes).await?;
    let table = app.models();
    let model = table
        .embedding_named(&request.model)
        .ok_or_else(|| ApiError::no_model(&request.model))?;
    let dimensions = model.client.dimensions();
    if request
        .dimensions
        .is_some_and(|asked| asked.0 as usize != dimensions)
    {
        let what = format!("a number other than the model's {dimensions}");
        return Err(ApiError::unsupported("dimensions", what));
    }
    // The vectors, and the answer that is written of them.
    let vector_bytes = request.input.0.len() * dimensions * VECTOR_NUMBER_BYTES;
    charge.resize(charge.bytes() + vector_bytes)?;
    let (inputs, charge) = tokens(tenant, model, request.input.0, charge).await?;
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
    let encoding = request.encoding_format.map(|Word(encoding)| encoding);
    let vectors = vectors.iter().enumerate().map(|(index, vector)| {
        let embedding = match encoding {
            Some(Encoding::Base64) => encoded(vector),
            Some(Encoding::Float) | None => json!(vector),
        };
        json!({"object": "embedding", "index": index, "embedding": embedding})
    });
    let body = json!({
        "object": "list",
        "data": vectors.collect::<Vec<Value>>(),
        "model": model.name,
        "usage": {"prompt_tokens": count, "total_tokens": count},
    });
    json_answer(&body, charge)
}

fn heap_bytes(request: &EmbeddingRequest) -> usize {
    let input = |input: &TextOrTokens| match input {
        // The tokens of a text are there before the text is gone.
        TextOrTokens::Text(text) => text.capacity() + text.len() * size_of::<u32>(),
        TextOrTokens::Tokens(tokens) => tokens.capacity() * size_of::<u32>(),
    };
    let list = request.input.0.capacity() * size_of::<TextOrTokens>();
    request.model.capacity() + list + request.input.0.iter().map(input).sum::<usize>()
}

/// Texts become tokens on a thread that may take its time. The charge stays with it until it is done.
async fn tokens(
    tenant: &TenantEntry,
    model: &EmbeddingModel,
    inputs: Vec<TextOrTokens>,
    charge: MemoryCharge,
) -> ApiResult<(Vec<Vec<u32>>, MemoryCharge)> {
    let client = model.client.clone();
    let tokens = move |input| match input {
        TextOrTokens::Text(text) => client.encode(&text).map_err(refused),
        TextOrTokens::Tokens(tokens) => Ok(tokens),
    };
    let work = move || inputs.into_iter().map(tokens).collect::<ApiResult<_>>();
    let done = tenant.memory.run_blocking(charge, work).await;
    let (tokens, charge) = done.map_err(|error| ApiError::internal(&error))?;
    Ok((tokens?, charge))
}

fn refused(error: EngineError) -> ApiError {
    match error {
        EngineError::Invalid(what) => ApiError::field("input", what),
        EngineError::Overloaded { retry_after_ms } => {
            let what = "this tenant already has too many texts waiting".to_owned();
            CallError::Host(GuestError::Overloaded {
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

pub(super) fn parse(body: &[u8]) -> ApiResult<EmbeddingRequest> {
    let what = "the request body";
    let request: EmbeddingRequest = json::parse(body, what)?;
    parameters::check(body, what, Route::Embedding)?;
    if request.input.0.is_empty() || request.input.0.iter().any(TextOrTokens::is_empty) {
        return Err(ApiError::field("input", "must not be empty"));
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(more: Value) -> Result<EmbeddingRequest, String> {
        let mut body = json!({"model": "m", "input": "once"});
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        parse(body.to_string().as_bytes()).map_err(|error| error.param.unwrap())
    }

    #[test]
    fn an_input_is_text_or_tokens_or_a_list_of_them() {
        let inputs = |value: Value| check(json!({"input": value})).unwrap().input.0;
        let text = |text: &str| TextOrTokens::Text(text.to_owned());
        assert_eq!(inputs(json!("a")), [text("a")]);
        assert_eq!(inputs(json!(["a", "b"])), [text("a"), text("b")]);
        assert_eq!(inputs(json!([1, 2])), [TextOrTokens::Tokens(vec![1, 2])]);
        assert_eq!(
            inputs(json!([[1, 2], "a"])),
            [TextOrTokens::Tokens(vec![1, 2]), text("a")]
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
            (json!({"input": ["a", 1]}), "input[1]"),
            (json!({"input": [1, "a"]}), "input[1]"),
            (json!({"input": {}}), "input"),
            (json!({"input": vec!["a"; EMBED_TEXTS_MAX + 1]}), "input"),
            (json!({"model": 5}), "model"),
            (json!({"encoding_format": "hex"}), "encoding_format"),
            (json!({"encoding_format": [1]}), "encoding_format"),
            (json!({"dimensions": -1}), "dimensions"),
        ] {
            assert_eq!(check(more.clone()).err().as_deref(), Some(name), "{more}");
        }
    }

    #[test]
    fn base64_holds_little_endian_floats() {
        assert_eq!(encoded(&[1.0]), json!("AACAPw=="));
    }
}
