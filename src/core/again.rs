//! Decisions made again because the policy changed: what is not sent yet, what a
//! person was asked, and on request the differences that stand.

use crate::carry::carry_out;
use crate::case::Frame;
use crate::case::{Decision, Keep, Outcome, Step};
use crate::echo;
use crate::effect::{self, mirror_value};
use crate::group::Group;
use crate::join::{nobodys, observation, pick};
use crate::model::{Millis, Value};
use crate::policy::{Policy, Rule};
use crate::state::{Claim, Clock, Entity, FieldState, Hold, Interval, Sent};
use crate::strategy::{Candidate, Contest, Strategy, Verdict};

/// What all fields of an entity share.
#[derive(Clone, Copy, Debug)]
pub struct Again<'a> {
    /// Group of the entity.
    pub group: &'a Group,
    /// The policy as it is now.
    pub policy: &'a Policy,
    /// The entity.
    pub entity: &'a Entity,
    /// Now.
    pub now: Millis,
    /// Longest redelivery.
    pub horizon_ms: i64,
}

impl Again<'_> {
    /// Decides a field again whose writes nobody has taken yet, or about which a
    /// person was asked. Writes in flight finish.
    pub fn unsent(&self, field: usize) -> Outcome {
        let mut outcome = Outcome::default();
        let Some(state) = self.entity.fields.get(&field) else {
            return outcome;
        };
        let queued = |w: &crate::state::SentWrite| w.sent == Sent::Queued;
        let waits = state.sides.iter().any(|s| s.sent.iter().any(queued));
        let name = &self.group.fields[field].name;
        let (Some(rule), true) = (self.policy.rule(name), waits || state.hold.is_some()) else {
            return outcome;
        };
        let entry = rule.strategy.entry();
        let lock = self.policy.lock(name);
        if lock.is_none() && (entry.merge.is_some() || entry.evaluates) {
            // What was added cannot be told any more; edits from now on count.
            return outcome;
        }
        let locked = lock.map(|lock| Rule {
            id: lock.id,
            strategy: Strategy::Owner,
            winner: lock.origins.clone(),
            ..Rule::default()
        });
        let rule = locked.as_ref().unwrap_or(rule);
        let claims = self.claims(field, state, rule);
        let Some((first, rest)) = claims.split_first() else {
            return outcome;
        };
        if rule.strategy == Strategy::Review {
            if state.hold.is_none() && !rest.is_empty() {
                self.ask(field, state, rule, &claims, &mut outcome);
            }
            return outcome;
        }
        let best = rest
            .iter()
            .fold(first, |best, c| self.better(rule, best, c));
        if state.hold.is_some() || best != first {
            self.settle(field, state, Some(rule), best, &claims, &mut outcome);
        }
        outcome
    }

    /// Decides a field anew in which the records of the entity differ. `stamps`
    /// has the records' stamps, one per side.
    pub fn differences(&self, field: usize, stamps: &[Interval]) -> Outcome {
        let mut outcome = Outcome::default();
        let (group, entity) = (self.group, self.entity);
        let stored = entity.fields.get(&field);
        let sides: Vec<usize> = (0..group.sides.len())
            .filter(|s| entity.alive(*s) && group.column(field, *s).is_some())
            .collect();
        let clock = |side: usize| {
            let seen = stored.and_then(|s| s.sides.get(side)?.seen.clone());
            seen.map_or_else(
                || {
                    let at = stamps.get(side).copied().unwrap_or_default();
                    let origin = group.origin(side);
                    self.policy.record_quality(origin).clock(at, 0, origin)
                },
                |(_, clock)| clock,
            )
        };
        let Some(pick) = pick(group, self.policy, entity, field, &sides, &clock) else {
            return outcome;
        };
        let claim = |side: usize| Claim {
            side,
            value: mirror_value(entity, side, field).clone(),
            clock: clock(side),
        };
        let claims: Vec<Claim> = sides.iter().map(|s| claim(*s)).collect();
        let fresh = effect::fresh_state(group, entity, field);
        let state = stored.unwrap_or(&fresh);
        let rule = self.policy.rule(&group.fields[field].name);
        match (pick.review, rule) {
            (Some(_), Some(rule)) => self.ask(field, state, rule, &claims, &mut outcome),
            _ => self.settle(field, state, rule, &claim(pick.side), &claims, &mut outcome),
        }
        outcome
    }

    /// The values among which a field is decided, the one held now first.
    fn claims(&self, field: usize, state: &FieldState, rule: &Rule) -> Vec<Claim> {
        let mut claims = match &state.hold {
            Some(hold) => hold.claims.clone(),
            None => vec![self.held(field, state)],
        };
        for (side, seen) in state.sides.iter().enumerate() {
            if !self.entity.alive(side) || self.group.column(field, side).is_none() {
                continue;
            }
            let named =
                rule.strategy.entry().every_change && rule.rank(self.group.origin(side)) == 0;
            let overruled = echo::queued(seen).is_some();
            let known = match &seen.seen {
                // What was agreed, seen again, is nobody's edit.
                Some((value, _)) if !named && seen.base.as_ref() == Some(value) => None,
                Some((value, clock)) if overruled || named => Some((value, clock.clone())),
                // What an owner never changed is the owner's value too.
                _ if named => echo::known(seen).map(|v| (v, self.nobodys(side))),
                _ => None,
            };
            if let Some((value, clock)) = known {
                let claim = Claim {
                    side,
                    value: value.clone(),
                    clock,
                };
                if !claims
                    .iter()
                    .any(|c| (c.side, &c.value) == (side, &claim.value))
                {
                    claims.push(claim);
                }
            }
        }
        claims
    }

    fn nobodys(&self, side: usize) -> Clock {
        nobodys(self.group.origin(side))
    }

    /// The value held, where its writer wrote it.
    fn held(&self, field: usize, state: &FieldState) -> Claim {
        let clock = state.clock.clone();
        let origin = clock.as_ref().map_or("", |c| c.origin.as_str());
        let there = |s: &usize| self.entity.alive(*s) && self.group.column(field, *s).is_some();
        let mut sides = (0..self.group.sides.len()).filter(there);
        let side = sides
            .clone()
            .find(|s| self.group.origin(*s) == origin)
            .or_else(|| sides.next())
            .unwrap_or_default();
        Claim {
            side,
            value: mirror_value(self.entity, side, field).clone(),
            clock: clock.unwrap_or_else(|| self.nobodys(side)),
        }
    }

    fn better<'c>(&self, rule: &Rule, held: &'c Claim, came: &'c Claim) -> &'c Claim {
        let candidate = |claim: &'c Claim| Candidate {
            origin: &claim.clock.origin,
            value: &claim.value,
            clock: Some(&claim.clock),
        };
        let contest = Contest {
            rule,
            incumbent: candidate(held),
            challenger: candidate(came),
            conflict: true,
            named_present: rule
                .winner
                .iter()
                .any(|w| [&held.clock.origin, &came.clock.origin].contains(&w)),
            skew_ms: self.policy.skew_ms,
        };
        match (rule.strategy.entry().apply)(&contest) {
            Verdict::Challenger => came,
            Verdict::Incumbent | Verdict::Review => held,
        }
    }

    /// One value goes to every side.
    fn settle(
        &self,
        field: usize,
        stored: &FieldState,
        rule: Option<&Rule>,
        best: &Claim,
        claims: &[Claim],
        outcome: &mut Outcome,
    ) {
        let mut state = stored.clone();
        state.hold = None;
        state.turns = None;
        state.rivals.clear();
        for side in &mut state.sides {
            side.flap = None;
        }
        let observed = observation(best.side, &best.clock);
        let frame = self.frame(&observed);
        let held = mirror_value(self.entity, best.side, field);
        let Some(mut case) = frame.case(field, &best.value, held, best.clock.clone(), state) else {
            return;
        };
        carry_out(&mut case, Step::Policy, Keep::Challenger, outcome);
        if let Some(decision) = outcome.decisions.last_mut() {
            let lost = claims
                .iter()
                .filter(|c| !effect::stands_for(&case, c.side, &c.value));
            decision.losers = lost
                .map(|c| (c.clock.origin.clone(), c.value.clone()))
                .collect();
            decision.rule = rule.map(|r| r.id);
            decision.strategy = rule.map(|r| r.strategy);
        }
        effect::store(&mut case, self.entity.fields.get(&field), outcome);
    }

    /// A person decides from now on: what waits is withdrawn, and mirrors whose
    /// CRM never got it show their own CRM again.
    fn ask(
        &self,
        field: usize,
        stored: &FieldState,
        rule: &Rule,
        claims: &[Claim],
        outcome: &mut Outcome,
    ) {
        let mut state = stored.clone();
        for (side, there) in state.sides.iter_mut().enumerate() {
            if echo::withdraw(there) {
                outcome.cancel.push((side, field));
            }
        }
        let reason = format!("policy row {} asks for a person's decision", rule.id);
        state.hold = Some(Hold {
            reason: reason.clone(),
            rule: Some(rule.id),
            claims: claims.to_vec(),
        });
        let held = self.held(field, stored);
        let losers: Vec<(String, Value)> = claims
            .iter()
            .filter(|c| *c != &held)
            .map(|c| (c.clock.origin.clone(), c.value.clone()))
            .collect();
        outcome.decisions.push(Decision {
            field,
            step: Step::Policy,
            rule: Some(rule.id),
            strategy: Some(rule.strategy),
            winner: held.clock.origin,
            value: held.value,
            merged: Vec::new(),
            evaluation: None,
            losers,
            conflict: true,
            held: Some(reason),
        });
        outcome.states.push((field, Some(state)));
    }

    fn frame<'f>(&'f self, observed: &'f crate::case::Observed) -> Frame<'f> {
        Frame {
            group: self.group,
            policy: self.policy,
            entity: self.entity,
            observed,
            now: self.now,
            horizon_ms: self.horizon_ms,
        }
    }
}
