//! Where blocks come from when none is free: idle sequences first, then waiting ones, and running ones only when
//! nothing else can run. What loses its blocks keeps its tokens and is computed again.

use super::Shortage;
use crate::error::EngineError;
use crate::request::Status;
use crate::step::StepLoop;

impl StepLoop {
    /// A block for a tenant, at the cost of sequences that are not running if need be.
    pub(crate) fn take_block(&mut self, tenant: u32) -> Result<u32, Shortage> {
        while self.pool.held_by(tenant) >= self.tenants.kv_blocks_max(tenant) {
            if !self.drop_one(Some(tenant)) {
                return Err(Shortage::Tenant);
            }
        }
        loop {
            if let Some(block) = self.pool.take(tenant) {
                return Ok(block);
            }
            if !self.drop_one(None) {
                return Err(Shortage::Pool);
            }
        }
    }

    /// Drops the blocks of one sequence that is not running. False when there is none.
    ///
    /// Idle ones go before waiting ones; among them those that free something, then the least recently used.
    fn drop_one(&mut self, of_tenant: Option<u32>) -> bool {
        let victim = self
            .sequences
            .iter()
            .filter(|(_, sequence)| {
                sequence.status != Status::Running
                    && !sequence.table.is_empty()
                    && of_tenant.is_none_or(|tenant| tenant == sequence.tenant())
            })
            .min_by_key(|(id, sequence)| {
                (
                    !sequence.table.holds_alone(&self.pool),
                    sequence.status == Status::Waiting,
                    sequence.used_step,
                    **id,
                )
            })
            .map(|(&id, _)| id);
        match victim {
            Some(id) => {
                self.drop_blocks(id);
                true
            }
            None => false,
        }
    }

    /// Makes room when somebody cannot go on: true when something changed and the step is to be planned again.
    ///
    /// Blocked sequences wait as long as others run, whose end gives blocks. Where nobody runs, the youngest gives way
    /// to the older ones, and one that is alone and still blocked can never run: it ends.
    pub(crate) fn unblock(&mut self) -> bool {
        let blocked = std::mem::take(&mut self.plan.blocked);
        let nobody_runs = self.plan.spans.is_empty();
        for &(id, shortage) in &blocked {
            let tenant = self.sequences[&id].tenant();
            let stuck = match shortage {
                Shortage::Pool => nobody_runs,
                Shortage::Tenant => !self
                    .plan
                    .spans
                    .iter()
                    .any(|span| self.sequences[&span.sequence].tenant() == tenant),
            };
            if !stuck {
                continue;
            }
            let scope = (shortage == Shortage::Tenant).then_some(tenant);
            let mut rivals = self.running.values().copied().filter(|rival| {
                scope.is_none_or(|tenant| tenant == self.sequences[rival].tenant())
            });
            let youngest = rivals.next_back();
            let alone = rivals.next_back().is_none();
            match youngest {
                Some(youngest) if !alone => self.preempt(youngest),
                _ => self.end_hopeless(id, shortage),
            }
            return true;
        }
        false
    }

    /// Ends a sequence that does not fit even alone.
    fn end_hopeless(&mut self, id: u64, shortage: Shortage) {
        let Some(sequence) = self.sequences.get(&id) else {
            return;
        };
        let has_spoken = sequence.job.as_ref().is_some_and(|job| job.generated > 0);
        match shortage {
            Shortage::Pool if has_spoken => self.finish_full(id),
            Shortage::Pool => self.fail(id, &EngineError::ContextFull { room: 0 }),
            Shortage::Tenant => {
                let blocks_max = self.tenants.kv_blocks_max(sequence.tenant());
                let error = EngineError::Quota {
                    what: format!(
                        "{} tokens need more than the {blocks_max} KV blocks the tenant may hold",
                        sequence.length()
                    ),
                    retry_after_ms: 0,
                };
                self.fail(id, &error);
            }
        }
    }
}
