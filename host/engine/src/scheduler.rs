//! The scheduler reads the batch and says what the next step does, as a [`Plan`]. It changes nothing but its own counters.
//!
//! Rows go to decoding sequences first, then to pieces of prompts, smallest-served tenant first. *Waiting* sequences have
//! work, *running* ones have a place and a row in every step. Blocks of sequences without a place may be dropped at any time,
//! because tokens can always be computed again; one with a place loses its blocks only when nothing else can run.

mod admit;
mod cost;
mod draft;
mod place;
mod plan;
mod shares;

use std::time::Duration;

use admit::Totals;
use cost::StepCost;
use draft::Draft;
use place::Way;
pub(crate) use plan::{Plan, Span};
pub(crate) use shares::Shares;

use crate::batch::Batch;
use crate::client::Owner;

/// How much a step may do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) step_tokens_max: u32,
    pub(crate) sequences_running_max: u32,
    pub(crate) step_target: Duration, // 0 is none
    pub(crate) scored_rows_max: u32,  // rows whose logits are wanted for the tokens after them
}

/// Who goes next.
pub(crate) struct Scheduler {
    limits: Limits,
    shares: Shares,
    cost: StepCost,
}

impl Scheduler {
    pub(crate) fn new(limits: Limits) -> Scheduler {
        let step_tokens_max = limits.step_tokens_max.max(1);
        Scheduler {
            limits: Limits {
                step_tokens_max,
                // Every running sequence gets a row in every step, so none of them can starve.
                sequences_running_max: limits.sequences_running_max.clamp(1, step_tokens_max),
                scored_rows_max: limits.scored_rows_max.max(1),
                ..limits
            },
            shares: Shares::default(),
            cost: StepCost::new(limits.step_target),
        }
    }

    /// The latest word about a tenant.
    pub(crate) fn know(&mut self, owner: &Owner) {
        self.shares.know(owner);
    }

    /// Tenants that have work now and had none before, or the other way round. To be told before the next plan.
    pub(crate) fn change(&mut self, tenants: &[(u32, bool)]) {
        self.shares.change(tenants);
    }

    /// What the next step does. Nothing to compute only when nothing can be computed.
    pub(crate) fn plan(&mut self, batch: &Batch) -> Plan {
        let mut base = Draft::new(batch, self.limits.scored_rows_max);
        let totals = Totals {
            places: self.limits.sequences_running_max,
            blocks: batch.pool().total(),
        };
        admit::admit(&mut base, &self.shares, totals);
        loop {
            let mut draft = base.clone();
            let mut blocked = Vec::new();
            place::decodes(&mut draft, &self.shares, &mut blocked);
            let rows = self.prefill_rows_max(draft.plan().decode_rows);
            place::prefills(&mut draft, &self.shares, &mut blocked, rows);
            match place::way_out(&draft, &blocked) {
                Some(Way::Preempt(id, why)) => base.preempt(id, why),
                Some(Way::End(id)) => base.end(id),
                None => return self.charge(draft),
            }
        }
    }

    fn charge(&mut self, draft: Draft<'_>) -> Plan {
        for span in &draft.plan().spans {
            let tenant = draft.get(span.sequence).tenant();
            self.shares.charge(tenant, span.rows());
        }
        draft.into_plan()
    }

    fn prefill_rows_max(&self, decode_rows: u32) -> u32 {
        let rows_left = self.limits.step_tokens_max.saturating_sub(decode_rows);
        self.cost.prefill_rows_max(decode_rows, rows_left)
    }

    /// A planned step took this long to compute.
    pub(crate) fn observe(&mut self, plan: &Plan, took: Duration) {
        let prefill_rows = plan.rows() - plan.decode_rows;
        self.cost
            .observe(plan.decode_rows, prefill_rows, took.as_secs_f64());
    }

    /// Charges a tenant for work beside the rows, as many rows as would have taken as long.
    pub(crate) fn charge_time(&mut self, tenant: u32, took: Duration) {
        let row = self.cost.row_seconds();
        if row > 0.0 {
            let units = took.as_secs_f64() / row * shares::ROW as f64;
            self.shares.charge_units(tenant, units as u64);
        }
    }

    #[cfg(test)]
    pub(crate) fn served(&self, tenant: u32) -> u64 {
        self.shares.served(tenant)
    }

    #[cfg(test)]
    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }
}
