//! INSERTs of what the CRM has already, into a mirror without a link: nobody's values are overwritten unasked.

use crm_tests::{EmulatorOptions, PATIENCE, Pair, PairOptions};
use serde_json::json;

/// Ten contacts of HubSpot, live.
async fn hubspot(emulator: EmulatorOptions) -> Pair {
    let pair = Pair::start(PairOptions {
        emulator: emulator.contacts(10),
        ..PairOptions::default()
    })
    .await;
    pair.import("hubspot", &["contacts"]).await;
    pair.backfilled().await;
    pair.db.exec("SELECT crm.go_live('hubspot.contacts')").await;
    pair.worker_has_read().await;
    pair
}

/// What HubSpot holds of a contact.
fn held(pair: &Pair, id: &str) -> [Option<String>; 3] {
    ["firstname", "lastname", "jobtitle"]
        .map(|field| pair.emulator.field("hubspot", "contacts", id, field))
}

fn some(values: [&str; 3]) -> [Option<String>; 3] {
    values.map(|v| Some(v.to_owned()))
}

const SIGN_UP: &str = "INSERT INTO hubspot.contacts (email, firstname, lastname, jobtitle)
    VALUES ('ada@example.com', 'Grace', 'King', 'Admiral')";

/// One row of that address is left, the record's; it shows what HubSpot holds.
async fn one_row(pair: &Pair, id: &str, values: [&str; 3]) {
    let sql = format!(
        "SELECT count(*) = 1 AND bool_and(id = '{id}' AND (firstname, lastname, jobtitle) = ('{}', '{}', '{}'))
         FROM hubspot.contacts WHERE email = 'ada@example.com'",
        values[0], values[1], values[2]
    );
    pair.db
        .wait_true("one row shows the record", PATIENCE, &sql)
        .await;
    let idle = "SELECT NOT EXISTS (SELECT FROM crm.write WHERE state IN ('queued', 'in_flight', 'unknown'))";
    pair.db
        .wait_true("nothing is on its way", PATIENCE, idle)
        .await;
    assert_eq!(held(pair, id), some(values));
}

