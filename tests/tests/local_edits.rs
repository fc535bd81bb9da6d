//! SQL changes that come several at a time, or that the linked table refuses.

use crm_tests::{Options, PATIENCE, Pair, PairOptions, wait_until};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_the_linked_table_refuses_does_not_hold_up_the_others() {
    let pair = Pair::contacts(PairOptions::default()).await;
    pair.db
        .exec("ALTER TABLE salesforce.contact ADD CONSTRAINT no_bad CHECK (phone <> 'bad')")
        .await;
    let linked = "SELECT x.row_id FROM crm.xref x JOIN crm.mirror m ON m.id = x.mirror
                  WHERE m.object = 'contacts' ORDER BY x.row_id";
    pair.db
        .exec(&format!(
            "UPDATE hubspot.contacts SET phone = CASE WHEN _id = (SELECT min(row_id) FROM ({linked}) l) THEN 'bad' ELSE '+1 good' END
             WHERE _id IN ({linked} LIMIT 20)"
        ))
        .await;
    pair.db
        .wait_true(
            "the other nineteen reach the linked table",
            PATIENCE,
            "SELECT count(*) = 19 FROM salesforce.contact WHERE phone = '+1 good'",
        )
        .await;
    pair.db
        .wait_true(
            "the refused one is parked with the reason",
            PATIENCE,
            "SELECT count(*) = 1 FROM crm.dead_letter WHERE direction = 'in' AND error LIKE '%no_bad%'",
        )
        .await;
}

