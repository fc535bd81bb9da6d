//! Whole records: arrivals, counterparts, deletions, restores, merges.

use crm_core::decide::{Outcome, Source};
use crm_core::join::{join, returned};
use crm_core::mapping::{Images, project_from};
use crm_core::model::{Mark, Value, WriteKind};
use crm_core::plan::{
    ArrivalPlan, CreatePlan, DeletedBy, Found, Standing, delete_conflict, plan_arrival,
    plan_create, plan_delete,
};
use crm_core::state::Interval;

use crate::engine::{Engine, HORIZON, Seen};
use crate::outbox::{Flying, Result};
use crate::trace::note;

/// A record as a read shows it.
#[derive(Clone, Debug)]
pub struct View {
    pub side: usize,
    pub id: usize,
    pub key: u32,
    pub unique: Option<String>,
    pub values: Vec<Value>,
    pub at: Interval,
    pub deleted: bool,
    /// It shows what the record held at this time or later.
    pub asked_at: Option<i64>,
    /// Key of the record that it became part of.
    pub merged: Option<u32>,
}

impl Engine {
    /// The thing of a record, and whether its row is alive.
    pub fn find(&self, side: usize, id: usize) -> Option<usize> {
        let id = id.to_string();
        let has = |t: &crate::engine::Thing| {
            let record = &t.entity.records[side];
            record.exists && record.record_id.as_deref() == Some(&id)
        };
        self.things.iter().position(has)
    }

    /// A read brings a record. False if it must be read again later.
    pub fn read(&mut self, view: &View, now: i64) -> bool {
        self.drain(now);
        if let Some(key) = view.merged {
            self.ended.insert((view.side, view.id));
            self.merged(view.side, view.id, key);
            return true;
        }
        // A page from before the merge.
        if self.ended.contains(&(view.side, view.id)) {
            return true;
        }
        let Some(thing) = self.find(view.side, view.id).or_else(|| self.ours(view)) else {
            return view.deleted || self.arrive(view, now);
        };
        let deleted = self.things[thing].entity.records[view.side].deleted;
        let stamp = self.things[thing].stamps[view.side];
        if deleted != view.deleted && stamp.is_none_or(|s| !view.at.before(s)) {
            if view.deleted {
                self.things[thing].stamps[view.side] = Some(view.at);
                self.removed(thing, view.side, now);
            } else {
                self.restored(thing, view, now);
                return true;
            }
        }
        if !view.deleted {
            self.show_page(thing, view, now);
        }
        true
    }

    pub fn show_page(&mut self, thing: usize, view: &View, now: i64) {
        let seen = Seen {
            side: view.side,
            source: Source::Page,
            values: view.values.iter().cloned().enumerate().collect(),
            at: view.at,
            mark: Mark::None,
            asked_at: view.asked_at,
        };
        self.show(thing, &seen, now);
    }

    /// The thing whose create made a record: its row gets the id.
    fn ours(&mut self, view: &View) -> Option<usize> {
        let unique = view.unique.as_deref()?;
        let has = |t: &crate::engine::Thing| t.out[view.side].unique == unique;
        let thing = self.things.iter().position(has)?;
        let record = &mut self.things[thing].entity.records[view.side];
        if !record.exists || record.record_id.is_some() {
            return None;
        }
        record.record_id = Some(view.id.to_string());
        self.ask_if_double(thing, view.side);
        Some(thing)
    }

    /// A record that belongs to nothing known.
    fn arrive(&mut self, view: &View, now: i64) -> bool {
        let waiting = self.with_key(view.side, view.key, |r| r.record_id.is_none());
        let plan = plan_arrival(&[waiting]);
        note(|| format!("{now} arrival s{} r{} {plan:?}", view.side, view.id));
        match plan {
            ArrivalPlan::Wait => return false,
            ArrivalPlan::Ambiguous(_) => {
                let thing = self.new_thing(view.key);
                self.place(thing, view);
                self.ask(thing, "several rows claim this record");
            }
            ArrivalPlan::Adopt(row) => {
                let thing: usize = row.parse().unwrap_or_default();
                let out = &mut self.things[thing].out[view.side];
                out.create = false;
                out.held = false;
                out.queued.clear();
                // Nothing waits for it any more, whatever was decided while it did.
                for state in self.things[thing].entity.fields.values_mut() {
                    crm_core::outgoing::withdraw(state, view.side);
                }
                self.place(thing, view);
                self.unite(thing, now);
            }
            ArrivalPlan::New => {
                let thing = self.new_thing(view.key);
                self.place(thing, view);
                if self.ask_if_double(thing, view.side) {
                    return true;
                }
                self.spread(thing, view.side, now);
            }
        }
        true
    }

