//! What is told late, twice or out of order about records that come and go.

use crm_tests::{PATIENCE, Pair, PairOptions, Person};
use serde_json::json;

const CRMS: [&str; 2] = ["hubspot", "salesforce"];

async fn pair(on_delete: &str) -> (Pair, Vec<Person>) {
    let (pair, people) = Pair::linked(10, PairOptions::default()).await;
    let sql = format!(
        "UPDATE crm.link SET on_left_delete = '{on_delete}', on_right_delete = '{on_delete}'"
    );
    pair.db.exec(&sql).await;
    pair.worker_has_read().await;
    (pair, people)
}

fn object(crm: &str) -> &'static str {
    if crm == "hubspot" {
        "contacts"
    } else {
        "Contact"
    }
}

fn id<'p>(crm: &str, who: &'p Person) -> &'p str {
    if crm == "hubspot" {
        &who.hubspot
    } else {
        &who.salesforce
    }
}

/// Removes or restores a person's record, and nobody tells.
fn unheard(pair: &Pair, crm: &str, deed: &str, who: &Person) {
    let stream = if crm == "hubspot" { "webhook" } else { "cdc" };
    pair.emulator
        .fault(json!({"stream": stream, "lose": 100_000}));
    heard(pair, crm, deed, who);
    pair.emulator.fault(json!({"stream": stream}));
}

fn heard(pair: &Pair, crm: &str, deed: &str, who: &Person) {
    let record = json!({"object": object(crm), "id": id(crm, who)});
    pair.deed(crm, deed, record);
}

async fn now(pair: &Pair) -> i64 {
    pair.db
        .one("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")
        .await
}

/// An event of a person's record arrives, of which nobody was told at its time.
async fn arrives(pair: &Pair, crm: &str, who: &Person, kind: &str, at: i64) {
    let source = if crm == "hubspot" {
        "webhook"
    } else {
        "pubsub"
    };
    let reason = if kind == "reread" { "read" } else { "locked" };
    let change = json!({
        "object": object(crm), "record_id": id(crm, who), "kind": {"kind": kind}, "fields": [], "reread": [], "occurred_at": at,
        "identity": format!("late {kind} {at}"), "actor": "Somebody", "mark": "", "transaction": null,
    });
    let sql = format!(
        "INSERT INTO crm.deferred (mirror, record_id, source, change, reason)
         SELECT id, '{}', '{source}', '{change}', '{reason}' FROM crm.mirror WHERE server = '{crm}';
         INSERT INTO crm.config_change DEFAULT VALUES; SELECT crm._wake()",
        id(crm, who)
    );
    pair.db.exec(&sql).await;
}

async fn deletes_told(pair: &Pair, crm: &str) -> Vec<Vec<String>> {
    let sql = format!(
        "SELECT source, coalesce(actor, '') FROM crm.event WHERE kind = 'delete' AND source <> 'link' AND origin = '{crm}' ORDER BY seq"
    );
    pair.db.table(&sql).await
}

async fn all_are_there(pair: &Pair) {
    pair.agree().await;
    for crm in CRMS {
        assert_eq!(pair.live(crm, object(crm)), 10, "{crm}");
    }
}

/// It was carried out again: the tie went, and a second partner was made when the record was restored.
#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_a_read_has_found_before_it_is_told_keeps_the_tie() {
    let (pair, people) = pair("soft_delete").await;
    let who = &people[0];
    unheard(&pair, "hubspot", "delete", who);
    let at = now(&pair).await;
    arrives(&pair, "hubspot", who, "reread", at).await;
    let hidden = ["deleted", "soft_deleted", "t"];
    pair.become_states(who, hidden).await;
    arrives(&pair, "hubspot", who, "delete", at).await;
    pair.quiet().await;
    assert_eq!(pair.states(who).await, hidden);
    let told = deletes_told(&pair, "hubspot").await;
    assert_eq!(told, [["read", ""], ["webhook", "Somebody"]]);
    let gone_since = format!(
        "SELECT crm.record_as_of('hubspot.contacts', '{}', e.received_at + '1 microsecond') ->> '_deleted_at' IS NOT NULL
         FROM crm.event e WHERE kind = 'delete' AND source = 'read'",
        who.hubspot
    );
    assert!(pair.db.one::<bool>(&gone_since).await);
    heard(&pair, "hubspot", "restore", who);
    pair.become_states(who, ["live", "live", "t"]).await;
    all_are_there(&pair).await;
}

