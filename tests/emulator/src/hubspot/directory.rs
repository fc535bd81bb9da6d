//! What records refer to and nobody stores as records: the people who use the account (owners), pipelines and stages.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde_json::{Map, Value, json};

use super::base::iso_short;
use crate::{admin::Refused, people::FIRST_MS};

struct Owner {
    id: u64,
    user: u64,
    first: &'static str,
    last: &'static str,
    email: &'static str,
    archived: bool,
}

const OWNERS: [Owner; 4] = [
    Owner {
        id: 71_001,
        user: 9_339_234,
        first: "Olga",
        last: "Owner",
        email: "olga.owner@example.com",
        archived: false,
    },
    Owner {
        id: 71_002,
        user: 9_339_235,
        first: "Sam",
        last: "Seller",
        email: "sam.seller@example.com",
        archived: false,
    },
    Owner {
        id: 71_003,
        user: 9_339_236,
        first: "Sync",
        last: "User",
        email: "sync@example.com",
        archived: false,
    },
    Owner {
        id: 71_004,
        user: 9_339_237,
        first: "Gone",
        last: "Goodbye",
        email: "gone.goodbye@example.com",
        archived: true,
    },
];

/// Id of the `n`th active owner, n in 0..3.
pub(crate) fn owner_id(n: u64) -> u64 {
    OWNERS[n as usize % 3].id
}

const EPOCH: &str = "1970-01-01T00:00:00Z";
const DEAL_STAGES: [(&str, &str, &str); 7] = [
    ("appointmentscheduled", "Appointment Scheduled", "0.2"),
    ("qualifiedtobuy", "Qualified To Buy", "0.4"),
    ("presentationscheduled", "Presentation Scheduled", "0.6"),
    ("decisionmakerboughtin", "Decision Maker Bought-In", "0.8"),
    ("contractsent", "Contract Sent", "0.9"),
    ("closedwon", "Closed Won", "1.0"),
    ("closedlost", "Closed Lost", "0.0"),
];
const TICKET_STAGES: [(&str, &str, &str); 4] = [
    ("1", "New", "OPEN"),
    ("2", "Waiting on contact", "OPEN"),
    ("3", "Waiting on us", "OPEN"),
    ("4", "Closed", "CLOSED"),
];

/// Owners in the order of ids, and the pipelines of each object type by its plural name.
pub(crate) struct Directory {
    owners: Mutex<Vec<Value>>,
    pipelines: Mutex<BTreeMap<&'static str, Vec<Value>>>,
}

