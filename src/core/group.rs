//! What is decided together: the mirrors of one group, their fields and maps.

use crate::model::FieldType;
use crate::transform::Transform;

/// Mirrors whose rows describe the same things. A mirror without a link is a
/// group with one side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Number of the group in the catalog.
    pub id: i32,
    /// Its mirrors.
    pub sides: Vec<Side>,
    /// Its fields, each with at most one column per side.
    pub fields: Vec<GroupField>,
}

/// One mirror of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Side {
    /// Number of the mirror in the catalog.
    pub mirror: i32,
    /// Name of the server: the origin of changes made there.
    pub origin: String,
    /// Writes may be sent. Decisions do not depend on it; what is queued waits.
    pub live: bool,
    /// Changes of other sides are shown as writes, but neither sent nor put into
    /// the mirror.
    pub shadow: bool,
}

/// One field of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupField {
    /// Name that policy rows use.
    pub name: String,
    /// One entry per side of the group; `None` where it is not mapped.
    pub sides: Vec<Option<SideField>>,
}

/// How a field appears on one side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SideField {
    /// Column of the mirror and API name at the CRM.
    pub field: String,
    /// Type at the CRM.
    pub field_type: FieldType,
    /// Longest text in characters; longer values of other sides are cut.
    pub max_length: Option<i32>,
    /// The CRM lets us write it.
    pub writable: bool,
    /// Values flow from this side to the group.
    pub inbound: bool,
    /// Values flow from the group to this side.
    pub outbound: bool,
    /// From the group's value to this side's.
    pub to_side: Transform,
    /// From this side's value to the group's.
    pub from_side: Transform,
    /// The CRM refuses a record without it.
    pub required: bool,
    /// What to send in place of blank.
    pub default: Option<String>,
    /// Where the map ties several columns of this side: all of them, in order;
    /// see [`crate::structure`]. `field` is then the first.
    pub parts: Vec<Part>,
}

/// One of several columns that are one value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Column of the mirror and API name at the CRM.
    pub field: String,
    /// Longest text in characters.
    pub max_length: Option<i32>,
    /// The CRM refuses a record without it.
    pub required: bool,
    /// What to send in place of blank.
    pub default: Option<String>,
}

impl SideField {
    /// A text column that maps one to one in both directions.
    pub fn text(field: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            field_type: FieldType::Text,
            max_length: None,
            writable: true,
            inbound: true,
            outbound: true,
            to_side: Transform::Identity,
            from_side: Transform::Identity,
            required: false,
            default: None,
            parts: Vec::new(),
        }
    }

    /// Whether a value of the group may be written there.
    pub fn accepts_writes(&self) -> bool {
        self.writable && self.outbound
    }
}

impl Group {
    /// The column of `field` on `side`, where it is mapped.
    pub fn column(&self, field: usize, side: usize) -> Option<&SideField> {
        self.fields.get(field)?.sides.get(side)?.as_ref()
    }

    /// Origin of a side; empty for a side that does not exist.
    pub fn origin(&self, side: usize) -> &str {
        self.sides.get(side).map_or("", |s| s.origin.as_str())
    }
}
