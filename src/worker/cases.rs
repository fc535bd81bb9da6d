//! Records on their way through a decision: loaded and locked in batches,
//! decided by the core one event at a time, written back in batches.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crm_core::decide::{Decision, Observed, Outcome, Source};
use crm_core::group::Group;
use crm_core::memory::must_keep;
use crm_core::model::{Millis, Value};
use crm_core::state::{Entity, FieldState, SideRecord};

use crate::pg::store::changes;
use crate::pg::store::ledger;
use crate::pg::store::reviews;
use crate::pg::store::rows::{self, Row};
use crate::pg::store::spi::Result;
use crate::pg::store::writes::{self, WriteRow};
use crate::worker::scope;
use crate::worker::unsettled;
use crate::worker::world::{GroupInfo, Mirror, World};

/// Events of the ledger and of the streams older than this cannot come again:
/// a field that was quiet that long is settled.
pub(crate) const HORIZON_MS: Millis = 72 * 3_600_000;

/// One thing and all that was loaded of it.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) group: usize,
    pub(crate) entity_id: Option<i64>,
    /// Per side: the locked row.
    pub(crate) rows: Vec<Option<Row>>,
    pub(crate) entity: Entity,
    pub(super) cells: BTreeMap<(usize, usize), Value>,
    pub(super) writes: BTreeMap<(usize, usize), (Value, Value)>,
    /// Sides whose record must be read again.
    pub(crate) reread: BTreeSet<usize>,
    pub(super) cancels: BTreeSet<(usize, usize)>,
    pub(super) states: BTreeSet<usize>,
    /// Fields about which a question was opened, changed or ended.
    pub(super) questions: BTreeSet<usize>,
    /// Newest stamp seen from each side's own CRM in this batch.
    pub(super) stamps: Vec<Millis>,
    /// Who caused the writes that follow.
    pub(super) source: String,
    /// Per side: whose value was put into a field that people write; empty if
    /// only the CRM's own bookkeeping changed.
    pub(super) writers: Vec<String>,
    pub(super) txs: Vec<i64>,
    pub(super) held: bool,
    /// What observations replaced on other sides since last taken: side, field, old value.
    pub(crate) carried: Vec<(usize, usize, Value)>,
    /// What its rows were in each scope before the change.
    pub(super) scope_before: scope::Before,
    /// Scopes that its rows are not in.
    pub(super) outside: Vec<scope::End>,
    /// Sides that the observed one shares no scope with.
    pub(super) hidden: Vec<usize>,
}

impl Case {
    /// Lets the core decide one observation and keeps what follows from it.
    pub(crate) fn observe(
        &mut self,
        world: &World,
        observed: &Observed,
        now: Millis,
    ) -> Vec<Decision> {
        let info = &world.groups[self.group];
        let outcome = self.outcome(world, observed, now);
        if let Some(rehearsal) = &world.rehearsal {
            rehearsal.note(world, self, observed, &outcome);
        }
        self.source.clone_from(&observed.origin);
        self.name_writers(info, &outcome);
        if observed.source == Source::Local {
            self.writers[observed.side].clone_from(&observed.origin);
        }
        self.absorb(&info.group, outcome, observed)
    }

    /// Notes whose values the rows show from now on.
    pub(super) fn name_writers(&mut self, info: &GroupInfo, outcome: &Outcome) {
        for (side, field, _) in &outcome.rows {
            let column = info.group.column(*field, *side);
            let decision = outcome.decisions.iter().find(|d| d.field == *field);
            if let (Some(true), Some(decision)) = (column.map(|c| c.writable), decision)
                && !decision.winner.is_empty()
            {
                self.writers[*side].clone_from(&decision.winner);
            }
        }
    }