    /// The thing's row of a side is this record from now on.
    pub fn place(&mut self, thing: usize, view: &View) {
        let there = &mut self.things[thing];
        there.stamps[view.side] = Some(view.at);
        let record = &mut there.entity.records[view.side];
        record.exists = true;
        record.deleted = false;
        record.record_id = Some(view.id.to_string());
        record.values.clone_from(&view.values);
        for (field, value) in view.values.iter().enumerate() {
            there.shown[view.side][field] = Some((value.clone(), view.at));
        }
    }

    /// Asks about a thing of which a side has two records; whether it has.
    pub fn ask_if_double(&mut self, thing: usize, side: usize) -> bool {
        let key = self.things[thing].key;
        let double = self.with_key(side, key, |r| r.record_id.is_some()).len() > 1;
        if double {
            self.ask(thing, "another record is this thing already");
        }
        double
    }

    pub fn ask(&mut self, thing: usize, question: &str) {
        note(|| format!("    asked about t{thing}: {question}"));
        self.things[thing].question = Some(question.to_owned());
    }

    /// Records of a side with a key, as far as they have come.
    fn with_key(
        &self,
        side: usize,
        key: u32,
        which: impl Fn(&crm_core::state::SideRecord) -> bool,
    ) -> Vec<Found> {
        let mut found = Vec::new();
        for (i, thing) in self.things.iter().enumerate().filter(|(_, t)| t.key == key) {
            let record = &thing.entity.records[side];
            // What is being made is there until its answer says otherwise.
            let making = record.record_id.is_none() && thing.out[side].flying.is_some();
            if !record.exists || (record.deleted && !making) || !which(record) {
                continue;
            }
            let standing = match (&record.record_id, &thing.out[side].flying) {
                (Some(_), _) => Standing::Free,
                (None, Some(_)) => Standing::Reserved,
                (None, None) => Standing::Queued,
            };
            found.push(Found {
                record: i.to_string(),
                standing,
            });
        }
        found
    }

    /// Gives a new thing its records on the other sides.
    pub fn spread(&mut self, thing: usize, from: usize, now: i64) {
        self.things[thing].waits = false;
        let key = self.things[thing].key;
        for side in 0..self.sides() {
            if self.things[thing].entity.records[side].exists {
                continue;
            }
            let mut found = self.with_key(side, key, |_| true);
            for f in &mut found {
                let other: usize = f.record.parse().unwrap_or_default();
                if f.standing == Standing::Free && !self.apart(thing, other) {
                    f.standing = Standing::Taken;
                }
            }
            let plan = plan_create(&[found]);
            note(|| format!("{now} create t{thing} s{side}: {plan:?}"));
            match plan {
                CreatePlan::Link(other) => {
                    let other: usize = other.parse().unwrap_or_default();
                    if !self.apart(thing, other) {
                        self.ask(thing, "a record that waits for another row matches");
                        return;
                    }
                    self.absorb(thing, other);
                    self.unite(thing, now);
                }
                CreatePlan::Ambiguous(_) => {
                    self.ask(thing, "another record is matched already");
                    return;
                }
                CreatePlan::Wait => {
                    self.things[thing].waits = true;
                    return;
                }
                CreatePlan::Create => self.counterpart(thing, from, side),
            }
        }
    }

    /// Things that had to wait for somebody else's create are looked at again.
    pub fn retry(&mut self, now: i64) {
        for thing in 0..self.things.len() {
            let records = &self.things[thing].entity.records;
            let from = records.iter().position(|r| r.exists && !r.deleted);
            self.things[thing].waits &= from.is_some();
            if let (true, Some(from)) = (self.things[thing].waits, from) {
                self.drain(now);
                self.spread(thing, from, now);
            }
        }
    }

