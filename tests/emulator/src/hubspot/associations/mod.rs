//! Which records belong together. Base links are computed; a record's links of one type are
//! copied into the overlay when the first of them is written.

mod routes;
mod types;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

pub(crate) use routes::*;
use serde_json::{Value, json};
pub(crate) use types::{LinkType, legacy_name, natural, primary, reverse};

use super::{
    State,
    error::ApiError,
    model::{OBJECTS, Table},
    render,
    webhooks::event::{Event, What},
    write::Origin,
};
use crate::admin::Refused;
use crate::people::{Home, Kind, People, push_number};

/// Links of one record to records of one type: other id to the types of the link.
pub(crate) type Links = BTreeMap<u64, Vec<LinkType>>;
type Key = (usize, u64, usize);

/// A label made by the user, one direction.
#[derive(Clone, Debug)]
pub(crate) struct Label {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) kind: LinkType,
    pub(crate) label: String,
}

/// Written links and labels.
#[derive(Default)]
pub(crate) struct Associations {
    overlay: Mutex<HashMap<Key, Links>>,
    pub(crate) labels: Mutex<Vec<Label>>,
}

/// Base links of a record, each with the natural type and, for the first company, the primary one.
fn base_links(people: &People, id_base: u64, from: usize, id: u64, to: usize) -> Links {
    let mut links = Links::new();
    let Some(n) = id.checked_sub(id_base).filter(|n| *n > 0) else {
        return links;
    };
    let (a, b) = (OBJECTS[from].kind, OBJECTS[to].kind);
    if n > people.count(a) {
        return links;
    }
    let numbers: Vec<u64> = match (a, b) {
        (Kind::Person, Kind::Company) => vec![people.person(n, Home::Common).company],
        (Kind::Company, Kind::Person) => people.staff(n).collect(),
        (Kind::Deal, Kind::Person) => vec![people.deal(n).person],
        (Kind::Deal, Kind::Company) => vec![people.deal(n).company],
        (Kind::Person, Kind::Deal) => {
            let deal = (n - 1) / 5 + 1;
            let own = deal <= people.count(Kind::Deal) && people.deal(deal).person == n;
            if own { vec![deal] } else { Vec::new() }
        }
        (Kind::Company, Kind::Deal) => ((n - 1) * 2 + 1..=n * 2 + 2)
            .filter(|d| *d <= people.count(Kind::Deal) && people.deal(*d).company == n)
            .collect(),
        // The nth line item belongs to the nth deal.
        (Kind::LineItem, Kind::Deal) | (Kind::Deal, Kind::LineItem) => vec![n],
        (Kind::LineItem | Kind::Product, _) | (_, Kind::LineItem | Kind::Product) => Vec::new(),
        // The nth ticket, task, subscription and so on belong to the first person of company n.
        (Kind::Person, Kind::Person) => Vec::new(),
        (_, Kind::Person) => vec![(n - 1) * 10 + 1],
        (Kind::Person, _) if n % 10 == 1 => vec![(n - 1) / 10 + 1],
        _ => Vec::new(),
    };
    for number in numbers {
        if number == 0 || number > people.count(b) {
            continue;
        }
        let mut kinds = vec![natural(from, to)];
        kinds.extend(primary(from, to).filter(|_| b == Kind::Company || a == Kind::Company));
        links.insert(id_base + number, kinds);
    }
    links
}

impl State {
    fn links_locked(&self) -> MutexGuard<'_, HashMap<Key, Links>> {
        self.associations
            .overlay
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn base(&self, from: usize, id: u64, to: usize) -> Links {
        base_links(
            &self.shared.people,
            self.shared.options.hubspot_id_base,
            from,
            id,
            to,
        )
    }

    /// Links of a record to records of one type, archived ones left out.
    pub(crate) fn links(&self, from: usize, id: u64, to: usize) -> Links {
        let written = self.links_locked().get(&(from, id, to)).cloned();
        written.unwrap_or_else(|| self.base(from, id, to))
    }

    /// Ids of associated records, for search filters.
    pub(crate) fn associated_ids(&self, kind: Kind, id: u64, to: usize) -> Vec<u64> {
        let from = OBJECTS.iter().position(|o| o.kind == kind).unwrap_or(0);
        self.links(from, id, to).into_keys().collect()
    }

