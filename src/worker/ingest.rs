//! Events of the CRMs: from a batch of changes to rows, ledger and writes, in
//! the transaction of the caller.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::rc::Rc;

use crm_core::decide::{Decision, Observed, Source};
use crm_core::identity::Identity;
use crm_core::memory;
use crm_core::model::{Change, ChangeKind, Mark, Millis, Value};
use crm_core::state::{Sent, SentWrite};

use crate::pg::store::changes;
use crate::pg::store::ledger::{self, EventRow};
use crate::pg::store::rows::{self, Row};
use crate::pg::store::spi::Result;
use crate::pg::store::streams::{self, Wait};
use crate::worker::absent;
use crate::worker::cases::{self, Case};
use crate::worker::engine;
use crate::worker::erasure;
use crate::worker::flush;
use crate::worker::foresee;
use crate::worker::merges::{self, Conversion};
use crate::worker::record;
use crate::worker::removals::{self, Removal};
use crate::worker::replay::{self, Heard, Tally};
use crate::worker::returns::There;
use crate::worker::scope;
use crate::worker::world::{Mirror, World};

/// A change that was taken (not a duplicate) for a mirror.
#[derive(Clone, Debug)]
pub(crate) struct Inbound {
    pub(crate) mirror: i32,
    /// `webhook`, `pubsub`, ...
    pub(crate) source: &'static str,
    /// Row of `crm.stream` that brought it.
    pub(crate) stream: Option<i32>,
    pub(crate) change: Rc<Change>,
    /// Of the change, where it was computed already.
    pub(crate) identity: Option<Identity>,
    /// Its row of `crm.deferred`, if it waited.
    pub(crate) waited: Option<i64>,
}

/// What a batch came to.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    /// Events stored undecided because a user holds the row.
    pub(crate) locked: usize,
    /// Events whose record must be read first.
    pub(crate) to_read: usize,
    /// Events of a replay that changed nothing.
    pub(crate) unchanged: usize,
    /// Mirrors that must be read again whole.
    pub(crate) overflowed: BTreeSet<i32>,
    /// Rows of `crm.deferred` that wait on.
    pub(crate) wait_on: Vec<i64>,
}

pub(super) type Deferred = Vec<Wait>;

/// Applies a batch, mirror by mirror in the order in which they first appear;
/// first those whose records go on as others, so that these find their place.
pub(crate) fn apply(world: &World, batch: Vec<Inbound>, now: Millis) -> Result<Applied> {
    let mut applied = Applied::default();
    let mut order: Vec<i32> = Vec::new();
    let mut of_mirror: BTreeMap<i32, Vec<Inbound>> = BTreeMap::new();
    for item in batch {
        if item.change.kind == ChangeKind::Overflow {
            applied.overflowed.insert(item.mirror);
            continue;
        }
        if !order.contains(&item.mirror) {
            order.push(item.mirror);
        }
        of_mirror.entry(item.mirror).or_default().push(item);
    }
    order.sort_by_key(|id| {
        let mirror = world.mirrors.get(id);
        let goes_on = mirror.and_then(|m| {
            let connector = world.connectors.get(&m.server)?;
            Some(!connector.successor_fields(&m.object).is_empty())
        });
        goes_on != Some(true)
    });
    for id in order {
        if let (Some(mirror), Some(items)) = (world.mirrors.get(&id), of_mirror.remove(&id)) {
            let deferred = apply_mirror(world, mirror, items, now, &mut applied)?;
            applied.locked += deferred.iter().filter(|d| d.reason == "locked").count();
            applied.to_read += deferred.iter().filter(|d| d.reason == "read").count();
            applied.wait_on.extend(deferred.iter().filter_map(|d| d.id));
            streams::defer(deferred)?;
        }
    }
    Ok(applied)
}

pub(super) fn put_off(item: &Inbound, reason: &'static str) -> Wait {
    Wait {
        id: item.waited,
        mirror: item.mirror,
        record: item.change.record_id.clone(),
        source: item.source.to_owned(),
        change: serde_json::to_string(&*item.change).unwrap_or_default(),
        reason,
    }
}

