//! A HubSpot contact is a Lead or a Contact in Salesforce, as a rule says, until Salesforce converts the Lead.

use crm_tests::{EmulatorOptions, PATIENCE, Pair, PairOptions};
use serde_json::json;

const CUSTOMERS: &str = "lifecyclestage IS NOT DISTINCT FROM ''customer''";

/// Customers are Contacts, everybody else is a Lead.
async fn ruled(on_leave: &str) -> Pair {
    let pair = Pair::start(PairOptions {
        emulator: EmulatorOptions::default().contacts(10),
        ..PairOptions::default()
    })
    .await;
    pair.import("hubspot", &["contacts"]).await;
    pair.import("salesforce", &["Contact", "Lead"]).await;
    pair.backfilled().await;
    pair.db
        .exec(&format!(
            "SELECT crm.link('hubspot.contacts', 'salesforce.contact', 'contacts');
             SELECT crm.link('hubspot.contacts', 'salesforce.lead', 'leads');
             UPDATE crm.field_map SET default_right = '(private)' WHERE link = 'leads' AND right_field = 'Company';
             UPDATE crm.link SET left_scope = '{CUSTOMERS}', on_leave = '{on_leave}', create_left = false WHERE name = 'contacts';
             UPDATE crm.link SET left_scope = 'NOT ({CUSTOMERS})', on_leave = '{on_leave}', create_left = false WHERE name = 'leads';
             SELECT crm.go_live('contacts'); SELECT crm.go_live('leads')"
        ))
        .await;
    pair.worker_has_read().await;
    pair
}

fn make(pair: &Pair, name: &str, stage: &str) -> String {
    let fields = json!({"email": format!("{name}@example.net"), "lastname": name, "company": "Dorn", "lifecyclestage": stage});
    let record = pair.emulator.create("hubspot", "contacts", fields);
    record["id"].as_str().expect("an id").to_owned()
}

/// The id of the one record of that name, once it is there.
async fn made(pair: &Pair, table: &str, name: &str) -> String {
    let there = format!(
        "SELECT count(*) = 1 FROM {table} WHERE lastname = '{name}' AND id IS NOT NULL AND _deleted_at IS NULL"
    );
    let what = format!("{name} is in {table}");
    pair.db.wait_true(&what, PATIENCE, &there).await;
    let id = format!("SELECT id FROM {table} WHERE lastname = '{name}' AND _deleted_at IS NULL");
    pair.db.one(&id).await
}

