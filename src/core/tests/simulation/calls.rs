//! Calls to a CRM: what it does, what it answers, what is found of a call whose
//! answer was lost.

use crm_core::model::{Value, WriteKind};

use crate::history::History;
use crate::model::{Sight, Writer, token, value_of};
use crate::network::{Fate, Message};
use crate::outbox::{Flying, Result as Answer};
use crate::trace::note;
use crate::world::Kind;

impl History {
    /// What a read finds of a write whose answer was lost.
    pub fn looked(&mut self, place: (usize, usize), claim: i64) {
        let (thing, side) = place;
        let Some(there) = self.engine.things.get(thing) else {
            return;
        };
        let Some(flying) = there.out[side].flying.clone().filter(|f| f.claim == claim) else {
            return;
        };
        let crm = &self.crms[side];
        let id: Option<usize> = there.entity.records[side]
            .record_id
            .as_ref()
            .and_then(|id| id.parse().ok());
        let is_ours = |r: &crate::crm::Record| r.unique.as_ref() == Some(&flying.unique);
        let found = match (flying.kind, id) {
            (WriteKind::Create, _) => {
                let mine = crm.records.iter().position(is_ours);
                let search = || crm.with_key(flying.key).first().copied();
                mine.or_else(search)
            }
            (WriteKind::Update, Some(id)) => {
                let record = &crm.records[id];
                let same = |(f, v): &(usize, Value)| record.values[*f] == *v;
                flying.values.iter().all(same).then_some(id)
            }
            (WriteKind::Delete, Some(id)) => crm.records[id].deleted.then_some(id),
            (_, None) => None,
        };
        let result = match found {
            Some(id) => Answer::Done(id, None),
            None if flying.kind == WriteKind::Update => Answer::NotSeen,
            // Nothing found is no proof, and nothing keeps a second create from
            // making a second record: a person is asked.
            None if flying.kind == WriteKind::Create && !crm.habits.unique => Answer::NotFound,
            None => Answer::Retry,
        };
        // What was made may have been edited since; found by its key alone it may even be
        // somebody else's, with other values.
        let made = match (flying.kind, &result) {
            (WriteKind::Create, Answer::Done(id, _)) => Some(*id),
            (_, Answer::NotSeen) => id,
            _ => None,
        };
        self.result(place, claim, result);
        if let Some(id) = made {
            self.read(side, id, 0);
        }
    }

    pub fn call(&mut self, place: (usize, usize), id: Option<usize>, flying: Flying, fate: Fate) {
        let side = place.1;
        let forbidden = |(_, v): &(usize, Value)| v.as_deref() == Some("refused");
        let refuses = self.crms[side].habits.refuses && flying.values.iter().any(forbidden);
        let result = match fate {
            _ if refuses => Answer::Failed,
            Fate::Refused => Answer::Retry,
            Fate::LostBefore => Answer::Unknown,
            Fate::Fine | Fate::LostAfter | Fate::Late => self.perform(place, id, &flying),
        };
        if fate == Fate::Late {
            self.revive(&flying);
            return;
        }
        let lost = matches!(fate, Fate::LostBefore | Fate::LostAfter);
        let (after, result) = if lost {
            (10_000, Answer::Unknown)
        } else {
            (self.rng.below(300) as i64, result)
        };
        let result = Message::Result {
            place,
            claim: flying.claim,
            result,
        };
        self.net.push(self.now + after, result);
    }

    /// What lands long after it was given up looks like somebody's new edit.
    fn revive(&mut self, flying: &Flying) {
        for (field, value) in &flying.values {
            self.net.late_fields.push(*field);
            if let Some(made) = token(value).and_then(|t| self.model.made.get_mut(t as usize)) {
                made.revived = true;
                made.until = made.until.max(self.now);
            }
        }
    }

