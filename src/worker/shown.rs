//! A record of a page against its row: what is decided of it, and what the
//! ledger says about that.

use std::collections::BTreeSet;

use crm_core::decide::{Decision, Observed, Source, Step};
use crm_core::model::{Millis, Record};
use crm_core::state::FieldState;

use crate::pg::store::ledger::EventRow;
use crate::pg::store::rows::Row;
use crate::worker::cases::Case;
use crate::worker::engine;
use crate::worker::pages::{Compared, changed, interval};
use crate::worker::record;
use crate::worker::world::{Mirror, World};

/// Which of the columns that were only checked the ledger should name after
/// all, and the decisions that it should hold.
fn tellable(
    mut decisions: Vec<Decision>,
    checked: &[usize],
    field_of: impl Fn(&usize) -> Option<usize>,
) -> (Vec<usize>, Vec<Decision>) {
    let as_expected = |d: &Decision| {
        matches!(
            d.step,
            Step::Echo | Step::Equal | Step::Known | Step::NormalForm | Step::Unsettled
        )
    };
    let is_checked = |field: usize| checked.iter().any(|c| field_of(c) == Some(field));
    decisions.retain(|d| !is_checked(d.field) || !as_expected(d));
    let named = |c: &usize| decisions.iter().any(|d| field_of(c) == Some(d.field));
    (checked.iter().copied().filter(named).collect(), decisions)
}

/// Lets a record of a page be decided against its row; the line for the ledger.
pub(super) fn show(
    world: &World,
    mirror: &Mirror,
    page: &Compared<'_>,
    case: &mut Case,
    row: &Row,
    record: &Record,
    now: Millis,
) -> Option<EventRow> {
    let info = &world.groups[mirror.group];
    let at = record.modified_at.unwrap_or(now);
    let changed = changed(mirror, page, row, record);
    let field_of = |c: &usize| info.field_of[mirror.side].get(c).copied();
    let unsettled = |wanted: fn(&FieldState) -> bool| {
        let state = |c: &usize| case.entity.fields.get(&field_of(c)?);
        let told =
            |c: &usize| !changed.contains(c) && !page.blind.contains(&(record.id.as_str(), *c));
        let columns = (0..mirror.columns.len()).filter(told);
        (columns.filter(|c| state(c).is_some_and(wanted))).collect::<Vec<_>>()
    };
    // What waits is counted now, and what we wrote is seen to stand there.
    let mut shown = changed.clone();
    shown.extend(unsettled(FieldState::has_waiting));
    let mut checked = unsettled(|s| s.hold.is_none() && !s.has_waiting());
    let mut fields: BTreeSet<usize> = shown.iter().filter_map(field_of).collect();
    checked.retain(|c| field_of(c).is_some_and(|f| !fields.contains(&f)));
    fields.extend(checked.iter().filter_map(field_of));
    let read = |c: usize| !page.blind.contains(&(record.id.as_str(), c));
    let now_there = |c: usize| read(c).then(|| record.values.value(c));
    let held = &case.entity.records[mirror.side].values;
    let values = (fields.into_iter())
        .map(|f| {
            let value = info.overlaid(f, mirror.side, &held[f], now_there);
            (f, value, None)
        })
        .collect();
    let observed = Observed {
        side: mirror.side,
        source: Source::Page,
        origin: mirror.server.clone(),
        values,
        at: interval(world, mirror, page.via, at),
        quality: info.policy.quality(&mirror.server, page.via.source),
        seq: engine::order(),
        asked_at: page.via.asked_at,
        ..Observed::default()
    };
    let decisions = case.observe(world, &observed, now);
    case.stamp(mirror.side, at);
    let (told, decisions) = tellable(decisions, &checked, field_of);
    shown.extend(told);
    if shown.is_empty() {
        return None;
    }
    Some(EventRow {
        decision: record::decision_json(world, mirror, &decisions),
        carried: record::take_carried(world, case),
        ..line(mirror, page, (row, record), at, &shown)
    })
}

/// The ledger's line about what a page showed of these columns.
fn line(
    mirror: &Mirror,
    page: &Compared<'_>,
    (row, record): (&Row, &Record),
    at: Millis,
    shown: &[usize],
) -> EventRow {
    EventRow {
        mirror: mirror.id,
        row_id: Some(row.row_id),
        record_id: row.record_id.clone(),
        kind: "update",
        origin: mirror.server.clone(),
        source: page.via.source.to_owned(),
        stream: page.via.stream,
        occurred_at: at,
        fields: shown
            .iter()
            .map(|c| mirror.columns[*c].field.clone())
            .collect(),
        old_values: shown.iter().map(|c| row.values[*c].clone()).collect(),
        new_values: shown.iter().map(|c| record.values.value(*c)).collect(),
        ..EventRow::default()
    }
}
