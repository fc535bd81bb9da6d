//! What must hold after quiet: the model's predictions against rows and CRMs.

use crm_core::policy::Rule;
use crm_core::state::settle;
use crm_core::strategy::Strategy;

use crate::engine::HORIZON;
use crate::history::History;
use crate::model::{Edits, token};
use crate::world::{CLEAR, Kind};

type Checked = Result<(), String>;

impl History {
    /// Closes the model over what is known now.
    fn close_model(&mut self) {
        let Self {
            model, net, engine, ..
        } = self;
        let calm = |made: &crate::model::Made| {
            let crate::model::Writer::Crm(side) = made.writer else {
                return true;
            };
            let of_key = |t: &crate::engine::Thing| t.key == made.cell.0;
            let thing = engine.things.iter().position(of_key);
            thing.is_none_or(|t| !net.busy((t, side, made.cell.1), made.at, CLEAR))
        };
        let calm: Vec<bool> = model.made.iter().map(calm).collect();
        model.close(&calm);
    }

    /// Which questions are open, before people answer them.
    pub fn check_questions(&mut self) -> Checked {
        self.see_last();
        self.close_model();
        for (thing, field) in self.plain_cells() {
            let key = self.engine.things[thing].key;
            let predicted = self.model.predict((key, field), &self.rule(field));
            let held = self.engine.held(thing, field);
            if let Some(reason) = held
                && !predicted.may_ask
                && !self.landed_late(field)
                && self.reformed[field].is_none()
                && !self.forgotten.contains_key(&(key, field))
            {
                return Err(format!("asked about f{field} for no reason: {reason}"));
            }
            let answered = self
                .model
                .of((key, field))
                .any(|(_, m)| m.answer || m.revived);
            // What a forgotten write left under our mark can look like a form of ours, on
            // top of which the next edit was then made.
            let forgotten = self.forgotten.get(&(key, field)) == Some(&true);
            let calm = !answered && !forgotten && self.reformed[field].is_none();
            if held.is_none() && predicted.must_ask && calm {
                return Err(format!("nobody was asked about f{field}"));
            }
        }
        Ok(())
    }

    /// Everything.
    pub fn check(&mut self) -> Checked {
        if let Some(fault) = self.engine.faults.first() {
            return Err(fault.clone());
        }
        if let Some(early) = self.net.early.take() {
            return Err(early);
        }
        self.see_last();
        self.doubt_stages();
        self.close_model();
        self.bounded()?;
        self.named()?;
        for (thing, field) in self.stage_cells() {
            self.predicted(thing, field)?;
        }
        for thing in 0..self.engine.things.len() {
            if self.engine.things[thing].question.is_none() {
                for field in 0..self.world.kinds.len() {
                    self.agree(thing, field)?;
                }
            }
        }
        for (thing, field) in self.plain_cells() {
            self.predicted(thing, field)?;
        }
        self.check_records()?;
        self.settled()
    }

    /// The rule in force; a lock is a rule that only its owners may write.
    fn rule(&self, field: usize) -> Rule {
        let name = crate::world::name(field);
        let rule = self.engine.policy.rules[field].clone();
        match self.engine.policy.lock(&name) {
            Some(lock) => Rule {
                strategy: Strategy::Owner,
                winner: lock.origins.clone(),
                ..rule
            },
            None => rule,
        }
    }

    /// A write of a field where every edit counts landed after it was given up: its
    /// value names no edit, so it looks like one more.
    fn landed_late(&self, field: usize) -> bool {
        self.world.kinds[field].counts() && self.net.late_fields.contains(&field)
    }

    fn unlocked(&self, field: usize) -> bool {
        let name = crate::world::name(field);
        self.engine.policy.lock(&name).is_none()
    }

    /// Whether a page of an edit's very second showed another edit of the same users
    /// to that field, whose own event is lost or of another second: which of the two
    /// came last nobody can tell once both have been written over. Events of one
    /// second come in order, so what they tell is known.
    fn beside_page(&self, made: &crate::model::Made) -> bool {
        let (Some((id, second)), crate::model::Writer::Crm(side)) = (made.second, made.writer)
        else {
            return false;
        };
        let pages = self
            .net
            .paged
            .get(&(side, id, second))
            .into_iter()
            .flatten();
        let other = |shown: &Vec<Option<String>>| {
            let value = &shown[made.cell.1];
            let other = token(value).filter(|t| token(&made.value) != Some(*t));
            let other = other.and_then(|t| self.model.made.get(t as usize));
            other.is_some_and(|o| {
                let told = o.told && o.second == Some((id, second));
                o.writer == made.writer && o.cell == made.cell && !told
            })
        };
        pages.into_iter().any(other)
    }

