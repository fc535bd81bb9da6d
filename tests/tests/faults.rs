//! CRMs and networks that misbehave: whatever they answer, each change arrives once.

use crm_tests::{Options, PATIENCE, Pair, PairOptions, Person};
use serde_json::{Value, json};

/// A pair whose calls give up soon, so that a silent CRM costs seconds.
async fn pair(n: u64) -> (Pair, Vec<Person>) {
    Pair::linked(n, options()).await
}

fn options() -> PairOptions {
    PairOptions {
        cluster: Options::default().setting("pg_crm_sync.request_timeout", "2s"),
        ..PairOptions::default()
    }
}

fn reject(status: u16, body: &Value) -> Value {
    json!({"reject": {"status": status, "headers": {"Retry-After": "1"}, "body": body}})
}

/// Faults that pass: what was sent must arrive in the end without anybody's help.
fn passing() -> Vec<Value> {
    let mut faults: Vec<Value> = [401, 423, 429, 502, 503]
        .iter()
        .map(|status| reject(*status, &Value::Null))
        .collect();
    faults.extend([
        json!("close"),
        json!({"garbage": "html"}),
        json!({"garbage": "truncated"}),
        json!({"garbage": "empty"}),
        json!({"garbage": "endless"}),
        json!({"hold": {"ms": 4000}}),
        json!({"slow_body": {"bytes_per_s": 20}}),
        json!({"fail_after_write": {"status": 502}}),
        json!({"fail_after_write": {}}),
    ]);
    faults
}

