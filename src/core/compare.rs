//! What differs between the records of one entity, and what keeps it so.

use crate::effect::mirror_value;
use crate::group::{Group, SideField};
use crate::mapping::{Images, between, fits};
use crate::model::Value;
use crate::state::{Entity, FieldState, Sent, SideState};
use crate::value::same;

/// Why two sides show different values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The map lets no value pass between these two sides.
    ByDesign,
    /// A person is asked; why.
    Asked(String),
    /// A write of this field is on its way.
    Pending,
    /// The CRM of this side refused the value.
    Refused(usize),
    /// This side cannot show what the other holds; why.
    Unmapped(usize, String),
    /// Values flow from this side only, and it has not changed since.
    OneWay(usize),
    /// Nothing stands in the way: nobody changed the field since the sides met.
    Apart,
}

/// A field that two sides show differently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Field of the group.
    pub field: usize,
    /// The other side.
    pub other: usize,
    /// What the side in question shows.
    pub ours: Value,
    /// What the other side shows.
    pub theirs: Value,
    /// What keeps it so.
    pub obstacle: Obstacle,
}

/// Compares one side of an entity with all others, field by field, under the
/// maps. Values that mean the same in another spelling are no difference.
pub fn differences(group: &Group, entity: &Entity, side: usize) -> Vec<Difference> {
    let mut found = Vec::new();
    for field in 0..group.fields.len() {
        for other in (0..group.sides.len()).filter(|s| *s != side && entity.alive(*s)) {
            let (Some(own), Some(their)) = (group.column(field, side), group.column(field, other))
            else {
                continue;
            };
            let ours = mirror_value(entity, side, field);
            let theirs = mirror_value(entity, other, field);
            let images = &entity.images;
            if agree((own, ours), (their, theirs), images) {
                continue;
            }
            let state = entity.fields.get(&field);
            found.push(Difference {
                field,
                other,
                ours: ours.clone(),
                theirs: theirs.clone(),
                obstacle: obstacle((side, own, ours), (other, their, theirs), state, images),
            });
        }
    }
    found
}

/// Whether either value stands for the other.
fn agree(a: (&SideField, &Value), b: (&SideField, &Value), images: &Images) -> bool {
    let image = |from: (&SideField, &Value), to: (&SideField, &Value)| {
        between(from.0, to.0, from.1, images).is_ok_and(|v| same(to.0.field_type, &v, to.1))
    };
    image(a, b) || image(b, a)
}

fn obstacle(
    own: (usize, &SideField, &Value),
    their: (usize, &SideField, &Value),
    state: Option<&FieldState>,
    images: &Images,
) -> Obstacle {
    let flows = |from: &SideField, to: &SideField| from.inbound && to.accepts_writes();
    let (there, here) = (flows(own.1, their.1), flows(their.1, own.1));
    if !there && !here {
        return Obstacle::ByDesign;
    }
    if let Some(hold) = state.and_then(|s| s.hold.as_ref()) {
        return Obstacle::Asked(hold.reason.clone());
    }
    for side in [own.0, their.0] {
        let last = state.and_then(|s| s.sides.get(side)).and_then(last_sent);
        match last {
            Some(Sent::Queued | Sent::InFlight { .. } | Sent::Unknown { .. }) => {
                return Obstacle::Pending;
            }
            Some(Sent::Failed) => return Obstacle::Refused(side),
            Some(Sent::Answered { .. }) | None => {}
        }
    }
    let blocked = |from: (usize, &SideField, &Value), to: (usize, &SideField, &Value)| {
        let image = between(from.1, to.1, from.2, images).and_then(|v| fits(to.1, &v).map(|()| v));
        image.err().map(|e| Obstacle::Unmapped(to.0, e.to_string()))
    };
    let outward = there.then(|| blocked(own, their)).flatten();
    let inward = || here.then(|| blocked(their, own)).flatten();
    let free = match (there, here) {
        (true, false) => Obstacle::OneWay(own.0),
        (false, true) => Obstacle::OneWay(their.0),
        _ => Obstacle::Apart,
    };
    outward.or_else(inward).unwrap_or(free)
}

