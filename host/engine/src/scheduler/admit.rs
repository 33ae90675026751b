//! From waiting to running: who gets a place, and who gives one up for it.
//!
//! Places and blocks are shares like rows. As long as nobody else waits a tenant may have all of them; when another waits
//! that has less than its weight gives it, whoever has more gives way, the youngest sequence first. That one keeps its tokens,
//! and its blocks as long as nobody needs them, and goes on when there is room again.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::draft::Draft;
use super::plan::Reason;
use super::shares::{ROW, Shares};

/// How much less than another a tenant may have been served before it takes that one's only place: rows at weight 1.
const TURN: u64 = 64 * ROW;
/// The same before nobody gets blocks any more that it waits for, be they its share or not.
const PATIENCE: u64 = 2048 * ROW;

/// What there is to share.
#[derive(Clone, Copy)]
pub(super) struct Totals {
    pub(super) places: u32,
    pub(super) blocks: u32,
}

/// The oldest sequence that waits of the tenant whose turn it is.
#[derive(Clone, Copy)]
struct Head {
    tenant: u32,
    arrival: u64,
    sequence: u64,
}

/// Gives places to waiting sequences, as long as there are some and the blocks are enough.
pub(super) fn admit(draft: &mut Draft<'_>, shares: &Shares, totals: Totals) {
    let mut lines: BTreeMap<u32, u64> = draft.waiting().keys().map(|&tenant| (tenant, 0)).collect();
    let mut ahead = Vec::new();
    while let Some(head) = next(draft, &lines, shares, totals) {
        let mut tried = draft.clone();
        match try_admit(&mut tried, shares, totals, head, &ahead) {
            Ok(()) => {
                *draft = tried;
                lines.insert(head.tenant, head.arrival + 1);
            }
            Err(refusal) => {
                if refusal == Refusal::Blocks {
                    ahead.push(head);
                }
                lines.remove(&head.tenant);
            }
        }
    }
}

/// Whose turn it is: a tenant with fewer places than its share goes before one with more, then the least served does.
fn next(
    draft: &Draft<'_>,
    lines: &BTreeMap<u32, u64>,
    shares: &Shares,
    totals: Totals,
) -> Option<Head> {
    let heads = lines.iter().filter_map(|(&tenant, &from)| {
        let (&arrival, &sequence) = draft.waiting().get(&tenant)?.range(from..).next()?;
        let has_share = draft.places(tenant) >= place_share(shares, tenant, totals);
        let head = Head {
            tenant,
            arrival,
            sequence,
        };
        Some(((has_share, shares.served(tenant), arrival), head))
    });
    heads.min_by_key(|&(key, _)| key).map(|(_, head)| head)
}

/// What a waiting sequence could not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Place,
    Blocks,
    /// Its tenant's blocks are all in use.
    Quota,
}

fn try_admit(
    draft: &mut Draft<'_>,
    shares: &Shares,
    totals: Totals,
    head: Head,
    ahead: &[Head],
) -> Result<(), Refusal> {
    let Head {
        tenant, sequence, ..
    } = head;
    let cost = draft.cost(sequence);
    let own = draft.committed_by(tenant);
    // Whoever is alone is admitted in any case: it fits, or it fails with the reason.
    if own > 0 && own + cost > shares.kv_blocks_max(tenant) {
        return Err(Refusal::Quota);
    }
    if draft.running().len() as u32 >= totals.places {
        let (victim, why) = place_victim(draft, shares, tenant, totals).ok_or(Refusal::Place)?;
        draft.give_up_place(victim, why);
    }
    let reserved: u32 = ahead
        .iter()
        .map(|waiting| reserved(draft, shares, totals, waiting, tenant, own + cost))
        .sum();
    loop {
        // A block to grow for each running sequence, or admitting this one would soon preempt another.
        let growth = draft.running().len() as u32;
        let needed = u64::from(draft.committed()) + u64::from(cost + growth) + u64::from(reserved);
        if draft.running().is_empty() || needed <= u64::from(totals.blocks) {
            break;
        }
        let in_share = own + cost <= shares.of(tenant, totals.blocks);
        let victim = in_share.then(|| block_victim(draft, shares, tenant, totals));
        let victim = victim.flatten().ok_or(Refusal::Blocks)?;
        draft.give_up_place(victim, Reason::Blocks);
    }
    draft.admit(sequence);
    Ok(())
}

fn place_share(shares: &Shares, tenant: u32, totals: Totals) -> u32 {
    shares.of(tenant, totals.places).max(1)
}

/// Who gives up a place for a sequence of `tenant`.
fn place_victim(
    draft: &Draft<'_>,
    shares: &Shares,
    tenant: u32,
    totals: Totals,
) -> Option<(u64, Reason)> {
    let others = draft
        .running_by()
        .iter()
        .filter(|&(&other, _)| other != tenant);
    if draft.places(tenant) < place_share(shares, tenant, totals) {
        let over = others.clone().filter_map(|(&other, &places)| {
            let excess = places.checked_sub(place_share(shares, other, totals) + 1)?;
            Some((excess, Reverse(other)))
        });
        if let Some((_, Reverse(other))) = over.max() {
            return Some((draft.youngest(Some(other))?, Reason::Places));
        }
    }
    if draft.places(tenant) > 0 {
        return None;
    }
    // More tenants than places: they take turns.
    let served = others.map(|(&other, _)| (shares.served(other), Reverse(other)));
    let (most, Reverse(other)) = served.max()?;
    let is_up = most > shares.served(tenant).saturating_add(TURN);
    let victim = is_up.then(|| draft.youngest(Some(other))).flatten()?;
    Some((victim, Reason::Turn))
}

/// Who gives up a place so that a sequence of `tenant` gets blocks. Not one who has been served less: it waited for them.
fn block_victim(draft: &Draft<'_>, shares: &Shares, tenant: u32, totals: Totals) -> Option<u64> {
    let others = draft.running_by().keys().filter(|&&other| other != tenant);
    let over = others.filter_map(|&other| {
        if shares.served(other) < shares.served(tenant) {
            return None;
        }
        let share = shares.of(other, totals.blocks);
        let excess = draft.committed_by(other).checked_sub(share + 1)?;
        Some((excess, Reverse(other)))
    });
    let (_, Reverse(other)) = over.max()?;
    draft.youngest(Some(other))
}

/// Blocks that are kept free for a sequence that waits for them, when another tenant would then have `blocks`.
///
/// As long as that is within the other's share only what is within the waiting one's is kept, so that a large request keeps
/// nobody from what is theirs; but not for ever.
fn reserved(
    draft: &Draft<'_>,
    shares: &Shares,
    totals: Totals,
    waiting: &Head,
    tenant: u32,
    blocks: u32,
) -> u32 {
    let need = draft.cost(waiting.sequence);
    let patient = shares.served(tenant) <= shares.served(waiting.tenant).saturating_add(PATIENCE);
    if patient && blocks <= shares.of(tenant, totals.blocks) {
        let share = shares.of(waiting.tenant, totals.blocks);
        need.min(share.saturating_sub(draft.committed_by(waiting.tenant)))
    } else {
        need
    }
}
