//! What tests of schema drift do: change fields in a CRM's settings, and answer.

use serde_json::{Value, json};

use crate::{EmulatorOptions, Options, PATIENCE, Pair, PairOptions};

/// Changes a field in the CRM's settings.
pub fn administer(pair: &Pair, crm: &str, object: &str, change: Value) {
    let body = json!({"object": object, "fields": change});
    pair.emulator
        .admin("POST", &format!("/_admin/{crm}/schema"), Some(&body));
}

/// A new text property of HubSpot contacts in which every record has its own id.
#[must_use]
pub fn new_property(name: &str) -> Value {
    json!({"do": "add", "name": name, "label": name, "type": "string", "fieldType": "text",
           "groupName": "contactinformation", "filled": true})
}

/// Waits until a condition holds.
pub async fn true_soon(pair: &Pair, what: &str, sql: &str) {
    pair.db.wait_true(what, PATIENCE, sql).await;
}

/// `n` contacts of HubSpot in a mirror, without a link.
pub async fn mirror(n: u64, cluster: Options) -> Pair {
    let pair = Pair::start(PairOptions {
        cluster,
        emulator: EmulatorOptions::default().contacts(n),
    })
    .await;
    pair.import("hubspot", &["contacts"]).await;
    pair.backfilled().await;
    pair
}

/// Sets what a mirror does when its CRM changes a field.
pub async fn policy(pair: &Pair, mirror: &str, policy: &str) {
    pair.db
        .exec(&format!("SELECT crm.schema_policy('{mirror}', '{policy}')"))
        .await;
}

/// Has the catalog of a server read again.
pub async fn refresh(pair: &Pair, server: &str) -> i64 {
    pair.db
        .one(&format!("SELECT crm.schema_refresh('{server}')"))
        .await
}

/// The only change of this kind and field.
pub async fn change(pair: &Pair, kind: &str, field: &str) -> Vec<String> {
    let sql = format!(
        "SELECT id, policy, state FROM crm.schema_change WHERE kind = '{kind}' AND field = '{field}'"
    );
    let rows = pair.db.table(&sql).await;
    assert_eq!(rows.len(), 1, "{kind} {field}: {rows:?}");
    rows[0].clone()
}

/// Answers the only change of this kind and field.
pub async fn answer(pair: &Pair, kind: &str, field: &str, answer: &str) {
    let id = change(pair, kind, field).await[0].clone();
    pair.db
        .exec(&format!("SELECT crm.schema_answer({id}, '{answer}')"))
        .await;
}

/// Whether contacts of HubSpot have a column of this type, as a condition.
#[must_use]
pub fn is_column(name: &str, of: &str) -> String {
    format!(
        "EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'hubspot.contacts'::regclass AND attname = '{name}'
         AND NOT attisdropped AND format_type(atttypid, atttypmod) = '{of}')"
    )
}