    /// Adds `kinds` to the link between two records, both directions; events for what is new.
    pub(crate) fn link(
        &self,
        from: (usize, u64),
        to: (usize, u64),
        kinds: &[LinkType],
        origin: &Origin,
    ) {
        for &kind in kinds {
            let pairs = [(from, to, kind), (to, from, reverse(from.0, to.0, kind))];
            for (a, b, kind) in pairs {
                let mut all = self.links_locked();
                let links = all
                    .entry((a.0, a.1, b.0))
                    .or_insert_with(|| self.base(a.0, a.1, b.0));
                if Some(kind) == primary(a.0, b.0) {
                    // There is one primary company.
                    for (other, types) in links.iter_mut() {
                        if *other != b.1 && OBJECTS[b.0].kind == Kind::Company {
                            types.retain(|t| *t != kind);
                        }
                    }
                }
                let types = links.entry(b.1).or_default();
                if types.contains(&kind) {
                    continue;
                }
                types.push(kind);
                drop(all);
                self.announce(a, b, kind, false, origin);
            }
        }
    }

    /// Removes `kinds` (all if empty) from the link between two records, both directions.
    pub(crate) fn unlink(
        &self,
        from: (usize, u64),
        to: (usize, u64),
        kinds: &[LinkType],
        origin: &Origin,
    ) {
        for (a, b, turned) in [(from, to, false), (to, from, true)] {
            let kinds: Vec<LinkType> = kinds
                .iter()
                .map(|k| {
                    if turned {
                        reverse(from.0, to.0, *k)
                    } else {
                        *k
                    }
                })
                .collect();
            let mut all = self.links_locked();
            let links = all
                .entry((a.0, a.1, b.0))
                .or_insert_with(|| self.base(a.0, a.1, b.0));
            let Some(types) = links.get_mut(&b.1) else {
                continue;
            };
            let (gone, kept): (Vec<LinkType>, Vec<LinkType>) = types
                .drain(..)
                .partition(|t| kinds.is_empty() || kinds.contains(t));
            if kept.is_empty() {
                links.remove(&b.1);
            } else {
                *types = kept;
            }
            drop(all);
            for kind in gone {
                self.announce(a, b, kind, true, origin);
            }
        }
    }

    fn announce(
        &self,
        from: (usize, u64),
        to: (usize, u64),
        kind: LinkType,
        removed: bool,
        origin: &Origin,
    ) {
        let what = What::Association {
            from,
            to,
            kind,
            removed,
            primary: Some(kind) == primary(from.0, to.0),
        };
        let table = &self.tables[from.0];
        self.webhooks
            .emit(Event::new(table, from.1, self.now_ms(), origin, what));
    }

    /// Gives the links of merged records to the survivor, without events.
    pub(crate) fn move_associations(&self, from: usize, old: &[u64], new: u64) {
        for to in 0..OBJECTS.len() {
            let mut united = Links::new();
            for id in old {
                for (other, types) in self.links(from, *id, to) {
                    united.entry(other).or_insert(types);
                }
            }
            let mut all = self.links_locked();
            for (other, types) in &united {
                let back = all
                    .entry((to, *other, from))
                    .or_insert_with(|| self.base(to, *other, from));
                old.iter().for_each(|id| drop(back.remove(id)));
                let turned = types.iter().map(|t| reverse(from, to, *t)).collect();
                back.insert(new, turned);
            }
            for id in old {
                all.insert((from, *id, to), Links::new());
            }
            if !united.is_empty() {
                all.insert((from, new, to), united);
            }
        }
    }
}

/// Appends `{"companies":{"results":[{"id","type"}]}}` for the types that have any; nothing if
/// none has.
pub(crate) fn push_of(state: &State, table: &Table, id: u64, types: &[usize], out: &mut Vec<u8>) {
    for &to in types {
        let links = state.links(table.index, id, to);
        if links.is_empty() {
            continue;
        }
        out.push(if out.is_empty() { b'{' } else { b',' });
        render::push_string(out, state.tables[to].facts.plural);
        out.extend_from_slice(b":{\"results\":[");
        let mut first = true;
        for (other, kinds) in &links {
            for kind in kinds {
                if !first {
                    out.push(b',');
                }
                first = false;
                out.extend_from_slice(b"{\"id\":\"");
                push_number(out, *other, 1);
                out.extend_from_slice(b"\",\"type\":");
                render::push_string(out, &v3_name(table.index, to, *kind));
                out.push(b'}');
            }
        }
        out.extend_from_slice(b"]}");
    }
    if !out.is_empty() {
        out.push(b'}');
    }
}

/// `contact_to_company`, or `contact_to_company_unlabeled` beside a primary link.
fn v3_name(from: usize, to: usize, kind: LinkType) -> String {
    let name = format!("{}_to_{}", OBJECTS[from].singular, OBJECTS[to].singular);
    match primary(from, to) {
        Some(primary) if primary != kind => name + "_unlabeled",
        _ => name,
    }
}

