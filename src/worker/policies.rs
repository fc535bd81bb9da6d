//! The policy of a group, from the rows of its links.

use std::collections::BTreeMap;

use crm_core::policy::{FieldLock, Policy, Rule};
use crm_core::stamps::{Exactness, Quality, StampRule};
use crm_core::strategy::{LOCAL, by_name};

use crate::pg::store::config::{LinkRow, LockRow, PolicyRow, StampRow};
use crate::worker::world::{GroupInfo, Mirror};

/// Tolerance where no default row says one.
const SKEW_MS: i64 = 2_000;

/// All rows, and the version that they are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PolicyRows<'a> {
    pub(crate) version: i64,
    pub(crate) policies: &'a [PolicyRow],
    pub(crate) locks: &'a [LockRow],
    pub(crate) stamps: &'a [StampRow],
}

impl PolicyRows<'_> {
    /// The rows of the group's links, link by link; the first default row is the
    /// group's. A group without links goes by the row of link `*`.
    pub(crate) fn of(&self, info: &GroupInfo, mirrors: &BTreeMap<i32, Mirror>) -> Policy {
        let mut policy = Policy {
            version: self.version,
            skew_ms: SKEW_MS,
            ..Policy::default()
        };
        let takes_part = |s: &&StampRow| {
            s.server == LOCAL || info.group.sides.iter().any(|m| m.origin == s.server)
        };
        let stamps = self.stamps.iter().filter(takes_part);
        policy.stamps = stamps.map(stamp_rule).collect();
        for link in &info.links {
            let name = |field: &str| group_field(info, mirrors, link, field);
            for row in self.policies.iter().filter(|p| p.link == link.name) {
                add(&mut policy, row, name(&row.field));
            }
            let locks = self.locks.iter().filter(|l| l.link == link.name);
            policy.locks.extend(locks.filter_map(|lock| {
                Some(FieldLock {
                    id: lock.id,
                    field: name(&lock.field)?,
                    origins: vec![lock.origin.clone()],
                })
            }));
        }
        if info.links.is_empty() {
            for row in self.policies.iter().filter(|p| p.link == "*") {
                add(&mut policy, row, None);
            }
        }
        policy
    }
}

fn stamp_rule(row: &StampRow) -> StampRule {
    StampRule {
        origin: row.server.clone(),
        source: row.source.clone(),
        quality: Quality {
            exactness: match row.exactness.as_str() {
                "edit" => Exactness::Edit,
                "record" => Exactness::Record,
                _ => Exactness::Received,
            },
            resolution_ms: row.resolution_ms,
            // Any time before.
            tolerance_ms: row.tolerance_ms.unwrap_or(i64::MAX),
        },
    }
}

/// What the group calls a field that a link's row names as its left side does.
pub(crate) fn group_field(
    info: &GroupInfo,
    mirrors: &BTreeMap<i32, Mirror>,
    link: &LinkRow,
    field: &str,
) -> Option<String> {
    let left = mirrors.get(&link.left_mirror)?;
    let sides = &info.group.sides;
    let side = sides.iter().position(|s| s.mirror == left.id)?;
    let field = info.field_of[side].get(left.by_field.get(field)?)?;
    Some(info.group.fields[*field].name.clone())
}

fn add(policy: &mut Policy, row: &PolicyRow, field: Option<String>) {
    let default = row.field == "*";
    let has_default = policy.rules.iter().any(|r| r.field.is_none());
    let Some(entry) = by_name(&row.strategy).filter(|_| default || field.is_some()) else {
        return;
    };
    if default && has_default {
        return;
    }
    if default {
        policy.skew_ms = row.skew_ms;
    }
    let winners = row.winner.as_deref().unwrap_or_default().split(',');
    policy.rules.push(Rule {
        id: row.id,
        field,
        strategy: entry.strategy,
        winner: winners
            .map(|w| w.trim().to_owned())
            .filter(|w| !w.is_empty())
            .collect(),
        function: row.function.clone(),
        min_score: row.min_score,
        strict: row.strict,
    });
}
