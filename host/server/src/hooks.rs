//! What components say about themselves: the last lines of each tenant, kept in memory for the operator.

use realm_sandbox::{Hooks, LogLevel, Tenant};
use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

/// Lines kept for one tenant. A call's lines are bounded in bytes by its limits, so this is some megabytes at most.
const LINES_MAX: usize = 1000;

/// The tenants' logs.
#[derive(Default)]
pub struct TenantLogs {
    lines: Mutex<HashMap<u32, VecDeque<Line>>>,
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
            .map(|lines| lines.iter().cloned().collect())
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
        let lines = lines.entry(tenant.id).or_default();
        if lines.len() >= LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(line);
    }
}