/// Where contacts are read.
const HUBSPOT: &str = "/crm/objects/2026-03/contacts";
const QUERY: &str = "/services/data/v62.0/query";
/// Calls that change contacts.
const WRITES: [(&str, &str, &str); 3] = [
    (
        "hubspot",
        "POST",
        "/crm/objects/2026-03/contacts/batch/update",
    ),
    (
        "hubspot",
        "POST",
        "/crm/objects/2026-03/contacts/batch/upsert",
    ),
    ("salesforce", "PATCH", "/services/data/"),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_passing_fault_of_a_write_ends_with_each_change_there_once() {
    let (pair, people) = pair(40).await;
    let before = (
        pair.live("hubspot", "contacts"),
        pair.live("salesforce", "Contact"),
    );
    let faults = passing();
    for (n, action) in faults.iter().enumerate() {
        eprintln!("fault: {action}");
        for (crm, method, path) in WRITES {
            let rule = json!({"crm": crm, "method": method, "path_prefix": path, "action": action});
            pair.emulator.fault(rule);
        }
        let value = format!("Fault {n}");
        let (a, b, c) = (&people[n % 8], &people[8 + n % 8], &people[16 + n % 8]);
        pair.edit("hubspot", a, "jobtitle", &value);
        pair.edit("salesforce", b, "jobtitle", &value);
        pair.sql(c, "jobtitle", &value).await;
        let insert = format!(
            "INSERT INTO hubspot.contacts (email, firstname, lastname) VALUES ('fault.{n}@example.net', 'Fault', 'No {n}')"
        );
        pair.db.exec(&insert).await;
        for who in [a, b, c] {
            pair.reaches_both(who, "jobtitle", &value).await;
        }
    }
    let made = format!(
        "SELECT count(*) = {} FROM hubspot.contacts h JOIN salesforce.contact s USING (email)
         WHERE h.email LIKE 'fault.%' AND h.id IS NOT NULL AND s.id IS NOT NULL",
        faults.len()
    );
    pair.db
        .wait_true("all new people exist on both sides", PATIENCE, &made)
        .await;
    assert_eq!(pair.faults_left(), 0, "some faults never hit");
    pair.emulator.clear_faults();
    pair.agree().await;
    let new = faults.len() as u64;
    assert_eq!(pair.live("hubspot", "contacts"), before.0 + new, "doubled?");
    assert_eq!(
        pair.live("salesforce", "Contact"),
        before.1 + new,
        "doubled?"
    );
    let dead: i64 = pair.db.one("SELECT count(*) FROM crm.dead_letter").await;
    assert_eq!(dead, 0, "a fault that passes parks nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_a_read_is_survived_by_the_first_copy() {
    let mut options = options();
    options.emulator = options.emulator.contacts(2200);
    let pair = Pair::start(options).await;
    pair.import("hubspot", &["companies"]).await;
    pair.import("salesforce", &["Account"]).await;
    // Every second page of HubSpot fails; Salesforce has two pages in all, and fails in a row.
    let faults = [
        reject(401, &Value::Null),
        reject(429, &Value::Null),
        reject(503, &Value::Null),
        json!("close"),
        json!({"garbage": "html"}),
        json!({"garbage": "truncated"}),
        json!({"garbage": "endless"}),
        json!({"hold": {"ms": 4000}}),
    ];
    for action in &faults {
        let rule = json!({"crm": "hubspot", "method": "GET", "path_prefix": HUBSPOT, "skip": 1, "action": action});
        pair.emulator.fault(rule);
    }
    for action in [
        reject(503, &Value::Null),
        json!("close"),
        json!({"garbage": "truncated"}),
        json!({"garbage": "html"}),
    ] {
        let rule =
            json!({"crm": "salesforce", "method": "GET", "path_prefix": QUERY, "action": action});
        pair.emulator.fault(rule);
    }
    pair.import("hubspot", &["contacts"]).await;
    pair.import("salesforce", &["Contact"]).await;
    pair.backfilled().await;
    assert_eq!(pair.faults_left(), 0, "some faults never hit");
    let rows =
        "SELECT (SELECT count(*) FROM hubspot.contacts), (SELECT count(*) FROM salesforce.contact)";
    let rows = pair.db.table(rows).await.remove(0);
    let truth = [
        pair.live("hubspot", "contacts").to_string(),
        pair.live("salesforce", "Contact").to_string(),
    ];
    assert_eq!(rows, truth);
    pair.emulator.clear_faults();
}

#[tokio::test(flavor = "multi_thread")]
async fn permanent_refusals_are_parked_in_the_crms_words_and_hold_up_nobody_else() {
    let (pair, people) = pair(30).await;
    let words = "no such luck today";
    for (n, status) in [400, 403, 409].into_iter().enumerate() {
        let bodies = [
            (
                "hubspot",
                WRITES[0].1,
                WRITES[0].2,
                json!({"status": "error", "message": words, "category": "VALIDATION_ERROR"}),
            ),
            (
                "salesforce",
                WRITES[2].1,
                WRITES[2].2,
                json!([{"errorCode": "FIELD_CUSTOM_VALIDATION_EXCEPTION", "message": words}]),
            ),
        ];
        for (crm, method, path, body) in bodies {
            eprintln!("{crm} refuses with {status}");
            let (bad, good) = (&people[2 * n], &people[2 * n + 1]);
            let rule = json!({"crm": crm, "method": method, "path_prefix": path, "action": reject(status, &body)});
            pair.emulator.fault(rule);
            let value = format!("{crm} {status}");
            let from = if crm == "hubspot" {
                "salesforce"
            } else {
                "hubspot"
            };
            pair.edit(from, bad, "jobtitle", &value);
            let parked = "SELECT count(*) = 1 FROM crm.dead_letter WHERE direction = 'out'";
            pair.db
                .wait_true("the write is parked", PATIENCE, parked)
                .await;
            let row = pair
                .db
                .table("SELECT status, error, advice <> '', record_id FROM crm.dead_letter")
                .await
                .remove(0);
            assert_eq!(row[0], status.to_string(), "{row:?}");
            assert!(row[1].contains(words), "the CRM's words: {row:?}");
            assert_eq!(row[2], "t", "advice: {row:?}");
            let id = if crm == "hubspot" {
                &bad.hubspot
            } else {
                &bad.salesforce
            };
            assert_eq!(&row[3], id);
            pair.edit(from, good, "jobtitle", &value);
            pair.reaches_both(good, "jobtitle", &value).await;
            pair.db.exec("SELECT crm.dead_letter_retry()").await;
            pair.reaches_both(bad, "jobtitle", &value).await;
            pair.agree().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_record_in_a_batch_does_not_hold_up_the_good_ones() {
    let (pair, people) = pair(60).await;
    pair.db
        .exec("SELECT crm.pause('server', 'hubspot'); SELECT crm.pause('server', 'salesforce')")
        .await;
    for who in &people[..30] {
        pair.sql(who, "city", "Batchford").await;
    }
    // Neither CRM takes an address like this.
    pair.sql(&people[30], "email", "not an address").await;
    pair.db
        .exec("SELECT crm.resume('server', 'hubspot'); SELECT crm.resume('server', 'salesforce')")
        .await;
    for who in &people[..30] {
        pair.reaches_both(who, "city", "Batchford").await;
    }
    let parked = "SELECT count(*) = 2 FROM crm.dead_letter WHERE direction = 'out' AND change::text LIKE '%not an address%'";
    pair.db
        .wait_true("both CRMs' refusals are parked", PATIENCE, parked)
        .await;
    let state = format!(
        "SELECT _sync_state || ': ' || _sync_error FROM hubspot.contacts WHERE id = '{}'",
        people[30].hubspot
    );
    let state: Option<String> = pair.db.one(&state).await;
    let state = state.expect("the row says so itself");
    assert!(state.starts_with("error: "), "{state}");
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_tokens_are_renewed_without_losing_or_parking_anything() {
    let (pair, people) = pair(30).await;
    for n in 0..4 {
        for crm in ["hubspot", "salesforce"] {
            let path = format!("/_admin/{crm}/expire-tokens");
            pair.emulator.admin("POST", &path, Some(&json!({})));
        }
        let value = format!("Token {n}");
        pair.edit("hubspot", &people[0], "jobtitle", &value);
        pair.edit("salesforce", &people[1], "jobtitle", &value);
        pair.sql(&people[2], "jobtitle", &value).await;
        for who in &people[..3] {
            pair.reaches_both(who, "jobtitle", &value).await;
        }
    }
    pair.agree().await;
    let dead: i64 = pair.db.one("SELECT count(*) FROM crm.dead_letter").await;
    assert_eq!(dead, 0);
}
