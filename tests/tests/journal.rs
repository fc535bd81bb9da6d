//! Events of HubSpot by its webhooks journal: read in whatever shape its files have, none lost and none twice.

use std::time::Duration;

use crm_tests::{EmulatorOptions, Options, Pair, PairOptions};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);
const PEOPLE: u64 = 60;

/// Contacts of both sides, linked; HubSpot tells of changes by its journal alone.
async fn pair() -> Pair {
    let pair = Pair::contacts(PairOptions {
        cluster: Options::default(),
        emulator: EmulatorOptions::default()
            .contacts(PEOPLE)
            .arg("--shared-share", "1"),
    })
    .await;
    pair.emulator.webhooks("");
    journal(&pair, json!({"on": true}));
    pair.cluster.credentials(
        "hubspot.json",
        &json!({
            "token": "pat-na1-emulator", "hosts": ["127.0.0.1"], "owner": "postgres",
            "client_id": "emulator-app", "client_secret": "emulator-secret", "webhook_secret": "emulator-secret",
        }),
    );
    // So that polls find nothing before the journal.
    pair.db
        .exec("UPDATE crm.mirror SET poll_interval = '1 hour'; ALTER SERVER hubspot OPTIONS (ADD events 'journal')")
        .await;
    pair.db
        .wait_true(
            "the journal is read",
            PATIENCE,
            "SELECT EXISTS (SELECT FROM crm.stream WHERE kind = 'journal' AND last_ok_at IS NOT NULL)",
        )
        .await;
    pair
}

fn journal(pair: &Pair, settings: Value) {
    let answer = (pair.emulator).admin("POST", "/_admin/journal", Some(&settings));
    assert!(answer["error"].is_null(), "{answer}");
}

/// Somebody's id in HubSpot.
async fn someone(pair: &Pair, n: usize) -> String {
    let sql = format!("SELECT id FROM hubspot.contacts ORDER BY _id OFFSET {n} LIMIT 1");
    pair.db.one(&sql).await
}

/// What the journal's row in `crm.stream` counts.
async fn counted(pair: &Pair, column: &str) -> i64 {
    let sql = format!("SELECT {column} FROM crm.stream WHERE kind = 'journal'");
    pair.db.one(&sql).await
}

fn edit(pair: &Pair, id: &str, city: &str) {
    let fields = json!({"city": city});
    pair.emulator.edit("hubspot", "contacts", id, fields);
}