/// The second time nothing stood in its way any more: the record went, with the edit, before anybody had answered.
#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_is_told_again_does_not_answer_the_question_about_it() {
    let (pair, people) = pair("propagate").await;
    let who = &people[0];
    pair.hubspot_takes_nothing();
    pair.edit("salesforce", who, "city", "Unseen");
    let waits =
        "SELECT count(*) > 0 FROM crm.write WHERE vals ->> 'city' = 'Unseen' AND state = 'queued'";
    pair.db.wait_true("the edit waits", PATIENCE, waits).await;
    unheard(&pair, "hubspot", "delete", who);
    let at = now(&pair).await;
    arrives(&pair, "hubspot", who, "reread", at).await;
    let asked = "SELECT count(*) = 1 FROM crm.review WHERE kind = 'delete'";
    pair.db
        .wait_true("a person is asked", PATIENCE, asked)
        .await;
    arrives(&pair, "hubspot", who, "delete", at).await;
    pair.emulator.clear_faults();
    pair.quiet().await;
    assert!(pair.db.one::<bool>(asked).await);
    assert!(!pair.gone("salesforce", "Contact", &who.salesforce));
    assert_eq!(pair.states(who).await, ["deleted", "live", "t"]);
}

/// Nobody had told that it was back; only an edit of it showed so.
#[tokio::test(flavor = "multi_thread")]
async fn a_removal_from_before_an_edit_that_has_come_removes_nothing() {
    let (pair, people) = pair("propagate").await;
    let who = &people[0];
    unheard(&pair, "hubspot", "delete", who);
    let at = now(&pair).await;
    unheard(&pair, "hubspot", "restore", who);
    pair.edit("hubspot", who, "city", "Alive");
    pair.reaches_both(who, "city", "Alive").await;
    arrives(&pair, "hubspot", who, "delete", at).await;
    pair.quiet().await;
    assert_eq!(pair.states(who).await, ["live", "live", "t"]);
    all_are_there(&pair).await;
}

/// It stayed hidden for ever, and its partner was made anew.
#[tokio::test(flavor = "multi_thread")]
async fn two_records_that_both_went_come_back_as_one() {
    for (first, last) in [("hubspot", "salesforce"), ("salesforce", "hubspot")] {
        let (pair, people) = pair("soft_delete").await;
        let who = &people[0];
        heard(&pair, "hubspot", "delete", who);
        pair.become_states(who, ["deleted", "soft_deleted", "t"])
            .await;
        heard(&pair, "salesforce", "delete", who);
        pair.become_states(who, ["deleted", "deleted", "t"]).await;
        heard(&pair, first, "restore", who);
        let back = format!(
            "SELECT _deleted_at IS NULL FROM {first}.{} WHERE id = '{}'",
            table(first),
            id(first, who)
        );
        pair.db
            .wait_true("the first is back", PATIENCE, &back)
            .await;
        heard(&pair, last, "restore", who);
        pair.become_states(who, ["live", "live", "t"]).await;
        all_are_there(&pair).await;
    }
}

fn table(crm: &str) -> &'static str {
    if crm == "hubspot" {
        "contacts"
    } else {
        "contact"
    }
}

/// The row counted as removed by its own CRM, and came back with the next page.
#[tokio::test(flavor = "multi_thread")]
async fn the_answer_to_a_write_leaves_a_hidden_row_hidden() {
    let (pair, people) = pair("soft_delete").await;
    let who = &people[0];
    pair.emulator.fault(json!({"rules": [
        {"crm": "salesforce", "method": "PATCH", "path_prefix": "/services/data", "remaining": 1, "action": {"hold": {"ms": 3_000}}},
    ]}));
    pair.edit("hubspot", who, "city", "Last");
    let asked = "SELECT count(*) = 1 FROM crm.write WHERE state = 'in_flight'";
    pair.db.wait_true("it is on its way", PATIENCE, asked).await;
    heard(&pair, "hubspot", "delete", who);
    let hidden = format!(
        "SELECT _deleted_at IS NOT NULL FROM salesforce.contact WHERE id = '{}'",
        who.salesforce
    );
    pair.db
        .wait_true("the other row is hidden", PATIENCE, &hidden)
        .await;
    pair.quiet().await;
    let landed = pair.shows("salesforce", who, "city");
    assert_eq!(landed.as_deref(), Some("Last"));
    assert_eq!(pair.states(who).await, ["deleted", "soft_deleted", "t"]);
}

