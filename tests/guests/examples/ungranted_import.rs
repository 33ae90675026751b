//! Imports an interface no tenant has been granted.

use realm_guest::{Description, Error, Reply, Request, Workflow};

#[allow(
    missing_docs,
    unsafe_op_in_unsafe_fn,
    clippy::undocumented_unsafe_blocks,
    reason = "generated"
)]
mod bindings {
    wit_bindgen::generate!({
        inline: "
            package other:host@1.0.0;
            interface secrets { read: func(name: string) -> string; }
            world wants { import secrets; }
        ",
    });
}

struct Guest;

impl Workflow for Guest {
    fn describe() -> Description {
        Description::new().chat()
    }

    fn handle(_request: Request, reply: Reply) -> Result<(), Error> {
        reply.text(0, &bindings::other::host::secrets::read("key"))
    }
}

realm_guest::workflow!(Guest);
