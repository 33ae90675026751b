//! The real server's threads: as many as the processors it was granted, and asleep when there is nothing to do.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use realm_tests::server::{DataDir, Server};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::time::Duration;

/// Idle time that is looked at.
const WATCHED: Duration = Duration::from_secs(3);
/// Of it, what all threads may use together: one part in a hundred.
const USED_MAX: Duration = Duration::from_millis(30);
/// The same without the thread that ticks for components, which never sleeps for long.
const USED_MAX_ELSEWHERE: Duration = Duration::from_millis(3);
const TICKER: &str = "sandbox-ticker";

/// Grants this thread, and with it the processes it starts, the first `count` of its processors.
fn grant(count: usize) -> Result<()> {
    let all = sched_getaffinity(None)?;
    let mut some = CpuSet::new();
    (0..CpuSet::MAX_CPU)
        .filter(|&cpu| all.is_set(cpu))
        .take(count)
        .for_each(|cpu| some.set(cpu));
    Ok(sched_setaffinity(None, &some)?)
}

/// The server's threads by id: name and processor time of each.
fn threads(server: &Server) -> Result<BTreeMap<OsString, (String, Duration)>> {
    let mut threads = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{}/task", server.pid()))? {
        let (id, task) = task.map(|task| (task.file_name(), task.path()))?;
        // A thread may end between being listed and being asked.
        let Ok(name) = fs::read_to_string(task.join("comm")) else {
            continue;
        };
        // In nanoseconds, where `stat` samples hundredths of a second.
        let times = fs::read_to_string(task.join("schedstat")).context("a thread's times")?;
        let used = times.split_whitespace().next().context("three numbers")?;
        let used = Duration::from_nanos(used.parse()?);
        threads.insert(id, (name.trim().to_owned(), used));
    }
    Ok(threads)
}

/// How many of them bear names that start like this.
fn named(server: &Server, start: &str) -> Result<usize> {
    let threads = threads(server)?;
    let named = threads.values().filter(|(name, _)| name.starts_with(start));
    Ok(named.count())
}

#[test]
fn one_processor_gets_one_thread_that_computes() -> Result<()> {
    grant(1)?;
    let server = Server::start()?;
    ensure!(named(&server, "engine")? == 1, "one engine thread");
    let workers = named(&server, "kernel-")?;
    ensure!(workers == 0, "{workers} workers on one processor");
    Ok(())
}

#[test]
fn a_setting_overrides_what_is_granted() -> Result<()> {
    grant(1)?;
    let server = Server::start_with(DataDir::new()?, &["--threads", "3"])?;
    let workers = named(&server, "kernel-")?;
    ensure!(workers == 2, "{workers} workers for three threads");
    Ok(())
}

#[test]
fn an_idle_server_uses_next_to_no_processor_time() -> Result<()> {
    let server = Server::start()?;
    // What the start leaves behind ends first.
    std::thread::sleep(Duration::from_secs(1));
    let before = threads(&server)?;
    std::thread::sleep(WATCHED);
    let (mut ticker, mut others) = (Duration::ZERO, Duration::ZERO);
    for (id, (name, used)) in threads(&server)? {
        let used = used - before.get(&id).map_or(Duration::ZERO, |(_, used)| *used);
        *if name == TICKER {
            &mut ticker
        } else {
            &mut others
        } += used;
    }
    println!("idle for {WATCHED:?}: {TICKER} {ticker:?}, all others {others:?}");
    ensure!(!ticker.is_zero(), "the times of threads are counted");
    ensure!(others <= USED_MAX_ELSEWHERE, "threads are busy: {others:?}");
    ensure!(
        ticker + others <= USED_MAX,
        "more than 1 %: {:?}",
        ticker + others
    );
    Ok(())
}
