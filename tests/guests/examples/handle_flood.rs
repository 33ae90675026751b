//! Takes handles and never drops one.

use realm_guest::{Description, Error, Reply, Request, Workflow};

struct Guest;

impl Workflow for Guest {
    fn describe() -> Description {
        Description::new().chat()
    }

    fn handle(request: Request, reply: Reply) -> Result<(), Error> {
        let mut kept = Vec::new();
        loop {
            kept.push(request.policy());
            if reply.closed() {
                return Ok(());
            }
        }
    }
}

realm_guest::workflow!(Guest);
