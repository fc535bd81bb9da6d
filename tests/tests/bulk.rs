//! First copies by bulk jobs of Salesforce: complete, resumed, given up for pages, safe against what changes meanwhile.

use std::time::Duration;

use crm_tests::{EmulatorOptions, Options, Pair, PairOptions};
use serde_json::{Value, json};

const PEOPLE: u64 = 3_000;
const PATIENCE: Duration = Duration::from_secs(60);
/// Where the rows of the first job are.
const RESULTS: &str = "/services/data/v62.0/jobs/query/750xx0000000001AAA/results";

/// Servers of which Salesforce has 3,000 contacts, and 1,000 are enough for a bulk job that gives out 500 a page.
async fn pair(settings: Value) -> Pair {
    let mut all = json!({"bulk_page_rows": 500, "keepalive_ms": 1000});
    for (key, value) in settings.as_object().into_iter().flatten() {
        all[key] = value.clone();
    }
    Pair::start(PairOptions {
        cluster: Options::default().setting("pg_crm_sync.bulk_read_rows", "1000"),
        emulator: EmulatorOptions::default()
            .contacts(PEOPLE)
            .arg("--shared-share", "1")
            .arg("--salesforce", &all.to_string()),
    })
    .await
}

/// How often a route was called and answered so.
fn calls(pair: &Pair, method: &str, route: &str) -> u64 {
    let route = format!("/services/data/{{version}}/{route}");
    pair.emulator
        .served(|row| row["method"] == method && row["route"] == route.as_str())
}

/// Every contact is there once, with the values that Salesforce has.
async fn complete(pair: &Pair) {
    let sql =
        "SELECT count(*) FROM salesforce.contact WHERE _deleted_at IS NULL AND id LIKE '003%'";
    assert_eq!(pair.db.one::<i64>(sql).await, PEOPLE.cast_signed());
    for id in ["003xx0000000001AAA", "003xx00000000mNAAQ"] {
        let sql = format!("SELECT coalesce(email, '') FROM salesforce.contact WHERE id = '{id}'");
        let found: Vec<Vec<String>> = pair.db.table(&sql).await;
        let email = pair.emulator.field("salesforce", "Contact", id, "Email");
        assert_eq!(found.concat(), [email.unwrap_or_default()]);
    }
}

