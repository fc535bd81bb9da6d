//! The standard links between the two CRMs: field pairs, as data.
//!
//! [`standard_map`] finds the pairs of two objects whichever way round they
//! are linked. Transforms are named here and carried out by the field map:
//!
//! | name | left to right | right to left |
//! |---|---|---|
//! | `identity` | the value | the value |
//! | `domain_url` | domain to website: `acme.com` to `https://acme.com`, unless the website's host is that domain already | website to domain: the host without `www.` |
//! | `date_of` | datetime to its UTC day; loses the time of day | |
//! | `datetime_of` | | day to its midnight UTC, unless the datetime is on that day already |
//! | `stage` | by [`STAGE`] | by [`STAGE`] |

/// Which way values go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Both ways.
    Both,
    /// From left to right only.
    ToRight,
    /// From right to left only.
    ToLeft,
}

impl Direction {
    fn swapped(self) -> Self {
        match self {
            Self::Both => Self::Both,
            Self::ToRight => Self::ToLeft,
            Self::ToLeft => Self::ToRight,
        }
    }
}

/// One pair of fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldPair {
    /// Field of the left object.
    pub left: &'static str,
    /// Field of the right object.
    pub right: &'static str,
    /// Which way values go.
    pub direction: Direction,
    /// Transform from left to right.
    pub to_right: &'static str,
    /// Transform from right to left.
    pub to_left: &'static str,
    /// Records with equal values describe the same thing.
    pub match_key: bool,
}

/// A side of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    /// Server TYPE.
    pub server_type: &'static str,
    /// API name of the object.
    pub object: &'static str,
}

/// The field pairs of two objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandardMap {
    /// Suggested name of the link.
    pub name: &'static str,
    /// Left object.
    pub left: Side,
    /// Right object.
    pub right: Side,
    /// The pairs.
    pub fields: Vec<FieldPair>,
}

const fn same(left: &'static str, right: &'static str) -> FieldPair {
    FieldPair {
        left,
        right,
        direction: Direction::Both,
        to_right: "identity",
        to_left: "identity",
        match_key: false,
    }
}

const fn key(left: &'static str, right: &'static str) -> FieldPair {
    FieldPair {
        match_key: true,
        ..same(left, right)
    }
}

const fn by(
    left: &'static str,
    right: &'static str,
    to_right: &'static str,
    to_left: &'static str,
) -> FieldPair {
    FieldPair {
        to_right,
        to_left,
        ..same(left, right)
    }
}

const CONTACT: &[FieldPair] = &[
    key("email", "Email"),
    same("firstname", "FirstName"),
    same("lastname", "LastName"),
    same("phone", "Phone"),
    same("mobilephone", "MobilePhone"),
    same("jobtitle", "Title"),
    same("address", "MailingStreet"),
    same("city", "MailingCity"),
    same("state", "MailingState"),
    same("zip", "MailingPostalCode"),
    same("country", "MailingCountry"),
];

const COMPANY: &[FieldPair] = &[
    FieldPair {
        match_key: true,
        ..by("domain", "Website", "domain_url", "domain_url")
    },
    same("name", "Name"),
    same("phone", "Phone"),
    same("annualrevenue", "AnnualRevenue"),
    same("numberofemployees", "NumberOfEmployees"),
    same("description", "Description"),
    same("address", "BillingStreet"),
    same("city", "BillingCity"),
    same("state", "BillingState"),
    same("zip", "BillingPostalCode"),
    same("country", "BillingCountry"),
];

const DEAL: &[FieldPair] = &[
    key("dealname", "Name"),
    same("amount", "Amount"),
    by("closedate", "CloseDate", "date_of", "datetime_of"),
    by("dealstage", "StageName", "stage", "stage"),
    same("description", "Description"),
];

/// `(name, left object, right object, pairs)`; left is HubSpot's. Industry is
/// not among them: the value sets differ, and a wrong guess would be written.
const MAPS: &[(&str, &str, &str, &[FieldPair])] = &[
    ("contacts", "contacts", "Contact", CONTACT),
    ("companies", "companies", "Account", COMPANY),
    ("deals", "deals", "Opportunity", DEAL),
];

/// Deal stage and opportunity stage, one to one: `(left, right)`. Stages that
/// are in neither column have no counterpart and are for a person to map.
pub const STAGE: &[(&str, &str)] = &[
    ("appointmentscheduled", "Prospecting"),
    ("qualifiedtobuy", "Qualification"),
    ("presentationscheduled", "Value Proposition"),
    ("decisionmakerboughtin", "Id. Decision Makers"),
    ("contractsent", "Negotiation/Review"),
    ("closedwon", "Closed Won"),
    ("closedlost", "Closed Lost"),
];

/// The pairs of a named value map, HubSpot's value first; `None` for
/// transforms that are no value map.
pub fn value_map(name: &str) -> Option<&'static [(&'static str, &'static str)]> {
    (name == "stage").then_some(STAGE)
}

/// All standard links, HubSpot on the left.
pub fn standard_maps() -> Vec<StandardMap> {
    MAPS.iter()
        .map(|(name, left, right, fields)| StandardMap {
            name,
            left: Side {
                server_type: "hubspot",
                object: left,
            },
            right: Side {
                server_type: "salesforce",
                object: right,
            },
            fields: fields.to_vec(),
        })
        .collect()
}

/// The standard link of two objects, sides as asked for. Two objects of the
/// same CRM and the same name are linked by the caller, field by field.
pub fn standard_map(left: (&str, &str), right: (&str, &str)) -> Option<StandardMap> {
    let is = |side: &Side, (server_type, object): (&str, &str)| {
        side.server_type == server_type && side.object.eq_ignore_ascii_case(object)
    };
    for map in standard_maps() {
        if is(&map.left, left) && is(&map.right, right) {
            return Some(map);
        }
        if is(&map.left, right) && is(&map.right, left) {
            return Some(swapped(map));
        }
    }
    None
}

fn swapped(map: StandardMap) -> StandardMap {
    StandardMap {
        name: map.name,
        left: map.right,
        right: map.left,
        fields: map
            .fields
            .into_iter()
            .map(|f| FieldPair {
                left: f.right,
                right: f.left,
                direction: f.direction.swapped(),
                to_right: f.to_left,
                to_left: f.to_right,
                match_key: f.match_key,
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_found_the_other_way_round_has_its_transforms_swapped() {
        let map = standard_map(("salesforce", "Opportunity"), ("hubspot", "deals")).unwrap();
        let close = map.fields.iter().find(|f| f.left == "CloseDate").unwrap();
        assert_eq!(close.right, "closedate");
        assert_eq!(close.to_right, "datetime_of");
        assert_eq!(close.to_left, "date_of");
    }

    #[test]
    fn value_maps_are_one_to_one_so_that_no_value_bounces() {
        for column in [0, 1] {
            let mut all: Vec<&str> = STAGE
                .iter()
                .map(|p| if column == 0 { p.0 } else { p.1 })
                .collect();
            all.sort_unstable();
            let before = all.len();
            all.dedup();
            assert_eq!(all.len(), before);
        }
    }

    #[test]
    fn every_standard_link_has_a_match_key() {
        for map in standard_maps() {
            assert!(map.fields.iter().any(|f| f.match_key), "{}", map.name);
        }
        assert!(standard_map(("hubspot", "contacts"), ("hubspot", "contacts")).is_none());
    }
}
