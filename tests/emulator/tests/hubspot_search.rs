//! Search at scale: pages by stamp stay cheap and exact among a million records.

mod common;

use std::time::{Duration, Instant};

use common::{Emulator, edit, ids};
use serde_json::{Value, json};

fn filter(property: &str, operator: &str, value: impl Into<Value>) -> Value {
    json!({"propertyName": property, "operator": operator, "value": value.into()})
}

#[tokio::test]
async fn a_keyset_walk_finds_every_record_once_while_records_move() {
    let emulator = Emulator::start(&["--contacts", "1000", "--rate-limits", "off"]);
    let mut seen = Vec::new();
    let (mut stamp, mut last) = (0_i64, 0_u64);
    let mut edits = 0;
    loop {
        let body = json!({"filterGroups": [
                {"filters": [filter("lastmodifieddate", "GT", stamp)]},
                {"filters": [filter("lastmodifieddate", "EQ", stamp), filter("hs_object_id", "GT", last)]}],
            "sorts": [{"propertyName": "lastmodifieddate", "direction": "ASCENDING"}], "limit": 37});
        let answer = emulator.post("/crm/v3/objects/contacts/search", body).await;
        let page = ids(&answer.body);
        let Some(row) = answer.body["results"].as_array().unwrap().last() else {
            break;
        };
        assert!(answer.body["total"].as_u64().unwrap() >= page.len() as u64);
        let time =
            chrono::DateTime::parse_from_rfc3339(row["updatedAt"].as_str().unwrap()).unwrap();
        (stamp, last) = (
            time.timestamp_millis(),
            row["id"].as_str().unwrap().parse().unwrap(),
        );
        seen.extend(page);
        // A record that was not seen yet moves to the end.
        if edits < 20 {
            edits += 1;
            let id = (1_000 - edits).to_string();
            emulator
                .admin(
                    "hubspot/edit",
                    edit(&id, json!({"city": format!("Moved {edits}")})),
                )
                .await;
        }
    }
    let mut sorted: Vec<u64> = seen.iter().map(|id| id.parse().unwrap()).collect();
    sorted.sort_unstable();
    assert_eq!(sorted, (1..=1_000).collect::<Vec<u64>>(), "each once");
}

