//! What keeps changes from travelling, or makes them travel another way: filters, pauses, polls, rights.

use crm_tests::{PATIENCE, Pair, PairOptions, Person, wait_until};
use serde_json::json;

async fn pair() -> (Pair, Vec<Person>) {
    Pair::linked(20, PairOptions::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_webhooks_are_made_up_for_by_polling() {
    let (pair, people) = pair().await;
    pair.db
        .exec("UPDATE crm.mirror SET poll_interval = '1 second' WHERE server = 'hubspot'")
        .await;
    pair.emulator
        .fault(json!({"stream": "webhook", "lose": 1_000_000}));
    for who in &people[..5] {
        pair.edit("hubspot", who, "jobtitle", "Polled");
    }
    let fields = json!({"email": "polled@example.net", "firstname": "Pol", "lastname": "Led"});
    pair.emulator.create("hubspot", "contacts", fields);
    for who in &people[..5] {
        pair.reaches_both(who, "jobtitle", "Polled").await;
    }
    let made = "SELECT count(*) = 1 FROM salesforce.contact WHERE email = 'polled@example.net' AND id IS NOT NULL";
    pair.db
        .wait_true("the new record goes across", PATIENCE, made)
        .await;
    pair.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_working_event_stream_salesforce_is_polled() {
    let (pair, people) = pair().await;
    pair.db
        .exec(
            "ALTER SERVER salesforce OPTIONS (SET pubsub_endpoint 'http://127.0.0.1:9');
             UPDATE crm.mirror SET poll_interval = '1 second' WHERE server = 'salesforce'",
        )
        .await;
    for who in &people[..5] {
        pair.edit("salesforce", who, "jobtitle", "Polled");
    }
    for who in &people[..5] {
        pair.reaches_both(who, "jobtitle", "Polled").await;
    }
    pair.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_filter_keeps_records_out_of_the_mirror_and_of_the_other_crm() {
    let mut options = PairOptions::default();
    options.emulator = options.emulator.contacts(20);
    let pair = Pair::start(options).await;
    pair.db
        .exec("SELECT crm.import('hubspot', ARRAY['contacts'], into_schema => 'hubspot', row_filter => '{\"contacts\": \"city <> ''Nowhere''\"}')")
        .await;
    pair.import("salesforce", &["Contact"]).await;
    pair.backfilled().await;
    pair.db
        .exec("SELECT crm.link('hubspot.contacts', 'salesforce.contact'); SELECT crm.go_live('contacts')")
        .await;
    pair.quiet().await;
    let before = pair.live("salesforce", "Contact");
    for (email, city) in [
        ("out@example.net", "Nowhere"),
        ("in@example.net", "Somewhere"),
    ] {
        let fields = json!({"email": email, "firstname": "F", "lastname": "L", "city": city});
        pair.emulator.create("hubspot", "contacts", fields);
    }
    let made = "SELECT count(*) = 1 FROM salesforce.contact WHERE email = 'in@example.net' AND id IS NOT NULL";
    pair.db
        .wait_true("the wanted one goes across", PATIENCE, made)
        .await;
    pair.quiet().await;
    let rows: i64 = pair
        .db
        .one("SELECT count(*) FROM hubspot.contacts WHERE email = 'out@example.net'")
        .await;
    assert_eq!(rows, 0, "the filtered record has no row");
    assert_eq!(pair.live("salesforce", "Contact"), before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_paused_makes_no_calls_and_loses_nothing() {
    let (pair, people) = pair().await;
    let (a, b, c) = (&people[0], &people[1], &people[2]);
    for (kind, name) in [
        ("server", "salesforce"),
        ("mirror", "salesforce.contact"),
        ("link", "contacts"),
    ] {
        pair.agree().await;
        pair.db
            .exec(&format!("SELECT crm.pause('{kind}', '{name}')"))
            .await;
        // A pause holds from the worker's next turn on.
        let read = "SELECT NOT EXISTS (SELECT FROM crm.config_change)";
        pair.db
            .wait_true("the worker knows of it", PATIENCE, read)
            .await;
        let value = format!("Paused {kind}");
        pair.emulator.reset_counts();
        let before = pair.events("webhook").await;
        pair.edit("hubspot", a, "jobtitle", &value);
        pair.edit("salesforce", b, "jobtitle", &value);
        pair.sql(c, "jobtitle", &value).await;
        pair.events_reach("webhook", before + 1).await;
        let waits = format!(
            "SELECT count(*) >= 2 FROM crm.outbox WHERE mirror = 'salesforce.contact' AND send::text LIKE '%{value}%'"
        );
        pair.db
            .wait_true("both changes wait for Salesforce", PATIENCE, &waits)
            .await;
        assert_eq!(
            pair.writes("salesforce"),
            0,
            "Salesforce is written to while {kind} is paused"
        );
        pair.db
            .exec(&format!("SELECT crm.resume('{kind}', '{name}')"))
            .await;
        for who in [a, b, c] {
            pair.reaches_both(who, "jobtitle", &value).await;
        }
    }
    pair.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_cannot_write_what_belongs_to_the_worker_or_is_read_only() {
    let (pair, people) = pair().await;
    let who = &people[0];
    let cases = [
        "UPDATE hubspot.contacts SET id = '77777' WHERE _id = 1",
        "UPDATE hubspot.contacts SET _sync_source = 'me' WHERE _id = 1",
        "UPDATE hubspot.contacts SET _sync_state = 'held' WHERE _id = 1",
        "UPDATE hubspot.contacts SET _sync_error = 'none' WHERE _id = 1",
        "UPDATE hubspot.contacts SET _remote_modified_at = now() WHERE _id = 1",
        "UPDATE hubspot.contacts SET _deleted_at = now() WHERE _id = 1",
        "UPDATE hubspot.contacts SET createdate = now() WHERE _id = 1",
        "INSERT INTO hubspot.contacts (email, _sync_source) VALUES ('x@example.net', 'me')",
        "INSERT INTO hubspot.contacts (email, id) VALUES ('x@example.net', '1234567')",
        "TRUNCATE hubspot.contacts",
    ];
    pair.agree().await;
    pair.emulator.reset_counts();
    let state = "SELECT md5(string_agg(h::text, '|' ORDER BY _id)) FROM hubspot.contacts h";
    let before: String = pair.db.one(state).await;
    pair.db
        .exec("CREATE ROLE clerk LOGIN; GRANT USAGE ON SCHEMA hubspot TO clerk; GRANT ALL ON hubspot.contacts TO clerk")
        .await;
    let clerk = pair.cluster.connect_as("clerk", "app").await;
    for sql in cases {
        for db in [&pair.db, &clerk] {
            let error = db.error(sql).await;
            assert!(error.hint().is_some(), "no hint: {sql}: {error:?}");
        }
    }
    assert_eq!(
        pair.db.one::<String>(state).await,
        before,
        "something changed"
    );
    // An identity column: PostgreSQL's own refusal.
    let error = clerk.error("UPDATE hubspot.contacts SET _id = 1000 WHERE _id = 1");
    assert_eq!(error.await.code().code(), "428C9");
    let forged = clerk.error("SET pg_crm_sync.application = 'hubspot'").await;
    assert_eq!(forged.code().code(), "42501", "{forged:?}");
    pair.quiet().await;
    assert_eq!(pair.writes("hubspot") + pair.writes("salesforce"), 0);

    clerk.exec(&Pair::update(who, "city", "Clerkenwell")).await;
    pair.reaches_both(who, "city", "Clerkenwell").await;
    let source: Option<String> = pair
        .db
        .one(&format!(
            "SELECT s._sync_source FROM salesforce.contact s WHERE id = '{}'",
            who.salesforce
        ))
        .await;
    assert_eq!(source.as_deref(), Some("local"));
}

/// Somebody sets back by hand what SQL had written just before, and a policy puts that back. Under another policy the
/// edit is an edit still, not our own write coming back.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_knows_who_had_set_a_value_back_to_ours() {
    let (pair, people) = Pair::linked(10, PairOptions::default()).await;
    let policy = |winner: &str| {
        format!(
            "UPDATE crm.conflict_policy SET strategy = 'owner', winner = '{winner}' WHERE link = 'contacts' AND field = '*'"
        )
    };
    let (who, field) = (&people[0], "jobtitle");
    pair.db.exec(&policy("local")).await;
    pair.worker_has_read().await;
    let there = || {
        pair.emulator
            .field("hubspot", "contacts", &who.hubspot, field)
    };
    // Without their events nobody knows to the moment when our writes landed.
    pair.emulator.fault(json!({"stream": "webhook", "lose": 2}));
    for value in ["Buyer", "Chair"] {
        pair.sql(who, field, value).await;
        wait_until("it is in HubSpot", PATIENCE, async || {
            (there().as_deref() == Some(value)).then_some(())
        })
        .await;
    }
    pair.edit("hubspot", who, field, "Buyer");
    let lost = r#"SELECT count(*) > 0 FROM crm.event WHERE source = 'webhook' AND decision::text LIKE '%"losers"%Buyer%'"#;
    pair.db.wait_true("SQL wins", PATIENCE, lost).await;
    pair.agree().await;
    assert_eq!(there().as_deref(), Some("Chair"));
    pair.db.exec(&policy("hubspot")).await;
    pair.worker_has_read().await;
    pair.db
        .exec("SELECT crm.replay('hubspot webhook', from_seq => 0)")
        .await;
    pair.reaches_both(who, field, "Buyer").await;
}
