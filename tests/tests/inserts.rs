//! INSERTs into a mirror without a link: what the CRM has already is not written over unasked, and creates whose answers
//! are lost are settled, whoever holds a row or has deleted the record meanwhile.

use crm_tests::{EmulatorOptions, Options, PATIENCE, Pair, PairOptions, wait_until};
use serde_json::json;

/// Ten people of a CRM, live. Polls would settle creates in doubt before anybody looks for them.
async fn live(emulator: EmulatorOptions, crm: &str, object: &str) -> Pair {
    let pair = Pair::start(PairOptions {
        cluster: Options::default().setting("pg_crm_sync.guard_soft_rows", "0"),
        emulator: emulator.contacts(10),
    })
    .await;
    let import = format!(
        "SELECT crm.import('{crm}', ARRAY['{object}'], into_schema => '{crm}', poll_interval => '1 hour')"
    );
    pair.db.exec(&import).await;
    pair.backfilled().await;
    let sql = format!("SELECT crm.go_live('{crm}.{}')", object.to_lowercase());
    pair.db.exec(&sql).await;
    pair.worker_has_read().await;
    pair
}

async fn hubspot(emulator: EmulatorOptions) -> Pair {
    live(emulator, "hubspot", "contacts").await
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
    let pair = live(EmulatorOptions::default(), "salesforce", "Contact").await;
    let strict = json!({"duplicate_rule": true});
    (pair.emulator).admin("POST", "/_admin/salesforce/settings", Some(&strict));
    let id = pair.create_person("salesforce", "ada@example.com");
    pair.db
        .exec("INSERT INTO salesforce.contact (email, firstname, lastname, title) VALUES ('Ada@Example.com', 'Grace', 'King', 'Admiral')")
        .await;
    let field = |name: &str| pair.emulator.field("salesforce", "Contact", &id, name);
    wait_until("the blank is filled", PATIENCE, async || {
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

/// Where each CRM makes contacts, and where it is asked what it made: `(crm, method, path)`.
const MAKES: [(&str, &str, &str); 2] = [
    (
        "hubspot",
        "POST",
        "/crm/objects/2026-03/contacts/batch/upsert",
    ),
    ("salesforce", "PATCH", "/services/data"),
];
const LOOKS: [(&str, &str, &str); 2] = [
    (
        "hubspot",
        "POST",
        "/crm/objects/2026-03/contacts/batch/read",
    ),
    ("salesforce", "GET", "/services/data"),
];

/// The next call that makes records loses its answer, and nobody can ask what it made until the faults are cleared.
fn doubt(pair: &Pair, crm: &str) {
    let rule = |of: &[(&str, &str, &str)], n: u64, action: serde_json::Value| {
        let of = of.iter().find(|(c, ..)| *c == crm).expect("a CRM");
        json!({"crm": of.0, "method": of.1, "path_prefix": of.2, "remaining": n, "action": action})
    };
    pair.emulator.fault(json!({"rules": [
        rule(&MAKES, 1, json!({"fail_after_write": {}})),
        rule(&LOOKS, 100_000, json!({"reject": {"status": 503}})),
    ]}));
}

async fn in_doubt(pair: &Pair, creates: usize) {
    let sql = format!(
        "SELECT count(*) = {creates} FROM crm.write WHERE kind = 'create' AND state = 'unknown'"
    );
    pair.db.wait_true("all are in doubt", PATIENCE, &sql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_row_keeps_no_other_create_in_doubt() {
    const NEW: u64 = 100;
    let pair = hubspot(EmulatorOptions::default()).await;
    let records = pair.live("hubspot", "contacts");
    // Their events would settle them as well.
    pair.emulator
        .fault(json!({"stream": "webhook", "lose": 1_000}));
    doubt(&pair, "hubspot");
    pair.db
        .exec(&format!(
            "INSERT INTO hubspot.contacts (email, lastname) SELECT format('new.%s@example.net', n), 'New' FROM generate_series(1, {NEW}) n"
        ))
        .await;
    in_doubt(&pair, NEW as usize).await;
    let holder = pair.cluster.connect("app").await;
    holder
        .exec("BEGIN; SELECT FROM hubspot.contacts WHERE email = 'new.50@example.net' FOR UPDATE")
        .await;
    pair.emulator.clear_faults();
    let made = |n: u64| {
        format!(
            "SELECT count(*) = {n} FROM hubspot.contacts WHERE lastname = 'New' AND id IS NOT NULL"
        )
    };
    pair.db
        .wait_true("the others have their records", PATIENCE, &made(NEW - 1))
        .await;
    let left = pair.db.table("SELECT state FROM crm.write").await;
    assert_eq!(left, [["unknown"]], "the held one waits");
    holder.exec("COMMIT").await;
    pair.db
        .wait_true("the last one too", PATIENCE, &made(NEW))
        .await;
    assert_eq!(pair.live("hubspot", "contacts"), records + NEW);
}

async fn deleted_before_it_was_known(crm: &str, object: &str) {
    let pair = live(EmulatorOptions::default(), crm, object).await;
    let records = pair.live(crm, object);
    for stream in ["webhook", "cdc"] {
        pair.emulator
            .fault(json!({"stream": stream, "lose": 1_000}));
    }
    doubt(&pair, crm);
    let table = format!("{crm}.{}", object.to_lowercase());
    pair.db
        .exec(&format!(
            "INSERT INTO {table} (email, lastname) VALUES ('soon.gone@example.net', 'Gone'), ('stays@example.net', 'Stays')"
        ))
        .await;
    in_doubt(&pair, 2).await;
    let path = format!("/_admin/{crm}/objects/{object}?limit=1000");
    let all = pair.emulator.admin("GET", &path, None).to_string();
    let gone: serde_json::Value = serde_json::from_str(&all).expect("JSON");
    let list = ["results", "records", "objects"]
        .iter()
        .find_map(|k| gone[k].as_array())
        .expect("a list");
    let record = list
        .iter()
        .find(|r| r.to_string().contains("soon.gone@example.net"))
        .expect("it was made");
    let id = record["id"].as_str().or_else(|| record["Id"].as_str());
    let id = id.expect("an id").to_owned();
    pair.emulator.delete(crm, object, &id);
    assert_eq!(pair.live(crm, object), records + 1);
    pair.emulator.clear_faults();
    let settled = format!(
        "SELECT count(*) = 2 AND bool_and(id IS NOT NULL) AND bool_or(id = '{id}' AND _deleted_at IS NOT NULL)
            AND NOT EXISTS (SELECT FROM crm.write)
         FROM {table} WHERE email IN ('soon.gone@example.net', 'stays@example.net')"
    );
    pair.db
        .wait_true("both are settled", PATIENCE, &settled)
        .await;
    assert_eq!(pair.live(crm, object), records + 1, "not made again");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_deleted_in_hubspot_before_its_create_was_known_is_not_made_again() {
    deleted_before_it_was_known("hubspot", "contacts").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_deleted_in_salesforce_before_its_create_was_known_is_not_made_again() {
    deleted_before_it_was_known("salesforce", "Contact").await;
}
