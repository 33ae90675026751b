//! Calls the cheapest host function without end.

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
            std::hint::black_box(reply.closed());
        }
    }
}

realm_guest::workflow!(Guest);
