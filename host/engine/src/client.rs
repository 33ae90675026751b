//! Handles to the engine: cheap to clone and to send, checked on the caller's thread, freed by dropping them.
//!
//! The futures here need no runtime. Each handle's drop reaches the engine whatever the state of the queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use realm_text::TextModel;
use tokio::sync::oneshot;

use crate::account::{Account, Charge, Ledger, TenantUsage};
use crate::error::{EngineError, OVERLOADED};
use crate::executor::ModelFacts;
use crate::inbox::{Command, Inbox, Signal};
use crate::outlet::{Event, Reader, Usage, outlet};
use crate::policy::Policy;
use crate::stats::{Counters, Stats};

/// Whose work it is. The engine knows a tenant as a number with a weight and a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The tenant's number.
    pub tenant: u32,
    /// Its share of the engine against others that want it at the same time; 0 counts as 1.
    pub weight: u32,
    /// KV blocks that all its sequences together may hold; a block shared by forks counts once.
    ///
    /// When it is reached, idle sequences of the tenant lose their blocks (they are computed again when needed) and
    /// its jobs wait for one another. A single sequence that needs more fails with [`EngineError::Quota`].
    pub kv_blocks_max: u32,
}

/// A hint: sequences come free as calls end.
const RETRY_MS: u32 = 250;

/// What the engine thread and all handles share.
pub(crate) struct Shared {
    pub(crate) inbox: Inbox,
    pub(crate) counters: Counters,
    pub(crate) facts: ModelFacts,
    pub(crate) text: Arc<TextModel>,
    pub(crate) ledger: Ledger,
    pub(crate) sequences_max: usize,
    pub(crate) tenant_sequences_max: usize,
    pub(crate) unread_tokens_max: usize,
    pub(crate) sequences: AtomicUsize, // handles alive
    pub(crate) ids: AtomicU64,         // of sequences and runs
}

impl Shared {
    /// Tokens a sequence can have: the context, or what all the KV blocks hold if that is less.
    fn length_max(&self) -> u32 {
        let cache = self.facts.kv_blocks.saturating_mul(self.facts.block_tokens);
        self.facts.context_length.min(cache)
    }

    fn id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }
}

/// What the callers and the engine both know of a sequence.
///
/// A caller changes it under the inbox lock; the engine does while `decoding` is set, and clears that last.
#[derive(Debug)]
pub(crate) struct Face {
    pub(crate) id: u64,
    pub(crate) owner: Owner,
    pub(crate) charge: Charge,
    pub(crate) length: AtomicU32,
    pub(crate) decoding: AtomicBool,
}

/// The way to an engine.
#[derive(Clone)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("model", &self.shared.facts.name)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// What is known of the model.
    pub fn facts(&self) -> &ModelFacts {
        &self.shared.facts
    }

    /// The model's tokenizer and chat template.
    pub fn text(&self) -> &Arc<TextModel> {
        &self.shared.text
    }

    /// The engine's numbers as of its last step.
    pub fn stats(&self) -> Stats {
        self.shared.counters.read(self.shared.inbox.len())
    }

    /// Whether the engine has stopped: every call fails from now on.
    pub fn is_stopped(&self) -> bool {
        self.shared.inbox.is_closed()
    }

    /// What each tenant has used since the engine was started, ordered by tenant.
    pub fn usage_by_tenant(&self) -> Vec<TenantUsage> {
        self.shared.ledger.usage()
    }

    /// An empty sequence, whose tokens and those of its forks are counted in `account`.
    ///
    /// # Errors
    /// `Overloaded` when the queue is full or there are too many sequences, `Quota` when the tenant has as many as one
    /// may have, `Stopped`.
    pub fn sequence(&self, owner: Owner, account: &Arc<Account>) -> Result<Sequence, EngineError> {
        self.shared.inbox.push(owner.tenant, || {
            Ok((None, self.new_sequence(owner, account)?))
        })
    }

    fn new_sequence(&self, owner: Owner, account: &Arc<Account>) -> Result<Sequence, EngineError> {
        let sequences_max = self.shared.tenant_sequences_max;
        let charge = self
            .shared
            .ledger
            .enter(owner.tenant, account, sequences_max)
            .ok_or_else(|| EngineError::Quota {
                what: format!(
                    "the tenant has {sequences_max} sequences, which is the most one may have"
                ),
                retry_after_ms: RETRY_MS,
            })?;
        let before = self.shared.sequences.fetch_add(1, Ordering::Relaxed);
        let sequence = Sequence {
            face: Arc::new(Face {
                id: self.shared.id(),
                owner,
                charge,
                length: AtomicU32::new(0),
                decoding: AtomicBool::new(false),
            }),
            client: self.clone(),
            known: AtomicBool::new(false),
        };
        if before >= self.shared.sequences_max {
            return Err(OVERLOADED);
        }
        Ok(sequence)
    }

    /// Decodes all jobs together, as one run. Sequences that share a prefix share its blocks.
    ///
    /// A run keeps its sequences alive until their jobs end, also when their handles are dropped before.
    ///
    /// # Errors
    /// `Invalid` when there is no job, a policy is out of range, a sequence is empty, is being decoded already or is
    /// another engine's; `Overloaded`, `Stopped`. Nothing was started then.
    pub fn start(&self, jobs: Vec<Job<'_>>) -> Result<Run, EngineError> {
        let Some(first) = jobs.first() else {
            return Err(EngineError::Invalid("a run needs a job".to_owned()));
        };
        let tenant = first.sequence.face.owner.tenant;
        for job in &jobs {
            job.policy
                .validate(self.shared.facts.vocab_size)
                .map_err(EngineError::Invalid)?;
            if !Arc::ptr_eq(&job.sequence.client.shared, &self.shared) {
                let what = "a job's sequence belongs to another model";
                return Err(EngineError::Invalid(what.to_owned()));
            }
        }
        let (outlet, reader) = outlet(jobs.len() as u32, self.shared.unread_tokens_max);
        let run = self.shared.id();
        self.shared.inbox.push(tenant, || {
            claim(&jobs)?;
            let jobs = jobs
                .into_iter()
                .map(|job| {
                    job.sequence.known.store(true, Ordering::Relaxed);
                    (Arc::clone(&job.sequence.face), job.policy)
                })
                .collect();
            Ok((Some(Command::Start { run, jobs, outlet }), ()))
        })?;
        Ok(Run {
            id: run,
            reader,
            client: self.clone(),
        })
    }
}

