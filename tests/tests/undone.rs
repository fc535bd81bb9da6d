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

/// One write of contacts to HubSpot is lost on its way, and the reads that would tell take so long that somebody can
/// change the record before. No webhook tells of that.
fn a_write_gets_lost(pair: &Pair) {
    pair.emulator.fault(json!({"rules": [
        {"crm": "hubspot", "method": "POST", "path_prefix": "/crm/objects/2026-03/contacts/batch/update", "action": "close"},
        {"crm": "hubspot", "method": "POST", "path_prefix": "/crm/objects/2026-03/contacts/batch/read", "action": {"hold": {"ms": 5_000}}},
    ]}));
    pair.emulator
        .fault(json!({"stream": "webhook", "lose": 1_000}));
}

async fn is_in_doubt(pair: &Pair) {
    let unknown = "SELECT count(*) > 0 FROM crm.write WHERE state = 'unknown'";
    pair.db
        .wait_true("nobody knows about the write", PATIENCE, unknown)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_in_doubt_does_not_go_over_what_a_person_wrote_since() {
    let (pair, people) = linked(10).await;
    let who = &people[0];
    // A page does not say when a field changed: a clear rule decides.
    pair.db
        .exec("INSERT INTO crm.conflict_policy (link, field, strategy, winner) VALUES ('contacts', 'jobtitle', 'priority', 'hubspot,salesforce,local')")
        .await;
    pair.worker_has_read().await;
    a_write_gets_lost(&pair);
    pair.edit("salesforce", who, "jobtitle", "Lost");
    is_in_doubt(&pair).await;
    pair.edit("hubspot", who, "jobtitle", "Newer");
    pair.reaches_both(who, "jobtitle", "Newer").await;
    pair.agree().await;
    let shown = "SELECT count(*) FROM crm.event WHERE 'jobtitle' = ANY (fields) AND source = 'result' AND 'Lost' = ANY (new_values)";
    let landed: i64 = pair.db.one(shown).await;
    assert_eq!(landed, 0, "what was lost was never sent again");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_in_doubt_that_is_not_there_is_sent_again_and_its_transaction_waits_for_that() {
    let (pair, people) = linked(10).await;
    let who = &people[0];
    a_write_gets_lost(&pair);
    pair.sql(who, "jobtitle", "Sent twice").await;
    let said: String = pair.db.one("SELECT crm.wait_synced()").await;
    assert!(said.starts_with("confirmed"), "{said}");
    let there = pair.shows("hubspot", who, "jobtitle");
    assert_eq!(there.as_deref(), Some("Sent twice"));
    pair.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_addition_in_doubt_does_not_go_over_what_a_person_added_since() {
    let (pair, people) = linked(10).await;
    let who = &people[0];
    pair.db
        .exec("INSERT INTO crm.conflict_policy (link, field, strategy) VALUES ('contacts', 'address', 'append')")
        .await;
    pair.worker_has_read().await;
    pair.sql(who, "address", "note").await;
    pair.reaches_both(who, "address", "note").await;
    pair.quiet().await;
    a_write_gets_lost(&pair);
    pair.edit("salesforce", who, "address", "note\nforce");
    is_in_doubt(&pair).await;
    pair.edit("hubspot", who, "address", "note\nhub");
    // Whether it was made on top of ours nobody can tell.
    let asked = "SELECT count(*) = 1 FROM crm.review WHERE field = 'address' AND candidates::text LIKE '%hub%' AND candidates::text LIKE '%force%'";
    pair.db
        .wait_true("a person is asked", PATIENCE, asked)
        .await;
    pair.quiet().await;
    assert_eq!(
        pair.shows("hubspot", who, "address").as_deref(),
        Some("note\nhub")
    );
    let answer = "SELECT crm.review_resolve(id, value => E'note\nforce\nhub') FROM crm.review";
    pair.db.exec(&answer.replace('\n', "\\n")).await;
    pair.reaches_both(who, "address", "note\nforce\nhub").await;
    pair.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_event_never_comes_is_confirmed_by_the_next_page() {
    let (pair, people) = linked(10).await;
    let who = &people[0];
    pair.db
        .exec("UPDATE crm.mirror SET poll_interval = '1s' WHERE server = 'salesforce'")
        .await;
    pair.worker_has_read().await;
    // Its answers do not show what it holds, and no event tells.
    pair.emulator.fault(json!({"stream": "cdc", "lose": 1_000}));
    pair.edit("hubspot", who, "jobtitle", "Unheard");
    pair.reaches_both(who, "jobtitle", "Unheard").await;
    let confirmed = "SELECT NOT EXISTS (SELECT FROM crm.field_state s, jsonb_array_elements(s.state::jsonb -> 'sides') side,
                         jsonb_array_elements(side -> 'sent') w WHERE s.field = 'jobtitle' AND NOT coalesce((w ->> 'confirmed')::boolean, false))";
    pair.db
        .wait_true("the write is confirmed", PATIENCE * 2, confirmed)
        .await;
    pair.agree().await;
}