fn apply_mirror(
    world: &World,
    mirror: &Mirror,
    items: Vec<Inbound>,
    now: Millis,
    applied: &mut Applied,
) -> Result<Deferred> {
    let mut deferred = Deferred::new();
    let ids: BTreeSet<String> = items.iter().map(|i| i.change.record_id.clone()).collect();
    let ids: Vec<String> = ids.into_iter().collect();
    let mut waiting: HashSet<String> = match world.rehearsal {
        // What waits is what somebody asks about.
        Some(_) => HashSet::new(),
        None => {
            let taken = items.iter().filter_map(|i| i.waited).collect();
            let waiting = streams::waiting(mirror.id, ids.clone(), taken)?;
            waiting.into_iter().collect()
        }
    };
    waiting.extend(merges::told(world, mirror, &items, now)?);
    let columns = touched(mirror, &items);
    let columns = world.groups[mirror.group].whole(mirror.side, &columns);
    let locked = lock_records(mirror, &columns, ids.clone())?;
    let row_ids: Vec<i64> = locked.iter().map(|r| r.row_id).collect();
    let undrained: HashSet<i64> = changes::undrained(mirror.id, row_ids)?
        .into_iter()
        .collect();
    let known: HashMap<String, i64> = locked
        .iter()
        .filter_map(|r| Some((r.record_id.clone()?, r.row_id)))
        .collect();
    let unlocked: Vec<String> = ids.into_iter().filter(|i| !known.contains_key(i)).collect();
    let taken: HashSet<String> = if unlocked.is_empty() {
        HashSet::new()
    } else {
        rows::present(&mirror.table, unlocked)?
            .into_iter()
            .collect()
    };
    let stale_suspects = late_rows(&items, &locked);
    let there = There::of(mirror, &items, &locked)?;
    let (cases, blocked) = cases::load_drained(world, mirror, &columns, locked, &HashSet::new())?;
    let blocked: HashSet<i64> = blocked.into_iter().chain(undrained).collect();
    let mut work = Work::new(world, mirror, cases, now);
    work.there = there;
    work.recall(stale_suspects)?;
    foresee::events(world, mirror, &mut work.cases, &items)?;
    let mut absent: Vec<Inbound> = Vec::new();
    for item in items {
        let record = &item.change.record_id;
        match known.get(record) {
            _ if waiting.contains(record) || taken.contains(record) => {
                deferred.push(put_off(&item, "locked"));
            }
            Some(row) if blocked.contains(row) => deferred.push(put_off(&item, "locked")),
            Some(row) => {
                if let Some(reason) = work.observe(*row, &item) {
                    deferred.push(put_off(&item, reason));
                }
            }
            None => absent.push(item),
        }
    }
    applied.unchanged += work.replayed.unchanged;
    applied.to_read += work.replayed.too_late;
    work.finish()?;
    let absent = erasure::absent(world, mirror, absent, now)?;
    absent::apply(world, mirror, absent, &mut deferred, now)?;
    Ok(deferred)
}

fn touched(mirror: &Mirror, items: &[Inbound]) -> Vec<usize> {
    let columns: BTreeSet<usize> = items
        .iter()
        .flat_map(|i| i.change.fields.iter())
        .filter_map(|(name, _)| mirror.by_field.get(name).copied())
        .collect();
    columns.into_iter().collect()
}

fn lock_records(mirror: &Mirror, columns: &[usize], ids: Vec<String>) -> Result<Vec<Row>> {
    let columns: Vec<_> = columns.iter().map(|c| &mirror.columns[*c]).collect();
    rows::lock_by_record(&mirror.table, &columns, ids)
}

