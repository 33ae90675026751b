//! How threads give way to those that make and send tokens.

/// At 10 a tenth of a processor goes to a thread while the engine wants all.
const NICENESS: i32 = 10;

/// Makes the calling thread give way to those that make and send tokens. A system that refuses is no error: the thread
/// works all the same.
pub fn give_way() {
    // From where the process stands, and not from the thread that began this one, which may have given way already.
    let process = rustix::process::getpriority_process(Some(rustix::process::getpid()));
    let niceness = process.unwrap_or(0).saturating_add(NICENESS).min(19);
    let _ = rustix::process::setpriority_process(None, niceness);
}
