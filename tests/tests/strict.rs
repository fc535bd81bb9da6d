//! Strict policies: what a person wrote in Salesforce and nobody has told us yet
//! is not overwritten.

use crm_tests::{PATIENCE, Pair, PairOptions, Person};
use serde_json::json;

/// Linked, with cities under a strict row; Salesforce tells of changes by its
/// stream only.
async fn strict(strategy: &str) -> (Pair, Vec<Person>) {
    let (pair, people) = Pair::linked(12, PairOptions::default()).await;
    pair.agree().await;
    pair.db
        .exec(&format!(
            "INSERT INTO crm.conflict_policy (link, field, strategy, strict) VALUES ('contacts', 'city', '{strategy}', true);
             UPDATE crm.mirror SET poll_interval = '1 hour'"
        ))
        .await;
    pair.worker_has_read().await;
    (pair, people)
}

/// Answers with a status so far.
fn answers(pair: &Pair, status: u64) -> u64 {
    pair.emulator.served(|c| c["status"] == status)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_that_nobody_told_us_of_is_asked_about_and_not_overwritten() {
    let (pair, people) = strict("review").await;
    let who = &people[0];
    pair.emulator.fault(json!({"stream": "cdc", "lose": 1}));
    pair.edit("salesforce", who, "city", "Unseen");
    pair.sql(who, "city", "Written").await;
    let asked = "SELECT count(*) = 1 AND bool_and(candidates::text LIKE '%Unseen%' AND candidates::text LIKE '%Written%') FROM crm.review";
    pair.db
        .wait_true("a person is asked", PATIENCE, asked)
        .await;
    assert_eq!(
        pair.shows("salesforce", who, "city").as_deref(),
        Some("Unseen"),
        "the edit was not overwritten"
    );
    assert!(answers(&pair, 412) >= 1, "the write depended on the record");
    pair.db
        .exec("UPDATE crm.review SET resolution = 'local'")
        .await;
    pair.reaches_both(who, "city", "Written").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_depends_on_its_record_is_decided_anew_when_another_field_changed() {
    let (pair, people) = strict("last_write_wins").await;
    let who = &people[0];
    pair.emulator.fault(json!({"stream": "cdc", "lose": 1}));
    pair.edit("salesforce", who, "phone", "+44 20 1234");
    pair.sql(who, "city", "Leeds").await;
    pair.reaches_both(who, "city", "Leeds").await;
    // What the lost event would have told was read on the way.
    pair.reaches_both(who, "phone", "+44 20 1234").await;
    assert!(answers(&pair, 412) >= 1);
    pair.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strict_fields_go_one_record_a_call_and_others_in_batches() {
    let (pair, people) = strict("last_write_wins").await;
    pair.emulator.reset_counts();
    let ids: Vec<String> = people.iter().map(|p| format!("'{}'", p.hubspot)).collect();
    let ids = ids.join(",");
    let update = |set: &str| format!("UPDATE hubspot.contacts SET {set} WHERE id IN ({ids})");
    pair.db.exec(&update("phone = '+44 1'")).await;
    for who in &people {
        pair.reaches_both(who, "phone", "+44 1").await;
    }
    let batched = pair.writes("salesforce");
    assert!(batched < people.len() as u64, "{batched} calls");
    pair.db.exec(&update("city = 'Ely', phone = '+44 2'")).await;
    for who in &people {
        pair.reaches_both(who, "city", "Ely").await;
        pair.reaches_both(who, "phone", "+44 2").await;
    }
    assert!(pair.writes("salesforce") - batched >= people.len() as u64);
    // One after the other: the second may leave before the first is heard of.
    pair.sql(&people[0], "city", "Bath").await;
    pair.sql(&people[0], "city", "York").await;
    pair.reaches_both(&people[0], "city", "York").await;
    // A record that we made and never saw again.
    let insert = "INSERT INTO hubspot.contacts (email, firstname, lastname) VALUES ('new@example.net', 'N', 'Ew')";
    pair.db.exec(insert).await;
    let made = "SELECT count(*) = 1 FROM salesforce.contact WHERE email = 'new@example.net' AND id IS NOT NULL";
    pair.db.wait_true("it is made", PATIENCE, made).await;
    let city = "UPDATE hubspot.contacts SET city = 'Hull' WHERE email = 'new@example.net'";
    pair.db.exec(city).await;
    let there = "SELECT count(*) = 1 FROM salesforce.contact WHERE email = 'new@example.net' AND mailingcity = 'Hull'";
    pair.db.wait_true("its row says so", PATIENCE, there).await;
    pair.agree().await;
    let dead: i64 = pair.db.one("SELECT count(*) FROM crm.dead_letter").await;
    assert_eq!(dead, 0);
}
