//! What an org's objects look like: fields, types, flags. The data model behind describe, SOQL, writes and change events.

use super::base::Gen;
use super::value::Value;
use std::collections::HashMap;

/// An object of the org. The number indexes [`Schema::objects`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub(crate) enum Obj {
    Account,
    Contact,
    Lead,
    Opportunity,
    Case,
    Task,
    User,
    Subscription,
    Event,
    Product,
    Price,
    LineItem,
}

impl Obj {
    /// All objects, in the order of their numbers.
    pub(crate) const ALL: [Self; 12] = [
        Self::Account,
        Self::Contact,
        Self::Lead,
        Self::Opportunity,
        Self::Case,
        Self::Task,
        Self::User,
        Self::Subscription,
        Self::Event,
        Self::Product,
        Self::Price,
        Self::LineItem,
    ];

    /// API name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Account => "Account",
            Self::Contact => "Contact",
            Self::Lead => "Lead",
            Self::Opportunity => "Opportunity",
            Self::Case => "Case",
            Self::Task => "Task",
            Self::User => "User",
            Self::Subscription => "Subscription__c",
            Self::Event => "Event",
            Self::Product => "Product2",
            Self::Price => "PricebookEntry",
            Self::LineItem => "OpportunityLineItem",
        }
    }

    /// First three characters of the ids of its records.
    pub(crate) const fn prefix(self) -> [u8; 3] {
        *match self {
            Self::Account => b"001",
            Self::Contact => b"003",
            Self::Lead => b"00Q",
            Self::Opportunity => b"006",
            Self::Case => b"500",
            Self::Task => b"00T",
            Self::User => b"005",
            Self::Subscription => b"a00",
            Self::Event => b"00U",
            Self::Product => b"01t",
            Self::Price => b"01u",
            Self::LineItem => b"00k",
        }
    }

    /// The object whose ids start with `prefix`.
    pub(crate) fn of_prefix(prefix: [u8; 3]) -> Option<Self> {
        Self::ALL.into_iter().find(|obj| obj.prefix() == prefix)
    }

    /// Name of its change event (`ContactChangeEvent`, `Subscription__ChangeEvent`).
    pub(crate) fn change_event(self) -> String {
        match self.name().strip_suffix("__c") {
            Some(stem) => format!("{stem}__ChangeEvent"),
            None => format!("{}ChangeEvent", self.name()),
        }
    }

    /// Whether Change Data Capture offers it; the others must be polled.
    pub(crate) const fn streams(self) -> bool {
        !matches!(self, Self::Price | Self::LineItem)
    }

    /// Whether an administrator made it.
    pub(crate) const fn custom(self) -> bool {
        matches!(self, Self::Subscription)
    }
}

/// Field type, as `describe` names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Id,
    Text,
    TextArea,
    Phone,
    Url,
    Email,
    Picklist,
    MultiPicklist,
    Boolean,
    Int,
    Double,
    Currency,
    Percent,
    Date,
    DateTime,
    Reference,
    /// A compound of address components; holds no value of its own.
    Address,
}

impl Kind {
    /// The `type` of `describe`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Text => "string",
            Self::TextArea => "textarea",
            Self::Phone => "phone",
            Self::Url => "url",
            Self::Email => "email",
            Self::Picklist => "picklist",
            Self::MultiPicklist => "multipicklist",
            Self::Boolean => "boolean",
            Self::Int => "int",
            Self::Double => "double",
            Self::Currency => "currency",
            Self::Percent => "percent",
            Self::Date => "date",
            Self::DateTime => "datetime",
            Self::Reference => "reference",
            Self::Address => "address",
        }
    }

    /// The `soapType` of `describe`.
    pub(crate) const fn soap(self) -> &'static str {
        match self {
            Self::Id | Self::Reference => "tns:ID",
            Self::Boolean => "xsd:boolean",
            Self::Int => "xsd:int",
            Self::Double | Self::Currency | Self::Percent => "xsd:double",
            Self::Date => "xsd:date",
            Self::DateTime => "xsd:dateTime",
            Self::Address => "urn:address",
            _ => "xsd:string",
        }
    }

    /// Whether values are text.
    pub(crate) const fn is_text(self) -> bool {
        matches!(
            self,
            Self::Text
                | Self::TextArea
                | Self::Phone
                | Self::Url
                | Self::Email
                | Self::Picklist
                | Self::MultiPicklist
        )
    }

    /// Whether values are fractional numbers.
    pub(crate) const fn is_number(self) -> bool {
        matches!(self, Self::Double | Self::Currency | Self::Percent)
    }
}