/// Marks every job's sequence as being decoded, or none. Runs under the inbox lock.
fn claim(jobs: &[Job<'_>]) -> Result<(), EngineError> {
    for (index, job) in jobs.iter().enumerate() {
        let face = &job.sequence.face;
        let problem = if face.length.load(Ordering::Acquire) == 0 {
            Some(format!("the sequence of job {index} is empty"))
        } else if face.decoding.swap(true, Ordering::AcqRel) {
            Some(format!(
                "the sequence of job {index} is being decoded already"
            ))
        } else {
            None
        };
        if let Some(problem) = problem {
            for job in &jobs[..index] {
                job.sequence.face.decoding.store(false, Ordering::Release);
            }
            return Err(EngineError::Invalid(problem));
        }
    }
    Ok(())
}

/// One sequence to decode, and how.
#[derive(Clone, Debug)]
pub struct Job<'a> {
    /// What to go on from; it must not be empty.
    pub sequence: &'a Sequence,
    /// How to go on.
    pub policy: Policy,
}

/// Tokens with KV blocks behind them. Dropping it frees the blocks by the engine's next step.
#[derive(Debug)]
pub struct Sequence {
    face: Arc<Face>,
    client: Client,
    known: AtomicBool, // whether the engine was ever told of it
}

impl Sequence {
    /// Adds tokens at the end and returns the new length; their prefill starts in the background.
    ///
    /// # Errors
    /// `Invalid` for a token the model does not have or while a run decodes the sequence, `ContextFull` with the room
    /// there is, `Quota` when the tenant's blocks could not hold it even alone, `Overloaded`, `Stopped`.
    pub fn append(&self, tokens: impl Into<Vec<u32>>) -> Result<u32, EngineError> {
        let tokens = tokens.into();
        let shared = &self.client.shared;
        let vocab = shared.facts.vocab_size;
        if let Some(token) = tokens.iter().find(|&&token| token >= vocab) {
            return Err(EngineError::Invalid(format!(
                "token {token} is not in the vocabulary of {vocab}"
            )));
        }
        shared.inbox.push(self.face.owner.tenant, || {
            self.check_not_decoding("appended to")?;
            let length = self.face.length.load(Ordering::Acquire);
            if tokens.is_empty() {
                return Ok((None, length));
            }
            let room = shared.length_max().saturating_sub(length);
            if tokens.len() > room as usize {
                return Err(EngineError::ContextFull { room });
            }
            let count = tokens.len() as u32;
            let new_length = length + count;
            self.check_quota(new_length)?;
            self.face.length.store(new_length, Ordering::Release);
            self.known.store(true, Ordering::Relaxed);
            let command = Command::Append {
                sequence: Arc::clone(&self.face),
                tokens,
            };
            self.face.charge.prompt(count);
            Ok((Some(command), new_length))
        })
    }

    /// A sequence with the same tokens that shares this one's blocks until either writes.
    ///
    /// Waits for this sequence's prefill. Forking a sequence that is being decoded takes what it has by then.
    ///
    /// # Errors
    /// `Overloaded`, `Stopped`, or what this sequence's prefill failed with.
    pub async fn fork(&self) -> Result<Sequence, EngineError> {
        let (child, ready) = self.begin_fork()?;
        match ready.await {
            Ok(Ok(())) => Ok(child),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(EngineError::Stopped),
        }
    }

