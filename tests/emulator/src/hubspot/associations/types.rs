//! Association types: the documented ids between the object types served here.

use crate::hubspot::model::OBJECTS;

/// A type of link: category and id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkType {
    /// `USER_DEFINED` rather than `HUBSPOT_DEFINED`.
    pub(crate) user_defined: bool,
    pub(crate) id: u64,
}

impl LinkType {
    pub(crate) fn parse(category: &str, id: u64) -> Option<LinkType> {
        let user_defined = match category {
            "HUBSPOT_DEFINED" => false,
            "USER_DEFINED" => true,
            _ => return None,
        };
        Some(LinkType { user_defined, id })
    }

    pub(crate) fn category(self) -> &'static str {
        if self.user_defined {
            "USER_DEFINED"
        } else {
            "HUBSPOT_DEFINED"
        }
    }
}

const CONTACT: usize = 0;
const COMPANY: usize = 1;
const DEAL: usize = 2;
const TICKET: usize = 3;
const TASK: usize = 4;
const MEETING: usize = 5;
const CALL: usize = 6;
const NOTE: usize = 7;
const EMAIL: usize = 8;
const LINE_ITEM: usize = 10;

/// From, to, id of the plain type, id of the primary type (0: none).
#[rustfmt::skip]
const DEFINED: [(usize, usize, u64, u64); 54] = [
    (CONTACT, COMPANY, 279, 1),
    (COMPANY, CONTACT, 280, 2),
    (DEAL, CONTACT, 3, 0),
    (CONTACT, DEAL, 4, 0),
    (DEAL, COMPANY, 341, 5),
    (COMPANY, DEAL, 342, 6),
    (CONTACT, TICKET, 15, 0),
    (TICKET, CONTACT, 16, 0),
    (TICKET, COMPANY, 339, 26),
    (COMPANY, TICKET, 340, 25),
    (DEAL, TICKET, 27, 0),
    (TICKET, DEAL, 28, 0),
    (TASK, CONTACT, 204, 0),
    (TASK, COMPANY, 192, 0),
    (TASK, DEAL, 216, 0),
    (TASK, TICKET, 230, 0),
    (CONTACT, TASK, 203, 0),
    (COMPANY, TASK, 191, 0),
    (DEAL, TASK, 215, 0),
    (TICKET, TASK, 229, 0),
    (NOTE, CONTACT, 202, 0),
    (CONTACT, NOTE, 201, 0),
    (NOTE, COMPANY, 190, 0),
    (COMPANY, NOTE, 189, 0),
    (NOTE, DEAL, 214, 0),
    (DEAL, NOTE, 213, 0),
    (NOTE, TICKET, 228, 0),
    (TICKET, NOTE, 227, 0),
    (EMAIL, CONTACT, 198, 0),
    (CONTACT, EMAIL, 197, 0),
    (EMAIL, COMPANY, 186, 0),
    (COMPANY, EMAIL, 185, 0),
    (EMAIL, DEAL, 210, 0),
    (DEAL, EMAIL, 209, 0),
    (EMAIL, TICKET, 224, 0),
    (TICKET, EMAIL, 223, 0),
    (MEETING, CONTACT, 200, 0),
    (CONTACT, MEETING, 199, 0),
    (MEETING, COMPANY, 188, 0),
    (COMPANY, MEETING, 187, 0),
    (MEETING, DEAL, 212, 0),
    (DEAL, MEETING, 211, 0),
    (MEETING, TICKET, 226, 0),
    (TICKET, MEETING, 225, 0),
    (CALL, CONTACT, 194, 0),
    (CONTACT, CALL, 193, 0),
    (CALL, COMPANY, 182, 0),
    (COMPANY, CALL, 181, 0),
    (CALL, DEAL, 206, 0),
    (DEAL, CALL, 205, 0),
    (CALL, TICKET, 220, 0),
    (TICKET, CALL, 219, 0),
    (DEAL, LINE_ITEM, 19, 0),
    (LINE_ITEM, DEAL, 20, 0),
];

/// First id of types between pairs the table does not name, such as those of custom objects.
const FIRST_OTHER: u64 = 1_000;
/// First id of user-made labels; the two directions are neighbours, the even one first.
pub(crate) const FIRST_LABEL: u64 = 2_000;

/// The plain type from one object type to another.
pub(crate) fn natural(from: usize, to: usize) -> LinkType {
    match DEFINED.iter().find(|d| (d.0, d.1) == (from, to)) {
        Some(defined) => LinkType {
            user_defined: false,
            id: defined.2,
        },
        None => LinkType {
            user_defined: true,
            id: FIRST_OTHER + (from * OBJECTS.len() + to) as u64,
        },
    }
}

/// The type of the primary link, where there is one.
pub(crate) fn primary(from: usize, to: usize) -> Option<LinkType> {
    let defined = DEFINED
        .iter()
        .find(|d| (d.0, d.1) == (from, to) && d.3 > 0)?;
    Some(LinkType {
        user_defined: false,
        id: defined.3,
    })
}

/// The type of the same link seen from the other end.
pub(crate) fn reverse(from: usize, to: usize, kind: LinkType) -> LinkType {
    if kind.user_defined && kind.id >= FIRST_LABEL {
        return LinkType {
            user_defined: true,
            id: kind.id ^ 1,
        };
    }
    if Some(kind) == primary(from, to)
        && let Some(back) = primary(to, from)
    {
        return back;
    }
    natural(to, from)
}

/// The object type that a type id of `from` leads to.
pub(crate) fn target(from: usize, kind: LinkType) -> Option<usize> {
    (0..OBJECTS.len()).find(|to| natural(from, *to) == kind || primary(from, *to) == Some(kind))
}

/// `CONTACT_TO_COMPANY`, as legacy events have it.
pub(crate) fn legacy_name(from: usize, to: usize) -> String {
    format!("{}_TO_{}", OBJECTS[from].singular, OBJECTS[to].singular).to_uppercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_turned_twice_is_itself() {
        for (from, to, plain, first) in DEFINED {
            for id in [plain, first].into_iter().filter(|id| *id > 0) {
                let kind = LinkType {
                    user_defined: false,
                    id,
                };
                assert_eq!(reverse(to, from, reverse(from, to, kind)), kind, "{id}");
                assert_eq!(target(from, kind), Some(to));
            }
        }
        let label = LinkType {
            user_defined: true,
            id: FIRST_LABEL,
        };
        assert_eq!(reverse(1, 0, reverse(0, 1, label)), label);
    }
}
