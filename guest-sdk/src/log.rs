//! Lines for the tenant's own log.

pub use crate::bindings::realm::host::log::Level;

use crate::bindings::realm::host::log;
use std::sync::Once;

/// Writes one line. Over the tenant's limit lines are dropped, never waited for.
pub fn write(level: Level, message: &str) {
    log::write(level, message);
}

/// Writes a line at level `info`.
pub fn info(message: &str) {
    write(Level::Info, message);
}

/// Writes a line at level `warn`.
pub fn warn(message: &str) {
    write(Level::Warn, message);
}

/// Sends panics to the log, because a component without WASI has no stderr to show them on.
pub(crate) fn panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|panic| write(Level::Error, &panic.to_string())))
    });
}
