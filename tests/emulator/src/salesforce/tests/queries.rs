//! SOQL: errors, paging, and the walks that must not look at every record.

use super::{body, call, ids, org, send, soql};
use crate::clock::Rng;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

fn error_of(answer: &Value) -> &str {
    answer[0]["errorCode"].as_str().unwrap_or("none")
}

/// Query, error code, part of the message.
const WRONG: [(&str, &str, &str); 16] = [
    (
        "SELECT Id, Nope FROM Contact",
        "INVALID_FIELD",
        "ERROR at Row:1:Column:12",
    ),
    (
        "SELECT Id FROM Nope__c",
        "INVALID_TYPE",
        "sObject type 'Nope__c' is not supported",
    ),
    ("SELECT Id FROM Contact WHERE", "MALFORMED_QUERY", "<EOF>"),
    (
        "SELECT Id FROM Contact WHERE Name = 'x",
        "MALFORMED_QUERY",
        "closing '",
    ),
    (
        "SELECT Id FROM Contact WHERE Name = 'x\\q'",
        "MALFORMED_QUERY",
        "escape",
    ),
    (
        "SELECT Id FROM Contact WHERE Name = 5",
        "INVALID_FIELD",
        "must be of type string",
    ),
    (
        "SELECT Id FROM Contact WHERE SystemModstamp > '2024-01-01T00:00:00Z'",
        "INVALID_FIELD",
        "should not be enclosed in quotes",
    ),
    (
        "SELECT Id FROM Contact WHERE Id = 'nonsense'",
        "INVALID_QUERY_FILTER_OPERATOR",
        "invalid ID field",
    ),
    (
        "SELECT Id FROM Contact WHERE AccountId LIKE '001%'",
        "INVALID_QUERY_FILTER_OPERATOR",
        "LIKE",
    ),
    (
        "SELECT Id FROM Contact ORDER BY Description",
        "INVALID_FIELD",
        "can not be sorted",
    ),
    (
        "SELECT Id, Id FROM Contact",
        "INVALID_FIELD",
        "duplicate field",
    ),
    ("SELECT Id FROM Contact LIMIT -1", "MALFORMED_QUERY", "-1"),
    (
        "SELECT Id FROM Contact OFFSET 2001",
        "NUMBER_OUTSIDE_VALID_RANGE",
        "2000",
    ),
    ("SELECT Id FROM Contact; DELETE", "MALFORMED_QUERY", "';'"),
    (
        "SELECT Who.Name FROM Contact",
        "INVALID_FIELD",
        "relationship 'Who'",
    ),
    ("", "MALFORMED_QUERY", ""),
];

#[test]
fn a_wrong_query_names_what_is_wrong_and_where() {
    let org = org(10);
    for (query, code, part) in WRONG {
        let answer = soql(&org, query);
        assert_eq!(error_of(&answer), code, "{query}: {answer}");
        assert!(
            answer[0]["message"].as_str().unwrap().contains(part),
            "{query}: {answer}"
        );
    }
    let deep = format!(
        "SELECT Id FROM Contact WHERE {}Name = 'x'{}",
        "(".repeat(100),
        ")".repeat(100)
    );
    assert_eq!(error_of(&soql(&org, &deep)), "QUERY_TOO_COMPLICATED");
}

#[test]
fn conditions_select_what_they_say() {
    let org = org(200);
    let count = |filter: &str| {
        soql(&org, &format!("SELECT COUNT() FROM Contact WHERE {filter}"))["totalSize"]
            .as_u64()
            .unwrap()
    };
    let all = count("Id != null");
    assert_eq!(all, 200);
    assert_eq!(
        count("Level__c = 'Primary'") + count("Level__c != 'Primary'"),
        all
    );
    assert_eq!(
        count("NOT Level__c = 'Primary'"),
        count("Level__c != 'primary'"),
        "text compares without case"
    );
    assert_eq!(count("Level__c IN ('Primary', 'Secondary')"), all);
    assert_eq!(count("Level__c NOT IN ('Primary', 'Secondary')"), 0);
    assert_eq!(count("Fax = null"), all);
    assert_eq!(
        count("Email LIKE '%@EXAMPLE.com'") + count("Email LIKE '%@example.org'"),
        all
    );
    assert_eq!(count("Email LIKE '%.00001_@example.%'"), 10);
    assert_eq!(
        count("Score__c >= 500 AND Score__c < 1000") + count("Score__c < 500.0"),
        all
    );
    assert_eq!(
        count("HasOptedOutOfEmail = true OR HasOptedOutOfEmail = FALSE"),
        all
    );
    assert_eq!(
        count("Birthdate < 1950-01-01 OR Birthdate >= 1950-01-01"),
        all
    );
    assert_eq!(
        count("Languages__c INCLUDES ('English;German')"),
        count("Languages__c = 'English;German'")
    );
    assert_eq!(count("CreatedDate > TODAY"), 0);
}

