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

/// The order of heads: a tenant with fewer places than its share goes before one with more, then the least served does,
/// then who came first.
type Turn = (bool, u64, u64);

/// Gives places to waiting sequences, as long as there are some and the blocks are enough.
pub(super) fn admit(draft: &mut Draft<'_>, shares: &Shares, totals: Totals) {
    let heads = draft.waiting().keys();
    let mut turns: BTreeMap<Turn, Head> = heads
        .filter_map(|&tenant| head(draft, tenant, 0))
        .map(|head| (turn(draft, shares, totals, &head), head))
        .collect();
    let mut ahead = Vec::new();
    while let Some((_, first)) = turns.pop_first() {
        let yielded = draft.plan().yielded.len();
        match admit_head(draft, shares, totals, first, &ahead) {
            Ok(()) => {
                let next = head(draft, first.tenant, first.arrival + 1);
                turns.extend(next.map(|head| (turn(draft, shares, totals, &head), head)));
                if draft.plan().yielded.len() > yielded {
                    // Whoever gave way may have fewer places than its share now.
                    let heads = std::mem::take(&mut turns).into_values();
                    turns.extend(heads.map(|head| (turn(draft, shares, totals, &head), head)));
                }
            }
            // Nobody behind has been served less or has more of a claim to a place.
            Err(Refusal::Place) if draft.places(first.tenant) == 0 => return,
            Err(Refusal::Blocks) => ahead.push(first),
            Err(Refusal::Place | Refusal::Quota) => {}
        }
    }
}

/// The first of a tenant's line that came at `from` or later.
fn head(draft: &Draft<'_>, tenant: u32, from: u64) -> Option<Head> {
    let line = draft.waiting().get(&tenant)?;
    let (&arrival, &sequence) = line.range(from..).next()?;
    Some(Head {
        tenant,
        arrival,
        sequence,
    })
}

fn turn(draft: &Draft<'_>, shares: &Shares, totals: Totals, head: &Head) -> Turn {
    let has_share = draft.places(head.tenant) >= place_share(shares, head.tenant, totals);
    (has_share, shares.served(head.tenant), head.arrival)
}

/// What a waiting sequence could not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Place,
    Blocks,
    /// Its tenant's blocks are all in use.
    Quota,
}

/// Gives the head of a line a place, or says what it lacks.
fn admit_head(
    draft: &mut Draft<'_>,
    shares: &Shares,
    totals: Totals,
    head: Head,
    ahead: &[Head],
) -> Result<(), Refusal> {
    let own = draft.committed_by(head.tenant);
    let cost = draft.cost(head.sequence);
    // Whoever is alone is admitted in any case: it fits, or it fails with the reason.
    if own > 0 && own + cost > shares.kv_blocks_max(head.tenant) {
        return Err(Refusal::Quota);
    }
    let asked = Asked {
        shares,
        totals,
        head,
        cost,
        blocks: own + cost,
    };
    let is_full = draft.running().len() as u32 >= totals.places;
    if is_full || asked.lacks_blocks(draft, asked.reserved(draft, ahead)) {
        // What others have is taken only where that is enough.
        let mut tried = draft.clone();
        asked.take(&mut tried, ahead, is_full)?;
        *draft = tried;
    }
    draft.admit(head.sequence);
    Ok(())
}

/// A place and blocks that the head of a line asks for.
struct Asked<'a> {
    shares: &'a Shares,
    totals: Totals,
    head: Head,
    cost: u32,   // blocks it adds
    blocks: u32, // that its tenant would then have
}

impl Asked<'_> {
    /// Takes what is missing from others.
    fn take(&self, draft: &mut Draft<'_>, ahead: &[Head], is_full: bool) -> Result<(), Refusal> {
        let (shares, totals, tenant) = (self.shares, self.totals, self.head.tenant);
        if is_full {
            let victim = place_victim(draft, shares, tenant, totals);
            let (victim, why) = victim.ok_or(Refusal::Place)?;
            draft.give_up_place(victim, why);
        }
        let reserved = self.reserved(draft, ahead);
        while self.lacks_blocks(draft, reserved) {
            let in_share = self.blocks <= shares.of(tenant, totals.blocks);
            let victim = in_share.then(|| block_victim(draft, shares, tenant, totals));
            let victim = victim.flatten().ok_or(Refusal::Blocks)?;
            draft.give_up_place(victim, Reason::Blocks);
        }
        Ok(())
    }

    fn lacks_blocks(&self, draft: &Draft<'_>, reserved: u64) -> bool {
        // A block to grow for each running sequence, or admitting this one would soon preempt another.
        let growth = draft.running().len() as u32;
        let needed = u64::from(draft.committed()) + u64::from(self.cost + growth) + reserved;
        !draft.running().is_empty() && needed > u64::from(self.totals.blocks)
    }

    /// Blocks that are kept free for those who wait for some.
    fn reserved(&self, draft: &Draft<'_>, ahead: &[Head]) -> u64 {
        let each = ahead
            .iter()
            .map(|waiting| self.reserved_for(draft, waiting));
        each.map(u64::from).sum()
    }

    /// Blocks that are kept free for a sequence that waits for them.
    ///
    /// As long as what this tenant would have is within its share only what is within the waiting one's is kept, so that a
    /// large request keeps nobody from what is theirs; but not for ever.
    fn reserved_for(&self, draft: &Draft<'_>, waiting: &Head) -> u32 {
        let (shares, tenant, total) = (self.shares, self.head.tenant, self.totals.blocks);
        let need = draft.cost(waiting.sequence);
        let patience = shares.served(waiting.tenant).saturating_add(PATIENCE);
        if shares.served(tenant) <= patience && self.blocks <= shares.of(tenant, total) {
            let share = shares.of(waiting.tenant, total);
            need.min(share.saturating_sub(draft.committed_by(waiting.tenant)))
        } else {
            need
        }
    }
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
