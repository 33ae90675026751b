//! Calls the host's functions at random with absurd values, from a seed. What is refused is refused, and it goes on.

use realm_guest::json::json;
use realm_guest::{
    Alternative, Content, ContentPart, Description, Error, Event, Finish, Message, Model, Policy,
    PromptEnd, Reply, Request, Run, Sequence, StopReason, TokenLogprob, Tool, ToolCall, Workflow,
    log,
};

struct Guest;

impl Workflow for Guest {
    fn describe() -> Description {
        let any = json!({"type": "object"});
        Description::new()
            .chat()
            .function("go", "Makes `count` calls from `seed`.", any)
    }

    fn handle(request: Request, reply: Reply) -> Result<(), Error> {
        let parameters = request.parameters()?;
        let number = |name: &str| parameters[name].as_u64().unwrap_or_default();
        let mut calls = Calls {
            random: fastrand::Rng::with_seed(number("seed")),
            model: Model::open(&request.model())?,
            request,
            reply,
            sequences: Vec::new(),
            policies: Vec::new(),
            runs: Vec::new(),
        };
        for _ in 0..number("count") {
            // Most fail, as they should.
            let _ = calls.one();
        }
        calls.reply.json(&json!("done"))
    }
}

/// What a program can hold, and where its next wish comes from.
struct Calls {
    random: fastrand::Rng,
    model: Model,
    request: Request,
    reply: Reply,
    sequences: Vec<Sequence>,
    policies: Vec<Policy>,
    runs: Vec<Run>,
}

impl Calls {
    fn one(&mut self) -> Result<(), Error> {
        match self.random.u32(..12) {
            0 => self.of_model()?,
            1..=4 => self.of_sequences()?,
            5 => self.policy(),
            6 => self.begin()?,
            7 | 8 => self.of_runs()?,
            9 | 10 => self.reply()?,
            _ => self.forget(),
        }
        Ok(())
    }

    fn number(&mut self) -> u32 {
        let absurd = [0, 1, 2, 3, 17, 255, 4_096, 99_999, u32::MAX - 1, u32::MAX];
        match self.random.bool() {
            true => self.random.choice(absurd).unwrap_or_default(),
            false => self.random.u32(..300),
        }
    }

    fn decimal(&mut self) -> f32 {
        let absurd = [
            f32::NAN,
            f32::INFINITY,
            -f32::INFINITY,
            -1.0,
            0.0,
            1e-40,
            1e30,
        ];
        match self.random.bool() {
            true => self.random.choice(absurd).unwrap_or_default(),
            false => self.random.f32(),
        }
    }

    /// How long a list is; often short, now and then too long.
    fn length(&mut self) -> usize {
        let most = *self.random.choice(&[1, 4, 64, 70_000]).unwrap_or(&1);
        self.random.usize(..=most)
    }

    fn text(&mut self) -> String {
        let units = [
            "x",
            " ",
            "\0",
            "é",
            "\u{202e}\u{10ffff}",
            "<|im_end|>",
            "{",
            "[1,",
            r#"{"":"#,
            "\\\"",
        ];
        let unit = self.random.choice(units).unwrap_or_default();
        unit.repeat(self.length())
    }

    fn json_text(&mut self) -> String {
        match self.random.bool() {
            true => json!({"type": self.text(), "": [self.number(), {}]}).to_string(),
            false => self.text(),
        }
    }

    fn object_text(&mut self) -> String {
        match self.random.u32(..4) {
            0 => self.json_text(),
            1 => json!({"role": "a", "function": {"name": self.number()}}).to_string(),
            _ => "{}".to_owned(),
        }
    }

    fn tokens(&mut self) -> Vec<u32> {
        let is_wild = self.random.u32(..8) == 0;
        let length = self.length();
        let token = |_| {
            if is_wild {
                self.number()
            } else {
                self.random.u32(..256)
            }
        };
        (0..length).map(token).collect()
    }

    fn messages(&mut self) -> Vec<Message> {
        let roles = ["system", "user", "assistant", "tool", "probe"];
        let message = |_| Message {
            role: self.random.choice(roles).unwrap_or("user").to_owned(),
            content: match self.random.u32(..3) {
                0 => Content::Absent,
                1 => Content::Text(self.text()),
                _ => Content::Parts(vec![
                    ContentPart::Text(self.text()),
                    ContentPart::Json(self.json_text()),
                ]),
            },
            name: self.random.bool().then(|| "name".to_owned()),
            tool_call_id: self.random.bool().then(|| "id".to_owned()),
            tool_calls: match self.random.bool() {
                true => vec![ToolCall {
                    id: "id".to_owned(),
                    name: self.text(),
                    arguments_json: self.json_text(),
                    more_json: self.object_text(),
                }],
                false => Vec::new(),
            },
            more_json: self.object_text(),
        };
        (0..4).map(message).collect()
    }

