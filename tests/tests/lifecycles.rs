//! Records that are removed and come back, on one side of a link.

use crm_tests::{PATIENCE, Pair, PairOptions, Person};
use serde_json::json;

async fn pair() -> (Pair, Vec<Person>) {
    Pair::linked(20, PairOptions::default()).await
}

async fn rule(pair: &Pair, on_left: &str, on_right: &str) {
    pair.db
        .exec(&format!(
            "UPDATE crm.link SET on_left_delete = '{on_left}', on_right_delete = '{on_right}'"
        ))
        .await;
    pair.worker_has_read().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_direction_follows_its_own_delete_rule() {
    let (pair, people) = pair().await;
    for rules in [("unlnk", "unlink"), ("unlink", "archive")] {
        let sql = format!(
            "UPDATE crm.link SET on_left_delete = '{}', on_right_delete = '{}'",
            rules.0, rules.1
        );
        assert_eq!(pair.db.error(&sql).await.code().code(), "23514");
    }
    rule(&pair, "propagate", "ignore").await;
    pair.emulator
        .delete("hubspot", "contacts", &people[0].hubspot);
    pair.emulator
        .delete("salesforce", "Contact", &people[1].salesforce);
    pair.become_states(&people[0], ["deleted", "deleted", "f"])
        .await;
    pair.become_states(&people[1], ["live", "deleted", "t"])
        .await;
    pair.cluster
        .wait_until(
            "Salesforce's record went with HubSpot's",
            PATIENCE,
            async || {
                pair.gone("salesforce", "Contact", &people[0].salesforce)
                    .then_some(())
            },
        )
        .await;
    assert!(!pair.gone("hubspot", "contacts", &people[1].hubspot));

    rule(&pair, "unlink", "soft_delete").await;
    pair.emulator
        .delete("hubspot", "contacts", &people[2].hubspot);
    pair.emulator
        .delete("salesforce", "Contact", &people[3].salesforce);
    pair.become_states(&people[2], ["deleted", "live", "f"])
        .await;
    pair.become_states(&people[3], ["soft_deleted", "deleted", "t"])
        .await;
    pair.quiet().await;
    for (crm, object, id) in [
        ("salesforce", "Contact", &people[2].salesforce),
        ("hubspot", "contacts", &people[3].hubspot),
    ] {
        assert!(!pair.gone(crm, object, id), "{crm} {id} must stay");
    }
    let followed = pair
        .db
        .table("SELECT decision -> 0 ->> 'rule' FROM crm.event WHERE source = 'link' AND kind = 'delete' ORDER BY 1")
        .await
        .concat();
    assert_eq!(
        followed,
        ["propagate", "soft_delete"],
        "the ledger names the rules"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_back_finds_its_partner_and_catches_up() {
    let (pair, people) = pair().await;
    let (soft, ignored, untied) = (&people[0], &people[1], &people[2]);
    rule(&pair, "soft_delete", "unlink").await;
    pair.emulator.delete("hubspot", "contacts", &soft.hubspot);
    pair.become_states(soft, ["deleted", "soft_deleted", "t"])
        .await;
    let why = format!(
        "SELECT detail LIKE 'hidden since%' FROM crm.why('salesforce.contact', '{}') WHERE item = 'record'",
        soft.salesforce
    );
    assert!(pair.db.one::<bool>(&why).await, "its CRM did not delete it");
    rule(&pair, "ignore", "unlink").await;
    pair.emulator
        .delete("hubspot", "contacts", &ignored.hubspot);
    pair.become_states(ignored, ["deleted", "live", "t"]).await;
    rule(&pair, "unlink", "unlink").await;
    pair.emulator.delete("hubspot", "contacts", &untied.hubspot);
    pair.become_states(untied, ["deleted", "live", "f"]).await;

    for who in [soft, ignored, untied] {
        pair.edit("salesforce", who, "city", "Meanwhile");
    }
    let seen = format!(
        "SELECT mailingcity = 'Meanwhile' FROM salesforce.contact WHERE id = '{}'",
        ignored.salesforce
    );
    pair.db
        .wait_true("the survivor lives on", PATIENCE, &seen)
        .await;
    for who in [soft, ignored, untied] {
        pair.deed(
            "hubspot",
            "restore",
            json!({"object": "contacts", "id": who.hubspot}),
        );
    }
    for who in [soft, ignored, untied] {
        pair.become_states(who, ["live", "live", "t"]).await;
    }
    pair.reaches_both(ignored, "city", "Meanwhile").await;
    pair.edit("hubspot", soft, "jobtitle", "Back");
    pair.reaches_both(soft, "jobtitle", "Back").await;
    pair.edit("hubspot", untied, "jobtitle", "Back too");
    pair.reaches_both(untied, "jobtitle", "Back too").await;
}

/// Removes records in HubSpot while an edit from Salesforce cannot get there.
async fn cross(pair: &Pair, people: &[Person]) {
    pair.hubspot_takes_nothing();
    for who in people {
        pair.edit("salesforce", who, "city", "Unseen");
        let sql = format!(
            "SELECT count(*) > 0 FROM crm.write w JOIN hubspot.contacts h ON h._id = w.row_id
             WHERE h.id = '{}' AND w.vals ->> 'city' = 'Unseen' AND w.state = 'queued'",
            who.hubspot
        );
        pair.db
            .wait_true("the edit waits for HubSpot", PATIENCE, &sql)
            .await;
        pair.emulator.delete("hubspot", "contacts", &who.hubspot);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_that_crosses_an_edit_is_a_stewards_question() {
    let (pair, people) = pair().await;
    rule(&pair, "propagate", "unlink").await;
    let (kept, removed) = (&people[0], &people[1]);
    cross(&pair, &people[..2]).await;
    pair.db
        .wait_true("both are asked about", PATIENCE, "SELECT count(*) = 2 FROM crm.review WHERE kind = 'delete' AND mirror = 'hubspot.contacts'")
        .await;
    pair.emulator.clear_faults();
    let told = "SELECT count(*) FROM crm.review WHERE reason LIKE '%city%' AND candidates @> '[{\"origin\": \"hubspot\", \"deleted\": true}]'
                AND candidates @> '[{\"origin\": \"salesforce\", \"field\": \"city\", \"value\": \"Unseen\"}]' AND answers = '{delete,keep}'";
    assert_eq!(pair.db.one::<i64>(told).await, 2);
    for who in [kept, removed] {
        assert!(
            !pair.gone("salesforce", "Contact", &who.salesforce),
            "nothing is removed before the answer"
        );
    }
    let answer = |who: &Person, word: &str| {
        format!(
            "UPDATE crm.review SET resolution = '{word}' WHERE row_id = (SELECT _id FROM hubspot.contacts WHERE id = '{}')",
            who.hubspot
        )
    };
    let row: i64 = pair
        .db
        .one(&format!(
            "SELECT _id FROM hubspot.contacts WHERE id = '{}'",
            kept.hubspot
        ))
        .await;
    pair.db.exec(&answer(removed, "delete")).await;
    pair.db.exec(&answer(kept, "keep")).await;
    pair.cluster
        .wait_until("the other record goes", PATIENCE, async || {
            pair.gone("salesforce", "Contact", &removed.salesforce)
                .then_some(())
        })
        .await;
    let anew = format!(
        "SELECT id <> '{}' AND city = 'Unseen' AND _deleted_at IS NULL FROM hubspot.contacts WHERE _id = {row}",
        kept.hubspot
    );
    pair.db
        .wait_true("the record is made anew", PATIENCE, &anew)
        .await;
    let id: String = pair
        .db
        .one(&format!(
            "SELECT id FROM hubspot.contacts WHERE _id = {row}"
        ))
        .await;
    pair.reaches("hubspot", "contacts", &id, "city", "Unseen")
        .await;
    pair.edit("salesforce", kept, "jobtitle", "Still tied");
    pair.reaches("hubspot", "contacts", &id, "jobtitle", "Still tied")
        .await;
    let said = pair
        .db
        .table("SELECT resolution FROM crm.review_history ORDER BY 1")
        .await
        .concat();
    assert_eq!(said, ["delete", "keep"]);
}

/// A question about the city of each.
async fn ask(pair: &Pair, chosen: &[Person]) {
    pair.review_cities().await;
    pair.hubspot_takes_nothing();
    for who in chosen {
        pair.edit("salesforce", who, "city", "One");
    }
    let waits =
        "SELECT count(*) = 2 FROM crm.write WHERE vals ->> 'city' = 'One' AND state = 'queued'";
    pair.db
        .wait_true("Salesforce's city waits", PATIENCE, waits)
        .await;
    for who in chosen {
        pair.edit("hubspot", who, "city", "Other");
    }
    pair.db
        .wait_true(
            "two questions",
            PATIENCE,
            "SELECT count(*) = 2 FROM crm.review WHERE field = 'city'",
        )
        .await;
    // An attempt under way would land when HubSpot takes writes again.
    let gone = "SELECT NOT EXISTS (SELECT FROM crm.write WHERE vals ? 'city')";
    pair.db
        .wait_true("nothing goes to HubSpot any more", PATIENCE, gone)
        .await;
    pair.emulator.clear_faults();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sql_delete_of_a_row_with_an_open_question_waits_for_an_answer() {
    let (pair, people) = pair().await;
    let chosen = &people[..2];
    ask(&pair, chosen).await;
    let mut rows = Vec::new();
    for who in chosen {
        let sql = format!(
            "DELETE FROM hubspot.contacts WHERE id = '{}' RETURNING _id",
            who.hubspot
        );
        rows.push(pair.db.one::<i64>(&sql).await);
    }
    pair.db
        .wait_true(
            "two more",
            PATIENCE,
            "SELECT count(*) = 2 FROM crm.review WHERE kind = 'delete'",
        )
        .await;
    pair.quiet().await;
    assert!(
        !pair.gone("hubspot", "contacts", &chosen[0].hubspot),
        "nothing is sent before the answer"
    );
    pair.db
        .exec(&format!(
            "UPDATE crm.review SET resolution = CASE row_id WHEN {} THEN 'keep' ELSE 'delete' END WHERE kind = 'delete'",
            rows[0]
        ))
        .await;
    let back = format!(
        "SELECT email = '{}' AND _deleted_at IS NULL FROM hubspot.contacts WHERE id = '{}'",
        chosen[0].email, chosen[0].hubspot
    );
    pair.db.wait_true("the row is back", PATIENCE, &back).await;
    pair.cluster
        .wait_until("the other is gone from HubSpot", PATIENCE, async || {
            pair.gone("hubspot", "contacts", &chosen[1].hubspot)
                .then_some(())
        })
        .await;
    assert!(!pair.gone("hubspot", "contacts", &chosen[0].hubspot));
    assert!(
        !pair.gone("salesforce", "Contact", &chosen[1].salesforce),
        "the link says unlink"
    );
    pair.edit("salesforce", &chosen[0], "jobtitle", "Tied again");
    pair.reaches_both(&chosen[0], "jobtitle", "Tied again")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_may_decide_crossing_deletes_without_asking() {
    let (pair, people) = pair().await;
    pair.db
        .exec("UPDATE crm.link SET on_delete_conflict = 'keep'")
        .await;
    pair.worker_has_read().await;
    let who = &people[0];
    let row: i64 = pair
        .db
        .one(&format!(
            "SELECT _id FROM hubspot.contacts WHERE id = '{}'",
            who.hubspot
        ))
        .await;
    // HubSpot goes on taking no updates: one that reaches the removed record first is refused.
    cross(&pair, &people[..1]).await;
    let anew = format!(
        "SELECT id <> '{}' AND city = 'Unseen' FROM hubspot.contacts WHERE _id = {row}",
        who.hubspot
    );
    pair.db
        .wait_true("the record is made anew", PATIENCE, &anew)
        .await;
    let live = format!("SELECT _deleted_at IS NULL FROM hubspot.contacts WHERE _id = {row}");
    assert!(pair.db.one::<bool>(&live).await, "and shown as live");
    assert_eq!(
        pair.db.one::<i64>("SELECT count(*) FROM crm.review").await,
        0
    );
}

/// The record that was removed has our key as well; it is not what the create made whose call never arrived.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_made_anew_is_not_taken_for_the_removed_one_when_its_call_is_lost() {
    let (pair, _) = pair().await;
    pair.db
        .exec("UPDATE crm.link SET on_delete_conflict = 'keep'")
        .await;
    pair.worker_has_read().await;
    pair.db
        .exec("INSERT INTO hubspot.contacts (email, lastname) VALUES ('twice@example.com', 'King')")
        .await;
    let said: String = pair.db.one("SELECT crm.wait_synced()").await;
    assert!(said.starts_with("confirmed"), "{said}");
    pair.quiet().await;
    let mut people = pair.people().await;
    people.retain(|who| who.email == "twice@example.com");
    pair.emulator.fault(json!({"rules": [
        {"crm": "hubspot", "method": "POST", "path_prefix": "/crm/objects/2026-03/contacts/batch/upsert", "action": "close"},
    ]}));
    cross(&pair, &people).await;
    let anew = format!(
        "SELECT count(*) = 1 AND bool_and(id <> '{}' AND city = 'Unseen' AND _deleted_at IS NULL) FROM hubspot.contacts WHERE email = 'twice@example.com'",
        people[0].hubspot
    );
    pair.db
        .wait_true("the record is made anew", PATIENCE, &anew)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_edited_as_soon_as_it_came_back_shows_what_it_holds_now() {
    let (pair, people) = pair().await;
    let who = &people[0];
    rule(&pair, "unlink", "unlink").await;
    pair.emulator.delete("hubspot", "contacts", &who.hubspot);
    pair.become_states(who, ["deleted", "live", "f"]).await;
    pair.db.exec("SELECT crm.pause('server', 'hubspot')").await;
    pair.worker_has_read().await;
    let record = json!({"object": "contacts", "id": who.hubspot});
    pair.deed("hubspot", "restore", record);
    pair.edit("hubspot", who, "jobtitle", "Back again");
    pair.db.exec("SELECT crm.resume('server', 'hubspot')").await;
    pair.become_states(who, ["live", "live", "t"]).await;
    pair.reaches_both(who, "jobtitle", "Back again").await;
    let row = format!(
        "SELECT jobtitle = 'Back again' FROM hubspot.contacts WHERE id = '{}'",
        who.hubspot
    );
    pair.db.wait_true("its row shows it", PATIENCE, &row).await;
}
