//! The real server's threads: as many as the processors it was granted, and asleep when there is nothing to do.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use realm_tests::server::{DataDir, MODEL, Server, chat_body};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::time::Duration;

/// Idle time that is looked at.
const WATCHED: Duration = Duration::from_secs(3);
/// Of it, what all threads may use together: one part in a thousand.
const USED_MAX: Duration = Duration::from_millis(3);

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
    idles(&server, "started")?;
    // Components run again after a rest, and leave nothing running.
    let body = chat_body(MODEL, "What is the capital of France?", 16);
    let tenant = server.tenant("a")?;
    tenant.http.post("/v1/chat/completions", &body)?.ok()?;
    idles(&server, "answered")
}

/// Watches a server that nobody asks.
fn idles(server: &Server, after: &str) -> Result<()> {
    // What the last work leaves behind ends first.
    std::thread::sleep(Duration::from_secs(1));
    let before = threads(server)?;
    let counted = before.values().any(|(_, used)| !used.is_zero());
    ensure!(counted, "the times of threads are counted");
    std::thread::sleep(WATCHED);
    let busy: BTreeMap<_, _> = threads(server)?
        .into_iter()
        .map(|(id, (name, used))| {
            let earlier = before.get(&id).map_or(Duration::ZERO, |(_, used)| *used);
            (id, (name, used - earlier))
        })
        .filter(|(_, (_, used))| !used.is_zero())
        .collect();
    let used: Duration = busy.values().map(|(_, used)| *used).sum();
    println!("{after}, then idle for {WATCHED:?}: {used:?}, {busy:?}");
    ensure!(used <= USED_MAX, "threads are busy: {busy:?}");
    Ok(())
}