    /// No side has a record of both.
    fn apart(&self, a: usize, b: usize) -> bool {
        let (a, b) = (&self.things[a].entity, &self.things[b].entity);
        let mut pairs = a.records.iter().zip(&b.records);
        pairs.all(|(a, b)| !(a.exists && b.exists))
    }

    /// One thing takes over all records of another.
    fn absorb(&mut self, thing: usize, other: usize) {
        for side in 0..self.sides() {
            let from = &mut self.things[other];
            if !from.entity.records[side].exists {
                continue;
            }
            let record = std::mem::take(&mut from.entity.records[side]);
            from.entity.records[side].values = vec![None; record.values.len()];
            let out = std::mem::take(&mut from.out[side]);
            let (stamp, shown) = (from.stamps[side], from.shown[side].clone());
            let states = from.entity.fields.clone();
            let to = &mut self.things[thing];
            to.entity.records[side] = record;
            to.out[side] = out;
            to.stamps[side] = stamp;
            to.shown[side] = shown;
            for (field, state) in states {
                let here = to
                    .entity
                    .fields
                    .entry(field)
                    .or_insert_with(|| state.clone());
                here.sides[side] = state.sides[side].clone();
            }
        }
        for entry in &mut self.log {
            if entry.0 == other {
                entry.0 = thing;
            }
        }
        self.things[other].entity.fields.clear();
        self.things[other].waits = false;
    }

    /// Records that became one thing agree on their fields.
    pub fn unite(&mut self, thing: usize, now: i64) {
        self.seq += 1;
        let stamps = self.row_stamps(thing, now);
        let (group, policy, entity) = (&self.group, &self.policy, &self.things[thing].entity);
        let outcome = join(group, policy, entity, &stamps, self.seq, now, HORIZON);
        self.united(thing, &outcome, now);
    }

    /// A record that is back agrees with the others.
    pub fn come_back(&mut self, thing: usize, side: usize, now: i64) {
        self.seq += 1;
        let stamps = self.row_stamps(thing, now);
        let by = (stamps.as_slice(), self.seq);
        let (group, policy) = (&self.group, &self.policy);
        let entity = &mut self.things[thing].entity;
        let outcome = returned(group, policy, entity, side, by, now, HORIZON);
        self.united(thing, &outcome, now);
    }

    fn row_stamps(&self, thing: usize, now: i64) -> Vec<Interval> {
        let open = Interval { from: 0, to: now };
        let stamps = self.things[thing].stamps.iter();
        stamps.map(|s| s.unwrap_or(open)).collect()
    }

    fn united(&mut self, thing: usize, outcome: &Outcome, now: i64) {
        note(|| format!("{now} join t{thing}"));
        for decision in &outcome.decisions {
            for value in decision
                .losers
                .iter()
                .map(|(_, v)| v)
                .chain([&decision.value])
            {
                let token = crate::model::token(value);
                self.named.extend(token.map(|t| (decision.field, t)));
            }
        }
        self.apply(thing, outcome);
    }

    /// A row for a side that has none, and a create for its CRM.
    fn counterpart(&mut self, thing: usize, from: usize, to: usize) {
        let there = &mut self.things[thing];
        let records = &there.entity.records;
        let mut sources: Vec<(usize, &[Value])> = vec![(from, &records[from].values)];
        for (side, record) in records.iter().enumerate() {
            if side != from && record.exists && !record.deleted {
                sources.push((side, &record.values));
            }
        }
        let mut made = vec![None; records[from].values.len()];
        let images = Images::default();
        for (field, value) in project_from(&self.group, &sources, to, &images).mapped {
            made[field] = value;
        }
        let record = &mut there.entity.records[to];
        record.exists = true;
        record.deleted = false;
        record.record_id = None;
        record.values = made;
        there.out[to].create = true;
    }

