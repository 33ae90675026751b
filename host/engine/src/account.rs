//! Who is charged for tokens: the account of one piece of work, and the running totals of each tenant.
//!
//! Both are counted where tokens come to be: a prompt when its append is accepted, an answer when it is sampled. What a
//! caller reads, passes on or drops changes neither.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use crate::outlet::Usage;

/// Tokens of one piece of work, over all its sequences and their forks. A prefix that forks share counts once.
#[derive(Debug, Default)]
pub struct Account(Counts);

impl Account {
    /// Nothing used yet.
    pub fn new() -> Arc<Account> {
        Arc::default()
    }

    /// Tokens used so far. It may still grow by a step after the last handle was dropped.
    pub fn usage(&self) -> Usage {
        let count = |count: &AtomicU64| u32::try_from(count.load(Relaxed)).unwrap_or(u32::MAX);
        Usage {
            prompt: count(&self.0.prompt),
            cached: count(&self.0.cached),
            completion: count(&self.0.completion),
        }
    }
}

/// What a tenant has used of one engine since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantUsage {
    /// The tenant's number.
    pub tenant: u32,
    /// Tokens appended to its sequences.
    pub prompt: u64,
    /// How many of those came from the prefix cache.
    pub cached: u64,
    /// Tokens sampled for it.
    pub completion: u64,
}

#[derive(Debug, Default)]
struct Counts {
    prompt: AtomicU64,
    cached: AtomicU64,
    completion: AtomicU64,
}

/// A tenant's totals and the sequences it has alive.
#[derive(Debug, Default)]
struct Totals {
    counts: Counts,
    sequences: AtomicU64,
}

/// The totals of all tenants ever seen. A tenant is a few dozen bytes and the server's to make, so none is forgotten.
#[derive(Debug, Default)]
pub(crate) struct Ledger(Mutex<BTreeMap<u32, Arc<Totals>>>);

impl Ledger {
    /// A place for one more sequence of a tenant, or `None` when it has `sequences_max` already.
    pub(crate) fn enter(
        &self,
        tenant: u32,
        account: &Arc<Account>,
        sequences_max: usize,
    ) -> Option<Charge> {
        let mut totals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let totals = Arc::clone(totals.entry(tenant).or_default());
        let before = totals.sequences.fetch_add(1, Relaxed);
        let charge = Charge {
            account: Arc::clone(account),
            totals,
        };
        (before < sequences_max as u64).then_some(charge)
    }

    pub(crate) fn usage(&self) -> Vec<TenantUsage> {
        let totals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let usage = |(&tenant, totals): (&u32, &Arc<Totals>)| TenantUsage {
            tenant,
            prompt: totals.counts.prompt.load(Relaxed),
            cached: totals.counts.cached.load(Relaxed),
            completion: totals.counts.completion.load(Relaxed),
        };
        totals.iter().map(usage).collect()
    }
}

/// Where the tokens of one sequence are counted, and its place among its tenant's. The place is free when it is dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    account: Arc<Account>,
    totals: Arc<Totals>,
}

impl Charge {
    pub(crate) fn account(&self) -> &Arc<Account> {
        &self.account
    }

    pub(crate) fn prompt(&self, tokens: u32) {
        self.add(|counts| &counts.prompt, tokens);
    }

    pub(crate) fn completion(&self, tokens: u32) {
        self.add(|counts| &counts.completion, tokens);
    }

    fn add(&self, count: impl Fn(&Counts) -> &AtomicU64, tokens: u32) {
        count(&self.account.0).fetch_add(tokens.into(), Relaxed);
        count(&self.totals.counts).fetch_add(tokens.into(), Relaxed);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.totals.sequences.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_and_its_tenant_count_the_same_tokens() {
        let ledger = Ledger::default();
        let (one, two) = (Account::new(), Account::new());
        let first = ledger.enter(7, &one, 8).unwrap();
        let second = ledger.enter(7, &two, 8).unwrap();
        first.prompt(10);
        second.prompt(5);
        second.completion(3);
        assert_eq!((one.usage().prompt, two.usage().prompt), (10, 5));
        let usage = TenantUsage {
            tenant: 7,
            prompt: 15,
            cached: 0,
            completion: 3,
        };
        assert_eq!(ledger.usage(), [usage]);
    }

    #[test]
    fn a_tenant_has_a_bounded_number_of_sequences_and_the_others_theirs() {
        let ledger = Ledger::default();
        let account = Account::new();
        let held = [(); 2].map(|()| ledger.enter(1, &account, 2).unwrap());
        assert!(ledger.enter(1, &account, 2).is_none());
        assert!(ledger.enter(2, &account, 2).is_some());
        drop(held);
        assert!(ledger.enter(1, &account, 2).is_some());
    }
}
