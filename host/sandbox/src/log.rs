//! A call's log: bounded in bytes, one line at a time, without control characters.

use crate::{Hooks, Tenant};
use std::sync::{Arc, Mutex, PoisonError};

/// How serious a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// For the workflow's author.
    Debug,
    /// Worth knowing.
    Info,
    /// Worth a look.
    Warn,
    /// Something failed.
    Error,
}

/// One line at most; the rest of it is cut.
const LINE_BYTES_MAX: usize = 4096;

/// Lines at most; the rest is cut.
const LINES_MAX: usize = 32;

/// Where a call's lines go: those it writes, its stdout and stderr, and the host's words about it.
#[derive(Clone)]
pub(crate) struct LogSink {
    call: Arc<CallLog>,
}

/// What the clones of a sink have in common.
struct CallLog {
    hooks: Arc<dyn Hooks>,
    tenant: Tenant,
    workflow: Arc<str>,
    bytes_left: Mutex<Option<usize>>, // None once the drop has been noted
}

impl LogSink {
    pub(crate) fn new(hooks: Arc<dyn Hooks>, tenant: Tenant, workflow: Arc<str>) -> LogSink {
        let bytes_left = Mutex::new(Some(tenant.limits.log_bytes_max));
        LogSink {
            call: Arc::new(CallLog {
                hooks,
                tenant,
                workflow,
                bytes_left,
            }),
        }
    }

    /// Writes what the component says, as long as its budget lasts.
    pub(crate) fn write(&self, level: LogLevel, message: &str) {
        let line = printable(message);
        let left = self.call.bytes_left.lock();
        let mut left = left.unwrap_or_else(PoisonError::into_inner);
        match *left {
            None => {}
            // An empty line costs a hook call too.
            Some(bytes) if line.len() < bytes => {
                *left = Some(bytes - line.len() - 1);
                drop(left);
                self.host(level, &line);
            }
            Some(_) => {
                *left = None;
                drop(left);
                self.host(
                    LogLevel::Warn,
                    "the log limit of this call is reached: further lines are dropped",
                );
            }
        }
    }

    /// Writes the host's own words, which cost the component nothing.
    pub(crate) fn host(&self, level: LogLevel, line: &str) {
        let CallLog {
            hooks,
            tenant,
            workflow,
            ..
        } = &*self.call;
        hooks.log(tenant, workflow, level, line);
    }
}

/// One line: cut at the limit, control characters escaped, so that a log viewer shows what was written.
pub(crate) fn printable(message: &str) -> String {
    let mut line = String::with_capacity(message.len().min(LINE_BYTES_MAX));
    for char in message.trim_end().chars() {
        if line.len() >= LINE_BYTES_MAX {
            line.push('…');
            break;
        }
        if char.is_control() {
            line.extend(char.escape_default())
        } else {
            line.push(char)
        }
    }
    line
}

/// Several lines, each as [`printable`] has it: words that are shown to people as they were written, such as those of a
/// chat template.
pub(crate) fn printable_lines(message: &str) -> String {
    let lines = message.lines().take(LINES_MAX).map(printable);
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::{printable, printable_lines};

    #[test]
    fn control_characters_are_shown_and_not_obeyed() {
        assert_eq!(printable("a\u{1b}[2Jb\nc\0\n"), "a\\u{1b}[2Jb\\nc\\u{0}");
        assert!(printable(&"x".repeat(1 << 20)).len() < 4200);
        assert_eq!(printable_lines("a\u{1b}\r\nb\0\n"), "a\\u{1b}\nb\\u{0}");
        assert!(printable_lines(&"x\n".repeat(1 << 20)).len() < 70);
    }
}