    /// Whether its CRM gave another edit of the field the very same stamp: which came
    /// last nobody can tell once both have been written over.
    fn has_twin(&self, made: &crate::model::Made) -> bool {
        let same = |o: &crate::model::Made| o.writer == made.writer && o.cell == made.cell;
        let exact = made.stamp.from == made.stamp.to;
        let twins = self
            .model
            .made
            .iter()
            .filter(|o| same(o) && o.stamp == made.stamp);
        exact && matches!(made.writer, crate::model::Writer::Crm(_)) && twins.count() > 1
    }

    /// Edits that still stand at their CRM have been read there by now.
    fn see_last(&mut self) {
        for edit in 0..self.model.made.len() {
            let made = &self.model.made[edit];
            let untold = self.beside_page(made) || self.has_twin(made);
            self.model.made[edit].sure &= !untold;
        }
        for (side, crm) in self.crms.iter().enumerate() {
            for record in crm
                .records
                .iter()
                .filter(|r| !r.deleted && r.merged.is_none())
            {
                for value in &record.values {
                    let made = token(value).and_then(|t| self.model.made.get_mut(t as usize));
                    if let Some(made) = made.filter(|m| {
                        m.writer == crate::model::Writer::Crm(side) && m.cell.0 == record.key
                    }) {
                        made.sure = true;
                    }
                }
            }
        }
    }

    /// Fields about which the model can say which edit stands.
    fn plain_cells(&self) -> Vec<(usize, usize)> {
        let mut cells = self.undisturbed();
        let repeats = self.world.repeats;
        cells.retain(|(_, field)| !repeats && self.world.kinds[*field] != Kind::Stage);
        cells
    }

    /// Stages of which the model can say what may stand.
    fn stage_cells(&self) -> Vec<(usize, usize)> {
        let mut cells = self.undisturbed();
        let stubborn = self.world.habits.iter().any(|h| h.forward_only);
        cells.retain(|(_, field)| !stubborn && self.world.kinds[*field] == Kind::Stage);
        cells
    }

    fn undisturbed(&self) -> Vec<(usize, usize)> {
        if self.world.habits.iter().any(|h| h.refuses) {
            return Vec::new();
        }
        let things = self.engine.things.iter().enumerate();
        let plain =
            things.filter(|(_, t)| !self.disturbed.contains(&t.key) && t.question.is_none());
        let fields = 0..self.world.kinds.len();
        plain
            .flat_map(|(thing, _)| fields.clone().map(move |field| (thing, field)))
            .collect()
    }

    /// Writes follow from edits; no edit calls for many.
    fn bounded(&self) -> Checked {
        let edits = self.model.made.len() + self.disturbed.len() + 4;
        let bound = 6 * self.crms.len() * edits;
        if self.engine.sent > bound {
            return Err(format!("{} writes for {edits} edits", self.engine.sent));
        }
        Ok(())
    }

    /// No observed edit went without a decision that names it, and none was
    /// let stand twice.
    fn named(&self) -> Checked {
        if self.world.repeats {
            return Ok(());
        }
        for (cell, count) in &self.engine.accepted {
            let revived = self
                .model
                .made
                .get(cell.1 as usize)
                .is_some_and(|m| m.revived);
            let shaken = revived || self.failed_over.is_some() || cell.1 == 0;
            let moved = self.model.made.get(cell.1 as usize);
            // A page says nothing of whose form it shows.
            let forms = self
                .world
                .habits
                .iter()
                .any(|h| h.lower || h.adorns || h.seconds);
            let shaken =
                shaken || forms || moved.is_some_and(|m| self.disturbed.contains(&m.cell.0));
            if *count > 1 && !shaken && !self.crowded(cell.1) {
                return Err(format!("V{:03} was let stand {count} times", cell.1));
            }
        }
        for (i, made) in self.model.made.iter().enumerate().skip(1) {
            let by_crm = matches!(made.writer, crate::model::Writer::Crm(_));
            let text = self.world.kinds[made.cell.1] != Kind::Stage;
            let text = text && token(&made.value) == Some(i as u32);
            let counts = text && by_crm && made.sure && !made.shaken;
            let key = (made.cell.1, i as u32);
            if counts && !self.disturbed.contains(&made.cell.0) && !self.engine.named.contains(&key)
            {
                return Err(format!("no decision names V{i:03}: {made:?}"));
            }
        }
        Ok(())
    }