    pub(super) fn absorb(
        &mut self,
        group: &Group,
        outcome: Outcome,
        observed: &Observed,
    ) -> Vec<Decision> {
        for (side, field) in outcome.cancel {
            self.writes.remove(&(side, field));
            self.cancels.insert((side, field));
        }
        self.reread.extend(outcome.reread);
        for (side, field, value) in outcome.writes {
            // SQL has changed its own row already: what it replaced came with it.
            let replaced = observed
                .values
                .iter()
                .filter(|_| observed.source == Source::Local && !observed.anew)
                .filter(|_| observed.side == side)
                .find_map(|(f, _, old)| old.clone().filter(|_| *f == field));
            let old = replaced.unwrap_or_else(|| self.value(side, field));
            let old = self.writes.remove(&(side, field)).map_or(old, |(_, o)| o);
            self.cancels.remove(&(side, field));
            self.writes.insert((side, field), (value, old));
        }
        for (side, field, value) in outcome.rows {
            if let Some(cell) = self
                .entity
                .records
                .get_mut(side)
                .and_then(|r| r.values.get_mut(field))
            {
                if side != observed.side {
                    self.carried.push((side, field, cell.clone()));
                }
                cell.clone_from(&value);
            }
            self.cells.insert((side, field), value);
        }
        for (field, state) in outcome.states {
            let stored = self.entity.fields.contains_key(&field) && self.entity_id.is_some();
            let kept = state.filter(|s| must_keep(s, &self.entity, group));
            let asked = |s: Option<&FieldState>| s.and_then(|s| s.hold.clone());
            if asked(self.entity.fields.get(&field)) != asked(kept.as_ref()) {
                self.questions.insert(field);
            }
            if kept.is_some() || stored {
                self.states.insert(field);
            }
            match kept {
                Some(state) => self.entity.fields.insert(field, state),
                None => self.entity.fields.remove(&field),
            };
        }
        outcome.decisions
    }

    fn value(&self, side: usize, field: usize) -> Value {
        let record = self.entity.records.get(side)?;
        record.values.get(field).cloned().flatten()
    }

    /// Notes that the side's CRM showed the record as of this stamp.
    pub(crate) fn stamp(&mut self, side: usize, at: Millis) {
        if let Some(stamp) = self.stamps.get_mut(side) {
            *stamp = (*stamp).max(at);
        }
    }

    /// Names the user transaction that caused the writes, and whether they are held.
    pub(crate) fn caused_by(&mut self, tx: i64, held: bool) {
        if !self.txs.contains(&tx) {
            self.txs.push(tx);
        }
        self.held |= held;
    }

    /// Whether anything must be written under an entity id.
    pub(super) fn needs_entity(&self) -> bool {
        self.entity_id.is_none() && !self.states.is_empty()
    }
}

/// Builds cases from locked rows of one mirror. Rows of other sides are locked
/// too; a case whose partner is locked by somebody else, or whose question somebody is
/// answering, is left out and its row id returned.
pub(crate) fn load(
    world: &World,
    mirror: &Mirror,
    columns: &[usize],
    locked: Vec<Row>,
) -> Result<(Vec<Case>, Vec<i64>)> {
    let info = &world.groups[mirror.group];
    let ids: Vec<i64> = locked.iter().map(|r| r.row_id).collect();
    let xrefs = ledger::entities_of(mirror.id, ids)?;
    let entity_of: HashMap<i64, i64> = xrefs
        .iter()
        .filter(|x| x.mirror == mirror.id)
        .map(|x| (x.row_id, x.entity))
        .collect();
    let fields: BTreeSet<usize> = columns
        .iter()
        .filter_map(|c| info.field_of[mirror.side].get(c).copied())
        .collect();
    let fields: Vec<usize> = fields.into_iter().collect();
    let partners = lock_partners(world, info, mirror, &fields, &xrefs)?;
    let states = load_states(world, info, &xrefs)?;
    let asks = |fields: &BTreeMap<usize, FieldState>| fields.values().any(|s| s.hold.is_some());
    let asked = states.iter().filter(|(_, fields)| asks(fields));
    let answering = reviews::being_answered(asked.map(|(e, _)| *e).collect())?;
    let expected: HashMap<i64, usize> = xrefs.iter().fold(HashMap::new(), |mut n, x| {
        *n.entry(x.entity).or_default() += 1;
        n
    });
    let mut cases = Vec::with_capacity(locked.len());
    let mut blocked = Vec::new();
    for row in locked {
        let entity_id = entity_of.get(&row.row_id).copied();
        let mut sides: Vec<Option<Row>> = vec![None; info.group.sides.len()];
        let mut values = vec![vec![None; info.group.fields.len()]; info.group.sides.len()];
        fill(&mut values[mirror.side], info, mirror.side, columns, &row);
        let mut found = 1;
        for (side, columns, partner) in entity_id
            .and_then(|e| partners.get(&e))
            .into_iter()
            .flatten()
        {
            fill(&mut values[*side], info, *side, columns, partner);
            sides[*side] = Some(partner.clone());
            found += 1;
        }
        let locked = |e: i64| expected.get(&e).is_some_and(|n| *n > found);
        if entity_id.is_some_and(|e| locked(e) || answering.contains(&e)) {
            blocked.push(row.row_id);
            continue;
        }
        sides[mirror.side] = Some(row);
        cases.push(new_case(mirror.group, entity_id, sides, values, &states));
    }
    Ok((cases, blocked))
}

