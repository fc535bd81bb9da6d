//! HubSpot's call limits, tokens, faults and the request log.

mod common;

use common::Emulator;
use serde_json::{Value, json};

const CONTACTS: &str = "/crm/v3/objects/contacts";

#[tokio::test]
async fn the_window_of_ten_seconds_refuses_what_is_too_much() {
    let emulator = Emulator::start(&["--hubspot-burst", "5"]);
    for left in (0..5).rev() {
        let answer = emulator.get(CONTACTS).await;
        assert_eq!(
            answer.headers["x-hubspot-ratelimit-remaining"],
            left.to_string()
        );
        assert_eq!(answer.headers["x-hubspot-ratelimit-max"], "5");
        assert_eq!(
            answer.headers["x-hubspot-ratelimit-interval-milliseconds"],
            "10000"
        );
        assert_eq!(answer.headers["x-hubspot-ratelimit-daily"], "625000");
    }
    let refused = emulator.get(CONTACTS).await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.body["policyName"], "TEN_SECONDLY_ROLLING");
    assert_eq!(refused.body["errorType"], "RATE_LIMIT");
    assert!(refused.body.get("category").is_none());
    assert!(refused.headers.contains_key("x-hubspot-correlation-id"));
}

#[tokio::test]
async fn searches_have_a_limit_of_their_own_and_no_headers() {
    let emulator = Emulator::start(&["--hubspot-search-rate", "2"]);
    let search = async || {
        emulator
            .post(&format!("{CONTACTS}/search"), json!({}))
            .await
    };
    let first = search().await;
    assert!(!first.headers.contains_key("x-hubspot-ratelimit-max"));
    let mut statuses = Vec::new();
    for _ in 0..4 {
        let answer = search().await;
        if answer.status == 429 {
            assert_eq!(answer.body["policyName"], "SECONDLY");
            assert_eq!(
                answer.body["message"],
                "You have reached your secondly limit."
            );
        }
        statuses.push(answer.status);
    }
    assert!(statuses.contains(&429), "{statuses:?}");
    assert_eq!(
        emulator.get(CONTACTS).await.status,
        200,
        "other calls go on"
    );
}

#[tokio::test]
async fn the_day_ends_for_the_service_key_only() {
    let emulator = Emulator::start(&["--hubspot-daily", "2"]);
    for expected in [200, 200, 429] {
        assert_eq!(emulator.get(CONTACTS).await.status, expected);
    }
    assert_eq!(emulator.get(CONTACTS).await.body["policyName"], "DAILY");
    let form = "grant_type=refresh_token&client_id=emulator-app&client_secret=emulator-secret&refresh_token=emulator-refresh";
    let response = reqwest::Client::new()
        .post(format!("{}/oauth/v3/token", emulator.http))
        .body(form)
        .send()
        .await
        .unwrap();
    let grant: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
    assert_eq!(
        (&grant["expires_in"], &grant["hub_id"]),
        (&json!(1_800), &json!(62_515))
    );
    let token = grant["access_token"].as_str().unwrap();
    let answer = emulator.call_as(token, "GET", CONTACTS, Value::Null).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["x-hubspot-ratelimit-max"], "110");
    assert!(!answer.headers.contains_key("x-hubspot-ratelimit-daily"));
}

