//! Fair shares: a virtual counter for each tenant grows by the rows it was given over its weight, and the tenant with
//! the smallest goes first (virtual token counters, arXiv:2401.00588).

use std::collections::BTreeMap;

use crate::client::Owner;

/// A row's charge at weight 1; a power of two large enough that weights divide it finely.
const ROW: u64 = 1 << 16;

/// The counters of all tenants ever seen. A tenant is two dozen bytes and the server's to make, so none is forgotten.
#[derive(Debug, Default)]
pub(crate) struct Tenants {
    tenants: BTreeMap<u32, Tenant>,
}

#[derive(Debug)]
struct Tenant {
    served: u64,
    weight: u64,
    kv_blocks_max: u32,
    active: u32, // sequences that wait or run
}

impl Tenants {
    /// The latest word about a tenant counts.
    pub(crate) fn know(&mut self, owner: &Owner) {
        let tenant = self.tenants.entry(owner.tenant).or_insert(Tenant {
            served: 0,
            weight: 1,
            kv_blocks_max: 0,
            active: 0,
        });
        tenant.weight = u64::from(owner.weight.max(1));
        tenant.kv_blocks_max = owner.kv_blocks_max;
    }

    /// One more sequence of the tenant has work. Who comes back starts level with the least served of those who
    /// are there: time away is not saved up.
    pub(crate) fn activate(&mut self, tenant: u32) {
        let least = self
            .tenants
            .values()
            .filter(|tenant| tenant.active > 0)
            .map(|tenant| tenant.served)
            .min();
        if let Some(tenant) = self.tenants.get_mut(&tenant) {
            if tenant.active == 0 {
                tenant.served = tenant.served.max(least.unwrap_or(0));
            }
            tenant.active += 1;
        }
    }

    pub(crate) fn deactivate(&mut self, tenant: u32) {
        if let Some(tenant) = self.tenants.get_mut(&tenant) {
            debug_assert!(tenant.active > 0, "a sequence leaves its line once");
            tenant.active = tenant.active.saturating_sub(1);
        }
    }

    pub(crate) fn charge(&mut self, tenant: u32, rows: u32) {
        if let Some(tenant) = self.tenants.get_mut(&tenant) {
            tenant.served += u64::from(rows) * ROW / tenant.weight;
        }
    }

    pub(crate) fn served(&self, tenant: u32) -> u64 {
        self.tenants.get(&tenant).map_or(0, |tenant| tenant.served)
    }

    pub(crate) fn kv_blocks_max(&self, tenant: u32) -> u32 {
        self.tenants
            .get(&tenant)
            .map_or(0, |tenant| tenant.kv_blocks_max)
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

    #[test]
    fn a_heavier_tenant_is_charged_less() {
        let mut tenants = Tenants::default();
        tenants.know(&owner(1, 1));
        tenants.know(&owner(2, 4));
        tenants.charge(1, 10);
        tenants.charge(2, 40);
        assert_eq!(tenants.served(1), tenants.served(2));
    }

    #[test]
    fn time_away_is_not_saved_up() {
        let mut tenants = Tenants::default();
        tenants.know(&owner(1, 1));
        tenants.know(&owner(2, 1));
        tenants.activate(1);
        tenants.charge(1, 100);
        tenants.activate(2);
        assert_eq!(tenants.served(2), tenants.served(1));
    }
}