    /// A user's INSERT commits and is drained.
    pub fn insert(&mut self, side: usize, key: u32, values: Vec<Value>, now: i64) -> usize {
        self.drain(now);
        let thing = self.new_thing(key);
        note(|| format!("{now} insert t{thing} s{side} key {key} {values:?}"));
        let there = &mut self.things[thing];
        let record = &mut there.entity.records[side];
        record.exists = true;
        record.values = values;
        there.out[side].create = true;
        self.spread(thing, side, now);
        thing
    }

    /// A user's DELETE commits and is drained; false if a person is asked.
    pub fn delete(&mut self, thing: usize, side: usize, now: i64) -> bool {
        self.drain(now);
        note(|| format!("{now} sql delete t{thing} s{side}"));
        self.carry_delete(thing, side, DeletedBy::Local)
    }

    fn removed(&mut self, thing: usize, side: usize, now: i64) {
        note(|| format!("{now} removed t{thing} s{side}"));
        if !self.carry_delete(thing, side, DeletedBy::Remote) {
            self.things[thing].entity.records[side].deleted = true;
        }
    }

    fn carry_delete(&mut self, thing: usize, side: usize, by: DeletedBy) -> bool {
        let origin = match by {
            DeletedBy::Local => "local",
            DeletedBy::Remote => self.group.origin(side),
        };
        let there = &mut self.things[thing];
        if let Some(held) = delete_conflict(&self.group, &there.entity, side, by, origin) {
            there.question = Some(held);
            return false;
        }
        let rules = vec![self.deletes; self.group.sides.len()];
        let plan = plan_delete(&self.group, &there.entity, side, by, &rules);
        note(|| format!("    {plan:?}"));
        for (side, field) in &plan.cancel {
            there.out[*side].queued.remove(field);
        }
        for side in &plan.send {
            there.out[*side].delete = there.entity.records[*side].record_id.is_some()
                || there.out[*side].flying.is_some();
            there.out[*side].create = false;
            there.out[*side].queued.clear();
        }
        // Rows that are only hidden come back with the record; here they stay.
        for side in plan.mark.iter().chain(&plan.unlink) {
            there.entity.records[*side].deleted = true;
            for state in there.entity.fields.values_mut() {
                state.sides[*side]
                    .sent
                    .retain(|w| w.sent != crm_core::state::Sent::Queued);
            }
        }
        true
    }

    /// What the result of a create or delete means for the record.
    pub fn record_result(
        &mut self,
        (thing, side): (usize, usize),
        flying: &Flying,
        result: &Result,
        _now: i64,
    ) {
        let there = &mut self.things[thing];
        let out = &mut there.out[side];
        match (flying.kind, result) {
            (WriteKind::Create, Result::Done(id, _) | Result::Exists(id)) => {
                let (id, key) = (*id, there.key);
                let wanted = out.delete;
                if self.find(side, id).is_some_and(|t| t != thing) {
                    self.ask(
                        thing,
                        &format!("the record of key {key} is matched already"),
                    );
                    return;
                }
                let there = &mut self.things[thing];
                there.entity.records[side].record_id = Some(id.to_string());
                there.out[side].delete = wanted;
                self.ask_if_double(thing, side);
            }
            (WriteKind::Create, Result::NotFound) => out.held = true,
            (WriteKind::Create, Result::Retry) => {
                out.create = !out.delete;
                out.since = out.create.then_some(flying.since);
            }
            (WriteKind::Delete, Result::Retry) => out.delete = true,
            (WriteKind::Create, Result::Failed) => self.ask(thing, "the create was refused"),
            _ => {}
        }
    }

    /// A person looked for what a create made whose answer was lost.
    pub fn answer_create(&mut self, (thing, side): (usize, usize), made: Option<usize>, now: i64) {
        note(|| format!("{now} steward t{thing} s{side}: the create made {made:?}"));
        let record = &self.things[thing].entity.records[side];
        let wanted = record.exists && !record.deleted;
        self.things[thing].out[side].held = false;
        match made {
            _ if !wanted => {}
            None => self.things[thing].out[side].create = true,
            Some(id) if self.find(side, id).is_some() => {
                self.ask(thing, "what its create made is matched already");
            }
            Some(id) => {
                self.things[thing].entity.records[side].record_id = Some(id.to_string());
                self.ask_if_double(thing, side);
            }
        }
    }
}
