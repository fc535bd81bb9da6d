//! Fields of a group and the columns that hold them: one column each, or
//! several where a map makes one value of them.

use std::collections::BTreeSet;
use std::sync::Arc;

use crm_core::group::{GroupField, Part, SideField};
use crm_core::mapping::Transform;
use crm_core::model::Value;
use crm_core::structure::{self, Structure};

use crate::pg::store::config::{FieldMapRow, LinkRow};
use crate::worker::world::{GroupInfo, Mirror, World};

impl GroupInfo {
    /// The columns of a field on a side, in the order of its cells.
    pub(crate) fn columns(&self, field: usize, side: usize) -> &[usize] {
        let sides = self.columns_of.get(field);
        sides.and_then(|s| s.get(side)).map_or(&[], Vec::as_slice)
    }

    /// Whether a field is several columns of a side.
    pub(crate) fn is_list(&self, field: usize, side: usize) -> bool {
        self.columns(field, side).len() > 1
    }

    /// Whether every edit of a field counts.
    pub(crate) fn counts(&self, field: usize) -> bool {
        let rule = self.policy.rule(&self.group.fields[field].name);
        rule.is_some_and(|r| r.strategy.entry().merge.is_some())
    }

    /// These columns of a side with those that are one value with them.
    pub(crate) fn whole(&self, side: usize, columns: &[usize]) -> Vec<usize> {
        let all: BTreeSet<usize> = columns
            .iter()
            .flat_map(|c| match self.field_of[side].get(c) {
                Some(field) => self.columns(*field, side).to_vec(),
                None => vec![*c],
            })
            .collect();
        all.into_iter().collect()
    }

    /// Values by field, of the fields whose columns are all given.
    pub(crate) fn gather(
        &self,
        side: usize,
        columns: &[usize],
        values: &[Value],
    ) -> Vec<(usize, Value)> {
        let mut out = Vec::with_capacity(columns.len());
        for (column, value) in columns.iter().zip(values) {
            let Some(field) = self.field_of[side].get(column).copied() else {
                continue;
            };
            match self.columns(field, side) {
                [_] => out.push((field, value.clone())),
                [first, ..] if first == column => {
                    let cells: Option<Vec<Value>> = self
                        .columns(field, side)
                        .iter()
                        .map(|c| Some(values[columns.iter().position(|x| x == c)?].clone()))
                        .collect();
                    out.extend(cells.map(|cells| (field, structure::pack(&cells))));
                }
                _ => {}
            }
        }
        out
    }

    /// A value of a field with some of its columns replaced.
    pub(crate) fn overlaid(
        &self,
        field: usize,
        side: usize,
        value: &Value,
        change: impl Fn(usize) -> Option<Value>,
    ) -> Value {
        let columns = self.columns(field, side);
        let cells: Vec<Value> = structure::unpack(value, columns.len())
            .into_iter()
            .zip(columns)
            .map(|(cell, column)| change(*column).unwrap_or(cell))
            .collect();
        structure::pack(&cells)
    }

    /// The cells of a field's value by column.
    pub(crate) fn cells(
        &self,
        field: usize,
        side: usize,
        value: &Value,
    ) -> impl Iterator<Item = (usize, Value)> {
        let columns = self.columns(field, side);
        let cells = structure::unpack(value, columns.len());
        columns.iter().copied().zip(cells)
    }

    /// Values that are given by the CRM's names, by field of the group.
    pub(crate) fn by_name(
        &self,
        mirror: &Mirror,
        named: &[(String, Value)],
    ) -> Vec<(usize, Value)> {
        let (columns, values): (Vec<usize>, Vec<Value>) = named
            .iter()
            .filter_map(|(name, value)| Some((*mirror.by_field.get(name)?, value.clone())))
            .unzip();
        self.gather(mirror.side, &columns, &values)
    }
}

/// Users' functions that the maps of these links name; their numbers are their places.
pub(crate) fn functions(links: &[LinkRow]) -> Vec<String> {
    let names: BTreeSet<&String> = links
        .iter()
        .flat_map(|l| &l.maps)
        .flat_map(|m| [&m.to_left, &m.to_right])
        .filter(|name| name.contains('('))
        .collect();
    names.into_iter().cloned().collect()
}

