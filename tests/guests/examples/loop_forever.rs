//! Never returns and never calls the host.

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
        let mut n = 0u64;
        loop {
            n = std::hint::black_box(n.wrapping_add(1));
        }
    }
}

realm_guest::workflow!(Guest);