#[tokio::test]
async fn totals_and_pages_are_exact_among_a_million() {
    let emulator = Emulator::start(&["--contacts", "1000000", "--rate-limits", "off"]);
    let start = Instant::now();
    let (total, page) = emulator.search(json!({"limit": 5})).await;
    assert_eq!(
        (total, page),
        (1_000_000, (1..=5).map(|n| n.to_string()).collect())
    );
    for id in ["500000", "500001", "999999"] {
        emulator
            .admin("hubspot/edit", edit(id, json!({"city": "Recent"})))
            .await;
    }
    emulator
        .admin(
            "hubspot/delete",
            json!({"object": "contacts", "id": "500002"}),
        )
        .await;
    let newest = json!({"sorts": ["-lastmodifieddate"], "limit": 3});
    let (total, page) = emulator.search(newest).await;
    assert_eq!(
        (total, page),
        (
            999_999,
            vec!["999999".into(), "500001".into(), "500000".into()]
        )
    );
    let old = json!({"sorts": ["lastmodifieddate"], "limit": 1, "filterGroups": [{"filters": [
        filter("lastmodifieddate", "LT", "2026-06-01T00:00:00Z")]}]});
    let (total, _) = emulator.search(old).await;
    assert_eq!(
        total,
        1_000_000 - 4,
        "what was written since is not old any more"
    );
    let all = json!({"sorts": ["lastmodifieddate"], "limit": 1, "filterGroups": [{"filters": [
        filter("lastmodifieddate", "GTE", "0")]}]});
    assert_eq!(emulator.search(all).await.0, 999_999);
    let range = json!({"sorts": ["hs_object_id"], "limit": 2, "filterGroups": [{"filters": [
        filter("hs_object_id", "GT", 499_998), filter("hs_object_id", "LTE", "500010")]}]});
    let (total, page) = emulator.search(range).await;
    assert_eq!(
        (total, page),
        (11, vec!["499999".to_owned(), "500000".to_owned()])
    );
    let newer = json!({"sorts": ["-lastmodifieddate"], "limit": 2, "filterGroups": [{"filters": [
        filter("lastmodifieddate", "GT", "2026-06-01")]}]});
    assert_eq!(emulator.search(newer).await.0, 3);
    let by_email =
        emulator.get("/crm/v3/objects/contacts/777777").await.body["properties"]["email"].clone();
    let (total, page) = emulator
        .search(json!({"filterGroups": [{"filters": [filter("email", "EQ", by_email)]}]}))
        .await;
    assert_eq!((total, page), (1, vec!["777777".to_owned()]));
    // Generous: a scan of a million records for each of these would take far longer in a debug build.
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn the_walls_of_search_stand() {
    let emulator = Emulator::start(&["--contacts", "20000", "--rate-limits", "off"]);
    let ask = async |body: Value| {
        emulator
            .post("/crm/v3/objects/contacts/search", body)
            .await
            .status
    };
    let one = filter("email", "HAS_PROPERTY", "");
    assert_eq!(ask(json!({"after": "9990", "limit": 10})).await, 200);
    assert_eq!(ask(json!({"after": "9991", "limit": 10})).await, 400);
    assert_eq!(ask(json!({"after": "10000", "limit": 1})).await, 400);
    assert_eq!(ask(json!({"limit": 201})).await, 400);
    let groups = |groups: usize, filters: usize| json!({"filterGroups": vec![json!({"filters": vec![one.clone(); filters]}); groups]});
    assert_eq!(ask(groups(3, 6)).await, 200);
    assert_eq!(ask(groups(4, 5)).await, 400, "more than 18 in all");
    assert_eq!(ask(groups(6, 1)).await, 400);
    assert_eq!(ask(groups(1, 7)).await, 400);
    assert_eq!(ask(json!({"sorts": ["email", "city"]})).await, 400);
    assert_eq!(ask(json!({"query": "x".repeat(3_001)})).await, 400);
    assert_eq!(
        ask(json!({"filterGroups": [{"filters": [filter("nosuch", "EQ", "1")]}]})).await,
        400
    );
    let lenient = json!({"after": "", "sorts": [], "filterGroups": [{"filters": []}]});
    assert_eq!(ask(lenient).await, 200, "recorded tolerance");
}

#[tokio::test]
async fn every_operator_selects_what_it_says() {
    let emulator = Emulator::start(&["--contacts", "20", "--rate-limits", "off"]);
    for (id, city, points) in [
        ("1", "Aachen", "9"),
        ("2", "Bonn", "10"),
        ("3", "Bad Ems", "100"),
    ] {
        emulator
            .admin(
                "hubspot/edit",
                edit(
                    id,
                    json!({"city": city, "loyalty_points": points, "fax": "f"}),
                ),
            )
            .await;
    }
    let only = |mut filters: Vec<Value>| {
        filters.push(filter("fax", "EQ", "F"));
        json!({"filterGroups": [{"filters": filters}], "sorts": ["loyalty_points"]})
    };
    let between = json!({"propertyName": "loyalty_points", "operator": "BETWEEN", "value": "9", "highValue": 10});
    let within = |operator: &str| json!({"propertyName": "city", "operator": operator, "values": ["bonn", "aachen"]});
    for (filters, expected) in [
        (vec![], vec!["1", "2", "3"]),
        (vec![filter("loyalty_points", "GT", 9)], vec!["2", "3"]),
        (
            vec![filter("loyalty_points", "LTE", "10.0")],
            vec!["1", "2"],
        ),
        (vec![between], vec!["1", "2"]),
        (vec![within("IN")], vec!["1", "2"]),
        (vec![within("NOT_IN")], vec!["3"]),
        (vec![filter("city", "NEQ", "bonn")], vec!["1", "3"]),
        (vec![filter("city", "CONTAINS_TOKEN", "ems")], vec!["3"]),
        (vec![filter("city", "CONTAINS_TOKEN", "b*")], vec!["2", "3"]),
        (vec![filter("city", "NOT_CONTAINS_TOKEN", "b*")], vec!["1"]),
        (vec![filter("salutation", "HAS_PROPERTY", "")], vec![]),
        (
            vec![filter("salutation", "NOT_HAS_PROPERTY", "")],
            vec!["1", "2", "3"],
        ),
        (
            vec![filter("associations.companies", "EQ", "1")],
            vec!["1", "2", "3"],
        ),
        (vec![filter("associations.companies", "EQ", "2")], vec![]),
    ] {
        let name = format!("{filters:?}");
        assert_eq!(emulator.search(only(filters)).await.1, expected, "{name}");
    }
    let words = json!({"query": "aachen", "properties": ["city"]});
    assert_eq!(
        emulator.search(words).await.0,
        0,
        "the query looks at the default properties"
    );
}

#[tokio::test]
async fn short_pages_and_ids_as_text_do_not_lose_records_of_a_patient_client() {
    let emulator = Emulator::start(&[
        "--rate-limits",
        "off",
        "--search-short-pages",
        "on",
        "--search-id-order",
        "text",
    ]);
    let mut seen = Vec::new();
    let (mut after, mut short) = (json!("0"), 0);
    loop {
        let body = json!({"sorts": ["hs_object_id"], "limit": 10, "after": after});
        let answer = emulator.post("/crm/v3/objects/contacts/search", body).await;
        let page = ids(&answer.body);
        let next = &answer.body["paging"]["next"]["after"];
        short += u32::from(page.len() < 10 && !next.is_null());
        seen.extend(page);
        if next.is_null() {
            break;
        }
        after = next.clone();
    }
    let mut expected: Vec<String> = (1..=50).map(|n| n.to_string()).collect();
    expected.sort();
    assert_eq!(seen, expected);
    assert!(short > 0);
    let beyond = json!({"filterGroups": [{"filters": [filter("hs_object_id", "GT", "49")]}],
        "sorts": ["hs_object_id"]});
    let (_, page) = emulator.search(beyond).await;
    assert_eq!(page, ["5", "50", "6"], "half a page, by text");
}
