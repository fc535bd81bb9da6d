//! Every object that the emulator offers: imported under any of its names, copied whole with true types, and alive in
//! both directions.

use crm_tests::{EmulatorOptions, PATIENCE, Pair, PairOptions};
use serde_json::{Value, json};

#[path = "objects/edits.rs"]
mod edits;

use edits::{Edit, HUBSPOT_EDITS, SALESFORCE_EDITS};

const HUBSPOT: [&str; 13] = [
    "contacts",
    "companies",
    "deals",
    "tickets",
    "tasks",
    "meetings",
    "calls",
    "notes",
    "emails",
    "products",
    "line_items",
    "leads",
    "p62515_subscriptions",
];
const SALESFORCE: [&str; 12] = [
    "Account",
    "Contact",
    "Lead",
    "Opportunity",
    "Case",
    "Task",
    "User",
    "Subscription__c",
    "Event",
    "Product2",
    "PricebookEntry",
    "OpportunityLineItem",
];
/// No event tells of their changes, or not of all: polls do.
const POLLED: [&str; 3] = ["emails", "PricebookEntry", "OpportunityLineItem"];

async fn small() -> Pair {
    Pair::start(PairOptions {
        emulator: EmulatorOptions::default().contacts(20),
        ..PairOptions::default()
    })
    .await
}

/// Each of the objects with its mirror.
async fn everything(crm: &str, objects: &[&str]) -> Pair {
    let pair = small().await;
    pair.import(crm, objects).await;
    for object in POLLED.iter().filter(|o| objects.contains(o)) {
        pair.db
            .exec(&format!(
                "SELECT crm.import('{crm}', ARRAY['{object}'], into_schema => '{crm}', poll_interval => '2 seconds')"
            ))
            .await;
    }
    pair.backfilled().await;
    pair
}

fn table(crm: &str, object: &str) -> String {
    format!("{crm}.{}", object.to_lowercase())
}

/// The values of a record by API name, wherever the emulator's answer keeps them.
fn values(record: &Value) -> &Value {
    ["properties", "fields"]
        .iter()
        .map(|part| &record[part])
        .find(|v| v.is_object())
        .unwrap_or(record)
}

/// Column, record, value here and value there, wherever a mirror differs from the CRM's own records.
async fn differences(pair: &Pair, crm: &str, object: &str) -> Vec<Vec<String>> {
    let name = table(crm, object);
    let ids = pair
        .db
        .table(&format!("SELECT id FROM {name} ORDER BY id"))
        .await;
    pair.db
        .exec("CREATE TEMP TABLE IF NOT EXISTS truth (id text, doc jsonb); TRUNCATE truth")
        .await;
    for id in ids.iter().map(|row| &row[0]) {
        let record = pair.emulator.record(crm, object, id);
        let doc = values(&record).to_string();
        pair.db
            .execute(
                "INSERT INTO truth VALUES ($1, $2::text::jsonb)",
                &[id, &doc],
            )
            .await
            .expect("note the truth");
    }
    let columns = pair
        .db
        .table(&format!(
            "SELECT c.column_name, c.field, format_type(a.atttypid, a.atttypmod)
             FROM crm.mirror_column c JOIN pg_attribute a ON a.attrelid = '{name}'::regclass AND a.attname = c.column_name
             WHERE c.mirror = (SELECT id FROM crm.mirror WHERE schema_name || '.' || table_name = '{name}')"
        ))
        .await;
    let mut wrong = Vec::new();
    for column in &columns {
        let (name_of, field, kind) = (&column[0], &column[1], &column[2]);
        let there = format!("nullif(d.doc ->> '{field}', '')");
        let there = match kind.as_str() {
            "text[]" => format!("string_to_array({there}, ';')"),
            // HubSpot shows some instants as milliseconds since 1970.
            "timestamp with time zone" => format!(
                "CASE WHEN {there} ~ '^-?[0-9]+$' THEN to_timestamp(({there})::numeric / 1000) ELSE ({there})::timestamptz END"
            ),
            kind => format!("{there}::{kind}"),
        };
        let sql = format!(
            "SELECT '{name_of}', t.id, t.\"{name_of}\"::text, d.doc ->> '{field}' FROM {name} t JOIN truth d USING (id)
             WHERE d.doc ? '{field}' AND t.\"{name_of}\" IS DISTINCT FROM {there}"
        );
        wrong.extend(pair.db.table(&sql).await);
    }
    wrong
}

