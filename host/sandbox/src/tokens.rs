//! What a call pays for the tokens of its sequences: each for its own, and forks together for what they share.
//!
//! Tokens that sequences share are kept as long as any of them is, so their charge is shared as well: dropping the sequence
//! that has paid for them does not make them free.

use crate::memory::{CallMemory, HANDLE_BYTES, Held, NoMemory};
use std::sync::Arc;

/// What one token of a sequence takes.
const TOKEN_BYTES: usize = size_of::<u32>();

/// Bytes of a sequence's tokens.
pub(crate) fn token_bytes(tokens: u32) -> usize {
    tokens as usize * TOKEN_BYTES
}

/// The charge for one sequence: its handle and its tokens.
#[derive(Debug)]
pub(crate) struct TokenCharge {
    /// The handle, and the tokens from `shared` on.
    held: Held,
    /// So many of the first tokens are paid for by `prefix`.
    shared: u32,
    prefix: Option<Arc<Prefix>>,
}

/// Tokens that several sequences begin with.
#[derive(Debug)]
struct Prefix {
    /// Those from `start` on.
    held: Held,
    start: u32,
    /// The ones in front of them.
    before: Option<Arc<Prefix>>,
}

impl TokenCharge {
    /// Of an empty sequence.
    pub(crate) fn new(memory: &Arc<CallMemory>) -> Result<TokenCharge, NoMemory> {
        Ok(TokenCharge {
            held: memory.hold(HANDLE_BYTES)?,
            shared: 0,
            prefix: None,
        })
    }

    /// Makes the charge what a sequence of `length` tokens costs, whether it has grown, been cut or failed to grow.
    pub(crate) fn settle(&mut self, length: u32) -> Result<(), NoMemory> {
        self.shared = self.shared.min(length);
        if self.shared == 0 {
            self.prefix = None;
        }
        self.held.resize(self.bytes(length))
    }

    /// The same for a sequence that has grown by tokens for which `reserved` was taken before.
    pub(crate) fn settle_with(&mut self, length: u32, reserved: &mut Held) -> Result<(), NoMemory> {
        let more = self.bytes(length).saturating_sub(self.held.bytes());
        self.held.absorb(reserved, more);
        self.settle(length)
    }

    /// The charge for a fork of `length` tokens, which shares what this one has paid for.
    pub(crate) fn fork(
        &mut self,
        memory: &Arc<CallMemory>,
        length: u32,
    ) -> Result<TokenCharge, NoMemory> {
        self.reclaim();
        let own = (self.held.bytes() - HANDLE_BYTES) / TOKEN_BYTES;
        // A run adds tokens that it has reserved room for itself: those the fork pays for on its own.
        let paid = self.shared.saturating_add(own as u32).min(length);
        if paid > self.shared {
            let mut tokens = Held::nothing(memory);
            tokens.absorb(&mut self.held, token_bytes(paid - self.shared));
            self.prefix = Some(Arc::new(Prefix {
                held: tokens,
                start: self.shared,
                before: self.prefix.take(),
            }));
            self.shared = paid;
        }
        let mut fork = TokenCharge {
            held: memory.hold(HANDLE_BYTES)?,
            shared: paid,
            prefix: self.prefix.clone(),
        };
        fork.settle(length)?;
        Ok(fork)
    }

    /// Takes back what nobody else shares any more, so that there are never more prefixes than sequences.
    fn reclaim(&mut self) {
        while let Some(prefix) = self.prefix.take() {
            match Arc::try_unwrap(prefix) {
                Ok(Prefix {
                    mut held,
                    start,
                    before,
                }) => {
                    let tokens = token_bytes(self.shared.saturating_sub(start));
                    self.held.absorb(&mut held, tokens);
                    self.shared = self.shared.min(start);
                    self.prefix = before;
                }
                Err(still_shared) => {
                    self.prefix = Some(still_shared);
                    return;
                }
            }
        }
    }

