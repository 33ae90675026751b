//! The only way into the engine: one queue of commands, in the order in which they were given.
//!
//! Commands that ask for work are bounded and refused when the queue is full. Those that give something up (a dropped
//! handle, a cancelled job, a reader that caught up) are never refused; their number is bounded by the handles alive.
//! Everything a caller checks about a sequence it checks under this lock, so checks and queue order agree.

mod queue;

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::client::Owner;
use crate::emitter::Generation;
use crate::error::EngineError;
use crate::outlet::Outlet;
use crate::sequence::SharedSequence;
use queue::Queue;

/// The queue of the engine.
pub(crate) type Inbox = Queue<Command>;

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
