//! Records that are removed, or come back: what it means for the other sides.

use std::collections::{BTreeSet, HashSet, VecDeque};

use crm_core::decide::Decision;
use crm_core::model::{Millis, Value};
use crm_core::plan::{self, DeletePlan, DeleteRule, DeletedBy};
use crm_core::state::{Clock, Entity, FieldState, SideRecord};
use crm_core::value::format_instant;

use crate::pg::store::ledger::{self, EventRow, XrefRow};
use crate::pg::store::reviews::{self, Kind, RowQuestion};
use crate::pg::store::rows::{self, Row};
use crate::pg::store::spi::Result;
use crate::pg::store::writes::{self, NewWrite};
use crate::pg::store::{causes, ends, lives, streams};
use crate::worker::arrivals;
use crate::worker::cases::{self, Case, Partners};
use crate::worker::creates;
use crate::worker::flush;
use crate::worker::given_up;
use crate::worker::kept;
use crate::worker::pages::{self, Via};
use crate::worker::record;
use crate::worker::rematch;
use crate::worker::reviews as questions;
use crate::worker::world::{GroupInfo, Mirror, World};

/// Who removed records, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Removal<'a> {
    pub(crate) by: DeletedBy,
    pub(crate) origin: &'a str,
    pub(crate) tx: Option<i64>,
    /// Its writes wait for approval.
    pub(crate) held: bool,
    /// A person has said that it stands.
    pub(crate) confirmed: bool,
    pub(crate) at: Millis,
}

impl<'a> Removal<'a> {
    /// Somebody removed records in their CRM.
    pub(crate) fn remote(mirror: &'a Mirror, at: Millis) -> Self {
        Self {
            by: DeletedBy::Remote,
            origin: &mirror.server,
            tx: None,
            held: false,
            confirmed: false,
            at,
        }
    }

    /// What `crm.review_history` says of questions that end with it.
    fn because(&self, mirror: &Mirror) -> String {
        match self.by {
            DeletedBy::Local => format!("its row of {} was removed by SQL", mirror.table.name),
            DeletedBy::Remote => format!("its record was removed in {}", mirror.server),
        }
    }
}

/// What is known of the entities of removed rows.
struct Removed<'w> {
    world: &'w World,
    mirror: &'w Mirror,
    info: &'w GroupInfo,
    xrefs: Vec<XrefRow>,
    partners: Partners,
}

/// Carries out what the removal of rows means for the other sides. Answers the
/// rows whose removal does not stand: a person is asked first, or the row is
/// back.
pub(crate) fn removed(
    world: &World,
    mirror: &Mirror,
    row_ids: &[i64],
    removal: Removal<'_>,
) -> Result<HashSet<i64>> {
    let mut open = HashSet::new();
    if row_ids.is_empty() {
        return Ok(open);
    }
    let info = &world.groups[mirror.group];
    let xrefs = ledger::entities_of(mirror.id, row_ids.to_vec())?;
    let states = cases::load_states(world, info, &xrefs)?;
    let partners = cases::lock_partners(world, info, mirror, &[], &xrefs)?;
    let known = Removed {
        world,
        mirror,
        info,
        xrefs,
        partners,
    };
    let mut unlink = Vec::new();
    for row in row_ids {
        let Some(entity_id) = known.entity_of(*row) else {
            continue;
        };
        let mut entity = known.entity(entity_id);
        entity.fields = states.get(&entity_id).cloned().unwrap_or_default();
        let side = mirror.side;
        let crossed = plan::delete_conflict(&info.group, &entity, side, removal.by, removal.origin)
            .filter(|_| !removal.confirmed);
        if let Some(reason) = crossed {
            match known.on_conflict() {
                "delete" => known.overrule(*row, &entity, removal)?,
                "keep" if known.bring_back(*row, entity_id, removal)? => {
                    open.insert(*row);
                    continue;
                }
                _ => {
                    open.insert(*row);
                    known.ask(*row, entity_id, &entity, &reason, removal)?;
                    if removal.by == DeletedBy::Local {
                        unlink.push(*row);
                    }
                    continue;
                }
            }
        }
        let rules = rules(info, side);
        let plan = plan::plan_delete(&info.group, &entity, side, removal.by, &rules);
        known.carry_out(entity_id, &plan, removal)?;
        if plan.unlink.contains(&side) {
            unlink.push(*row);
        }
    }
    ledger::unlink_rows(mirror.id, unlink)?;
    let entities: BTreeSet<i64> = known.xrefs.iter().map(|x| x.entity).collect();
    let moot = ends::close_lonely(entities.into_iter().collect())?;
    questions::ended(world, moot, mirror, &removal.because(mirror), removal.at)?;
    let gone = row_ids.iter().filter(|r| !open.contains(r)).copied();
    rematch::without(world, mirror, gone.collect(), removal.at)?;
    Ok(open)
}