#[test]
fn order_by_puts_nulls_first_unless_told_and_breaks_ties_by_id() {
    let org = org(20);
    let (status, _) = send(
        &org,
        "PATCH",
        "sobjects/Contact/003xx0000000007AAA",
        json!({"Department": null}),
    );
    assert_eq!(status, 204);
    let null = "003xx0000000007AAA";
    assert_eq!(
        ids(&org, "SELECT Id FROM Contact ORDER BY Department")[0],
        null
    );
    assert_eq!(
        ids(
            &org,
            "SELECT Id FROM Contact ORDER BY Department DESC NULLS LAST"
        )
        .last()
        .unwrap(),
        null
    );
    assert_eq!(
        ids(
            &org,
            "SELECT Id FROM Contact ORDER BY Department DESC LIMIT 1"
        ),
        [null]
    );
}

/// 150 random edits, creates and deletes over a minute of the CRM's time.
fn scramble(org: &super::State, rng: &mut Rng) {
    for round in 0..150 {
        let id = super::super::ids::SfId::new(*b"003", 1 + rng.below(300)).to_string();
        org.shared.clock.set_skew_ms(
            crate::shared::Side::Salesforce,
            i64::from(round) * 400 - 40_000_000_000,
        );
        match rng.below(10) {
            0 => send(
                org,
                "DELETE",
                &format!("sobjects/Contact/{id}"),
                Value::Null,
            ),
            1 => send(
                org,
                "POST",
                "sobjects/Contact",
                json!({"LastName": format!("New {round}")}),
            ),
            _ => send(
                org,
                "PATCH",
                &format!("sobjects/Contact/{id}"),
                json!({"Title": format!("T{round}")}),
            ),
        };
    }
}

/// Edits, creates and deletes at random; a keyset reader with any page size must see every live record exactly once, in
/// order, and exactly what a plain scan sees.
#[test]
fn keyset_pages_agree_with_a_full_scan_after_random_writes() {
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(20_261_121);
    println!("SEED={seed}");
    let mut rng = Rng::new(seed);
    let org = org(300);
    scramble(&org, &mut rng);
    // The condition on LastName keeps this query off every shortcut.
    let rows = |query: &str| -> Vec<(String, String)> {
        let answer = soql(&org, query);
        let row = |row: &Value| {
            (
                row["SystemModstamp"].as_str().unwrap().to_owned(),
                row["Id"].as_str().unwrap().to_owned(),
            )
        };
        answer["records"]
            .as_array()
            .unwrap()
            .iter()
            .map(row)
            .collect()
    };
    let mut truth =
        rows("SELECT Id, SystemModstamp FROM Contact WHERE LastName != null ORDER BY LastName");
    truth.sort();
    for limit in [1, 7, 100] {
        let (mut stamp, mut last) = (
            "1970-01-01T00:00:00Z".to_owned(),
            "000000000000000".to_owned(),
        );
        let mut seen = Vec::new();
        loop {
            let filter =
                format!("SystemModstamp > {stamp} OR (SystemModstamp = {stamp} AND Id > '{last}')");
            let filter = filter.replace(
                "AND Id > '000000000000000'",
                "AND Id > '000xx0000000000AAA'",
            );
            let query = format!(
                "SELECT Id, SystemModstamp FROM Contact WHERE {filter} ORDER BY SystemModstamp, Id LIMIT {limit}"
            );
            let page = rows(&query);
            let total = soql(&org, &query.replace(&format!(" LIMIT {limit}"), ""))["totalSize"]
                .as_u64()
                .unwrap();
            assert_eq!(
                total as usize,
                truth.len() - seen.len(),
                "the total is counted, not guessed: {filter}"
            );
            let Some(end) = page.last() else { break };
            (stamp, last) = (end.0.replace("+0000", "Z"), end.1.clone());
            seen.extend(page);
        }
        assert_eq!(seen, truth, "pages of {limit}");
    }
    agrees(&org, truth);
}

