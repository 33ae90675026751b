//! Making errors; the type is the contract's. Its `Display` and `std::error::Error` come with the bindings.

use crate::Error;

impl Error {
    /// The caller is wrong, and this is how.
    pub fn invalid_because(reason: impl std::fmt::Display) -> Error {
        Error::Invalid(reason.to_string())
    }

    /// How long to wait before trying again, where waiting helps.
    pub fn retry_after_ms(&self) -> Option<u32> {
        match self {
            Error::Quota(retry) | Error::Overloaded(retry) => Some(retry.after_ms),
            _ => None,
        }
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Error {
        Error::invalid_because(error)
    }
}
