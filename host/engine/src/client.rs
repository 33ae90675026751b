//! Handles to the engine: cheap to clone and to send, checked on the caller's thread, freed by dropping them.
//!
//! The futures here need no runtime. Each handle's drop reaches the engine whatever the state of the queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use realm_text::TextModel;

use crate::account::{Account, Ledger, TenantUsage};
use crate::emitter::Generation;
use crate::error::{EngineError, OVERLOADED};
use crate::executor::ModelFacts;
use crate::inbox::{Command, Inbox};
use crate::outlet::outlet;
use crate::run::{Job, Run, claim};
use crate::sequence::{Sequence, SharedSequence};
use crate::stats::{Counters, Stats};

/// A hint: sequences come free as calls end.
const RETRY_MS: u32 = 250;

/// Whose work it is. The engine knows a tenant as a number with a weight and a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The tenant's number.
    pub tenant: u32,
    /// Its share of the engine against others that want it at the same time; 0 counts as 1.
    pub weight: u32,
    /// KV blocks that all its sequences together may hold; a block shared by forks counts once. `u32::MAX` is what the engine
    /// gives a tenant that has no number of its own.
    ///
    /// When it is reached, idle sequences of the tenant lose their blocks (they are computed again when needed) and
    /// its jobs wait for one another. For a single sequence that needs more it is the end of the context.
    pub kv_blocks_max: u32,
}

/// What the engine thread and all handles share.
pub(crate) struct EngineShared {
    pub(crate) inbox: Inbox,
    pub(crate) counters: Counters,
    pub(crate) facts: ModelFacts,
    pub(crate) text: Arc<TextModel>,
    pub(crate) ledger: Ledger,
    pub(crate) sequences_max: usize,
    pub(crate) tenant_sequences_max: usize,
    pub(crate) tenant_kv_percent_max: u32,
    pub(crate) unread_tokens_max: usize,
    pub(crate) sequences: AtomicUsize, // handles alive
    pub(crate) ids: AtomicU64,         // of sequences and runs
}

impl EngineShared {
    /// Tokens a sequence can have: the context, or what all the KV blocks hold if that is less.
    fn length_max(&self) -> u32 {
        self.length_within(self.facts.kv_blocks)
    }

    /// The same with so many blocks at most.
    pub(crate) fn length_within(&self, blocks_max: u32) -> u32 {
        let blocks = self.facts.kv_blocks.min(blocks_max);
        let cache = blocks.saturating_mul(self.facts.block_tokens);
        self.facts.context_length.min(cache)
    }

    /// The owner's number of blocks, or what a tenant without one gets.
    fn kv_blocks_max(&self, owner: Owner) -> u32 {
        match owner.kv_blocks_max {
            u32::MAX => self.kv_blocks_default(),
            blocks => blocks,
        }
    }

    /// KV blocks of a tenant that has no number of its own.
    fn kv_blocks_default(&self) -> u32 {
        let total = u64::from(self.facts.kv_blocks);
        let share = total * u64::from(self.tenant_kv_percent_max) / 100;
        let longest = self.length_max().div_ceil(self.facts.block_tokens);
        u32::try_from(share).unwrap_or(u32::MAX).max(longest)
    }

    fn id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }
}

/// The way to an engine.
#[derive(Clone)]
pub struct Client {
    pub(crate) shared: Arc<EngineShared>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("model", &self.shared.facts.name)
            .finish_non_exhaustive()
    }
}

impl Client {
    pub(crate) fn shared(&self) -> &Arc<EngineShared> {
        &self.shared
    }

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

    /// Tokens that one sequence of this owner can have: the model's context, or what the blocks it may hold have room for.
    pub fn length_max(&self, owner: Owner) -> u32 {
        self.shared.length_within(self.shared.kv_blocks_max(owner))
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

    pub(crate) fn new_sequence(
        &self,
        owner: Owner,
        account: &Arc<Account>,
    ) -> Result<Sequence, EngineError> {
        let owner = Owner {
            kv_blocks_max: self.shared.kv_blocks_max(owner),
            ..owner
        };
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
        let shared = SharedSequence::new(self.shared.id(), owner, charge);
        let sequence = Sequence::new(self, shared);
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
    /// `Invalid` when there is no job, a policy is out of range, a sequence is empty, is already being decoded or is
    /// another engine's; `Overloaded`, `Stopped`. Nothing was started then.
    pub fn start(&self, jobs: Vec<Job<'_>>) -> Result<Run, EngineError> {
        let Some(first) = jobs.first() else {
            return Err(EngineError::Invalid("a run needs a job".to_owned()));
        };
        let tenant = first.sequence.shared().owner.tenant;
        for job in &jobs {
            job.policy
                .validate(self.shared.facts.vocab_size)
                .map_err(EngineError::Invalid)?;
            if !Arc::ptr_eq(job.sequence.client().shared(), &self.shared) {
                let what = "a job's sequence belongs to another model";
                return Err(EngineError::Invalid(what.to_owned()));
            }
        }
        let (outlet, reader) = outlet(jobs.len() as u32, self.shared.unread_tokens_max);
        let run = self.shared.id();
        let sequences: Vec<_> = jobs.iter().map(|job| job.sequence.tell()).collect();
        // Stop strings and the like are made ready here, on the caller's time.
        let generations = jobs
            .into_iter()
            .map(|job| Box::new(Generation::new(job.policy)));
        let jobs = sequences.iter().cloned().zip(generations).collect();
        self.shared.inbox.push(tenant, || {
            claim(run, &sequences)?;
            Ok((Some(Command::Start { run, jobs, outlet }), ()))
        })?;
        Ok(Run::new(run, sequences, reader, self.clone()))
    }
}
