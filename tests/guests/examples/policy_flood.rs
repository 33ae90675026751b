//! Keeps policies with the longest lists there may be, which the host holds for it.

use realm_guest::{Description, Error, Policy, Reply, Request, Workflow};

struct Guest;

impl Workflow for Guest {
    fn describe() -> Description {
        Description::new().chat()
    }

    fn handle(_request: Request, reply: Reply) -> Result<(), Error> {
        let biases: Vec<(u32, f32)> = (0..4096).map(|token| (token, 1.0)).collect();
        let stops = vec!["x".repeat(60_000); 60];
        let mut kept = Vec::new();
        while !reply.closed() {
            kept.push(Policy::new().bias(&biases).stop(&stops));
        }
        Ok(())
    }
}

realm_guest::workflow!(Guest);
