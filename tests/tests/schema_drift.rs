//! The CRM's administrators add, rename, retype and remove fields while both sides go on being edited.

use crm_tests::schema::{
    administer, answer, change, is_column, mirror, new_property, policy, refresh, true_soon,
};
use crm_tests::{EmulatorOptions, Options, PATIENCE, Pair, PairOptions, Person};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_new_field_is_asked_about_and_then_filled_beside_newer_values() {
    let pair = mirror(450, Options::default()).await;
    administer(&pair, "hubspot", "contacts", new_property("shoe_size"));
    assert_eq!(refresh(&pair, "hubspot").await, 1);
    assert_eq!(
        change(&pair, "added", "shoe_size").await[1..],
        ["ask", "asked"]
    );
    let told: i64 = pair
        .db
        .one("SELECT count(*) FROM crm.event WHERE kind = 'schema' AND fields = '{shoe_size}'")
        .await;
    assert_eq!(told, 1, "lines of the ledger");
    let advice: String = pair
        .db
        .one("SELECT advice FROM crm.status WHERE kind = 'mirror'")
        .await;
    assert!(advice.contains("crm.schema_change"), "{advice}");
    let none: bool = pair
        .db
        .one(&format!("SELECT NOT {}", is_column("shoe_size", "text")))
        .await;
    assert!(none, "nobody has answered yet");
    assert_eq!(refresh(&pair, "hubspot").await, 0, "told once");

    // One that a user holds while the column is copied, one that the CRM changes meanwhile, one that is emptied there.
    let ids = pair
        .db
        .table("SELECT id FROM hubspot.contacts ORDER BY _id LIMIT 3")
        .await;
    let other = pair.cluster.connect("app").await;
    pair.emulator.reset_counts();
    answer(&pair, "added", "shoe_size", "apply").await;
    true_soon(
        &pair,
        "the column is there",
        &format!("SELECT {}", is_column("shoe_size", "text")),
    )
    .await;
    other
        .exec(&format!(
            "BEGIN; SELECT FROM hubspot.contacts WHERE id = '{}' FOR UPDATE",
            ids[0][0]
        ))
        .await;
    pair.emulator.edit(
        "hubspot",
        "contacts",
        &ids[1][0],
        json!({"shoe_size": "44"}),
    );
    pair.emulator
        .edit("hubspot", "contacts", &ids[2][0], json!({"shoe_size": ""}));
    true_soon(
        &pair,
        "the copy is done",
        "SELECT bool_and(state = 'done') FROM crm.progress WHERE fields = '{shoe_size}'",
    )
    .await;
    other.exec("COMMIT").await;
    let sql = format!(
        "SELECT count(*) = 0 FROM hubspot.contacts WHERE shoe_size IS DISTINCT FROM
         CASE id WHEN '{}' THEN '44' WHEN '{}' THEN NULL ELSE id END",
        ids[1][0], ids[2][0]
    );
    true_soon(&pair, "every row has its value", &sql).await;
    assert_eq!(change(&pair, "added", "shoe_size").await[2], "applied");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_field_is_taken_over_by_itself_where_the_policy_says_so() {
    let settings = Options::default().setting("pg_crm_sync.catalog_interval", "1s");
    let pair = mirror(30, settings).await;
    policy(&pair, "hubspot.contacts", "add").await;
    let property = json!({"do": "add", "name": "motto", "label": "Motto", "type": "string", "fieldType": "text",
                          "groupName": "contactinformation", "filled": true});
    administer(&pair, "hubspot", "contacts", property);
    true_soon(
        &pair,
        "the column came",
        &format!("SELECT {}", is_column("motto", "text")),
    )
    .await;
    true_soon(
        &pair,
        "it is filled",
        "SELECT count(*) = 0 FROM hubspot.contacts WHERE motto IS DISTINCT FROM id",
    )
    .await;
    // As wide as any: numbers that become text keep their old column, under another name.
    let number = json!({"do": "add", "name": "points", "label": "Points", "type": "number", "fieldType": "number",
                        "groupName": "contactinformation", "filled": true});
    administer(&pair, "hubspot", "contacts", number);
    true_soon(
        &pair,
        "the number came",
        "SELECT count(*) = 0 FROM hubspot.contacts WHERE points IS DISTINCT FROM id::numeric",
    )
    .await;
    administer(
        &pair,
        "hubspot",
        "contacts",
        json!({"do": "retype", "name": "points", "type": "string", "fieldType": "text"}),
    );
    let both = format!(
        "SELECT {} AND {}",
        is_column("points", "text"),
        is_column("points_was_number", "numeric")
    );
    true_soon(&pair, "the text stands beside the number", &both).await;
    true_soon(
        &pair,
        "the text is filled and the numbers are kept",
        "SELECT count(*) = 0 FROM hubspot.contacts WHERE (points, points_was_number::text) IS DISTINCT FROM (id, id)",
    )
    .await;
    // Back into a number is for a person to say.
    administer(
        &pair,
        "hubspot",
        "contacts",
        json!({"do": "retype", "name": "points", "type": "number", "fieldType": "number"}),
    );
    true_soon(&pair, "it is asked about", "SELECT count(*) = 1 FROM crm.schema_change WHERE state = 'asked' AND kind = 'retyped' AND detail ->> 'fit' = 'other'").await;
    let still: bool = pair
        .db
        .one(&format!("SELECT {}", is_column("points", "text")))
        .await;
    assert!(still, "nothing happened to the column");
}

async fn linked() -> (Pair, Vec<Person>) {
    let (pair, people) = Pair::linked(12, PairOptions::default()).await;
    pair.agree().await;
    (pair, people)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_is_gone_in_hubspot_empties_nothing_and_stops_nobody() {
    let (pair, people) = linked().await;
    let held: String = pair
        .db
        .one(&format!(
            "SELECT jobtitle FROM hubspot.contacts WHERE id = '{}'",
            people[0].hubspot
        ))
        .await;
    administer(
        &pair,
        "hubspot",
        "contacts",
        json!({"do": "remove", "name": "jobtitle"}),
    );
    // A page that has no word about the field any more is what tells; nobody was asked to look.
    pair.edit("hubspot", &people[0], "city", "Leeds");
    pair.reaches_both(&people[0], "city", "Leeds").await;
    pair.sql(&people[1], "jobtitle", "Nowhere to go").await;
    pair.sql(&people[1], "city", "York").await;
    pair.reaches_both(&people[1], "city", "York").await;
    assert!(refresh(&pair, "hubspot").await <= 1);
    assert_eq!(change(&pair, "removed", "jobtitle").await[2], "applied");
    let status: String = pair
        .db
        .one("SELECT detail FROM crm.status WHERE kind = 'mirror' AND name = 'hubspot.contacts'")
        .await;
    assert!(status.contains("gone in the CRM: jobtitle"), "{status}");
    pair.edit("hubspot", &people[0], "phone", "+44 20 1");
    pair.reaches_both(&people[0], "phone", "+44 20 1").await;
    let sql = format!(
        "SELECT h.jobtitle || '/' || s.title FROM hubspot.contacts h, salesforce.contact s WHERE h.id = '{}' AND s.id = '{}'",
        people[0].hubspot, people[0].salesforce
    );
    let now: String = pair.db.one(&sql).await;
    assert_eq!(now, format!("{held}/{held}"), "the last values stay");
    assert_eq!(pair.shows("salesforce", &people[0], "jobtitle"), Some(held));
    // Back again: edits made meanwhile on the other side, and the one that waited, reach it.
    administer(
        &pair,
        "hubspot",
        "contacts",
        json!({"do": "restore", "name": "jobtitle"}),
    );
    assert_eq!(refresh(&pair, "hubspot").await, 1);
    answer(&pair, "restored", "jobtitle", "apply").await;
    true_soon(
        &pair,
        "it is read and written again",
        "SELECT bool_and(gone_at IS NULL) FROM crm.mirror_column",
    )
    .await;
    pair.sql(&people[2], "jobtitle", "Back").await;
    pair.reaches_both(&people[2], "jobtitle", "Back").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_is_gone_in_salesforce_is_left_out_of_queries_and_writes() {
    let (pair, people) = linked().await;
    administer(
        &pair,
        "salesforce",
        "Contact",
        json!({"do": "remove", "name": "Title"}),
    );
    // One statement, two fields: the one that is there arrives.
    pair.db
        .exec(&format!(
            "UPDATE hubspot.contacts SET jobtitle = 'Lost', city = 'Bath' WHERE id = '{}'",
            people[0].hubspot
        ))
        .await;
    pair.reaches_both(&people[0], "city", "Bath").await;
    true_soon(
        &pair,
        "the value that cannot go anywhere is shown",
        "SELECT count(*) = 1 FROM crm.dead_letter WHERE code = 'field_gone' AND change = '{\"Title\": \"Lost\"}'",
    )
    .await;
    assert_eq!(change(&pair, "removed", "Title").await[2], "applied");
    pair.edit("salesforce", &people[1], "phone", "+44 20 2");
    pair.reaches_both(&people[1], "phone", "+44 20 2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_salesforce_field_is_followed_with_its_map_and_policy() {
    let (pair, people) = linked().await;
    policy(&pair, "salesforce.contact", "add").await;
    administer(
        &pair,
        "salesforce",
        "Contact",
        json!({"do": "rename", "name": "Title", "to": "Position__c"}),
    );
    assert_eq!(refresh(&pair, "salesforce").await, 1);
    true_soon(
        &pair,
        "the map follows",
        "SELECT count(*) = 1 FROM crm.field_map WHERE left_field = 'jobtitle' AND right_field = 'Position__c'",
    )
    .await;
    assert_eq!(change(&pair, "renamed", "Position__c").await[2], "applied");
    pair.sql(&people[0], "jobtitle", "Outbound").await;
    let there = || {
        pair.emulator.field(
            "salesforce",
            "Contact",
            &people[0].salesforce,
            "Position__c",
        )
    };
    crm_tests::wait_until("the renamed field has it", PATIENCE, async || {
        (there().as_deref() == Some("Outbound")).then_some(())
    })
    .await;
    pair.emulator.edit(
        "salesforce",
        "Contact",
        &people[1].salesforce,
        json!({"Position__c": "Inbound"}),
    );
    let sql = format!(
        "SELECT jobtitle = 'Inbound' FROM hubspot.contacts WHERE id = '{}'",
        people[1].hubspot
    );
    true_soon(&pair, "an edit under the new name comes in", &sql).await;
    // The column is still called as people's statements call it.
    let sql = format!(
        "SELECT title FROM salesforce.contact WHERE id = '{}'",
        people[1].salesforce
    );
    let held: String = pair.db.one(&sql).await;
    assert_eq!(held, "Inbound");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_rests_until_the_answer_where_the_policy_says_so() {
    let pair = mirror(20, Options::default()).await;
    policy(&pair, "hubspot.contacts", "pause").await;
    administer(&pair, "hubspot", "contacts", new_property("shoe_size"));
    assert_eq!(refresh(&pair, "hubspot").await, 1);
    let paused = "SELECT paused FROM crm.mirror";
    assert!(pair.db.one::<bool>(paused).await);
    answer(&pair, "added", "shoe_size", "ignore").await;
    assert!(!pair.db.one::<bool>(paused).await);
    let none: bool = pair
        .db
        .one(&format!("SELECT NOT {}", is_column("shoe_size", "text")))
        .await;
    assert!(none, "it was ignored");
    let id: String = pair
        .db
        .one("SELECT id FROM hubspot.contacts ORDER BY _id LIMIT 1")
        .await;
    pair.emulator
        .edit("hubspot", "contacts", &id, json!({"city": "Ely"}));
    true_soon(
        &pair,
        "the mirror goes on",
        &format!("SELECT city = 'Ely' FROM hubspot.contacts WHERE id = '{id}'"),
    )
    .await;
    // An answer that is none.
    let again = pair
        .db
        .error("SELECT crm.schema_answer(id, 'apply') FROM crm.schema_change")
        .await;
    assert_eq!(again.code().code(), "55000");
    let wrong = pair
        .db
        .error("SELECT crm.schema_policy('hubspot.contacts', 'asc')")
        .await;
    assert_eq!(wrong.code().code(), "22023");
    assert!(wrong.hint().is_some_and(|h| h.contains("ask")), "{wrong:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_waits_for_a_long_transaction_and_nobody_waits_behind_it() {
    let pair = mirror(20, Options::default()).await;
    policy(&pair, "hubspot.contacts", "add").await;
    let long = pair.cluster.connect("app").await;
    long.exec("BEGIN; SELECT count(*) FROM hubspot.contacts")
        .await;
    administer(&pair, "hubspot", "contacts", new_property("shoe_size"));
    assert_eq!(refresh(&pair, "hubspot").await, 1);
    true_soon(
        &pair,
        "it is told that the table is locked",
        "SELECT state = 'applying' AND attempts >= 2 AND error LIKE '%locked%' FROM crm.schema_change",
    )
    .await;
    // Whoever comes meanwhile is held up for the worker's lock_timeout at most.
    let hurry = pair.cluster.connect("app").await;
    hurry.exec("SET statement_timeout = '20s'").await;
    for _ in 0..20 {
        hurry
            .exec("UPDATE hubspot.contacts SET city = city WHERE _id = 1")
            .await;
    }
    long.exec("COMMIT").await;
    true_soon(
        &pair,
        "the column is there",
        &format!("SELECT {}", is_column("shoe_size", "text")),
    )
    .await;
    true_soon(
        &pair,
        "it is filled",
        "SELECT count(*) = 0 FROM hubspot.contacts WHERE shoe_size IS DISTINCT FROM id",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_salesforce_object_that_did_not_change_is_not_described_again() {
    let settings = Options::default().setting("pg_crm_sync.catalog_interval", "1s");
    let pair = Pair::start(PairOptions {
        cluster: settings,
        emulator: EmulatorOptions::default().contacts(10),
    })
    .await;
    pair.import("salesforce", &["Contact"]).await;
    pair.backfilled().await;
    policy(&pair, "salesforce.contact", "ask").await;
    let unchanged = || pair.emulator.served(|c| c["status"] == 304);
    crm_tests::wait_until(
        "descriptions are asked for on condition",
        PATIENCE,
        async || (unchanged() >= 2).then_some(()),
    )
    .await;
    let field = json!({"do": "add", "name": "Mood__c", "type": "picklist", "label": "Mood", "choices": ["good", "bad"], "filled": false});
    administer(&pair, "salesforce", "Contact", field);
    true_soon(
        &pair,
        "a new field is noticed",
        "SELECT count(*) = 1 FROM crm.schema_change WHERE field = 'Mood__c' AND state = 'asked'",
    )
    .await;
    answer(&pair, "added", "Mood__c", "apply").await;
    true_soon(
        &pair,
        "it is mirrored",
        "SELECT count(*) = 1 FROM crm.mirror_column WHERE field = 'Mood__c'",
    )
    .await;
    administer(
        &pair,
        "salesforce",
        "Contact",
        json!({"do": "choices", "name": "Mood__c", "choices": ["good", "bad", "mixed"]}),
    );
    true_soon(
        &pair,
        "a new choice is noticed",
        "SELECT count(*) = 1 FROM crm.schema_change WHERE kind = 'choices' AND detail -> 'added' = '[\"mixed\"]' AND state = 'noted'",
    )
    .await;
}
