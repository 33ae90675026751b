//! Works: echoes, counts, generates and waits; what tests of the good cases run.

use realm_guest::json::json;
use realm_guest::{Description, Error, Kind, Model, Reply, Request, Run, Workflow, log};

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
            .function("log", "Writes to the log, then answers.", any)
    }

    fn handle(request: Request, reply: Reply) -> Result<(), Error> {
        if request.kind() != Kind::Function {
            let last = request
                .messages()
                .pop()
                .map(|message| message.content)
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
                let run = Run::start(&[(&sequence, &request.policy())])?;
                while let Some(events) = run.next(u32::MAX)? {
                    for event in events {
                        reply.emit(0, &event)?;
                    }
                }
                Ok(())
            }
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
