//! Decisions about loaded records that no event causes: a person's answer, a
//! new tie.

use crm_core::decide::{Decision, Observed, Outcome, Source};
use crm_core::join::{self, Resolution};
use crm_core::model::Millis;
use crm_core::state::Interval;

use crate::pg::store::rows::Row;
use crate::worker::cases::{Case, HORIZON_MS};
use crate::worker::world::World;

impl Case {
    /// Lets the core carry out a person's answer; rows of sides other than
    /// `side` count as carried.
    pub(crate) fn resolve(
        &mut self,
        world: &World,
        side: usize,
        resolution: &Resolution,
        now: Millis,
    ) -> Vec<Decision> {
        let info = &world.groups[self.group];
        let outcome = join::resolve(
            &info.group,
            &info.policy,
            &self.entity,
            resolution,
            now,
            HORIZON_MS,
        );
        self.source.clone_from(&resolution.clock.origin);
        self.keep(world, side, outcome)
    }

    /// Brings the rows together as if they had never agreed; `side` as above.
    pub(crate) fn join(&mut self, world: &World, side: usize, now: Millis) -> Vec<Decision> {
        let info = &world.groups[self.group];
        let stamps = self.stamps_of_rows(now);
        let (group, policy) = (&info.group, &info.policy);
        let outcome = join::join(group, policy, &self.entity, &stamps, 0, now, HORIZON_MS);
        self.joined(world, side, outcome)
    }

    /// Brings the row of a record that is back together with the others.
    pub(crate) fn returned(&mut self, world: &World, side: usize, now: Millis) -> Vec<Decision> {
        let info = &world.groups[self.group];
        let stamps = self.stamps_of_rows(now);
        let (group, policy, entity) = (&info.group, &info.policy, &mut self.entity);
        let by = (stamps.as_slice(), 0);
        let outcome = join::returned(group, policy, entity, side, by, now, HORIZON_MS);
        self.joined(world, side, outcome)
    }

    /// Brings the row of a record together with the others that takes the place of one.
    pub(crate) fn succeeded(&mut self, world: &World, side: usize, now: Millis) -> Vec<Decision> {
        let info = &world.groups[self.group];
        let stamps = self.stamps_of_rows(now);
        let (group, policy, entity) = (&info.group, &info.policy, &self.entity);
        let by = (stamps.as_slice(), 0);
        let outcome = join::succeeded(group, policy, entity, side, by, now, HORIZON_MS);
        self.joined(world, side, outcome)
    }

    fn stamps_of_rows(&self, now: Millis) -> Vec<Interval> {
        let stamp = |row: &Option<Row>| match row.as_ref().map_or(0, |r| r.modified_at) {
            0 => Interval { from: 0, to: now },
            at => Interval::instant(at),
        };
        self.rows.iter().map(stamp).collect()
    }

    fn joined(&mut self, world: &World, side: usize, outcome: Outcome) -> Vec<Decision> {
        for decision in &outcome.decisions {
            self.source.clone_from(&decision.winner);
        }
        self.keep(world, side, outcome)
    }

    fn keep(&mut self, world: &World, side: usize, outcome: Outcome) -> Vec<Decision> {
        self.name_writers(&world.groups[self.group], &outcome);
        let observed = Observed {
            side,
            source: Source::Page,
            ..Observed::default()
        };
        self.absorb(&world.groups[self.group].group, outcome, &observed)
    }
}
