//! Keys that exist once, such as an invoice number: whoever makes the second record gets the first one, also where the
//! mirror does not show it yet; where that is not clear a person is asked; and who has no such key pays nothing.

use crm_tests::{EmulatorOptions, PATIENCE, Pair, PairOptions};
use serde_json::{Value, json};

/// Twenty contacts on each side, and a number that is kept in the field for faxes.
async fn pair(emulator: EmulatorOptions) -> Pair {
    let pair = Pair::contacts(PairOptions {
        emulator: emulator.contacts(20),
        ..PairOptions::default()
    })
    .await;
    pair.db
        .exec("INSERT INTO crm.field_map (link, left_field, right_field, unique_key) VALUES ('contacts', 'fax', 'Fax', true)")
        .await;
    pair.worker_has_read().await;
    pair
}

fn make(pair: &Pair, crm: &str, fields: Value) -> String {
    let object = if crm == "hubspot" {
        "contacts"
    } else {
        "Contact"
    };
    let record = pair.emulator.create(crm, object, fields);
    let id = record["id"].as_str().or_else(|| record["Id"].as_str());
    id.unwrap_or_else(|| panic!("no id in {record}")).to_owned()
}

/// The next event of a CRM's stream never comes.
fn lose_next(pair: &Pair, stream: &str) {
    pair.emulator.fault(json!({"stream": stream, "lose": 1}));
}

/// Waits until two records are one thing.
async fn tied(pair: &Pair, hubspot: &str, salesforce: &str) {
    let sql = format!(
        "SELECT count(*) = 1 FROM hubspot.contacts h JOIN crm.xref a ON a.row_id = h._id AND a.mirror = (SELECT left_mirror FROM crm.link)
         JOIN crm.xref b ON b.entity = a.entity AND b.mirror = (SELECT right_mirror FROM crm.link) JOIN salesforce.contact s ON s._id = b.row_id
         WHERE h.id = '{hubspot}' AND s.id = '{salesforce}'"
    );
    let what = format!("{hubspot} and {salesforce} are one");
    pair.db.wait_true(&what, PATIENCE, &sql).await;
}