    /// Whether its CRM gave the same stamp to another edit: their order is lost.
    fn crowded(&self, edit: u32) -> bool {
        let Some(made) = self.model.made.get(edit as usize) else {
            return false;
        };
        let near = |m: &crate::model::Made| {
            m.cell == made.cell && m.writer == made.writer && (m.at - made.at).abs() < 1_000
        };
        self.model.made.iter().filter(|m| near(m)).count() > 1
    }

    /// Each row shows its CRM, and all show one value by the map.
    fn agree(&self, thing: usize, field: usize) -> Checked {
        // Nothing is left that anybody could answer for.
        let records = &self.engine.things[thing].entity.records;
        let there = |(s, r): (usize, &crm_core::state::SideRecord)| {
            r.exists && !r.deleted && self.world.mapped(field, s)
        };
        if !records.iter().enumerate().any(there) {
            return Ok(());
        }
        if self.engine.held(thing, field).is_some() {
            return self.may_stay_open(field);
        }
        let there = &self.engine.things[thing];
        let mut shown = Vec::new();
        for (side, crm) in self.crms.iter().enumerate() {
            let record = &there.entity.records[side];
            let id = record
                .record_id
                .as_ref()
                .and_then(|id| id.parse::<usize>().ok());
            let Some(id) = id.filter(|_| record.exists && !record.deleted) else {
                continue;
            };
            let row = &record.values[field];
            let at_crm = &crm.records[id].values[field];
            let state = there.entity.fields.get(&field);
            let last = state.and_then(|s| s.sides[side].sent.last());
            let refused = last.is_some_and(|w| w.sent == crm_core::state::Sent::Failed);
            if !crm.columns[field] || row.as_deref() == Some("refused") || refused {
                continue;
            }
            if !self.alike_exactly(field, row, at_crm) {
                crate::trace::note(|| format!("{:#?}", there.entity.fields.get(&field)));
                return Err(format!(
                    "t{thing} s{side} f{field}: row {row:?}, CRM {at_crm:?}"
                ));
            }
            shown.push((side, row.clone()));
        }
        // What landed late where nothing can be written stays there.
        let revived = self
            .model
            .made
            .iter()
            .any(|m| m.revived && m.cell.1 == field);
        let marked = self.forgotten.get(&(there.key, field));
        let stuck = revived || marked.is_some() || self.disturbed.contains(&there.key);
        let late = stuck && self.world.kinds[field] == Kind::Computed;
        // What a forgotten write left under our mark can look like a form of ours.
        let forgotten = marked == Some(&true);
        let refusing = late || forgotten || self.crms.iter().any(|c| c.habits.refuses);
        let alike = |a: &(usize, _), b: &(usize, _)| self.alike(field, &a.1, &b.1);
        if !refusing && shown.iter().any(|a| shown.iter().any(|b| !alike(a, b))) {
            return Err(format!("t{thing} f{field}: sides differ: {shown:?}"));
        }
        Ok(())
    }

    /// A question that a person's answer did not end.
    fn may_stay_open(&self, field: usize) -> Checked {
        let stubborn = self.crms.iter().any(|c| c.ignored > 0);
        let text = matches!(self.world.kinds[field], Kind::Text | Kind::Computed);
        if (text && !self.world.repeats && self.model.made.len() < 100) || (!text && !stubborn) {
            return Err(format!("a question about f{field} does not end"));
        }
        Ok(())
    }

    fn alike_exactly(&self, field: usize, a: &Option<String>, b: &Option<String>) -> bool {
        a == b || (self.world.kinds[field] == Kind::Choices && self.alike(field, a, b))
    }

    /// Whether two rows say the same, whatever maps and CRMs made of it.
    fn alike(&self, field: usize, a: &Option<String>, b: &Option<String>) -> bool {
        if self.world.kinds[field] == Kind::Stage {
            let last = |v: &Option<String>| v.as_ref().and_then(|v| v.chars().last());
            return last(a) == last(b);
        }
        if self.world.kinds[field] == Kind::Choices {
            let set = |v: &Option<String>| -> std::collections::BTreeSet<String> {
                let parts = v.iter().flat_map(|v| v.split(';'));
                parts.map(str::to_owned).collect()
            };
            return set(a) == set(b);
        }
        a == b || (token(a).is_some() && token(a) == token(b))
    }

