//! Everything between the engine and the CRMs: events, reads, calls and their
//! results, each of which may be late, lost, doubled or out of order.

use std::collections::HashMap;

use crm_core::decide::Source;
use crm_core::model::{Mark, Value};
use crm_core::state::Interval;

use crate::engine::Seen;
use crate::history::History;
use crate::model::{Writer, token};
use crate::outbox::{Flying, Result as Answer};
use crate::records::View;
use crate::trace::note;
use crate::world::Kind;

/// An event of a CRM about one record.
#[derive(Clone, Debug)]
pub struct Event {
    pub side: usize,
    pub id: usize,
    pub values: Vec<(usize, Value)>,
    pub at: Interval,
    pub mark: Mark,
    /// The record was made, removed, restored or merged: read it.
    pub reread: bool,
    pub identity: u64,
}

/// Something under way.
#[derive(Clone, Debug)]
pub enum Message {
    Event(Event),
    Page(View),
    Call {
        place: (usize, usize),
        id: Option<usize>,
        flying: Flying,
        fate: Fate,
    },
    Result {
        place: (usize, usize),
        claim: i64,
        result: Answer,
    },
    /// A write in doubt is looked for.
    Look {
        place: (usize, usize),
        claim: i64,
    },
}

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Fine,
    Refused,
    LostBefore,
    LostAfter,
    /// It lands long after we stopped waiting.
    Late,
}

/// What is under way, and what became of the writes.
#[derive(Default)]
pub struct Network {
    queue: Vec<(i64, Message)>,
    /// Delivered since the stand-by's state: it is told again.
    pub since_standby: Vec<Message>,
    /// From claim to settled, per thing, side and field.
    unsettled: HashMap<(usize, usize, usize), Vec<(i64, i64)>>,
    identities: u64,
    /// Fields of which a write landed long after it was given up.
    pub late_fields: Vec<usize>,
    /// What pages showed, by side, record and the second of their stamp.
    pub paged: HashMap<(usize, usize, i64), Vec<Vec<Value>>>,
    /// What the first check found, before people answered questions.
    pub early: Option<String>,
}

impl Network {
    pub fn push(&mut self, due: i64, message: Message) {
        self.queue.push((due, message));
    }

    /// When the newest event of the same second of a record arrives.
    fn last_due(&self, event: &Event) -> Option<i64> {
        let same = |m: &Message| match m {
            Message::Event(e) => {
                (e.side, e.id) == (event.side, event.id) && e.at.overlaps(event.at)
            }
            _ => false,
        };
        let due = self.queue.iter().filter(|(_, m)| same(m));
        due.map(|(due, _)| *due).max()
    }

    fn next_due(&self) -> Option<i64> {
        self.queue.iter().map(|(due, _)| *due).min()
    }

    fn pop(&mut self) -> Option<(i64, Message)> {
        let next = self
            .queue
            .iter()
            .enumerate()
            .min_by_key(|(_, (due, _))| *due);
        let place = next?.0;
        Some(self.queue.remove(place))
    }

    /// Whether a write of ours was under way there within `margin` of `at`.
    pub fn busy(&self, cell: (usize, usize, usize), at: i64, margin: i64) -> bool {
        let writes = self.unsettled.get(&cell);
        let near = |(from, to): &(i64, i64)| from - margin <= at && at <= to.saturating_add(margin);
        writes.is_some_and(|w| w.iter().any(near))
    }

    /// Things, sides and fields of writes that were claimed since.
    pub fn claimed_since(&self, at: i64) -> Vec<(usize, usize, usize)> {
        let since = |w: &Vec<(i64, i64)>| w.iter().any(|(from, _)| *from >= at);
        let cells = self.unsettled.iter().filter(|(_, w)| since(w));
        cells.map(|(cell, _)| *cell).collect()
    }

    fn claimed(&mut self, place: (usize, usize), flying: &Flying) {
        for (field, _) in &flying.values {
            let cell = (place.0, place.1, *field);
            let open = (flying.claim, i64::MAX);
            self.unsettled.entry(cell).or_default().push(open);
        }
    }

    fn settled(&mut self, place: (usize, usize), values: &[(usize, Value)], now: i64) {
        for (field, _) in values {
            let writes = self.unsettled.entry((place.0, place.1, *field));
            for (_, to) in writes.or_default() {
                *to = now.min(*to);
            }
        }
    }

    /// Results died with the old primary; what was delivered is told again.
    pub fn fail_over(&mut self) {
        let lost = |m: &Message| matches!(m, Message::Result { .. } | Message::Look { .. });
        self.queue.retain(|(_, m)| !lost(m));
        for message in std::mem::take(&mut self.since_standby) {
            self.queue.push((0, message));
        }
    }
}

