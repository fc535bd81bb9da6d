//! Decisions about loaded records that no event causes: a person's answer, a
//! new tie.

use crm_core::decide::{Decision, Observed, Outcome, Source};
use crm_core::join::{self, Resolution};
use crm_core::model::Millis;
use crm_core::state::Interval;

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
        let stamps: Vec<Interval> = self
            .rows
            .iter()
            .map(|row| match row.as_ref().map_or(0, |r| r.modified_at) {
                0 => Interval { from: 0, to: now },
                at => Interval::instant(at),
            })
            .collect();
        let outcome = join::join(
            &info.group,
            &info.policy,
            &self.entity,
            &stamps,
            0,
            now,
            HORIZON_MS,
        );
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
