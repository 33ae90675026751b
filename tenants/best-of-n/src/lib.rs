//! Best of n: forks one prefilled prompt n ways, decodes all in one batch, and answers with the candidate that the
//! model itself finds likeliest per token.
//!
//! Works for any chat or completion with n = 4. The function `best_of_n` takes its own `n` and also returns the scores.

use realm_guest::json::json;
use realm_guest::{
    Description, Error, Event, Finish, Kind, Message, Model, Policy, Reply, Request, Run, Sequence,
    StopReason, Workflow,
};

const DEFAULT_N: u32 = 4;
const MAX_N: u64 = 16;
const DEFAULT_MAX_TOKENS: u32 = 128;
/// The candidates have to differ, so a function call that names no temperature does not decode greedily.
const DEFAULT_TEMPERATURE: f32 = 0.8;

struct BestOfN;

impl Workflow for BestOfN {
    fn describe() -> Description {
        Description::new().chat().completion().function(
            "best_of_n",
            "Answers a prompt n times from one shared prefix and returns the likeliest answer.",
            json!({
                "type": "object",
                "properties": {
                    "prompt": {"type": "string"},
                    "n": {"type": "integer", "minimum": 1, "maximum": MAX_N, "default": DEFAULT_N},
                    "max_tokens": {"type": "integer", "minimum": 1, "default": DEFAULT_MAX_TOKENS},
                    "temperature": {"type": "number", "minimum": 0, "default": DEFAULT_TEMPERATURE},
                    "seed": {"type": "integer", "minimum": 0}
                },
                "required": ["prompt"]
            }),
        )
    }

    fn handle(request: Request, reply: Reply) -> Result<(), Error> {
        let model = Model::open(&request.model())?;
        if request.kind() == Kind::Function {
            return function(&model, &request, &reply);
        }
        let sequence = model.sequence()?;
        request.append_to(&sequence)?;
        reply.prompt_logprobs(&sequence)?;
        if request.echo() {
            reply.echo(0)?;
        }
        let best = best_of(candidates(sequence, DEFAULT_N, &request.policy())?)?;
        // The events go out as they came, so that the client's log-probabilities and the reason to stop are real.
        for event in &best.events {
            reply.emit(0, event)?;
        }
        Ok(())
    }
}

/// The function's own parameters instead of a client's chat.
fn function(model: &Model, request: &Request, reply: &Reply) -> Result<(), Error> {
    let parameters = request.parameters()?;
    let Some(prompt) = parameters["prompt"].as_str() else {
        return Err(Error::invalid_because("prompt: a string is required"));
    };
    let n = parameters
        .get("n")
        .map_or(Some(DEFAULT_N.into()), |n| n.as_u64());
    let Some(n @ 1..=MAX_N) = n else {
        return Err(Error::invalid_because(format!("n: 1 to {MAX_N}")));
    };
    let max_tokens = parameters["max_tokens"]
        .as_u64()
        .map_or(DEFAULT_MAX_TOKENS, |n| n.min(u32::MAX.into()) as u32);
    let temperature = parameters["temperature"]
        .as_f64()
        .map_or(DEFAULT_TEMPERATURE, |value| value as f32);
    let mut policy = request
        .policy()
        .max_tokens(max_tokens)
        .temperature(temperature);
    if let Some(seed) = parameters["seed"].as_u64() {
        policy = policy.seed(seed);
    }

    let prompt = model.render(&[Message::user(prompt)])?;
    let sequence = model.sequence()?;
    sequence.append(&prompt)?;
    let candidates = candidates(sequence, n as u32, &policy)?;
    let scores: Vec<f32> = candidates.iter().map(Candidate::mean_logprob).collect();
    let best = best_of(candidates)?;
    let text: String = best.events.iter().map(|e| e.text.as_str()).collect();
    reply.json(&json!({"text": text, "mean_logprob": best.mean_logprob(), "scores": scores}))
}

/// One of the answers, as it came from the host.
#[derive(Default)]
struct Candidate {
    events: Vec<Event>,
    logprob: f32,
    tokens: u32,
}

impl Candidate {
    /// Per token, so that a long answer is not punished for being long. An empty answer is the least likely.
    fn mean_logprob(&self) -> f32 {
        if self.tokens == 0 {
            f32::MIN
        } else {
            self.logprob / self.tokens as f32
        }
    }
}

/// Decodes `n` answers to one prompt in one batch.
fn candidates(sequence: Sequence, n: u32, policy: &Policy) -> Result<Vec<Candidate>, Error> {
    let sequences = sequence.split(n)?;
    let run = Run::start_all(&sequences, &policy.clone().logprobs(0))?;
    let mut candidates: Vec<Candidate> = sequences.iter().map(|_| Candidate::default()).collect();
    while let Some(events) = run.next(u32::MAX)? {
        for event in events {
            match &event.finish {
                Some(Finish::Failed(error)) => return Err(error.clone()),
                Some(Finish::Stopped(StopReason::Cancelled)) => return Err(Error::Cancelled),
                _ => {}
            }
            let candidate = &mut candidates[event.job as usize];
            for token in &event.logprobs {
                candidate.logprob += token.logprob;
            }
            candidate.tokens += event.logprobs.len() as u32;
            candidate.events.push(event);
        }
    }
    Ok(candidates)
}

fn best_of(candidates: Vec<Candidate>) -> Result<Candidate, Error> {
    candidates
        .into_iter()
        .max_by(|a, b| a.mean_logprob().total_cmp(&b.mean_logprob()))
        .ok_or_else(|| Error::invalid_because("no candidates were asked for"))
}

realm_guest::workflow!(BestOfN);
