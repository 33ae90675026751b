//! Forks a sequence and never drops one.

use realm_guest::{Description, Error, Model, Reply, Request, Workflow};

struct Guest;

impl Workflow for Guest {
    fn describe() -> Description {
        Description::new().chat().completion().function(
            "go",
            "Does it.",
            realm_guest::json::json!({}),
        )
    }

    fn handle(request: Request, _reply: Reply) -> Result<(), Error> {
        let model = Model::open(&request.model())?;
        let first = model.sequence()?;
        first.append(&[1, 2, 3])?;
        let mut kept = Vec::new();
        loop {
            kept.push(first.fork()?);
        }
    }
}

realm_guest::workflow!(Guest);
