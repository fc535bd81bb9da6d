//! The configuration in memory: mirrors, the groups that links make of them,
//! and the policy of each group.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crm_core::budget::Latency;
use crm_core::connectors::Connector;
use crm_core::group::{Group, Side};
use crm_core::model::{FieldType, Value};
use crm_core::policy::Policy;

use crate::pg::store::config::{ColumnRow, ConfigRows, LinkRow, MirrorRow};
use crate::pg::store::rows::Table;
use crate::worker::fields;
use crate::worker::images;
use crate::worker::policies::PolicyRows;
use crate::worker::rehearsal::Rehearsal;

/// A mirror, ready for use.
#[derive(Debug)]
pub(crate) struct Mirror {
    pub(crate) id: i32,
    pub(crate) server: String,
    pub(crate) object: String,
    pub(crate) type_id: String,
    pub(crate) table: Table,
    pub(crate) columns: Vec<ColumnRow>,
    pub(crate) types: Vec<FieldType>,
    /// Fields and types as requests name them: one per column, then our unique
    /// field if the account has it.
    pub(crate) fields: Arc<Vec<(String, FieldType)>>,
    pub(crate) by_field: HashMap<String, usize>,
    pub(crate) by_attnum: HashMap<i16, usize>,
    pub(crate) live: bool,
    pub(crate) paused: bool,
    /// How soon its changes are wanted: as its most urgent link says.
    pub(crate) latency: Latency,
    pub(crate) poll_ms: i64,
    pub(crate) created_at: i64,
    pub(crate) unique_field: Option<String>,
    pub(crate) source_field: Option<String>,
    /// Columns whose values exist once in the CRM, as live links say: asked
    /// for there before a record is made.
    pub(crate) unique_keys: Vec<usize>,
    /// Which group decides, and which side of it this mirror is.
    pub(crate) group: usize,
    pub(crate) side: usize,
}

/// A group with what the engine needs beside the core's view of it.
#[derive(Debug, Default)]
pub(crate) struct GroupInfo {
    pub(crate) group: Group,
    pub(crate) policy: Policy,
    /// Per side: column of its mirror → field of the group.
    pub(crate) field_of: Vec<HashMap<usize, usize>>,
    /// Per field and side: its columns; none where it is not mapped, several
    /// where a map makes one value of them.
    pub(crate) columns_of: Vec<Vec<Vec<usize>>>,
    pub(crate) links: Vec<LinkRow>,
    /// Fields whose maps call users' functions.
    pub(crate) with_functions: Vec<usize>,
}

/// Everything the worker knows without asking.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) policy_version: i64,
    pub(crate) installation: String,
    pub(crate) mirrors: BTreeMap<i32, Mirror>,
    pub(crate) groups: Vec<GroupInfo>,
    pub(crate) paused_servers: Vec<String>,
    /// Users' functions by number, as `schema.name(type)`.
    pub(crate) functions: Vec<String>,
    /// How to read each server's spelling of values.
    pub(crate) connectors: HashMap<String, &'static dyn Connector>,
    /// Somebody asks what would happen: nothing may be written for good.
    pub(crate) rehearsal: Option<Rehearsal>,
}

impl Mirror {
    /// The type ids of the two objects whose records this mirror pairs, if it does.
    pub(crate) fn pairs(&self) -> Option<(&str, &str)> {
        self.type_id.split_once('/')
    }
}

impl World {
    /// Builds the world from the rows of the configuration.
    pub(crate) fn new(rows: ConfigRows) -> Self {
        let mut world = Self {
            policy_version: rows.policy_version,
            installation: rows.installation,
            paused_servers: rows.paused_servers,
            ..Self::default()
        };
        for row in rows.mirrors {
            let mut links = (rows.links.iter())
                .filter(|l| l.left_mirror == row.id || l.right_mirror == row.id)
                .peekable();
            // A mirror rests with the last of its links.
            let unlinked = links.peek().is_none();
            let paused = row.paused
                || world.paused_servers.contains(&row.server)
                || (!unlinked && links.all(|l| l.paused));
            let own = |l: &&LinkRow| l.left_mirror == row.id || l.right_mirror == row.id;
            let latency = (rows.links.iter().filter(own))
                .map(|l| Latency::named(&l.latency))
                .min();
            let mut mirror = mirror(row, paused);
            mirror.latency = latency.unwrap_or_default();
            world.mirrors.insert(mirror.id, mirror);
        }
        world.note_unique_keys(&rows.links);
        world.functions = fields::functions(&rows.links);
        let policies = PolicyRows {
            version: world.policy_version,
            policies: &rows.policies,
            locks: &rows.locks,
            stamps: &rows.stamps,
        };
        world.group_up(&rows.links, policies);
        world
    }

    fn note_unique_keys(&mut self, links: &[LinkRow]) {
        for link in links.iter().filter(|l| l.mode == "live" && !l.paused) {
            for map in link.maps.iter().filter(|m| m.unique_key) {
                for (mirror, field) in [
                    (link.left_mirror, &map.left_field),
                    (link.right_mirror, &map.right_field),
                ] {
                    let Some(mirror) = self.mirrors.get_mut(&mirror) else {
                        continue;
                    };
                    let column = mirror.by_field.get(field).copied();
                    if let Some(column) = column.filter(|c| !mirror.unique_keys.contains(c)) {
                        mirror.unique_keys.push(column);
                    }
                }
            }
        }
    }

