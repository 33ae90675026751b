//! Returns without having said anything.

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
        Ok(())
    }
}

realm_guest::workflow!(Guest);