fn last_sent(side: &SideState) -> Option<Sent> {
    side.sent.last().map(|w| w.sent)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test panics")]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::group::{GroupField, Side};
    use crate::mapping::Transform;
    use crate::state::{Clock, Hold, Interval, SentWrite, SideRecord};

    fn group(left: SideField, right: SideField) -> Group {
        let side = |origin: &str| Side {
            origin: origin.to_owned(),
            live: true,
            ..Side::default()
        };
        Group {
            id: 1,
            sides: vec![side("left"), side("right")],
            fields: vec![GroupField {
                name: "phone".to_owned(),
                sides: vec![Some(left), Some(right)],
            }],
        }
    }

    fn entity(left: &str, right: &str) -> Entity {
        let record = |value: &str| SideRecord {
            exists: true,
            values: vec![Some(value.to_owned())],
            ..SideRecord::default()
        };
        Entity {
            records: vec![record(left), record(right)],
            ..Entity::default()
        }
    }

    fn the_obstacle(group: &Group, entity: &Entity) -> Obstacle {
        let mut found = differences(group, entity, 0);
        assert_eq!(found.len(), 1);
        found.remove(0).obstacle
    }

    #[test]
    fn values_that_stand_for_each_other_are_no_difference() {
        let mut url = SideField::text("Website");
        url.to_side = Transform::UrlOfDomain;
        url.from_side = Transform::DomainOfUrl;
        let group = group(SideField::text("domain"), url);
        let same = entity("acme.com", "https://www.acme.com/about");
        assert_eq!(differences(&group, &same, 0), []);
        assert_eq!(differences(&group, &same, 1), []);
        let other = entity("acme.com", "https://acme.org");
        assert_eq!(the_obstacle(&group, &other), Obstacle::Apart);
    }

    #[test]
    fn a_map_that_lets_nothing_pass_is_told_from_one_that_has_no_image() {
        let (left, mut right) = (SideField::text("a"), SideField::text("b"));
        right.to_side = Transform::ValueMap(Arc::new(vec![("1".to_owned(), "one".to_owned())]));
        right.from_side = Transform::ValueMap(Arc::new(vec![("one".to_owned(), "1".to_owned())]));
        let stuck = the_obstacle(&group(left.clone(), right.clone()), &entity("2", "one"));
        let Obstacle::Unmapped(1, why) = stuck else {
            panic!("{stuck:?}");
        };
        assert!(why.contains("'2'"), "{why}");
        right.outbound = false;
        right.inbound = false;
        let shut = the_obstacle(&group(left, right), &entity("2", "one"));
        assert_eq!(shut, Obstacle::ByDesign);
    }

    #[test]
    fn a_map_of_one_direction_is_named_as_what_keeps_values_apart() {
        let (left, mut right) = (SideField::text("a"), SideField::text("b"));
        right.inbound = false;
        let to_right = the_obstacle(&group(left.clone(), right.clone()), &entity("1", "2"));
        assert_eq!(to_right, Obstacle::OneWay(0));
        (right.inbound, right.outbound) = (true, false);
        let to_left = the_obstacle(&group(left, right), &entity("1", "2"));
        assert_eq!(to_left, Obstacle::OneWay(1));
    }

    #[test]
    fn a_question_comes_before_a_write_and_a_refusal_names_its_side() {
        let group = group(SideField::text("a"), SideField::text("b"));
        let mut entity = entity("1", "2");
        let clock = Clock {
            at: Interval::instant(1),
            seq: 1,
            origin: "left".to_owned(),
            ..Clock::default()
        };
        let write = |sent: Sent| SentWrite {
            sent,
            ..SentWrite::queued(&Some("1".to_owned()), &clock)
        };
        let mut state = FieldState {
            sides: vec![SideState::default(), SideState::default()],
            ..FieldState::default()
        };
        state.sides[1].sent.push(write(Sent::Queued));
        entity.fields.insert(0, state.clone());
        assert_eq!(the_obstacle(&group, &entity), Obstacle::Pending);
        state.sides[1].sent[0] = write(Sent::Failed);
        entity.fields.insert(0, state.clone());
        assert_eq!(the_obstacle(&group, &entity), Obstacle::Refused(1));
        state.hold = Some(Hold {
            reason: "why".to_owned(),
            ..Hold::default()
        });
        entity.fields.insert(0, state);
        let asked = the_obstacle(&group, &entity);
        assert_eq!(asked, Obstacle::Asked("why".to_owned()));
    }
}