    /// The mirror that holds an object of a server, by name or type id.
    pub(crate) fn mirror_of(&self, server: &str, object: &str) -> Option<&Mirror> {
        self.mirrors.values().find(|m| {
            m.server == server && (m.object.eq_ignore_ascii_case(object) || m.type_id == object)
        })
    }

    /// A value as an event spells it, in canonical text; `None` if it is not
    /// of the column's type.
    pub(crate) fn canonical(&self, mirror: &Mirror, column: usize, raw: &Value) -> Option<Value> {
        match (raw, self.connectors.get(&mirror.server)) {
            (Some(text), Some(connector)) => connector.canonical(mirror.types[column], text).ok(),
            _ => Some(raw.clone()),
        }
    }

    /// Makes one group of each set of mirrors that links hold together.
    fn group_up(&mut self, links: &[LinkRow], policies: PolicyRows<'_>) {
        let mut root: BTreeMap<i32, i32> = self.mirrors.keys().map(|id| (*id, *id)).collect();
        for link in links {
            let (Some(&a), Some(&b)) = (root.get(&link.left_mirror), root.get(&link.right_mirror))
            else {
                continue;
            };
            for r in root.values_mut().filter(|r| **r == b) {
                *r = a;
            }
        }
        let mut members: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
        for (mirror, r) in root {
            members.entry(r).or_default().push(mirror);
        }
        for (root, mut mirrors) in members {
            let own: Vec<LinkRow> = links
                .iter()
                .filter(|l| mirrors.contains(&l.left_mirror))
                .cloned()
                .collect();
            if let Some(first) = own.first() {
                mirrors = along_links(&own, first.left_mirror);
                mirrors.retain(|m| self.mirrors.contains_key(m));
            }
            let info = self.group_of(root, &mirrors, own, policies);
            let index = self.groups.len();
            for (side, id) in mirrors.iter().enumerate() {
                if let Some(mirror) = self.mirrors.get_mut(id) {
                    mirror.group = index;
                    mirror.side = side;
                }
            }
            self.groups.push(info);
        }
    }

    fn group_of(
        &self,
        id: i32,
        mirrors: &[i32],
        links: Vec<LinkRow>,
        policies: PolicyRows<'_>,
    ) -> GroupInfo {
        let mut info = GroupInfo {
            links,
            ..GroupInfo::default()
        };
        info.group.id = id;
        info.field_of = vec![HashMap::new(); mirrors.len()];
        for (side, id) in mirrors.iter().enumerate() {
            let Some(mirror) = self.mirrors.get(id) else {
                continue;
            };
            let own: Vec<&LinkRow> = info
                .links
                .iter()
                .filter(|l| l.left_mirror == *id || l.right_mirror == *id)
                .collect();
            let linked = !own.is_empty();
            let shadow = linked && own.iter().all(|l| l.mode != "live");
            info.group.sides.push(Side {
                mirror: *id,
                origin: mirror.server.clone(),
                live: mirror.live,
                shadow,
            });
            for column in 0..mirror.columns.len() {
                fields::place(self, &mut info, mirrors, side, column);
            }
        }
        info.with_functions = images::fields_with_functions(&info.group);
        info.policy = policies.of(&info, &self.mirrors);
        info
    }
}

/// The mirrors of a group in an order in which each but the first has a link to one
/// before it: that is how its columns find their fields. The left side of the first
/// link names the fields of the group.
fn along_links(links: &[LinkRow], first: i32) -> Vec<i32> {
    let mut order = vec![first];
    let mut at = 0;
    while let Some(&from) = order.get(at) {
        for link in links {
            for (one, other) in [
                (link.left_mirror, link.right_mirror),
                (link.right_mirror, link.left_mirror),
            ] {
                if one == from && !order.contains(&other) {
                    order.push(other);
                }
            }
        }
        at += 1;
    }
    order
}

/// Parses our name of a field type.
pub(crate) fn field_type(name: &str) -> FieldType {
    match name {
        "number" => FieldType::Number,
        "boolean" => FieldType::Boolean,
        "date" => FieldType::Date,
        "date_time" => FieldType::DateTime,
        "time" => FieldType::Time,
        "multi_choice" => FieldType::MultiChoice,
        "reference" => FieldType::Reference,
        _ => FieldType::Text,
    }
}

fn mirror(row: MirrorRow, paused: bool) -> Mirror {
    let types: Vec<FieldType> = row
        .columns
        .iter()
        .map(|c| field_type(&c.field_type))
        .collect();
    Mirror {
        id: row.id,
        server: row.server,
        object: row.object,
        type_id: row.type_id,
        table: Table {
            name: row.table,
            relid: row.relid,
            filter: row.row_filter,
        },
        fields: Arc::new(
            row.columns
                .iter()
                .zip(&types)
                .map(|(c, t)| (c.field.clone(), *t))
                .chain(row.unique_field.clone().map(|f| (f, FieldType::Text)))
                .collect(),
        ),
        by_field: row
            .columns
            .iter()
            .enumerate()
            .map(|(i, c)| (c.field.clone(), i))
            .collect(),
        by_attnum: row
            .columns
            .iter()
            .enumerate()
            .map(|(i, c)| (c.attnum, i))
            .collect(),
        types,
        columns: row.columns,
        live: row.mode == "live",
        paused,
        latency: Latency::default(),
        poll_ms: row.poll_ms.max(1000),
        created_at: row.created_at,
        unique_field: row.unique_field,
        source_field: row.source_field,
        unique_keys: Vec::new(),
        group: 0,
        side: 0,
    }
}
