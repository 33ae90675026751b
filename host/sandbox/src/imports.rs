//! The functions components call: one file per WIT interface, and here what they share.

pub(crate) mod exchange;
pub(crate) mod generation;
mod json_size;
mod log;
pub(crate) mod model;
pub(crate) mod prompt;
pub(crate) mod sequence;

use crate::GuestError;
use crate::bindings::realm::llm::types::{self, Error, Retry, StopReason};
use crate::memory::NoMemory;
use crate::state::State;
use realm_engine as engine;
use wasmtime::component::{HasSelf, Linker, ResourceTableError};

/// Why a host function gives no result: an error the component can handle, or the end of the call.
pub(crate) enum Failure {
    Typed(GuestError),
    Trap(wasmtime::Error),
}

impl Failure {
    pub(crate) fn invalid(reason: impl Into<String>) -> Failure {
        Failure::Typed(GuestError::Invalid(reason.into()))
    }
}

impl From<GuestError> for Failure {
    fn from(error: GuestError) -> Failure {
        Failure::Typed(error)
    }
}

impl From<ResourceTableError> for Failure {
    fn from(error: ResourceTableError) -> Failure {
        Failure::Trap(error.into())
    }
}

impl From<NoMemory> for Failure {
    fn from(error: NoMemory) -> Failure {
        Failure::Trap(error.into())
    }
}

impl From<wasmtime::Error> for Failure {
    fn from(error: wasmtime::Error) -> Failure {
        Failure::Trap(error)
    }
}

/// Everything a workflow can import: the contract, and inert WASI.
pub(crate) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    crate::bindings::Workflow::add_to_linker::<_, HasSelf<State>>(linker, |state| state)?;
    wasmtime_wasi::p2::add_to_linker_async(linker)
}

impl types::Host for State {
    fn convert_error(&mut self, failure: Failure) -> wasmtime::Result<Error> {
        match failure {
            Failure::Typed(error) => Ok(self.given(error)),
            Failure::Trap(error) => Err(error),
        }
    }
}

impl From<GuestError> for Error {
    fn from(error: GuestError) -> Error {
        match error {
            GuestError::Invalid(what) => Error::Invalid(what),
            GuestError::Denied(what) => Error::Denied(what),
            GuestError::Quota {
                what,
                retry_after_ms,
            } => Error::Quota(Retry {
                what,
                after_ms: retry_after_ms,
            }),
            GuestError::Overloaded {
                what,
                retry_after_ms,
            } => Error::Overloaded(Retry {
                what,
                after_ms: retry_after_ms,
            }),
            GuestError::ContextFull(room) => Error::ContextFull(room),
            GuestError::Deadline => Error::Deadline,
            GuestError::Cancelled => Error::Cancelled,
            GuestError::Unsupported(what) => Error::Unsupported(what),
            GuestError::Internal(trace) => Error::Internal(trace),
        }
    }
}

impl From<Error> for GuestError {
    /// A component's texts reach clients: cut, so that an error stays an error.
    fn from(error: Error) -> GuestError {
        use crate::log::{printable, printable_lines};
        let retry = |retry: Retry| (printable(&retry.what), retry.after_ms);
        match error {
            Error::Invalid(what) => GuestError::Invalid(printable_lines(&what)),
            Error::Denied(what) => GuestError::Denied(printable(&what)),
            Error::Quota(wait) => {
                let (what, retry_after_ms) = retry(wait);
                GuestError::Quota {
                    what,
                    retry_after_ms,
                }
            }
            Error::Overloaded(wait) => {
                let (what, retry_after_ms) = retry(wait);
                GuestError::Overloaded {
                    what,
                    retry_after_ms,
                }
            }
            Error::ContextFull(room) => GuestError::ContextFull(room),
            Error::Deadline => GuestError::Deadline,
            Error::Cancelled => GuestError::Cancelled,
            Error::Unsupported(what) => GuestError::Unsupported(printable(&what)),
            Error::Internal(trace) => GuestError::Internal(printable(&trace)),
        }
    }
}

impl From<engine::StopReason> for StopReason {
    fn from(reason: engine::StopReason) -> StopReason {
        match reason {
            engine::StopReason::EndOfTurn => StopReason::EndOfTurn,
            engine::StopReason::StopString => StopReason::StopString,
            engine::StopReason::MaxTokens => StopReason::MaxTokens,
            engine::StopReason::ContextFull => StopReason::ContextFull,
            engine::StopReason::Cancelled => StopReason::Cancelled,
        }
    }
}

/// The engine's word for a reason, where it has one.
pub(crate) fn engine_reason(reason: StopReason) -> Result<engine::StopReason, Failure> {
    Ok(match reason {
        StopReason::EndOfTurn => engine::StopReason::EndOfTurn,
        StopReason::StopString => engine::StopReason::StopString,
        StopReason::MaxTokens => engine::StopReason::MaxTokens,
        StopReason::ContextFull => engine::StopReason::ContextFull,
        StopReason::Cancelled => engine::StopReason::Cancelled,
        StopReason::ToolCall => {
            return Err(GuestError::Unsupported(
                "an answer cannot be ended with tool-call".to_owned(),
            )
            .into());
        }
    })
}
