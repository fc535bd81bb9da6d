//! Reconciliation: what a CRM lists against what a mirror holds, which of the
//! differences are changes that no stream brought, and when so many records are
//! missing that a person is asked first.
//!
//! A difference is a candidate only: it is read again, later than the streams
//! had time to bring it, and what is read is decided like every other page.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

use crate::model::{Millis, Value};
use crate::state::{FieldState, Sent, SentWrite, SideState};

/// Rows of a mirror that one piece of the memory of what was listed stands for.
pub const CHUNK: i64 = 65_536;
/// Below this many missing records their share says nothing.
const FEW: u64 = 20;

/// How far the clock of a CRM may be from ours.
const CLOCKS_MS: Millis = 30_000;

/// How a record and its row differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The record has no row.
    Create,
    /// The record changed later than its row shows.
    Update,
    /// The row is marked as deleted, the record is listed.
    Restore,
    /// The record of the row is not listed.
    Delete,
    /// Values differ although the stamps agree.
    Value,
}

impl Kind {
    /// As tables name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Restore => "restore",
            Self::Delete => "delete",
            Self::Value => "value",
        }
    }

    /// The reverse of [`Self::name`].
    pub fn by_name(name: &str) -> Option<Self> {
        [
            Self::Create,
            Self::Update,
            Self::Restore,
            Self::Delete,
            Self::Value,
        ]
        .into_iter()
        .find(|kind| kind.name() == name)
    }
}

/// A row as far as it is compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The CRM's id.
    pub record: String,
    /// The row's own number.
    pub row: i64,
    /// The stamp that it shows; 0 if it was never told one.
    pub at: Millis,
    /// Marked as deleted.
    pub deleted: bool,
    /// Shown as deleted because its linked record is; its own CRM keeps it.
    pub hidden: bool,
}

/// A difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The CRM's id.
    pub record: String,
    /// How they differ.
    pub kind: Kind,
    /// The stamp that the CRM listed; 0 where it listed nothing.
    pub listed_at: Millis,
}

/// What a part of a list came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Differences, in the order of the list.
    pub findings: Vec<Finding>,
    /// Rows whose records are listed.
    pub seen: Vec<i64>,
}

/// Compares a part of a list, id and stamp, with the rows of these ids. A row
/// that is newer than the list is none of its business.
pub fn compare(listed: &[(String, Millis)], rows: &[Standing]) -> Compared {
    let by_record: HashMap<&str, &Standing> = rows.iter().map(|r| (r.record.as_str(), r)).collect();
    let mut out = Compared::default();
    for (record, at) in listed {
        let row = by_record.get(record.as_str());
        out.seen.extend(row.map(|r| r.row));
        let kind = match row {
            None => Some(Kind::Create),
            // Its partner decides when it is shown again.
            Some(r) if r.hidden => None,
            Some(r) if r.deleted => Some(Kind::Restore),
            Some(r) => (*at > r.at).then_some(Kind::Update),
        };
        out.findings.extend(kind.map(|kind| Finding {
            record: record.clone(),
            kind,
            listed_at: *at,
        }));
    }
    out
}

/// Whether a row still differs as was found; if not, a stream has brought the
/// change in the meantime.
pub fn stands(found: &Finding, row: Option<&Standing>) -> bool {
    match (found.kind, row) {
        (Kind::Create, row) => row.is_none(),
        (Kind::Update, Some(r)) => !r.deleted && r.at < found.listed_at,
        (Kind::Restore, Some(r)) => r.deleted && !r.hidden,
        (Kind::Delete, Some(r)) => !r.deleted,
        (Kind::Value, Some(r)) => !r.deleted,
        (_, None) => false,
    }
}

/// What came of reading a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// The CRM does not have it.
    Gone,
    /// A user holds the row: the ordinary way of reading goes on with it.
    PutOff,
    /// It is as the row shows it.
    Same,
    /// It differed, and was decided; its stamp.
    Differed(Millis),
}

/// What a finding was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No stream brought this change.
    Missed,
    /// The values of the row were not those of the CRM; nobody knows since when.
    Damaged,
    /// It changed again after it was listed: repaired, but not missed.
    Newer,
    /// There was nothing to repair.
    Same,
    /// Left to the ordinary way of reading.
    PutOff,
}