/// A link wanted at creation.
pub(crate) struct NewLink {
    to: (usize, u64),
    kinds: Vec<LinkType>,
}

/// Reads `associations` of a create body. Looks at other tables: not under the lock of one.
pub(crate) fn of_create(
    state: &State,
    table: &Table,
    body: &Value,
) -> Result<Vec<NewLink>, ApiError> {
    let links = parse(table, body)?;
    for link in &links {
        let (to, id) = link.to;
        if state.tables[to].read().live_view(id).is_none() {
            return Err(ApiError::validation(format!(
                "{} with id {id} does not exist",
                OBJECTS[to].singular
            )));
        }
    }
    Ok(links)
}

/// The same without a look at whether the other records exist.
pub(crate) fn parse(table: &Table, body: &Value) -> Result<Vec<NewLink>, ApiError> {
    let list = body.get("associations").and_then(Value::as_array);
    let mut links = Vec::new();
    for item in list.into_iter().flatten() {
        let id = item.pointer("/to/id").and_then(number);
        let Some(id) = id else {
            return Err(ApiError::validation(
                "Invalid input JSON: associations need to.id",
            ));
        };
        let kinds = kinds(item.get("types"))?;
        let Some(to) = kinds.first().and_then(|k| types::target(table.index, *k)) else {
            return Err(ApiError::validation(format!(
                "No association type of {} has one of the given ids",
                table.facts.type_id
            )));
        };
        links.push(NewLink {
            to: (to, id),
            kinds,
        });
    }
    Ok(links)
}

/// Makes the links of a new record.
pub(crate) fn create_links(
    state: &State,
    table: &Table,
    id: u64,
    links: &[NewLink],
    origin: &Origin,
) {
    for link in links {
        state.link((table.index, id), link.to, &link.kinds, origin);
    }
}

/// Ties (or unties, all types) the records `from` and `to` of the object types in `object`, `contacts/companies`, as a
/// person does; with the plain type, or the one called `type`, given as `category` and `type`. With `label` alone, makes a
/// label for such ties and answers its two types.
pub(crate) fn by_admin(
    state: &State,
    object: &str,
    fields: &serde_json::Map<String, Value>,
    removed: bool,
    origin: &Origin,
) -> Result<Value, Refused> {
    let bad = |what: &str| {
        Refused::Bad(format!(
            "{what}: expected contacts/companies with fields from and to"
        ))
    };
    let (from, to) = object.split_once('/').ok_or_else(|| bad(object))?;
    let (from, to) = (state.table(from)?.index, state.table(to)?.index);
    if let Some(label) = fields.get("label").and_then(Value::as_str) {
        let kinds = routes::add_label(state, (from, to), label, label);
        return Ok(json!({"types": kinds.map(|k| k.id)}));
    }
    let id = |name: &str| fields.get(name).and_then(number).ok_or_else(|| bad(name));
    let (a, b) = ((from, id("from")?), (to, id("to")?));
    if removed {
        state.unlink(a, b, &[], origin);
        return Ok(json!({}));
    }
    let kind = match fields.get("type").and_then(number) {
        Some(id) => {
            let category = fields.get("category").and_then(Value::as_str);
            LinkType::parse(category.unwrap_or("HUBSPOT_DEFINED"), id)
                .ok_or_else(|| bad("category"))?
        }
        None => natural(from, to),
    };
    state.link(a, b, &[kind], origin);
    Ok(json!({}))
}

/// `{"201":[279,1]}`: the types by the other record's id.
pub(crate) fn shown(links: &Links) -> Value {
    let types = |kinds: &Vec<LinkType>| kinds.iter().map(|k| k.id).collect::<Vec<_>>();
    links
        .iter()
        .map(|(id, kinds)| (id.to_string(), json!(types(kinds))))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// A number given as number or text.
pub(crate) fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

/// `[{"associationCategory","associationTypeId"}]`.
pub(crate) fn kinds(types: Option<&Value>) -> Result<Vec<LinkType>, ApiError> {
    let list = types
        .and_then(Value::as_array)
        .map_or(&[][..], Vec::as_slice);
    list.iter()
        .map(|item| {
            let category = item.get("associationCategory").and_then(Value::as_str);
            let id = item.get("associationTypeId").and_then(number);
            match (category, id) {
                (Some(category), Some(id)) => LinkType::parse(category, id),
                _ => None,
            }
            .ok_or_else(|| {
                ApiError::validation(format!(
                    "Invalid association type {item}: expected associationCategory and associationTypeId"
                ))
                .with("context", json!({"type": [item]}))
            })
        })
        .collect()
}