impl Default for Directory {
    fn default() -> Self {
        let deals = DEAL_STAGES
            .iter()
            .enumerate()
            .map(|(i, (id, label, chance))| {
                let closed = *chance == "1.0" || *chance == "0.0";
                let metadata = json!({"isClosed": closed.to_string(), "probability": chance});
                stage(i, id, label, metadata)
            });
        let tickets = TICKET_STAGES
            .iter()
            .enumerate()
            .map(|(i, (id, label, state))| {
                let closed = *state == "CLOSED";
                let metadata = json!({"isClosed": closed.to_string(), "ticketState": state});
                stage(i, id, label, metadata)
            });
        let pipelines = [
            (
                "deals",
                vec![pipeline("default", "Sales Pipeline", deals.collect())],
            ),
            (
                "tickets",
                vec![pipeline("0", "Support Pipeline", tickets.collect())],
            ),
        ];
        Self {
            owners: Mutex::new(OWNERS.iter().map(json).collect()),
            pipelines: Mutex::new(pipelines.into()),
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pipeline(id: &str, label: &str, stages: Vec<Value>) -> Value {
    json!({"label": label, "displayOrder": 0, "id": id, "stages": stages,
        "createdAt": EPOCH, "updatedAt": EPOCH, "archived": false})
}

fn stage(order: usize, id: &str, label: &str, metadata: Value) -> Value {
    json!({"label": label, "displayOrder": order, "metadata": metadata, "id": id,
        "createdAt": EPOCH, "updatedAt": EPOCH, "archived": false,
        "writePermissions": "CRM_PERMISSIONS_ENFORCEMENT"})
}

fn id_of(owner: &Value) -> u64 {
    owner["id"]
        .as_str()
        .and_then(|id| id.parse().ok())
        .unwrap_or_default()
}

/// What the admin does to an item of a directory.
pub(crate) enum Deed<'a> {
    Edit(&'a Map<String, Value>),
    Delete,
}

impl Directory {
    /// Owners, archived or active ones.
    pub(crate) fn owners(&self, archived: bool) -> Vec<(u64, Value)> {
        let owners = locked(&self.owners);
        let wanted = owners.iter().filter(|o| o["archived"] == archived);
        wanted.map(|o| (id_of(o), o.clone())).collect()
    }

    /// One owner by owner id or user id.
    pub(crate) fn owner(&self, id: u64, by_user: bool, archived: bool) -> Option<Value> {
        let is = |o: &Value| match by_user {
            true => o["userIdIncludingInactive"] == id,
            false => id_of(o) == id,
        };
        let owners = locked(&self.owners);
        let found = owners.iter().find(|o| o["archived"] == archived && is(o));
        found.cloned()
    }

    /// The pipelines of an object type.
    pub(crate) fn pipelines(&self, plural: &str) -> Vec<Value> {
        locked(&self.pipelines)
            .get(plural)
            .cloned()
            .unwrap_or_default()
    }

    /// Changes or removes an owner, a pipeline (`deal_pipelines`) or a stage (`deal_stages`); `None` if `object` is none of
    /// these. Removed owners are archived, removed pipelines and stages are gone.
    pub(crate) fn act(
        &self,
        object: &str,
        id: &str,
        deed: &Deed<'_>,
        at: &str,
    ) -> Option<Result<Value, Refused>> {
        let (plural, stages) = match object {
            "owners" => return Some(self.act_on_owner(id, deed, at)),
            "deal_pipelines" => ("deals", false),
            "deal_stages" => ("deals", true),
            "ticket_pipelines" => ("tickets", false),
            "ticket_stages" => ("tickets", true),
            _ => return None,
        };
        let mut all = locked(&self.pipelines);
        let list = all.get_mut(plural)?;
        if !stages {
            return Some(act_on(list, id, deed, at));
        }
        let of_stage = list.iter_mut().filter_map(|p| p["stages"].as_array_mut());
        let mut of_stage = of_stage.filter(|list| list.iter().any(|s| s["id"] == id));
        Some(match of_stage.next() {
            Some(list) => act_on(list, id, deed, at),
            None => Err(Refused::NotFound(format!("no stage {id}"))),
        })
    }

    fn act_on_owner(&self, id: &str, deed: &Deed<'_>, at: &str) -> Result<Value, Refused> {
        let mut owners = locked(&self.owners);
        let archive: Map<String, Value> = [("archived", json!(true)), ("userId", Value::Null)]
            .map(|(k, v)| (k.to_owned(), v))
            .into_iter()
            .collect();
        let fields = match deed {
            Deed::Edit(fields) => fields,
            Deed::Delete => &archive,
        };
        act_on(&mut owners, id, &Deed::Edit(fields), at)
    }
}

fn act_on(list: &mut Vec<Value>, id: &str, deed: &Deed<'_>, at: &str) -> Result<Value, Refused> {
    let place = list.iter().position(|item| item["id"] == id);
    let place = place.ok_or_else(|| Refused::NotFound(format!("nothing called {id}")))?;
    let Deed::Edit(fields) = deed else {
        return Ok(list.remove(place));
    };
    for (name, value) in *fields {
        list[place][name] = value.clone();
    }
    list[place]["updatedAt"] = json!(at);
    Ok(list[place].clone())
}

fn json(owner: &Owner) -> Value {
    let at = iso_short(FIRST_MS - 86_400_000 + 1);
    json!({"id": owner.id.to_string(), "email": owner.email, "type": "PERSON",
        "firstName": owner.first, "lastName": owner.last,
        "userId": if owner.archived { Value::Null } else { json!(owner.user) },
        "userIdIncludingInactive": owner.user, "createdAt": at, "updatedAt": at,
        "archived": owner.archived,
        "teams": [{"id": "178", "name": "Sales", "primary": true}]})
}
