//! The only way into the engine: one queue of commands, in the order in which they were given.
//!
//! Commands that ask for work are bounded and refused when the queue is full. Those that give something up (a dropped
//! handle, a cancelled job, a reader that caught up) are never refused; their number is bounded by the handles alive.
//! Everything a caller checks about a sequence it checks under this lock, so checks and queue order agree.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::client::Owner;
use crate::emitter::Generation;
use crate::error::{EngineError, OVERLOADED};
use crate::outlet::Outlet;
use crate::sequence::SharedSequence;

/// A sequence to decode, and what follows its tokens.
pub(crate) type StartedJob = (Arc<SharedSequence>, Box<Generation>);

/// What callers ask of the engine.
pub(crate) enum Command {
    Append {
        sequence: Arc<SharedSequence>,
        tokens: Vec<u32>,
    },
    Rewind {
        sequence: Arc<SharedSequence>,
        length: u32,
    },
    Fork {
        parent: Arc<SharedSequence>,
        child: Arc<SharedSequence>,
        reply: oneshot::Sender<Result<(), EngineError>>,
    },
    Read {
        sequence: Arc<SharedSequence>,
        start: u32,
        end: u32,
        reply: oneshot::Sender<Vec<u32>>,
    },
    Start {
        run: u64,
        jobs: Vec<StartedJob>,
        outlet: Outlet,
    },
    /// The handle of a sequence was dropped.
    Release { sequence: u64 },
    /// The handle of a run was dropped.
    CancelRun { run: u64 },
    /// One job is to end.
    CancelJob { run: u64, job: u32 },
    /// The events of a run that had paused jobs were read.
    Resume { run: u64 },
}

impl Command {
    /// Whose work it asks for; giving something up is nobody's.
    pub(crate) fn owner(&self) -> Option<&Owner> {
        match self {
            Command::Append { sequence, .. }
            | Command::Rewind { sequence, .. }
            | Command::Fork {
                parent: sequence, ..
            }
            | Command::Read { sequence, .. } => Some(&sequence.owner),
            Command::Start { jobs, .. } => jobs.first().map(|(sequence, _)| &sequence.owner),
            Command::Release { .. }
            | Command::CancelRun { .. }
            | Command::CancelJob { .. }
            | Command::Resume { .. } => None,
        }
    }
}

pub(crate) struct Inbox {
    state: Mutex<State>,
    arrived: Condvar,
    queue_max: usize,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Command>,
    bounded: usize, // commands in the queue that could have been refused
    by_tenant: BTreeMap<u32, usize>, // the same
    closed: bool,
}

impl Inbox {
    pub(crate) fn new(queue_max: usize) -> Inbox {
        Inbox {
            state: Mutex::default(),
            arrived: Condvar::new(),
            queue_max: queue_max.max(1),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under this lock but our own checks, which change nothing before they are done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `command` under the lock if there is room, and queues what it gives.
    ///
    /// One tenant gets at most half of the queue, so that a burst of one cannot have the others refused.
    pub(crate) fn push<T>(
        &self,
        tenant: u32,
        command: impl FnOnce() -> Result<(Option<Command>, T), EngineError>,
    ) -> Result<T, EngineError> {
        let mut state = self.lock();
        if state.closed {
            return Err(EngineError::Stopped);
        }
        let own = state.by_tenant.get(&tenant).copied().unwrap_or(0);
        if state.bounded >= self.queue_max || own >= self.queue_max.div_ceil(2) {
            return Err(OVERLOADED);
        }
        let (command, value) = command()?;
        if let Some(command) = command {
            *state.by_tenant.entry(tenant).or_insert(0) += 1;
            state.bounded += 1;
            state.queue.push_back(command);
            self.arrived.notify_one();
        }
        Ok(value)
    }

    /// Queues what gives something up, after running `release` under the lock. Never refused; a closed engine has
    /// nothing left to give up.
    pub(crate) fn give_up(&self, command: Command, release: impl FnOnce()) {
        let mut state = self.lock();
        release();
        if !state.closed {
            state.queue.push_back(command);
            self.arrived.notify_one();
        }
    }

    /// Everything that came in so far.
    pub(crate) fn take(&self) -> VecDeque<Command> {
        let mut state = self.lock();
        state.by_tenant.clear();
        state.bounded = 0;
        std::mem::take(&mut state.queue)
    }

    /// Sleeps until something came in, unless there is work already. False once the inbox is closed.
    pub(crate) fn wait(&self, has_work: bool) -> bool {
        let mut state = self.lock();
        while !state.closed && !has_work && state.queue.is_empty() {
            state = self
                .arrived
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        !state.closed
    }

    /// Refuses everything from now on and drops what waits: the ends of the channels in it tell their callers.
    pub(crate) fn close(&self) {
        let dropped = {
            let mut state = self.lock();
            state.closed = true;
            state.by_tenant.clear();
            state.bounded = 0;
            self.arrived.notify_all();
            std::mem::take(&mut state.queue)
        };
        // Outside of the lock: dropping a reply may wake and drop a handle, which gives itself up.
        drop(dropped);
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().bounded
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }
}
