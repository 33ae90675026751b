//! Why the bytes of a connection cannot be read as frames, and how it is closed for that.

use super::Close;
use axum::extract::ws::close_code;
use std::error::Error;
use std::io;
use tungstenite::Error as FrameError;
use tungstenite::error::ProtocolError;

/// How the server closes a connection whose bytes it cannot read; without a word where there is nobody to read it.
pub(super) fn close_for(error: &axum::Error) -> Close {
    let mut causes = std::iter::successors(error.source(), |&cause| cause.source());
    let fault = causes.find_map(|cause| cause.downcast_ref::<FrameError>())?;
    match fault {
        FrameError::Io(error) if error.kind() == io::ErrorKind::OutOfMemory => Some((
            close_code::AGAIN,
            "too much memory is in use for a frame of this size",
        )),
        FrameError::Capacity(_) => Some((close_code::SIZE, "a frame can be at most 4 MiB long")),
        FrameError::Utf8(_) => Some((close_code::INVALID, "text frames must be valid UTF-8")),
        FrameError::Protocol(ProtocolError::ResetWithoutClosingHandshake) => None,
        FrameError::Protocol(_) => Some((
            close_code::PROTOCOL,
            "this is not how WebSocket frames are written",
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tungstenite::error::CapacityError;

    #[test]
    fn every_fault_has_its_close_code() {
        let memory = io::Error::new(io::ErrorKind::OutOfMemory, "full");
        let capacity = CapacityError::MessageTooLong {
            size: 2,
            max_size: 1,
        };
        for (fault, code) in [
            (FrameError::Io(memory), Some(1013)),
            (FrameError::Capacity(capacity), Some(1009)),
            (FrameError::Utf8(String::new()), Some(1007)),
            (
                FrameError::Protocol(ProtocolError::UnmaskedFrameFromClient),
                Some(1002),
            ),
            (
                FrameError::Protocol(ProtocolError::ResetWithoutClosingHandshake),
                None,
            ),
            (FrameError::Io(io::ErrorKind::ConnectionReset.into()), None),
        ] {
            let text = fault.to_string();
            let close = close_for(&axum::Error::new(fault));
            assert_eq!(close.map(|(code, _)| code), code, "{text}");
        }
    }
}
