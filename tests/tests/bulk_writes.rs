//! Many writes that wait go out as one bulk job of Salesforce: every row has its own result, nothing is sent twice.

use std::time::Duration;

use crm_tests::{EmulatorOptions, Options, Pair, PairOptions};
use serde_json::{Value, json};

const PEOPLE: i64 = 400;
const PATIENCE: Duration = Duration::from_secs(60);
const DONE: &str = "SELECT NOT EXISTS (SELECT FROM crm.write WHERE state <> 'dead')
     AND NOT EXISTS (SELECT FROM crm.change_0) AND NOT EXISTS (SELECT FROM crm.change_1)";

/// A live mirror of 400 contacts of Salesforce; 100 writes are enough for a job.
async fn pair(settings: Value) -> Pair {
    let pair = Pair::start(PairOptions {
        cluster: Options::default()
            .setting("pg_crm_sync.bulk_write_rows", "100")
            .setting("pg_crm_sync.guard_hard_deletes", "0"),
        emulator: EmulatorOptions::default()
            .contacts(PEOPLE.unsigned_abs())
            .arg("--shared-share", "1")
            .arg("--salesforce", &settings.to_string()),
    })
    .await;
    pair.import("hubspot", &["contacts"]).await;
    pair.import("salesforce", &["Contact"]).await;
    pair.backfilled().await;
    pair.db
        .exec("SELECT crm.link('hubspot.contacts', 'salesforce.contact'); SELECT crm.go_live('contacts')")
        .await;
    pair.worker_has_read().await;
    pair.emulator.reset_counts();
    pair
}

/// How often a route was called and what it answered.
fn calls(pair: &Pair, method: &str, route: &str) -> u64 {
    let route = format!("/services/data/{{version}}/{route}");
    pair.emulator
        .served(|row| row["method"] == method && row["route"] == route.as_str())
}

/// Edits everybody in one statement.
async fn edit_all(pair: &Pair) {
    pair.db
        .exec("UPDATE salesforce.contact SET department = 'Bulk ' || _id")
        .await;
}