    /// Asks for the fork; the child may be used once the receiver says so. Dropping the child gives it up.
    pub(crate) fn begin_fork(
        &self,
    ) -> Result<(Sequence, oneshot::Receiver<Result<(), EngineError>>), EngineError> {
        let (reply, ready) = oneshot::channel();
        let child = self.client.shared.inbox.push(self.face.owner.tenant, || {
            let child = self
                .client
                .new_sequence(self.face.owner, self.face.charge.account())?;
            child.known.store(true, Ordering::Relaxed);
            self.known.store(true, Ordering::Relaxed);
            let command = Command::Fork {
                parent: Arc::clone(&self.face),
                child: Arc::clone(&child.face),
                reply,
            };
            Ok((Some(command), child))
        })?;
        Ok((child, ready))
    }

    /// Cuts the sequence back to its first `length` tokens.
    ///
    /// # Errors
    /// `Invalid` when it is shorter than that, while a run decodes it, or when the model's state cannot be rewound;
    /// `Overloaded`, `Stopped`.
    pub async fn rewind(&self, length: u32) -> Result<(), EngineError> {
        self.rewind_now(length)
    }

    /// [`Sequence::rewind`] needs no answer of the engine: it is checked here and takes effect in queue order.
    pub(crate) fn rewind_now(&self, length: u32) -> Result<(), EngineError> {
        let shared = &self.client.shared;
        shared.inbox.push(self.face.owner.tenant, || {
            self.check_not_decoding("rewound")?;
            let current = self.face.length.load(Ordering::Acquire);
            if length > current {
                return Err(EngineError::Invalid(format!(
                    "cannot rewind to {length}, the sequence has {current} tokens"
                )));
            }
            if length == current {
                return Ok((None, ()));
            }
            if !shared.facts.can_rewind {
                let what = format!("a sequence of {} cannot be rewound", shared.facts.name);
                return Err(EngineError::Invalid(what));
            }
            self.face.length.store(length, Ordering::Release);
            let command = Command::Rewind {
                sequence: Arc::clone(&self.face),
                length,
            };
            Ok((Some(command), ()))
        })
    }

    /// Tokens it has; while a run decodes it, so far.
    pub async fn length(&self) -> u32 {
        self.face.length.load(Ordering::Acquire)
    }

    /// The tokens `start..end`, cut to what there is.
    ///
    /// # Errors
    /// `Invalid` when `start` is after `end`; `Overloaded`, `Stopped`.
    pub async fn tokens(&self, start: u32, end: u32) -> Result<Vec<u32>, EngineError> {
        let ready = self.begin_read(start, end)?;
        ready.await.map_err(|_| EngineError::Stopped)
    }

    pub(crate) fn begin_read(
        &self,
        start: u32,
        end: u32,
    ) -> Result<oneshot::Receiver<Vec<u32>>, EngineError> {
        if start > end {
            return Err(EngineError::Invalid(format!(
                "tokens {start}..{end} is not a range"
            )));
        }
        let (reply, ready) = oneshot::channel();
        let tenant = self.face.owner.tenant;
        self.client.shared.inbox.push(tenant, || {
            self.known.store(true, Ordering::Relaxed);
            let command = Command::Read {
                sequence: Arc::clone(&self.face),
                start,
                end,
                reply,
            };
            Ok((Some(command), ()))
        })?;
        Ok(ready)
    }

    fn check_not_decoding(&self, what: &str) -> Result<(), EngineError> {
        if self.face.decoding.load(Ordering::Acquire) {
            let text = format!("a sequence that a run decodes cannot be {what}");
            return Err(EngineError::Invalid(text));
        }
        Ok(())
    }

    fn check_quota(&self, length: u32) -> Result<(), EngineError> {
        let blocks = length.div_ceil(self.client.shared.facts.block_tokens);
        let blocks_max = self.face.owner.kv_blocks_max;
        if blocks > blocks_max {
            return Err(EngineError::Quota {
                what: format!(
                    "{length} tokens need {blocks} KV blocks, the tenant may hold {blocks_max}"
                ),
                retry_after_ms: 0,
            });
        }
        Ok(())
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        let shared = &self.client.shared;
        shared.sequences.fetch_sub(1, Ordering::Relaxed);
        if self.known.load(Ordering::Relaxed) {
            let sequence = self.face.id;
            shared.inbox.signal(Signal::Release { sequence });
        }
    }
}

/// A group of jobs being decoded. Dropping it cancels those that have not ended.
pub struct Run {
    id: u64,
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
            self.signal(Signal::Resume { run: self.id });
        }
        match taken.events {
            Some(events) => Some(Some(events)),
            None if taken.ended => Some(None),
            None => None,
        }
    }

    /// Ends one job at the next step, as `Cancelled`. A job that has ended or was never there is left alone.
    pub fn cancel(&self, job: u32) {
        // Only once, or a loop of cancels would fill the list of signals.
        if self.reader.cancel(job) {
            self.signal(Signal::CancelJob { run: self.id, job });
        }
    }

    /// Tokens used so far.
    pub fn usage(&self) -> Usage {
        self.reader.usage()
    }

    fn signal(&self, signal: Signal) {
        self.client.shared.inbox.signal(signal);
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.reader.has_ended() {
            self.signal(Signal::CancelRun { run: self.id });
        }
    }
}
