//! Writes that come back undone, or of which nobody knows: what is tried again, and what somebody did meanwhile.

use crm_tests::{PATIENCE, Pair, PairOptions, Person};
use serde_json::{Value, json};

async fn linked(n: u64) -> (Pair, Vec<Person>) {
    Pair::linked(n, PairOptions::default()).await
}

/// HubSpot refuses every update of contacts, and takes its time to say so.
fn hubspot_refuses_slowly(pair: &Pair, ms: u64) {
    pair.emulator.fault(json!({
        "crm": "hubspot", "method": "POST", "path_prefix": "/crm/objects/2026-03/contacts/batch/update",
        "remaining": 100_000, "action": {"reject": {"status": 503, "after_ms": ms}},
    }));
}

/// Waits until a write of `value` to HubSpot is in this state.
async fn is_in_state(pair: &Pair, who: &Person, value: &str, state: &str) {
    let sql = format!(
        "SELECT count(*) > 0 FROM crm.write w JOIN hubspot.contacts h ON h._id = w.row_id
         WHERE h.id = '{}' AND w.vals::text LIKE '%\"{value}\"%' AND w.state = '{state}'",
        who.hubspot
    );
    let what = format!("the write of {value} is {state}");
    pair.db.wait_true(&what, PATIENCE, &sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_while_a_person_is_asked_does_not_go_over_what_the_question_is_about() {
    let (pair, people) = linked(10).await;
    pair.review_cities().await;
    let who = &people[0];
    hubspot_refuses_slowly(&pair, 3_000);
    pair.edit("salesforce", who, "city", "Forcebury");
    is_in_state(&pair, who, "Forcebury", "in_flight").await;
    pair.edit("hubspot", who, "city", "Hubville");
    let asked = "SELECT count(*) = 1 FROM crm.review WHERE field = 'city'";
    pair.db
        .wait_true("a person is asked", PATIENCE, asked)
        .await;
    let gone = "SELECT NOT EXISTS (SELECT FROM crm.write WHERE vals ? 'city')";
    pair.db
        .wait_true("nothing waits for HubSpot", PATIENCE, gone)
        .await;
    pair.emulator.clear_faults();
    pair.edit("salesforce", who, "phone", "+44 1");
    pair.reaches_both(who, "phone", "+44 1").await;
    assert_eq!(
        pair.shows("hubspot", who, "city").as_deref(),
        Some("Hubville")
    );
    assert_eq!(
        pair.shows("salesforce", who, "city").as_deref(),
        Some("Forcebury")
    );
    pair.db
        .exec("SELECT crm.review_resolve(id, 'salesforce') FROM crm.review")
        .await;
    pair.reaches_both(who, "city", "Forcebury").await;
    pair.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn creates_that_a_spent_limit_refuses_wait_in_the_outbox() {
    for (status, words) in [
        (503, "TotalRequests Limit exceeded."),
        (403, "TotalRequests Limit exceeded."),
    ] {
        let (pair, _people) = linked(10).await;
        pair.emulator.fault(json!({
            "crm": "salesforce", "path_prefix": "/services/data/v62.0/composite", "remaining": 100_000,
            "action": {"reject": {"status": status, "body": [{"errorCode": "REQUEST_LIMIT_EXCEEDED", "message": words}]}},
        }));
        pair.emulator.create(
            "hubspot",
            "contacts",
            json!({"email": "limit@example.com", "firstname": "Ada", "lastname": "King"}),
        );
        let waits = "SELECT count(*) > 0 FROM crm.write WHERE kind = 'create' AND state = 'queued' AND error_class = 'wait'";
        pair.db.wait_true("the create waits", PATIENCE, waits).await;
        let told: Value = serde_json::from_str(
            &pair
                .db
                .one::<String>("SELECT jsonb_agg(w)::text FROM crm.outbox w")
                .await,
        )
        .expect("rows of the outbox");
        assert!(told.to_string().contains("Limit exceeded"), "{told}");
    }
}
