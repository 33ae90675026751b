//! Starts a run and never reads it: polls without waiting and throws away what it gets told.

use realm_guest::{Description, Error, Model, Reply, Request, Run, Workflow};

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
        let sequence = model.sequence()?;
        request.append_to(&sequence)?;
        let run = Run::start(&[(&sequence, &request.policy())])?;
        let idle = model.sequence()?;
        loop {
            std::hint::black_box((&run, idle.length()?));
        }
    }
}

realm_guest::workflow!(Guest);