impl History {
    /// The CRM tells of a change: maybe late, twice, or not at all.
    pub fn announce(&mut self, side: usize, id: usize, fields: &[usize], ours: bool) -> bool {
        let crm = &self.crms[side];
        let record = &crm.records[id];
        let at = crm.shown(record.stamp);
        let values: Vec<(usize, Value)> = fields
            .iter()
            .map(|f| (*f, record.values[*f].clone()))
            .collect();
        let single = crm.habits.single_fields && !values.is_empty();
        let parts: Vec<Vec<(usize, Value)>> = if single {
            values.into_iter().map(|v| vec![v]).collect()
        } else {
            vec![values]
        };
        let mut told = true;
        for values in parts {
            self.net.identities += 1;
            // Some programs of others leave no name.
            let named = !self.net.identities.is_multiple_of(4);
            let mark = match (self.crms[side].habits.marks, ours) {
                (true, true) => Mark::Ours,
                (true, false) if named => Mark::Others,
                _ => Mark::None,
            };
            let event = Event {
                side,
                id,
                reread: values.is_empty(),
                values,
                at,
                mark,
                identity: self.net.identities,
            };
            // A stream that shows whole seconds tells the edits of one in order.
            let ordered = self.crms[side].habits.seconds;
            let copies = match self.rng.below(20) {
                0 if self.faults => 0,
                1 | 2 if self.faults && !ordered => 2,
                _ => 1,
            };
            told &= copies > 0;
            let before = self.net.last_due(&event).filter(|_| ordered);
            for _ in 0..copies {
                let due = self.now + self.rng.delay();
                let due = before.map_or(due, |b| due.max(b + 1));
                self.net.push(due, Message::Event(event.clone()));
            }
        }
        told
    }

    /// Reads a record as an index shows it that is `lag` old.
    pub fn read(&mut self, side: usize, id: usize, lag: i64) {
        let crm = &self.crms[side];
        let record = &crm.records[id];
        if record.history.first().is_none_or(|p| p.at > self.now - lag) {
            return;
        }
        let past = crm.as_of(id, self.now - lag);
        let stamp = past.stamp - crm.habits.offset;
        for (field, value) in past.values.iter().enumerate() {
            let edits = match crm.kinds[field] {
                Kind::Stage => self.model.with_stage((record.key, field), value),
                _ => token(value).into_iter().collect(),
            };
            for edit in edits.into_iter().filter(|e| *e > 0) {
                if let Some(made) = self.model.made.get_mut(edit as usize)
                    && made.writer == Writer::Crm(side)
                {
                    made.until = made.until.max(stamp);
                }
            }
        }
        if crm.habits.seconds {
            let page = (side, id, past.stamp.div_euclid(1_000));
            let shown = self.net.paged.entry(page).or_default();
            if !shown.contains(&past.values) {
                shown.push(past.values.clone());
            }
        }
        let view = View {
            side,
            id,
            key: record.key,
            unique: record.unique.clone(),
            values: past.values,
            at: crm.shown(past.stamp),
            deleted: past.deleted,
            asked_at: (lag == 0).then_some(self.now),
            merged: record.merged.map(|into| crm.records[into].key),
        };
        let due = self.now + self.rng.delay();
        self.net.push(due, Message::Page(view));
    }

    /// Lets time pass and everything due arrive.
    pub fn advance(&mut self) {
        let until = self.now + self.rng.delay();
        loop {
            if self.rng.chance(60) {
                self.engine.drain(self.now);
            }
            self.engine.expire(self.now);
            if self.world.records {
                self.engine.retry(self.now);
            }
            self.look();
            self.send_some();
            match self.net.next_due() {
                Some(due) if due <= until => {
                    self.now = self.now.max(due);
                    if let Some((_, message)) = self.net.pop() {
                        self.deliver(message);
                    }
                    if self.faults && self.rng.chance(2) {
                        self.crash();
                    }
                }
                _ => break,
            }
        }
        self.now = until.max(self.now);
    }

    fn send_some(&mut self) {
        for thing in 0..self.engine.things.len() {
            for side in 0..self.crms.len() {
                if !self.engine.things[thing].out[side].idle() && self.rng.chance(70) {
                    self.send((thing, side));
                }
            }
        }
    }

    fn send(&mut self, place: (usize, usize)) {
        let Some(flying) = self.engine.claim(place.0, place.1, self.now) else {
            return;
        };
        self.net.claimed(place, &flying);
        let fate = match self.rng.below(25) {
            0 if self.faults => Fate::Refused,
            1 if self.faults => Fate::LostBefore,
            2 if self.faults => Fate::LostAfter,
            3 if self.faults && self.rng.chance(25) => Fate::Late,
            // The process dies between claim and call.
            4 if self.faults => return,
            _ => Fate::Fine,
        };
        let late = if fate == Fate::Late { 45_000 } else { 0 };
        let due = self.now + late + self.rng.below(400) as i64;
        if fate == Fate::Late {
            let result = Message::Result {
                place,
                claim: flying.claim,
                result: Answer::Unknown,
            };
            self.net.push(self.now + 10_000, result);
        }
        let record = &self.engine.things[place.0].entity.records[place.1];
        let id = record.record_id.as_ref().and_then(|id| id.parse().ok());
        let call = Message::Call {
            place,
            id,
            flying,
            fate,
        };
        self.net.push(due, call);
    }