#[tokio::test]
async fn wrong_tokens_and_grants_are_refused_in_hubspots_words() {
    let emulator = Emulator::start(&["--hubspot-token-life-s", "0"]);
    let nobody = emulator
        .call_as("pat-na1-wrong", "GET", CONTACTS, Value::Null)
        .await;
    assert_eq!(
        (nobody.status, &nobody.body["category"]),
        (401, &json!("INVALID_AUTHENTICATION"))
    );
    let token = async |version: &str, refresh: &str| {
        let form = format!(
            "grant_type=refresh_token&client_id=emulator-app&client_secret=emulator-secret&refresh_token={refresh}"
        );
        let url = format!("{}/oauth/{version}/token", emulator.http);
        let response = reqwest::Client::new()
            .post(url)
            .body(form)
            .send()
            .await
            .unwrap();
        let status = response.status().as_u16();
        (
            status,
            serde_json::from_str::<Value>(&response.text().await.unwrap()).unwrap(),
        )
    };
    let (status, body) = token("v1", "wrong").await;
    assert_eq!(
        (status, &body["status"]),
        (400, &json!("BAD_REFRESH_TOKEN"))
    );
    assert!(body.get("error").is_none());
    assert_eq!(token("2026-03", "wrong").await.1["error"], "invalid_grant");
    let (_, body) = token("v1", "emulator-refresh").await;
    assert!(body.get("hub_id").is_none());
    let late = emulator
        .call_as(
            body["access_token"].as_str().unwrap(),
            "GET",
            CONTACTS,
            Value::Null,
        )
        .await;
    assert_eq!(
        (late.status, &late.body["category"]),
        (401, &json!("EXPIRED_AUTHENTICATION"))
    );
}

#[tokio::test]
async fn a_write_can_happen_although_its_answer_is_lost() {
    let emulator = Emulator::start(&[]);
    let fault = |action: Value| json!({"crm": "hubspot", "method": "PATCH", "action": action});
    let patch = |city: &str| json!({"properties": {"city": city}});
    let city = async || {
        emulator
            .get(&format!("{CONTACTS}/4?properties=city"))
            .await
            .body["properties"]["city"]
            .clone()
    };
    emulator
        .admin(
            "faults",
            fault(json!({"fail_after_write": {"status": 502, "body": "bad gateway"}})),
        )
        .await;
    assert_eq!(
        emulator
            .call("PATCH", &format!("{CONTACTS}/4"), patch("Kept"))
            .await
            .status,
        502
    );
    assert_eq!(city().await, "Kept");
    emulator
        .admin("faults", fault(json!({"fail_after_write": {}})))
        .await;
    let cut = emulator.try_call("PATCH", &format!("{CONTACTS}/4")).await;
    assert!(cut.is_err(), "{cut:?}");
    emulator
        .admin(
            "faults",
            fault(json!({"reject": {"status": 503, "headers": {"retry-after": "7"}}})),
        )
        .await;
    let refused = emulator
        .call("PATCH", &format!("{CONTACTS}/4"), patch("Lost"))
        .await;
    assert_eq!(
        (refused.status, &refused.headers["retry-after"]),
        (503, &"7".parse().unwrap())
    );
    emulator.admin("faults", fault(json!("close"))).await;
    assert!(
        emulator
            .try_call("PATCH", &format!("{CONTACTS}/4"))
            .await
            .is_err()
    );
    assert_eq!(city().await, "Kept", "what was rejected did not happen");
}