/// Every order the store keeps yields the same rows, forwards and backwards.
fn agrees(org: &super::State, mut truth: Vec<(String, String)>) {
    let mut by_id: Vec<String> = truth.iter().map(|(_, id)| id.clone()).collect();
    by_id.sort();
    assert_eq!(ids(org, "SELECT Id FROM Contact ORDER BY Id"), by_id);
    by_id.reverse();
    assert_eq!(ids(org, "SELECT Id FROM Contact ORDER BY Id DESC"), by_id);
    truth.reverse();
    let descending: Vec<String> = truth.into_iter().map(|(_, id)| id).collect();
    assert_eq!(
        ids(
            org,
            "SELECT Id FROM Contact ORDER BY SystemModstamp DESC, Id DESC"
        ),
        descending
    );
}

#[test]
fn pages_shrink_with_long_text_and_keep_their_total() {
    let org = org(2_500);
    let plain = soql(&org, "SELECT Id FROM Contact");
    assert_eq!(
        (
            plain["records"].as_array().unwrap().len(),
            plain["totalSize"].as_u64()
        ),
        (2_000, Some(2_500))
    );
    assert!(plain["nextRecordsUrl"].as_str().unwrap().ends_with("-2000"));
    let long = soql(&org, "SELECT Id, Description FROM Contact");
    assert_eq!(
        long["records"].as_array().unwrap().len(),
        1_000,
        "a long text halves the page unasked"
    );
    assert_eq!(
        ids(&org, "SELECT Id, Description FROM Contact").len(),
        2_500
    );
    let small = call(
        &org,
        "GET",
        "query?q=SELECT+Id+FROM+Contact",
        &[("sforce-query-options", "batchSize=1")],
        &Value::Null,
    );
    assert_eq!(
        body(&small)["records"].as_array().unwrap().len(),
        200,
        "200 is the least"
    );
}

#[test]
fn a_page_can_be_fetched_again_and_deleted_rows_are_left_out() {
    let org = org(5_000);
    let first = soql(&org, "SELECT Id FROM Contact ORDER BY Id");
    let next = first["nextRecordsUrl"]
        .as_str()
        .unwrap()
        .strip_prefix("/services/data/v62.0/")
        .unwrap()
        .to_owned();
    let second = body(&call(&org, "GET", &next, &[], &Value::Null));
    assert_eq!(
        body(&call(&org, "GET", &next, &[], &Value::Null))["records"],
        second["records"]
    );
    let id = second["records"][0]["Id"].as_str().unwrap();
    send(
        &org,
        "DELETE",
        &format!("sobjects/Contact/{id}"),
        Value::Null,
    );
    let again = body(&call(&org, "GET", &next, &[], &Value::Null));
    assert_ne!(again["records"][0]["Id"], json!(id));
    let (status, error) = send(&org, "GET", "query/0r8xxnonsenseAAA-2000", Value::Null);
    assert_eq!((status, error_of(&error)), (400, "INVALID_QUERY_LOCATOR"));
}

/// A million contacts: the first page of each read a replica makes must not visit them all.
#[test]
fn a_million_contacts_cost_no_scan() {
    let org = org(1_000_000);
    let started = Instant::now();
    for number in (1..1_000_000).step_by(50_000) {
        let id = super::super::ids::SfId::new(*b"003", number);
        assert_eq!(
            ids_page(
                &org,
                &format!("SELECT Id FROM Contact WHERE Id > '{id}' ORDER BY Id")
            ),
            2_000
        );
        let row = soql(
            &org,
            &format!("SELECT Email, SystemModstamp FROM Contact WHERE Id = '{id}'"),
        );
        let stamp = row["records"][0]["SystemModstamp"]
            .as_str()
            .unwrap()
            .replace("+0000", "Z");
        let email = row["records"][0]["Email"].as_str().unwrap();
        let keyset = format!(
            "SELECT Id FROM Contact WHERE SystemModstamp > {stamp} OR (SystemModstamp = {stamp} AND Id > '{id}') ORDER BY SystemModstamp, Id"
        );
        assert_eq!(ids_page(&org, &keyset), 2_000);
        assert_eq!(
            ids_page(
                &org,
                &format!("SELECT Id FROM Contact WHERE Email IN ('{email}', 'nobody@example.com')")
            ),
            1
        );
        assert_eq!(
            soql(
                &org,
                &format!("SELECT COUNT() FROM Contact WHERE Id > '{id}'")
            )["totalSize"],
            json!(1_000_000 - number)
        );
    }
    // 80 calls of at most 2,000 rows: a scan each would take minutes in a debug build.
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "{:?}",
        started.elapsed()
    );
}

fn ids_page(org: &super::State, query: &str) -> usize {
    soql(org, query)["records"].as_array().unwrap().len()
}
