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

/// The row of a person in a mirror whose text says something of him, if any does.
async fn shown(pair: &Pair, mirror: &str, who: &Person) -> i64 {
    pair.db
        .one(&format!(
            "SELECT count(*) FROM {mirror} t WHERE t::text LIKE '%{}%'",
            who.email
        ))
        .await
}

/// HubSpot erases a record, which had one of these ids; waits until its row says nothing.
async fn erased_in_hubspot(pair: &Pair, id: &str, who: &Person) {
    let record = json!({"object": "contacts", "id": id});
    pair.deed("hubspot", "privacy-delete", record);
    let forgotten = format!(
        "SELECT count(*) >= 1 AND NOT EXISTS (SELECT FROM hubspot.contacts t WHERE t::text LIKE '%{}%')
         FROM hubspot.contacts WHERE _sync_state = 'erased'",
        who.email
    );
    pair.db
        .wait_true("the row is erased", PATIENCE, &forgotten)
        .await;
    pair.quiet().await;
}

/// HubSpot tells the erasure and a removal at once; the removal untied the other record, and nobody was asked. And
/// what a steward had removed stood in its row for ever.
#[tokio::test(flavor = "multi_thread")]
async fn the_other_record_of_an_erased_person_at_rest_is_asked_about_and_goes_with_its_values() {
    let (pair, people) = pair().await;
    let who = &people[0];
    erased_in_hubspot(&pair, &who.hubspot, who).await;
    let asked = pair
        .db
        .table("SELECT r.kind, s.id FROM crm.review r JOIN salesforce.contact s ON s._id = r.row_id AND r.mirror = 'salesforce.contact'")
        .await;
    assert_eq!(asked, [["erase", who.salesforce.as_str()]]);
    assert_eq!(shown(&pair, "salesforce.contact", who).await, 1);
    pair.db
        .exec("SET pg_crm_sync.reason = 'they asked'; UPDATE crm.review SET resolution = 'delete'")
        .await;
    pair.cluster
        .wait_until("the other record goes", PATIENCE, async || {
            pair.gone("salesforce", "Contact", &who.salesforce)
                .then_some(())
        })
        .await;
    pair.quiet().await;
    assert_eq!(shown(&pair, "salesforce.contact", who).await, 0);
    assert_eq!(holding(&pair, &who.email).await, Vec::<String>::new());
    let told = pair
        .db
        .table("SELECT kind, resolution, because FROM crm.review_history")
        .await;
    assert_eq!(told, [["erase", "delete", "they asked"]]);
    // Its bin does not bring him back.
    let record = json!({"object": "Contact", "id": who.salesforce});
    let before = pair.events("pubsub").await;
    pair.deed("salesforce", "restore", record);
    pair.events_reach("pubsub", before + 1).await;
    pair.quiet().await;
    assert_eq!(shown(&pair, "salesforce.contact", who).await, 0);
    assert_eq!(shown(&pair, "hubspot.contacts", who).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_link_removes_with_an_erased_person_is_forgotten_and_what_it_hides_is_asked_about() {
    for (rule, forgotten) in [("propagate", true), ("soft_delete", false)] {
        let (pair, people) = pair().await;
        pair.db
            .exec(&format!("UPDATE crm.link SET on_left_delete = '{rule}'"))
            .await;
        pair.worker_has_read().await;
        let who = &people[0];
        erased_in_hubspot(&pair, &who.hubspot, who).await;
        let asked = "SELECT count(*) FROM crm.review WHERE kind = 'erase'";
        assert_eq!(pair.db.one::<i64>(asked).await, i64::from(!forgotten));
        if !forgotten {
            assert!(!pair.gone("salesforce", "Contact", &who.salesforce));
            pair.db
                .exec("UPDATE crm.review SET resolution = 'delete'")
                .await;
        }
        pair.cluster
            .wait_until("the other record goes", PATIENCE, async || {
                pair.gone("salesforce", "Contact", &who.salesforce)
                    .then_some(())
            })
            .await;
        pair.quiet().await;
        assert_eq!(shown(&pair, "salesforce.contact", who).await, 0, "{rule}");
        assert_eq!(holding(&pair, &who.email).await, Vec::<String>::new());
    }
}

/// A merged record's row, with its history, stayed when the one that it had become was erased.
#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_takes_along_what_was_merged_into_the_person() {
    let (pair, people) = pair().await;
    let [first, second, third] = [&people[0], &people[1], &people[2]];
    pair.edit("hubspot", second, "city", "canary-second");
    pair.reaches_both(second, "city", "canary-second").await;
    // Told after the merge it would be about a record on its own, of which a person is asked.
    pair.quiet().await;
    let mut id = first.hubspot.clone();
    for loser in [second, third] {
        let pair_of = json!({"object": "contacts", "winner": id, "loser": loser.hubspot});
        pair.deed("hubspot", "merge", pair_of);
        let merged = format!(
            "SELECT max(x.merged_into) FROM crm.xref x JOIN hubspot.contacts h ON h._id = x.row_id WHERE h.id = '{}'
             AND x.mirror = {HUBSPOT}",
            loser.hubspot
        );
        let there = format!("SELECT ({merged}) IS NOT NULL");
        pair.db.wait_true("it is merged", PATIENCE, &there).await;
        pair.quiet().await;
        id = pair.db.one(&merged).await;
    }
    erased_in_hubspot(&pair, &id, first).await;
    for who in [first, second, third] {
        assert_eq!(shown(&pair, "hubspot.contacts", who).await, 0, "{who:?}");
        assert_eq!(holding(&pair, &who.email).await, Vec::<String>::new());
    }
    assert_eq!(holding(&pair, "canary").await, Vec::<String>::new());
    let asked: i64 = pair
        .db
        .one("SELECT count(DISTINCT row_id) FROM crm.review WHERE mirror = 'salesforce.contact'")
        .await;
    assert_eq!(asked, 3, "each of the records in Salesforce");
}

/// The answer to a write under way marked the erased row as faulty, and so as one of the living.
#[tokio::test(flavor = "multi_thread")]
async fn the_answer_to_a_write_that_was_under_way_leaves_an_erased_row_erased() {
    let (pair, people) = pair().await;
    let who = &people[0];
    pair.emulator.fault(json!({
        "crm": "hubspot", "method": "POST", "path_prefix": "/crm/objects/2026-03/contacts/batch/update", "action": {"hold": {"ms": 2_000}},
    }));
    pair.edit("salesforce", who, "city", "canary-way");
    let sent = "SELECT count(*) > 0 FROM crm.write WHERE state = 'in_flight' AND vals::text LIKE '%canary-way%'";
    pair.db.wait_true("it is under way", PATIENCE, sent).await;
    erased_in_hubspot(&pair, &who.hubspot, who).await;
    pair.cluster
        .wait_until("HubSpot has answered", PATIENCE, async || {
            (pair.faults_left() == 0
                && pair.emulator.served(|c| {
                    c["crm"] == "hubspot"
                        && c["route"]
                            .as_str()
                            .is_some_and(|r| r.ends_with("batch/update"))
                }) > 0)
                .then_some(())
        })
        .await;
    // Something that is sent to HubSpot after it, and so answered after it.
    pair.sql(&people[1], "city", "Afterwards").await;
    pair.reaches_both(&people[1], "city", "Afterwards").await;
    pair.quiet().await;
    let states =
        "SELECT _sync_state, coalesce(_sync_error, '∅') FROM hubspot.contacts WHERE id IS NULL";
    assert_eq!(pair.db.table(states).await, [["erased", "∅"]]);
    assert_eq!(holding(&pair, "canary").await, Vec::<String>::new());
}

/// The removal, told before, had untied them: the values stayed until somebody was asked, though the link had removed
/// the other record.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_link_removed_just_before_the_erasure_was_told_is_forgotten() {
    let (pair, people) = pair().await;
    pair.db
        .exec("UPDATE crm.link SET on_left_delete = 'propagate'")
        .await;
    pair.worker_has_read().await;
    let who = &people[0];
    pair.emulator.delete("hubspot", "contacts", &who.hubspot);
    pair.cluster
        .wait_until("both records go", PATIENCE, async || {
            pair.gone("salesforce", "Contact", &who.salesforce)
                .then_some(())
        })
        .await;
    pair.quiet().await;
    assert_eq!(shown(&pair, "salesforce.contact", who).await, 1);
    erased_in_hubspot(&pair, &who.hubspot, who).await;
    let asked = "SELECT count(*) FROM crm.review WHERE kind = 'erase'";
    assert_eq!(pair.db.one::<i64>(asked).await, 0);
    assert_eq!(shown(&pair, "salesforce.contact", who).await, 0);
    assert_eq!(holding(&pair, &who.email).await, Vec::<String>::new());
}

