//! Never gets done describing itself.

use realm_guest::{Description, Error, Reply, Request, Workflow};

struct Guest;

impl Workflow for Guest {
    fn describe() -> Description {
        let mut n = 0u64;
        loop {
            n = std::hint::black_box(n.wrapping_add(1));
        }
    }

    fn handle(_request: Request, _reply: Reply) -> Result<(), Error> {
        Ok(())
    }
}

realm_guest::workflow!(Guest);