    fn bytes(&self, length: u32) -> usize {
        HANDLE_BYTES + token_bytes(length.saturating_sub(self.shared))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TenantMemory;

    const HANDLE: usize = HANDLE_BYTES;

    fn memory(bytes_max: usize) -> (Arc<TenantMemory>, Arc<CallMemory>) {
        let tenant = Arc::new(TenantMemory::new(bytes_max));
        let call = CallMemory::new(bytes_max, Arc::clone(&tenant));
        (tenant, call)
    }

    #[test]
    fn a_sequence_pays_for_the_tokens_it_has() {
        let (tenant, call) = memory(HANDLE + 400);
        let mut charge = TokenCharge::new(&call).unwrap();
        charge.settle(100).unwrap();
        assert_eq!(tenant.bytes(), HANDLE + 400);
        assert!(charge.settle(101).is_err());
        assert_eq!(tenant.bytes(), HANDLE + 400, "it has not grown");
        charge.settle(10).unwrap();
        assert_eq!(tenant.bytes(), HANDLE + 40, "what is forgotten is free");
        drop(charge);
        assert_eq!(tenant.bytes(), 0);
    }

    #[test]
    fn what_a_run_reserved_pays_for_what_it_made_and_the_rest_is_free() {
        let (tenant, call) = memory(HANDLE + 400);
        let mut charge = TokenCharge::new(&call).unwrap();
        charge.settle(20).unwrap();
        let mut reserved = call.hold(320).unwrap();
        charge.settle_with(50, &mut reserved).unwrap();
        assert_eq!(tenant.bytes(), HANDLE + 400, "nothing is charged twice");
        drop(reserved);
        assert_eq!(tenant.bytes(), HANDLE + 200);
    }

    #[test]
    fn shared_tokens_are_paid_once_and_as_long_as_anybody_has_them() {
        let (tenant, call) = memory(1 << 20);
        let mut parent = TokenCharge::new(&call).unwrap();
        parent.settle(100).unwrap();
        let mut child = parent.fork(&call, 100).unwrap();
        assert_eq!(tenant.bytes(), 2 * HANDLE + 400);
        parent.settle(150).unwrap();
        child.settle(110).unwrap();
        assert_eq!(tenant.bytes(), 2 * HANDLE + 400 + 200 + 40);
        drop(parent);
        assert_eq!(tenant.bytes(), HANDLE + 400 + 40);
        // Cut into what was shared, it keeps that; the rest is its own again.
        child.settle(60).unwrap();
        assert_eq!(tenant.bytes(), HANDLE + 400);
        child.settle(80).unwrap();
        assert_eq!(tenant.bytes(), HANDLE + 400 + 80);
        let grandchild = child.fork(&call, 80).unwrap();
        assert_eq!(tenant.bytes(), 2 * HANDLE + 320, "60 and 20 tokens");
        drop(child);
        assert_eq!(tenant.bytes(), HANDLE + 320);
        drop(grandchild);
        assert_eq!(tenant.bytes(), 0);
    }

    #[test]
    fn a_fork_of_a_sequence_that_a_run_decodes_pays_for_what_the_run_has_added() {
        let (tenant, call) = memory(1 << 20);
        let mut parent = TokenCharge::new(&call).unwrap();
        parent.settle(100).unwrap();
        let mut reserved = call.hold(4 * 50).unwrap();
        let child = parent.fork(&call, 130).unwrap();
        assert_eq!(tenant.bytes(), 2 * HANDLE + 400 + 200 + 120);
        parent.settle_with(140, &mut reserved).unwrap();
        drop(reserved);
        assert_eq!(tenant.bytes(), 2 * HANDLE + 400 + 160 + 120);
        drop(parent);
        assert_eq!(tenant.bytes(), HANDLE + 400 + 120);
        drop(child);
        assert_eq!(tenant.bytes(), 0);
    }

    #[test]
    fn forks_that_are_gone_leave_nothing_behind() {
        let (tenant, call) = memory(1 << 20);
        let mut charge = TokenCharge::new(&call).unwrap();
        for length in 1..10_000 {
            charge.settle(length).unwrap();
            drop(charge.fork(&call, length).unwrap());
        }
        let mut links = 0;
        let mut prefix = charge.prefix.as_ref();
        while let Some(link) = prefix {
            links += 1;
            prefix = link.before.as_ref();
        }
        assert!(links <= 1, "{links} prefixes that nobody shares");
        assert_eq!(tenant.bytes(), HANDLE + 4 * 9_999);
    }
}
