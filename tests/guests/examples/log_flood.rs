//! Logs without end.

use realm_guest::{Description, Error, Reply, Request, Workflow, log};

struct Guest;

impl Workflow for Guest {
    fn describe() -> Description {
        Description::new().chat().completion().function(
            "go",
            "Does it.",
            realm_guest::json::json!({}),
        )
    }

    fn handle(_request: Request, _reply: Reply) -> Result<(), Error> {
        let line = "x".repeat(1000);
        loop {
            log::info(&line);
        }
    }
}

realm_guest::workflow!(Guest);