    /// The CRM does what it is asked.
    fn perform(&mut self, place: (usize, usize), id: Option<usize>, flying: &Flying) -> Answer {
        let side = place.1;
        if flying.kind == WriteKind::Create {
            return self.perform_create(place, flying);
        }
        let Some(id) = id else {
            return Answer::Failed;
        };
        let record = &self.crms[side].records[id];
        if record.merged.is_some() || (record.deleted && flying.kind == WriteKind::Update) {
            return Answer::Gone;
        }
        if flying.kind == WriteKind::Delete {
            if self.crms[side].set_deleted(id, true, self.now) {
                self.announce(side, id, &[], true);
            }
            return Answer::Done(id, None);
        }
        let changed = self.crms[side].set(id, &flying.values, self.now, true);
        note(|| format!("{} landed s{side} r{id} {changed:?}", self.now));
        if !changed.is_empty() {
            let computed = self.computed(side, id);
            let all: Vec<usize> = changed.into_iter().chain(computed).collect();
            self.announce(side, id, &all, true);
        }
        self.done(side, id, flying)
    }

    /// An automation of the CRM sets a field of its own in our transaction.
    fn computed(&mut self, side: usize, id: usize) -> Option<usize> {
        let kinds = &self.world.kinds;
        let field = kinds.iter().position(|k| *k == Kind::Computed)?;
        let full = self.model.made.len() >= crate::model::EDITS_MAX;
        if !self.crms[side].habits.computes || full {
            return None;
        }
        let value = value_of(self.model.next(), false);
        let sight = token(&self.crms[side].records[id].values[field]);
        let sights = sight.filter(|e| *e > 0).map(|edit| Sight {
            edit,
            since: self.now,
            own: true,
        });
        self.crms[side].set(id, &[(field, value.clone())], self.now, false);
        let key = self.crms[side].records[id].key;
        let sights = sights.into_iter().collect();
        self.made((key, field), Writer::Crm(side), value, sights, false);
        Some(field)
    }

    /// Two records that we make of one thing, and both are wanted: nobody need
    /// see that, a person's question included.
    fn note_double(&mut self, (thing, side): (usize, usize), flying: &Flying) {
        let key = flying.key;
        let other = |id: &usize| {
            let record = &self.crms[side].records[*id];
            let of = self.engine.find(side, *id).filter(|t| *t != thing);
            let wanted = of.is_some_and(|t| !self.engine.things[t].entity.records[side].deleted);
            // What came back while the create was on its way nobody could know.
            let back = self.engine.returned.get(&(side, *id));
            record.made_as.is_some() && wanted && back.is_none_or(|at| *at < flying.since)
        };
        // What landed although its row has been removed since, or has been given another
        // record in the call's stead, is removed, or asked about.
        let settled = |t: &crate::engine::Thing| {
            let open = t.out[side].flying.as_ref();
            let given = t.entity.records[side].record_id.is_some();
            given && open.is_none_or(|f| f.claim != flying.claim)
        };
        let row = self.engine.things.get(thing);
        if row.is_none_or(|t| t.entity.records[side].deleted || settled(t)) {
            return;
        }
        if self.crms[side].with_key(key).iter().any(other) && self.failed_over.is_none() {
            let fault = format!("s{side}: a second record of key {key} was made");
            self.engine.faults.push(fault);
        }
    }

    fn done(&self, side: usize, id: usize, flying: &Flying) -> Answer {
        let record = &self.crms[side].records[id];
        let shown = flying
            .values
            .iter()
            .map(|(f, _)| (*f, record.values[*f].clone()));
        let echoes = self.crms[side].habits.echoes;
        Answer::Done(id, echoes.then(|| shown.collect()))
    }

    fn perform_create(&mut self, place: (usize, usize), flying: &Flying) -> Answer {
        let (thing, side) = place;
        let key = flying.key;
        let habits = &self.crms[side].habits;
        let unique = habits.unique.then(|| flying.unique.clone());
        let has = |r: &crate::crm::Record| unique.is_some() && r.unique == unique;
        if let Some(id) = self.crms[side].records.iter().position(has) {
            let changed = self.crms[side].set(id, &flying.values, self.now, true);
            if !changed.is_empty() {
                self.announce(side, id, &changed, true);
            }
            return self.done(side, id, flying);
        }
        let same_key = self.crms[side].with_key(key);
        if let (true, Some(id)) = (habits.unique_key, same_key.first()) {
            return Answer::Exists(*id);
        }
        self.note_double((thing, side), flying);
        let now = self.now;
        let id = self.crms[side].create(key, &flying.values, unique, now, true);
        self.crms[side].records[id].made_as = Some(flying.unique.clone());
        note(|| format!("{now} created s{side} r{id} for t{thing}"));
        self.announce(side, id, &[], true);
        self.done(side, id, flying)
    }
}