/// Rows for which an event is older than what the CRM already showed of the record.
/// What a replay brings was found not to be overtaken.
fn late_rows(items: &[Inbound], locked: &[Row]) -> Vec<i64> {
    let newest: HashMap<&str, (&Row, Millis)> = locked
        .iter()
        .filter_map(|r| Some((r.record_id.as_deref()?, (r, r.modified_at))))
        .collect();
    let late: BTreeSet<i64> = items
        .iter()
        .filter_map(|i| {
            let (row, at) = newest.get(i.change.record_id.as_str())?;
            (i.change.occurred_at < *at && i.source != replay::SOURCE).then_some(row.row_id)
        })
        .collect();
    late.into_iter().collect()
}

/// One mirror's records while their events are decided.
struct Work<'w> {
    world: &'w World,
    mirror: &'w Mirror,
    cases: Vec<Case>,
    by_row: HashMap<i64, usize>,
    events: Vec<EventRow>,
    deleted: Vec<i64>,
    /// Rows whose values must be forgotten everywhere.
    erased: Vec<i64>,
    converted: Vec<Conversion>,
    replayed: Tally,
    there: There,
    now: Millis,
    mark: String,
}

impl<'w> Work<'w> {
    fn new(world: &'w World, mirror: &'w Mirror, cases: Vec<Case>, now: Millis) -> Self {
        let by_row = cases
            .iter()
            .enumerate()
            .filter_map(|(i, c)| Some((c.rows[mirror.side].as_ref()?.row_id, i)))
            .collect();
        Self {
            world,
            mirror,
            cases,
            by_row,
            events: Vec::new(),
            deleted: Vec::new(),
            erased: Vec::new(),
            converted: Vec::new(),
            replayed: Tally::default(),
            there: There::default(),
            now,
            mark: format!("pg_crm_sync_{}", world.installation),
        }
    }