fn bulk(pair: &Pair, settings: Value) {
    pair.emulator
        .admin("POST", "/_admin/salesforce/settings", Some(&settings));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bulk_copy_is_the_same_as_one_by_pages_whatever_the_header_and_the_times_look_like() {
    let pair = pair(json!({})).await;
    pair.cluster.set("pg_crm_sync.bulk_read_rows", "0");
    pair.cluster.reload();
    pair.worker_has_read().await;
    pair.import("salesforce", &["Contact"]).await;
    pair.backfilled().await;
    assert_eq!(calls(&pair, "POST", "jobs/query"), 0, "switched off");
    let columns: String = pair
        .db
        .one(
            "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attname) FROM pg_attribute
             WHERE attrelid = 'salesforce.contact'::regclass AND attnum > 0 AND NOT attisdropped AND attname <> '_id'",
        )
        .await;
    pair.db
        .exec(&format!(
            "CREATE TABLE paged AS SELECT {columns} FROM salesforce.contact"
        ))
        .await;
    pair.cluster.set("pg_crm_sync.bulk_read_rows", "1000");
    pair.cluster.reload();
    pair.worker_has_read().await;
    for (at, (every, zulu)) in [(true, true), (false, false)].into_iter().enumerate() {
        bulk(
            &pair,
            json!({"bulk_header_every_page": every, "bulk_zulu": zulu}),
        );
        pair.db
            .exec("SELECT crm.mirror_drop('salesforce.contact')")
            .await;
        pair.import("salesforce", &["Contact"]).await;
        pair.backfilled().await;
        let differ = format!(
            "SELECT count(*) FROM ((SELECT {columns} FROM salesforce.contact EXCEPT SELECT * FROM paged)
             UNION ALL (SELECT * FROM paged EXCEPT SELECT {columns} FROM salesforce.contact)) d"
        );
        assert_eq!(pair.db.one::<i64>(&differ).await, 0, "header {every}");
        complete(&pair).await;
        let jobs = at as u64 + 1;
        assert_eq!(calls(&pair, "POST", "jobs/query"), jobs, "one job a copy");
        let pages = calls(&pair, "GET", "jobs/query/{job}/{part}");
        assert_eq!(pages, jobs * PEOPLE / 500, "each page once");
    }
    crm_tests::wait_until("the jobs are removed", PATIENCE, async || {
        (calls(&pair, "DELETE", "jobs/query/{job}") == 2).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_goes_on_at_its_locator_after_kill_9() {
    let mut pair = pair(json!({})).await;
    pair.emulator.fault(json!({
        "crm": "salesforce", "path_prefix": RESULTS, "skip": 3, "remaining": 1, "action": {"hold": {"ms": 600_000}},
    }));
    pair.import("salesforce", &["Contact"]).await;
    let sql =
        "SELECT coalesce(bool_or(done >= 1500 AND state = 'running'), false) FROM crm.backfill";
    pair.db.wait_true("half is copied", PATIENCE, sql).await;
    pair.cluster
        .crash_session_worker(&pair.db, Duration::ZERO)
        .await;
    pair.emulator.clear_faults();
    pair.db = pair.cluster.connect("app").await;
    pair.backfilled().await;
    complete(&pair).await;
    assert_eq!(calls(&pair, "POST", "jobs/query"), 1, "the same job");
    let pages = calls(&pair, "GET", "jobs/query/{job}/{part}");
    // The page that was held was asked for twice, nothing else.
    assert!(pages <= PEOPLE / 500 + 1, "{pages} pages");
    let done: i64 = pair.db.one("SELECT done FROM crm.backfill").await;
    assert_eq!(done, PEOPLE.cast_signed(), "nothing was counted twice");
}

/// A copy during which Salesforce refuses as `fault` says comes to its end by pages.
async fn by_pages(fault: Value) {
    let pair = pair(json!({})).await;
    pair.emulator.fault(fault.clone());
    pair.import("salesforce", &["Contact"]).await;
    pair.backfilled().await;
    complete(&pair).await;
    assert!(calls(&pair, "GET", "query") > PEOPLE / 2_000, "{fault}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_bulk_jobs_are_not_permitted_the_copy_goes_by_pages() {
    let body = json!([{"errorCode": "API_DISABLED_FOR_ORG", "message": "The REST API is not enabled for this Organization."}]);
    by_pages(json!({
        "crm": "salesforce", "method": "POST", "path_prefix": "/services/data/v62.0/jobs/query", "remaining": 100,
        "action": {"reject": {"status": 403, "body": body}},
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_gone_half_way_is_given_up_for_pages() {
    for (status, code) in [(404, "NOT_FOUND"), (409, "API_VERSION_MISMATCH")] {
        by_pages(json!({
            "crm": "salesforce", "path_prefix": RESULTS, "skip": 2, "remaining": 100,
            "action": {"reject": {"status": status, "body": [{"errorCode": code, "message": "no"}]}},
        }))
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_fails_is_given_up_for_pages() {
    let pair = pair(json!({"bulk_fail": true})).await;
    pair.import("salesforce", &["Contact"]).await;
    pair.backfilled().await;
    complete(&pair).await;
    assert_eq!(calls(&pair, "POST", "jobs/query"), 1, "tried once");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_break_off_or_lack_something_are_read_again_from_their_place() {
    let pair = pair(json!({})).await;
    let broken = |skip: u64, action: Value| json!({"crm": "salesforce", "path_prefix": RESULTS, "skip": skip, "action": action});
    pair.emulator.fault(json!({"rules": [
        broken(1, json!({"garbage": "truncated"})),
        broken(2, json!({"reject": {"status": 503, "body": "busy"}})),
        broken(3, json!("close")),
    ]}));
    pair.import("salesforce", &["Contact"]).await;
    pair.backfilled().await;
    complete(&pair).await;
    assert_eq!(calls(&pair, "POST", "jobs/query"), 1, "the same job");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_and_goes_while_a_job_is_read_is_not_lost() {
    let pair = pair(json!({})).await;
    // The rows are as of the time when the job ran: the last of them come late.
    pair.emulator.fault(json!({
        "crm": "salesforce", "path_prefix": RESULTS, "skip": 3, "remaining": 1, "action": {"hold": {"ms": 4_000}},
    }));
    pair.import("salesforce", &["Contact"]).await;
    let sql = "SELECT coalesce(bool_or(done >= 1500), false) FROM crm.backfill";
    pair.db.wait_true("half is copied", PATIENCE, sql).await;
    let (gone, changed) = ("003xx00000000mNAAQ", "003xx00000000mOAAQ");
    pair.emulator.delete("salesforce", "Contact", gone);
    pair.emulator.edit(
        "salesforce",
        "Contact",
        changed,
        json!({"Title": "Meanwhile"}),
    );
    pair.backfilled().await;
    let sql = format!(
        "SELECT NOT EXISTS (SELECT FROM salesforce.contact WHERE id = '{gone}' AND _deleted_at IS NULL)
         AND EXISTS (SELECT FROM salesforce.contact WHERE id = '{changed}' AND title = 'Meanwhile')"
    );
    pair.db
        .wait_true("both are as they are now", PATIENCE, &sql)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_waits_is_aborted_when_its_mirror_is_paused() {
    let pair = pair(json!({"bulk_queue_ms": 600_000})).await;
    pair.import("salesforce", &["Contact"]).await;
    let sql = "SELECT coalesce(bool_or(cursor LIKE '%750xx%'), false) FROM crm.backfill";
    pair.db.wait_true("a job waits", PATIENCE, sql).await;
    pair.db
        .exec("SELECT crm.pause('mirror', 'salesforce.contact')")
        .await;
    crm_tests::wait_until("the job is aborted", PATIENCE, async || {
        (calls(&pair, "PATCH", "jobs/query/{job}") == 1).then_some(())
    })
    .await;
    bulk(&pair, json!({"bulk_queue_ms": 0}));
    pair.db
        .exec("SELECT crm.resume('mirror', 'salesforce.contact')")
        .await;
    pair.backfilled().await;
    complete(&pair).await;
    assert_eq!(calls(&pair, "POST", "jobs/query"), 2, "another job");
}
