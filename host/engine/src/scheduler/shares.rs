//! Fair shares: a virtual counter for each tenant grows by the rows it was given over its weight, and the tenant with
//! the smallest goes first (virtual token counters, arXiv:2401.00588).

use std::collections::BTreeMap;

use crate::client::Owner;

/// A row's charge at weight 1; a power of two large enough that weights divide it finely.
pub(crate) const ROW: u64 = 1 << 16;

/// The counters of all tenants ever seen. A tenant is two dozen bytes and the server's to make, so none is forgotten.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    tenants: BTreeMap<u32, Share>,
    active: BTreeMap<u32, u64>, // tenants with work, and their weights
    active_weight: u64,         // of them all
    level: u64,                 // where a tenant starts that comes when nobody is there
}

#[derive(Debug)]
struct Share {
    served: u64,
    weight: u64,
    kv_blocks_max: u32,
}

impl Shares {
    /// The latest word about a tenant counts.
    pub(crate) fn know(&mut self, owner: &Owner) {
        let tenant = self.tenants.entry(owner.tenant).or_insert(Share {
            served: 0,
            weight: 1,
            kv_blocks_max: 0,
        });
        tenant.weight = u64::from(owner.weight.max(1));
        tenant.kv_blocks_max = owner.kv_blocks_max;
        if let Some(weight) = self.active.get_mut(&owner.tenant) {
            self.active_weight = self.active_weight - *weight + tenant.weight;
            *weight = tenant.weight;
        }
    }

    /// A tenant has work. Who comes, for the first time or back, starts level with the least served of those who are
    /// there, or with the last who was: time away is not saved up, and neither is having been new.
    pub(crate) fn activate(&mut self, tenant: u32) {
        if self.active.contains_key(&tenant) {
            return;
        }
        let least = self.active.keys().map(|&tenant| self.served(tenant)).min();
        let level = least.unwrap_or(self.level);
        if let Some(share) = self.tenants.get_mut(&tenant) {
            share.served = share.served.max(level);
            self.active.insert(tenant, share.weight);
            self.active_weight += share.weight;
        }
    }

    /// A tenant has no more work.
    pub(crate) fn deactivate(&mut self, tenant: u32) {
        if let Some(weight) = self.active.remove(&tenant) {
            self.active_weight -= weight;
            self.level = self.level.max(self.served(tenant));
        }
    }

    /// Tenants have come or gone, as is said of each: whether it has work now.
    pub(crate) fn change(&mut self, tenants: &[(u32, bool)]) {
        // Who comes meets those who stay; only when nobody does, the level of who left.
        for &(tenant, _) in tenants.iter().filter(|(_, works)| !works) {
            self.deactivate(tenant);
        }
        for &(tenant, _) in tenants.iter().filter(|(_, works)| *works) {
            self.activate(tenant);
        }
    }

    pub(crate) fn charge(&mut self, tenant: u32, rows: u32) {
        self.charge_units(tenant, u64::from(rows) * ROW);
    }

    /// Charges in units of a row's `1 / ROW`.
    pub(crate) fn charge_units(&mut self, tenant: u32, units: u64) {
        if let Some(tenant) = self.tenants.get_mut(&tenant) {
            tenant.served = tenant.served.saturating_add(units / tenant.weight);
        }
    }

    /// What a tenant will have been served once it is charged for more rows.
    pub(crate) fn served_after(&self, tenant: u32, rows: u32) -> u64 {
        let weight = self.tenants.get(&tenant).map_or(1, |tenant| tenant.weight);
        let more = u64::from(rows) * ROW / weight;
        self.served(tenant).saturating_add(more)
    }

    pub(crate) fn served(&self, tenant: u32) -> u64 {
        self.tenants.get(&tenant).map_or(0, |tenant| tenant.served)
    }

    pub(crate) fn kv_blocks_max(&self, tenant: u32) -> u32 {
        self.tenants
            .get(&tenant)
            .map_or(0, |tenant| tenant.kv_blocks_max)
    }

    /// What of `total` a tenant's weight gives it among those with work, rounded down.
    pub(crate) fn of(&self, tenant: u32, total: u32) -> u32 {
        let own = self.active.get(&tenant).copied().unwrap_or(0);
        let share = (u64::from(total) * own).checked_div(self.active_weight);
        share.map_or(total, |share| share as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(tenant: u32, weight: u32) -> Owner {
        Owner {
            tenant,
            weight,
            kv_blocks_max: 10,
        }
    }

    fn shares(tenants: &[u32]) -> Shares {
        let mut shares = Shares::default();
        for &tenant in tenants {
            shares.know(&owner(tenant, 1));
        }
        shares
    }

    #[test]
    fn a_heavier_tenant_is_charged_less() {
        let mut shares = shares(&[1]);
        shares.know(&owner(2, 4));
        shares.charge(1, 10);
        shares.charge(2, 40);
        assert_eq!(shares.served(1), shares.served(2));
    }

    #[test]
    fn time_away_is_not_saved_up() {
        let mut shares = shares(&[1, 2]);
        shares.change(&[(1, true)]);
        shares.charge(1, 100);
        shares.change(&[(2, true)]);
        assert_eq!(shares.served(2), shares.served(1));
    }

    #[test]
    fn who_comes_when_nobody_is_there_starts_where_the_last_one_was() {
        let mut shares = shares(&[1, 2, 3]);
        shares.change(&[(1, true)]);
        shares.charge(1, 1_000_000);
        shares.change(&[(1, false)]);
        shares.change(&[(2, true)]);
        assert_eq!(shares.served(2), shares.served(1), "not at 0");
        shares.charge(2, 50);
        shares.change(&[(1, true)]);
        assert_eq!(shares.served(1), shares.served(2), "nor at its old place");
        shares.change(&[(3, true), (2, false), (1, false)]);
        assert_eq!(shares.served(3), shares.served(1));
    }

    #[test]
    fn a_share_is_the_part_of_the_weights_that_are_there() {
        let mut shares = shares(&[1, 2]);
        shares.know(&owner(3, 2));
        shares.change(&[(1, true), (3, true)]);
        assert_eq!((shares.of(1, 64), shares.of(3, 64)), (21, 42));
        shares.know(&owner(3, 3));
        assert_eq!((shares.of(1, 64), shares.of(3, 64)), (16, 48));
        shares.change(&[(3, false)]);
        assert_eq!(shares.of(1, 64), 64);
    }
}
