//! Who belongs to whom: contacts and companies of both CRMs with what ties them.

use crate::{EmulatorOptions, PATIENCE, Pair, PairOptions};

/// Both CRMs with so many people, nothing imported.
pub async fn start(contacts: u64) -> Pair {
    Pair::start(PairOptions {
        emulator: EmulatorOptions::default().contacts(contacts),
        ..PairOptions::default()
    })
    .await
}

/// Companies and contacts linked and live, with which contact belongs to which company.
pub async fn people(contacts: u64) -> Pair {
    let pair = start(contacts).await;
    pair.import("hubspot", &["companies", "contacts", "contacts_companies"])
        .await;
    pair.import("salesforce", &["Account", "Contact"]).await;
    pair.backfilled().await;
    pair.db
        .exec(
            "SELECT crm.link('hubspot.companies', 'salesforce.account'); SELECT crm.link('hubspot.contacts', 'salesforce.contact');
             UPDATE crm.field_map SET default_right = '(none)' WHERE right_field IN ('LastName', 'Name');
             SELECT crm.link_references('contacts');
             SELECT crm.go_live('companies'); SELECT crm.go_live('contacts'); SELECT crm.go_live('hubspot.contacts_companies')",
        )
        .await;
    pair.worker_has_read().await;
    pair
}

/// The id of a record's counterpart, once it has one.
pub async fn counterpart(pair: &Pair, from: &str, id: &str, to: &str) -> String {
    let mirror = |t: &str| {
        format!("(SELECT id FROM crm.mirror WHERE schema_name || '.' || table_name = '{t}')")
    };
    let sql = format!(
        "SELECT t.id FROM {from} s JOIN crm.xref a ON a.row_id = s._id AND a.mirror = {}
         JOIN crm.xref b ON b.entity = a.entity AND b.mirror = {} JOIN {to} t ON t._id = b.row_id WHERE s.id = '{id}' AND t.id IS NOT NULL",
        mirror(from),
        mirror(to)
    );
    let there = format!("SELECT EXISTS ({sql})");
    let what = format!("{from} {id} has a counterpart in {to}");
    pair.db.wait_true(&what, PATIENCE, &there).await;
    pair.db.one(&sql).await
}

/// Waits until HubSpot itself says whether two records are tied by a type.
pub async fn tied(pair: &Pair, kinds: &str, (from, to): (&str, &str), kind: u64, wanted: bool) {
    let object = kinds.replace('/', "--");
    let what = format!("{kinds} {from} {to} tied by {kind}: {wanted}");
    pair.cluster
        .wait_until(&what, PATIENCE, async || {
            let all = pair.emulator.record("hubspot", &object, from);
            let types = all[to].as_array().cloned().unwrap_or_default();
            (types.iter().any(|t| t == kind) == wanted).then_some(())
        })
        .await;
}

/// A company of HubSpot that a contact does not belong to, and its Account.
pub async fn another_company(pair: &Pair, contact: &str) -> (String, String) {
    let sql = format!(
        "SELECT c.id FROM hubspot.companies c JOIN crm.xref a ON a.row_id = c._id AND a.mirror = (SELECT left_mirror FROM crm.link WHERE name = 'companies')
         WHERE NOT EXISTS (SELECT FROM hubspot.contacts_companies x WHERE x.from_id = '{contact}' AND x.to_id = c.id) ORDER BY c._id LIMIT 1"
    );
    let company: String = pair.db.one(&sql).await;
    let account = counterpart(pair, "hubspot.companies", &company, "salesforce.account").await;
    (company, account)
}