/// Counts alone hid wrong values: every column of every record is compared with what the CRM itself holds.
async fn assert_whole(pair: &Pair, crm: &str, object: &str) {
    let name = table(crm, object);
    let here: i64 = pair
        .db
        .one(&format!(
            "SELECT count(*) FROM {name} WHERE _deleted_at IS NULL"
        ))
        .await;
    let there = pair.emulator.digest(crm, object, &[])["count"].as_i64();
    assert_eq!(Some(here), there, "records of {name}");
    assert!(here > 0, "{name} is empty on both sides");
    let wrong = differences(pair, crm, object).await;
    assert!(wrong.is_empty(), "{name} differs: {wrong:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_hubspot_object_is_copied_whole_and_travels_both_ways() {
    let pair = everything("hubspot", &HUBSPOT).await;
    for object in HUBSPOT {
        assert_whole(&pair, "hubspot", object).await;
    }
    edits_travel(&pair, "hubspot", &HUBSPOT_EDITS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_salesforce_object_is_copied_whole_and_travels_both_ways() {
    let pair = everything("salesforce", &SALESFORCE).await;
    for object in SALESFORCE {
        assert_whole(&pair, "salesforce", object).await;
    }
    edits_travel(&pair, "salesforce", &SALESFORCE_EDITS).await;
    read_only_refuses(&pair).await;
}

fn like(there: Option<String>, wanted: &str) -> bool {
    let number = |text: &str| text.parse::<f64>().ok();
    there.is_some_and(|t| t == wanted || (number(&t).is_some() && number(&t) == number(wanted)))
}

/// A person's edit arrives; UPDATE, INSERT and DELETE in SQL go out.
async fn edits_travel(pair: &Pair, crm: &str, edits: &[Edit]) {
    for e in edits {
        let name = table(crm, e.object);
        pair.db.exec(&format!("SELECT crm.go_live('{name}')")).await;
        let id: String = pair
            .db
            .one(&format!("SELECT id FROM {name} ORDER BY _id LIMIT 1"))
            .await;
        let (field, column) = (e.field, e.field.to_lowercase());
        pair.emulator
            .edit(crm, e.object, &id, json!({ field: e.by_person }));
        let arrived = format!(
            "SELECT {column}::text = '{}' FROM {name} WHERE id = '{id}'",
            e.by_person
        );
        pair.db
            .wait_true(&format!("{name} shows the edit"), PATIENCE, &arrived)
            .await;
        pair.db
            .exec(&format!(
                "UPDATE {name} SET {column} = '{}' WHERE id = '{id}'",
                e.by_sql
            ))
            .await;
        confirmed(pair, &name).await;
        let there = pair.emulator.field(crm, e.object, &id, field);
        assert!(like(there.clone(), e.by_sql), "{name}.{field}: {there:?}");
        insert_and_delete(pair, crm, e).await;
    }
}

async fn confirmed(pair: &Pair, name: &str) {
    let said: String = pair.db.one("SELECT crm.wait_synced()").await;
    assert!(said.starts_with("confirmed"), "{name}: {said}");
}

async fn insert_and_delete(pair: &Pair, crm: &str, e: &Edit) {
    let name = table(crm, e.object);
    let count = || pair.emulator.digest(crm, e.object, &[])["count"].as_i64();
    let before = count();
    let sql = format!(
        "INSERT INTO {name} ({}) VALUES ({}) RETURNING _id",
        e.columns, e.row
    );
    let row: i64 = pair.db.one(&sql).await;
    confirmed(pair, &name).await;
    let id: Option<String> = pair
        .db
        .one(&format!("SELECT id FROM {name} WHERE _id = {row}"))
        .await;
    let id = id.unwrap_or_else(|| panic!("the new row of {name} has no id of the CRM"));
    assert_eq!(count(), before.map(|n| n + 1), "{name}: one new record");
    let record = pair.emulator.record(crm, e.object, &id);
    assert!(values(&record).is_object(), "{name}: {record}");
    pair.db
        .exec(&format!("DELETE FROM {name} WHERE _id = {row}"))
        .await;
    confirmed(pair, &name).await;
    assert_eq!(count(), before, "{name}: the record is gone again");
}

/// A property that the CRM computes is refused at once, not after a round trip that somebody must clear up.
async fn read_only_refuses(pair: &Pair) {
    let error = pair
        .db
        .error("UPDATE salesforce.opportunity SET isclosed = NOT isclosed")
        .await;
    assert!(error.message().contains("isclosed"), "{error:?}");
    assert!(error.hint().is_some(), "{error:?}");
}

/// Numbers that sort as text and dates without a calendar make every query wrong.
#[tokio::test(flavor = "multi_thread")]
async fn columns_have_the_types_that_queries_need() {
    let pair = small().await;
    pair.import(
        "hubspot",
        &[
            "contacts",
            "deals",
            "tickets",
            "p62515_subscriptions",
            "calls",
            "meetings",
            "notes",
            "products",
        ],
    )
    .await;
    pair.import(
        "salesforce",
        &["Contact", "Opportunity", "Event", "OpportunityLineItem"],
    )
    .await;
    let expected = [
        ("hubspot.deals", "amount", "numeric"),
        ("hubspot.deals", "closedate", "timestamp with time zone"),
        ("hubspot.deals", "renewal_date", "date"),
        ("hubspot.deals", "dealname", "text"),
        ("hubspot.tickets", "hs_ticket_category", "text[]"),
        ("hubspot.p62515_subscriptions", "auto_renew", "boolean"),
        ("hubspot.p62515_subscriptions", "start_date", "date"),
        ("hubspot.p62515_subscriptions", "monthly_price", "numeric"),
        ("hubspot.calls", "hs_call_duration", "numeric"),
        (
            "hubspot.meetings",
            "hs_meeting_end_time",
            "timestamp with time zone",
        ),
        ("hubspot.notes", "hs_attachment_ids", "text[]"),
        ("hubspot.products", "price", "numeric"),
        ("salesforce.event", "isalldayevent", "boolean"),
        ("salesforce.event", "activitydate", "date"),
        ("salesforce.opportunitylineitem", "quantity", "numeric"),
        ("salesforce.opportunity", "amount", "numeric"),
        ("salesforce.opportunity", "closedate", "date"),
        ("salesforce.opportunity", "isclosed", "boolean"),
        (
            "salesforce.opportunity",
            "createddate",
            "timestamp with time zone",
        ),
    ];
    for (table, column, kind) in expected {
        let sql = format!(
            "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = '{table}'::regclass AND attname = '{column}'"
        );
        assert_eq!(pair.db.one::<String>(&sql).await, kind, "{table}.{column}");
    }
}

/// A custom object has a name, a qualified name and a type id; people use the one they have at hand.
#[tokio::test(flavor = "multi_thread")]
async fn a_custom_object_is_found_by_its_type_id_and_imported_once() {
    let pair = small().await;
    pair.import("hubspot", &["2-1001"]).await;
    pair.import("hubspot", &["P62515_Subscriptions"]).await;
    pair.import("hubspot", &["0-27"]).await;
    let mirrors = pair
        .db
        .table("SELECT object FROM crm.mirror ORDER BY object")
        .await;
    assert_eq!(mirrors, [["p62515_subscriptions"], ["tasks"]]);
    let error = pair
        .db
        .error(
            "SELECT crm.import('hubspot', ARRAY['p62515_subscription'], into_schema => 'hubspot')",
        )
        .await;
    let hint = error.hint().unwrap_or_default();
    assert!(hint.contains("p62515_subscriptions"), "{error:?}");
}

/// What was not asked for must neither be stored nor read.
#[tokio::test(flavor = "multi_thread")]
async fn an_allow_list_and_a_row_filter_keep_the_rest_out() {
    let pair = small().await;
    let sql = r#"SELECT crm.import('hubspot', ARRAY['contacts'], into_schema => 'hubspot',
        columns => '["email", "city"]', row_filter => '{"contacts": "city IS DISTINCT FROM ''Hidden''"}')"#;
    let ids: Vec<String> = ["1", "2"].map(str::to_owned).to_vec();
    let hide = |id: &str| {
        pair.emulator
            .edit("hubspot", "contacts", id, json!({"city": "Hidden"}))
    };
    hide(&ids[0]);
    pair.db.exec(sql).await;
    pair.backfilled().await;
    let columns = pair
        .db
        .table(
            "SELECT column_name FROM information_schema.columns WHERE table_schema = 'hubspot' AND table_name = 'contacts'
             AND column_name !~ '^_' AND column_name <> 'id' ORDER BY 1",
        )
        .await;
    assert_eq!(columns, [["city"], ["email"]]);
    let rows = "SELECT count(*) FROM hubspot.contacts";
    assert_eq!(
        pair.db.one::<i64>(rows).await,
        19,
        "the hidden one stays out"
    );

    // A record that the filter stops matching later is not kept with a stale value.
    hide(&ids[1]);
    pair.emulator
        .edit("hubspot", "contacts", "3", json!({"city": "Seen"}));
    pair.db
        .wait_true(
            "the edits arrived",
            PATIENCE,
            "SELECT (SELECT city = 'Seen' FROM hubspot.contacts WHERE id = '3')
                AND NOT EXISTS (SELECT FROM hubspot.contacts WHERE id = '2' AND city IS DISTINCT FROM 'Hidden' AND _deleted_at IS NULL)",
        )
        .await;
    let new = pair.emulator.create(
        "hubspot",
        "contacts",
        json!({"email": "hidden@example.com", "city": "Hidden"}),
    );
    let seen = pair.emulator.create(
        "hubspot",
        "contacts",
        json!({"email": "seen@example.com", "city": "Seen"}),
    );
    let id = |record: &Value| record["id"].as_str().unwrap_or_default().to_owned();
    pair.db
        .wait_true(
            "the new record arrived",
            PATIENCE,
            &format!(
                "SELECT count(*) = 1 FROM hubspot.contacts WHERE id = '{}'",
                id(&seen)
            ),
        )
        .await;
    let hidden = format!(
        "SELECT count(*) FROM hubspot.contacts WHERE id = '{}'",
        id(&new)
    );
    assert_eq!(
        pair.db.one::<i64>(&hidden).await,
        0,
        "the filter holds for new records"
    );
}
