//! What components say about themselves: the last lines of each tenant, kept in memory for the operator.

use realm_sandbox::{Hooks, LogLevel, Tenant};
use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

/// Lines kept for one tenant, and bytes of all of them; older ones make room.
const LINES_MAX: usize = 1000;
const BYTES_MAX: usize = 256 << 10;

/// The tenants' logs.
#[derive(Default)]
pub struct TenantLogs {
    lines: Mutex<HashMap<u32, TenantLines>>,
}

#[derive(Default)]
struct TenantLines {
    lines: VecDeque<Line>,
    bytes: usize,
}

impl TenantLines {
    fn push(&mut self, line: Line) {
        self.bytes += line.bytes();
        self.lines.push_back(line);
        while self.lines.len() > LINES_MAX || self.bytes > BYTES_MAX {
            let Some(oldest) = self.lines.pop_front() else {
                return;
            };
            self.bytes -= oldest.bytes();
        }
    }
}

/// One line of a component's log.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Line {
    /// Milliseconds since 1970.
    pub at_ms: i64,
    /// The workflow that wrote it.
    pub workflow: String,
    /// How serious it is.
    pub level: &'static str,
    /// One line, without control characters.
    pub message: String,
}

impl TenantLogs {
    /// A tenant's last lines, oldest first.
    pub fn of(&self, tenant: u32) -> Vec<Line> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines
            .get(&tenant)
            .map(|of| of.lines.iter().cloned().collect())
            .unwrap_or_default()
    }

    /// Forgets a tenant.
    pub fn forget(&self, tenant: u32) {
        self.lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&tenant);
    }
}

impl Hooks for TenantLogs {
    fn log(&self, tenant: &Tenant, workflow: &str, level: LogLevel, message: &str) {
        let level = match level {
            LogLevel::Debug => "debug",
            LogLevel::Info => "info",
            LogLevel::Warn => "warn",
            LogLevel::Error => "error",
        };
        // Not at the operator's usual level: a tenant decides how much this is and what stands in it.
        tracing::debug!(target: "realm::tenant", tenant = &*tenant.name, workflow, level, "{message}");
        let line = Line {
            at_ms: crate::registry::catalog::now_ms(),
            workflow: workflow.to_owned(),
            level,
            message: message.to_owned(),
        };
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.entry(tenant.id).or_default().push(line);
    }
}

impl Line {
    fn bytes(&self) -> usize {
        size_of::<Line>() + self.workflow.len() + self.message.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_lines_make_room_by_number_and_by_size() {
        let line = |bytes: usize| Line {
            at_ms: 0,
            workflow: "flow".to_owned(),
            level: "info",
            message: "x".repeat(bytes),
        };
        let mut kept = TenantLines::default();
        (0..2 * LINES_MAX).for_each(|_| kept.push(line(1)));
        assert_eq!(kept.lines.len(), LINES_MAX);
        (0..20).for_each(|_| kept.push(line(BYTES_MAX / 4)));
        assert_eq!(kept.lines.len(), 3, "the last that fit");
        assert!(kept.bytes <= BYTES_MAX);
        assert_eq!(kept.bytes, kept.lines.iter().map(Line::bytes).sum::<usize>());
    }
}
