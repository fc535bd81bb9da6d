//! Webhooks from strangers, broken proxies and clocks: refused with 4xx, counted once, and never a flood.

use std::time::{Duration, SystemTime};

use crm_tests::{PATIENCE, Pair, PairOptions, Person, post, send_raw};
use serde_json::json;

/// More than any of these answers needs.
const SOON: Duration = Duration::from_secs(20);
/// Where HubSpot's events go.
const HOOK: &str = "/webhook/hubspot";

async fn pair() -> (Pair, Vec<Person>, String) {
    let (pair, people) = Pair::linked(20, PairOptions::default()).await;
    let address: String = pair.db.one("SHOW pg_crm_sync.listen").await;
    pair.quiet().await;
    (pair, people, address)
}

fn now_ms() -> u128 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("a clock after 1970")
        .as_millis()
}

async fn rejected(pair: &Pair) -> i64 {
    let sql = "SELECT coalesce(sum(rejected), 0)::bigint FROM crm.stream WHERE kind = 'webhook'";
    pair.db.one(sql).await
}

/// The listener refuses it with one of the statuses.
fn refused(address: &str, what: &str, request: &[u8], statuses: &[u16]) {
    let status = send_raw(address, request, SOON);
    assert!(
        status.is_some_and(|s| statuses.contains(&s)),
        "{what}: expected {statuses:?}, got {status:?}"
    );
}

/// What it is, the request, the statuses it may get.
type Case = (&'static str, Vec<u8>, &'static [u16]);

/// A forged event with this timestamp.
fn signed(at: &str) -> Vec<u8> {
    let event = json!([{"eventId": 1, "subscriptionId": 1, "portalId": 62515, "appId": 54321, "occurredAt": 1, "attemptNumber": 0,
        "subscriptionType": "object.propertyChange", "objectTypeId": "0-1", "objectId": 1, "propertyName": "jobtitle",
        "propertyValue": "Forged", "changeSource": "CRM_UI"}]);
    let signature = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let headers = [
        ("X-HubSpot-Signature-v3", signature),
        ("X-HubSpot-Request-Timestamp", at),
    ];
    post(HOOK, &headers, event.to_string().as_bytes())
}

