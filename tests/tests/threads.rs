//! The real server's threads: as many as the processors it was granted, and asleep when there is nothing to do.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail, ensure};
use realm_tests::server::{DataDir, MODEL, Server, chat_body};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// Time between two looks at threads that should sleep.
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);
/// Looks until threads that still wake are taken to do so for ever.
const LOOKS_MAX: usize = 60;

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

/// The folder and the name of each of the server's threads.
fn tasks(server: &Server) -> Result<Vec<(PathBuf, String)>> {
    let mut tasks = Vec::new();
    for task in fs::read_dir(format!("/proc/{}/task", server.pid()))? {
        let task = task?.path();
        // A thread may end between being listed and being asked.
        if let Ok(name) = fs::read_to_string(task.join("comm")) {
            tasks.push((task, name.trim().to_owned()));
        }
    }
    Ok(tasks)
}

/// How many of them bear names that start like this.
fn named(server: &Server, start: &str) -> Result<usize> {
    let tasks = tasks(server)?;
    Ok(tasks
        .iter()
        .filter(|(_, name)| name.starts_with(start))
        .count())
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
fn threads_that_compute_sleep_while_nobody_asks() -> Result<()> {
    let server = Server::start_with(DataDir::new()?, &["--threads", "3"])?;
    asleep(&server).context("after the start")?;
    let body = chat_body(MODEL, "What is the capital of France?", 16);
    let tenant = server.tenant("a")?;
    let before = wakeups(&server)?;
    tenant.http.post("/v1/chat/completions", &body)?.ok()?;
    let after = asleep(&server).context("after an answer")?;
    ensure!(after != before, "work is seen as wake-ups: {after:?}");
    Ok(())
}

/// How often each thread that computes went to sleep so far, by its name.
fn wakeups(server: &Server) -> Result<BTreeMap<String, u64>> {
    let mut slept = BTreeMap::new();
    for (task, name) in tasks(server)? {
        if name == "engine" || name.starts_with("kernel-") {
            let status = fs::read_to_string(task.join("status"))?;
            let count = status
                .lines()
                .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            let count = count.context("a thread's count of switches")?.trim();
            slept.insert(name, count.parse()?);
        }
    }
    ensure!(slept.len() == 3, "an engine and two workers: {slept:?}");
    Ok(slept)
}

/// Waits until no thread that computes wakes any more: a thread that polls or spins never gets there, one that sleeps
/// does on however busy a machine.
fn asleep(server: &Server) -> Result<BTreeMap<String, u64>> {
    server.until_idle()?;
    let mut last = wakeups(server)?;
    for _ in 0..LOOKS_MAX {
        std::thread::sleep(BETWEEN_LOOKS);
        let now = wakeups(server)?;
        let sleeping = tasks(server)?.into_iter().all(|(task, name)| {
            let computes = name == "engine" || name.starts_with("kernel-");
            !computes
                || fs::read_to_string(task.join("status"))
                    .is_ok_and(|status| status.contains("State:\tS"))
        });
        if sleeping && now == last {
            return Ok(now);
        }
        last = now;
    }
    bail!("threads still wake with nothing to do: {last:?}")
}