/// What each side does when a record of `side` goes, by the links in between.
fn rules(info: &GroupInfo, side: usize) -> Vec<DeleteRule> {
    let place = |mirror: i32| info.group.sides.iter().position(|s| s.mirror == mirror);
    let mut rules = vec![DeleteRule::Unlink; info.group.sides.len()];
    let mut met = HashSet::from([side]);
    let mut todo = VecDeque::from([side]);
    while let Some(from) = todo.pop_front() {
        for link in info.links.iter().filter(|l| l.mode == "live") {
            let (left, right) = (place(link.left_mirror), place(link.right_mirror));
            let (to, rule) = if left == Some(from) {
                (right, &link.on_left_delete)
            } else if right == Some(from) {
                (left, &link.on_right_delete)
            } else {
                continue;
            };
            let Some(to) = to.filter(|t| met.insert(*t)) else {
                continue;
            };
            rules[to] = DeleteRule::by_name(rule);
            // What goes there means something for those beyond.
            if rules[to] == DeleteRule::Propagate {
                todo.push_back(to);
            }
        }
    }
    rules
}

impl Removed<'_> {
    fn entity_of(&self, row: i64) -> Option<i64> {
        let own = |x: &&XrefRow| x.mirror == self.mirror.id && x.row_id == row;
        self.xrefs.iter().find(own).map(|x| x.entity)
    }

    fn partner(&self, entity: i64, side: usize) -> Option<&Row> {
        let all = self.partners.get(&entity)?;
        all.iter().find(|(s, _, _)| *s == side).map(|(_, _, r)| r)
    }

    fn entity(&self, id: i64) -> Entity {
        let record = |side: usize| match self.partner(id, side) {
            _ if side == self.mirror.side => SideRecord {
                exists: true,
                ..SideRecord::default()
            },
            Some(row) => SideRecord {
                exists: true,
                record_id: row.record_id.clone(),
                deleted: row.deleted,
                values: Vec::new(),
            },
            None => SideRecord::default(),
        };
        Entity {
            records: (0..self.info.group.sides.len()).map(record).collect(),
            ..Entity::default()
        }
    }

    /// What the first link of the mirror says about a removal that crosses a change.
    fn on_conflict(&self) -> &str {
        let own = |l: &&crate::pg::store::config::LinkRow| {
            l.left_mirror == self.mirror.id || l.right_mirror == self.mirror.id
        };
        let link = self.info.links.iter().find(own);
        link.map_or("review", |l| l.on_delete_conflict.as_str())
    }

    fn ask(
        &self,
        row: i64,
        entity_id: i64,
        entity: &Entity,
        reason: &str,
        removal: Removal<'_>,
    ) -> Result<()> {
        let table = &self.mirror.table.name;
        let mut candidates = vec![serde_json::json!({
            "origin": removal.origin, "table": table, "deleted": true, "at": format_instant(removal.at),
        })];
        for (field, clock, value) in self.unseen(entity, removal) {
            candidates.push(serde_json::json!({
                "origin": clock.origin, "table": table, "field": self.info.group.fields[field].name,
                "value": value, "at": format_instant(clock.at.to),
            }));
        }
        let link = self.info.links.first().map(|l| l.name.as_str());
        reviews::ask(&RowQuestion {
            kind: Kind::Delete,
            link,
            mirror: self.mirror.id,
            row_id: row,
            entity: Some(entity_id),
            reason,
            candidates: &serde_json::Value::Array(candidates).to_string(),
        })?;
        if removal.by == DeletedBy::Remote {
            // What was on its way there cannot arrive any more.
            ends::drop_unsent(self.mirror.id, vec![row])?;
        }
        Ok(())
    }

    /// What others wrote to a record and whoever removed it may not have seen:
    /// field, when and by whom, value.
    fn unseen<'e>(
        &self,
        entity: &'e Entity,
        removal: Removal<'_>,
    ) -> Vec<(usize, &'e Clock, &'e Value)> {
        let of = |(field, state): (&usize, &'e FieldState)| {
            let clock = state.clock.as_ref()?;
            let sent = state.sides.get(self.mirror.side)?.sent.last()?;
            (clock.origin != removal.origin).then_some((*field, clock, &sent.value))
        };
        entity.fields.iter().filter_map(of).collect()
    }

    /// The removal stands against changes: the line that names them.
    fn overrule(&self, row: i64, entity: &Entity, removal: Removal<'_>) -> Result<()> {
        let side = self.mirror.side;
        let named = |(field, clock, value): (usize, &Clock, &Value)| {
            let column = self.info.group.column(field, side)?;
            Some((column.field.clone(), clock.origin.clone(), value.clone()))
        };
        let lost = self.unseen(entity, removal).into_iter().filter_map(named);
        let by = ("delete_rule", removal.origin);
        let line = given_up::line(self.mirror, row, None, by, lost.collect(), removal.at);
        if removal.by == DeletedBy::Remote {
            ends::drop_unsent(self.mirror.id, vec![row])?;
        }
        flush::append(self.world, line.into_iter().collect())
    }

    /// The record is made anew from what its row shows; false if a user holds it.
    fn bring_back(&self, row: i64, entity: i64, removal: Removal<'_>) -> Result<bool> {
        match removal.by {
            DeletedBy::Remote => {
                kept::revive(self.world, self.mirror, row, Some(entity), removal.at)
            }
            DeletedBy::Local => kept::reinsert(self.mirror, row, Some(entity)),
        }
    }

    fn carry_out(&self, entity: i64, plan: &DeletePlan, removal: Removal<'_>) -> Result<()> {
        let mut events = Vec::new();
        for side in (0..self.info.group.sides.len()).filter(|s| *s != self.mirror.side) {
            let (Some(row), Some(other)) = (
                self.partner(entity, side),
                self.world.mirrors.get(&self.info.group.sides[side].mirror),
            ) else {
                continue;
            };
            let sends = plan.send.contains(&side);
            if sends {
                writes::enqueue(vec![delete_write(self.world, other, row, removal)])?;
            }
            // What is held is there until somebody approves, see `deliver`.
            if plan.mark.contains(&side) && !removal.held {
                rows::mark_deleted(&other.table, vec![row.row_id], true, removal.origin)?;
            }
            if plan.hide.contains(&side) {
                lives::hide(&other.table, vec![row.row_id], removal.origin)?;
            }
            if plan.unlink.contains(&side) {
                ledger::unlink_rows(other.id, vec![row.row_id])?;
            }
            if sends || plan.hide.contains(&side) {
                let rule = if sends { "propagate" } else { "soft_delete" };
                events.push(followed(other, row, entity, rule, removal));
            }
            let moot = (plan.cancel.iter().filter(|(s, _)| *s == side))
                .filter_map(|(_, f)| Some(self.info.group.column(*f, side)?.field.clone()))
                .map(|field| (other.id, row.row_id, field))
                .collect();
            writes::cancel(moot)?;
        }
        flush::append(self.world, events)
    }
}

