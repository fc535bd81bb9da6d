//! Differences from before the records were one thing: shown before going live, and settled by policy when asked.

use crm_tests::{EmulatorOptions, PATIENCE, Pair, PairOptions};
use serde_json::{Value, json};

/// The same person in both CRMs with these values; ids in HubSpot and Salesforce.
fn both(pair: &Pair, email: &str, hubspot: Value, salesforce: Value) -> (String, String) {
    let id = |record: Value| {
        let id = record["id"].as_str().or_else(|| record["Id"].as_str());
        id.unwrap_or_else(|| panic!("no id in {record}")).to_owned()
    };
    let with = |mut fields: Value, name: &str, last: &str| {
        fields[name] = json!(email);
        fields[last] = json!("Differing");
        fields
    };
    let left = with(hubspot, "email", "lastname");
    let right = with(salesforce, "Email", "LastName");
    (
        id(pair.emulator.create("hubspot", "contacts", left)),
        id(pair.emulator.create("salesforce", "Contact", right)),
    )
}

/// A title that Salesforce owns, a city that HubSpot alone knows, a postal code that a person is to decide: imported and linked, in
/// shadow.
async fn differing(pair: &Pair) -> [(String, String); 3] {
    let owned = both(
        pair,
        "owned@example.com",
        json!({"jobtitle": "Wrong"}),
        json!({"Title": "Right"}),
    );
    let blank = both(
        pair,
        "blank@example.com",
        json!({"city": "Leeds"}),
        json!({}),
    );
    let asked = both(
        pair,
        "asked@example.com",
        json!({"zip": "N1"}),
        json!({"MailingPostalCode": "S2"}),
    );
    pair.import("hubspot", &["contacts"]).await;
    pair.import("salesforce", &["Contact"]).await;
    pair.backfilled().await;
    pair.db
        .exec("SELECT crm.link('hubspot.contacts', 'salesforce.contact')")
        .await;
    pair.db.exec(
        "INSERT INTO crm.conflict_policy (link, field, strategy, winner) VALUES ('contacts', 'jobtitle', 'owner', 'salesforce'), ('contacts', 'zip', 'review', NULL)",
    )
    .await;
    [owned, blank, asked]
}

#[tokio::test(flavor = "multi_thread")]
async fn going_live_settles_by_policy_what_differed_before_where_that_is_asked_for() {
    let pair = Pair::start(PairOptions {
        emulator: EmulatorOptions::default().contacts(10),
        ..PairOptions::default()
    })
    .await;
    let [owned, blank, asked] = differing(&pair).await;
    let db = &pair.db;
    let told = "SELECT field, strategy, sample FROM crm.differences('contacts') WHERE sample IN ('Wrong <> Right', 'Leeds <> (empty)', 'N1 <> S2') ORDER BY 1";
    assert_eq!(
        db.table(told).await,
        [
            ["city", "last_write_wins", "Leeds <> (empty)"],
            ["jobtitle", "owner", "Wrong <> Right"],
            ["zip", "review", "N1 <> S2"],
        ],
        "shown in shadow"
    );
    let split = "SELECT left_blank, right_blank, both_filled FROM crm.differences('contacts') WHERE field = 'city'";
    assert_eq!(db.table(split).await, [["0", "1", "0"]]);
    let all: i64 = db
        .one("SELECT sum(count)::bigint FROM crm.differences('contacts')")
        .await;
    let error = db
        .error("SELECT crm.go_live('hubspot.contacts', true)")
        .await;
    assert_eq!(error.code().code(), "22023", "{error:?}");
    let live = "SELECT what, count FROM crm.go_live('contacts', settle => true) WHERE what = 'differences to settle'";
    assert_eq!(
        db.table(live).await,
        [["differences to settle".to_owned(), all.to_string()]]
    );
    pair.reaches("hubspot", "contacts", &owned.0, "jobtitle", "Right")
        .await;
    pair.reaches("salesforce", "Contact", &blank.1, "MailingCity", "Leeds")
        .await;
    let question = "SELECT count(*) = 1 FROM crm.review WHERE field = 'zip' AND candidates @> '[{\"value\": \"N1\"}, {\"value\": \"S2\"}]'";
    db.wait_true("a person is asked", PATIENCE, question).await;
    db.wait_true(
        "all is settled",
        PATIENCE,
        "SELECT count(*) = 0 FROM crm.policy_task",
    )
    .await;
    pair.quiet().await;
    let left = db
        .table("SELECT field, count FROM crm.differences('contacts')")
        .await;
    assert_eq!(left, [["zip", "1"]], "what waits for a person");
    for (crm, object, id, field, value) in [
        ("salesforce", "Contact", &owned.1, "Title", "Right"),
        ("hubspot", "contacts", &blank.0, "city", "Leeds"),
        ("hubspot", "contacts", &asked.0, "zip", "N1"),
        ("salesforce", "Contact", &asked.1, "MailingPostalCode", "S2"),
    ] {
        let shown = pair.emulator.field(crm, object, id, field);
        assert_eq!(shown.as_deref(), Some(value), "{crm} {field}");
    }
}
