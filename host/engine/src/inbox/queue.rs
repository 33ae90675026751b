//! The queue of the `Inbox`: many threads put commands in, one sleeps until there are some and takes them all.

use std::collections::{BTreeMap, VecDeque};

use crate::error::{EngineError, OVERLOADED};
use crate::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// A bounded queue of commands `C`.
pub(crate) struct Queue<C> {
    state: Mutex<State<C>>,
    arrived: Condvar,
    queue_max: usize,
}

struct State<C> {
    queue: VecDeque<C>,
    bounded: usize, // commands in the queue that could have been refused
    by_tenant: BTreeMap<u32, usize>, // the same
    closed: bool,
}

impl<C> Queue<C> {
    /// A queue of at most `queue_max` commands that may be refused, and at least one.
    pub(crate) fn new(queue_max: usize) -> Queue<C> {
        Queue {
            state: Mutex::new(State {
                queue: VecDeque::new(),
                bounded: 0,
                by_tenant: BTreeMap::new(),
                closed: false,
            }),
            arrived: Condvar::new(),
            queue_max: queue_max.max(1),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<C>> {
        // Nothing that can panic runs under this lock but our own checks, which change nothing before they are done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `command` under the lock if there is room, and queues what it gives.
    ///
    /// One tenant gets at most half of the queue, so that a burst of one cannot have the others refused.
    pub(crate) fn push<T>(
        &self,
        tenant: u32,
        command: impl FnOnce() -> Result<(Option<C>, T), EngineError>,
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
    pub(crate) fn give_up(&self, command: C, release: impl FnOnce()) {
        let mut state = self.lock();
        release();
        if !state.closed {
            state.queue.push_back(command);
            self.arrived.notify_one();
        }
    }

    /// Everything that came in so far.
    pub(crate) fn take(&self) -> VecDeque<C> {
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

    /// Commands that wait and could have been refused.
    pub(crate) fn len(&self) -> usize {
        self.lock().bounded
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }
}