    /// What stands is what the model predicts.
    fn predicted(&self, thing: usize, field: usize) -> Checked {
        let there = &self.engine.things[thing];
        let key = there.key;
        let base_is_back = self.model.made[0].revived && self.net.late_fields.contains(&field);
        let revived = base_is_back || self.model.of((key, field)).any(|(_, m)| m.revived);
        // For the new primary what a forgotten write left is somebody's edit, or under
        // our mark a form of ours.
        let forgotten = self.forgotten.contains_key(&(key, field));
        if forgotten || revived || self.engine.held(thing, field).is_some() {
            return Ok(());
        }
        let side = (0..self.crms.len()).find(|s| self.world.mapped(field, *s));
        let Some(row) = side.map(|s| self.engine.row(thing, s, field)) else {
            return Ok(());
        };
        if self.world.kinds[field].counts() {
            return self.counted((key, field), row);
        }
        let rule = self.rule(field);
        let predicted = match self.reformed[field].filter(|_| self.unlocked(field)) {
            None => self.model.predict((key, field), &rule).stands,
            Some(at) => self.after_reform((key, field), at),
        };
        if self.world.kinds[field] == Kind::Stage {
            let late = self.net.late_fields.contains(&field);
            return match late {
                true => Ok(()),
                false => self.check_stage((thing, field), row, predicted),
            };
        }
        let Some(stands) = token(row) else {
            return Err(format!(
                "t{thing} f{field} shows {row:?}, which nobody wrote"
            ));
        };
        if predicted >> stands & 1 == 1 {
            return Ok(());
        }
        let name = |set: Edits| (0..128).filter(|i| set >> i & 1 == 1).collect::<Vec<u32>>();
        Err(format!(
            "t{thing} f{field} under {:?} {:?}: V{stands:03} stands, predicted {:?}",
            rule.strategy,
            rule.winner,
            name(predicted)
        ))
    }

    /// Each edit is in the value once: the ones that are surely known are, and
    /// none is twice.
    fn counted(&self, cell: (u32, usize), row: &Option<String>) -> Checked {
        let text = row.as_deref().unwrap_or("");
        let amount = self.world.kinds[cell.1] == Kind::Amount;
        let sum: i128 = if amount {
            text.parse().unwrap_or(-1)
        } else {
            0
        };
        let late = self.net.late_fields.contains(&cell.1);
        if late || self.model.of(cell).any(|(_, m)| m.answer || m.shaken) {
            return Ok(());
        }
        for (i, made) in self.model.of(cell) {
            let times = if amount {
                ((sum >> (2 * i.min(60))) & 3) as usize
            } else {
                text.matches(&format!("V{i:03}")).count()
            };
            // While a write of ours was under way nobody can tell what an edit
            // was made on top of.
            let clear = made.calm && made.sure;
            if clear && times != 1 {
                return Err(format!("V{i:03} counts {times} times in {text:?}"));
            }
        }
        Ok(())
    }

    /// After a change of the rule: what was decided before stays until somebody
    /// writes, and from then on the new rule holds.
    fn after_reform(&self, cell: (u32, usize), at: i64) -> Edits {
        let rule = &self.engine.policy.rules[cell.1];
        let free = self.model.free(cell);
        let owned = matches!(rule.strategy, Strategy::Owner | Strategy::FillBlank);
        if !owned {
            return free;
        }
        // An edit that the engine met under the new rule and that no owner made
        // does not stand; nor does an owner's that it replaced.
        self.model.not_by_others_since(cell, rule, at, free)
    }

    /// What is at rest can be forgotten in time.
    fn settled(&self) -> Checked {
        if self.crms.iter().any(|c| c.habits.refuses) {
            return Ok(());
        }
        let later = self.now + HORIZON + 100_000;
        for thing in self.engine.things.iter().filter(|t| t.question.is_none()) {
            let whole = thing.entity.records.iter().all(|r| r.exists && !r.deleted);
            for (field, state) in &thing.entity.fields {
                let calm = !self.disturbed.contains(&thing.key);
                if whole && calm && state.hold.is_none() && !settle(state, later, HORIZON) {
                    return Err(format!("f{field} is not settled: {state:?}"));
                }
            }
        }
        Ok(())
    }
}
