//! Object types and properties: what can be stored and how it is described.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use super::{base::Source, search::SearchIndex, store::Live};
use crate::people::Kind;

/// The documented property types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    Bool,
    Date,
    DateTime,
    Enumeration,
    Number,
    PhoneNumber,
    Text,
}

impl Type {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Type::Bool => "bool",
            Type::Date => "date",
            Type::DateTime => "datetime",
            Type::Enumeration => "enumeration",
            Type::Number => "number",
            Type::PhoneNumber => "phone_number",
            Type::Text => "string",
        }
    }

    pub(crate) fn parse(name: &str) -> Option<Type> {
        Some(match name {
            "bool" => Type::Bool,
            "date" => Type::Date,
            "datetime" => Type::DateTime,
            "enumeration" => Type::Enumeration,
            "number" => Type::Number,
            "phone_number" => Type::PhoneNumber,
            "string" => Type::Text,
            _ => return None,
        })
    }
}

/// One choice of an enumeration.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    pub(crate) value: String,
    pub(crate) label: String,
}

/// One property of an object type.
#[derive(Clone, Debug)]
pub(crate) struct Property {
    pub(crate) name: String,
    pub(crate) label: String,
    pub(crate) description: String,
    pub(crate) kind: Type,
    pub(crate) field_type: String,
    pub(crate) group: String,
    pub(crate) choices: Vec<Choice>,
    pub(crate) read_only: bool,
    pub(crate) calculated: bool,
    pub(crate) unique: bool,
    pub(crate) hidden: bool,
    pub(crate) custom: bool,
    /// Comes back from every create and update, asked or not.
    pub(crate) echoed: bool,
    /// Comes back from reads that name no properties.
    pub(crate) default: bool,
    pub(crate) owner: bool,
    pub(crate) archived: bool,
    pub(crate) created_ms: i64,
    pub(crate) updated_ms: i64,
    /// Where the value of a record comes from that was never written.
    pub(crate) source: Source,
    /// `"name":`, ready to be sent.
    pub(crate) key: Vec<u8>,
}

impl Property {
    /// Whether several choices may be held at once.
    pub(crate) fn is_multiple(&self) -> bool {
        self.kind == Type::Enumeration && self.field_type == "checkbox"
    }
}

/// Index of a property in its [`Catalog`]; never reused.
pub(crate) type PropertyId = u16;

/// The properties of one object type.
#[derive(Clone, Debug, Default)]
pub(crate) struct Catalog {
    pub(crate) properties: Vec<Property>,
    by_name: HashMap<String, PropertyId>,
}

impl Catalog {
    /// The property called `name` (lower case as HubSpot's names are), unless archived.
    pub(crate) fn find(&self, name: &str) -> Option<PropertyId> {
        let id = *self.by_name.get(name)?;
        (!self.properties[usize::from(id)].archived).then_some(id)
    }

    /// The same, archived or not.
    pub(crate) fn find_any(&self, name: &str) -> Option<PropertyId> {
        self.by_name.get(name).copied()
    }

    pub(crate) fn get(&self, id: PropertyId) -> &Property {
        &self.properties[usize::from(id)]
    }

    /// Adds a property; `None` when the name is taken or the catalog full.
    pub(crate) fn add(&mut self, property: Property) -> Option<PropertyId> {
        let id = PropertyId::try_from(self.properties.len()).ok()?;
        if self.by_name.contains_key(&property.name) || id == PropertyId::MAX {
            return None;
        }
        self.by_name.insert(property.name.clone(), id);
        self.properties.push(property);
        Some(id)
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = PropertyId> + '_ {
        (0..self.properties.len() as PropertyId).filter(|id| !self.get(*id).archived)
    }
}

/// The fixed facts about an object type.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    pub(crate) type_id: &'static str,
    pub(crate) singular: &'static str,
    pub(crate) plural: &'static str,
    /// Name of the modified stamp.
    pub(crate) modified: &'static str,
    pub(crate) kind: Kind,
    pub(crate) custom: bool,
    /// Properties a create must carry.
    pub(crate) required: &'static [&'static str],
    pub(crate) catalog: &'static str,
}

