//! What can be said of values that come back. A stage names no edit, so it may be that of
//! any edit with its value: what stands must have the value of one that may stand.

use crm_core::model::Value;

use crate::history::History;
use crate::model::{Edits, Model, Sight, Writer};
use crate::world::{CLEAR, Kind};

/// Place of a stage in the order of stages.
pub fn stage_of(value: &Value) -> Option<u32> {
    value.as_ref()?.chars().last()?.to_digit(10)
}

impl Model {
    /// Edits of a cell with the stage of a value; what was there at first is one.
    pub fn with_stage(&self, cell: (u32, usize), value: &Value) -> Vec<u32> {
        let stage = stage_of(value);
        let first = (stage == Some(1)).then_some(0);
        let same = self.of(cell).filter(|(_, m)| stage_of(&m.value) == stage);
        first.into_iter().chain(same.map(|(i, _)| i)).collect()
    }
}

/// Who knows how much of what it saw.
fn sight(edit: u32, known: Option<(i64, bool)>) -> Sight {
    let (since, own) = known.unwrap_or((i64::MAX, false));
    Sight { edit, since, own }
}

impl History {
    /// What somebody sees in a stage at a CRM: an edit made there is known, of what we
    /// wrote only that it was one of its value.
    pub fn stages_seen(&self, side: usize, id: usize, field: usize) -> Vec<Sight> {
        let record = &self.crms[side].records[id];
        let cell = (record.key, field);
        let near = match self.world.habits[side].seconds {
            true => 1_000,
            false => 0,
        };
        let mut sights = Vec::new();
        let mut newest = true;
        for (i, past) in record.history.iter().enumerate().rev() {
            let value = &past.values[field];
            if i > 0 && record.history[i - 1].values[field] == *value {
                continue;
            }
            let made = |e: &u32| &self.model.made[*e as usize];
            // Who sees a value knows all that wrote it; what was there before was not
            // written since.
            let mut all = self.model.with_stage(cell, value);
            all.retain(|e| newest || made(e).at <= past.at);
            let here =
                |e: &u32| *e > 0 && made(e).writer == Writer::Crm(side) && made(e).at == past.at;
            let exact = all.iter().copied().find(here);
            for edit in all.iter().copied().filter(|e| *e > 0) {
                let known = match exact {
                    Some(own) if own == edit => Some((past.at, past.at + near < self.now)),
                    None if newest && all.len() == 1 => Some((past.at, false)),
                    _ => None,
                };
                sights.push(sight(edit, known));
            }
            newest = false;
        }
        sights
    }

    /// The same of a row.
    pub fn stages_in_row(&self, cell: (u32, usize), row: &Value) -> Vec<Sight> {
        let all = self.model.with_stage(cell, row);
        let known = (all.len() == 1).then_some((self.now, true));
        let edits = all.into_iter().filter(|e| *e > 0);
        edits.map(|e| sight(e, known)).collect()
    }

    /// Edits that cannot be told from a write of ours of their value, or from another of
    /// their second, may be taken for it.
    pub fn doubt_stages(&mut self) {
        for i in 1..self.model.made.len() {
            let made = &self.model.made[i];
            let (Writer::Crm(side), (key, field)) = (made.writer, made.cell) else {
                continue;
            };
            if self.world.kinds[field] != Kind::Stage {
                continue;
            }
            let thing = self.engine.things.iter().position(|t| t.key == key);
            let busy = thing.is_none_or(|t| self.net.busy((t, side, field), made.at, CLEAR));
            let beside = |o: &crate::model::Made| {
                o.cell == made.cell && o.writer == made.writer && (o.at - made.at).abs() < 1_000
            };
            let crowded = self.model.made.iter().filter(|o| beside(o)).count() > 1;
            // What a page showed under a later stamp may have been made then, over what
            // another wrote meanwhile: the same value stood there.
            let (from, to) = (made.at, made.until);
            let meanwhile = self.model.of((key, field));
            let meanwhile = meanwhile.filter(|(_, m)| from < m.at && m.at <= to);
            let later: Vec<Sight> = meanwhile.map(|(e, _)| sight(e, None)).collect();
            self.model.made[i].sure &= !busy && !crowded;
            self.model.made[i].sights.extend(later);
        }
    }

    /// Whether a stage that stands is that of an edit that may.
    pub fn check_stage(
        &self,
        (thing, field): (usize, usize),
        row: &Value,
        predicted: Edits,
    ) -> Result<(), String> {
        let cell = (self.engine.things[thing].key, field);
        let some = self.model.with_stage(cell, row);
        if some.iter().any(|e| predicted >> e & 1 == 1) {
            return Ok(());
        }
        let edits = self.model.of(cell).filter(|(i, _)| predicted >> i & 1 == 1);
        let stages: Vec<_> = edits.map(|(i, m)| (i, &m.value)).collect();
        Err(format!(
            "t{thing} f{field}: {row:?} stands, predicted {stages:?}, of {some:?}"
        ))
    }
}
