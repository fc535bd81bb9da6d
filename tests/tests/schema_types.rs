//! A field gets another type in a CRM, into which not all of its values fit.

use crm_tests::{EmulatorOptions, Options, PATIENCE, Pair, PairOptions};
use serde_json::{Value, json};

/// Changes a field in the CRM's settings.
fn administer(pair: &Pair, crm: &str, object: &str, change: Value) {
    let body = json!({"object": object, "fields": change});
    pair.emulator
        .admin("POST", &format!("/_admin/{crm}/schema"), Some(&body));
}

/// A new text property of HubSpot contacts in which every record has its own id.
fn new_property(name: &str) -> Value {
    json!({"do": "add", "name": name, "label": name, "type": "string", "fieldType": "text",
           "groupName": "contactinformation", "filled": true})
}

async fn true_soon(pair: &Pair, what: &str, sql: &str) {
    pair.db.wait_true(what, PATIENCE, sql).await;
}

/// `n` contacts of HubSpot in a mirror, without a link.
async fn mirror(n: u64, cluster: Options) -> Pair {
    let pair = Pair::start(PairOptions {
        cluster,
        emulator: EmulatorOptions::default().contacts(n),
    })
    .await;
    pair.import("hubspot", &["contacts"]).await;
    pair.backfilled().await;
    pair
}

async fn policy(pair: &Pair, mirror: &str, policy: &str) {
    pair.db
        .exec(&format!("SELECT crm.schema_policy('{mirror}', '{policy}')"))
        .await;
}

async fn refresh(pair: &Pair, server: &str) -> i64 {
    pair.db
        .one(&format!("SELECT crm.schema_refresh('{server}')"))
        .await
}

/// The only change of this kind and field.
async fn change(pair: &Pair, kind: &str, field: &str) -> Vec<String> {
    let sql = format!(
        "SELECT id, policy, state FROM crm.schema_change WHERE kind = '{kind}' AND field = '{field}'"
    );
    let rows = pair.db.table(&sql).await;
    assert_eq!(rows.len(), 1, "{kind} {field}: {rows:?}");
    rows[0].clone()
}

async fn answer(pair: &Pair, kind: &str, field: &str, answer: &str) {
    let id = change(pair, kind, field).await[0].clone();
    pair.db
        .exec(&format!("SELECT crm.schema_answer({id}, '{answer}')"))
        .await;
}

fn is_column(name: &str, of: &str) -> String {
    format!(
        "EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'hubspot.contacts'::regclass AND attname = '{name}'
         AND NOT attisdropped AND format_type(atttypid, atttypmod) = '{of}')"
    )
}

/// A value that the new type cannot hold was nowhere any more, or kept the others from coming.
#[tokio::test(flavor = "multi_thread")]
async fn a_type_that_not_all_values_fit_is_answered_without_losing_one() {
    let pair = mirror(12, Options::default()).await;
    policy(&pair, "hubspot.contacts", "add").await;
    for name in ["points", "grade"] {
        administer(&pair, "hubspot", "contacts", new_property(name));
    }
    refresh(&pair, "hubspot").await;
    let filled =
        "SELECT count(*) = 0 FROM hubspot.contacts WHERE (points, grade) IS DISTINCT FROM (id, id)";
    true_soon(&pair, "both are filled", filled).await;
    let odd: String = pair.db.one("SELECT max(id) FROM hubspot.contacts").await;
    let words = json!({"points": "a lot", "grade": "good"});
    pair.emulator.edit("hubspot", "contacts", &odd, words);
    let told = format!(
        "SELECT points = 'a lot' AND grade = 'good' FROM hubspot.contacts WHERE id = '{odd}'"
    );
    true_soon(&pair, "the words came", &told).await;
    for name in ["points", "grade"] {
        administer(
            &pair,
            "hubspot",
            "contacts",
            json!({"do": "retype", "name": name, "type": "number", "fieldType": "number"}),
        );
    }
    refresh(&pair, "hubspot").await;
    let advice: String = pair
        .db
        .one("SELECT string_agg(DISTINCT advice, ' ') FROM crm.schema_change WHERE state = 'asked'")
        .await;
    for word in ["_was_", "crm.dead_letter", "ignore"] {
        assert!(advice.contains(word), "{word}: {advice}");
    }
    answer(&pair, "retyped", "grade", "ignore").await;
    answer(&pair, "retyped", "points", "apply").await;
    let fits = format!(
        "SELECT {} AND {} AND {} AND bool_and(points_was_text = points::text OR id = '{odd}' AND points IS NULL AND points_was_text = 'a lot')
         FROM hubspot.contacts",
        is_column("points", "numeric"),
        is_column("points_was_text", "text"),
        is_column("grade", "text")
    );
    true_soon(&pair, "what fits is a number, nothing is lost", &fits).await;
    let dead = format!(
        "SELECT count(*) > 0 FROM crm.dead_letter WHERE direction = 'in' AND record_id = '{odd}'"
    );
    true_soon(&pair, "what does not fit is told", &dead).await;
    // What stays text goes on as text, whatever the CRM calls it.
    let other: String = pair.db.one("SELECT min(id) FROM hubspot.contacts").await;
    pair.emulator
        .edit("hubspot", "contacts", &other, json!({"grade": "7"}));
    let goes_on = format!("SELECT grade = '7' FROM hubspot.contacts WHERE id = '{other}'");
    true_soon(&pair, "the text goes on", &goes_on).await;
}