async fn overwrites_nothing_unasked(pair: &Pair, answer: &str, firstname: &str, known: bool) {
    if !known {
        pair.emulator.fault(json!({"stream": "webhook", "lose": 1}));
    }
    let id = pair.create_person("hubspot", "ada@example.com");
    if known {
        let sql = format!("SELECT count(*) = 1 FROM hubspot.contacts WHERE id = '{id}'");
        pair.db.wait_true("it is here", PATIENCE, &sql).await;
    }
    let records = pair.live("hubspot", "contacts");
    pair.db.exec(SIGN_UP).await;
    one_row(pair, &id, ["Ada", "King", "Admiral"]).await;
    assert_eq!(pair.live("hubspot", "contacts"), records);

    let question = "SELECT kind, field, candidates::text FROM crm.review";
    let asked = pair.db.table(question).await;
    assert!(
        matches!(&asked[..], [q] if q[0] == "field" && q[1] == "firstname" && q[2].contains("Ada") && q[2].contains("Grace")),
        "{asked:?}"
    );
    pair.db
        .exec(&format!("UPDATE crm.review SET resolution = '{answer}'"))
        .await;
    pair.db
        .wait_true(
            "the answer is taken",
            PATIENCE,
            "SELECT count(*) = 0 FROM crm.review",
        )
        .await;
    one_row(pair, &id, [firstname, "King", "Admiral"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_up_of_somebody_the_crm_knows_fills_blanks_and_asks_about_the_rest() {
    overwrites_nothing_unasked(
        &hubspot(EmulatorOptions::default()).await,
        "local",
        "Grace",
        true,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_up_of_somebody_the_mirror_does_not_show_yet_overwrites_nothing_either() {
    overwrites_nothing_unasked(
        &hubspot(EmulatorOptions::default()).await,
        "hubspot",
        "Ada",
        false,
    )
    .await;
}

/// Nor where no property of ours names the create.
#[tokio::test(flavor = "multi_thread")]
async fn a_sign_up_in_an_account_without_our_property_overwrites_nothing_either() {
    let plain = EmulatorOptions::default().arg("--hubspot-sync-properties", "off");
    overwrites_nothing_unasked(&hubspot(plain).await, "local", "Grace", false).await;
}

/// A CRM may take a row for a record that it is not, by a rule of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_shares_no_key_with_the_row_is_asked_about_and_not_touched() {
    let pair = hubspot(EmulatorOptions::default()).await;
    let id = pair.create_person("hubspot", "ada@example.com");
    let known = format!("SELECT count(*) = 1 FROM hubspot.contacts WHERE id = '{id}'");
    pair.db.wait_true("it is here", PATIENCE, &known).await;
    let refused = json!({"status": "error", "category": "CONFLICT", "message": format!("Contact already exists. Existing ID: {id}")});
    pair.emulator.fault(json!({"rules": [
        {"crm": "hubspot", "method": "POST", "path_prefix": "/crm/objects/2026-03/contacts/batch/upsert", "remaining": 2,
         "action": {"reject": {"status": 409, "body": refused}}},
    ]}));
    pair.db
        .exec("INSERT INTO hubspot.contacts (email, lastname, jobtitle) VALUES ('byron@example.com', 'Byron', 'Poet')")
        .await;
    let asked = format!(
        "SELECT count(*) = 1 FROM crm.review WHERE kind = 'create' AND reason LIKE '%{id}%'"
    );
    pair.db
        .wait_true("a person is asked", PATIENCE, &asked)
        .await;
    assert_eq!(held(&pair, &id)[1..], [Some("King".to_owned()), None]);
    pair.db
        .exec("UPDATE crm.review SET resolution = 'retry'")
        .await;
    let made = format!(
        "SELECT count(*) = 1 FROM hubspot.contacts WHERE email = 'byron@example.com' AND id <> '{id}'"
    );
    pair.db
        .wait_true("it is a record of its own", PATIENCE, &made)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_duplicate_that_salesforce_refuses_is_not_written_over() {
    let pair = Pair::start(PairOptions {
        emulator: EmulatorOptions::default().contacts(10),
        ..PairOptions::default()
    })
    .await;
    let strict = json!({"duplicate_rule": true});
    (pair.emulator).admin("POST", "/_admin/salesforce/settings", Some(&strict));
    pair.import("salesforce", &["Contact"]).await;
    pair.backfilled().await;
    pair.db
        .exec("SELECT crm.go_live('salesforce.contact')")
        .await;
    pair.worker_has_read().await;
    let id = pair.create_person("salesforce", "ada@example.com");
    pair.db
        .exec("INSERT INTO salesforce.contact (email, firstname, lastname, title) VALUES ('Ada@Example.com', 'Grace', 'King', 'Admiral')")
        .await;
    let field = |name: &str| pair.emulator.field("salesforce", "Contact", &id, name);
    crm_tests::wait_until("the blank is filled", PATIENCE, async || {
        (field("Title").as_deref() == Some("Admiral")).then_some(())
    })
    .await;
    assert_eq!(field("FirstName").as_deref(), Some("Ada"));
    let asked = pair.db.table("SELECT field FROM crm.review").await;
    assert_eq!(asked, [["FirstName"]]);
}

/// A policy that says who wins whatever the time is asked, not a person.
#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_names_a_winner_decides_about_an_insert_of_what_is_there() {
    for (winner, firstname) in [("hubspot", "Ada"), ("local", "Grace")] {
        let pair = hubspot(EmulatorOptions::default()).await;
        pair.db
            .exec(&format!(
                "UPDATE crm.conflict_policy SET strategy = 'priority', winner = '{winner}' WHERE link = '*' AND field = '*'"
            ))
            .await;
        let id = pair.create_person("hubspot", "ada@example.com");
        pair.db.exec(SIGN_UP).await;
        one_row(&pair, &id, [firstname, "King", "Admiral"]).await;
        assert_eq!(
            pair.db.table("SELECT reason FROM crm.review").await.len(),
            0
        );
    }
}
