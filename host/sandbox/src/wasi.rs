//! Inert WASI, for components whose toolchain links it: no files, no sockets, no environment, no arguments.
//!
//! What is left is a coarse clock, random numbers from the system, and stdout and stderr as log lines.

use crate::log::{LogLevel, LogSink};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::{HostMonotonicClock, HostWallClock, WasiCtx, WasiCtxBuilder};

/// Clocks step this far: enough to measure a model, too coarse to measure a cache.
const CLOCK_STEP: Duration = Duration::from_millis(5);
const RANDOM_BYTES_MAX: u64 = 64 << 10;
/// A line without an end is cut here.
const LINE_BYTES_MAX: usize = 4096;

/// The WASI of one call.
pub(crate) fn inert(log: &LogSink) -> WasiCtx {
    WasiCtxBuilder::new()
        .allow_tcp(false)
        .allow_udp(false)
        .allow_ip_name_lookup(false)
        .max_random_size(RANDOM_BYTES_MAX)
        .monotonic_clock(CoarseMonotonic {
            start: Instant::now(),
        })
        .wall_clock(CoarseWall)
        .stdout(LogStream {
            log: log.clone(),
            level: LogLevel::Info,
        })
        .stderr(LogStream {
            log: log.clone(),
            level: LogLevel::Warn,
        })
        .build()
}

fn coarse(time: Duration) -> Duration {
    let step = CLOCK_STEP.as_nanos();
    let rounded = time.as_nanos() / step * step;
    Duration::from_nanos(u64::try_from(rounded).unwrap_or(u64::MAX))
}

struct CoarseMonotonic {
    start: Instant,
}

impl HostMonotonicClock for CoarseMonotonic {
    fn resolution(&self) -> u64 {
        CLOCK_STEP.as_nanos() as u64
    }

    fn now(&self) -> u64 {
        u64::try_from(coarse(self.start.elapsed()).as_nanos()).unwrap_or(u64::MAX)
    }
}

struct CoarseWall;

impl HostWallClock for CoarseWall {
    fn resolution(&self) -> Duration {
        CLOCK_STEP
    }

    fn now(&self) -> Duration {
        coarse(
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
        )
    }
}

struct LogStream {
    log: LogSink,
    level: LogLevel,
}

impl IsTerminal for LogStream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for LogStream {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(LineWriter {
            log: self.log.clone(),
            level: self.level,
            line: Vec::new(),
        })
    }
}

/// Collects bytes until a line is complete.
struct LineWriter {
    log: LogSink,
    level: LogLevel,
    line: Vec<u8>,
}

impl LineWriter {
    fn end_line(&mut self) {
        if !self.line.is_empty() {
            self.log
                .write(self.level, &String::from_utf8_lossy(&self.line));
            self.line.clear();
        }
    }
}

impl AsyncWrite for LineWriter {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        for &byte in bytes {
            if byte == b'\n' || self.line.len() >= LINE_BYTES_MAX {
                self.end_line();
            }
            if byte != b'\n' {
                self.line.push(byte);
            }
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end_line();
        Poll::Ready(Ok(()))
    }
}

impl Drop for LineWriter {
    fn drop(&mut self) {
        self.end_line();
    }
}
