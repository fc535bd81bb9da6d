//! The objects of the emulated org. Order of fields is the order of their change events: standard fields first, as in
//! Salesforce's own documentation of `AccountChangeEvent`, custom fields last.

use super::base::Gen;
use super::sales_objects::{event, line_item, price, product};
use super::schema::{Field, Kind, Obj, Object, Schema, flag};
use super::value::Value;
use super::work_objects::{case, opportunity, subscription, task, user};

pub(super) type Base = fn(&Gen<'_>) -> Value;

pub(super) const NONE: Base = |_| Value::Null;

pub(super) fn field(name: &'static str, kind: Kind, length: u32, base: Base) -> Field {
    Field {
        name,
        label: None,
        kind,
        length,
        precision: 0,
        scale: 0,
        flags: flag::WRITE,
        picklist: &[],
        refers: &[],
        relationship: None,
        compound: None,
        base,
    }
}

pub(super) fn text(name: &'static str, length: u32, base: Base) -> Field {
    field(name, Kind::Text, length, base)
}

pub(super) fn pick(name: &'static str, values: &'static [&'static str], base: Base) -> Field {
    Field {
        picklist: values,
        ..field(name, Kind::Picklist, 255, base)
    }
}

pub(super) fn number(
    name: &'static str,
    kind: Kind,
    precision: u8,
    scale: u8,
    base: Base,
) -> Field {
    Field {
        precision,
        scale,
        ..field(name, kind, 0, base)
    }
}

pub(super) fn flagged(name: &'static str, base: Base) -> Field {
    field(name, Kind::Boolean, 0, base).with(flag::DEFAULTED | flag::NOT_NULL)
}

pub(super) fn refers(
    name: &'static str,
    to: &'static [Obj],
    relationship: &'static str,
    base: Base,
) -> Field {
    Field {
        refers: to,
        relationship: Some(relationship),
        ..field(name, Kind::Reference, 18, base)
    }
}

pub(super) fn owner() -> Field {
    refers("OwnerId", &[Obj::User], "Owner", |gen_| {
        Value::Id(gen_.owner())
    })
    .with(flag::DEFAULTED | flag::NOT_NULL)
}

impl Field {
    pub(super) fn with(mut self, flags: u32) -> Self {
        self.flags |= flags;
        self
    }

    pub(super) fn without(mut self, flags: u32) -> Self {
        self.flags &= !flags;
        self
    }

    pub(super) fn read_only(self) -> Self {
        self.without(flag::WRITE)
    }

    pub(super) fn part(mut self, compound: &'static str, name: &'static str) -> Self {
        self.compound = Some((compound, name));
        self
    }
}

pub(super) fn system(obj: Obj) -> Vec<Field> {
    let fixed = flag::NOT_NULL | flag::DEFAULTED;
    let hidden = if obj == Obj::User { flag::HIDDEN } else { 0 };
    vec![
        field("Id", Kind::Id, 18, |gen_| Value::Id(gen_.id()))
            .read_only()
            .with(fixed | flag::ID_LOOKUP | flag::NO_EVENT),
        field("IsDeleted", Kind::Boolean, 0, |_| Value::Bool(false))
            .read_only()
            .with(fixed | flag::NO_EVENT | hidden),
        field("CreatedDate", Kind::DateTime, 0, |gen_| gen_.created())
            .read_only()
            .with(fixed),
        refers("CreatedById", &[Obj::User], "CreatedBy", |gen_| {
            Value::Id(gen_.owner())
        })
        .read_only()
        .with(fixed),
        field("LastModifiedDate", Kind::DateTime, 0, |gen_| {
            Value::DateTime(gen_.stamp())
        })
        .read_only()
        .with(fixed),
        refers("LastModifiedById", &[Obj::User], "LastModifiedBy", |gen_| {
            Value::Id(gen_.owner())
        })
        .read_only()
        .with(fixed),
        field("SystemModstamp", Kind::DateTime, 0, |gen_| {
            Value::DateTime(gen_.stamp())
        })
        .read_only()
        .with(fixed | flag::NO_EVENT),
    ]
}

/// Address components; `$base` is used as a path of generator methods for the parts that base records have.
macro_rules! address {
    ($prefix:literal, $filled:expr) => {{
        const COMPOUND: &str = concat!($prefix, "Address");
        let fill = |base: Base| if $filled { base } else { NONE };
        [
            field(
                concat!($prefix, "Street"),
                Kind::TextArea,
                255,
                fill(|gen_| gen_.street()),
            )
            .part(COMPOUND, "Street"),
            text(concat!($prefix, "City"), 40, fill(|gen_| gen_.city())).part(COMPOUND, "City"),
            text(concat!($prefix, "State"), 80, fill(|gen_| gen_.state())).part(COMPOUND, "State"),
            text(concat!($prefix, "PostalCode"), 20, fill(|gen_| gen_.zip()))
                .part(COMPOUND, "PostalCode"),
            text(concat!($prefix, "Country"), 80, fill(|gen_| gen_.country()))
                .part(COMPOUND, "Country"),
            number(concat!($prefix, "Latitude"), Kind::Double, 18, 15, NONE)
                .part(COMPOUND, "Latitude"),
            number(concat!($prefix, "Longitude"), Kind::Double, 18, 15, NONE)
                .part(COMPOUND, "Longitude"),
            Field {
                length: 40,
                ..pick(
                    concat!($prefix, "GeocodeAccuracy"),
                    &["Address", "NearAddress", "Block", "Street", "City", "Zip"],
                    NONE,
                )
            }
            .with(flag::RESTRICTED)
            .part(COMPOUND, "GeocodeAccuracy"),
            field(COMPOUND, Kind::Address, 0, NONE).read_only(),
        ]
    }};
}

fn person_name() -> [Field; 4] {
    [
        text("LastName", 80, |gen_| gen_.last())
            .with(flag::REQUIRED)
            .part("Name", "LastName"),
        text("FirstName", 40, |gen_| gen_.first()).part("Name", "FirstName"),
        pick("Salutation", SALUTATIONS, |gen_| gen_.salutation()).part("Name", "Salutation"),
        text("Name", 121, |gen_| gen_.full_name())
            .read_only()
            .with(flag::NAME | flag::NO_EVENT | flag::NOT_NULL),
    ]
}

const SALUTATIONS: &[&str] = &["Mr.", "Ms.", "Mrs.", "Dr.", "Prof.", "Mx."];
const INDUSTRIES: &[&str] = &[
    "Agriculture",
    "Banking",
    "Biotechnology",
    "Construction",
    "Consulting",
    "Education",
    "Electronics",
    "Energy",
    "Finance",
    "Healthcare",
    "Insurance",
    "Manufacturing",
    "Media",
    "Retail",
    "Technology",
    "Telecommunications",
    "Transportation",
    "Utilities",
    "Other",
];
pub(super) const LEAD_SOURCES: &[&str] = &[
    "Web",
    "Phone Inquiry",
    "Partner Referral",
    "Purchased List",
    "Other",
];
const RATINGS: &[&str] = &["Hot", "Warm", "Cold"];

/// The External ID and the marker field of a synchronisation, as an administrator would have added them.
fn sync_fields(with_external_id: bool) -> Vec<Field> {
    let mut fields = Vec::new();
    if with_external_id {
        fields.push(
            text("pg_crm_sync_id__c", 64, NONE)
                .with(flag::CUSTOM | flag::UNIQUE | flag::EXTERNAL_ID),
        );
    }
    fields.push(text("sync_source__c", 255, NONE).with(flag::CUSTOM));
    fields
}

pub(super) fn master_record(to: &'static [Obj]) -> Field {
    refers("MasterRecordId", to, "MasterRecord", NONE)
        .read_only()
        .with(flag::NO_EVENT)
}

fn account() -> Vec<Field> {
    let mut fields = system(Obj::Account);
    fields.extend([
        text("Name", 255, |gen_| gen_.company_name()).with(flag::REQUIRED | flag::NAME),
        pick(
            "Type",
            &[
                "Prospect",
                "Customer - Direct",
                "Customer - Channel",
                "Other",
            ],
            |_| Value::text("Prospect"),
        ),
        refers("ParentId", &[Obj::Account], "Parent", NONE),
    ]);
    fields.extend(address!("Billing", true));
    fields.extend(address!("Shipping", false));
    fields.extend([
        field("Phone", Kind::Phone, 40, |gen_| gen_.phone()),
        field("Fax", Kind::Phone, 40, NONE),
        text("AccountNumber", 40, |gen_| {
            Value::text(&format!("A-{:06}", gen_.n))
        }),
        field("Website", Kind::Url, 255, |gen_| gen_.website()),
        text("Sic", 20, NONE),
        pick("Industry", INDUSTRIES, |gen_| gen_.industry(INDUSTRIES)),
        number("AnnualRevenue", Kind::Currency, 18, 0, |gen_| {
            gen_.revenue()
        }),
        number("NumberOfEmployees", Kind::Int, 8, 0, |gen_| {
            gen_.employees()
        }),
        pick(
            "Ownership",
            &["Public", "Private", "Subsidiary", "Other"],
            NONE,
        ),
        text("TickerSymbol", 20, NONE),
        field("Description", Kind::TextArea, 32_000, NONE),
        pick("Rating", RATINGS, |gen_| gen_.pick(RATINGS, 5)),
        text("Site", 80, NONE),
        owner(),
        master_record(&[Obj::Account]),
    ]);
    fields
}

fn contact() -> Vec<Field> {
    let mut fields = system(Obj::Contact);
    fields.push(refers("AccountId", &[Obj::Account], "Account", |gen_| {
        gen_.account()
    }));
    fields.extend(person_name());
    fields.extend(address!("Other", false));
    fields.extend(address!("Mailing", true));
    fields.extend([
        field("Phone", Kind::Phone, 40, |gen_| gen_.phone()),
        field("Fax", Kind::Phone, 40, NONE),
        field("MobilePhone", Kind::Phone, 40, |gen_| gen_.mobile()),
        field("HomePhone", Kind::Phone, 40, NONE),
        refers("ReportsToId", &[Obj::Contact], "ReportsTo", NONE),
        field("Email", Kind::Email, 80, |gen_| gen_.email()).with(flag::ID_LOOKUP),
        text("Title", 128, |gen_| gen_.title()),
        text("Department", 80, |gen_| gen_.department()),
        pick("LeadSource", LEAD_SOURCES, |gen_| {
            gen_.pick(LEAD_SOURCES, 7)
        }),
        field("Birthdate", Kind::Date, 0, |gen_| gen_.date(-12_000, 8_000)),
        field("Description", Kind::TextArea, 32_000, NONE),
        owner(),
        flagged("HasOptedOutOfEmail", |gen_| Value::Bool(gen_.n % 11 == 0)),
        flagged("DoNotCall", |_| Value::Bool(false)),
        master_record(&[Obj::Contact]),
    ]);
    fields.push(
        pick("Level__c", &["Primary", "Secondary", "Tertiary"], |gen_| {
            gen_.pick(&["Primary", "Secondary"], 11)
        })
        .with(flag::CUSTOM | flag::RESTRICTED),
    );
    fields.push(
        Field {
            picklist: &["English", "German", "French", "Spanish"],
            ..field("Languages__c", Kind::MultiPicklist, 4_099, |gen_| {
                gen_.languages()
            })
        }
        .with(flag::CUSTOM),
    );
    fields.push(number("Score__c", Kind::Double, 6, 2, |gen_| gen_.score()).with(flag::CUSTOM));
    fields
}

fn lead() -> Vec<Field> {
    let mut fields = system(Obj::Lead);
    fields.extend(person_name());
    fields.extend([
        text("Title", 128, |gen_| gen_.title()),
        text("Company", 255, |gen_| gen_.company_name()).with(flag::REQUIRED),
    ]);
    fields.extend(address!("", true));
    fields.extend([
        field("Phone", Kind::Phone, 40, |gen_| gen_.phone()),
        field("MobilePhone", Kind::Phone, 40, |gen_| gen_.mobile()),
        field("Email", Kind::Email, 80, |gen_| gen_.lead_email()).with(flag::ID_LOOKUP),
        field("Website", Kind::Url, 255, NONE),
        field("Description", Kind::TextArea, 32_000, NONE),
        pick("LeadSource", LEAD_SOURCES, |gen_| {
            gen_.pick(LEAD_SOURCES, 7)
        }),
        pick(
            "Status",
            &[
                "Open - Not Contacted",
                "Working - Contacted",
                "Closed - Converted",
                "Closed - Not Converted",
            ],
            |_| Value::text("Open - Not Contacted"),
        )
        .with(flag::DEFAULTED | flag::NOT_NULL),
        pick("Industry", INDUSTRIES, |gen_| gen_.industry(INDUSTRIES)),
        pick("Rating", RATINGS, NONE),
        number("AnnualRevenue", Kind::Currency, 18, 0, NONE),
        number("NumberOfEmployees", Kind::Int, 8, 0, NONE),
        owner(),
        flagged("IsConverted", |_| Value::Bool(false)).without(flag::UPDATE),
        field("ConvertedDate", Kind::Date, 0, NONE).read_only(),
        refers(
            "ConvertedAccountId",
            &[Obj::Account],
            "ConvertedAccount",
            NONE,
        )
        .read_only(),
        refers(
            "ConvertedContactId",
            &[Obj::Contact],
            "ConvertedContact",
            NONE,
        )
        .read_only(),
        refers(
            "ConvertedOpportunityId",
            &[Obj::Opportunity],
            "ConvertedOpportunity",
            NONE,
        )
        .read_only(),
        master_record(&[Obj::Lead]),
    ]);
    fields
}

/// The org's objects. Without `external_id`, no object has `pg_crm_sync_id__c`: an org whose administrator added nothing.
pub(crate) fn schema(external_id: bool) -> Schema {
    let finish = |obj, label, plural, mut fields: Vec<Field>| {
        if obj != Obj::User {
            fields.extend(sync_fields(external_id));
        }
        Object::new(obj, label, plural, fields)
    };
    Schema {
        objects: vec![
            finish(Obj::Account, "Account", "Accounts", account()),
            finish(Obj::Contact, "Contact", "Contacts", contact()),
            finish(Obj::Lead, "Lead", "Leads", lead()),
            finish(
                Obj::Opportunity,
                "Opportunity",
                "Opportunities",
                opportunity(),
            ),
            finish(Obj::Case, "Case", "Cases", case()),
            finish(Obj::Task, "Task", "Tasks", task()),
            finish(Obj::User, "User", "Users", user()),
            finish(
                Obj::Subscription,
                "Subscription",
                "Subscriptions",
                subscription(),
            ),
            finish(Obj::Event, "Event", "Events", event()),
            finish(Obj::Product, "Product", "Products", product()),
            finish(
                Obj::Price,
                "Price Book Entry",
                "Price Book Entries",
                price(),
            ),
            finish(
                Obj::LineItem,
                "Opportunity Product",
                "Opportunity Product",
                line_item(),
            ),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_where_their_number_says() {
        let schema = schema(true);
        for obj in Obj::ALL {
            assert_eq!(schema.object(obj).obj, obj);
            assert_eq!(
                schema
                    .find(&obj.name().to_uppercase())
                    .map(|found| found.obj),
                Some(obj)
            );
        }
    }

    #[test]
    fn the_external_id_field_can_be_left_out() {
        let schema = super::schema(false);
        assert_eq!(schema.object(Obj::Contact).index("pg_crm_sync_id__c"), None);
        assert!(
            schema
                .object(Obj::Contact)
                .index("sync_source__c")
                .is_some()
        );
    }
}