/// Live records of that name: Leads that were not converted, and Contacts.
async fn counts(pair: &Pair, name: &str) -> (i64, i64) {
    pair.quiet().await;
    let of = |table: &str, also: &str| {
        format!(
            "SELECT count(*) FROM {table} WHERE lastname = '{name}' AND _deleted_at IS NULL {also}"
        )
    };
    let leads = pair
        .db
        .one(&of("salesforce.lead", "AND isconverted IS NOT TRUE"))
        .await;
    (leads, pair.db.one(&of("salesforce.contact", "")).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rule_decides_what_is_made_and_a_change_of_stage_changes_it() {
    let pair = ruled("delete").await;
    let told = pair
        .db
        .table("SELECT problem FROM crm.check_mapping('leads') WHERE problem = 'two targets'")
        .await;
    assert!(told.is_empty(), "the scopes exclude each other: {told:?}");
    let ada = make(&pair, "Ada", "lead");
    make(&pair, "Bea", "customer");
    let lead = made(&pair, "salesforce.lead", "Ada").await;
    made(&pair, "salesforce.contact", "Bea").await;
    assert_eq!(counts(&pair, "Ada").await, (1, 0));
    assert_eq!(counts(&pair, "Bea").await, (0, 1));
    pair.emulator
        .edit("salesforce", "Lead", &lead, json!({"Title": "Engineer"}));
    pair.reaches("hubspot", "contacts", &ada, "jobtitle", "Engineer")
        .await;
    let stage = json!({"lifecyclestage": "customer"});
    pair.emulator.edit("hubspot", "contacts", &ada, stage);
    let contact = made(&pair, "salesforce.contact", "Ada").await;
    pair.cluster
        .wait_until("the Lead is gone", PATIENCE, async || {
            pair.gone("salesforce", "Lead", &lead).then_some(())
        })
        .await;
    assert_eq!(counts(&pair, "Ada").await, (0, 1));
    pair.reaches("salesforce", "Contact", &contact, "Title", "Engineer")
        .await;
}

/// Salesforce has decided: the Contact is the counterpart, whatever the stage says, and no second one is made.
#[tokio::test(flavor = "multi_thread")]
async fn a_converted_lead_moves_the_tie_to_the_contact_and_edits_flow_on_both_ways() {
    for on_leave in ["keep", "unlink", "delete"] {
        let pair = ruled(on_leave).await;
        let hubspot = make(&pair, "Ada", "lead");
        let lead = made(&pair, "salesforce.lead", "Ada").await;
        pair.quiet().await;
        let answer = pair.deed("salesforce", "convert-lead", json!({"id": lead}));
        let contact = answer["contactId"].as_str().expect("a contact").to_owned();
        let tied = format!(
            "SELECT count(*) = 1 FROM hubspot.contacts h JOIN crm.xref a ON a.row_id = h._id AND a.mirror = (SELECT left_mirror FROM crm.link WHERE name = 'contacts')
             JOIN crm.xref b ON b.entity = a.entity AND b.mirror = (SELECT right_mirror FROM crm.link WHERE name = 'contacts')
             JOIN salesforce.contact s ON s._id = b.row_id
             WHERE h.id = '{hubspot}' AND s.id = '{contact}' AND a.merged_into IS NULL AND b.merged_into IS NULL"
        );
        pair.db
            .wait_true("the tie is the Contact's", PATIENCE, &tied)
            .await;
        let edit = json!({"jobtitle": "Engineer"});
        pair.emulator.edit("hubspot", "contacts", &hubspot, edit);
        pair.reaches("salesforce", "Contact", &contact, "Title", "Engineer")
            .await;
        let edit = json!({"Phone": "+44 1"});
        pair.emulator.edit("salesforce", "Contact", &contact, edit);
        pair.reaches("hubspot", "contacts", &hubspot, "phone", "+44 1")
            .await;
        // The stage catches up, and goes back: neither makes or ends anything.
        for (stage, title) in [("customer", "Countess"), ("lead", "Analyst")] {
            let edit = json!({"lifecyclestage": stage, "jobtitle": title});
            pair.emulator.edit("hubspot", "contacts", &hubspot, edit);
            pair.reaches("salesforce", "Contact", &contact, "Title", title)
                .await;
        }
        let why = format!(
            "SELECT verdict = 'in sync' FROM crm.why('hubspot.contacts', '{hubspot}') LIMIT 1"
        );
        pair.db.wait_true("it is in sync", PATIENCE, &why).await;
        assert_eq!(counts(&pair, "Ada").await, (0, 1), "{on_leave}");
        assert!(!pair.gone("hubspot", "contacts", &hubspot));
    }
}

/// Nothing matches a Contact without e-mail, so its CRM is asked which Lead it was before a second person is made.
#[tokio::test(flavor = "multi_thread")]
async fn a_converted_leads_contact_without_an_address_that_comes_first_makes_no_second_person() {
    let pair = ruled("keep").await;
    // The Contact is polled, and nothing tells of the Lead.
    pair.emulator
        .fault(json!({"stream": "cdc", "lose": 100_000}));
    pair.db
        .exec(
            "UPDATE crm.mirror SET poll_interval = CASE WHEN object = 'Contact' THEN interval '1 second' ELSE '1 hour' END WHERE server = 'salesforce';
             UPDATE crm.link SET create_left = true WHERE name = 'contacts'",
        )
        .await;
    pair.worker_has_read().await;
    let fields = json!({"lastname": "Ada", "company": "Dorn", "lifecyclestage": "lead"});
    let hubspot = pair.emulator.create("hubspot", "contacts", fields);
    let hubspot = hubspot["id"].as_str().expect("an id").to_owned();
    let lead = made(&pair, "salesforce.lead", "Ada").await;
    pair.quiet().await;
    let answer = pair.deed("salesforce", "convert-lead", json!({"id": lead}));
    let contact = answer["contactId"].as_str().expect("a contact").to_owned();
    // Another Contact was none, and is made as ever.
    let fields = json!({"LastName": "Bea"});
    pair.emulator.create("salesforce", "Contact", fields);
    made(&pair, "salesforce.contact", "Ada").await;
    made(&pair, "hubspot.contacts", "Bea").await;
    pair.quiet().await;
    let people = "SELECT string_agg(id, ',') FROM hubspot.contacts WHERE lastname = 'Ada' AND _deleted_at IS NULL";
    assert_eq!(pair.db.one::<String>(people).await, hubspot);
    let edit = json!({"Title": "Engineer"});
    pair.emulator.edit("salesforce", "Contact", &contact, edit);
    pair.reaches("hubspot", "contacts", &hubspot, "jobtitle", "Engineer")
        .await;
    let asked = "SELECT count(*) FROM crm.review_item";
    assert_eq!(pair.db.one::<i64>(asked).await, 0, "nobody is asked");
    assert_eq!(counts(&pair, "Ada").await, (0, 1));
}
