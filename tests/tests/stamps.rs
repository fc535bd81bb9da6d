//! How exact times are stands in rows: a DBA sees and changes them, and the resolver goes by them.

use crm_tests::catalog::mirrors;
use crm_tests::{Cluster, Options, PATIENCE, Pair, PairOptions, Person};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn the_rows_begin_with_the_first_mirror_are_checked_and_have_versions() {
    let cluster = Cluster::start(Options::default()).await;
    let db = cluster.connect("postgres").await;
    db.exec("CREATE EXTENSION pg_crm_sync").await;
    let rows = "SELECT count(*) FROM crm.stamp_quality";
    assert_eq!(db.one::<i64>(rows).await, 0);
    mirrors(&db).await;
    assert_eq!(db.one::<i64>(rows).await, 11, "one for each way");
    let insert = "INSERT INTO crm.stamp_quality (system, source, server, stamp, exactness, resolution, tolerance) VALUES";
    for (sql, code, words) in [
        (format!("{insert} ('hubspot', 'pigeon', 'hubspot', 'x', 'edit', '1 s', '0')"), "22023", "hubspot webhook"),
        (format!("{insert} ('hubspot', 'poll', 'hubspto', 'x', 'record', '1 s', '1 s')"), "42704", "Did you mean hubspot"),
        (format!("{insert} ('hubspot', 'poll', 'hubspot', 'x', 'exact', '1 s', '0')"), "22023", "received"),
        (format!("{insert} ('hubspot', 'poll', 'hubspot', 'x', 'record', '1 s', '0')"), "22023", "any time before"),
        (format!("{insert} ('hubspot', 'poll', 'hubspot', 'x', 'edit', '0', '0')"), "22023", "1 ms to 1 day"),
        ("UPDATE crm.stamp_quality SET exactness = 'received' WHERE system = 'sql'".to_owned(), "22023", "statement"),
        ("DELETE FROM crm.stamp_quality WHERE system = 'hubspot'".to_owned(), "23502", "no hidden default"),
        ("UPDATE crm.stamp_quality SET server = 'hubspot' WHERE system = 'hubspot' AND source = 'poll'".to_owned(), "23502", "no hidden default"),
        ("TRUNCATE crm.stamp_quality".to_owned(), "0A000", "DELETE"),
    ] {
        let error = db.error(&sql).await;
        let hint = error.hint().unwrap_or_default();
        let all = format!("{} | {} | {hint}", error.message(), error.detail().unwrap_or_default());
        assert_eq!(error.code().code(), code, "{sql}\n  {all}");
        assert!(all.contains(words) && !hint.is_empty(), "{sql}\n  {all}");
    }
    let version = "SELECT policy_version FROM crm.installation";
    let before: i64 = db.one(version).await;
    db.exec(
        "CREATE ROLE boss LOGIN IN ROLE crm_admin; CREATE ROLE looker LOGIN IN ROLE crm_reader",
    )
    .await;
    let boss = cluster.connect_as("boss", "postgres").await;
    boss.exec(&format!(
        "{insert} ('salesforce', 'pubsub', 'salesforce', 'commitTimestamp', 'edit', '1 s', '0')"
    ))
    .await;
    boss.exec("SET pg_crm_sync.reason = 'our org'; UPDATE crm.stamp_quality SET resolution = '2 s' WHERE server = 'salesforce'; DELETE FROM crm.stamp_quality WHERE server = 'salesforce'")
        .await;
    let looker = cluster.connect_as("looker", "postgres").await;
    let error = looker.error("DELETE FROM crm.stamp_quality").await;
    assert_eq!(error.code().code(), "42501");
    let told = looker
        .table(&format!(
            "SELECT policy_version - {before}, changed_by, coalesce(reason, ''), coalesce(before ->> 'resolution', ''), coalesce(after ->> 'resolution', '')
             FROM crm.policy_history WHERE kind = 'stamp' ORDER BY id"
        ))
        .await;
    assert_eq!(
        told,
        [
            ["1", "boss", "", "", "00:00:01"],
            ["2", "boss", "our org", "00:00:01", "00:00:02"],
            ["3", "boss", "our org", "00:00:02", ""],
        ]
    );
    let line = "SELECT count(*) = 3 FROM crm.event WHERE kind = 'policy' AND fields = '{crm.stamp_quality.salesforce pubsub}' AND actor = 'boss'";
    db.wait_true("the changes are events", PATIENCE, line).await;
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM crm.policy_task").await,
        0
    );
}

/// SQL's value waits for HubSpot; later somebody changes it there, and only a poll tells.
async fn crossing(pair: &Pair, who: &Person, sql: &str, crm: &str) {
    pair.hubspot_takes_nothing();
    pair.sql(who, "jobtitle", sql).await;
    let queued = format!("SELECT count(*) = 1 FROM crm.write w JOIN hubspot.contacts h ON h._id = w.row_id
         WHERE h.id = '{}' AND w.vals ->> 'jobtitle' = '{sql}' AND w.state = 'queued' AND w.attempts > 0", who.hubspot);
    pair.db
        .wait_true("SQL's value waits", PATIENCE, &queued)
        .await;
    pair.edit("hubspot", who, "jobtitle", crm);
    let decided = format!(
        "SELECT count(*) > 0 FROM crm.conflict WHERE field = 'jobtitle' AND both_changed AND (lost::text LIKE '%{crm}%' OR value::text LIKE '%{crm}%')"
    );
    pair.db
        .wait_true("the conflict is decided", PATIENCE, &decided)
        .await;
    pair.emulator.clear_faults();
    lose_webhooks(pair);
}

fn lose_webhooks(pair: &Pair) {
    pair.emulator
        .fault(json!({"stream": "webhook", "lose": 1000}));
}

/// By the clock the CRM's edit is later. But all that is known is when its record changed last.
#[tokio::test(flavor = "multi_thread")]
async fn a_poll_beats_an_edit_only_where_the_rows_say_that_its_time_is_the_edits() {
    let (pair, people) = Pair::linked(20, PairOptions::default()).await;
    pair.agree().await;
    pair.db
        .exec("UPDATE crm.mirror SET poll_interval = '1 s'; UPDATE crm.conflict_policy SET skew = '0', winner = 'hubspot,salesforce,local' WHERE link = 'contacts'")
        .await;
    pair.worker_has_read().await;
    lose_webhooks(&pair);
    crossing(&pair, &people[0], "By SQL", "By hand").await;
    pair.reaches_both(&people[0], "jobtitle", "By SQL").await;
    pair.db
        .exec("INSERT INTO crm.stamp_quality (system, source, server, stamp, exactness, resolution, tolerance)
               SELECT 'hubspot', source, 'hubspot', 'as if exact', 'edit', '1 ms', '0' FROM unnest(ARRAY['poll', 'read']) AS source")
        .await;
    pair.worker_has_read().await;
    crossing(&pair, &people[1], "By SQL", "Later by hand").await;
    pair.reaches_both(&people[1], "jobtitle", "Later by hand")
        .await;
    pair.emulator.clear_faults();
    pair.agree().await;
}
