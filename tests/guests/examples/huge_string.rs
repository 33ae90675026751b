//! Sends one string of 64 MiB.

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
        reply.text(0, &"x".repeat(64 << 20))
    }
}

realm_guest::workflow!(Guest);