/// How a column takes part in its group.
struct Placed<'m> {
    /// The map that makes one value of several columns, if any.
    list: Option<(&'m FieldMapRow, bool)>,
    inbound: bool,
    outbound: bool,
    to_side: Transform,
    from_side: Transform,
    default: Option<String>,
    /// The field of the group, if another side has it already.
    field: Option<usize>,
}

/// Puts a column under the group field it is mapped to, or under its own.
pub(crate) fn place(
    world: &World,
    info: &mut GroupInfo,
    mirrors: &[i32],
    side: usize,
    column: usize,
) {
    let Some(mirror) = mirrors.get(side).and_then(|id| world.mirrors.get(id)) else {
        return;
    };
    if info.field_of[side].contains_key(&column) {
        return;
    }
    let links = std::mem::take(&mut info.links);
    let placed = placed(world, info, &links, mirrors, mirror, column);
    let row = &mirror.columns[column];
    // Policy rows name a unit of several columns by its first, whichever is met first.
    let unit = placed
        .list
        .and_then(|(map, right)| map.fields(right).next());
    let field = placed.field.unwrap_or_else(|| {
        info.group.fields.push(GroupField {
            name: unit.map_or_else(|| row.field.clone(), |first| first.to_owned()),
            sides: vec![None; mirrors.len()],
        });
        info.columns_of.push(vec![Vec::new(); mirrors.len()]);
        info.group.fields.len() - 1
    });
    let columns: Vec<usize> = match placed.list {
        Some((map, right)) => map
            .fields(right)
            .filter_map(|f| mirror.by_field.get(f).copied())
            .collect(),
        None => vec![column],
    };
    let part = |column: &usize| {
        let row = &mirror.columns[*column];
        Part {
            field: row.field.clone(),
            max_length: row.max_length,
            required: row.required,
            default: placed.default.clone().filter(|_| row.required),
        }
    };
    let list = columns.len() > 1;
    let first = &mirror.columns[columns[0]];
    info.group.fields[field].sides[side] = Some(SideField {
        field: first.field.clone(),
        field_type: mirror.types[columns[0]],
        max_length: first.max_length.filter(|_| !list),
        writable: columns.iter().all(|c| !mirror.columns[*c].read_only),
        inbound: placed.inbound,
        outbound: placed.outbound,
        to_side: placed.to_side,
        from_side: placed.from_side,
        required: first.required && !list,
        parts: match list {
            true => columns.iter().map(part).collect(),
            false => Vec::new(),
        },
        default: placed.default.filter(|_| !list),
    });
    for column in &columns {
        info.field_of[side].insert(*column, field);
    }
    info.columns_of[field][side] = columns;
    info.links = links;
}

fn placed<'m>(
    world: &World,
    info: &GroupInfo,
    links: &'m [LinkRow],
    mirrors: &[i32],
    mirror: &Mirror,
    column: usize,
) -> Placed<'m> {
    let name = &mirror.columns[column].field;
    let mut out = Placed {
        list: None,
        inbound: true,
        outbound: true,
        to_side: Transform::Identity,
        from_side: Transform::Identity,
        default: None,
        field: None,
    };
    let mut mapped = false;
    for link in links {
        let is_right = link.right_mirror == mirror.id;
        if !is_right && link.left_mirror != mirror.id {
            continue;
        }
        let Some(map) = link
            .maps
            .iter()
            .find(|f| f.fields(is_right).any(|n| n == name))
        else {
            continue;
        };
        let flows = flows(map, is_right);
        // What flows over one of several links flows; their other ends say the rest.
        (out.inbound, out.outbound) = match mapped {
            true => (out.inbound || flows.0, out.outbound || flows.1),
            false => flows,
        };
        mapped = true;
        let forth = transform(world, &map.to_right, &Words::of(map, false));
        let back = transform(world, &map.to_left, &Words::of(map, true));
        match (is_right, spelled_by_right(links, link, map)) {
            (true, false) => (out.to_side, out.from_side) = (forth, back),
            (false, true) => (out.to_side, out.from_side) = (back, forth),
            _ => {}
        }
        let own_default = match is_right {
            true => &map.default_right,
            false => &map.default_left,
        };
        out.default = out.default.or_else(|| own_default.clone());
        let there = |f: &&String| mirror.by_field.contains_key(*f);
        let width = map.fields(is_right).filter(there).count();
        if let (true, Some(structure)) = (
            width > 1,
            map.structure.as_deref().and_then(Structure::by_name),
        ) {
            out.list = Some((map, is_right));
            if structure != Structure::Unit {
                out.from_side = Transform::Compose(structure);
                out.to_side = Transform::Split(structure, width);
            }
        }
        let there = || field_there(world, info, mirrors, (link, map, is_right));
        out.field = out.field.or_else(there);
    }
    out
}

