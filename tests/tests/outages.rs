//! A CRM that does not answer for a while.

use crm_tests::{EmulatorOptions, Options, PATIENCE, Pair, PairOptions};
use serde_json::json;

const CONTACTS: u64 = 3_000;

async fn pair() -> Pair {
    let options = PairOptions {
        cluster: Options::default()
            .setting("pg_crm_sync.guard_soft_rows", "0")
            .setting("pg_crm_sync.guard_hard_rows", "0")
            .setting("pg_crm_sync.guard_window_rows", "0"),
        emulator: EmulatorOptions::default()
            .contacts(CONTACTS)
            .arg("--rate-limits", "off"),
    };
    let pair = Pair::start(options).await;
    pair.db
        .exec("SELECT crm.import('hubspot', ARRAY['contacts'], into_schema => 'hubspot', poll_interval => '1 hour')")
        .await;
    let copied = "SELECT count(*) > 0 AND bool_and(state = 'done') FROM crm.backfill";
    pair.db
        .wait_true("the copy is done", PATIENCE, copied)
        .await;
    pair.db.exec("SELECT crm.go_live('hubspot.contacts')").await;
    pair
}

/// Updates of contacts that reached HubSpot's address.
fn tries(pair: &Pair) -> u64 {
    let update = |route: &str| route.contains("/batch/update");
    pair.emulator
        .served(|r| r["route"].as_str().is_some_and(update))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crm_that_is_away_is_tried_by_one_small_call_at_a_time_and_gets_all_when_it_is_back() {
    let pair = pair().await;
    pair.emulator.fault(json!({
        "crm": "hubspot", "method": "POST", "path_prefix": "/crm/objects/2026-03/contacts/batch/update",
        "action": {"reject": {"status": 503, "body": null}}, "remaining": 1_000_000,
    }));
    pair.db
        .exec("UPDATE hubspot.contacts SET jobtitle = 'Away'")
        .await;
    let told = "SELECT bool_and(state = 'error' AND last_error LIKE 'hubspot does not answer%' AND advice IS NOT NULL)
                FROM crm.status WHERE kind = 'server' AND name = 'hubspot'";
    pair.db
        .wait_true("the outage is told", PATIENCE, told)
        .await;
    pair.emulator.reset_counts();
    pair.cluster
        .wait_until("it was tried again", PATIENCE, async || {
            (tries(&pair) >= 2).then_some(())
        })
        .await;
    let tried: i64 = pair
        .db
        .one("SELECT count(*) FROM crm.write WHERE attempts > 0")
        .await;
    assert!(
        tried < 2_000,
        "{tried} of {CONTACTS} writes were sent to a CRM that is away"
    );
    let dead: i64 = pair.db.one("SELECT count(*) FROM crm.dead_letter").await;
    assert_eq!(dead, 0, "an outage is no fault of a record");
    pair.emulator.clear_faults();
    let done = "SELECT NOT EXISTS (SELECT FROM crm.write)";
    pair.db.wait_true("all writes arrive", PATIENCE, done).await;
    let landed = pair.emulator.digest("hubspot", "contacts", &["jobtitle"]);
    assert_eq!(landed["count"], json!(CONTACTS));
    let gone = "SELECT bool_and(state = 'ok' AND last_error IS NULL) FROM crm.status WHERE kind = 'server' AND name = 'hubspot'";
    pair.db
        .wait_true("the trouble is gone", PATIENCE, gone)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_in_doubt_are_read_back_by_the_batch_not_one_by_one() {
    let pair = pair().await;
    pair.emulator.fault(json!({
        "crm": "hubspot", "method": "POST", "path_prefix": "/crm/objects/2026-03/contacts/batch/update",
        "action": {"fail_after_write": {}}, "remaining": 3,
    }));
    pair.emulator.reset_counts();
    pair.db
        .exec("UPDATE hubspot.contacts SET jobtitle = 'Lost' WHERE _id <= 300")
        .await;
    let done = "SELECT NOT EXISTS (SELECT FROM crm.write) AND NOT EXISTS (SELECT FROM crm.change_0)
                AND NOT EXISTS (SELECT FROM crm.change_1)";
    pair.db.wait_true("all are settled", PATIENCE, done).await;
    let reads = pair.emulator.served(|_| true) - tries(&pair);
    assert!(
        (1..=30).contains(&reads),
        "{reads} other calls for 300 writes whose answers were lost: {}",
        pair.emulator.counts()
    );
}