/// Salesforce has every row's department, and nothing is left to send.
async fn arrived(pair: &Pair) {
    pair.db
        .wait_true("everything was sent", PATIENCE, DONE)
        .await;
    let rows = pair
        .db
        .table(
            "SELECT id, coalesce(department, '') FROM salesforce.contact WHERE _deleted_at IS NULL",
        )
        .await;
    assert_eq!(rows.len() as i64, PEOPLE);
    for row in rows {
        let there = pair
            .emulator
            .field("salesforce", "Contact", &row[0], "Department");
        assert!(row[1].starts_with("Bulk "), "{row:?}");
        assert_eq!(there.as_deref(), Some(row[1].as_str()), "{}", row[0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_edits_go_as_a_job_and_a_row_that_is_refused_stands_alone() {
    let pair = pair(json!({})).await;
    pair.db
        .exec(
            "UPDATE salesforce.contact SET department = 'Bulk ' || _id,
                 email = CASE WHEN _id IN (SELECT _id FROM salesforce.contact ORDER BY _id LIMIT 2) THEN 'no address' ELSE email END",
        )
        .await;
    pair.db
        .wait_true("everything was sent", PATIENCE, DONE)
        .await;
    assert!(calls(&pair, "POST", "jobs/ingest") >= 1, "by a job");
    let dead = "SELECT w.error_code, m.email FROM crm.write w JOIN crm.mirror x ON x.id = w.mirror
                JOIN salesforce.contact m ON m._id = w.row_id WHERE x.server = 'salesforce' AND w.state = 'dead'";
    let dead = pair.db.table(dead).await;
    assert_eq!(dead, vec![vec!["INVALID_EMAIL_ADDRESS", "no address"]; 2]);
    let rows = pair
        .db
        .table("SELECT id, department FROM salesforce.contact WHERE email <> 'no address'")
        .await;
    assert_eq!(rows.len() as i64, PEOPLE - 2);
    for row in rows {
        let there = pair
            .emulator
            .field("salesforce", "Contact", &row[0], "Department");
        assert_eq!(there.as_deref(), Some(row[1].as_str()));
    }
    // What comes back as events is known as our own: nothing is sent again.
    let jobs = calls(&pair, "POST", "jobs/ingest");
    pair.worker_has_read().await;
    pair.db
        .wait_true("still nothing to send", PATIENCE, DONE)
        .await;
    assert_eq!(calls(&pair, "POST", "jobs/ingest"), jobs);
    let back = "SELECT count(*) FROM crm.write WHERE state <> 'dead'";
    assert_eq!(pair.db.one::<i64>(back).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn creates_and_deletes_go_as_jobs_too() {
    let pair = pair(json!({})).await;
    pair.db
        .exec("INSERT INTO salesforce.contact (lastname, department) SELECT 'New ' || n, 'Made' FROM generate_series(1, 300) n")
        .await;
    let made = "SELECT count(*) = 300 FROM salesforce.contact WHERE department = 'Made' AND id LIKE '003%'";
    pair.db.wait_true("all are made", PATIENCE, made).await;
    assert!(calls(&pair, "POST", "jobs/ingest") >= 1, "by a job");
    pair.db
        .wait_true("everything was sent", PATIENCE, DONE)
        .await;
    let before = pair.live("salesforce", "Contact");
    pair.db
        .exec("DELETE FROM salesforce.contact WHERE department = 'Made'")
        .await;
    pair.db.wait_true("all are gone", PATIENCE, DONE).await;
    assert_eq!(pair.live("salesforce", "Contact"), before - 300);
}

/// Edits everybody while nothing may leave, so that all goes as one job.
async fn edit_all_at_once(pair: &Pair) {
    all_at_once(pair, "Bulk ").await;
}

/// The same with another text before each row's number.
async fn all_at_once(pair: &Pair, text: &str) {
    pair.db
        .exec("SELECT crm.pause('mirror', 'salesforce.contact')")
        .await;
    pair.db
        .exec(&format!(
            "UPDATE salesforce.contact SET department = '{text}' || _id"
        ))
        .await;
    let queued = format!("SELECT count(*) = {PEOPLE} FROM crm.write WHERE state = 'queued'");
    pair.db.wait_true("all wait", PATIENCE, &queued).await;
    pair.db
        .exec("SELECT crm.resume('mirror', 'salesforce.contact')")
        .await;
}

/// Waits until a route was called.
async fn called(pair: &Pair, method: &str, route: &str) {
    crm_tests::wait_until(route, PATIENCE, async || {
        (calls(pair, method, route) > 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_back_of_a_job_is_known_as_our_own() {
    let pair = pair(json!({})).await;
    pair.db
        .exec("UPDATE salesforce.contact SET title = 'Chief ' || _id")
        .await;
    pair.agree().await;
    assert!(calls(&pair, "POST", "jobs/ingest") >= 1, "by a job");
    let sent = || {
        (
            calls(&pair, "POST", "jobs/ingest"),
            calls(&pair, "PATCH", "composite/sobjects"),
        )
    };
    let before = sent();
    // All events of the job were read: nothing follows from them.
    pair.worker_has_read().await;
    pair.agree().await;
    assert_eq!(sent(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_kill_9_the_job_is_asked_and_nothing_is_sent_anew() {
    let mut pair = pair(json!({"bulk_queue_ms": 600_000})).await;
    edit_all_at_once(&pair).await;
    called(&pair, "PATCH", "jobs/ingest/{job}").await;
    pair.cluster
        .crash_session_worker(&pair.db, Duration::ZERO)
        .await;
    pair.db = pair.cluster.connect("app").await;
    let state = json!({"bulk_queue_ms": 0});
    pair.emulator
        .admin("POST", "/_admin/salesforce/settings", Some(&state));
    arrived(&pair).await;
    assert_eq!(calls(&pair, "POST", "jobs/ingest"), 1);
    assert_eq!(calls(&pair, "PUT", "jobs/ingest/{job}/{part}"), 1);
    assert_eq!(calls(&pair, "PATCH", "composite/sobjects"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_at_any_step_of_a_job_loses_nothing_and_makes_nothing_twice() {
    let mut pair = pair(json!({"bulk_work_ms": 200})).await;
    let steps = [
        ("POST", "jobs/ingest"),
        ("PUT", "jobs/ingest/{job}/{part}"),
        ("PATCH", "jobs/ingest/{job}"),
        ("GET", "jobs/ingest/{job}"),
        ("GET", "jobs/ingest/{job}/{part}"),
    ];
    let before = pair.live("salesforce", "Contact");
    for (round, (method, route)) in steps.into_iter().enumerate() {
        pair.emulator.reset_counts();
        pair.db
            .exec(&format!(
                "UPDATE salesforce.contact SET department = 'Bulk {round} ' || _id;
                 INSERT INTO salesforce.contact (lastname, department) SELECT 'New {round} ' || n, 'Bulk' FROM generate_series(1, 120) n"
            ))
            .await;
        called(&pair, method, route).await;
        pair.cluster
            .crash_session_worker(&pair.db, Duration::ZERO)
            .await;
        pair.db = pair.cluster.connect("app").await;
    }
    pair.db
        .wait_true("everything was sent", PATIENCE, DONE)
        .await;
    assert_eq!(pair.live("salesforce", "Contact"), before + 5 * 120);
    let dead = "SELECT count(*) FROM crm.write";
    assert_eq!(pair.db.one::<i64>(dead).await, 0);
    let names = "SELECT count(DISTINCT lastname) FROM salesforce.contact WHERE lastname LIKE 'New %' AND id LIKE '003%'";
    assert_eq!(pair.db.one::<i64>(names).await, 5 * 120);
    let rows = pair
        .db
        .table("SELECT id, department FROM salesforce.contact WHERE _deleted_at IS NULL")
        .await;
    for row in rows {
        let there = (pair.emulator).field("salesforce", "Contact", &row[0], "Department");
        assert_eq!(there.as_deref(), Some(row[1].as_str()), "{}", row[0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_job_that_fails_half_way_only_the_other_half_goes_again() {
    let pair = pair(json!({"bulk_fail": true})).await;
    edit_all_at_once(&pair).await;
    arrived(&pair).await;
    // The half that it did not come to is as many as a job needs, and meets the same.
    let jobs = calls(&pair, "POST", "jobs/ingest");
    assert!((1..=2).contains(&jobs), "{jobs} jobs");
    assert!(calls(&pair, "PATCH", "composite/sobjects") >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_batches_left_for_the_day_writes_go_by_calls() {
    let pair = pair(json!({"bulk_batches": 0})).await;
    edit_all_at_once(&pair).await;
    arrived(&pair).await;
    assert_eq!(calls(&pair, "POST", "jobs/ingest"), 1);
    assert!(calls(&pair, "PATCH", "composite/sobjects") >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_ingest_jobs_are_refused_writes_go_in_batches() {
    let pair = pair(json!({})).await;
    pair.emulator.fault(json!({
        "crm": "salesforce", "method": "POST", "path_prefix": "/services/data/v62.0/jobs/ingest", "remaining": 100,
        "action": {"reject": {"status": 403, "body": [{"errorCode": "API_DISABLED_FOR_ORG", "message": "no"}]}},
    }));
    edit_all(&pair).await;
    arrived(&pair).await;
    assert!(calls(&pair, "PATCH", "composite/sobjects") >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_an_outage_is_a_reason_to_try_a_job_again() {
    let pair = pair(json!({})).await;
    pair.emulator.fault(json!({
        "crm": "salesforce", "method": "POST", "path_prefix": "/services/data/v62.0/jobs/ingest", "remaining": 1,
        "action": {"reject": {"status": 403, "body": [{"errorCode": "API_DISABLED_FOR_ORG", "message": "no"}]}},
    }));
    all_at_once(&pair, "Bulk one ").await;
    arrived(&pair).await;
    assert_eq!(calls(&pair, "POST", "jobs/ingest"), 1);
    pair.emulator.fault(json!({
        "crm": "salesforce", "method": "PATCH", "path_prefix": "/services/data/v62.0/composite", "remaining": 1_000_000,
        "action": {"reject": {"status": 503, "body": null}},
    }));
    pair.db
        .exec("UPDATE salesforce.contact SET department = 'Bulk away ' || _id WHERE _id <= 50")
        .await;
    let told = "SELECT count(*) > 0 FROM crm.status WHERE kind = 'server' AND name = 'salesforce' AND last_error LIKE '%does not answer%'";
    pair.db.wait_true("it is away", PATIENCE, told).await;
    pair.emulator.clear_faults();
    arrived(&pair).await;
    all_at_once(&pair, "Bulk two ").await;
    arrived(&pair).await;
    assert_eq!(calls(&pair, "POST", "jobs/ingest"), 2, "not in an hour");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_lost_on_the_way_cost_nothing_but_time() {
    let pair = pair(json!({})).await;
    let lost = |method: &str, skip: u64| json!({"crm": "salesforce", "method": method, "path_prefix": "/services/data/v62.0/jobs/ingest/", "skip": skip, "action": {"fail_after_write": {}}});
    let rules = [
        lost("PATCH", 0),
        lost("GET", 0),
        lost("GET", 1),
        lost("GET", 2),
        json!({"crm": "salesforce", "method": "GET", "path_prefix": "/services/data/v62.0/jobs/ingest/", "skip": 1, "remaining": 2, "action": {"garbage": "html"}}),
    ];
    pair.emulator.fault(json!({ "rules": rules }));
    edit_all(&pair).await;
    arrived(&pair).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pausing_a_mirror_stops_a_job_and_what_it_did_not_reach_goes_later() {
    let pair = pair(json!({"bulk_queue_ms": 600_000})).await;
    edit_all(&pair).await;
    called(&pair, "PATCH", "jobs/ingest/{job}").await;
    pair.db
        .exec("SELECT crm.pause('mirror', 'salesforce.contact')")
        .await;
    let free = "SELECT NOT EXISTS (SELECT FROM crm.write WHERE state = 'in_flight')";
    pair.db
        .wait_true("nothing is in flight", PATIENCE, free)
        .await;
    pair.emulator.admin(
        "POST",
        "/_admin/salesforce/settings",
        Some(&json!({"bulk_queue_ms": 0})),
    );
    pair.db
        .exec("SELECT crm.resume('mirror', 'salesforce.contact')")
        .await;
    arrived(&pair).await;
}
