//! The handle of a sequence, and what its callers and the engine both know of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::oneshot;

use crate::account::Charge;
use crate::client::{Client, Owner};
use crate::error::EngineError;
use crate::inbox::Command;
use crate::outlet::Finish;
use crate::policy::Policy;
use crate::run::Job;
use crate::sampler::PromptLogprob;

/// What callers and the engine both know of a sequence.
///
/// Its length belongs to the run that decodes it, or to its callers when none does; both are one word, so that the length
/// stands still from the moment at which a run loses the sequence. Callers change it under the inbox lock.
#[derive(Debug)]
pub(crate) struct SharedSequence {
    pub(crate) id: u64,
    pub(crate) owner: Owner,
    pub(crate) charge: Charge,
    state: AtomicU64, // the run that decodes it in the upper half (0: none), the length in the lower
}

fn unpack(state: u64) -> (u32, u32) {
    ((state >> 32) as u32, state as u32)
}

fn pack(run: u32, length: u32) -> u64 {
    u64::from(run) << 32 | u64::from(length)
}

/// A run's number as [`SharedSequence`] keeps it; never 0. Runs with the same one are four billion apart.
fn short(run: u64) -> u32 {
    (run as u32).max(1)
}

impl SharedSequence {
    pub(crate) fn new(id: u64, owner: Owner, charge: Charge) -> SharedSequence {
        SharedSequence {
            id,
            owner,
            charge,
            state: AtomicU64::new(0),
        }
    }

    pub(crate) fn length(&self) -> u32 {
        unpack(self.state.load(Ordering::Acquire)).1
    }

    /// While no run decodes it.
    pub(crate) fn set_length(&self, length: u32) {
        self.state.store(pack(0, length), Ordering::Release);
    }

    fn update(&self, change: impl Fn(u32, u32) -> Option<u64>) -> bool {
        self.state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| {
                let (run, length) = unpack(state);
                change(run, length)
            })
            .is_ok()
    }

    /// Gives it to a run. False when it has one.
    pub(crate) fn claim(&self, run: u64) -> bool {
        self.update(|owner, length| (owner == 0).then(|| pack(short(run), length)))
    }

    /// Takes it from a run, if that has it still.
    pub(crate) fn unclaim(&self, run: u64) {
        self.update(|owner, length| (owner == short(run)).then(|| pack(0, length)));
    }

    /// Counts one more token of a run. False when the run has lost it, and then the token was never made.
    pub(crate) fn grow(&self, run: u64) -> bool {
        let grown = self.update(|owner, length| {
            (owner == short(run)).then(|| pack(owner, length.saturating_add(1)))
        });
        if grown {
            self.charge.completion(1);
        }
        grown
    }

    fn is_decoding(&self) -> bool {
        unpack(self.state.load(Ordering::Acquire)).0 != 0
    }
}

/// Tokens with KV blocks behind them. Dropping it frees the blocks by the engine's next step.
#[derive(Debug)]
pub struct Sequence {
    shared: Arc<SharedSequence>,
    client: Client,
    known: AtomicBool, // whether the engine was ever told of it
}

impl Sequence {
    pub(crate) fn new(client: &Client, shared: SharedSequence) -> Sequence {
        Sequence {
            shared: Arc::new(shared),
            client: client.clone(),
            known: AtomicBool::new(false),
        }
    }

