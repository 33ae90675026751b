//! Typed Rust over Realm's WIT contract: what a tenant writes a workflow with.
//!
//! A workflow is a WASM component that runs beside the model. It answers chats and completions, exports named
//! functions, or both. The host owns the weights, the KV and the batch; a workflow holds *handles* to them, and
//! dropping a handle frees what is behind it.
//!
//! ```
//! use realm_guest::{Description, Error, Model, Reply, Request, Run, Workflow};
//!
//! /// Answers as the plain model does.
//! struct Plain;
//!
//! impl Workflow for Plain {
//!     fn describe() -> Description {
//!         Description::new().chat().completion()
//!     }
//!
//!     fn handle(request: Request, reply: Reply) -> Result<(), Error> {
//!         let model = Model::open(&request.model())?;
//!         let sequence = model.sequence()?;
//!         request.append_to(&sequence)?;
//!         reply.forward(Run::start(&[(&sequence, &request.policy())])?)?;
//!         Ok(())
//!     }
//! }
//!
//! realm_guest::workflow!(Plain);
//! # fn main() {}
//! ```
//!
//! Build it as a `cdylib` for `wasm32-unknown-unknown` and make a component of it (`cargo xtask guests` does both), or
//! for `wasm32-wasip2`, whose linker does both. WASI is there but inert: no files, no sockets, no environment.
//!
//! Calls block only this workflow: the host suspends it and goes on with others. Errors say what to do next
//! ([`Error`]), and one that `handle` returns reaches the client as it is.

mod bindings;
mod describe;
mod error;
mod exchange;
mod generate;
mod model;

/// Lines for the tenant's log.
pub mod log;

pub use bindings::realm::host::exchange::Kind;
pub use bindings::realm::llm::generation::{Event, Finish};
pub use bindings::realm::llm::model::Facts;
pub use bindings::realm::llm::types::{
    Alternative, Content, ContentPart, Error, Message, PromptEnd, Retry, StopReason, Token,
    TokenLogprob, Tool, ToolCall, Usage,
};
pub use describe::Description;
pub use exchange::{Reply, Request};
pub use generate::{Policy, Run};
pub use model::{Model, Sequence};
pub use serde_json as json;

/// One program for the host to run; [`workflow!`] exports it.
pub trait Workflow {
    /// What this workflow serves. Called once, at upload, without access to a model.
    fn describe() -> Description;

    /// Serves one call. Every call gets a fresh instance: nothing is left of the one before.
    ///
    /// # Errors
    /// Whatever is returned reaches the client as it is.
    fn handle(request: Request, reply: Reply) -> Result<(), Error>;
}

/// Exports a [`Workflow`] from the component. Once per crate.
///
/// A panic is written to the tenant's log before it ends the call.
#[macro_export]
macro_rules! workflow {
    ($workflow:ty) => {
        const _: () = {
            struct Exported;

            impl $crate::export::Guest for Exported {
                fn describe() -> String {
                    $crate::export::describe::<$workflow>()
                }

                fn handle(
                    request: $crate::export::Request,
                    reply: $crate::export::Reply,
                ) -> Result<(), $crate::Error> {
                    $crate::export::handle::<$workflow>(request, reply)
                }
            }

    $crate::export::export_workflow!(Exported with_types_in $crate::export);
        };
    };
}

/// What [`workflow!`] expands to; not for use by hand.
#[doc(hidden)]
pub mod export {
    pub use crate::bindings::*;

    /// The description as the host wants it.
    pub fn describe<W: crate::Workflow>() -> String {
        W::describe().to_json()
    }

    /// One call, with panics going to the log.
    ///
    /// # Errors
    /// Those of the workflow.
    pub fn handle<W: crate::Workflow>(request: Request, reply: Reply) -> Result<(), crate::Error> {
        crate::log::panics();
        W::handle(crate::Request::new(request), crate::Reply::new(reply))
    }
}