/// The field of the group that the column at the other end of a map was put under, if it was.
fn field_there(
    world: &World,
    info: &GroupInfo,
    mirrors: &[i32],
    (link, map, is_right): (&LinkRow, &FieldMapRow, bool),
) -> Option<usize> {
    let (mirror, field) = match is_right {
        true => (link.left_mirror, &map.left_field),
        false => (link.right_mirror, &map.right_field),
    };
    let side = mirrors.iter().position(|m| *m == mirror)?;
    let column = world.mirrors.get(&mirror)?.by_field.get(field)?;
    info.field_of.get(side)?.get(column).copied()
}

/// Whether values of a map flow from this side, and whether they flow to it.
fn flows(map: &FieldMapRow, is_right: bool) -> (bool, bool) {
    match (map.direction.as_str(), is_right) {
        ("to_right", true) | ("to_left", false) => (false, true),
        ("to_right", false) | ("to_left", true) => (true, false),
        _ => (true, true),
    }
}

/// Whose spelling the group's value has: the left side's, as a rule. Where several
/// kinds of object meet in one field on the right (tasks and calls in one object),
/// each with words of its own, it is the right side's.
fn spelled_by_right(links: &[LinkRow], link: &LinkRow, map: &FieldMapRow) -> bool {
    let ends = |mirror: i32| {
        let of = |l: &&LinkRow| l.left_mirror == mirror || l.right_mirror == mirror;
        links.iter().filter(of).count()
    };
    let rivals: Vec<&LinkRow> = links
        .iter()
        .filter(|l| l.right_mirror == link.right_mirror)
        .collect();
    let otherwise = |l: &&LinkRow| {
        let theirs = l.maps.iter().find(|m| m.right_field == map.right_field);
        theirs.is_some_and(|m| {
            (&m.to_left, &m.to_right) != (&map.to_left, &map.to_right)
                || (&m.value_map, &m.value_map_back) != (&map.value_map, &map.value_map_back)
        })
    };
    rivals.iter().all(|l| ends(l.left_mirror) == 1) && rivals.iter().any(otherwise)
}

/// A value map in one direction.
struct Words(Option<Vec<(String, String)>>);

impl Words {
    /// The pairs of a map; `back` reads it from right to left, where what
    /// `value_map_back` says goes first.
    fn of(map: &FieldMapRow, back: bool) -> Self {
        let pairs = |json: &Option<serde_json::Value>| -> Option<Vec<(String, String)>> {
            let object = json.as_ref()?.as_object()?;
            let pair = |(from, to): (&String, &serde_json::Value)| {
                Some((from.clone(), to.as_str()?.to_owned()))
            };
            Some(object.iter().filter_map(pair).collect())
        };
        let forth = pairs(&map.value_map);
        if !back {
            return Self(forth);
        }
        let chosen = pairs(&map.value_map_back).unwrap_or_default();
        Self(forth.map(|forth| {
            let swapped = forth.into_iter().map(|(left, right)| (right, left));
            chosen.into_iter().chain(swapped).collect()
        }))
    }
}

/// The transform of a name, or the value map beside it.
fn transform(world: &World, name: &str, words: &Words) -> Transform {
    let function = world.functions.iter().position(|f| f == name);
    match (name, &words.0) {
        ("identity", Some(pairs)) => Transform::ValueMap(Arc::new(pairs.clone())),
        ("domain_of_url", _) => Transform::DomainOfUrl,
        ("url_of_domain", _) => Transform::UrlOfDomain,
        ("date_of", _) => Transform::DateOf,
        ("midnight_of", _) => Transform::MidnightOf,
        ("lower", _) => Transform::Lower,
        _ => match function.and_then(|n| u32::try_from(n).ok()) {
            Some(number) => Transform::Function(number),
            None => Transform::Identity,
        },
    }
}
