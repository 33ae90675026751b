//! Bytes on a TCP connection, for clients that do not keep to HTTP or WebSocket.

use anyhow::{Context, Result, ensure};
use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::time::Duration;

/// Nothing here takes long; a server that hangs fails the test.
const ANSWER_WAIT: Duration = Duration::from_secs(60);

/// An answer as it stood on the wire.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// The status line and the headers, in lower case.
    pub head: String,
    /// As much of a body as was announced.
    pub body: String,
}

/// A connection to the server at `base` (`http://...`).
pub fn connect(base: &str) -> Result<TcpStream> {
    let stream = TcpStream::connect(base.trim_start_matches("http://"))?;
    stream.set_read_timeout(Some(ANSWER_WAIT))?;
    Ok(stream)
}

/// Reads one answer: its head, and as much of a body as it announces.
pub fn answer(stream: &mut TcpStream) -> Result<Answer> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .map_or(Ok(0), str::parse::<usize>)?;
            if bytes.len() >= end + 4 + length {
                let status = head.split(' ').nth(1).context("a status line")?;
                return Ok(Answer {
                    status: status.parse()?,
                    body: String::from_utf8_lossy(&bytes[end + 4..end + 4 + length]).into_owned(),
                    head,
                });
            }
        }
        let count = stream.read(&mut piece).context("reading an answer")?;
        ensure!(
            count > 0,
            "closed after {:?}",
            String::from_utf8_lossy(&bytes)
        );
        bytes.extend_from_slice(&piece[..count]);
    }
}

/// Whether the server has closed the connection, or does so without sending more.
pub fn is_closed(stream: &mut TcpStream) -> Result<bool> {
    match stream.read(&mut [0; 64]) {
        Ok(count) => Ok(count == 0),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(true),
        Err(error) => Err(error.into()),
    }
}
