//! The people who use the account: owners of records.

use serde_json::{Value, json};

use super::base::iso_short;
use crate::people::FIRST_MS;

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

/// Owners, archived or active ones.
pub(crate) fn owners(archived: bool) -> Vec<(u64, Value)> {
    OWNERS
        .iter()
        .filter(|o| o.archived == archived)
        .map(|o| (o.id, json(o)))
        .collect()
}

/// One owner by owner id or user id.
pub(crate) fn owner(id: u64, by_user: bool, archived: bool) -> Option<Value> {
    OWNERS
        .iter()
        .find(|o| o.archived == archived && if by_user { o.user == id } else { o.id == id })
        .map(json)
}

fn json(owner: &Owner) -> Value {
    let at = iso_short(FIRST_MS - 86_400_000 + 1);
    json!({"id": owner.id.to_string(), "email": owner.email, "type": "PERSON",
        "firstName": owner.first, "lastName": owner.last,
        "userId": if owner.archived { Value::Null } else { json!(owner.user) },
        "userIdIncludingInactive": owner.user, "createdAt": at, "updatedAt": at,
        "archived": owner.archived})
}