/// Whether it was merged is asked first, and the event was forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn who_removed_a_record_is_named_where_a_read_tells_what_it_meant() {
    let (pair, people) = pair("unlink").await;
    let who = &people[0];
    heard(&pair, "salesforce", "delete", who);
    pair.become_states(who, ["live", "deleted", "f"]).await;
    let told = "SELECT source, actor <> '', identity IS NOT NULL FROM crm.event WHERE kind = 'delete' AND origin = 'salesforce'";
    assert_eq!(pair.db.table(told).await, [["pubsub", "t", "t"]]);
}

/// It was brought back, and its partner was made anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_a_link_removes_stays_away_while_its_removal_waits() {
    let (pair, people) = pair("propagate").await;
    let who = &people[0];
    let locked = json!([{"id": who.salesforce, "success": false, "errors": [
        {"statusCode": "UNABLE_TO_LOCK_ROW", "message": "unable to obtain exclusive access to this record", "fields": []},
    ]}]);
    pair.emulator.fault(json!({"rules": [
        {"crm": "salesforce", "method": "DELETE", "path_prefix": "/services/data", "remaining": 100_000,
         "action": {"reject": {"status": 200, "body": locked}}},
    ]}));
    heard(&pair, "hubspot", "delete", who);
    let tried = "SELECT count(*) = 1 FROM crm.write WHERE kind = 'delete' AND state = 'queued' AND attempts > 0";
    pair.db
        .wait_true("its removal waits", PATIENCE, tried)
        .await;
    let at = now(&pair).await;
    arrives(&pair, "salesforce", who, "reread", at).await;
    let read = "SELECT NOT EXISTS (SELECT FROM crm.deferred)";
    pair.db.wait_true("it is read", PATIENCE, read).await;
    pair.emulator.clear_faults();
    pair.quiet().await;
    assert!(pair.gone("salesforce", "Contact", &who.salesforce));
    pair.agree().await;
    for crm in CRMS {
        assert_eq!(pair.live(crm, object(crm)), 9, "{crm}");
    }
}

/// Each removal waited for the other's row as if somebody held it, for ever, and the records were read without a pause.
#[tokio::test(flavor = "multi_thread")]
async fn both_rows_of_a_pair_that_sql_deletes_at_once_go_in_both_crms() {
    for rule in ["unlink", "propagate"] {
        let (pair, people) = pair(rule).await;
        let who = &people[0];
        let both = format!(
            "DELETE FROM hubspot.contacts WHERE id = '{}'; DELETE FROM salesforce.contact WHERE id = '{}'",
            who.hubspot, who.salesforce
        );
        pair.db.exec(&both).await;
        pair.quiet().await;
        for crm in CRMS {
            assert!(pair.gone(crm, object(crm), id(crm, who)), "{rule} {crm}");
        }
    }
}

/// It was read over and over: an hour in a psql window would have used up the calls of a day.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_whose_row_is_held_is_not_read_without_a_pause() {
    let (pair, people) = pair("unlink").await;
    let who = &people[0];
    let polls = "UPDATE crm.mirror SET poll_interval = '1 second' WHERE server = 'hubspot'";
    pair.db.exec(polls).await;
    pair.worker_has_read().await;
    let holder = pair.cluster.connect("app").await;
    let held = format!(
        "BEGIN; SELECT FROM hubspot.contacts WHERE id = '{}' FOR UPDATE",
        who.hubspot
    );
    holder.exec(&held).await;
    let at = now(&pair).await;
    arrives(&pair, "hubspot", who, "reread", at).await;
    let count = |route: &str| {
        pair.emulator.served(|c| {
            c["crm"] == "hubspot" && c["route"].as_str().is_some_and(|r| r.contains(route))
        })
    };
    let (reads, polled) = (count("batch/read"), count("search"));
    pair.cluster
        .wait_until("three polls", PATIENCE, async || {
            (count("search") >= polled + 3).then_some(())
        })
        .await;
    let read = count("batch/read") - reads;
    assert!((1..=15).contains(&read), "read {read} times");
    holder.exec("COMMIT").await;
    pair.quiet().await;
}