/// Waits until the mirror shows it.
async fn shows(pair: &Pair, id: &str, city: &str) {
    let sql = format!("SELECT city = '{city}' FROM hubspot.contacts WHERE id = '{id}'");
    pair.db.wait_true(city, PATIENCE, &sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_come_by_the_journal_whatever_its_files_look_like() {
    let pair = pair().await;
    let shapes = ["plain", "text", "list", "names", "lines", "bare"];
    for (n, shape) in shapes.into_iter().enumerate() {
        journal(&pair, json!({ "shape": shape }));
        let (before, id) = (counted(&pair, "events").await, someone(&pair, n).await);
        edit(&pair, &id, shape);
        shows(&pair, &id, shape).await;
        assert!(counted(&pair, "events").await > before, "{shape}");
    }
    assert_eq!(counted(&pair, "rejected").await, 0);
    let made = pair.create(
        "hubspot",
        "contacts",
        json!({"email": "journal@example.com", "city": "New"}),
    );
    shows(&pair, &made, "New").await;
    pair.emulator.delete("hubspot", "contacts", &made);
    let gone = format!("SELECT _deleted_at IS NOT NULL FROM hubspot.contacts WHERE id = '{made}'");
    pair.db.wait_true("it is gone", PATIENCE, &gone).await;
    pair.agree().await;
    let said = "SELECT ok FROM crm.server_check('hubspot') WHERE item = 'journal'";
    assert!(pair.db.one::<bool>(said).await);
    // Which subscriptions the app needs, word by word.
    let needed = "SELECT advice LIKE '%POST http://%/webhooks-journal/subscriptions/2026-03%\"city\"%\"objectTypeId\": \"0-1\"%'
                  FROM crm.server_check('hubspot') WHERE item = 'journal subscription of contacts' AND ok IS NULL";
    assert!(pair.db.one::<bool>(needed).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_behind_asks_for_many_places_at_once_and_for_single_ones_where_that_is_refused()
{
    let pair = pair().await;
    journal(&pair, json!({"file_events": 1}));
    let asked = |pair: &Pair, part: &str| {
        let places = |route: &str| route.contains("/journal/2026-03/") && route.contains(part);
        pair.emulator
            .served(|r| r["route"].as_str().is_some_and(places))
    };
    for refuse in [false, true] {
        let off = json!({"crm": "hubspot", "path_prefix": "/webhooks-journal", "remaining": 1_000, "action": {"reject": {"status": 503}}});
        pair.emulator.fault(off);
        for n in 0..PEOPLE as usize {
            let id = someone(&pair, n).await;
            edit(&pair, &id, &format!("Behind {refuse}"));
        }
        pair.emulator.clear_faults();
        if refuse {
            let no = json!({"crm": "hubspot", "path_prefix": "/webhooks-journal/journal/2026-03/batch", "remaining": 1_000, "action": {"reject": {"status": 404}}});
            pair.emulator.fault(no);
        }
        pair.emulator.reset_counts();
        let all = format!(
            "SELECT count(*) = {PEOPLE} FROM hubspot.contacts WHERE city = 'Behind {refuse}'"
        );
        pair.db.wait_true("all are there", PATIENCE, &all).await;
        let (many, all) = (asked(&pair, "/batch/"), asked(&pair, ""));
        assert!(many > 0, "several places are asked for");
        match refuse {
            false => assert!(all < PEOPLE / 2, "{all} calls for {PEOPLE} places"),
            true => assert!(many <= 3, "{many} calls that the journal refuses"),
        }
    }
    assert_eq!(counted(&pair, "rejected").await, 0);
    pair.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_cannot_be_understood_are_counted_and_polls_find_what_they_meant() {
    let pair = pair().await;
    journal(&pair, json!({"shape": "alien"}));
    let id = someone(&pair, 0).await;
    edit(&pair, &id, "Elsewhere");
    shows(&pair, &id, "Elsewhere").await;
    assert!(counted(&pair, "rejected").await > 0);
    pair.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_lost_refused_or_garbage_cost_nothing_but_time() {
    let pair = pair().await;
    let limit = json!({"reject": {"status": 429, "headers": {"retry-after": "1"}, "body":
        {"status": "error", "message": "You have reached your secondly limit.", "errorType": "RATE_LIMIT", "policyName": "SECONDLY"}}});
    let actions = [
        json!({"fail_after_write": {}}),
        limit,
        json!({"reject": {"status": 503}}),
        json!({"garbage": "html"}),
        json!({"garbage": "truncated"}),
        json!({"close": null}),
    ];
    for (n, action) in actions.into_iter().enumerate() {
        for prefix in ["/webhooks-journal/journal", "/webhooks-journal-data"] {
            let (id, city) = (someone(&pair, n).await, format!("{n} {prefix}"));
            pair.emulator
                .fault(json!({"crm": "hubspot", "path_prefix": prefix, "action": action}));
            edit(&pair, &id, &city);
            shows(&pair, &id, &city).await;
        }
    }
    assert_eq!(pair.faults_left(), 0);
    pair.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_stays_garbage_is_skipped_and_polls_find_what_it_said() {
    let pair = pair().await;
    let id = someone(&pair, 0).await;
    pair.emulator
        .fault(json!({"crm": "hubspot", "path_prefix": "/webhooks-journal-data", "remaining": 3, "action": {"garbage": "truncated"}}));
    pair.emulator
        .fault(json!({"crm": "hubspot", "path_prefix": "/webhooks-journal-data", "remaining": 1, "action": {"reject": {"status": 403}}}));
    edit(&pair, &id, "Hidden");
    shows(&pair, &id, "Hidden").await;
    assert_eq!(counted(&pair, "rejected").await, 1);
    edit(&pair, &id, "Seen");
    shows(&pair, &id, "Seen").await;
    pair.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offset_that_is_too_old_leads_to_the_earliest_file_and_a_poll() {
    let pair = pair().await;
    for (unknown, end) in [(404, 204), (404, 404), (410, 204), (400, 404)] {
        journal(&pair, json!({"unknown": unknown, "end": end}));
        let (lost, kept) = (someone(&pair, 1).await, someone(&pair, 2).await);
        // An offset to begin with.
        edit(&pair, &kept, &format!("before {unknown} {end}"));
        shows(&pair, &kept, &format!("before {unknown} {end}")).await;
        pair.emulator
            .fault(json!({"crm": "hubspot", "path_prefix": "/webhooks-journal/journal", "remaining": 1_000, "action": {"reject": {"status": 503}}}));
        edit(&pair, &lost, &format!("lost {unknown} {end}"));
        journal(&pair, json!({"forget": true}));
        edit(&pair, &kept, &format!("kept {unknown} {end}"));
        pair.emulator.clear_faults();
        shows(&pair, &kept, &format!("kept {unknown} {end}")).await;
        shows(&pair, &lost, &format!("lost {unknown} {end}")).await;
    }
    pair.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_kill_9_the_journal_goes_on_where_it_was_and_nothing_counts_twice() {
    let mut pair = pair().await;
    journal(&pair, json!({"file_events": 5}));
    for round in 0..2 {
        let before = counted(&pair, "events").await;
        for n in 0..40 {
            let id = someone(&pair, n).await;
            edit(&pair, &id, &format!("Round {round}"));
        }
        pair.db
            .wait_true(
                "it is read",
                PATIENCE,
                &format!("SELECT events > {before} FROM crm.stream WHERE kind = 'journal'"),
            )
            .await;
        pair.cluster
            .crash_session_worker(&pair.db, Duration::ZERO)
            .await;
        pair.db = pair.cluster.connect("app").await;
        let all =
            format!("SELECT count(*) = 40 FROM hubspot.contacts WHERE city = 'Round {round}'");
        pair.db.wait_true("all are there", PATIENCE, &all).await;
    }
    pair.agree().await;
    let twice = "SELECT count(*) FROM (SELECT FROM crm.event WHERE source = 'journal' AND kind = 'update' GROUP BY record_id, new_values HAVING count(*) > 1) t";
    assert_eq!(pair.db.one::<i64>(twice).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_webhooks_told_already_the_journal_does_not_do_again() {
    let pair = pair().await;
    let hook: String = pair
        .db
        .one("SELECT current_setting('pg_crm_sync.webhook_public_url') || '/webhook/hubspot'")
        .await;
    pair.emulator.webhooks(&hook);
    pair.emulator.reset_counts();
    let id = someone(&pair, 3).await;
    let before = counted(&pair, "events").await;
    edit(&pair, &id, "Once");
    let both = format!(
        "SELECT (SELECT events > {before} FROM crm.stream WHERE kind = 'journal')
             AND (SELECT events > 0 FROM crm.stream WHERE kind = 'webhook' AND server = 'hubspot')"
    );
    pair.db.wait_true("both have told", PATIENCE, &both).await;
    pair.agree().await;
    assert_eq!(pair.writes("salesforce"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_says_what_the_journal_lacks() {
    let pair = Pair::start(PairOptions::default()).await;
    pair.db
        .exec("ALTER SERVER hubspot OPTIONS (ADD events 'journal'); ALTER SERVER salesforce OPTIONS (ADD events 'journal')")
        .await;
    for (server, word) in [
        ("hubspot", "client_secret"),
        ("salesforce", "keeps no journal"),
    ] {
        let sql = format!(
            "SELECT item, detail FROM crm.server_check('{server}') WHERE NOT ok AND item = 'journal'"
        );
        let rows = pair.db.table(&sql).await;
        assert_eq!(rows.len(), 1, "{server}");
        assert!(rows[0][1].contains(word), "{rows:?}");
    }
    let refused = pair
        .db
        .error("ALTER SERVER hubspot OPTIONS (SET events 'letters')")
        .await;
    assert!(
        refused
            .message()
            .contains("not a way in which changes come")
    );
}