pub(crate) fn delete_write(
    world: &World,
    mirror: &Mirror,
    row: &Row,
    removal: Removal<'_>,
) -> NewWrite {
    NewWrite {
        mirror: mirror.id,
        row_id: row.row_id,
        entity: None,
        kind: "delete",
        record_id: row.record_id.clone(),
        vals: "{}".to_owned(),
        old_vals: "{}".to_owned(),
        origin: removal.origin.to_owned(),
        state: flush::state_of(world, mirror.id, false, removal.held),
        txs: removal.tx.into_iter().collect(),
    }
}

/// The line of the ledger about a row that went with another one.
fn followed(mirror: &Mirror, row: &Row, entity: i64, rule: &str, removal: Removal<'_>) -> EventRow {
    let decision =
        serde_json::json!([{"step": "delete_rule", "rule": rule, "winner": removal.origin}]);
    EventRow {
        mirror: mirror.id,
        row_id: Some(row.row_id),
        record_id: row.record_id.clone(),
        entity: Some(entity),
        kind: "delete",
        origin: removal.origin.to_owned(),
        source: "link".to_owned(),
        occurred_at: removal.at,
        decision: Some(decision.to_string()),
        ..EventRow::default()
    }
}

/// Whether an event is news of a removed record from after its removal: it must
/// have come back.
pub(crate) fn back_again(row: Option<&Row>, at: Millis) -> bool {
    row.is_some_and(|r| r.is_gone() && at > r.modified_at)
}

