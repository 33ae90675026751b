//! The only way into the engine: a bounded queue of commands beside an unbounded list of signals.
//!
//! Commands ask for work and may be refused when the queue is full. Signals give things up (a dropped handle, a
//! cancelled job, a reader that caught up) and are never refused; their number is bounded by the handles alive.
//! Everything a caller checks about a sequence it checks under this lock, so checks and queue order agree.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::client::Face;
use crate::error::{EngineError, OVERLOADED};
use crate::outlet::Outlet;
use crate::policy::Policy;

/// Work asked of the engine, in order.
pub(crate) enum Command {
    Append {
        sequence: Arc<Face>,
        tokens: Vec<u32>,
    },
    Rewind {
        sequence: Arc<Face>,
        length: u32,
    },
    Fork {
        parent: Arc<Face>,
        child: Arc<Face>,
        reply: oneshot::Sender<Result<(), EngineError>>,
    },
    Read {
        sequence: Arc<Face>,
        start: u32,
        end: u32,
        reply: oneshot::Sender<Vec<u32>>,
    },
    Start {
        run: u64,
        jobs: Vec<(Arc<Face>, Policy)>,
        outlet: Outlet,
    },
}

/// Something given up, or a reader that caught up.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Signal {
    /// The handle of a sequence was dropped.
    Release {
        sequence: u64,
    },
    /// The handle of a run was dropped.
    CancelRun {
        run: u64,
    },
    CancelJob {
        run: u64,
        job: u32,
    },
    /// The events of a run that had paused jobs were read.
    Resume {
        run: u64,
    },
}

/// What came in since the last step. Commands come before signals: a signal is about what was asked before it.
#[derive(Default)]
pub(crate) struct Received {
    pub(crate) commands: VecDeque<Command>,
    pub(crate) signals: Vec<Signal>,
}

pub(crate) struct Inbox {
    state: Mutex<State>,
    arrived: Condvar,
    queue_max: usize,
}

#[derive(Default)]
struct State {
    received: Received,
    by_tenant: BTreeMap<u32, usize>, // commands in the queue
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
        let full = state.received.commands.len() >= self.queue_max;
        if full || own >= self.queue_max.div_ceil(2) {
            return Err(OVERLOADED);
        }
        let (command, value) = command()?;
        if let Some(command) = command {
            *state.by_tenant.entry(tenant).or_insert(0) += 1;
            state.received.commands.push_back(command);
            self.arrived.notify_one();
        }
        Ok(value)
    }

    /// Never refused; a closed engine has nothing left to give up.
    pub(crate) fn signal(&self, signal: Signal) {
        let mut state = self.lock();
        if !state.closed {
            state.received.signals.push(signal);
            self.arrived.notify_one();
        }
    }

    /// Everything that came in so far.
    pub(crate) fn take(&self) -> Received {
        let mut state = self.lock();
        state.by_tenant.clear();
        std::mem::take(&mut state.received)
    }

    /// Sleeps until something came in, unless there is work already. False once the inbox is closed.
    pub(crate) fn wait(&self, has_work: bool) -> bool {
        let mut state = self.lock();
        while !state.closed
            && !has_work
            && state.received.commands.is_empty()
            && state.received.signals.is_empty()
        {
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
            self.arrived.notify_all();
            std::mem::take(&mut state.received)
        };
        // Outside of the lock: dropping a reply may wake and drop a handle, which signals.
        drop(dropped);
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().received.commands.len()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }
}
