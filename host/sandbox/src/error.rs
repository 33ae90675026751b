//! What can go wrong, with a stable code and a text for the client. Details go to the tenant's log or the operator's.

use realm_engine::EngineError;
use std::time::Duration;

/// Why a sandbox or a stored artifact cannot be used. The operator's to mend.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A setting is out of range.
    #[error("sandbox settings: {0}")]
    Config(String),
    /// The runtime refused its settings, or the pool's address space is not to be had.
    #[error("the runtime cannot start: {0}")]
    Runtime(String),
    /// The artifact was made by another version, other settings or another key, or is damaged: compile again.
    #[error("the compiled component cannot be used and has to be compiled again: {0}")]
    Artifact(&'static str),
    /// The component does not fit the contract.
    #[error("the component does not fit the contract: {0}")]
    Contract(String),
}

/// Why an upload was refused: what is wrong, and what is allowed.
#[derive(Debug, thiserror::Error)]
pub enum Rejected {
    /// Not a component, or a broken one.
    #[error("not a valid component: {0}")]
    Malformed(String),
    /// A count or a size is over its limit.
    #[error("{what} is {found}, at most {allowed} is allowed")]
    TooLarge {
        /// Which count or size.
        what: &'static str,
        /// What the component has.
        found: u64,
        /// What it may have.
        allowed: u64,
    },
    /// It wants something no tenant is granted.
    #[error("the import {name} is not granted; a workflow may import {granted}")]
    Import {
        /// The import as the component names it.
        name: String,
        /// What it could import.
        granted: String,
    },
    /// It lacks a function the host calls, or has it with another type.
    #[error("the component does not fit the world realm:tenant/workflow: {0}")]
    World(String),
    /// Compiling took too much memory or time.
    #[error("compiling the component takes too much: {0}")]
    TooCostly(String),
    /// The host's own trouble: trying again may help.
    #[error("the compiler could not be run")]
    Host(#[source] std::io::Error),
}

/// A typed error that a component returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestError {
    /// The request is wrong.
    Invalid(String),
    /// A grant or a limit forbids it.
    Denied(String),
    /// A budget of the tenant is spent.
    Quota {
        /// Which.
        what: String,
        /// When to try again.
        retry_after_ms: u32,
    },
    /// The host is full.
    Overloaded {
        /// Of what.
        what: String,
        /// When to try again.
        retry_after_ms: u32,
    },
    /// So many tokens would still fit.
    ContextFull(u32),
    /// Out of time.
    Deadline,
    /// Somebody cancelled it.
    Cancelled,
    /// The model or the host cannot do it.
    Unsupported(String),
    /// A trace id.
    Internal(String),
}

/// How a call ended when it did not end well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError {
    /// The component ran into a trap: a panic, a bad access, an exit.
    Trap {
        /// What kind of trap.
        public: String,
    },
    /// Too much processor time.
    CpuBudget {
        /// The budget.
        ms: u64,
    },
    /// Out of time.
    Deadline {
        /// The time it had.
        ms: u64,
    },
    /// Too much linear memory.
    MemoryLimit {
        /// The limit it ran into: its own or its tenant's.
        bytes_max: usize,
    },
    /// Too many table elements.
    TableLimit {
        /// The limit.
        elements_max: usize,
    },
    /// Its stack ended.
    StackOverflow,
    /// Too many handles at once.
    HandleLimit {
        /// The limit.
        handles_max: u32,
    },
    /// It sent too much in one call to the host.
    ArgumentLimit {
        /// The limit.
        bytes_max: usize,
    },
    /// The error the component returned.
    Guest(GuestError),
    /// A trouble of the host that the component was told of and returned.
    Host(GuestError),
    /// It exports no such function.
    NoFunction {
        /// What was asked for.
        name: String,
        /// What there is.
        available: Vec<String>,
    },
    /// Its description is not what the contract says.
    BadDescription(String),
    /// It returned without having answered.
    NoReply,
    /// Every instance is in use.
    Busy {
        /// When to try again.
        retry_after_ms: u32,
    },
    /// The host's own fault.
    Internal {
        /// For the operator; not for the client.
        detail: String,
    },
}