#[tokio::test]
async fn senseless_bodies_come_as_ordered() {
    let emulator = Emulator::start(&[]);
    for (kind, expected) in [
        ("html", "<!doctype html>"),
        ("truncated", "{\"results\":"),
        ("empty", ""),
    ] {
        emulator
            .admin(
                "faults",
                json!({"crm": "hubspot", "action": {"garbage": kind}}),
            )
            .await;
        let body = emulator.try_call("GET", CONTACTS).await.unwrap();
        assert!(body.starts_with(expected), "{kind}: {body}");
        assert!(serde_json::from_str::<Value>(&body).is_err(), "{kind}");
    }
    emulator
        .admin(
            "faults",
            json!({"crm": "hubspot", "action": {"garbage": "endless"}}),
        )
        .await;
    let mut endless = reqwest::get(format!("{}{CONTACTS}", emulator.http))
        .await
        .unwrap();
    let mut bytes = 0;
    while bytes < 10_000_000 {
        bytes += endless
            .chunk()
            .await
            .unwrap()
            .expect("it does not end")
            .len();
    }
    drop(endless);
    emulator
        .admin(
            "faults",
            json!({"crm": "hubspot", "action": {"slow_body": {"bytes_per_s": 2_000}}}),
        )
        .await;
    let start = std::time::Instant::now();
    let body = emulator
        .try_call("GET", &format!("{CONTACTS}?limit=1"))
        .await
        .unwrap();
    assert!(serde_json::from_str::<Value>(&body).is_ok());
    assert!(
        start.elapsed().as_millis() >= body.len() as u128 / 4,
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn every_request_is_counted_by_route_and_admin_calls_are_not() {
    let emulator = Emulator::start(&[]);
    emulator.get(&format!("{CONTACTS}/1")).await;
    emulator.get(&format!("{CONTACTS}/2")).await;
    emulator.get(&format!("{CONTACTS}/424242")).await;
    emulator.get("/crm/v3/nothing").await;
    let counts = emulator.get("/_admin/counts").await.body;
    let rows = counts["counts"].as_array().unwrap();
    let count = |status: u64| {
        rows.iter()
            .filter(|r| r["route"] == "/crm/v3/objects/{type}/{id}" && r["status"] == status)
            .map(|r| r["count"].as_u64().unwrap())
            .sum::<u64>()
    };
    assert_eq!((count(200), count(404)), (2, 1), "{counts}");
    assert!(
        rows.iter()
            .any(|r| r["route"] == "(unknown)" && r["status"] == 404),
        "{counts}"
    );
    let log = emulator.get("/_admin/requests?since=1").await.body;
    let paths: Vec<&str> = log["requests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["path"].as_str().unwrap())
        .collect();
    assert_eq!(
        paths[..2],
        [
            "/crm/v3/objects/contacts/2",
            "/crm/v3/objects/contacts/424242"
        ]
    );
    emulator.admin("counts/reset", json!({})).await;
    assert_eq!(emulator.get("/_admin/counts").await.body["hubspot"], 0);
}

#[tokio::test]
async fn an_admin_token_closes_the_admin_routes() {
    let emulator = Emulator::start(&["--admin-token", "letmein"]);
    assert_eq!(emulator.get("/_admin/counts").await.status, 401);
    let open = emulator
        .call_as("letmein", "GET", "/_admin/counts", Value::Null)
        .await;
    assert_eq!(open.status, 200);
    assert_eq!(emulator.get(CONTACTS).await.status, 200);
}

#[tokio::test]
async fn bad_admin_calls_say_what_is_wrong_and_change_nothing() {
    let emulator = Emulator::start(&[]);
    for (path, body, words) in [
        (
            "hubspot/edit",
            json!({"object": "contacts", "id": "1", "fields": {"nosuch": 1}}),
            "nosuch",
        ),
        (
            "hubspot/edit",
            json!({"object": "contacts", "id": "x"}),
            "expected a number",
        ),
        (
            "hubspot/edit",
            json!({"object": "contacts", "id": "99999"}),
            "no contact 99999",
        ),
        ("hubspot/fly", json!({}), "no action `fly`"),
        ("zoho/edit", json!({}), "expected hubspot or salesforce"),
        (
            "faults",
            json!({"crm": "hubspot", "action": "explode"}),
            "explode",
        ),
        ("faults", json!({"stream": "fax"}), "webhook or cdc"),
        (
            "webhooks",
            json!({"shape": "round"}),
            "legacy, generic or both",
        ),
        ("rate-limits", json!({"burst": "lots"}), "whole number"),
        (
            "edit-many",
            json!({"crm": "hubspot", "object": "contacts", "from": 51, "count": 1, "field": "city"}),
            "50 base records",
        ),
    ] {
        let answer = emulator
            .post(&format!("/_admin/{path}"), body.clone())
            .await;
        assert!((400..=404).contains(&answer.status), "{path} {body}");
        let error = answer.body["error"].as_str().unwrap();
        assert!(error.contains(words), "{path}: {error}");
    }
    let overlay = emulator.get("/_admin/hubspot/objects/contacts").await.body;
    assert_eq!(overlay["records"], json!([]));
}
