//! The handle of a run: jobs that are decoded together, and what they say.

use std::sync::Arc;

use crate::client::Client;
use crate::error::EngineError;
use crate::inbox::Command;
use crate::outlet::{Event, Reader, Usage};
use crate::policy::Policy;
use crate::sequence::{Sequence, SharedSequence};

/// One sequence to decode, and how.
#[derive(Clone, Debug)]
pub struct Job<'a> {
    /// What to go on from; it must not be empty.
    pub sequence: &'a Sequence,
    /// How to go on.
    pub policy: Policy,
}

/// Marks every job's sequence as being decoded by `run`, or none. Runs under the inbox lock.
pub(crate) fn claim(run: u64, sequences: &[Arc<SharedSequence>]) -> Result<(), EngineError> {
    for (index, sequence) in sequences.iter().enumerate() {
        let problem = if sequence.length() == 0 {
            Some(format!("the sequence of job {index} is empty"))
        } else if !sequence.claim(run) {
            Some(format!(
                "the sequence of job {index} is already being decoded"
            ))
        } else {
            None
        };
        if let Some(problem) = problem {
            for sequence in &sequences[..index] {
                sequence.unclaim(run);
            }
            return Err(EngineError::Invalid(problem));
        }
    }
    Ok(())
}

/// A group of jobs being decoded. Dropping it cancels those that have not ended; their sequences may be used at once.
pub struct Run {
    id: u64,
    sequences: Vec<Arc<SharedSequence>>, // [jobs]
    reader: Reader,
    client: Client,
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Run {
    pub(crate) fn new(
        id: u64,
        sequences: Vec<Arc<SharedSequence>>,
        reader: Reader,
        client: Client,
    ) -> Run {
        Run {
            id,
            sequences,
            reader,
            client,
        }
    }

    /// What the jobs said since the last call, one event a job; waits for the first. `None` when all jobs have ended.
    ///
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Vec<Event>> {
        loop {
            match self.try_next() {
                Some(taken) => return taken,
                None => self.reader.changed().await,
            }
        }
    }

    /// [`Run::next`] if it would not wait.
    pub(crate) fn try_next(&mut self) -> Option<Option<Vec<Event>>> {
        let taken = self.reader.take();
        if taken.resume {
            self.give_up(Command::Resume { run: self.id });
        }
        match taken.events {
            Some(events) => Some(Some(events)),
            None if taken.ended => Some(None),
            None => None,
        }
    }

    /// Ends one job at the next step, as `Cancelled`. A job that has ended or was never there is left alone.
    pub fn cancel(&self, job: u32) {
        // Only once, or a loop of cancels would fill the queue.
        if self.reader.cancel(job) {
            self.give_up(Command::CancelJob { run: self.id, job });
        }
    }

    /// Tokens used so far.
    pub fn usage(&self) -> Usage {
        self.reader.usage()
    }

    fn give_up(&self, command: Command) {
        self.client.shared().inbox.give_up(command, || ());
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if self.reader.has_ended() {
            return;
        }
        // From here on the engine adds no token: who appends next knows where.
        let run = self.id;
        let release = || {
            for sequence in &self.sequences {
                sequence.unclaim(run);
            }
        };
        let inbox = &self.client.shared().inbox;
        inbox.give_up(Command::CancelRun { run }, release);
    }
}
