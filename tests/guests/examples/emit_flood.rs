//! Emits events of many tokens that no model made, to a client that does not read.

use realm_guest::{Description, Error, Event, Reply, Request, Workflow};

struct Guest;

impl Workflow for Guest {
    fn describe() -> Description {
        Description::new().chat()
    }

    fn handle(_request: Request, reply: Reply) -> Result<(), Error> {
        let event = Event {
            job: 0,
            text: String::new(),
            tokens: vec![1; 500_000],
            logprobs: Vec::new(),
            finish: None,
        };
        loop {
            reply.emit(0, &event)?;
        }
    }
}

realm_guest::workflow!(Guest);
