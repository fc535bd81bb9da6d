//! What must hold for whole records after quiet.

use crate::history::History;

impl History {
    /// Each thing has one record per side, made once; what is doubled or apart
    /// is asked about.
    pub fn check_records(&self) -> Result<(), String> {
        for (side, crm) in self.crms.iter().enumerate() {
            let mut rows = std::collections::HashSet::new();
            let made = crm.records.iter().filter_map(|r| r.made_as.as_ref());
            for row in made {
                if !rows.insert(row) {
                    return Err(format!("s{side}: two records were made for row {row}"));
                }
            }
            for key in 1..=self.last_key() {
                let of_key = |r: &&crate::crm::Record| r.key == key && r.made_as.is_some();
                let made = crm.records.iter().filter(of_key).count();
                let things = self.engine.things.iter().filter(|t| t.key == key).count();
                let merged = |r: &&crate::crm::Record| r.key == key && r.merged.is_some();
                // A new primary makes anew what it forgot; each row is made once.
                let forgot = self.failed_over.is_some();
                if made > things && !forgot && !crm.records.iter().any(|r| merged(&r)) {
                    return Err(format!("s{side}: {made} records made for {things} things"));
                }
                self.check_key(side, key)?;
            }
        }
        Ok(())
    }

    fn check_key(&self, side: usize, key: u32) -> Result<(), String> {
        let crm = &self.crms[side];
        let live = crm.with_key(key);
        let open = |t: &crate::engine::Thing| t.question.is_some() || t.out.iter().any(|o| o.held);
        let asked = |t: &&crate::engine::Thing| t.key == key && open(t);
        if self.engine.things.iter().any(|t| asked(&t)) || self.failed_over.is_some() {
            return Ok(());
        }
        for id in &live {
            let Some(thing) = self.engine.find(side, *id) else {
                return Err(format!("s{side} r{id} is nobody's"));
            };
            if self.engine.things[thing].entity.records[side].deleted {
                return Err(format!("s{side} r{id} is there, its row says removed"));
            }
        }
        if live.len() > 1 {
            return Err(format!(
                "s{side}: {live:?} are one thing and nobody was asked"
            ));
        }
        for (i, thing) in self
            .engine
            .things
            .iter()
            .enumerate()
            .filter(|(_, t)| t.key == key)
        {
            let record = &thing.entity.records[side];
            let alive = record.exists && !record.deleted;
            let there = record
                .record_id
                .as_ref()
                .and_then(|id| id.parse::<usize>().ok())
                .map(|id| crm.records[id].deleted || crm.records[id].merged.is_some());
            if alive && there != Some(false) {
                return Err(format!("t{i} s{side}: a row without a record: {record:?}"));
            }
            let elsewhere = thing.entity.records.iter().any(|r| r.exists && !r.deleted);
            let merged = crm
                .records
                .iter()
                .any(|r| r.key == key && r.merged.is_some());
            if !record.exists && elsewhere && !merged {
                return Err(format!("t{i} has no record on s{side}"));
            }
        }
        Ok(())
    }
}
