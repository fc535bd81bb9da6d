//! What the three sides hold, compared: each mirror with its CRM, and linked rows with each other.

use std::collections::HashMap;

use serde_json::Value;

use crate::wait::{PATIENCE, attempt};
use crate::{Emulator, Pair};

/// Mapped text fields that tests change: HubSpot's name (also of its column) and Salesforce's.
pub const FIELDS: [(&str, &str); 8] = [
    ("firstname", "FirstName"),
    ("lastname", "LastName"),
    ("phone", "Phone"),
    ("mobilephone", "MobilePhone"),
    ("jobtitle", "Title"),
    ("address", "MailingStreet"),
    ("city", "MailingCity"),
    ("zip", "MailingPostalCode"),
];

/// A person whom both CRMs know.
#[derive(Clone, Debug)]
pub struct Person {
    /// HubSpot's record id.
    pub hubspot: String,
    /// Salesforce's record id.
    pub salesforce: String,
    /// Unique on both sides.
    pub email: String,
}

/// One side: server, object, mirror, and which of [`FIELDS`]' names is its own.
struct Side {
    crm: &'static str,
    object: &'static str,
    mirror: &'static str,
    names: [&'static str; 8],
}

fn sides() -> [Side; 2] {
    [
        Side {
            crm: "hubspot",
            object: "contacts",
            mirror: "hubspot.contacts",
            names: FIELDS.map(|f| f.0),
        },
        Side {
            crm: "salesforce",
            object: "Contact",
            mirror: "salesforce.contact",
            names: FIELDS.map(|f| f.1),
        },
    ]
}

/// Differences named at most; the rest is counted.
const NAMED: usize = 12;

impl Pair {
    /// People that are linked, in the order of their rows.
    pub async fn people(&self) -> Vec<Person> {
        let sql = "SELECT h.id, s.id, h.email FROM crm.xref a JOIN hubspot.contacts h ON h._id = a.row_id
                   JOIN crm.xref b ON b.entity = a.entity AND b.mirror <> a.mirror JOIN salesforce.contact s ON s._id = b.row_id
                   WHERE a.mirror = (SELECT id FROM crm.mirror WHERE server = 'hubspot') AND h.id IS NOT NULL AND s.id IS NOT NULL ORDER BY h._id";
        self.db
            .table(sql)
            .await
            .into_iter()
            .map(|row| Person {
                hubspot: row[0].clone(),
                salesforce: row[1].clone(),
                email: row[2].clone(),
            })
            .collect()
    }

    /// Waits until the CRM's record holds `value`.
    pub async fn reaches(&self, crm: &str, object: &str, id: &str, field: &str, value: &str) {
        let what = format!("{crm} {object} {id} has {field} = {value}");
        self.cluster
            .wait_until(&what, PATIENCE, async || {
                let now = self.emulator.field(crm, object, id, field);
                (now.as_deref() == Some(value)).then_some(())
            })
            .await;
    }

    /// [`Self::reaches`] for both records of a person; `field` is HubSpot's name.
    pub async fn reaches_both(&self, person: &Person, field: &str, value: &str) {
        let theirs = theirs(field);
        self.reaches("hubspot", "contacts", &person.hubspot, field, value)
            .await;
        self.reaches("salesforce", "Contact", &person.salesforce, theirs, value)
            .await;
    }

    /// Waits until no change waits anywhere inside; parked, held and shadow writes may stay.
    pub async fn quiet(&self) {
        let sql = "SELECT NOT EXISTS (SELECT FROM crm.write WHERE state IN ('queued', 'in_flight', 'unknown'))
                      AND NOT EXISTS (SELECT FROM crm.deferred) AND NOT EXISTS (SELECT FROM crm.webhook_queue)
                      AND NOT EXISTS (SELECT FROM crm.change_0) AND NOT EXISTS (SELECT FROM crm.change_1)";
        self.db.wait_true("nothing waits", PATIENCE, sql).await;
    }

    /// Waits until all three sides hold the same; panics with the first differences.
    pub async fn agree(&self) {
        let mut last = Vec::new();
        // Twice in a row: an event between the two looks would be missed by one.
        let mut agreed = 0;
        let met = attempt(PATIENCE, &mut async || {
            self.quiet().await;
            last = self.differences().await;
            agreed = if last.is_empty() { agreed + 1 } else { 0 };
            (agreed >= 2).then_some(())
        })
        .await;
        if met.is_none() {
            let waiting = self.db.table("SELECT * FROM crm.status").await;
            let dead = self
                .db
                .table("SELECT direction, mirror, record_id, error FROM crm.dead_letter LIMIT 5")
                .await;
            panic!(
                "the sides do not agree, {} differences:\n  {}\nstatus: {waiting:#?}\ndead letters: {dead:#?}\nlog:\n{}",
                last.len(),
                last.iter()
                    .take(NAMED)
                    .cloned()
                    .collect::<Vec<_>>()
                    .join("\n  "),
                self.cluster.log_tail(30)
            );
        }
    }