/// All object types, standard ones first.
pub(crate) const OBJECTS: [Facts; 13] = [
    Facts {
        type_id: "0-1",
        singular: "contact",
        plural: "contacts",
        modified: "lastmodifieddate",
        kind: Kind::Person,
        custom: false,
        required: &[],
        catalog: include_str!("catalog/contacts.txt"),
    },
    Facts {
        type_id: "0-2",
        singular: "company",
        plural: "companies",
        modified: "hs_lastmodifieddate",
        kind: Kind::Company,
        custom: false,
        required: &[],
        catalog: include_str!("catalog/companies.txt"),
    },
    Facts {
        type_id: "0-3",
        singular: "deal",
        plural: "deals",
        modified: "hs_lastmodifieddate",
        kind: Kind::Deal,
        custom: false,
        required: &[],
        catalog: include_str!("catalog/deals.txt"),
    },
    Facts {
        type_id: "0-5",
        singular: "ticket",
        plural: "tickets",
        modified: "hs_lastmodifieddate",
        kind: Kind::Ticket,
        custom: false,
        required: &["hs_pipeline_stage"],
        catalog: include_str!("catalog/tickets.txt"),
    },
    Facts {
        type_id: "0-27",
        singular: "task",
        plural: "tasks",
        modified: "hs_lastmodifieddate",
        kind: Kind::Task,
        custom: false,
        required: &["hs_timestamp"],
        catalog: include_str!("catalog/tasks.txt"),
    },
    Facts {
        type_id: "0-47",
        singular: "meeting",
        plural: "meetings",
        modified: "hs_lastmodifieddate",
        kind: Kind::Meeting,
        custom: false,
        required: &["hs_timestamp"],
        catalog: include_str!("catalog/meetings.txt"),
    },
    Facts {
        type_id: "0-48",
        singular: "call",
        plural: "calls",
        modified: "hs_lastmodifieddate",
        kind: Kind::Call,
        custom: false,
        required: &["hs_timestamp"],
        catalog: include_str!("catalog/calls.txt"),
    },
    Facts {
        type_id: "0-46",
        singular: "note",
        plural: "notes",
        modified: "hs_lastmodifieddate",
        kind: Kind::Note,
        custom: false,
        required: &["hs_timestamp"],
        catalog: include_str!("catalog/notes.txt"),
    },
    Facts {
        type_id: "0-49",
        singular: "email",
        plural: "emails",
        modified: "hs_lastmodifieddate",
        kind: Kind::Email,
        custom: false,
        required: &["hs_timestamp"],
        catalog: include_str!("catalog/emails.txt"),
    },
    Facts {
        type_id: "0-7",
        singular: "product",
        plural: "products",
        modified: "hs_lastmodifieddate",
        kind: Kind::Product,
        custom: false,
        required: &[],
        catalog: include_str!("catalog/products.txt"),
    },
    Facts {
        type_id: "0-8",
        singular: "line_item",
        plural: "line_items",
        modified: "hs_lastmodifieddate",
        kind: Kind::LineItem,
        custom: false,
        required: &[],
        catalog: include_str!("catalog/line_items.txt"),
    },
    Facts {
        type_id: "0-136",
        singular: "lead",
        plural: "leads",
        modified: "hs_lastmodifieddate",
        kind: Kind::SalesLead,
        custom: false,
        required: &["hs_lead_name"],
        catalog: include_str!("catalog/leads.txt"),
    },
    Facts {
        type_id: "2-1001",
        singular: "subscriptions",
        plural: "subscriptions",
        modified: "hs_lastmodifieddate",
        kind: Kind::Subscription,
        custom: true,
        required: &["subscription_name"],
        catalog: include_str!("catalog/subscriptions.txt"),
    },
];

/// Records and properties of one object type.
pub(crate) struct Table {
    /// Position in [`OBJECTS`].
    pub(crate) index: usize,
    pub(crate) facts: &'static Facts,
    /// `p{portal}_{name}` for custom objects, else the plural in capitals.
    pub(crate) qualified: String,
    catalog: RwLock<Arc<Catalog>>,
    pub(crate) live: RwLock<Live>,
    pub(crate) search: SearchIndex,
}

impl Table {
    pub(crate) fn new(
        index: usize,
        portal: u64,
        catalog: Catalog,
        live: Live,
        search: SearchIndex,
    ) -> Table {
        let facts = &OBJECTS[index];
        Table {
            index,
            facts,
            qualified: if facts.custom {
                format!("p{portal}_{}", facts.plural)
            } else {
                facts.singular.to_uppercase()
            },
            catalog: RwLock::new(Arc::new(catalog)),
            live: RwLock::new(live),
            search,
        }
    }

    /// The properties as they are now.
    pub(crate) fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.catalog.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the properties; readers keep the version they hold.
    pub(crate) fn change_catalog<T>(&self, change: impl FnOnce(&mut Catalog) -> T) -> T {
        let mut guard = self.catalog.write().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut guard))
    }

    /// Whether `name` (name, singular, type id or qualified name, any case) is this type.
    pub(crate) fn is_called(&self, name: &str) -> bool {
        name == self.facts.type_id
            || name.eq_ignore_ascii_case(self.facts.plural)
            || name.eq_ignore_ascii_case(self.facts.singular)
            || name.eq_ignore_ascii_case(&self.qualified)
    }

    pub(crate) fn read(&self) -> std::sync::RwLockReadGuard<'_, Live> {
        self.live.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> std::sync::RwLockWriteGuard<'_, Live> {
        self.live.write().unwrap_or_else(PoisonError::into_inner)
    }
}
