//! Inert WASI, for components whose toolchain links it: no files, no sockets, no environment, no arguments.
//!
//! What is left is a coarse clock, random numbers from the system, and stdout and stderr as log lines.

use crate::log::{LogLevel, LogSink};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
        .stdout(LogStream::new(log, LogLevel::Info))
        .stderr(LogStream::new(log, LogLevel::Warn))
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

/// Stdout or stderr. A component can ask for any number of handles of it: all write to one line.
struct LogStream(Arc<Mutex<Line>>);

impl LogStream {
    fn new(log: &LogSink, level: LogLevel) -> LogStream {
        LogStream(Arc::new(Mutex::new(Line {
            log: log.clone(),
            level,
            bytes: Vec::new(),
        })))
    }
}

impl IsTerminal for LogStream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for LogStream {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(LineWriter(Arc::clone(&self.0)))
    }
}

/// A line that is being written; what is left of it is logged at the end.
struct Line {
    log: LogSink,
    level: LogLevel,
    bytes: Vec<u8>,
}

impl Line {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' || self.bytes.len() >= LINE_BYTES_MAX {
                self.end();
            }
            if byte != b'\n' {
                self.bytes.push(byte);
            }
        }
    }

    fn end(&mut self) {
        if !self.bytes.is_empty() {
            self.log
                .write(self.level, &String::from_utf8_lossy(&self.bytes));
            self.bytes.clear();
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.end();
    }
}

/// One handle's way to the line.
struct LineWriter(Arc<Mutex<Line>>);

impl LineWriter {
    fn line(&self) -> MutexGuard<'_, Line> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncWrite for LineWriter {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.line().write(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.line().end();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Hooks, Limits, ModelSet, Tenant, TenantMemory};

    #[derive(Default)]
    struct Lines(Mutex<Vec<String>>);

    impl Hooks for Lines {
        fn log(&self, _: &Tenant, _: &str, _: LogLevel, message: &str) {
            self.0.lock().unwrap().push(message.to_owned());
        }
    }

    #[test]
    fn all_handles_of_a_stream_keep_one_line_between_them() {
        let tenant = Tenant {
            id: 1,
            name: "acme".into(),
            weight: 1,
            kv_blocks_max: 1,
            limits: Limits::default(),
            memory: Arc::new(TenantMemory::new(0)),
            models: ModelSet::default(),
        };
        let lines = Arc::new(Lines::default());
        let log = LogSink::new(Arc::<Lines>::clone(&lines), tenant, "flow".into());
        let stream = LogStream::new(&log, LogLevel::Info);
        let handle = || LineWriter(Arc::clone(&stream.0));
        for _ in 0..1000 {
            handle().line().write(&[b'x'; 8]);
        }
        // Cut at the limit again and again, so that no more than a line is ever kept.
        assert!(stream.0.lock().unwrap().bytes.capacity() <= LINE_BYTES_MAX);
        assert_eq!(lines.0.lock().unwrap().len(), 8000 / LINE_BYTES_MAX);
        handle().line().write(b"\nlast");
        drop(stream);
        let lines = lines.0.lock().unwrap();
        let written: usize = lines.iter().map(String::len).sum();
        assert_eq!(written, 8000 + "last".len());
        assert_eq!(lines.last().map(String::as_str), Some("last"));
    }
}