    /// Where mirrors, CRMs and linked rows differ, in words.
    pub async fn differences(&self) -> Vec<String> {
        let mut out = Vec::new();
        for side in sides() {
            self.compare(&side, &mut out).await;
        }
        let differ = FIELDS
            .map(|(h, s)| format!("(h.{h} IS DISTINCT FROM s.{s})"))
            .join(" OR ");
        let shown = FIELDS
            .map(|(h, s)| format!("CASE WHEN h.{h} IS DISTINCT FROM s.{s} THEN '{h}: ' || coalesce(h.{h}, '∅') || ' / ' || coalesce(s.{s}, '∅') END"))
            .join(", ");
        let pairs = format!(
            "SELECT concat_ws(' ', h.id, s.id, {shown}) FROM crm.xref a JOIN hubspot.contacts h ON h._id = a.row_id
             JOIN crm.xref b ON b.entity = a.entity AND b.mirror <> a.mirror JOIN salesforce.contact s ON s._id = b.row_id
             WHERE a.mirror = (SELECT id FROM crm.mirror WHERE server = 'hubspot')
               AND h._deleted_at IS NULL AND s._deleted_at IS NULL AND ({differ})"
        );
        for row in self.db.table(&pairs).await {
            out.push(format!("linked rows differ: {}", row[0]));
        }
        out
    }

    async fn compare(&self, side: &Side, out: &mut Vec<String>) {
        let columns = side
            .names
            .map(|n| format!("t.{}", n.to_lowercase()))
            .join(", ");
        let sql = format!(
            "SELECT t.id, t._deleted_at IS NOT NULL, {columns} FROM {} t WHERE t.id IS NOT NULL",
            side.mirror
        );
        let rows: HashMap<String, Vec<String>> = self
            .db
            .table(&sql)
            .await
            .into_iter()
            .map(|row| (row[0].clone(), row))
            .collect();
        let live = rows.values().filter(|r| r[1] == "f").count();
        let count = self.emulator.digest(side.crm, side.object, &[])["count"].clone();
        if count != serde_json::json!(live) {
            out.push(format!(
                "{} has {count} live records, the mirror {live}",
                side.crm
            ));
        }
        for record in written(&self.emulator, side.crm, side.object) {
            let id = ["id", "Id"].iter().find_map(|k| record[k].as_str());
            let id = id.unwrap_or_else(|| panic!("a record without id: {record}"));
            let gone = ["gone", "archived", "IsDeleted"]
                .iter()
                .any(|k| record[k] == Value::Bool(true));
            match rows.get(id) {
                None if gone => {}
                None => out.push(format!("{} {id} is not in the mirror", side.crm)),
                Some(row) if gone => {
                    if row[1] == "f" {
                        out.push(format!("{} {id} is deleted, the mirror shows it", side.crm));
                    }
                }
                Some(row) => {
                    for (name, cell) in side.names.iter().zip(&row[2..]) {
                        let value = text(&record, name);
                        if value.as_deref().unwrap_or("∅") != cell {
                            out.push(format!(
                                "{} {id} {name} is {value:?}, the mirror has {cell:?}",
                                side.crm
                            ));
                        }
                    }
                }
            }
        }
    }
}

/// Salesforce's name of a mapped field.
#[must_use]
pub fn theirs(hubspot: &str) -> &'static str {
    FIELDS
        .iter()
        .find(|(h, _)| *h == hubspot)
        .map(|(_, s)| *s)
        .unwrap_or_else(|| panic!("{hubspot} is not one of the fields under test"))
}

fn text(record: &Value, name: &str) -> Option<String> {
    let value = match &record["properties"] {
        Value::Object(properties) => properties.get(name)?,
        _ => &record[name],
    };
    match value {
        Value::Null => None,
        Value::String(text) if text.is_empty() => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// All records that were written since the emulator started.
#[must_use]
pub fn written(emulator: &Emulator, crm: &str, object: &str) -> Vec<Value> {
    let mut all = Vec::new();
    let mut after = String::new();
    loop {
        let path = format!("/_admin/{crm}/objects/{object}?limit=10000{after}");
        let page = emulator.admin("GET", &path, None);
        all.extend(page["records"].as_array().cloned().unwrap_or_default());
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return all,
        }
    }
}
