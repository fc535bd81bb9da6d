//! Records that come back from the bin, and those that become part of others.

use crm_core::state::{SideRecord, SideState};

use crate::engine::Engine;
use crate::records::View;
use crate::trace::note;

impl Engine {
    /// A record is back from the bin: its thing's records were apart meanwhile.
    pub fn restored(&mut self, thing: usize, view: &View, now: i64) {
        note(|| format!("{now} restored t{thing} s{}", view.side));
        self.returned.insert((view.side, view.id), now);
        let thing = self.take_place(thing, view);
        self.things[thing].out[view.side].delete = false;
        self.things[thing].entity.records[view.side].deleted = false;
        self.ask_if_double(thing, view.side);
        self.come_back(thing, view.side, now);
        self.show_page(thing, view, now);
        // What it was tied to may belong to another thing by now.
        self.spread(thing, view.side, now);
    }

    /// What is back takes the place of a row that waits for its own create of the same
    /// thing, if it is tied to nothing else; else that create waits for a person.
    fn take_place(&mut self, thing: usize, view: &View) -> usize {
        let side = view.side;
        let waits = |i: &usize| {
            let other = &self.things[*i];
            *i != thing && other.key == view.key && other.out[side].create
        };
        let Some(heir) = (0..self.things.len()).find(waits) else {
            return thing;
        };
        self.things[heir].out[side].create = false;
        let mut others = self.things[thing].entity.records.iter().enumerate();
        if others.any(|(s, r)| s != side && r.exists && !r.deleted) {
            self.things[heir].out[side].held = true;
            self.ask(heir, "another record is this thing already");
            return thing;
        }
        note(|| format!("    takes the place of t{heir}"));
        self.leave(thing, side);
        self.things[heir].out[side].queued.clear();
        self.place(heir, view);
        heir
    }

    /// The thing has no record on this side any more.
    fn leave(&mut self, thing: usize, side: usize) {
        let row = self.new_row();
        let there = &mut self.things[thing];
        let fields = there.entity.records[side].values.len();
        there.entity.records[side] = SideRecord {
            values: vec![None; fields],
            ..SideRecord::default()
        };
        there.out[side] = row;
        there.stamps[side] = None;
        for state in there.entity.fields.values_mut() {
            state.sides[side] = SideState::default();
        }
    }

    /// A record became part of another: what survives is met like any record.
    pub fn merged(&mut self, side: usize, loser: usize, into_key: u32) {
        let Some(gone) = self.find(side, loser) else {
            return;
        };
        note(|| format!("merged t{gone} s{side} r{loser} into one of key {into_key}"));
        self.leave(gone, side);
        let there = &self.things[gone];
        let rest = there.entity.records.iter().any(|r| r.exists && !r.deleted);
        if rest && there.key != into_key {
            self.ask(gone, "its record became part of another");
        }
    }
}
