//! A named function that returns JSON: `extract` reads fields out of a text.
//!
//! The model is asked for JSON and helped to begin it; what it writes is parsed and checked here. Text that holds no
//! object after a few tries is an error the caller can tell from an answer, never a made-up value.

use realm_guest::json::{Map, Value, from_str, json};
use realm_guest::{Description, Error, Kind, Message, Model, Reply, Request, Run, Workflow, log};

const TRIES: u32 = 3;
const FIELDS_MAX: usize = 32;
const ANSWER_TOKENS_MAX: u32 = 256;

struct Extract;

impl Workflow for Extract {
    fn describe() -> Description {
        Description::new().function(
            "extract",
            "Reads the named fields out of a text and returns them as one JSON object; what the text lacks is null.",
            json!({
                "type": "object",
                "properties": {
                    "text": {"type": "string", "description": "What to read."},
                    "fields": {
                        "type": "array",
                        "items": {"type": "string"},
                        "minItems": 1,
                        "maxItems": FIELDS_MAX,
                        "description": "The names of the fields to return."
                    }
                },
                "required": ["text", "fields"]
            }),
        )
    }

    fn handle(request: Request, reply: Reply) -> Result<(), Error> {
        if request.kind() != Kind::Function || request.function_name() != "extract" {
            return Err(Error::Unsupported(
                "this workflow exports one function, extract".into(),
            ));
        }
        let (text, fields) = parameters(&request.parameters()?)?;
        let model = Model::open(&request.model())?;

        // The prompt ends with the beginning of the answer. It is prefilled once; each try decodes a fork of it.
        let mut prompt = model.render(&[user(&text, &fields)])?;
        let opening = format!("{{\"{}\":", fields[0]);
        prompt.extend(model.encode(&opening)?);
        let prefix = model.sequence()?;
        prefix.append(&prompt)?;

        for attempt in 0..TRIES {
            // The first try takes the likeliest answer, the others look beside it.
            let policy = request
                .policy()
                .max_tokens(ANSWER_TOKENS_MAX)
                .temperature(0.4 * attempt as f32)
                .seed(u64::from(attempt));
            let branch = prefix.fork()?;
            let answer = format!("{opening}{}", Run::start(&[(&branch, &policy)])?.text()?);
            if let Some(object) = first_object(&answer) {
                return reply.json(&Value::Object(only(object, &fields)));
            }
            log::warn(&format!(
                "try {} of {TRIES} is not a JSON object: {answer:?}",
                attempt + 1
            ));
        }
        Err(Error::Unsupported(format!(
            "the model did not write a JSON object in {TRIES} tries"
        )))
    }
}

/// The checked parameters: the text and at least one field.
fn parameters(value: &Value) -> Result<(String, Vec<String>), Error> {
    let text = value["text"]
        .as_str()
        .ok_or_else(|| Error::invalid_because("text: a string is required"))?;
    let fields: Option<Vec<String>> = value["fields"].as_array().and_then(|fields| {
        fields
            .iter()
            .map(|field| field.as_str().map(str::to_owned))
            .collect()
    });
    match fields {
        // A name with a quote in it would end the string that the prompt begins the answer with.
        Some(fields)
            if (1..=FIELDS_MAX).contains(&fields.len())
                && fields
                    .iter()
                    .all(|field| !field.is_empty() && !field.contains(['"', '\\', '\n'])) =>
        {
            Ok((text.to_owned(), fields))
        }
        _ => Err(Error::invalid_because(format!(
            "fields: 1 to {FIELDS_MAX} plain names are required"
        ))),
    }
}

fn user(text: &str, fields: &[String]) -> Message {
    let content = format!(
        "Text:\n{text}\n\nReturn one JSON object with exactly these keys: {}. Copy the values from the text; use null \
         for a key the text says nothing about. Return only the JSON.",
        fields.join(", ")
    );
    Message::user(content)
}

/// The JSON object `text` begins with, whatever the model wrote after it.
fn first_object(text: &str) -> Option<Map<String, Value>> {
    let ends = text.match_indices('}').map(|(at, _)| at + 1);
    ends.take(64).find_map(|end| from_str(&text[..end]).ok())
}

/// The fields asked for and no others.
fn only(mut object: Map<String, Value>, fields: &[String]) -> Map<String, Value> {
    fields
        .iter()
        .map(|field| (field.clone(), object.remove(field).unwrap_or(Value::Null)))
        .collect()
}

realm_guest::workflow!(Extract);