impl Verdict {
    /// As tables name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Missed => "missed",
            Self::Damaged => "damaged",
            Self::Newer => "newer",
            Self::Same => "same",
            Self::PutOff => "put_off",
        }
    }
}

/// Judges a finding by what was read, if it stood when the read began.
pub fn verdict(found: &Finding, read: Read) -> Verdict {
    match (found.kind, read) {
        (_, Read::PutOff) => Verdict::PutOff,
        (Kind::Delete, Read::Gone) => Verdict::Missed,
        // Removed after it was listed.
        (_, Read::Gone) => Verdict::Newer,
        (_, Read::Same) => Verdict::Same,
        // It was made before it was listed, whatever changed later.
        (Kind::Create | Kind::Restore, Read::Differed(_)) => Verdict::Missed,
        (_, Read::Differed(at)) if found.listed_at > 0 && at > found.listed_at => Verdict::Newer,
        (Kind::Update, Read::Differed(_)) => Verdict::Missed,
        (Kind::Value, Read::Differed(_)) => Verdict::Damaged,
        (Kind::Delete, Read::Differed(_)) => Verdict::Newer,
    }
}

/// Whether a row was changed behind our back: its CRM shows of a field what it held
/// last by all that is remembered, and nothing is on its way or asked about. The
/// row's value is nobody's then, and what is remembered must not speak for it.
pub fn is_damage(state: &FieldState, side: usize, shown: &Value) -> bool {
    let answered = |w: &SentWrite| matches!(w.sent, Sent::Answered { .. });
    let arrived = state.sides.iter().all(|s| s.sent.iter().all(answered));
    let held = state.sides.get(side).and_then(last_held);
    state.hold.is_none() && !state.has_waiting() && arrived && held == Some(shown)
}

/// What a CRM held last, if it is beyond doubt: of an edit there and a write of
/// ours the later, unless they are so close that the clocks may be wrong.
fn last_held(side: &SideState) -> Option<&Value> {
    let seen = side.seen.as_ref();
    let Some(write) = side.sent.last() else {
        return seen.map(|(value, _)| value).or(side.base.as_ref());
    };
    let written = write.normal.as_ref().unwrap_or(&write.value);
    let (Some((value, clock)), Sent::Answered { claimed, answered }) = (seen, write.sent) else {
        return Some(written);
    };
    if value == written || clock.at.to.saturating_add(CLOCKS_MS) < claimed {
        Some(written)
    } else {
        (answered.saturating_add(CLOCKS_MS) < clock.at.from).then_some(value)
    }
}

/// From how many missing records on a person is asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit {
    /// Of them alone.
    pub records: u64,
    /// As a share of the rows, 0 to 1.
    pub share: f64,
}

/// Whether this many of so many records cannot just have been removed one by
/// one: lost permissions and a wrong account look like this.
pub fn is_suspicious(missing: u64, rows: u64, limit: Limit) -> bool {
    #[allow(clippy::cast_precision_loss, reason = "shares need no 53 bits")]
    let share = missing as f64 / rows.max(1) as f64;
    missing > limit.records || (missing >= FEW && share > limit.share)
}

/// Calls that a list of so many records takes: at least the one that says that
/// there are none.
pub fn pages(records: u64, page: u64) -> u64 {
    records.div_ceil(page.max(1)).max(1)
}

/// The piece of memory that a row belongs to, and its bit in it.
pub fn place(row: i64) -> (i64, usize) {
    let bit = usize::try_from(row.rem_euclid(CHUNK)).unwrap_or_default();
    (row.div_euclid(CHUNK), bit)
}

/// Sets a bit in the order in which `get_bit` of PostgreSQL counts.
pub fn mark(bits: &mut Vec<u8>, bit: usize) {
    if bits.len() <= bit / 8 {
        bits.resize(usize::try_from(CHUNK / 8).unwrap_or_default(), 0);
    }
    bits[bit / 8] |= 1 << (bit % 8);
}

/// Hash of a bucket of records as hexadecimal text. The same is computed in SQL
/// from the rows: id and values in canonical text, blank for none, each followed
/// by a unit separator, the record by a record separator.
#[derive(Default)]
pub struct Bucket(Sha256);