    pub(crate) fn shared(&self) -> &Arc<SharedSequence> {
        &self.shared
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// For a command that tells the engine of it.
    pub(crate) fn tell(&self) -> Arc<SharedSequence> {
        self.known.store(true, Ordering::Relaxed);
        Arc::clone(&self.shared)
    }

    /// Adds tokens at the end and returns the new length; their prefill starts in the background.
    ///
    /// # Errors
    /// `Invalid` for a token the model does not have or while a run decodes the sequence, `ContextFull` with the room
    /// there is, in the context or in all the blocks that the tenant may hold, `Overloaded`, `Stopped`.
    pub fn append(&self, tokens: impl Into<Vec<u32>>) -> Result<u32, EngineError> {
        let tokens = tokens.into();
        let engine = self.client.shared();
        let vocab = engine.facts.vocab_size;
        if let Some(token) = tokens.iter().find(|&&token| token >= vocab) {
            return Err(EngineError::Invalid(format!(
                "token {token} is not in the vocabulary of {vocab} tokens"
            )));
        }
        engine.inbox.push(self.shared.owner.tenant, || {
            self.check_not_decoding("appended to")?;
            let length = self.shared.length();
            if tokens.is_empty() {
                return Ok((None, length));
            }
            let length_max = engine.length_within(self.shared.owner.kv_blocks_max);
            let room = length_max.saturating_sub(length);
            if tokens.len() > room as usize {
                return Err(EngineError::ContextFull { room });
            }
            let count = tokens.len() as u32;
            self.shared.set_length(length + count);
            self.shared.charge.prompt(count);
            let command = Command::Append {
                sequence: self.tell(),
                tokens,
            };
            Ok((Some(command), length + count))
        })
    }

    /// A sequence with the same tokens that shares this one's blocks until either writes.
    ///
    /// Waits for this sequence's prefill. Forking a sequence that is being decoded takes what it has by then.
    ///
    /// # Errors
    /// `Overloaded`, `Quota`, `Stopped`, or what this sequence's prefill failed with.
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
        let owner = self.shared.owner;
        let child = self.client.shared().inbox.push(owner.tenant, || {
            let account = self.shared.charge.account();
            let child = self.client.new_sequence(owner, account)?;
            let command = Command::Fork {
                parent: self.tell(),
                child: child.tell(),
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
        let engine = self.client.shared();
        engine.inbox.push(self.shared.owner.tenant, || {
            self.check_not_decoding("rewound")?;
            let current = self.shared.length();
            if length > current {
                return Err(EngineError::Invalid(format!(
                    "cannot rewind to {length}; the sequence has {current} tokens"
                )));
            }
            if length == current {
                return Ok((None, ()));
            }
            if !engine.facts.can_rewind {
                let what = format!(
                    "sequences of the model {} cannot be rewound",
                    engine.facts.name
                );
                return Err(EngineError::Invalid(what));
            }
            self.shared.set_length(length);
            let command = Command::Rewind {
                sequence: self.tell(),
                length,
            };
            Ok((Some(command), ()))
        })
    }

    /// Tokens it has; while a run decodes it, so far.
    pub async fn length(&self) -> u32 {
        self.shared.length()
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
                "{start}..{end} is not a range of tokens"
            )));
        }
        let (reply, ready) = oneshot::channel();
        let tenant = self.shared.owner.tenant;
        self.client.shared().inbox.push(tenant, || {
            let command = Command::Read {
                sequence: self.tell(),
                start,
                end,
                reply,
            };
            Ok((Some(command), ()))
        })?;
        Ok(ready)
    }

    /// The log-probability of each of its tokens but the first, given those before it, with `top` alternatives. Computes all
    /// of them once more, as a run that makes no tokens.
    ///
    /// # Errors
    /// Those of [`Client::start`], and what such a run fails with.
    pub async fn score(&self, top: u32) -> Result<Vec<PromptLogprob>, EngineError> {
        let policy = Policy {
            max_tokens: Some(0),
            prompt_logprobs: Some(top),
            ..Policy::default()
        };
        let job = Job {
            sequence: self,
            policy,
        };
        let mut run = self.client.start(vec![job])?;
        let mut scored = Vec::new();
        while let Some(events) = run.next().await {
            for event in events {
                scored.extend(event.prompt_logprobs);
                if let Some(Finish::Failed(error)) = event.finished {
                    return Err(error);
                }
            }
        }
        Ok(scored)
    }

    fn check_not_decoding(&self, what: &str) -> Result<(), EngineError> {
        if self.shared.is_decoding() {
            let text = format!("a sequence cannot be {what} while a run decodes it");
            return Err(EngineError::Invalid(text));
        }
        Ok(())
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        let engine = self.client.shared();
        engine.sequences.fetch_sub(1, Ordering::Relaxed);
        if self.known.load(Ordering::Relaxed) {
            let sequence = self.shared.id;
            engine.inbox.give_up(Command::Release { sequence }, || ());
        }
    }
}