    /// Puts what the ledger knows of later observations into the cases of late events.
    fn recall(&mut self, rows: Vec<i64>) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let info = &self.world.groups[self.mirror.group];
        let fields = &info.field_of[self.mirror.side];
        let counted = (self.mirror.columns.iter().enumerate())
            .filter(|(c, _)| fields.get(c).is_some_and(|f| info.counts(*f)))
            .map(|(_, column)| column.field.clone());
        for shown in ledger::last_shown(self.mirror.id, rows, counted.collect())? {
            let Some(case) = self.by_row.get(&shown.row_id).map(|i| &mut self.cases[*i]) else {
                continue;
            };
            let field = self
                .mirror
                .by_field
                .get(&shown.field)
                .and_then(|c| info.field_of[self.mirror.side].get(c));
            // One column of several says nothing of the others: late ones are read again.
            let Some(field) = field.filter(|f| !info.is_list(**f, self.mirror.side)) else {
                continue;
            };
            let mut state = match case.entity.fields.remove(field) {
                Some(state) => state,
                None => memory::at_rest(&case.entity, *field),
            };
            let quality = info.policy.quality(&self.mirror.server, &shown.source);
            let clock = quality.clock(quality.interval(shown.at), 0, &self.mirror.server);
            let counts = info.counts(*field);
            memory::recall(&mut state, self.mirror.side, (shown.value, clock), counts);
            case.entity.fields.insert(*field, state);
        }
        Ok(())
    }

    /// Decides one event of a locked row; the reason if it must wait.
    fn observe(&mut self, row_id: i64, item: &Inbound) -> Option<&'static str> {
        let index = *self.by_row.get(&row_id)?;
        match &item.change.kind {
            ChangeKind::Update | ChangeKind::Create => {
                let row = self.cases[index].rows[self.mirror.side].as_ref();
                if removals::back_again(row, item.change.occurred_at) {
                    return Some("read");
                }
                // What cannot be read here is read from the CRM, and parked if it is no better there.
                let late = self.loose_parts(index, item);
                let legible = item.change.fields.is_empty() || self.decide(index, item, &late);
                let legible = legible && late.is_empty();
                let (record, fields) = (&item.change.record_id, &item.change.fields);
                let told = merges::conversion(self.world, self.mirror, record, fields);
                self.converted.extend(told);
                // What our own write changed besides (a computed name) is
                // brought by the next poll: an echo costs no call.
                let ours = item.change.named(&self.mark) == Mark::Ours;
                let incomplete = !ours
                    && item
                        .change
                        .reread
                        .iter()
                        .any(|f| self.mirror.by_field.contains_key(f));
                return (incomplete || !legible).then_some("read");
            }
            ChangeKind::Reread | ChangeKind::Merge { .. } => return Some("read"),
            ChangeKind::Restore => {
                // What is back is told of with what it shows, see `pages`. Where that was
                // seen before, here is who brought it back.
                let row = self.cases[index].rows[self.mirror.side].as_ref();
                if row.is_some_and(|r| !r.is_gone()) && !self.deleted.contains(&row_id) {
                    self.there.note(row_id, item.change.occurred_at);
                    self.note(index, item, "restore", Vec::new());
                }
                return Some("read");
            }
            ChangeKind::PrivacyDelete => {
                self.erased.push(row_id);
                self.note(index, item, "privacy_delete", Vec::new());
            }
            // A merge, perhaps: reading tells.
            ChangeKind::Delete if merges::hidden(self.world, self.mirror) => return Some("read"),
            ChangeKind::Delete => {
                let (row, at) = (
                    self.cases[index].rows[self.mirror.side].as_ref(),
                    item.change.occurred_at,
                );
                let there = row.filter(|r| !r.is_gone() && !self.deleted.contains(&row_id));
                let stamp = self.cases[index].stamps[self.mirror.side];
                if there.is_some_and(|row| self.there.after(row, stamp, at)) {
                    return Some("read");
                }
                // One that a look has shown before is not carried out again.
                self.deleted.extend(there.map(|row| row.row_id));
                self.cases[index].stamp(self.mirror.side, at);
                self.note(index, item, "delete", Vec::new());
            }
            ChangeKind::Association { .. } => self.note(index, item, "association", Vec::new()),
            ChangeKind::Overflow => {}
        }
        None
    }

    /// Fields of several columns of which an event brings some, while what the
    /// others held then is not known: it comes late, or the row shows what we
    /// have not written there yet.
    fn loose_parts(&self, index: usize, item: &Inbound) -> Vec<usize> {
        let (info, side) = (&self.world.groups[self.mirror.group], self.mirror.side);
        let case = &self.cases[index];
        let shown = case.rows[side].as_ref().map_or(0, |r| r.modified_at);
        let late = item.change.occurred_at < shown.max(case.stamps[side]);
        let ours = item.change.named(&self.mark) == Mark::Ours;
        let unwritten = |f: &usize| {
            let state = case.entity.fields.get(f);
            let sent = state.and_then(|s| s.sides.get(side)).map(|s| &s.sent);
            let open = |w: &SentWrite| !matches!(w.sent, Sent::Answered { .. });
            !ours && sent.is_some_and(|s| s.iter().any(open))
        };
        let brings = |c: &usize| {
            let name = &self.mirror.columns[*c].field;
            item.change.fields.iter().any(|(n, _)| n == name)
        };
        let parts = |f: &usize| {
            if !info.is_list(*f, side) || !(late || unwritten(f)) {
                return false;
            }
            let columns = info.columns(*f, side);
            columns.iter().any(brings) && !columns.iter().all(brings)
        };
        (0..info.group.fields.len()).filter(parts).collect()
    }

    /// False if a value is none of its type.
    fn decide(&mut self, index: usize, item: &Inbound, late: &[usize]) -> bool {
        let (world, mirror) = (self.world, self.mirror);
        let (info, side) = (&world.groups[mirror.group], mirror.side);
        let mut cells: BTreeMap<usize, BTreeMap<usize, Value>> = BTreeMap::new();
        let mut listed = Vec::new();
        let mut legible = true;
        for (name, raw) in &item.change.fields {
            let Some(column) = mirror.by_field.get(name).copied() else {
                continue;
            };
            let Some(value) = world.canonical(mirror, column, raw) else {
                legible = false;
                continue;
            };
            let field = info.field_of[side].get(&column);
            if let Some(field) = field.filter(|f| !late.contains(f)) {
                let held = &self.cases[index].entity.records[side].values[*field];
                let old = info.cells(*field, side, held).find(|(c, _)| *c == column);
                listed.push((name.clone(), old.and_then(|(_, v)| v), value.clone()));
                cells.entry(*field).or_default().insert(column, value);
            }
        }
        let held = &self.cases[index].entity.records[side].values;
        let values: Vec<(usize, Value, Option<Value>)> = cells
            .into_iter()
            .map(|(field, cells)| {
                let new = info.overlaid(field, side, &held[field], |c| cells.get(&c).cloned());
                (field, new, None)
            })
            .collect();
        if values.is_empty() {
            // Fields that this mirror does not hold are nobody's news here.
            self.replayed.unchanged += usize::from(item.source == replay::SOURCE);
            self.cases[index].stamp(mirror.side, item.change.occurred_at);
            return legible;
        }
        let case = &mut self.cases[index];
        let quality = info.policy.quality(&mirror.server, item.source);
        let observed = Observed {
            side: mirror.side,
            source: Source::Remote,
            origin: mirror.server.clone(),
            values,
            at: quality.interval(item.change.occurred_at),
            quality,
            seq: engine::order(),
            mark: item.change.named(&self.mark),
            ..Observed::default()
        };
        if item.source == replay::SOURCE {
            match replay::observe(world, case, &observed, self.now) {
                Heard::Changed(decisions) => {
                    self.note_decided(index, item, listed, &decisions);
                }
                Heard::Nothing => self.replayed.unchanged += 1,
                Heard::TooLate => self.replayed.too_late += 1,
            }
            return legible;
        }
        let decisions = case.observe(world, &observed, self.now);
        case.stamp(mirror.side, item.change.occurred_at);
        self.note_decided(index, item, listed, &decisions);
        legible
    }

    fn note_decided(
        &mut self,
        index: usize,
        item: &Inbound,
        listed: Vec<(String, Value, Value)>,
        decisions: &[Decision],
    ) {
        let mut event = self.event(index, item, "update");
        event.decision = record::decision_json(self.world, self.mirror, decisions);
        event.carried = record::take_carried(self.world, &mut self.cases[index]);
        for (name, old, new) in listed {
            event.fields.push(name);
            event.old_values.push(old);
            event.new_values.push(new);
        }
        self.events.push(event);
    }

    fn note(&mut self, index: usize, item: &Inbound, kind: &'static str, fields: Vec<String>) {
        let mut event = self.event(index, item, kind);
        event.fields = fields;
        self.events.push(event);
    }

    fn event(&self, index: usize, item: &Inbound, kind: &'static str) -> EventRow {
        EventRow {
            row_id: self.cases[index].rows[self.mirror.side]
                .as_ref()
                .map(|r| r.row_id),
            ..record::told(self.mirror, item, kind)
        }
    }

    fn finish(mut self) -> Result<()> {
        // What the removal unties the erasure would not find.
        self.deleted.retain(|row| !self.erased.contains(row));
        let watched = scope::watch(self.world, &self.cases);
        flush::flush(self.world, self.cases, self.events)?;
        scope::settle(self.world, self.mirror, watched, self.now)?;
        let server = &self.mirror.server;
        let now = self.now;
        let removal = Removal::remote(self.mirror, now);
        if !self.deleted.is_empty() {
            // First: a removal that does not stand brings the row back.
            rows::mark_deleted(&self.mirror.table, self.deleted.clone(), true, server)?;
            removals::removed(self.world, self.mirror, &self.deleted, removal)?;
        }
        merges::convert(self.world, self.mirror, self.converted, now)?;
        erasure::erase(self.world, self.mirror, self.erased, Vec::new(), now)
    }
}
