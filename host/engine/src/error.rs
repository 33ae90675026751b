//! What can go wrong for a caller of the engine, said so that a program knows what to do next.

use thiserror::Error;

/// Why a call was refused or a job failed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum EngineError {
    /// The call is wrong: fix it.
    #[error("{0}")]
    Invalid(String),
    /// A budget of the tenant is spent: free something or wait.
    #[error("quota: {what}")]
    Quota {
        /// Which budget, with its numbers.
        what: String,
        /// A hint when to try again.
        retry_after_ms: u32,
    },
    /// The engine is full: wait.
    #[error("the engine is overloaded; try again in {retry_after_ms} ms")]
    Overloaded {
        /// A hint when to try again.
        retry_after_ms: u32,
    },
    /// The tokens do not fit the context.
    #[error("the context is full; {room} more tokens would fit")]
    ContextFull {
        /// Tokens that would still fit.
        room: u32,
    },
    /// The work was given up by its owner.
    #[error("cancelled")]
    Cancelled,
    /// The engine is gone or going.
    #[error("the engine has stopped")]
    Stopped,
    /// A bug or a broken model; the text is for the operator, not for a tenant.
    #[error("internal: {0}")]
    Internal(String),
}

/// The hint for a full queue: the queue is emptied at every step, so a few steps are enough.
pub(crate) const OVERLOADED: EngineError = EngineError::Overloaded {
    retry_after_ms: 250,
};