impl Bucket {
    /// Adds a record.
    pub fn add<'v>(&mut self, id: &str, values: impl Iterator<Item = Option<&'v str>>) {
        self.0.update(id.as_bytes());
        self.0.update([0x1f]);
        for value in values {
            self.0.update(value.unwrap_or_default().as_bytes());
            self.0.update([0x1f]);
        }
        self.0.update([0x1e]);
    }

    /// The hash of all records so far.
    pub fn hex(self) -> String {
        use std::fmt::Write as _;
        self.0.finalize().iter().fold(String::new(), |mut out, b| {
            let _ = write!(out, "{b:02x}");
            out
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Clock, Hold, Interval};

    fn row(record: &str, row: i64, at: Millis) -> Standing {
        Standing {
            record: record.to_owned(),
            row,
            at,
            ..Standing::default()
        }
    }

    fn found(kind: Kind) -> Finding {
        Finding {
            record: "7".to_owned(),
            kind,
            listed_at: 100,
        }
    }

    #[test]
    fn only_what_differs_is_found_and_all_that_is_listed_is_seen() {
        let listed = [("1", 5), ("2", 5), ("3", 5), ("4", 5), ("5", 5)];
        let listed: Vec<(String, Millis)> = listed
            .iter()
            .map(|(id, at)| ((*id).to_owned(), *at))
            .collect();
        let mut gone = row("4", 14, 9);
        gone.deleted = true;
        let mut hidden = row("5", 15, 1);
        (hidden.deleted, hidden.hidden) = (true, true);
        let rows = [row("1", 11, 5), row("2", 12, 4), gone, hidden];
        let compared = compare(&listed, &rows);
        assert_eq!(compared.seen, [11, 12, 14, 15]);
        let kinds: Vec<_> = (compared.findings.iter())
            .map(|f| (f.record.as_str(), f.kind))
            .collect();
        let expected = [
            ("2", Kind::Update),
            ("3", Kind::Create),
            ("4", Kind::Restore),
        ];
        assert_eq!(kinds, expected);
    }

    #[test]
    fn a_row_that_is_newer_than_the_list_is_not_found() {
        let listed = [("1".to_owned(), 5)];
        assert_eq!(compare(&listed, &[row("1", 1, 6)]).findings, []);
    }

    #[test]
    fn what_a_stream_brings_in_the_meantime_stands_no_more() {
        let newer = row("7", 1, 100);
        let older = row("7", 1, 99);
        let mut deleted = newer.clone();
        deleted.deleted = true;
        for (kind, then, stands_then) in [
            (Kind::Create, None, true),
            (Kind::Create, Some(&older), false),
            (Kind::Update, Some(&older), true),
            (Kind::Update, Some(&newer), false),
            (Kind::Update, None, false),
            (Kind::Restore, Some(&deleted), true),
            (Kind::Restore, Some(&newer), false),
            (Kind::Delete, Some(&newer), true),
            (Kind::Delete, Some(&deleted), false),
            (Kind::Delete, None, false),
            (Kind::Value, Some(&newer), true),
            (Kind::Value, Some(&deleted), false),
        ] {
            assert_eq!(stands(&found(kind), then), stands_then, "{kind:?} {then:?}");
        }
    }

    #[test]
    fn a_record_that_changed_after_it_was_listed_was_not_missed() {
        let update = found(Kind::Update);
        assert_eq!(verdict(&update, Read::Differed(100)), Verdict::Missed);
        assert_eq!(verdict(&update, Read::Differed(101)), Verdict::Newer);
        assert_eq!(verdict(&update, Read::Same), Verdict::Same);
        assert_eq!(verdict(&update, Read::Gone), Verdict::Newer);
        assert_eq!(verdict(&update, Read::PutOff), Verdict::PutOff);
        let create = found(Kind::Create);
        assert_eq!(verdict(&create, Read::Differed(101)), Verdict::Missed);
        let value = found(Kind::Value);
        assert_eq!(verdict(&value, Read::Differed(100)), Verdict::Damaged);
        assert_eq!(verdict(&value, Read::Differed(101)), Verdict::Newer);
    }

    #[test]
    fn a_missing_record_that_is_there_when_it_is_read_stays() {
        let delete = found(Kind::Delete);
        assert_eq!(verdict(&delete, Read::Gone), Verdict::Missed);
        assert_eq!(verdict(&delete, Read::Same), Verdict::Same);
        assert_eq!(verdict(&delete, Read::Differed(1)), Verdict::Newer);
    }

    #[test]
    fn a_person_is_asked_when_many_are_missing_absolutely_or_as_a_share() {
        let limit = Limit {
            records: 1_000,
            share: 0.1,
        };
        for (missing, rows, asked) in [
            (0, 0, false),
            (1, 1, false),
            (19, 19, false),
            (20, 30, true),
            (20, 200, false),
            (21, 200, true),
            (1_000, 1_000_000, false),
            (1_001, 1_000_000, true),
        ] {
            assert_eq!(
                is_suspicious(missing, rows, limit),
                asked,
                "{missing} of {rows}"
            );
        }
    }

    #[test]
    fn an_empty_list_costs_a_call() {
        assert_eq!([0, 1, 100, 101].map(|n| pages(n, 100)), [1, 1, 1, 2]);
    }

    #[test]
    fn every_row_has_a_bit_of_its_own() {
        let mut pieces: HashMap<i64, Vec<u8>> = HashMap::new();
        for id in [1, 2, 65_535, 65_536, 65_537, 1_000_000] {
            let (chunk, bit) = place(id);
            mark(pieces.entry(chunk).or_default(), bit);
        }
        let set: u32 = pieces.values().flatten().map(|b| b.count_ones()).sum();
        assert_eq!((pieces.len(), set), (3, 6));
        assert_eq!(place(65_537), (1, 1));
        assert_eq!(pieces[&0][0], 0b110);
        assert!(pieces.values().all(|bits| bits.len() == 8_192));
    }

    fn state(seen: Option<(&str, Millis)>, sent: &[(&str, Sent)]) -> FieldState {
        let clock = |at| Clock {
            at: Interval::instant(at),
            ..Clock::default()
        };
        let side = SideState {
            base: Some(Some("base".to_owned())),
            seen: seen.map(|(value, at)| (Some(value.to_owned()), clock(at))),
            sent: (sent.iter())
                .map(|(value, sent)| SentWrite {
                    sent: *sent,
                    ..SentWrite::queued(&Some((*value).to_owned()), &Clock::default())
                })
                .collect(),
            ..SideState::default()
        };
        FieldState {
            sides: vec![side],
            ..FieldState::default()
        }
    }

    #[test]
    fn only_what_a_crm_held_last_beyond_doubt_shows_that_a_row_was_damaged() {
        let answered = |at| Sent::Answered {
            claimed: at,
            answered: at + 10,
        };
        let (seen, ours) = (Some(("seen", 100_000)), "ours");
        for (state, damaged) in [
            (state(None, &[]), Some("base")),
            (state(seen, &[]), Some("seen")),
            (state(None, &[(ours, answered(1))]), Some(ours)),
            (state(seen, &[(ours, answered(200_000))]), Some(ours)),
            (state(seen, &[(ours, answered(1))]), Some("seen")),
            // The clocks may be wrong.
            (state(seen, &[(ours, answered(99_000))]), None),
            (state(seen, &[(ours, answered(101_000))]), None),
            // On its way, or nobody knows.
            (state(seen, &[(ours, Sent::Queued)]), None),
            (state(seen, &[(ours, Sent::Failed)]), None),
            (state(seen, &[(ours, Sent::InFlight { claimed: 1 })]), None),
        ] {
            for shown in ["base", "seen", ours, "other"] {
                let value = Some(shown.to_owned());
                let expected = damaged == Some(shown);
                assert_eq!(is_damage(&state, 0, &value), expected, "{shown}: {state:?}");
            }
        }
        let mut asked = state(seen, &[]);
        asked.hold = Some(Hold::default());
        assert!(!is_damage(&asked, 0, &Some("seen".to_owned())));
    }

    #[test]
    fn buckets_with_other_values_have_another_hash() {
        let hash = |rows: &[(&str, [Option<&str>; 2])]| {
            let mut bucket = Bucket::default();
            for (id, values) in rows {
                bucket.add(id, values.iter().copied());
            }
            bucket.hex()
        };
        let one = hash(&[("1", [Some("a"), None])]);
        assert_eq!(one, hash(&[("1", [Some("a"), Some("")])]));
        assert_ne!(one, hash(&[("1", [None, Some("a")])]));
        assert_ne!(one, hash(&[("1a", [None, None])]));
        assert_eq!(one.len(), 64);
    }
}
