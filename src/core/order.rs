//! The order of edits that time alone cannot tell apart.
//!
//! Two stamps that overlap, or differ by less than the tolerance, have no order.
//! Taken pair by pair that would run in circles: of three edits, each within the
//! tolerance of the next, the first may beat the second by rank, the second the
//! third, and the third the first by time. So all writers are looked at
//! together: edits that are linked by such neighbours are one bunch; the latest
//! bunch counts, and in it rank, then the engine's sequence decide. The outcome
//! depends on the edits, not on the order in which they were told. Edits whose own
//! time is known come first; one of which only the record's stamp is known must be
//! later beyond all doubt.

use crate::policy::Rule;
use crate::stamps::{Exactness, later};
use crate::state::{Claim, Clock};

/// Most writers remembered.
const RIVALS_MAX: usize = 8;

/// Of several edits, one per writer, the one that stands.
pub(crate) fn latest<'c>(rule: &Rule, skew_ms: i64, claims: &'c [Claim]) -> Option<&'c Claim> {
    let mut best: Option<&Claim> = None;
    for exactness in Exactness::ALL {
        let alike = claims.iter().filter(|c| c.clock.exactness == exactness);
        let Some(found) = latest_of(rule, skew_ms, alike.collect()) else {
            continue;
        };
        if best.is_none_or(|b| later(&found.clock, &b.clock, skew_ms)) {
            best = Some(found);
        }
    }
    best
}

/// The same of edits with equally exact stamps.
fn latest_of<'c>(rule: &Rule, skew_ms: i64, mut by_time: Vec<&'c Claim>) -> Option<&'c Claim> {
    by_time.sort_by_key(|c| std::cmp::Reverse((c.clock.at.to, c.clock.at.from)));
    let (newest, rest) = by_time.split_first()?;
    let mut earliest = newest.clock.at.from;
    let mut bunch = vec![*newest];
    for claim in rest {
        if claim.clock.at.to.saturating_add(skew_ms) < earliest {
            break;
        }
        earliest = earliest.min(claim.clock.at.from);
        bunch.push(claim);
    }
    let key = |c: &&Claim| (rule.rank(&c.clock.origin), std::cmp::Reverse(c.clock.seq));
    bunch.into_iter().min_by_key(key)
}

/// Notes what a writer wrote last, in place of what it wrote before; what lies
/// too far back to be linked with anything new makes room.
pub(crate) fn note(rivals: &mut Vec<Claim>, claim: Claim, skew_ms: i64) {
    let older = |c: &Claim, than: &Clock| c.clock.at.to <= than.at.to;
    if let Some(own) = rivals
        .iter_mut()
        .find(|c| c.clock.origin == claim.clock.origin)
    {
        if older(own, &claim.clock) {
            *own = claim;
        }
    } else {
        rivals.push(claim);
    }
    let newest = rivals.iter().map(|c| c.clock.at.to).max().unwrap_or(0);
    // What a vague stamp does not beat for sure must be there to be compared with.
    let doubt = rivals.iter().map(|c| c.clock.tolerance_ms).max();
    let reach = skew_ms
        .saturating_mul(i64::try_from(RIVALS_MAX).unwrap_or(0))
        .saturating_add(doubt.unwrap_or(0));
    rivals.retain(|c| c.clock.at.to.saturating_add(reach) >= newest);
    let surplus = rivals.len().saturating_sub(RIVALS_MAX);
    rivals.drain(..surplus);
}
