//! Spans of the plan: one row for each decoding sequence, then pieces of prompts in what is left of the step.

use std::collections::HashMap;

use super::draft::Draft;
use super::plan::{Reason, Shortage};
use super::shares::Shares;

/// Running sequences that got no row, for want of a block.
pub(super) type Blocked = Vec<(u64, Shortage)>;

/// A row for every running sequence that lacks just the last token, oldest first.
pub(super) fn decodes(draft: &mut Draft<'_>, shares: &Shares, blocked: &mut Blocked) {
    let running: Vec<u64> = draft.running().values().copied().collect();
    for id in running {
        if draft.get(id).decodes() {
            place(draft, shares, blocked, id, 1);
        }
    }
    draft.end_decodes();
}

/// Up to `rows_max` rows for the others: the least served tenant first, its oldest sequence first.
pub(super) fn prefills(
    draft: &mut Draft<'_>,
    shares: &Shares,
    blocked: &mut Blocked,
    mut rows_max: u32,
) {
    let mut planned: HashMap<u32, u32> = HashMap::new(); // tenant -> rows of this step
    for span in &draft.plan().spans {
        *planned
            .entry(draft.get(span.sequence).tenant())
            .or_insert(0) += span.rows();
    }
    let running = draft.running().values().copied();
    let mut ids: Vec<u64> = running.filter(|&id| !draft.get(id).decodes()).collect();
    while rows_max > 0 {
        let served = |tenant| {
            let rows = planned.get(&tenant).copied().unwrap_or(0);
            shares.served_after(tenant, rows)
        };
        let key = |id: u64| {
            let sequence = draft.get(id);
            (served(sequence.tenant()), sequence.arrival())
        };
        let Some(next) = (0..ids.len()).min_by_key(|&index| key(ids[index])) else {
            return;
        };
        let id = ids.swap_remove(next);
        let rows = place(draft, shares, blocked, id, rows_max);
        *planned.entry(draft.get(id).tenant()).or_insert(0) += rows;
        rows_max -= rows;
    }
}

/// Plans rows of a sequence. Returns how many it got.
fn place(
    draft: &mut Draft<'_>,
    shares: &Shares,
    blocked: &mut Blocked,
    id: u64,
    rows_max: u32,
) -> u32 {
    match draft.place(id, rows_max, shares) {
        Ok(rows) => rows,
        Err(shortage) => {
            blocked.push((id, shortage));
            0
        }
    }
}

/// What must happen so that somebody can go on.
pub(super) enum Way {
    Preempt(u64, Reason),
    End(u64),
}

/// Blocked sequences wait as long as others run, whose end gives blocks. Where nobody runs the youngest gives way to the
/// older ones, and one that is alone and still blocked can never run: it ends.
pub(super) fn way_out(draft: &Draft<'_>, blocked: &Blocked) -> Option<Way> {
    let spans = &draft.plan().spans;
    blocked.iter().find_map(|&(id, shortage)| {
        let tenant = draft.get(id).tenant();
        let scope = (shortage == Shortage::Tenant).then_some(tenant);
        let in_scope = |id: u64| scope.is_none_or(|tenant| tenant == draft.get(id).tenant());
        if spans.iter().any(|span| in_scope(span.sequence)) {
            return None;
        }
        let rivals = draft.running().values().filter(|&&rival| in_scope(rival));
        let youngest = draft.youngest(scope).filter(|_| rivals.count() > 1);
        Some(match youngest {
            Some(youngest) => Way::Preempt(youngest, Reason::Shortage),
            None => Way::End(id),
        })
    })
}