/// Records that are back: hidden partners come back with them, those without a
/// tie are matched again, and what differs is decided as for a new tie.
pub(crate) fn restored(
    world: &World,
    mirror: &Mirror,
    row_ids: Vec<i64>,
    now: Millis,
) -> Result<()> {
    if row_ids.is_empty() {
        return Ok(());
    }
    let moot = ends::close_deletes(mirror.id, row_ids.clone())?;
    let because = format!("its record is back in {}", mirror.server);
    questions::ended(world, moot, mirror, &because, now)?;
    arrivals::back(world, mirror, row_ids.clone(), now)?;
    let info = &world.groups[mirror.group];
    let xrefs = ledger::entities_of(mirror.id, row_ids.clone())?;
    let partners = cases::lock_partners(world, info, mirror, &[], &xrefs)?;
    let (mut reads, mut lines) = (Vec::new(), Vec::new());
    for (side, _, row) in partners.values().flatten().filter(|(_, _, r)| r.hidden) {
        let Some(other) = world.mirrors.get(&info.group.sides[*side].mirror) else {
            continue;
        };
        rows::mark_deleted(&other.table, vec![row.row_id], false, &mirror.server)?;
        lines.push(EventRow {
            origin: mirror.server.clone(),
            ..pages::existence(other, Via::asked("link"), row, "restore", now)
        });
        // What its CRM showed meanwhile was ignored.
        reads.extend(row.record_id.clone().map(|id| flush::reread(other.id, id)));
    }
    flush::append(world, lines)?;
    streams::defer(reads)?;
    let tied: HashSet<i64> = (xrefs.iter().filter(|x| x.mirror == mirror.id))
        .map(|x| x.row_id)
        .collect();
    let (tied, free): (Vec<i64>, Vec<i64>) = row_ids.into_iter().partition(|r| tied.contains(r));
    bring_together(world, mirror, tied, now, Case::returned)?;
    creates::after_remote_create(world, mirror, free, now)
}

/// Lets the policy decide where rows differ from those they are tied to, as
/// for records that never agreed.
pub(crate) fn agree(world: &World, mirror: &Mirror, row_ids: Vec<i64>, now: Millis) -> Result<()> {
    bring_together(world, mirror, row_ids, now, Case::join)
}

/// [`agree`] of rows whose records take the places of others.
pub(crate) fn succeeded(
    world: &World,
    mirror: &Mirror,
    row_ids: Vec<i64>,
    now: Millis,
) -> Result<()> {
    bring_together(world, mirror, row_ids, now, Case::succeeded)
}

/// [`agree`] by a decision of the core about each case.
fn bring_together(
    world: &World,
    mirror: &Mirror,
    row_ids: Vec<i64>,
    now: Millis,
    decide: impl Fn(&mut Case, &World, usize, Millis) -> Vec<Decision>,
) -> Result<()> {
    if row_ids.is_empty() {
        return Ok(());
    }
    let all: Vec<usize> = (0..mirror.columns.len()).collect();
    let locked = cases::lock(mirror, &all, row_ids)?;
    let mut batch = cases::load_all(world, mirror, &all, locked)?;
    let mut events = Vec::new();
    for case in &mut batch {
        events.extend(join(world, mirror, case, &decide, now)?);
    }
    flush::flush(world, batch, events)
}

/// Lets a decision of the core bring a row together with those it is tied to; the line
/// that tells of it. What the guard holds of one of them goes nowhere before it is approved.
pub(crate) fn join(
    world: &World,
    mirror: &Mirror,
    case: &mut Case,
    decide: &dyn Fn(&mut Case, &World, usize, Millis) -> Vec<Decision>,
    now: Millis,
) -> Result<Option<EventRow>> {
    let Some(row) = case.rows[mirror.side].clone() else {
        return Ok(None);
    };
    let sides = &world.groups[mirror.group].group.sides;
    let there = sides.iter().zip(&case.rows);
    let (mirrors, rows) = there
        .filter_map(|(side, row)| Some((side.mirror, row.as_ref()?.row_id)))
        .unzip();
    for tx in causes::held(mirrors, rows)? {
        case.caused_by(tx, true);
    }
    let decisions = decide(case, world, mirror.side, now);
    if decisions.is_empty() {
        return Ok(None);
    }
    Ok(Some(EventRow {
        mirror: mirror.id,
        row_id: Some(row.row_id),
        record_id: row.record_id,
        kind: "join",
        origin: mirror.server.clone(),
        source: "link".to_owned(),
        occurred_at: now,
        decision: record::decision_json(world, mirror, &decisions),
        carried: record::take_carried(world, case),
        ..EventRow::default()
    }))
}
