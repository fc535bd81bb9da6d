//! A privacy erasure: nothing of the person is left, and nothing brings it back.

use crm_tests::{PATIENCE, Pair, PairOptions, Person};
use serde_json::json;

async fn pair() -> (Pair, Vec<Person>) {
    Pair::linked(20, PairOptions::default()).await
}

/// Tables of schema crm in whose rows a text stands, as text or as bytes.
async fn holding(pair: &Pair, text: &str) -> Vec<String> {
    let tables = pair
        .db
        .table("SELECT c.oid::regclass::text FROM pg_class c WHERE c.relnamespace = 'crm'::regnamespace AND c.relkind IN ('r', 'p')")
        .await
        .concat();
    let hex: String = text.bytes().map(|b| format!("{b:02x}")).collect();
    let mut found = Vec::new();
    for table in tables {
        let sql = format!(
            "SELECT count(*) FROM {table} t WHERE t::text LIKE '%{text}%' OR t::text LIKE '%{hex}%'"
        );
        if pair.db.one::<i64>(&sql).await > 0 {
            found.push(table);
        }
    }
    found
}

const HUBSPOT: &str = "(SELECT id FROM crm.mirror WHERE server = 'hubspot')";

/// Values of a person everywhere where the engine keeps some.
async fn scatter(pair: &Pair, who: &Person) {
    pair.review_cities().await;
    // In the ledger, from three sides.
    pair.edit("hubspot", who, "jobtitle", "canary-hubspot");
    pair.reaches_both(who, "jobtitle", "canary-hubspot").await;
    pair.edit("salesforce", who, "zip", "canary-sf");
    pair.reaches_both(who, "zip", "canary-sf").await;
    pair.sql(who, "phone", "canary-sql").await;
    pair.reaches_both(who, "phone", "canary-sql").await;
    // In the outbox, and in a question.
    pair.hubspot_takes_nothing();
    pair.edit("salesforce", who, "address", "canary-outbox");
    pair.edit("salesforce", who, "city", "canary-candidate");
    // The first may be on its way when the second is decided: in one write or in two.
    for value in ["canary-outbox", "canary-candidate"] {
        let waits =
            format!("SELECT EXISTS (SELECT FROM crm.write WHERE vals::text LIKE '%{value}%')");
        pair.db.wait_true("its write waits", PATIENCE, &waits).await;
    }
    pair.edit("hubspot", who, "city", "canary-other");
    pair.db
        .wait_true(
            "a question waits",
            PATIENCE,
            "SELECT EXISTS (SELECT FROM crm.review WHERE candidates::text LIKE '%canary-other%')",
        )
        .await;
    // Among the dead letters and what is put off.
    pair.db
        .exec(&format!(
            "INSERT INTO crm.poison (mirror, server, source, record_id, change, error, advice)
             VALUES ({HUBSPOT}, 'hubspot', 'webhook', '{id}', '{{\"fields\": [[\"city\", \"canary-poison\"]]}}', 'canary-error', '')",
            id = who.hubspot
        ))
        .await;
    for table in [
        "crm.event",
        "crm.write",
        "crm.review_item",
        "crm.poison",
        "crm.field_state",
    ] {
        assert!(
            holding(pair, "canary").await.contains(&table.to_owned()),
            "{table} holds nothing to erase"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erased_person_leaves_no_value_anywhere_and_does_not_come_back() {
    let (pair, people) = pair().await;
    let who = &people[0];
    scatter(&pair, who).await;
    pair.deed(
        "hubspot",
        "privacy-delete",
        json!({"object": "contacts", "id": who.hubspot}),
    );
    pair.db
        .wait_true("the row is erased", PATIENCE, "SELECT count(*) = 1 FROM hubspot.contacts WHERE _sync_state = 'erased' AND id IS NULL AND email IS NULL AND _deleted_at IS NOT NULL")
        .await;
    pair.emulator.clear_faults();
    pair.quiet().await;
    assert_eq!(holding(&pair, "canary").await, Vec::<String>::new());
    assert_eq!(holding(&pair, &who.email).await, Vec::<String>::new());
    let shown: i64 = pair
        .db
        .one("SELECT count(*) FROM hubspot.contacts t WHERE t::text LIKE '%canary%'")
        .await;
    assert_eq!(shown, 0);
    let asked = pair
        .db
        .table("SELECT kind, mirror, reason FROM crm.review")
        .await;
    assert_eq!(
        asked,
        [[
            "erase",
            "salesforce.contact",
            "the same person was erased in hubspot"
        ]]
    );

    comes_late(&pair, who).await;
    pair.db
        .exec("UPDATE crm.review SET resolution = 'delete'")
        .await;
    pair.cluster
        .wait_until(
            "the other record goes as the steward said",
            PATIENCE,
            async || {
                pair.gone("salesforce", "Contact", &who.salesforce)
                    .then_some(())
            },
        )
        .await;
}

/// Stored events and webhooks from before the erasure.
async fn comes_late(pair: &Pair, who: &Person) {
    let late = json!({
        "object": "contacts", "record_id": who.hubspot, "kind": {"kind": "create"}, "fields": [["email", who.email], ["city", "canary-late"]],
        "reread": [], "occurred_at": 1, "identity": "late", "actor": "", "mark": "", "transaction": null,
    });
    pair.db
        .exec(&format!(
            "INSERT INTO crm.deferred (mirror, record_id, source, change, reason) VALUES ({HUBSPOT}, '{}', 'webhook', '{late}', 'locked');
             SELECT crm.webhook('hubspot', 'POST', 'http://localhost/webhook/hubspot', '{{}}', convert_to('[\"canary-raw\"]', 'UTF8'));
             INSERT INTO crm.config_change DEFAULT VALUES; SELECT crm._wake()",
            who.hubspot
        ))
        .await;
    pair.quiet().await;
    assert_eq!(holding(pair, "canary").await, Vec::<String>::new());
    let back: i64 = pair
        .db
        .one(&format!(
            "SELECT count(*) FROM hubspot.contacts WHERE id = '{}' OR email = '{}'",
            who.hubspot, who.email
        ))
        .await;
    assert_eq!(back, 0, "nobody comes back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_erased_by_sql_is_not_brought_back_by_event_poll_or_copy() {
    let (pair, people) = pair().await;
    let (who, other) = (&people[0], &people[1]);
    for (sql, code) in [
        ("SELECT crm.erase('salesforce.contact', '')", "22004"),
        ("SELECT crm.erase('salesforce.nope', '1')", "42704"),
    ] {
        assert_eq!(pair.db.error(sql).await.code().code(), code, "{sql}");
    }
    pair.db
        .exec(&format!(
            "SELECT crm.erase('salesforce.contact', '{}')",
            who.salesforce
        ))
        .await;
    pair.db
        .wait_true(
            "the row is erased",
            PATIENCE,
            "SELECT count(*) = 1 FROM salesforce.contact WHERE _sync_state = 'erased'",
        )
        .await;
    let before = pair.events("pubsub").await;
    pair.edit("salesforce", who, "city", "canary-event");
    pair.events_reach("pubsub", before + 1).await;
    pair.db
        .exec(
            "UPDATE crm.mirror SET poll_interval = '1 second' WHERE server = 'salesforce';
             UPDATE crm.backfill b SET state = 'waiting', cursor = NULL, done = 0, started_at = NULL, finished_at = NULL
             FROM crm.mirror m WHERE m.id = b.mirror AND m.server = 'salesforce';
             INSERT INTO crm.config_change DEFAULT VALUES; SELECT crm._wake()",
        )
        .await;
    pair.backfilled().await;
    pair.edit("salesforce", other, "city", "Afterwards");
    pair.reaches_both(other, "city", "Afterwards").await;
    pair.quiet().await;
    let back: i64 = pair
        .db
        .one(&format!(
            "SELECT count(*) FROM salesforce.contact WHERE id = '{}'",
            who.salesforce
        ))
        .await;
    assert_eq!(back, 0);
    assert_eq!(holding(&pair, "canary").await, Vec::<String>::new());
    assert_eq!(
        holding(&pair, &who.salesforce).await,
        Vec::<String>::new(),
        "not even the id"
    );
}