fn strangers() -> Vec<Case> {
    let (old, late) = (now_ms() - 3_600_000, now_ms() + 3_600_000);
    let now = now_ms().to_string();
    let odd = [
        ("X-HubSpot-Signature-v3", "%%%"),
        ("X-HubSpot-Request-Timestamp", now.as_str()),
    ];
    vec![
        ("unsigned", post(HOOK, &[], b"[]"), &[400, 401]),
        ("wrongly signed", signed(&now), &[401]),
        ("stale", signed(&old.to_string()), &[401]),
        ("from the future", signed(&late.to_string()), &[401]),
        ("no time", signed("yesterday"), &[400, 401]),
        ("no base64", post(HOOK, &odd, b"[]"), &[400, 401]),
        ("an empty body", post(HOOK, &[], b""), &[400, 401]),
        ("no JSON", post(HOOK, &[], b"\xff\xfe<html>"), &[400, 401]),
        ("oversized", post(HOOK, &[], &vec![b'x'; 3 << 20]), &[413]),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_webhooks_are_answered_4xx_and_counted_once_each() {
    let (pair, people, address) = pair().await;
    let cases = strangers();
    let before = rejected(&pair).await;
    let noted = pair.cluster.log().lines().count();
    for (what, request, statuses) in &cases {
        refused(&address, what, request, statuses);
    }
    let all = before + cases.len() as i64;
    let counted = format!(
        "SELECT coalesce(sum(rejected), 0) >= {all} FROM crm.stream WHERE kind = 'webhook'"
    );
    pair.db
        .wait_true("each is counted", PATIENCE, &counted)
        .await;
    assert_eq!(rejected(&pair).await, all, "counted once each");
    for n in 0..200 {
        refused(&address, &format!("flood {n}"), &signed("1"), &[401, 503]);
    }
    let lines = pair.cluster.log().lines().count() - noted;
    assert!(
        lines < 10,
        "{lines} log lines for refused webhooks:\n{}",
        pair.cluster.log_tail(20)
    );
    assert_ne!(
        pair.shows("salesforce", &people[0], "jobtitle").as_deref(),
        Some("Forged")
    );
    // And it still works.
    pair.edit("hubspot", &people[0], "jobtitle", "Genuine");
    pair.reaches_both(&people[0], "jobtitle", "Genuine").await;
    pair.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_paths_methods_and_protocols_are_turned_away_and_the_listener_lives() {
    let (pair, people, address) = pair().await;
    let request = |line: &str| {
        format!("{line} HTTP/1.1\r\nHost: hook\r\nConnection: close\r\n\r\n").into_bytes()
    };
    let cases: Vec<(&str, Vec<u8>, &[u16])> = vec![
        (
            "an unknown server",
            post("/webhook/nobody", &[], b"[]"),
            &[404],
        ),
        ("no server", post("/webhook/", &[], b"[]"), &[404]),
        ("another path", post("/admin", &[], b"[]"), &[404]),
        (
            "a path upwards",
            post("/webhook/../../etc/passwd", &[], b"[]"),
            &[404],
        ),
        ("a GET", request("GET /webhook/hubspot"), &[405]),
        ("a DELETE", request("DELETE /webhook/hubspot"), &[405]),
        (
            "no HTTP",
            b"\x16\x03\x01\x02\x00 hello\r\n\r\n".to_vec(),
            &[400],
        ),
        (
            "endless headers",
            [
                &b"POST /webhook/hubspot HTTP/1.1\r\nX: "[..],
                &vec![b'a'; 1 << 20],
            ]
            .concat(),
            &[400, 431],
        ),
        (
            "a length that lies",
            b"POST /webhook/hubspot HTTP/1.1\r\nHost: h\r\nContent-Length: 500\r\n\r\nshort"
                .to_vec(),
            &[400, 408],
        ),
        (
            "a length beyond reason",
            b"POST /webhook/hubspot HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999\r\n\r\n"
                .to_vec(),
            &[413],
        ),
    ];
    std::thread::scope(|scope| {
        for (what, request, statuses) in &cases {
            scope.spawn(|| refused(&address, what, request, statuses));
        }
    });
    let worker = pair.cluster.session_worker(&pair.db).await;
    pair.edit("hubspot", &people[0], "jobtitle", "Genuine");
    pair.reaches_both(&people[0], "jobtitle", "Genuine").await;
    assert_eq!(
        pair.cluster.session_worker(&pair.db).await,
        worker,
        "the worker never restarted"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_with_a_stale_clock_are_refused_and_polling_makes_up_for_them() {
    let (pair, people, _) = pair().await;
    pair.db
        .exec("UPDATE crm.mirror SET poll_interval = '1 second' WHERE server = 'hubspot'")
        .await;
    let before = rejected(&pair).await;
    for skew in [-3_600_000, 3_600_000] {
        let clock = json!({"crm": "hubspot", "skew_ms": skew});
        pair.emulator.admin("POST", "/_admin/clock", Some(&clock));
        let value = format!("Skewed {skew}");
        pair.edit("hubspot", &people[0], "jobtitle", &value);
        let counted =
            format!("SELECT sum(rejected) > {before} FROM crm.stream WHERE kind = 'webhook'");
        pair.db.wait_true("it is refused", PATIENCE, &counted).await;
    }
    let clock = json!({"crm": "hubspot", "skew_ms": 0});
    pair.emulator.admin("POST", "/_admin/clock", Some(&clock));
    pair.reaches(
        "salesforce",
        "Contact",
        &people[0].salesforce,
        "Title",
        "Skewed 3600000",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn crm_webhook_is_bounded_and_takes_what_the_listener_would() {
    let (pair, _, _) = pair().await;
    let call = |server: &str, method: &str, headers: &str, body: &str| {
        format!("SELECT crm.webhook('{server}', '{method}', 'http://hook/x', '{headers}', {body})")
    };
    for (sql, code) in [
        (call("nobody", "POST", "{}", "'[]'::text"), "PT404"),
        (call("hubspot", "post it", "{}", "'[]'::text"), "PT400"),
        (call("hubspot", "POST", "[]", "'[]'::text"), "PT400"),
        (
            call("hubspot", "POST", "{}", "repeat('x', 1048577)"),
            "PT413",
        ),
    ] {
        let error = pair.db.error(&sql).await;
        assert_eq!(error.code().code(), code, "{sql}");
        assert!(error.hint().is_some(), "no hint: {sql}");
    }
    let before = rejected(&pair).await;
    let status: i32 = pair
        .db
        .one(&call("hubspot", "POST", "{}", "'[]'::text"))
        .await;
    assert_eq!(status, 202);
    let counted = format!(
        "SELECT sum(rejected) = {} FROM crm.stream WHERE kind = 'webhook'",
        before + 1
    );
    pair.db
        .wait_true("the worker refuses it: it is unsigned", PATIENCE, &counted)
        .await;

    // Nobody takes them out: the queue fills up to its bound and no further.
    let worker = pair.cluster.session_worker(&pair.db).await;
    pair.cluster.signal(worker, "STOP");
    let fill = "SELECT count(crm.webhook('hubspot', 'POST', '/x', '{}', '[]'::text)) FROM generate_series(1, 20000)";
    let error = pair.db.error(fill).await;
    assert_eq!(error.code().code(), "PT429", "{error:?}");
    pair.cluster.signal(worker, "CONT");
}