/// The values of those that had become the erased record stayed: it had no row yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_merge_that_is_told_after_the_erasure_of_its_survivor_brings_nobody_back() {
    let (pair, people) = pair().await;
    let (winner, loser) = (&people[0], &people[1]);
    pair.edit("hubspot", winner, "city", "canary-winner");
    pair.reaches_both(winner, "city", "canary-winner").await;
    pair.quiet().await;
    let late = json!({"stream": "webhook", "delay_ms": 2_000});
    pair.emulator.fault(late);
    let merged = json!({"object": "contacts", "winner": winner.hubspot, "loser": loser.hubspot});
    let merged = pair.deed("hubspot", "merge", merged);
    pair.emulator.fault(json!({"stream": "webhook"}));
    let before = pair.events("webhook").await;
    pair.deed(
        "hubspot",
        "privacy-delete",
        json!({"object": "contacts", "id": merged["id"]}),
    );
    pair.events_reach("webhook", before + 3).await;
    pair.quiet().await;
    for who in [winner, loser] {
        assert_eq!(shown(&pair, "hubspot.contacts", who).await, 0);
        let asked = format!(
            "SELECT count(*) = 1 FROM crm.review r JOIN salesforce.contact s ON s._id = r.row_id WHERE r.kind = 'erase' AND s.id = '{}'",
            who.salesforce
        );
        pair.db
            .wait_true("the other record is asked about", PATIENCE, &asked)
            .await;
    }
}