    fn of_model(&mut self) -> Result<(), Error> {
        let (text, tokens) = (self.text(), self.tokens());
        match self.random.u32(..4) {
            0 => self.model.encode(&text).map(drop),
            1 => self.model.decode(&tokens).map(drop),
            2 => Model::open(&text).map(drop),
            _ => {
                let tool = Tool {
                    name: self.text(),
                    description: self.text(),
                    parameters_json: self.json_text(),
                    strict: self.random.bool(),
                };
                let messages = self.messages();
                let end = self
                    .random
                    .choice([PromptEnd::OpenTurn, PromptEnd::LastMessage]);
                let end = end.unwrap_or(PromptEnd::ClosedTurn);
                let variables = [(self.text(), json!([self.number()]))]
                    .into_iter()
                    .collect();
                let rendered = self.model.render_with(&messages, &[tool], end, &variables);
                rendered.map(drop)
            }
        }
    }

    fn of_sequences(&mut self) -> Result<(), Error> {
        let (one, two) = (self.number(), self.number());
        let tokens = self.tokens();
        let Some(sequence) = self.random.choice(&self.sequences) else {
            self.sequences.push(self.model.sequence()?);
            return Ok(());
        };
        match self.random.u32(..8) {
            0 => self.sequences.push(self.model.sequence()?),
            1 => {
                let fork = sequence.fork()?;
                self.sequences.push(fork);
            }
            2 => sequence.rewind(one)?,
            3 => drop(sequence.tokens(one, two)?),
            4 => drop(sequence.length()?),
            5 => drop(self.request.append_to(sequence)?),
            _ => drop(sequence.append(&tokens)?),
        }
        Ok(())
    }

    fn policy(&mut self) {
        let mut policy = match self.random.choice(&self.policies) {
            Some(policy) if self.random.bool() => policy.clone(),
            _ => Policy::new().max_tokens(self.random.u32(..50)),
        };
        for _ in 0..self.random.u32(..3) {
            policy = match self.random.u32(..11) {
                0 => policy.max_tokens(self.number()),
                1 => policy.temperature(self.decimal()),
                2 => policy.top_k(self.number()),
                3 => policy.top_p(self.decimal()),
                4 => policy.min_p(self.decimal()),
                5 => policy.seed(self.random.u64(..)),
                6 => policy.penalties(self.decimal(), self.decimal(), self.decimal()),
                7 => {
                    let tokens = self.tokens();
                    let biases: Vec<_> = tokens.iter().map(|it| (*it, self.decimal())).collect();
                    policy.bias(&biases)
                }
                8 => {
                    let stops: Vec<_> = (0..self.random.u32(..20)).map(|_| self.text()).collect();
                    policy.stop(&stops)
                }
                9 => policy.logprobs(self.number()),
                _ => policy.logprobs(self.random.u32(..20)),
            };
        }
        self.policies.push(policy);
    }

    fn begin(&mut self) -> Result<(), Error> {
        let mut jobs = Vec::new();
        for _ in 0..self.random.usize(..4) {
            let sequence = self.random.choice(&self.sequences);
            let policy = self.random.choice(&self.policies);
            jobs.extend(sequence.zip(policy));
        }
        self.runs.push(Run::start(&jobs)?);
        Ok(())
    }

    fn of_runs(&mut self) -> Result<(), Error> {
        let job = self.number();
        let Some(run) = self.random.choice(&self.runs) else {
            return Ok(());
        };
        match self.random.u32(..4) {
            0 => run.cancel(job % 5),
            1 => drop(run.usage()),
            _ => drop(run.next(self.random.u32(..4))?),
        }
        Ok(())
    }

    fn event(&mut self) -> Event {
        let tokens = self.tokens();
        let top = vec![
            Alternative {
                token: self.number(),
                logprob: self.decimal(),
            };
            self.length() % 100
        ];
        let logprob = TokenLogprob {
            token: self.number(),
            logprob: self.decimal(),
            top,
        };
        Event {
            job: self.number(),
            text: self.text(),
            tokens,
            logprobs: vec![logprob; self.random.usize(..3)],
            finish: match self.random.u32(..3) {
                0 => Some(Finish::Stopped(StopReason::ToolCall)),
                1 => Some(Finish::Failed(Error::Invalid(self.text()))),
                _ => None,
            },
        }
    }

    fn reply(&mut self) -> Result<(), Error> {
        let choice = self.number() % 3;
        let text = self.text();
        match self.random.u32(..7) {
            0 => self.reply.text(choice, &text),
            1 => {
                let event = self.event();
                self.reply.emit(choice, &event)
            }
            2 => self.reply.json(&json!({"": text})),
            3 => self.reply.finish(choice, StopReason::MaxTokens),
            4 => {
                log::info(&text);
                Ok(())
            }
            5 => match self.random.choice(&self.sequences) {
                Some(sequence) => self.reply.prompt_logprobs(sequence),
                None => Ok(()),
            },
            // Only what is sure to end is waited for.
            _ => match self.runs.pop() {
                Some(run) => {
                    (0..4).for_each(|job| run.cancel(job));
                    self.reply.forward(run).map(drop)
                }
                None => Ok(()),
            },
        }
    }

    fn forget(&mut self) {
        fn any<T>(random: &mut fastrand::Rng, list: &mut Vec<T>) {
            if !list.is_empty() {
                list.swap_remove(random.usize(..list.len()));
            }
        }
        match self.random.u32(..3) {
            0 => any(&mut self.random, &mut self.sequences),
            1 => any(&mut self.random, &mut self.policies),
            _ => any(&mut self.random, &mut self.runs),
        }
    }
}

realm_guest::workflow!(Guest);