/// [`load`] that also leaves out cases of which another side's row has changes
/// by SQL waiting: their new values are in that row only, and what is decided
/// here would be written over them. `batch` is what is decided together.
pub(crate) fn load_drained(
    world: &World,
    mirror: &Mirror,
    columns: &[usize],
    locked: Vec<Row>,
    batch: &HashSet<(i32, i64)>,
) -> Result<(Vec<Case>, Vec<i64>)> {
    let (mut cases, mut blocked) = load(world, mirror, columns, locked)?;
    let sides = &world.groups[mirror.group].group.sides;
    for (side, member) in sides.iter().enumerate() {
        let row_of = |c: &Case| c.rows[side].as_ref().map(|r| r.row_id);
        if member.mirror == mirror.id {
            continue;
        }
        let mut partners: Vec<i64> = cases.iter().filter_map(row_of).collect();
        partners.retain(|r| !batch.contains(&(member.mirror, *r)));
        let waiting: HashSet<i64> = changes::undrained(member.mirror, partners)?
            .into_iter()
            .collect();
        if !waiting.is_empty() {
            let (busy, free) = cases
                .into_iter()
                .partition::<Vec<_>, _>(|c| row_of(c).is_some_and(|r| waiting.contains(&r)));
            cases = free;
            blocked.extend(
                busy.iter()
                    .filter_map(|c| Some(c.rows[mirror.side].as_ref()?.row_id)),
            );
        }
    }
    Ok((cases, blocked))
}

fn new_case(
    group: usize,
    entity_id: Option<i64>,
    sides: Vec<Option<Row>>,
    values: Vec<Vec<Value>>,
    states: &HashMap<i64, BTreeMap<usize, FieldState>>,
) -> Case {
    let records = sides
        .iter()
        .zip(values)
        .map(|(row, values)| SideRecord {
            exists: row.is_some(),
            record_id: row.as_ref().and_then(|r| r.record_id.clone()),
            deleted: row.as_ref().is_some_and(|r| r.deleted),
            values,
        })
        .collect();
    let stamps = vec![0; sides.len()];
    let writers = vec![String::new(); sides.len()];
    Case {
        group,
        entity_id,
        rows: sides,
        entity: Entity {
            records,
            fields: entity_id
                .and_then(|e| states.get(&e).cloned())
                .unwrap_or_default(),
            ..Entity::default()
        },
        cells: BTreeMap::new(),
        writes: BTreeMap::new(),
        reread: BTreeSet::new(),
        cancels: BTreeSet::new(),
        states: BTreeSet::new(),
        questions: BTreeSet::new(),
        stamps,
        source: String::new(),
        writers,
        txs: Vec::new(),
        held: false,
        carried: Vec::new(),
        scope_before: scope::Before::new(),
        outside: Vec::new(),
        hidden: Vec::new(),
    }
}

fn fill(values: &mut [Value], info: &GroupInfo, side: usize, columns: &[usize], row: &Row) {
    for (field, value) in info.gather(side, columns, &row.values) {
        values[field] = value;
    }
}

pub(super) type Partners = HashMap<i64, Vec<(usize, Vec<usize>, Row)>>;

/// Locks the other rows of the entities, with the columns that hold `fields`.
pub(super) fn lock_partners(
    world: &World,
    info: &GroupInfo,
    own: &Mirror,
    fields: &[usize],
    xrefs: &[ledger::XrefRow],
) -> Result<Partners> {
    let mut partners: Partners = HashMap::new();
    for (side, member) in info.group.sides.iter().enumerate() {
        let Some(mirror) = world.mirrors.get(&member.mirror).filter(|m| m.id != own.id) else {
            continue;
        };
        let entity_of: HashMap<i64, i64> = xrefs
            .iter()
            .filter(|x| x.mirror == mirror.id)
            .map(|x| (x.row_id, x.entity))
            .collect();
        if entity_of.is_empty() {
            continue;
        }
        let columns: Vec<usize> = fields
            .iter()
            .flat_map(|f| info.columns(*f, side))
            .copied()
            .collect();
        let rows = lock(mirror, &columns, entity_of.keys().copied().collect())?;
        for row in rows {
            if let Some(entity) = entity_of.get(&row.row_id) {
                partners
                    .entry(*entity)
                    .or_default()
                    .push((side, columns.clone(), row));
            }
        }
    }
    Ok(partners)
}