impl CallError {
    /// A stable word for programs and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            CallError::Trap { .. } => "guest_trap",
            CallError::CpuBudget { .. } => "cpu_budget_exceeded",
            CallError::Deadline { .. } => "deadline_exceeded",
            CallError::MemoryLimit { .. } => "memory_limit_exceeded",
            CallError::TableLimit { .. } => "table_limit_exceeded",
            CallError::StackOverflow => "stack_overflow",
            CallError::HandleLimit { .. } => "handle_limit_exceeded",
            CallError::ArgumentLimit { .. } => "argument_limit_exceeded",
            // Made up by the component: the host's own are `Host`.
            CallError::Guest(GuestError::Internal(_) | GuestError::Overloaded { .. }) => {
                "guest_error"
            }
            CallError::Guest(error) | CallError::Host(error) => error.code(),
            CallError::NoFunction { .. } => "no_such_function",
            CallError::BadDescription(_) => "bad_description",
            CallError::NoReply => "no_reply",
            CallError::Busy { .. } => "busy",
            CallError::Internal { .. } => "internal_error",
        }
    }

    /// What the client may read.
    pub fn public(&self) -> String {
        match self {
            CallError::Trap { public } => format!("the workflow failed: {public}"),
            CallError::CpuBudget { ms } => {
                format!("the workflow used up its processor time of {ms} ms")
            }
            CallError::Deadline { ms } => format!("the workflow did not end within {ms} ms"),
            CallError::MemoryLimit { bytes_max } => {
                format!("the workflow needs more memory than its limit of {bytes_max} bytes")
            }
            CallError::TableLimit { elements_max } => {
                format!("the workflow needs more table elements than its limit of {elements_max}")
            }
            CallError::StackOverflow => "the workflow's stack overflowed".to_owned(),
            CallError::HandleLimit { handles_max } => {
                format!("the workflow holds more handles than its limit of {handles_max}")
            }
            CallError::ArgumentLimit { bytes_max } => {
                format!("the workflow sent more than {bytes_max} bytes in one call to the host")
            }
            CallError::Guest(GuestError::Internal(what) | GuestError::Overloaded { what, .. }) => {
                format!("the workflow says that it failed: {what}")
            }
            CallError::Guest(error) | CallError::Host(error) => error.public(),
            CallError::NoFunction { name, available } => {
                format!(
                    "the workflow has no function {name:?}; it has: {}",
                    available.join(", ")
                )
            }
            CallError::BadDescription(what) => {
                format!("the workflow's description of itself is not valid: {what}")
            }
            CallError::NoReply => "the workflow returned without an answer".to_owned(),
            CallError::Busy { .. } => "every workflow instance is in use".to_owned(),
            CallError::Internal { .. } => "the host failed".to_owned(),
        }
    }

    /// When trying again may help.
    pub fn retry_after_ms(&self) -> Option<u32> {
        match self {
            CallError::Busy { retry_after_ms } => Some(*retry_after_ms),
            CallError::Guest(GuestError::Overloaded { .. }) => None,
            CallError::Guest(error) | CallError::Host(error) => error.retry_after_ms(),
            _ => None,
        }
    }

    pub(crate) fn deadline(after: Duration) -> CallError {
        CallError::Deadline {
            ms: u64::try_from(after.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl std::fmt::Display for CallError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CallError::Internal { detail } => write!(formatter, "{}: {detail}", self.code()),
            _ => write!(formatter, "{}: {}", self.code(), self.public()),
        }
    }
}

impl std::error::Error for CallError {}

impl GuestError {
    /// A stable word for programs and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            GuestError::Invalid(_) => "invalid_request",
            GuestError::Denied(_) => "permission_denied",
            GuestError::Quota { .. } => "quota_exceeded",
            GuestError::Overloaded { .. } => "overloaded",
            GuestError::ContextFull(_) => "context_length_exceeded",
            GuestError::Deadline => "deadline_exceeded",
            GuestError::Cancelled => "cancelled",
            GuestError::Unsupported(_) => "unsupported",
            GuestError::Internal(_) => "internal_error",
        }
    }

    /// What the client may read.
    pub fn public(&self) -> String {
        match self {
            GuestError::Invalid(what) | GuestError::Unsupported(what) => what.clone(),
            GuestError::Denied(what) => format!("not allowed: {what}"),
            GuestError::Quota { what, .. } => format!("the quota is used up: {what}"),
            GuestError::Overloaded { what, .. } => format!("the server is overloaded: {what}"),
            GuestError::ContextFull(room) => {
                format!(
                    "the prompt does not fit the model's context: there is room for {room} more tokens"
                )
            }
            GuestError::Deadline => "out of time".to_owned(),
            GuestError::Cancelled => "cancelled".to_owned(),
            GuestError::Internal(id) => format!("an internal error; its trace id is {id}"),
        }
    }

    /// When trying again may help.
    pub fn retry_after_ms(&self) -> Option<u32> {
        match self {
            GuestError::Quota { retry_after_ms, .. }
            | GuestError::Overloaded { retry_after_ms, .. } => Some(*retry_after_ms),
            _ => None,
        }
    }

    /// The engine's word for it; `trace` is what the client can quote where the text stays here.
    pub(crate) fn of_engine(error: EngineError, trace: &str) -> GuestError {
        match error {
            EngineError::Invalid(what) => GuestError::Invalid(what),
            EngineError::Quota {
                what,
                retry_after_ms,
            } => GuestError::Quota {
                what,
                retry_after_ms,
            },
            EngineError::Overloaded { retry_after_ms } => GuestError::Overloaded {
                what: "the engine's queue is full".to_owned(),
                retry_after_ms,
            },
            EngineError::ContextFull { room } => GuestError::ContextFull(room),
            EngineError::Cancelled => GuestError::Cancelled,
            EngineError::Stopped => {
                GuestError::Internal(format!("{trace} (the engine has stopped)"))
            }
            EngineError::Internal(detail) => {
                tracing::error!(trace, detail, "the engine failed");
                GuestError::Internal(trace.to_owned())
            }
            other => {
                tracing::error!(trace, error = %other, "the engine failed in a way the sandbox has no word for");
                GuestError::Internal(trace.to_owned())
            }
        }
    }
}
