//! Works: echoes, counts, generates and waits; what tests of the good cases run.

use realm_guest::json::json;
use realm_guest::{Description, Error, Kind, Model, Reply, Request, Retry, Run, Workflow, log};

struct Guest;

impl Workflow for Guest {
    fn describe() -> Description {
        let any = json!({"type": "object"});
        Description::new()
            .chat()
            .function("echo", "Returns its parameters.", any.clone())
            .function(
                "count",
                "Streams the numbers from 1 to `to`.",
                json!({"type": "object", "properties": {"to": {"type": "integer", "minimum": 0}}, "required": ["to"]}),
            )
            .function(
                "generate",
                "Runs the model on `prompt` and streams its text.",
                json!({"type": "object", "properties": {"prompt": {"type": "string"}}, "required": ["prompt"]}),
            )
            .function("fail", "Returns a typed error.", any.clone())
            .function("invent", "Returns an `error` that the host has not told it of.", any.clone())
            .function("log", "Writes to the log, then answers.", any)
    }

    fn handle(request: Request, reply: Reply) -> Result<(), Error> {
        if request.kind() != Kind::Function {
            let last = request
                .messages()
                .pop()
                .map(|message| message.text())
                .unwrap_or_default();
            return reply.text(0, &last);
        }
        let parameters = request.parameters()?;
        match request.function_name().as_str() {
            "echo" => reply.json(&parameters),
            "count" => {
                for n in 1..=parameters["to"].as_u64().unwrap_or(0) {
                    reply.json(&json!(n))?;
                }
                reply.json(&json!("done"))
            }
            "generate" => {
                let model = Model::open(&request.model())?;
                let sequence = model.sequence()?;
                sequence
                    .append(&model.encode(parameters["prompt"].as_str().unwrap_or_default())?)?;
                let mut policy = request.policy();
                if let Some(least) = parameters["min_tokens"].as_u64() {
                    policy = policy.min_tokens(least as u32);
                }
                if let Some(stops) = parameters["stop_tokens"].as_array() {
                    let stops = stops.iter().filter_map(|stop| Some(stop.as_u64()? as u32));
                    policy = policy.stop_tokens(&stops.collect::<Vec<u32>>());
                }
                if let Some(on) = parameters["ignore_end"].as_bool() {
                    policy = policy.ignore_end(on);
                }
                let run = Run::start(&[(&sequence, &policy)])?;
                while let Some(events) = run.next(u32::MAX)? {
                    for event in events {
                        reply.emit(0, &event)?;
                    }
                }
                Ok(())
            }
            "invent" => Err(match parameters["error"].as_str() {
                Some("internal") => Error::Internal("as asked".to_owned()),
                Some("overloaded") => Error::Overloaded(Retry {
                    what: "as asked".to_owned(),
                    after_ms: 1,
                }),
                _ => Error::Deadline,
            }),
            "fail" => Err(Error::invalid_because("as asked")),
            "log" => {
                log::warn("a line\nwith a \u{1b}[31mcontrol\u{1b}[0m character");
                reply.json(&json!({"logged": true}))
            }
            other => Err(Error::invalid_because(format!("no function {other}"))),
        }
    }
}

realm_guest::workflow!(Guest);