    /// Writes in doubt are read back.
    fn look(&mut self) {
        for thing in 0..self.engine.things.len() {
            for side in 0..self.crms.len() {
                let flying = &mut self.engine.things[thing].out[side].flying;
                if let Some(f) = flying.as_mut().filter(|f| f.doubt) {
                    f.doubt = false;
                    let claim = f.claim;
                    let due = self.now + self.rng.below(1_000) as i64;
                    let place = (thing, side);
                    self.net.push(due, Message::Look { place, claim });
                }
            }
        }
    }

    fn deliver(&mut self, message: Message) {
        // Streams are told again, pages are asked for anew.
        let stream = matches!(message, Message::Event(_));
        if stream && self.standby.is_some() {
            self.net.since_standby.push(message.clone());
        }
        match message {
            Message::Event(event) => self.event(event),
            Message::Page(view) => {
                if !self.engine.read(&view, self.now) {
                    self.net.push(self.now + 5_000, Message::Page(view));
                }
            }
            Message::Call {
                place,
                id,
                flying,
                fate,
            } => self.call(place, id, flying, fate),
            Message::Result {
                place,
                claim,
                result,
            } => self.result(place, claim, result),
            Message::Look { place, claim } => self.looked(place, claim),
        }
        self.read_wanted();
    }

    fn event(&mut self, event: Event) {
        if let Some(taken) = &mut self.engine.taken
            && !taken.insert(event.identity)
        {
            return;
        }
        let thing = self.engine.find(event.side, event.id);
        let Some(thing) = thing.filter(|_| !event.reread) else {
            self.read(event.side, event.id, 0);
            return;
        };
        self.engine.drain(self.now);
        let seen = Seen {
            side: event.side,
            source: Source::Remote,
            values: event.values,
            at: event.at,
            mark: event.mark,
            asked_at: None,
        };
        self.engine.show(thing, &seen, self.now);
    }

    /// Reads what decisions want to see.
    fn read_wanted(&mut self) {
        for (thing, side) in std::mem::take(&mut self.engine.rereads) {
            let id = &self.engine.things[thing].entity.records[side].record_id;
            if let Some(id) = id.as_ref().and_then(|id| id.parse().ok()) {
                self.read(side, id, 0);
            }
        }
    }

    pub fn result(&mut self, place: (usize, usize), claim: i64, result: Answer) {
        // The new primary knows nothing of the thing.
        if place.0 >= self.engine.things.len() {
            return;
        }
        let flying = self.engine.things[place.0].out[place.1].flying.clone();
        if let Some(flying) = flying.filter(|f| f.claim == claim)
            && !matches!(result, Answer::Unknown | Answer::NotSeen)
        {
            self.net.settled(place, &flying.values, self.now);
        }
        self.engine.result(place, claim, result, self.now);
    }

    /// The process dies: results under way are lost, what it was told last is
    /// told again, and what is stored is all that is left.
    pub fn crash(&mut self) {
        note(|| format!("{} crash", self.now));
        let lost = |m: &Message| matches!(m, Message::Result { .. } | Message::Look { .. });
        self.net.queue.retain(|(_, m)| !lost(m));
        let mut again = Vec::new();
        for (_, message) in &self.net.queue {
            let Message::Event(event) = message else {
                continue;
            };
            if !self.crms[event.side].habits.seconds && self.rng.chance(30) {
                again.push((self.now, message.clone()));
            }
        }
        self.net.queue.extend(again);
        self.engine.restart();
    }

    /// Faults end, everything arrives, every record is read again until nothing
    /// more follows.
    pub fn quiet(&mut self) -> Result<(), String> {
        self.faults = false;
        let mut calm = 0;
        for _ in 0..80 {
            let before = self.engine.sent;
            let mut turns = 0;
            while !self.net.queue.is_empty() || self.flying() {
                self.now += 1_000;
                self.advance();
                turns += 1;
                if turns > 5_000 {
                    return Err("never empty".to_owned());
                }
            }
            self.now += 100_000;
            self.advance();
            let busy = self
                .engine
                .things
                .iter()
                .any(|t| t.waits || t.out.iter().any(|o| !o.idle()));
            for side in 0..self.crms.len() {
                for id in 0..self.crms[side].records.len() {
                    self.read(side, id, 0);
                }
            }
            let idle = before == self.engine.sent && !busy && self.engine.log.is_empty();
            calm = if idle { calm + 1 } else { 0 };
            if calm == 3 {
                return Ok(());
            }
        }
        let waits = |t: &crate::engine::Thing| t.waits || t.out.iter().any(|o| !o.idle());
        let open = self
            .engine
            .things
            .iter()
            .find(|t| waits(t))
            .map(|t| (t.waits, &t.out));
        Err(format!("never quiet: {open:?}"))
    }

    fn flying(&self) -> bool {
        let outs = self.engine.things.iter().flat_map(|t| &t.out);
        outs.into_iter().any(|o| o.flying.is_some())
    }
}
