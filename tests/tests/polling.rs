//! Changes of HubSpot that no event tells: searches that end at 10,000 hits, with thousands of one stamp, an index
//! that lags and pages that are short; removals by the list of archived records.

use std::time::Duration;

use crm_tests::{EmulatorOptions, Options, Pair, PairOptions};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(180);

/// Contacts of HubSpot alone, polled every second, with no webhooks.
async fn polled(people: u64, options: &[(&str, &str)]) -> Pair {
    let mut emulator = EmulatorOptions::default().contacts(people);
    for (name, value) in options {
        emulator = emulator.arg(name, value);
    }
    let pair = Pair::start(PairOptions {
        cluster: Options::default(),
        emulator,
    })
    .await;
    pair.emulator.webhooks("");
    pair.db
        .exec("ALTER SERVER hubspot OPTIONS (ADD events 'poll')")
        .await;
    pair.import("hubspot", &["contacts"]).await;
    pair.backfilled().await;
    pair.db
        .exec("UPDATE crm.mirror SET poll_interval = '1 second'")
        .await;
    pair
}

/// Edits so many at once, all with one stamp, and waits until the mirror shows it.
async fn one_stamp(pair: &Pair, people: u64) {
    let clock = |stop: bool| {
        let body = json!({"crm": "hubspot", "stop": stop});
        pair.emulator.admin("POST", "/_admin/clock", Some(&body));
    };
    clock(true);
    let many = json!({"crm": "hubspot", "object": "contacts", "from": 1, "count": people, "field": "city", "prefix": "Polled"});
    pair.emulator
        .admin("POST", "/_admin/edit-many", Some(&many));
    clock(false);
    let all =
        format!("SELECT count(*) = {people} FROM hubspot.contacts WHERE city LIKE 'Polled %'");
    pair.db.wait_true("all are found", PATIENCE, &all).await;
    let stamps = "SELECT count(DISTINCT _remote_modified_at) FROM hubspot.contacts";
    assert_eq!(pair.db.one::<i64>(stamps).await, 1, "the test has its ties");
}

#[tokio::test(flavor = "multi_thread")]
async fn eleven_thousand_changes_of_one_stamp_are_found_past_the_end_of_searches() {
    let pair = polled(11_000, &[]).await;
    one_stamp(&pair, 11_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn short_pages_a_lagging_index_and_ids_in_the_order_of_text_hide_nothing() {
    let options = [
        ("--search-short-pages", "on"),
        ("--search-lag-ms", "1500"),
        ("--search-id-order", "text"),
    ];
    let pair = polled(900, &options).await;
    one_stamp(&pair, 900).await;
}

/// The search went on showing it, so it came back as a new record.
#[tokio::test(flavor = "multi_thread")]
async fn what_sql_removed_stays_away_while_the_index_still_shows_it() {
    let pair = polled(20, &[("--search-lag-ms", "3000")]).await;
    let first = "SELECT id FROM hubspot.contacts WHERE _id = 1";
    let id: String = pair.db.one(first).await;
    pair.db.exec("SELECT crm.go_live('hubspot.contacts')").await;
    pair.emulator
        .edit("hubspot", "contacts", &id, json!({"city": "Lastly"}));
    let shown = format!("SELECT city = 'Lastly' FROM hubspot.contacts WHERE id = '{id}'");
    pair.db
        .wait_true("the edit is read", PATIENCE, &shown)
        .await;
    pair.db
        .exec(&format!("DELETE FROM hubspot.contacts WHERE id = '{id}'"))
        .await;
    pair.db.exec("SELECT crm.wait_synced('60 s')").await;
    let searches = || {
        pair.emulator
            .served(|c| c["route"].as_str().is_some_and(|r| r.ends_with("/search")))
    };
    let before = searches();
    pair.cluster
        .wait_until("the index has caught up", PATIENCE, async || {
            (searches() > before + 5).then_some(())
        })
        .await;
    let told =
        format!("SELECT kind, source FROM crm.event WHERE record_id = '{id}' AND kind <> 'update'");
    let told = pair.db.table(&told).await;
    assert_eq!(told, [["delete", "sql"], ["delete", "result"]]);
    let row = format!("SELECT _id, city, _sync_state FROM hubspot.contacts WHERE id = '{id}'");
    let row = pair.db.table(&row).await;
    assert_eq!(row, [["1", "∅", "deleted"]], "in its own place");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_archived_without_an_event_is_found_and_so_is_what_came_back() {
    let pair = polled(20, &[]).await;
    let id: String = pair
        .db
        .one("SELECT id FROM hubspot.contacts ORDER BY _id LIMIT 1")
        .await;
    pair.emulator.delete("hubspot", "contacts", &id);
    let gone = format!("SELECT _deleted_at IS NOT NULL FROM hubspot.contacts WHERE id = '{id}'");
    pair.db.wait_true("it is gone", PATIENCE, &gone).await;
    let body = json!({"object": "contacts", "id": id});
    pair.emulator
        .admin("POST", "/_admin/hubspot/restore", Some(&body));
    let back = format!("SELECT _deleted_at IS NULL FROM hubspot.contacts WHERE id = '{id}'");
    pair.db.wait_true("it is back", PATIENCE, &back).await;
}
