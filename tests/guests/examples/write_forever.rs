//! Writes to its client without end.

use realm_guest::{Description, Error, Reply, Request, Workflow};

struct Guest;

impl Workflow for Guest {
    fn describe() -> Description {
        Description::new().chat().completion().function(
            "go",
            "Does it.",
            realm_guest::json::json!({}),
        )
    }

    fn handle(_request: Request, reply: Reply) -> Result<(), Error> {
        loop {
            reply.text(0, "again and ")?;
        }
    }
}

realm_guest::workflow!(Guest);
