//! The real server's threads: as many as the processors it was granted, and asleep when there is nothing to do.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use realm_tests::server::{DataDir, Server};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::fs;
use std::time::Duration;

/// Idle time that is looked at.
const WATCHED: Duration = Duration::from_secs(3);
/// The kernel counts processor time in hundredths of a second.
const TICKS_A_SECOND: u64 = 100;

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

/// How many of the server's threads bear names that start like this.
fn named(server: &Server, start: &str) -> Result<usize> {
    let mut count = 0;
    for task in fs::read_dir(format!("/proc/{}/task", server.pid()))? {
        // A thread may end between being listed and being asked.
        let name = fs::read_to_string(task?.path().join("comm")).unwrap_or_default();
        count += usize::from(name.starts_with(start));
    }
    Ok(count)
}

/// Processor time the server has used, in ticks.
fn ticks(server: &Server) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", server.pid()))?;
    // The name, in parentheses, may hold anything; user and system time are the 12th and 13th field after it.
    let (_, fields) = stat.rsplit_once(')').context("a line of fields")?;
    let fields: Vec<_> = fields.split_whitespace().collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
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
    let began = ticks(&server)?;
    std::thread::sleep(WATCHED);
    let used = ticks(&server)? - began;
    println!("{used} hundredths of a second in {WATCHED:?}");
    ensure!(
        used * 100 <= WATCHED.as_secs() * TICKS_A_SECOND,
        "more than 1 %: {used} hundredths of a second in {WATCHED:?}"
    );
    Ok(())
}
