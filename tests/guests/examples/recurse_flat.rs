//! Calls itself until the stack of the host ends, using none of its own.

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
        std::hint::black_box(deeper(1));
        Ok(())
    }
}

realm_guest::workflow!(Guest);

#[inline(never)]
fn deeper(n: u64) -> u64 {
    if n == u64::MAX {
        return 0;
    }
    deeper(n + 1).wrapping_mul(3) ^ n
}