/// Removed rows of which a user holds a counterpart: they wait.
pub(crate) fn busy(world: &World, mirror: &Mirror, row_ids: Vec<i64>) -> Result<Vec<i64>> {
    if row_ids.is_empty() {
        return Ok(row_ids);
    }
    let info = &world.groups[mirror.group];
    let xrefs = ledger::entities_of(mirror.id, row_ids)?;
    let partners = lock_partners(world, info, mirror, &[], &xrefs)?;
    let sides = &info.group.sides;
    let locked: HashSet<(i32, i64)> = (partners.values().flatten())
        .map(|(side, _, row)| (sides[*side].mirror, row.row_id))
        .collect();
    let mut away: HashMap<i32, Vec<i64>> = HashMap::new();
    for other in xrefs.iter().filter(|x| x.mirror != mirror.id) {
        if !locked.contains(&(other.mirror, other.row_id)) {
            away.entry(other.mirror).or_default().push(other.row_id);
        }
    }
    // Rows that are not there, removed like these, are held by nobody.
    let mut held = HashSet::new();
    for (id, rows) in away {
        if let Some(other) = world.mirrors.get(&id) {
            let there = rows::present_rows(&other.table, rows)?;
            held.extend(there.into_iter().map(|row| (id, row)));
        }
    }
    let waits = xrefs
        .iter()
        .filter(|x| held.contains(&(x.mirror, x.row_id)));
    let waits: HashSet<i64> = waits.map(|x| x.entity).collect();
    let own = xrefs.iter().filter(|x| x.mirror == mirror.id);
    let own = own.filter(|x| waits.contains(&x.entity));
    Ok(own.map(|x| x.row_id).collect())
}

/// As [`load`] for rows that are decided now or never: waits for those who hold rows of
/// other sides, and fails with a lock's error if that takes too long.
pub(crate) fn load_all(
    world: &World,
    mirror: &Mirror,
    columns: &[usize],
    locked: Vec<Row>,
) -> Result<Vec<Case>> {
    let (mut cases, blocked) = load(world, mirror, columns, locked)?;
    if blocked.is_empty() {
        return Ok(cases);
    }
    let xrefs = ledger::entities_of(mirror.id, blocked.clone())?;
    for member in &world.groups[mirror.group].group.sides {
        let other = world.mirrors.get(&member.mirror);
        let Some(other) = other.filter(|m| m.id != mirror.id) else {
            continue;
        };
        let theirs = xrefs.iter().filter(|x| x.mirror == other.id);
        rows::wait_for(&other.table, theirs.map(|x| x.row_id).collect())?;
    }
    let again = lock(mirror, columns, blocked)?;
    cases.extend(load(world, mirror, columns, again)?.0);
    Ok(cases)
}

/// Locks rows of a mirror by row id and reads the given columns.
pub(crate) fn lock(mirror: &Mirror, columns: &[usize], ids: Vec<i64>) -> Result<Vec<Row>> {
    let columns: Vec<_> = columns.iter().map(|c| &mirror.columns[*c]).collect();
    rows::lock_by_row(&mirror.table, &columns, ids)
}

/// Loads the states of unsettled fields, with what became of our writes meanwhile.
pub(super) fn load_states(
    world: &World,
    info: &GroupInfo,
    xrefs: &[ledger::XrefRow],
) -> Result<HashMap<i64, BTreeMap<usize, FieldState>>> {
    let mut states: HashMap<i64, BTreeMap<usize, FieldState>> = HashMap::new();
    if xrefs.is_empty() {
        return Ok(states);
    }
    let entities: BTreeSet<i64> = xrefs.iter().map(|x| x.entity).collect();
    for (entity, field, json) in ledger::field_states(entities.into_iter().collect())? {
        let index = info.group.fields.iter().position(|f| f.name == field);
        if let (Some(index), Ok(state)) = (index, serde_json::from_str(&json)) {
            states.entry(entity).or_default().insert(index, state);
        }
    }
    if !states.is_empty() {
        let pending = writes::pending(
            xrefs.iter().map(|x| x.mirror).collect(),
            xrefs.iter().map(|x| x.row_id).collect(),
        )?;
        let out = |w: &&WriteRow| matches!(w.state.as_str(), "in_flight" | "unknown");
        for write in pending.iter().filter(out) {
            unsettled::overlay_claim(world, info, write, &mut states);
        }
        unsettled::forget_withdrawn(info, xrefs, &pending, &mut states);
    }
    Ok(states)
}

/// Field names and values of a write.
pub(crate) fn json_values(json: &str) -> Vec<(String, Value)> {
    let parsed: std::result::Result<serde_json::Map<String, serde_json::Value>, _> =
        serde_json::from_str(json);
    parsed
        .unwrap_or_default()
        .into_iter()
        .map(|(name, value)| (name, value.as_str().map(str::to_owned)))
        .collect()
}
