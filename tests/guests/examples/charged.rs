//! Makes the host hold or do something for it, and says what became of it: which, is the function that is called.

use realm_guest::json::{Map, Value, json};
use realm_guest::{
    Description, Error, Message, Model, Policy, PromptEnd, Reply, Request, Run, Sequence, Tool,
    ToolCall, Workflow,
};

struct Guest;

impl Workflow for Guest {
    fn describe() -> Description {
        let any = json!({"type": "object"});
        let functions = [
            (
                "runs",
                "Keeps `count` runs whose policies ask for `logprobs`.",
            ),
            (
                "endings",
                "Begins and drops runs of `count` sequences, which it keeps.",
            ),
            (
                "refused",
                "Tries to begin runs of `count` empty sequences, which it keeps.",
            ),
            (
                "rewound",
                "Appends 10,000 tokens to each of `count` sequences, and takes them back.",
            ),
            (
                "orphans",
                "Keeps `count` forks of 2,000 tokens whose parents it drops.",
            ),
            (
                "tools",
                "Renders a tool whose parameters are `count` values, each a `unit`.",
            ),
            (
                "calls",
                "Renders a call of a tool with `count` values as its arguments.",
            ),
            (
                "logprobs",
                "Begins a run that asks for `count` alternatives.",
            ),
            ("stop", "Begins a run with a stop string of `count` bytes."),
            ("stops", "Begins a run with `count` stop strings."),
            ("bias", "Begins a run with `count` biases."),
            (
                "fails",
                "Generates `count` tokens, says none of them and fails.",
            ),
        ];
        let describe = |description: Description, (name, what): (&str, &str)| {
            description.function(name, what, any.clone())
        };
        functions.into_iter().fold(Description::new(), describe)
    }

    fn handle(request: Request, reply: Reply) -> Result<(), Error> {
        let parameters = request.parameters()?;
        let count = parameters["count"].as_u64().unwrap_or(0) as usize;
        let unit = parameters["unit"].as_str().unwrap_or_default();
        let model = Model::open(&request.model())?;
        match request.function_name().as_str() {
            "runs" => runs(&model, count, parameters["logprobs"].as_u64())?,
            "endings" => endings(&model, count)?,
            "refused" => refused(&model, count)?,
            "rewound" => rewound(&model, count)?,
            "orphans" => orphans(&model, count)?,
            "tools" => tools(&model, values(unit, count))?,
            "calls" => calls(&model, values(unit, count))?,
            "logprobs" => begin(&model, &Policy::new().logprobs(count as u32))?,
            "stop" => begin(&model, &Policy::new().stop(&["x".repeat(count)]))?,
            "stops" => begin(&model, &Policy::new().stop(&vec!["x".to_owned(); count]))?,
            "bias" => begin(&model, &Policy::new().bias(&vec![(1, 1.0); count]))?,
            "fails" => fails(&model, count)?,
            other => return Err(Error::invalid_because(format!("no function {other}"))),
        }
        reply.json(&Value::Null)
    }
}

fn sequence(model: &Model) -> Result<Sequence, Error> {
    let sequence = model.sequence()?;
    sequence.append(&[1, 2, 3])?;
    Ok(sequence)
}

fn begin(model: &Model, policy: &Policy) -> Result<(), Error> {
    Run::start(&[(&sequence(model)?, policy)]).map(drop)
}

fn runs(model: &Model, count: usize, logprobs: Option<u64>) -> Result<(), Error> {
    let mut policy = Policy::new().max_tokens(1);
    if let Some(top) = logprobs {
        policy = policy.logprobs(top as u32);
    }
    let mut kept = Vec::new();
    for _ in 0..count {
        let sequence = sequence(model)?;
        kept.push((Run::start(&[(&sequence, &policy)])?, sequence));
    }
    Ok(())
}

fn endings(model: &Model, count: usize) -> Result<(), Error> {
    let policy = Policy::new().max_tokens(50_000);
    let mut kept = Vec::new();
    for index in 0..count {
        let sequence = sequence(model)?;
        let run = Run::start(&[(&sequence, &policy)])?;
        match index % 3 {
            0 => drop(run),
            1 => run.cancel(0),
            _ => {
                run.cancel(0);
                while run.next(u32::MAX)?.is_some() {}
                kept.push((sequence, Some(run)));
                continue;
            }
        }
        kept.push((sequence, None));
    }
    Ok(())
}

fn refused(model: &Model, count: usize) -> Result<(), Error> {
    let policy = Policy::new().max_tokens(50_000);
    let mut kept = Vec::new();
    for _ in 0..count {
        let empty = model.sequence()?;
        if Run::start(&[(&empty, &policy)]).is_ok() {
            return Err(Error::Internal("a run of an empty sequence".into()));
        }
        if empty.append(&vec![u32::MAX; 50_000]).is_ok() {
            return Err(Error::Internal("tokens that are not there".into()));
        }
        kept.push(empty);
    }
    Ok(())
}

fn rewound(model: &Model, count: usize) -> Result<(), Error> {
    let tokens = vec![1; 10_000];
    let mut kept = Vec::new();
    for _ in 0..count {
        let sequence = model.sequence()?;
        sequence.append(&tokens)?;
        sequence.rewind(0)?;
        // Waits for the engine, whose queue would be full otherwise.
        sequence.tokens(0, 0)?;
        kept.push(sequence);
    }
    Ok(())
}

fn orphans(model: &Model, count: usize) -> Result<(), Error> {
    let tokens = vec![1; 2_000];
    let mut kept = Vec::new();
    for _ in 0..count {
        let parent = model.sequence()?;
        parent.append(&tokens)?;
        kept.push(parent.fork()?);
    }
    Ok(())
}

/// A list of small values.
fn values(unit: &str, count: usize) -> String {
    format!("[{}0]", format!("{unit},").repeat(count))
}

fn tools(model: &Model, parameters_json: String) -> Result<(), Error> {
    let tool = Tool {
        name: "tool".into(),
        description: String::new(),
        parameters_json,
        strict: false,
    };
    model
        .render_with(
            &[Message::user("hello")],
            &[tool],
            PromptEnd::OpenTurn,
            &Map::new(),
        )
        .map(drop)
}

fn calls(model: &Model, arguments_json: String) -> Result<(), Error> {
    let call = ToolCall {
        id: "call".into(),
        name: "tool".into(),
        arguments_json,
        more_json: "{}".to_owned(),
    };
    let message = Message {
        tool_calls: vec![call],
        ..Message::assistant("")
    };
    model.render(&[message]).map(drop)
}

fn fails(model: &Model, count: usize) -> Result<(), Error> {
    let policy = Policy::new().max_tokens(count as u32);
    let sequence = sequence(model)?;
    let run = Run::start(&[(&sequence, &policy)])?;
    while run.next(u32::MAX)?.is_some() {}
    Err(Error::invalid_because("as asked"))
}

realm_guest::workflow!(Guest);
