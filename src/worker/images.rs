//! What users' functions make of values, gathered before and while records are
//! decided. The core names what it needs; this is where it is called.

use std::collections::{BTreeMap, BTreeSet};

use crm_core::decide::{self, Observed, Outcome};
use crm_core::group::Group;
use crm_core::mapping::{self, Images, Transform};
use crm_core::model::{Millis, Value};
use crm_core::state::Entity;

use crate::pg::store::functions;
use crate::worker::cases::{Case, HORIZON_MS};
use crate::worker::counterparts::Known;
use crate::worker::repolicy;
use crate::worker::world::{GroupInfo, World};

/// How often a decision may ask for more: an image, and images of that image.
pub(crate) const ROUNDS: usize = 6;

/// Function and value.
type Asked = (u32, String);

/// The images of values, each function called once for all of its values.
pub(crate) fn evaluate(
    world: &World,
    asked: BTreeSet<Asked>,
) -> Vec<(Asked, Result<Value, String>)> {
    let mut by_function: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for (function, value) in asked {
        by_function.entry(function).or_default().push(value);
    }
    let mut out = Vec::new();
    for (function, values) in by_function {
        let signature = usize::try_from(function)
            .ok()
            .and_then(|n| world.functions.get(n))
            .map_or("", String::as_str);
        let images = functions::images(signature, values.clone()).unwrap_or_else(|e| {
            let reason = e.to_string();
            values.iter().map(|_| Err(reason.clone())).collect()
        });
        out.extend(values.into_iter().map(|v| (function, v)).zip(images));
    }
    out
}

/// Fields of a group whose maps call functions.
pub(crate) fn fields_with_functions(group: &Group) -> Vec<usize> {
    let calls = |t: &Transform| matches!(t, Transform::Function(_));
    let field = |f: &usize| {
        let sides = group.fields[*f].sides.iter().flatten();
        sides
            .into_iter()
            .any(|s| calls(&s.to_side) || calls(&s.from_side))
    };
    (0..group.fields.len()).filter(field).collect()
}

/// Asks for the images that deciding a value of a side may need.
fn ask(group: &Group, field: usize, side: usize, value: &Value, images: &Images) {
    let Some(here) = group.column(field, side) else {
        return;
    };
    for other in (0..group.sides.len()).filter(|s| *s != side) {
        if let Some(there) = group.column(field, other)
            && let Ok(image) = mapping::between(here, there, value, images)
        {
            // Whether what comes back is the same again is asked too.
            let _ = mapping::between(there, here, &image, images);
        }
    }
}

/// Gathers for many cases what their decisions will ask for. `coming` holds
/// values about to be observed on a side: case, field, value.
pub(crate) fn warm(
    world: &World,
    cases: &mut [Case],
    side: usize,
    coming: &[(usize, usize, Value)],
) {
    let Some(info) = cases.first().map(|c| &world.groups[c.group]) else {
        return;
    };
    if info.with_functions.is_empty() {
        return;
    }
    for _ in 0..ROUNDS {
        let mut askers: BTreeMap<Asked, Vec<usize>> = BTreeMap::new();
        for (i, field, value) in coming {
            if !info.with_functions.contains(field) {
                continue;
            }
            let Entity {
                records, images, ..
            } = &cases[*i].entity;
            for (side, record) in records.iter().enumerate() {
                ask(&info.group, *field, side, &record.values[*field], images);
            }
            ask(&info.group, *field, side, value, images);
            for asked in images.take_missing() {
                askers.entry(asked).or_default().push(*i);
            }
        }
        if askers.is_empty() {
            return;
        }
        for (asked, image) in evaluate(world, askers.keys().cloned().collect()) {
            for i in askers.get(&asked).into_iter().flatten() {
                let images = &mut cases[*i].entity.images;
                images.put(asked.0, asked.1.clone(), image.clone());
            }
        }
    }
}

/// The images that new records on side `to` will need: one set for all of them.
pub(crate) fn for_new(world: &World, info: &GroupInfo, to: usize, all: &[Known]) -> Images {
    let mut images = Images::default();
    if info.with_functions.is_empty() {
        return images;
    }
    for _ in 0..ROUNDS {
        for known in all {
            let known: Vec<_> = known.iter().map(|(s, v)| (*s, v.as_slice())).collect();
            mapping::project_from(&info.group, &known, to, &images);
        }
        let missing = images.take_missing();
        if missing.is_empty() {
            break;
        }
        for ((function, value), image) in evaluate(world, missing) {
            images.put(function, value, image);
        }
    }
    images
}

impl Case {
    /// What the core decides; images that it lacks are made, and it decides again.
    pub(super) fn outcome(&mut self, world: &World, observed: &Observed, now: Millis) -> Outcome {
        let info = &world.groups[self.group];
        let (group, policy) = (&info.group, &info.policy);
        // What is out of scope is not there for this decision.
        let there: Vec<bool> = (self.hidden.iter())
            .map(|side| std::mem::take(&mut self.entity.records[*side].exists))
            .collect();
        let mut rounds = 0;
        let mut observed = observed.clone();
        loop {
            let outcome = decide::decide(group, policy, &self.entity, &observed, now, HORIZON_MS);
            if !outcome.questions.is_empty() && observed.evaluations.is_empty() {
                observed = repolicy::answered(&observed, &outcome.questions);
                continue;
            }
            let missing = self.entity.images.take_missing();
            rounds += 1;
            if missing.is_empty() || rounds > ROUNDS {
                for (side, exists) in self.hidden.iter().zip(there) {
                    self.entity.records[*side].exists = exists;
                }
                return outcome;
            }
            for ((function, value), image) in evaluate(world, missing) {
                self.entity.images.put(function, value, image);
            }
        }
    }
}