/// The letter names its row only: tried again, it was gone, and the row's number was read as the id of a record.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_the_linked_table_refused_is_made_again_and_not_tried_again() {
    let (pair, people) = Pair::linked(20, PairOptions::default()).await;
    let (db, who) = (&pair.db, &people[0]);
    let row: i64 = db
        .one(&format!(
            "SELECT _id FROM hubspot.contacts WHERE id = '{}'",
            who.hubspot
        ))
        .await;
    db.exec("ALTER TABLE salesforce.contact ADD CONSTRAINT no_bad CHECK (phone <> 'bad')")
        .await;
    pair.sql(who, "phone", "bad").await;
    let parked = format!(
        "SELECT count(*) = 1 FROM crm.dead_letter WHERE direction = 'in' AND what = 'sql' AND row_id = {row} AND record_id IS NULL"
    );
    db.wait_true("it is parked", PATIENCE, &parked).await;
    let waited = db.error("SELECT crm.wait_synced('5 s')").await;
    assert_eq!(waited.code().code(), "38000", "{waited:?}");
    let state = |is: &str| format!("SELECT crm.sync_state('hubspot.contacts', {row}) = '{is}'");
    assert!(db.one::<bool>(&state("error")).await);
    let told = format!(
        "SELECT count(*) = 1 FROM crm.why('hubspot.contacts', {row}::bigint)
         WHERE item = 'dead letter' AND verdict = 'stops' AND advice LIKE '%crm.dead_letter_discard%'"
    );
    assert!(db.one::<bool>(&told).await, "crm.why shows it");

    db.exec("ALTER TABLE salesforce.contact DROP CONSTRAINT no_bad")
        .await;
    let advised = "SELECT retry LIKE 'Change these rows again%' FROM crm.dead_letter_cause";
    assert!(db.one::<bool>(advised).await);
    let id: i64 = db.one("SELECT id FROM crm.dead_letter").await;
    let error = db
        .error(&format!("SELECT crm.dead_letter_retry(ARRAY[{id}], 'in')"))
        .await;
    assert_eq!(error.code().code(), "55000", "{error:?}");
    assert!(error.detail().is_some(), "{error:?}");
    assert!(
        error
            .hint()
            .unwrap_or_default()
            .contains("dead_letter_discard"),
        "{error:?}"
    );
    let tried: i64 = db
        .one("SELECT crm.dead_letter_retry(direction => 'in')")
        .await;
    assert_eq!(tried, 0);
    let fits: i64 = db
        .one("SELECT crm.dead_letter_retry_where($$direction = 'in'$$)")
        .await;
    assert_eq!(fits, 0);
    assert!(db.one::<bool>(&parked).await, "the letter is left");

    pair.sql(who, "phone", "+1 good").await;
    pair.reaches_both(who, "phone", "+1 good").await;
    db.exec(&format!(
        "SELECT crm.dead_letter_discard(ARRAY[{id}], 'in')"
    ))
    .await;
    db.wait_true("the row is in sync", PATIENCE, &state("synced"))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_of_several_edits_in_one_transaction_is_the_one_that_stays() {
    let (pair, people) = Pair::linked(50, PairOptions::default()).await;
    let who = &people[0];
    pair.db
        .exec(&format!(
            "BEGIN;
             UPDATE hubspot.contacts SET phone = '1', city = 'A' WHERE id = '{0}';
             UPDATE hubspot.contacts SET phone = '2' WHERE id = '{0}';
             UPDATE hubspot.contacts SET city = 'B', phone = '3' WHERE id = '{0}';
             COMMIT",
            who.hubspot
        ))
        .await;
    pair.agree().await;
    assert_eq!(pair.shows("hubspot", who, "phone").as_deref(), Some("3"));
    assert_eq!(pair.shows("hubspot", who, "city").as_deref(), Some("B"));
    assert_eq!(pair.shows("salesforce", who, "phone").as_deref(), Some("3"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cascade_after_an_edit_in_one_transaction_reaches_the_crm() {
    let (pair, people) = Pair::linked(50, PairOptions::default()).await;
    let who = &people[0];
    pair.db
        .exec(&format!(
            "CREATE TABLE town (name text PRIMARY KEY);
             INSERT INTO town SELECT DISTINCT city FROM hubspot.contacts WHERE city IS NOT NULL;
             INSERT INTO town VALUES ('A') ON CONFLICT DO NOTHING;
             ALTER TABLE hubspot.contacts ADD FOREIGN KEY (city) REFERENCES town ON UPDATE CASCADE;
             BEGIN;
             UPDATE hubspot.contacts SET city = 'A' WHERE id = '{0}';
             UPDATE town SET name = 'B' WHERE name = 'A';
             COMMIT",
            who.hubspot
        ))
        .await;
    pair.agree().await;
    assert_eq!(pair.shows("hubspot", who, "city").as_deref(), Some("B"));
}

/// The engine takes changes up some thousands at a time; what belongs together is decided together all the same.
#[tokio::test(flavor = "multi_thread")]
async fn both_sides_of_a_thing_changed_by_one_big_transaction_are_one_conflict() {
    let cluster = Options::default()
        .setting("pg_crm_sync.guard_soft_rows", "100000")
        .setting("pg_crm_sync.guard_hard_rows", "100000");
    let options = PairOptions {
        cluster,
        ..PairOptions::default()
    };
    let (pair, people) = Pair::linked(2600, options).await;
    let who = &people[0];
    pair.db
        .exec(&format!(
            "BEGIN;
             UPDATE hubspot.contacts SET jobtitle = 'First' WHERE id = '{}';
             UPDATE hubspot.contacts SET zip = '89073' WHERE id <> '{0}';
             UPDATE salesforce.contact SET title = 'Last' WHERE id = '{}';
             COMMIT",
            who.hubspot, who.salesforce
        ))
        .await;
    pair.reaches_both(who, "jobtitle", "Last").await;
    pair.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_who_sets_back_what_sql_has_just_changed_is_not_taken_for_our_own_echo() {
    let (pair, people) = Pair::linked(50, PairOptions::default()).await;
    pair.db
        .exec(
            "INSERT INTO crm.conflict_policy (link, field, strategy, winner)
             VALUES ('contacts', 'city', 'last_write_wins', 'salesforce,hubspot,local')",
        )
        .await;
    pair.worker_has_read().await;
    let who = &people[0];
    let holds = async |crm: &str, city: &str| {
        let there = || pair.shows(crm, who, "city").is_some_and(|c| c == city);
        wait_until(&format!("{crm} holds {city}"), PATIENCE, async || {
            there().then_some(())
        })
        .await;
    };
    // Else the event of our first write says when exactly that landed.
    pair.emulator.fault(json!({"stream": "cdc", "lose": 1}));
    for city in ["Old", "New"] {
        pair.sql(who, "city", city).await;
        holds("salesforce", city).await;
    }
    pair.edit("salesforce", who, "city", "Old");
    holds("hubspot", "Old").await;
    pair.agree().await;
    holds("salesforce", "Old").await;
}
