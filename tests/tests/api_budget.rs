//! One budget per account: calls are counted with what they bought, stop in order when they run out, say so, and go on
//! by themselves; heavy work keeps to its hours.

use std::time::Duration;

use crm_tests::{EmulatorOptions, PATIENCE, Pair, PairOptions};
use serde_json::json;

/// For what comes only after a pause of the CRM's making.
const LONG: Duration = Duration::from_secs(120);

async fn linked(contacts: u64) -> Pair {
    Pair::contacts(options(contacts)).await
}

fn options(contacts: u64) -> PairOptions {
    PairOptions {
        emulator: EmulatorOptions::default().contacts(contacts),
        ..PairOptions::default()
    }
}

fn limits(pair: &Pair, crm: &str, mut limits: serde_json::Value) {
    limits["crm"] = json!(crm);
    pair.emulator
        .admin("POST", "/_admin/rate-limits", Some(&limits));
}

/// How often a CRM answered with a status.
fn answered(pair: &Pair, crm: &str, status: u64) -> u64 {
    pair.emulator
        .served(|r| r["crm"] == crm && r["status"] == status)
}

async fn title_arrives(pair: &Pair, id: &str, title: &str) {
    pair.db
        .exec(&format!(
            "UPDATE hubspot.contacts SET jobtitle = '{title}' WHERE id = '{id}'"
        ))
        .await;
    pair.cluster
        .wait_until("the title is in HubSpot", PATIENCE, async || {
            let now = pair.emulator.field("hubspot", "contacts", id, "jobtitle");
            (now.as_deref() == Some(title)).then_some(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_counted_with_what_they_bought_and_a_failed_store_loses_none() {
    let pair = linked(250).await;
    let (hubspot, _) = pair.known_to_both().await;
    // Nothing can be stored while somebody holds the table: later, then.
    let blocker = pair.cluster.connect("app").await;
    blocker
        .exec("BEGIN; LOCK TABLE crm.api_count IN ACCESS EXCLUSIVE MODE")
        .await;
    title_arrives(&pair, &hubspot, "Counted").await;
    let log = "could not finish a step";
    pair.cluster
        .wait_until("a store failed", LONG, async || {
            pair.cluster.log().contains(log).then_some(())
        })
        .await;
    blocker.exec("COMMIT").await;
    for crm in ["hubspot", "salesforce"] {
        pair.cluster
            .wait_until("every call is counted", PATIENCE, async || {
                let sql = format!(
                    "SELECT coalesce(sum(calls), 0)::bigint FROM crm.api_usage WHERE server = '{crm}'"
                );
                let counted: i64 = pair.db.one(&sql).await;
                (u64::try_from(counted) == Ok(pair.calls(crm))).then_some(())
            })
            .await;
    }
    let row = "SELECT count(*) = 1 FROM crm.api_usage WHERE server = 'hubspot' AND per = 'hour' AND since <= now() AND mirror = 'hubspot.contacts'
               AND links = '{contacts}' AND limited = 0 AND failed = 0 AND bytes > 0";
    for what in [
        "purpose = 'backfill' AND endpoint = 'GET /crm/objects/{version}/contacts' AND calls >= 3 AND records = 250 AND changed = 250 AND changed_per_call > 60",
        "purpose = 'push' AND endpoint = 'POST /crm/objects/{version}/contacts/batch/update' AND calls >= 1 AND records >= 1 AND changed = records",
    ] {
        let sql = format!("{row} AND {what}");
        pair.db.wait_true(what, PATIENCE, &sql).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hours_become_days_and_days_end() {
    let pair = Pair::start(options(1)).await;
    pair.db
        .exec(
            "INSERT INTO crm.api_count (server, per, since, purpose, endpoint, mirror, calls, changed)
             SELECT 'hubspot', 'hour', date_trunc('day', now() - interval '20 days') + n * interval '1 hour', 'poll', 'GET /x', 0, 2, 1 FROM generate_series(0, 23) n;
             INSERT INTO crm.api_count (server, per, since, purpose, endpoint, mirror, calls) VALUES ('hubspot', 'hour', date_trunc('hour', now()), 'poll', 'GET /x', 0, 5),
                 ('hubspot', 'day', now() - interval '401 days', 'poll', 'GET /x', 0, 7);
             SELECT crm._api_count_fold(); SELECT crm._api_count_fold()",
        )
        .await;
    let rows = pair
        .db
        .table("SELECT per, calls::text, changed::text FROM crm.api_usage WHERE endpoint = 'GET /x' ORDER BY 1")
        .await;
    assert_eq!(rows, [["day", "48", "24"], ["hour", "5", "0"]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_rests_when_the_day_runs_low_while_edits_go_on_and_resumes_by_itself() {
    let pair = linked(2_000).await;
    let (hubspot, _) = pair.known_to_both().await;
    let state = async || -> String {
        let sql = "SELECT coalesce((SELECT state FROM crm.status WHERE kind = 'budget' AND name = 'hubspot'), '')";
        pair.db.one(sql).await
    };
    limits(
        &pair,
        "hubspot",
        json!({"daily": 100_000, "used_today": 95_000}),
    );
    title_arrives(&pair, &hubspot, "Low").await;
    let alert = "SELECT state = 'low' AND advice LIKE '%First copies%' AND detail LIKE '%of 100000 calls left%' FROM crm.status WHERE kind = 'budget' AND name = 'hubspot'";
    pair.db.wait_true("the alert", PATIENCE, alert).await;
    pair.db
        .exec("SELECT crm.import('hubspot', ARRAY['deals'], into_schema => 'hubspot')")
        .await;
    // One call may ask whether there are calls again; the pages after it may not come.
    let rests = "SELECT b.state <> 'done' AND b.error LIKE '%rate_limited%' FROM crm.backfill b JOIN crm.mirror m ON m.id = b.mirror WHERE m.object = 'deals'";
    pair.db.wait_true("the copy rests", PATIENCE, rests).await;
    title_arrives(&pair, &hubspot, "Still low").await;
    assert_eq!(state().await, "low");
    let failing: bool = pair
        .db
        .one("SELECT last_error IS NOT NULL FROM crm.status WHERE kind = 'server' AND name = 'hubspot'")
        .await;
    assert!(!failing, "a call that was not made is no error of the CRM");
    limits(&pair, "hubspot", json!({"used_today": 10}));
    title_arrives(&pair, &hubspot, "A new day").await;
    pair.backfilled().await;
    pair.cluster
        .wait_until("the alert is over", PATIENCE, async || {
            (state().await == "ok").then_some(())
        })
        .await;
    assert_eq!(answered(&pair, "hubspot", 429), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_used_up_day_is_asked_about_rarely_and_loses_no_edit() {
    let pair = linked(20).await;
    let (hubspot, salesforce) = pair.known_to_both().await;
    limits(
        &pair,
        "hubspot",
        json!({"daily": 1_000, "used_today": 1_000}),
    );
    limits(&pair, "salesforce", json!({"daily": 1_000, "used": 1_000}));
    pair.db
        .exec(&format!(
            "UPDATE hubspot.contacts SET jobtitle = 'Waits' WHERE id = '{hubspot}'"
        ))
        .await;
    for crm in ["hubspot", "salesforce"] {
        let alert = format!(
            "SELECT state IN ('refused', 'used up') AND advice LIKE 'Nothing is sent%' FROM crm.status WHERE kind = 'budget' AND name = '{crm}'"
        );
        pair.db.wait_true("the alert", PATIENCE, &alert).await;
    }
    let queued = "SELECT count(*) = 2 FROM crm.outbox WHERE state = 'queued' AND not_before > now() + interval '1 minute'";
    pair.db
        .wait_true("both writes wait", PATIENCE, queued)
        .await;
    let refused = || answered(&pair, "hubspot", 429) + answered(&pair, "salesforce", 403);
    let before = refused();
    assert!((2..=20).contains(&before), "{before} refusals");
    // As many as were under way, and no others, however much wants to be called.
    pair.db
        .exec(&format!(
            "UPDATE hubspot.contacts SET city = 'Later' WHERE id <> '{hubspot}'"
        ))
        .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(refused() <= before + 2, "{} refusals", refused());
    let limit = "SELECT count(*) = 2 FROM crm.api_limit WHERE name = 'day' AND refused_until > now() AND calls_left = 0";
    pair.db
        .wait_true("the limits say so", PATIENCE, limit)
        .await;
    let why = format!(
        "SELECT array_agg(verdict ORDER BY detail) = '{{note,note}}' AND bool_and(detail LIKE '%takes no calls%' AND advice LIKE 'Nothing is sent%')
         FROM crm.why('hubspot.contacts', '{hubspot}') WHERE item = 'quota' AND detail NOT LIKE '%429%'"
    );
    pair.db
        .wait_true("crm.why names the quota", PATIENCE, &why)
        .await;
    let title = pair
        .emulator
        .field("salesforce", "Contact", &salesforce, "Title");
    assert_ne!(title.as_deref(), Some("Waits"));
}

#[tokio::test(flavor = "multi_thread")]
async fn heavy_work_keeps_to_the_hours_of_the_accounts_time_zone() {
    let pair = Pair::start(options(30)).await;
    let unknown = pair
        .db
        .error("INSERT INTO crm.off_peak (server, starts, ends) VALUES ('salesforce', '22:00', '06:00')")
        .await;
    assert_eq!(unknown.code().code(), "55000", "{unknown}");
    let unknown = pair
        .db
        .error(
            "INSERT INTO crm.api_budget (server, time_zone) VALUES ('salesforce', 'Europe/Berlim')",
        )
        .await;
    assert_eq!(unknown.code().code(), "22023", "{unknown}");
    assert!(
        unknown.hint().unwrap_or_default().contains("Europe/Berlin"),
        "{unknown:?}"
    );
    for (bad, code) in [
        (
            "INSERT INTO crm.api_budget (server) VALUES ('hubspott')",
            "42704",
        ),
        (
            "INSERT INTO crm.api_budget (server, share) VALUES ('hubspot', 1.5)",
            "23514",
        ),
        (
            "INSERT INTO crm.api_budget (server, reserve, pause_at) VALUES ('hubspot', 0.1, 0.2)",
            "23514",
        ),
        (
            "INSERT INTO crm.off_peak (server, starts, ends, days) VALUES ('hubspot', '1:00', '2:00', '{8}')",
            "23514",
        ),
    ] {
        // The last one needs a time zone to come so far.
        pair.db.exec("INSERT INTO crm.api_budget (server, time_zone) VALUES ('hubspot', 'UTC') ON CONFLICT DO NOTHING").await;
        if bad.contains("api_budget") {
            pair.db.exec("DELETE FROM crm.api_budget").await;
        }
        let error = pair.db.error(bad).await;
        assert_eq!(error.code().code(), code, "{bad}: {error}");
    }
    pair.db.exec("DELETE FROM crm.api_budget").await;
    // The CRM tells its time zone; the window begins when it is one hour later there.
    let _: Option<bool> = pair
        .db
        .one("SELECT bool_and(ok) FROM crm.server_check('hubspot')")
        .await;
    let zone: Option<String> = pair.db.one("SELECT crm._time_zone('hubspot')").await;
    assert_eq!(zone.as_deref(), Some("Etc/UTC"));
    pair.db
        .exec("INSERT INTO crm.off_peak (server, starts, ends) SELECT 'hubspot', (t + interval '2 hours')::time, (t + interval '3 hours')::time FROM (SELECT now() AT TIME ZONE 'UTC' AS t) n")
        .await;
    pair.worker_has_read().await;
    pair.import("hubspot", &["contacts"]).await;
    let waits = "SELECT state = 'ok' AND detail LIKE '%heavy work waits until%' FROM crm.status WHERE kind = 'budget' AND name = 'hubspot'";
    pair.db
        .wait_true("the status says so", PATIENCE, waits)
        .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let copied: i64 = pair.db.one("SELECT count(*) FROM hubspot.contacts").await;
    assert_eq!(copied, 0, "before its window");
    // In another time zone it is that hour now.
    pair.db
        .exec("INSERT INTO crm.api_budget (server, time_zone) VALUES ('hubspot', 'Etc/GMT-2')")
        .await;
    pair.backfilled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_of_the_night_sends_in_its_window_and_others_at_once() {
    let pair = linked(20).await;
    let (hubspot, _) = pair.known_to_both().await;
    pair.db
        .exec(
            "UPDATE crm.link SET latency = 'off_peak'; INSERT INTO crm.api_budget (server, time_zone) VALUES ('hubspot', 'UTC');
             INSERT INTO crm.off_peak (server, starts, ends) SELECT 'hubspot', (t + interval '2 hours')::time, (t + interval '3 hours')::time FROM (SELECT now() AT TIME ZONE 'UTC' AS t) n",
        )
        .await;
    pair.worker_has_read().await;
    pair.db
        .exec(&format!(
            "UPDATE hubspot.contacts SET jobtitle = 'Night' WHERE id = '{hubspot}'"
        ))
        .await;
    let sent = "SELECT count(*) = 1 FROM crm.outbox WHERE mirror = 'hubspot.contacts' AND state = 'queued' AND attempts = 0";
    pair.db.wait_true("it is queued", PATIENCE, sent).await;
    // Salesforce has no windows.
    let there = "SELECT count(*) = 0 FROM crm.outbox WHERE mirror = 'salesforce.contact'";
    pair.db
        .wait_true("the other side has it", PATIENCE, there)
        .await;
    assert!(pair.db.one::<bool>(sent).await, "nothing is tried in vain");
    pair.db
        .exec("UPDATE crm.link SET latency = 'relaxed'")
        .await;
    pair.cluster
        .wait_until("the title is in HubSpot", PATIENCE, async || {
            let now = pair
                .emulator
                .field("hubspot", "contacts", &hubspot, "jobtitle");
            (now.as_deref() == Some("Night")).then_some(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_calls_at_a_time_become_fewer_and_everything_arrives() {
    let pair = Pair::start(options(20)).await;
    let objects = ["Contact", "Account", "Opportunity", "Case"];
    pair.import("salesforce", &objects).await;
    pair.backfilled().await;
    limits(
        &pair,
        "salesforce",
        json!({"concurrent": 1, "long_ms": 0, "work_ms": 500}),
    );
    pair.db
        .exec("UPDATE crm.mirror SET poll_interval = '1 second', mode = 'live'; SELECT crm.activate()")
        .await;
    let learned = "SELECT count(*) = 1 FROM crm.api_limit WHERE server = 'salesforce' AND name = 'concurrency' AND refused_at IS NOT NULL";
    pair.db
        .wait_true("too many were refused", LONG, learned)
        .await;
    pair.db
        .exec("UPDATE salesforce.contact SET title = 'One by one'")
        .await;
    let id: String = pair.db.one("SELECT max(id) FROM salesforce.contact").await;
    pair.cluster
        .wait_until("the edits arrived", LONG, async || {
            let title = pair.emulator.field("salesforce", "Contact", &id, "Title");
            (title.as_deref() == Some("One by one")).then_some(())
        })
        .await;
    let state: String = pair
        .db
        .one("SELECT state FROM crm.status WHERE kind = 'budget' AND name = 'salesforce'")
        .await;
    assert_eq!(state, "ok", "the day's calls are not used up by that");
}
