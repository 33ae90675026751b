//! Calls itself until its own stack in linear memory ends.

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
#[allow(unconditional_recursion, reason = "the behaviour under test")]
fn deeper(n: u64) -> u64 {
    let local = std::hint::black_box([n; 32]);
    deeper(n + 1) + local[7]
}
