//! Records that live on as others: merged in either CRM, converted from Lead to Contact.

use crm_tests::{PATIENCE, Pair, PairOptions, Person};
use serde_json::json;

async fn pair() -> (Pair, Vec<Person>) {
    Pair::linked(20, PairOptions::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hubspot_merge_keeps_row_and_partner_under_the_new_id_and_asks_about_the_other_partner() {
    let (pair, people) = pair().await;
    let (winner, loser) = (&people[0], &people[1]);
    let row: i64 = pair
        .db
        .one(&format!(
            "SELECT _id FROM hubspot.contacts WHERE id = '{}'",
            winner.hubspot
        ))
        .await;
    pair.deed(
        "hubspot",
        "merge",
        json!({"object": "contacts", "winner": winner.hubspot, "loser": loser.hubspot}),
    );
    let renamed = format!(
        "SELECT id <> '{}' AND _deleted_at IS NULL FROM hubspot.contacts WHERE _id = {row}",
        winner.hubspot
    );
    pair.db
        .wait_true("the row has the new id", PATIENCE, &renamed)
        .await;
    let id: String = pair
        .db
        .one(&format!(
            "SELECT id FROM hubspot.contacts WHERE _id = {row}"
        ))
        .await;
    let merged = format!(
        "SELECT _sync_state = 'deleted' AND EXISTS (SELECT FROM crm.xref x WHERE x.row_id = h._id AND x.merged_into = '{id}')
         FROM hubspot.contacts h WHERE h.id = '{}'",
        loser.hubspot
    );
    pair.db
        .wait_true("the loser leads to the survivor", PATIENCE, &merged)
        .await;
    pair.edit("salesforce", winner, "jobtitle", "To the survivor");
    pair.reaches("hubspot", "contacts", &id, "jobtitle", "To the survivor")
        .await;
    pair.emulator
        .edit("hubspot", "contacts", &id, json!({"zip": "NEW 1D"}));
    pair.reaches(
        "salesforce",
        "Contact",
        &winner.salesforce,
        "MailingPostalCode",
        "NEW 1D",
    )
    .await;

    second_partner(&pair, loser).await;
    let live: i64 = pair
        .db
        .one("SELECT count(*) FROM hubspot.contacts WHERE _deleted_at IS NULL")
        .await;
    assert_eq!(
        live as u64,
        pair.live("hubspot", "contacts"),
        "one row per record"
    );
}

/// Nothing says in which order a record lists those that it was: the loser's row and partner went on as the survivor's.
#[tokio::test(flavor = "multi_thread")]
async fn a_hubspot_merge_that_a_poll_shows_first_goes_on_with_the_row_whose_values_it_kept() {
    for n in [0, 1] {
        let (pair, people) = pair().await;
        let (winner, loser) = (&people[n], &people[1 - n]);
        let row = format!(
            "SELECT _id FROM hubspot.contacts WHERE id = '{}'",
            winner.hubspot
        );
        let row: i64 = pair.db.one(&row).await;
        pair.emulator
            .fault(json!({"stream": "webhook", "lose": 100_000}));
        pair.db
            .exec("UPDATE crm.mirror SET poll_interval = '1 second'")
            .await;
        let twins = json!({"object": "contacts", "winner": winner.hubspot, "loser": loser.hubspot});
        pair.deed("hubspot", "merge", twins);
        second_partner(&pair, loser).await;
        let renamed = format!(
            "SELECT id <> '{}' AND _deleted_at IS NULL FROM hubspot.contacts WHERE _id = {row}",
            winner.hubspot
        );
        assert!(pair.db.one::<bool>(&renamed).await);
        assert!(!pair.gone("salesforce", "Contact", &winner.salesforce));
        pair.agree().await;
    }
}

/// The loser's counterpart is asked about, and goes when a steward says so.
async fn second_partner(pair: &Pair, loser: &Person) {
    let asked = format!(
        "SELECT count(*) = 1 FROM crm.review r JOIN salesforce.contact s ON s._id = r.row_id
         WHERE r.kind = 'merge' AND r.mirror = 'salesforce.contact' AND s.id = '{}' AND r.answers = '{{separate,delete}}'",
        loser.salesforce
    );
    pair.db
        .wait_true("the second partner is a question", PATIENCE, &asked)
        .await;
    assert!(!pair.gone("salesforce", "Contact", &loser.salesforce));
    pair.db
        .exec("UPDATE crm.review SET resolution = 'delete' WHERE kind = 'merge'")
        .await;
    pair.cluster
        .wait_until("it goes as the steward said", PATIENCE, async || {
            pair.gone("salesforce", "Contact", &loser.salesforce)
                .then_some(())
        })
        .await;
    pair.quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_salesforce_merge_gives_the_master_the_losers_partner_if_it_has_none() {
    let (pair, people) = pair().await;
    let loser = &people[0];
    let master: String = pair
        .db
        .one("SELECT s.id FROM salesforce.contact s WHERE NOT EXISTS (SELECT FROM crm.xref x JOIN crm.mirror m ON m.id = x.mirror AND m.server = 'salesforce' WHERE x.row_id = s._id) LIMIT 1")
        .await;
    pair.deed(
        "salesforce",
        "merge",
        json!({"object": "Contact", "winner": master, "loser": loser.salesforce}),
    );
    let heir = Person {
        salesforce: master.clone(),
        ..loser.clone()
    };
    pair.become_states(&heir, ["live", "live", "t"]).await;
    assert!(
        !pair.gone("hubspot", "contacts", &loser.hubspot),
        "its partner lives on"
    );
    let merged = format!(
        "SELECT count(*) = 1 FROM crm.xref x JOIN salesforce.contact s ON s._id = x.row_id WHERE x.merged_into = '{master}' AND s.id = '{}'",
        loser.salesforce
    );
    pair.db
        .wait_true("the loser leads to the master", PATIENCE, &merged)
        .await;
    pair.edit("hubspot", &heir, "jobtitle", "To the master");
    pair.reaches("salesforce", "Contact", &master, "Title", "To the master")
        .await;

    let (winner, second) = (&people[1], &people[2]);
    pair.deed(
        "salesforce",
        "merge",
        json!({"object": "Contact", "winner": winner.salesforce, "loser": second.salesforce}),
    );
    let asked = format!(
        "SELECT count(*) = 1 FROM crm.review r JOIN hubspot.contacts h ON h._id = r.row_id WHERE r.kind = 'merge' AND h.id = '{}'",
        second.hubspot
    );
    pair.db
        .wait_true("two partners are a question", PATIENCE, &asked)
        .await;
    pair.db
        .exec("SELECT crm.review_resolve(id, 'separate') FROM crm.review")
        .await;
    pair.db
        .wait_true(
            "answered",
            PATIENCE,
            "SELECT count(*) = 1 FROM crm.review_history WHERE kind = 'merge'",
        )
        .await;
    pair.become_states(winner, ["live", "live", "t"]).await;
    assert!(!pair.gone("hubspot", "contacts", &second.hubspot));
}

/// A HubSpot contact tied to a Salesforce Lead: both ids.
async fn lead() -> (Pair, String, String) {
    let pair = Pair::start(PairOptions::default()).await;
    let email = "lead@example.net";
    let made = pair.emulator.create(
        "hubspot",
        "contacts",
        json!({"email": email, "firstname": "Lea", "lastname": "Dorn", "phone": "1"}),
    );
    let hubspot = made["id"].as_str().expect("an id").to_owned();
    let made = pair.emulator.create(
        "salesforce",
        "Lead",
        json!({"Email": email, "FirstName": "Lea", "LastName": "Dorn", "Phone": "1", "Company": "Dorn"}),
    );
    let lead = made["Id"]
        .as_str()
        .or(made["id"].as_str())
        .expect("an id")
        .to_owned();
    pair.import("hubspot", &["contacts"]).await;
    pair.import("salesforce", &["Contact", "Lead"]).await;
    pair.backfilled().await;
    pair.db
        .exec(
            "SELECT crm.link('hubspot.contacts', 'salesforce.contact');
             SELECT crm.link('hubspot.contacts', 'salesforce.lead', 'leads');
             DELETE FROM crm.field_map WHERE link = 'leads';
             INSERT INTO crm.field_map (link, left_field, right_field, match_order) VALUES
                 ('leads', 'email', 'Email', 1), ('leads', 'firstname', 'FirstName', NULL), ('leads', 'lastname', 'LastName', NULL),
                 ('leads', 'phone', 'Phone', NULL), ('leads', 'jobtitle', 'Title', NULL);
             UPDATE crm.link SET create_left = false, create_right = false;
             SELECT crm.go_live('contacts'); SELECT crm.go_live('leads')",
        )
        .await;
    pair.worker_has_read().await;
    (pair, hubspot, lead)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_converted_lead_goes_on_as_the_contact() {
    let (pair, hubspot, lead) = lead().await;
    pair.emulator
        .edit("hubspot", "contacts", &hubspot, json!({"phone": "2"}));
    pair.reaches("salesforce", "Lead", &lead, "Phone", "2")
        .await;
    let answer = pair.deed("salesforce", "convert-lead", json!({"id": lead}));
    let contact = answer["contactId"].as_str().expect("a contact").to_owned();
    let tied = format!(
        "SELECT count(*) = 1 FROM crm.xref a JOIN crm.xref b ON b.entity = a.entity JOIN hubspot.contacts h ON h._id = a.row_id JOIN salesforce.contact s ON s._id = b.row_id
         JOIN crm.mirror m ON m.id = a.mirror AND m.object = 'contacts' JOIN crm.mirror n ON n.id = b.mirror AND n.object = 'Contact'
         WHERE h.id = '{hubspot}' AND s.id = '{contact}' AND a.merged_into IS NULL AND b.merged_into IS NULL
           AND EXISTS (SELECT FROM crm.xref l JOIN salesforce.lead d ON d._id = l.row_id WHERE d.id = '{lead}' AND l.merged_into = '{contact}')"
    );
    pair.db
        .wait_true("the thing goes on with the Contact", PATIENCE, &tied)
        .await;
    pair.emulator
        .edit("hubspot", "contacts", &hubspot, json!({"phone": "3"}));
    pair.reaches("salesforce", "Contact", &contact, "Phone", "3")
        .await;
    pair.emulator.edit(
        "salesforce",
        "Contact",
        &contact,
        json!({"Title": "Client"}),
    );
    pair.reaches("hubspot", "contacts", &hubspot, "jobtitle", "Client")
        .await;
    pair.quiet().await;
    let phone = pair.emulator.field("salesforce", "Lead", &lead, "Phone");
    assert_eq!(
        phone.as_deref(),
        Some("2"),
        "a converted lead is not written to"
    );
    assert_eq!(
        pair.db
            .one::<i64>("SELECT count(*) FROM crm.dead_letter")
            .await,
        0
    );
}

/// Nobody compared the two: they stayed apart until somebody edited a field.
#[tokio::test(flavor = "multi_thread")]
async fn a_survivor_that_gets_the_losers_partner_agrees_with_it() {
    let (pair, people) = pair().await;
    let loser = &people[1];
    let alone = "UPDATE crm.link SET create_left = false, create_right = false";
    pair.db.exec(alone).await;
    pair.worker_has_read().await;
    let winner = json!({"email": "alone@example.com", "lastname": "Alone", "jobtitle": "Hermit"});
    let winner = pair.emulator.create("hubspot", "contacts", winner);
    let there = "SELECT count(*) = 1 FROM hubspot.contacts WHERE email = 'alone@example.com'";
    pair.db.wait_true("it is there", PATIENCE, there).await;
    pair.deed(
        "hubspot",
        "merge",
        json!({"object": "contacts", "winner": winner["id"], "loser": loser.hubspot}),
    );
    let agree = format!(
        "SELECT count(*) = 1 FROM crm.xref a JOIN crm.xref b USING (entity) JOIN hubspot.contacts h ON h._id = a.row_id JOIN salesforce.contact s ON s._id = b.row_id
         WHERE a.mirror = 1 AND b.mirror = 2 AND a.merged_into IS NULL AND s.id = '{}' AND h.id <> '{}'
           AND (h.email, h.lastname, h.phone, h.jobtitle) IS NOT DISTINCT FROM (s.email, s.lastname, s.phone, s.title)",
        loser.salesforce, loser.hubspot
    );
    pair.db
        .wait_true("both show the same", PATIENCE, &agree)
        .await;
    pair.quiet().await;
}

/// The Contact's copy of it is younger than the edit, and went over it.
#[tokio::test(flavor = "multi_thread")]
async fn an_edit_on_its_way_to_a_lead_that_is_converted_reaches_the_contact() {
    let (pair, hubspot, lead) = lead().await;
    pair.emulator.fault(json!({"rules": [
        {"crm": "salesforce", "method": "PATCH", "path_prefix": "/services/data", "remaining": 1, "action": {"hold": {"ms": 2_000}}},
    ]}));
    pair.emulator
        .edit("hubspot", "contacts", &hubspot, json!({"phone": "2"}));
    pair.told("hubspot", "2").await;
    let phone = pair.emulator.field("salesforce", "Lead", &lead, "Phone");
    assert_ne!(phone.as_deref(), Some("2"), "it is on its way");
    let answer = pair.deed("salesforce", "convert-lead", json!({"id": lead}));
    let contact = answer["contactId"].as_str().expect("a contact").to_owned();
    pair.reaches("salesforce", "Contact", &contact, "Phone", "2")
        .await;
    pair.quiet().await;
    let there = pair
        .emulator
        .field("hubspot", "contacts", &hubspot, "phone");
    assert_eq!(there.as_deref(), Some("2"));
    let dead = "SELECT count(*) FROM crm.dead_letter";
    assert_eq!(pair.db.one::<i64>(dead).await, 0);
}
