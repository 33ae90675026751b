//! Panics, which a component turns into a trap.

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

    fn handle(_request: Request, _reply: Reply) -> Result<(), Error> {
        panic!("the guest gives up");
    }
}

realm_guest::workflow!(Guest);