/// Properties of a field that are yes or no.
pub(crate) mod flag {
    /// A create without it fails; it can never be emptied.
    pub(crate) const REQUIRED: u32 = 1;
    pub(crate) const CREATE: u32 = 1 << 1;
    pub(crate) const UPDATE: u32 = 1 << 2;
    pub(crate) const CUSTOM: u32 = 1 << 3;
    pub(crate) const UNIQUE: u32 = 1 << 4;
    pub(crate) const EXTERNAL_ID: u32 = 1 << 5;
    /// Usable as the key of an upsert though it is no External ID.
    pub(crate) const ID_LOOKUP: u32 = 1 << 6;
    pub(crate) const CALCULATED: u32 = 1 << 7;
    pub(crate) const NAME: u32 = 1 << 8;
    /// Salesforce fills it when a create leaves it out.
    pub(crate) const DEFAULTED: u32 = 1 << 9;
    pub(crate) const RESTRICTED: u32 = 1 << 10;
    pub(crate) const AUTO_NUMBER: u32 = 1 << 11;
    /// Never part of a change event.
    pub(crate) const NO_EVENT: u32 = 1 << 12;
    /// The object does not have this system field.
    pub(crate) const HIDDEN: u32 = 1 << 13;
    /// Never null, though not required of a create (checkboxes, system fields).
    pub(crate) const NOT_NULL: u32 = 1 << 14;
    pub(crate) const WRITE: u32 = CREATE | UPDATE;
}

/// A field of an object.
#[derive(Clone)]
pub(crate) struct Field {
    pub(crate) name: &'static str,
    /// What people call it, where that does not follow from the name.
    pub(crate) label: Option<&'static str>,
    pub(crate) kind: Kind,
    /// Characters for text, else 0.
    pub(crate) length: u32,
    pub(crate) precision: u8,
    pub(crate) scale: u8,
    pub(crate) flags: u32,
    pub(crate) picklist: &'static [&'static str],
    pub(crate) refers: &'static [Obj],
    pub(crate) relationship: Option<&'static str>,
    /// The compound field this is a component of, and its name there (`MailingAddress`, `City`).
    pub(crate) compound: Option<(&'static str, &'static str)>,
    /// The value of a record nobody has written yet.
    pub(crate) base: fn(&Gen<'_>) -> Value,
}

impl Field {
    /// Whether all of `flags` are set.
    pub(crate) fn has(&self, flags: u32) -> bool {
        self.flags & flags == flags
    }

    /// Whether an upsert may use it as its key.
    pub(crate) fn is_key(&self) -> bool {
        self.flags & (flag::EXTERNAL_ID | flag::ID_LOOKUP) != 0
    }

    /// Whether the store keeps an index on it.
    pub(crate) fn is_indexed(&self) -> bool {
        self.flags & (flag::EXTERNAL_ID | flag::ID_LOOKUP | flag::UNIQUE) != 0
    }

    /// Long text, which makes query pages shrink.
    pub(crate) fn is_long_text(&self) -> bool {
        self.kind == Kind::TextArea && self.length > 255
    }

    /// Whether the field can be empty.
    pub(crate) fn nillable(&self) -> bool {
        self.flags & (flag::REQUIRED | flag::NOT_NULL) == 0
    }
}

/// Positions of the system fields, the same in every object.
pub(crate) mod at {
    pub(crate) const ID: usize = 0;
    pub(crate) const IS_DELETED: usize = 1;
    pub(crate) const CREATED_DATE: usize = 2;
    pub(crate) const CREATED_BY: usize = 3;
    pub(crate) const LAST_MODIFIED: usize = 4;
    pub(crate) const LAST_MODIFIED_BY: usize = 5;
    pub(crate) const STAMP: usize = 6;
}

/// One object with its fields.
pub(crate) struct Object {
    pub(crate) obj: Obj,
    pub(crate) label: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) fields: Vec<Field>,
    by_name: HashMap<String, usize>,
}

impl Object {
    /// An object of these fields; the first seven must be the system fields in the order of [`at`].
    pub(crate) fn new(
        obj: Obj,
        label: &'static str,
        plural: &'static str,
        fields: Vec<Field>,
    ) -> Self {
        let by_name = fields
            .iter()
            .enumerate()
            .filter(|(_, field)| !field.has(flag::HIDDEN))
            .map(|(at, field)| (field.name.to_ascii_lowercase(), at))
            .collect();
        Self {
            obj,
            label,
            plural,
            fields,
            by_name,
        }
    }

    /// Position of a field by API name, without regard to case.
    pub(crate) fn index(&self, name: &str) -> Option<usize> {
        self.by_name
            .get(name)
            .copied()
            .or_else(|| self.by_name.get(&name.to_ascii_lowercase()).copied())
    }

    /// Fields a caller can see, with their positions.
    pub(crate) fn visible(&self) -> impl Iterator<Item = (usize, &Field)> {
        self.fields
            .iter()
            .enumerate()
            .filter(|(_, field)| !field.has(flag::HIDDEN))
    }

    /// Components of a compound field with their positions.
    pub(crate) fn components(&self, compound: &str) -> Vec<(usize, &'static str)> {
        let named = |(at, field): (usize, &Field)| match field.compound {
            Some((owner, part)) if owner == compound => Some((at, part)),
            _ => None,
        };
        self.fields.iter().enumerate().filter_map(named).collect()
    }
}

/// All objects of the org.
pub(crate) struct Schema {
    pub(crate) objects: Vec<Object>,
}

impl Schema {
    /// The object's definition.
    pub(crate) fn object(&self, obj: Obj) -> &Object {
        &self.objects[obj as usize]
    }

    /// Finds an object by API name, without regard to case.
    pub(crate) fn find(&self, name: &str) -> Option<&Object> {
        self.objects
            .iter()
            .find(|object| object.obj.name().eq_ignore_ascii_case(name))
    }
}
