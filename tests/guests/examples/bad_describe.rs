//! Describes itself with something that is not JSON.

use realm_guest::export::{Guest as Exports, Reply, Request};

struct Guest;

impl Exports for Guest {
    fn describe() -> String {
        "{\"chat\": tru".to_owned()
    }

    fn handle(_request: Request, _reply: Reply) -> Result<(), realm_guest::Error> {
        Ok(())
    }
}

realm_guest::export::export_workflow!(Guest with_types_in realm_guest::export);