async fn questions(pair: &Pair) -> Vec<Vec<String>> {
    pair.db
        .table("SELECT kind, mirror, reason FROM crm.review")
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_salesforce_knows_yet_is_taken_and_not_made_again() {
    let pair = pair(EmulatorOptions::default()).await;
    lose_next(&pair, "cdc");
    let there = json!({"LastName": "King", "Email": "billing@example.com", "Fax": "INV-1", "Phone": "+44 1"});
    let salesforce = make(&pair, "salesforce", there);
    let records = pair.live("salesforce", "Contact");
    let here = json!({"email": "ada@example.com", "lastname": "King", "fax": " inv-1", "jobtitle": "Poet"});
    let hubspot = make(&pair, "hubspot", here);
    tied(&pair, &hubspot, &salesforce).await;
    // What each side alone knows reaches the other.
    pair.reaches("salesforce", "Contact", &salesforce, "Title", "Poet")
        .await;
    pair.reaches("hubspot", "contacts", &hubspot, "phone", "+44 1")
        .await;
    pair.quiet().await;
    assert_eq!(pair.live("salesforce", "Contact"), records, "no second");
    assert_eq!(questions(&pair).await, Vec::<Vec<String>>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_hubspot_knows_yet_is_taken_and_not_made_again() {
    let pair = pair(EmulatorOptions::default()).await;
    lose_next(&pair, "webhook");
    let there = json!({"lastname": "King", "email": "billing@example.com", "fax": "INV-2", "phone": "+44 2"});
    let hubspot = make(&pair, "hubspot", there);
    let records = pair.live("hubspot", "contacts");
    let here =
        json!({"LastName": "King", "Email": "ada@example.com", "Fax": "INV-2", "Title": "Poet"});
    let salesforce = make(&pair, "salesforce", here);
    tied(&pair, &hubspot, &salesforce).await;
    pair.reaches("hubspot", "contacts", &hubspot, "jobtitle", "Poet")
        .await;
    pair.reaches("salesforce", "Contact", &salesforce, "Phone", "+44 2")
        .await;
    pair.quiet().await;
    assert_eq!(pair.live("hubspot", "contacts"), records, "no second");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_whose_row_does_not_show_the_key_yet_takes_the_place_of_the_new_one() {
    let pair = pair(EmulatorOptions::default()).await;
    let lone = "SELECT s.id FROM salesforce.contact s WHERE NOT EXISTS (SELECT FROM hubspot.contacts h WHERE lower(h.email) = lower(s.email)) ORDER BY s._id LIMIT 1";
    let lone: String = pair.db.one(lone).await;
    lose_next(&pair, "cdc");
    pair.emulator.edit(
        "salesforce",
        "Contact",
        &lone,
        json!({"Fax": "INV-3", "Title": "Actuary"}),
    );
    let records = pair.live("salesforce", "Contact");
    let here = json!({"email": "ada@example.com", "lastname": "King", "fax": "INV-3"});
    let hubspot = make(&pair, "hubspot", here);
    tied(&pair, &hubspot, &lone).await;
    pair.reaches("hubspot", "contacts", &hubspot, "jobtitle", "Actuary")
        .await;
    pair.quiet().await;
    assert_eq!(pair.live("salesforce", "Contact"), records, "no second");
    let rows = "SELECT count(*) FROM salesforce.contact WHERE id IS NULL";
    assert_eq!(
        pair.db.one::<i64>(rows).await,
        0,
        "the row that waited is gone"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn several_with_the_key_are_asked_about_and_the_answer_ties_the_chosen_one() {
    let pair = pair(EmulatorOptions::default()).await;
    let twins = ["a", "b"].map(|n| {
        lose_next(&pair, "cdc");
        let email = format!("{n}@example.com");
        make(
            &pair,
            "salesforce",
            json!({"LastName": "King", "Email": email, "Fax": "INV-4"}),
        )
    });
    let records = pair.live("salesforce", "Contact");
    let here = json!({"email": "ada@example.com", "lastname": "King", "fax": "INV-4"});
    let hubspot = make(&pair, "hubspot", here);
    let asked = "SELECT count(*) = 1 FROM crm.review WHERE kind = 'create'";
    pair.db.wait_true("it is asked", PATIENCE, asked).await;
    assert_eq!(
        questions(&pair).await,
        [[
            "create",
            "salesforce.contact",
            "2 records of the CRM have its Fax"
        ]]
    );
    let held = pair
        .db
        .table("SELECT advice FROM crm.held WHERE tx IS NULL")
        .await;
    assert!(held.concat()[0].contains("resolve_create"), "{held:?}");
    // Asked to make it nevertheless, the CRM is asked again first.
    pair.db
        .exec("SELECT crm.review_resolve(id, 'retry') FROM crm.review")
        .await;
    let again = "SELECT count(*) = 1 FROM crm.review r WHERE kind = 'create' AND r.opened_at > (SELECT max(e.received_at) FROM crm.event e WHERE e.kind = 'resolved')";
    pair.db
        .wait_true("it is asked again", PATIENCE, again)
        .await;
    let answer = format!(
        "UPDATE crm.review SET resolution = 'made', value = '{}' WHERE kind = 'create'",
        twins[1]
    );
    pair.db.exec(&answer).await;
    tied(&pair, &hubspot, &twins[1]).await;
    pair.quiet().await;
    assert_eq!(pair.live("salesforce", "Contact"), records, "no third");
    let edit = json!({"jobtitle": "Poet"});
    pair.emulator.edit("hubspot", "contacts", &hubspot, edit);
    pair.reaches("salesforce", "Contact", &twins[1], "Title", "Poet")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_invoice_of_one_number_is_asked_about_however_long_ago_the_first_was_tied() {
    let pair = pair(EmulatorOptions::default()).await;
    let first = make(
        &pair,
        "hubspot",
        json!({"email": "a@example.com", "lastname": "King", "fax": "INV-5"}),
    );
    let made = format!(
        "SELECT count(*) = 1 FROM salesforce.contact s, hubspot.contacts h WHERE h.id = '{first}' AND s.id IS NOT NULL AND s.email = h.email"
    );
    pair.db
        .wait_true("the first is made", PATIENCE, &made)
        .await;
    pair.quiet().await;
    pair.db
        .exec("UPDATE crm.xref SET linked_at = now() - interval '1 year'")
        .await;
    let records = pair.live("salesforce", "Contact");
    make(
        &pair,
        "hubspot",
        json!({"email": "b@example.com", "lastname": "King", "fax": "INV-5"}),
    );
    let asked = "SELECT count(*) = 1 FROM crm.review WHERE kind = 'match'";
    pair.db.wait_true("it is asked", PATIENCE, asked).await;
    pair.quiet().await;
    assert_eq!(pair.live("salesforce", "Contact"), records, "no second");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_rows_with_one_number_in_one_statement_make_one_record() {
    let pair = pair(EmulatorOptions::default()).await;
    let counts = || {
        (
            pair.live("hubspot", "contacts"),
            pair.live("salesforce", "Contact"),
        )
    };
    let (hubspot, salesforce) = counts();
    pair.db
        .exec("INSERT INTO salesforce.contact (lastname, email, fax) VALUES ('King', 'a@example.com', 'INV-6'), ('King', 'b@example.com', 'INV-6')")
        .await;
    let asked = "SELECT count(*) > 0 FROM crm.review";
    pair.db.wait_true("it is asked", PATIENCE, asked).await;
    let sent =
        "SELECT count(*) = 0 FROM crm.write WHERE state IN ('queued', 'in_flight', 'unknown')";
    pair.db.wait_true("all is done", PATIENCE, sent).await;
    assert_eq!(counts(), (hubspot + 1, salesforce + 1));
}

/// Without a property of ours, only the key tells whether the record was made.
#[tokio::test(flavor = "multi_thread")]
async fn a_create_whose_answer_is_lost_is_found_by_its_key() {
    let plain = EmulatorOptions::default()
        .arg("--hubspot-sync-properties", "off")
        .arg("--salesforce-external-id", "off");
    let pair = pair(plain).await;
    let counts = || {
        (
            pair.live("hubspot", "contacts"),
            pair.live("salesforce", "Contact"),
        )
    };
    let (hubspot, salesforce) = counts();
    pair.emulator.fault(json!({"rules": [
        {"crm": "hubspot", "method": "POST", "path_prefix": "/crm/v3/objects/contacts/batch/create", "action": {"fail_after_write": {}}},
        {"crm": "hubspot", "method": "POST", "path_prefix": "/crm/objects/2026-03/contacts/batch/create", "action": {"fail_after_write": {}}},
        {"crm": "salesforce", "method": "POST", "path_prefix": "/services/data", "action": {"fail_after_write": {}}},
    ]}));
    let left = make(
        &pair,
        "hubspot",
        json!({"lastname": "King", "fax": "INV-7"}),
    );
    let right = make(
        &pair,
        "salesforce",
        json!({"LastName": "Byron", "Fax": "INV-8"}),
    );
    let both = format!(
        "SELECT count(*) = 2 FROM hubspot.contacts h JOIN crm.xref a ON a.row_id = h._id AND a.mirror = (SELECT left_mirror FROM crm.link)
         JOIN crm.xref b ON b.entity = a.entity AND b.mirror = (SELECT right_mirror FROM crm.link) JOIN salesforce.contact s ON s._id = b.row_id
         WHERE h.fax = s.fax AND (h.id = '{left}' AND s.id IS NOT NULL OR s.id = '{right}' AND h.id IS NOT NULL)"
    );
    pair.db.wait_true("both are pairs", PATIENCE, &both).await;
    pair.quiet().await;
    assert_eq!(counts(), (hubspot + 2, salesforce + 2), "made once each");
    assert_eq!(questions(&pair).await, Vec::<Vec<String>>::new());
}

/// Searches of Salesforce by the key.
fn searches(pair: &Pair) -> usize {
    let log = pair.emulator.admin("GET", "/_admin/requests?since=0", None);
    let list = log["requests"].as_array().expect("a list of requests");
    let by_key = |r: &&Value| {
        let path = r["path"].as_str().unwrap_or_default();
        path.contains("query") && path.contains("INV-")
    };
    list.iter().filter(by_key).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_costs_one_search_and_creates_without_the_key_cost_none() {
    let pair = pair(EmulatorOptions::default()).await;
    let add = async |name: &str, key: &str| {
        let sql = format!(
            "INSERT INTO salesforce.contact (lastname, email, fax) SELECT 'King', '{name}' || n || '@example.com', {key} FROM generate_series(1, 100) n"
        );
        pair.db.exec(&sql).await;
        let made = "SELECT NOT EXISTS (SELECT FROM salesforce.contact WHERE id IS NULL)";
        pair.db.wait_true("all are made", PATIENCE, made).await;
        pair.quiet().await;
    };
    add("plain", "NULL").await;
    assert_eq!(searches(&pair), 0, "no key, no search");
    add("keyed", "'INV-' || n").await;
    let cost = searches(&pair);
    assert!((1..=10).contains(&cost), "{cost} searches for 100 creates");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_explanation_counts_the_searches_for_keys_that_exist_once() {
    let pair = pair(EmulatorOptions::default()).await;
    let costs = async |values: &str| {
        let statement = format!(
            "INSERT INTO hubspot.contacts (lastname, email, fax) SELECT 'King', 'k' || n || '@example.com', {values}"
        );
        pair.db
            .table(&format!(
                "SELECT server, calls::text FROM crm.explain($${statement}$$) WHERE what = 'calls' ORDER BY 1"
            ))
            .await
    };
    let per_server = |n: &'static str| vec![vec!["hubspot", n], vec!["salesforce", n]];
    // One search and one create; without the key there is nothing to look for.
    assert_eq!(
        costs("'INV-9' || n FROM generate_series(1, 3) n").await,
        per_server("2")
    );
    assert_eq!(
        costs("NULL FROM generate_series(1, 3) n").await,
        per_server("1")
    );
}
