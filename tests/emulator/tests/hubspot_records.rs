//! HubSpot's rules about records that its own client libraries do not reach.

mod common;

use common::{Emulator, edit, ids, wait_until};
use serde_json::{Value, json};

const CONTACTS: &str = "/crm/v3/objects/contacts";

#[tokio::test]
async fn both_generations_of_paths_show_one_store() {
    let emulator = Emulator::start(&[]);
    let body = json!({"properties": {"city": "Riga"}});
    let changed = emulator
        .call("PATCH", "/crm/objects/2026-03/0-1/7", body)
        .await;
    assert_eq!(changed.status, 200);
    for path in [
        "/crm/v3/objects/contact/7",
        "/crm/objects/2026-09/contacts/7",
    ] {
        let read = emulator.get(&format!("{path}?properties=city")).await;
        assert_eq!(read.body["properties"]["city"], "Riga", "{path}");
    }
    let custom = emulator
        .get("/crm/v3/objects/p62515_subscriptions/1?properties=plan")
        .await;
    assert_eq!(
        custom.body["id"],
        emulator.get("/crm/v3/objects/2-1001/1").await.body["id"]
    );
    assert_eq!(emulator.get("/crm/v3/objects/unicorns").await.status, 400);
}

#[tokio::test]
async fn limits_of_pages_and_batches_are_enforced() {
    let emulator = Emulator::start(&[]);
    assert_eq!(
        emulator.get(&format!("{CONTACTS}?limit=100")).await.status,
        200
    );
    assert_eq!(
        emulator.get(&format!("{CONTACTS}?limit=101")).await.status,
        400
    );
    let with_history = format!("{CONTACTS}?limit=51&propertiesWithHistory=city");
    assert_eq!(emulator.get(&with_history).await.status, 400);
    let names: String = (0..4_000).map(|n| format!("p{n},")).collect();
    assert_eq!(
        emulator
            .get(&format!("{CONTACTS}?properties={names}"))
            .await
            .status,
        414
    );
    let inputs: Vec<Value> = (0..101).map(|n| json!({"id": n.to_string()})).collect();
    for call in ["read", "update", "archive"] {
        let answer = emulator
            .post(
                &format!("{CONTACTS}/batch/{call}"),
                json!({"inputs": inputs}),
            )
            .await;
        assert_eq!(answer.status, 400, "{call}");
    }
}

#[tokio::test]
async fn a_list_walks_over_created_and_archived_records() {
    let emulator = Emulator::start(&["--contacts", "30", "--rate-limits", "off"]);
    for id in ["1", "10", "30"] {
        assert_eq!(
            emulator
                .call("DELETE", &format!("{CONTACTS}/{id}"), Value::Null)
                .await
                .status,
            204
        );
    }
    let made = emulator
        .post(CONTACTS, json!({"properties": {"lastname": "New"}}))
        .await;
    let new = made.body["id"].as_str().unwrap().to_owned();
    emulator
        .admin("hubspot/edit", edit("29", json!({"city": "Oslo"})))
        .await;
    let mut seen = Vec::new();
    let mut after = "0".to_owned();
    loop {
        let page = emulator
            .get(&format!("{CONTACTS}?limit=7&after={after}"))
            .await
            .body;
        seen.extend(ids(&page));
        match page["paging"]["next"]["after"].as_str() {
            Some(next) => after = next.to_owned(),
            None => break,
        }
    }
    let mut expected: Vec<String> = (1..=30)
        .filter(|n| ![1, 10, 30].contains(n))
        .map(|n| n.to_string())
        .collect();
    expected.push(new);
    assert_eq!(seen, expected);
    let archived = emulator
        .get(&format!("{CONTACTS}?archived=true"))
        .await
        .body;
    assert_eq!(ids(&archived), ["1", "10", "30"]);
    assert!(archived["results"][0]["archivedAt"].is_string());
    emulator
        .admin("hubspot/restore", json!({"object": "contacts", "id": "10"}))
        .await;
    assert_eq!(emulator.get(&format!("{CONTACTS}/10")).await.status, 200);
}

#[tokio::test]
async fn values_are_checked_and_kept_as_hubspot_keeps_them() {
    let emulator = Emulator::start(&[]);
    let patch = async |fields: Value| {
        emulator
            .call(
                "PATCH",
                &format!("{CONTACTS}/5"),
                json!({"properties": fields}),
            )
            .await
    };
    let read = async |name: &str| {
        let answer = emulator
            .get(&format!("{CONTACTS}/5?properties={name}"))
            .await;
        answer.body["properties"][name].clone()
    };
    for (name, given, kept) in [
        ("loyalty_points", json!("5000.00"), json!("5000.00")),
        ("loyalty_points", json!(3000), json!("3000")),
        ("vip", json!(true), json!("true")),
        (
            "last_visit",
            json!("2026-12-31"),
            json!("2026-12-31T00:00:00Z"),
        ),
        (
            "last_visit",
            json!("2026-12-31T10:00:00.250Z"),
            json!("2026-12-31T10:00:00.250Z"),
        ),
        (
            "last_visit",
            json!(1_767_225_600_000_u64),
            json!("2026-01-01T00:00:00Z"),
        ),
        ("renewal_date", json!("2027-02-28"), json!("2027-02-28")),
        (
            "preferred_channels",
            json!("email;post"),
            json!("email;post"),
        ),
        (
            "preferred_channels",
            json!(";chat"),
            json!("email;post;chat"),
        ),
        ("city", json!(""), Value::Null),
        (
            "firstname",
            json!("a \"b\" \\ \n ü"),
            json!("a \"b\" \\ \n ü"),
        ),
    ] {
        assert_eq!(
            patch(json!({name: given})).await.status,
            200,
            "{name} {given}"
        );
        assert_eq!(read(name).await, kept, "{name} {given}");
    }
}

#[tokio::test]
async fn one_bad_value_refuses_the_whole_write_and_says_why() {
    let emulator = Emulator::start(&[]);
    for (name, given, code) in [
        ("loyalty_points", json!("many"), "INVALID_INTEGER"),
        ("vip", json!("perhaps"), "INVALID_OPTION"),
        (
            "renewal_date",
            json!("2027-02-28T01:00:00Z"),
            "INVALID_DATE",
        ),
        ("hs_lead_status", json!("new"), "INVALID_OPTION"),
        ("email", json!("not an address"), "INVALID_EMAIL"),
        ("hs_object_id", json!("1"), "READ_ONLY_VALUE"),
        ("nosuch", json!("1"), "PROPERTY_DOESNT_EXIST"),
        ("city", json!("x".repeat(65_537)), "INVALID_LENGTH"),
    ] {
        let body = json!({"properties": {name: given, "zip": "never"}});
        let answer = emulator.call("PATCH", &format!("{CONTACTS}/5"), body).await;
        assert_eq!(answer.status, 400, "{name}");
        assert_eq!(answer.body["errors"][0]["code"], code);
        assert!(answer.body["correlationId"].is_string());
    }
    let read = emulator.get(&format!("{CONTACTS}/5?properties=zip")).await;
    assert_ne!(read.body["properties"]["zip"], "never");
}

#[tokio::test]
async fn a_life_cycle_goes_back_only_through_empty() {
    let emulator = Emulator::start(&[]);
    let set = async |stage: &str| {
        let body = json!({"properties": {"lifecyclestage": stage}});
        let answer = emulator.call("PATCH", &format!("{CONTACTS}/5"), body).await;
        answer.body["properties"]["lifecyclestage"].clone()
    };
    set("").await;
    assert_eq!(set("customer").await, "customer");
    assert_eq!(set("lead").await, "customer");
    set("").await;
    assert_eq!(set("lead").await, "lead");
}

#[tokio::test]
async fn a_unique_property_is_unique_and_can_be_missing() {
    let emulator = Emulator::start(&[]);
    let key = |id: &str, key: &str| {
        (
            format!("/crm/v3/objects/deals/{id}"),
            json!({"properties": {"pg_crm_sync_id": key}}),
        )
    };
    let (path, body) = key("1", "k1");
    assert_eq!(emulator.call("PATCH", &path, body).await.status, 200);
    let (path, body) = key("2", "K1");
    let refused = emulator.call("PATCH", &path, body).await;
    assert_eq!(refused.status, 400);
    assert!(
        refused.body["message"]
            .as_str()
            .unwrap()
            .contains("already has that value")
    );
    let found = emulator
        .get("/crm/v3/objects/deals/k1?idProperty=pg_crm_sync_id")
        .await;
    assert_eq!(found.body["id"], "1");
    let (path, body) = key("1", "");
    assert_eq!(emulator.call("PATCH", &path, body).await.status, 200);
    let (path, body) = key("2", "k1");
    assert_eq!(
        emulator.call("PATCH", &path, body).await.status,
        200,
        "a cleared value is free"
    );

    let bare = Emulator::start(&["--hubspot-sync-properties", "off"]);
    let names = bare.get("/crm/v3/properties/deals").await.body.to_string();
    assert!(!names.contains("pg_crm_sync_id") && !names.contains("sync_source"));
}

#[tokio::test]
async fn batches_without_trace_ids_are_all_or_nothing() {
    let emulator = Emulator::start(&[]);
    let url = format!("{CONTACTS}/batch/update");
    let good = json!({"id": "4", "properties": {"city": "Good"}});
    let bad = json!({"id": "5", "properties": {"loyalty_points": "bad"}});
    assert_eq!(
        emulator
            .post(&url, json!({"inputs": [good, bad]}))
            .await
            .status,
        400
    );
    let city = emulator
        .get(&format!("{CONTACTS}/4?properties=city"))
        .await
        .body["properties"]["city"]
        .clone();
    assert_ne!(city, "Good");
    let traced = |mut input: Value, trace: &str| {
        input["objectWriteTraceId"] = json!(trace);
        input
    };
    let inputs = json!({"inputs": [traced(good.clone(), "t1"), traced(bad.clone(), "t2")]});
    let partial = emulator.post(&url, inputs).await;
    assert_eq!(partial.status, 207, "{}", partial.body);
    assert_eq!(partial.body["results"][0]["objectWriteTraceId"], "t1");
    assert_eq!(partial.body["numErrors"], 1);
    assert_eq!(
        partial.body["errors"][0]["context"]["objectWriteTraceId"],
        json!(["t2"])
    );
    let same = json!({"inputs": [traced(good.clone(), "t"), traced(bad, "t")]});
    assert_eq!(
        emulator.post(&url, same).await.status,
        400,
        "trace ids must differ"
    );
    let by_email =
        json!({"inputs": [{"id": "a@b.co", "idProperty": "email", "properties": {"city": "X"}}]});
    let refused = emulator.post(&url, by_email).await;
    assert!(
        refused.body["message"]
            .as_str()
            .unwrap()
            .contains("non-unique 0-1 property")
    );
}

#[tokio::test]
async fn history_tells_values_and_sources_newest_first() {
    let emulator = Emulator::start(&[]);
    emulator
        .admin("hubspot/edit", edit("8", json!({"city": "One"})))
        .await;
    let body = json!({"properties": {"city": "Two"}});
    emulator.call("PATCH", &format!("{CONTACTS}/8"), body).await;
    let read = emulator
        .get(&format!("{CONTACTS}/8?propertiesWithHistory=city,state"))
        .await
        .body;
    let city = &read["propertiesWithHistory"]["city"];
    assert_eq!(
        (&city[0]["value"], &city[0]["sourceType"]),
        (&json!("Two"), &json!("INTEGRATION"))
    );
    assert_eq!(
        (&city[1]["value"], &city[1]["sourceType"]),
        (&json!("One"), &json!("CRM_UI"))
    );
    assert_eq!(city[1]["updatedByUserId"], 9_339_234);
    assert_eq!(
        read["propertiesWithHistory"]["state"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test]
async fn the_digest_depends_on_content_and_not_on_the_way_to_it() {
    let (a, b) = (Emulator::start(&[]), Emulator::start(&[]));
    let digest = async |e: &Emulator| {
        e.get("/_admin/hubspot/digest/contacts?fields=city,zip")
            .await
            .body
    };
    assert_eq!(
        digest(&a).await,
        digest(&b).await,
        "the same seed gives the same data"
    );
    for (e, order) in [(&a, ["3", "4"]), (&b, ["4", "3"])] {
        for id in order {
            e.admin("hubspot/edit", edit(id, json!({"city": id}))).await;
        }
    }
    assert_eq!(digest(&a).await, digest(&b).await);
    b.admin("hubspot/edit", edit("9", json!({"zip": "0"})))
        .await;
    assert_ne!(digest(&a).await["hash"], digest(&b).await["hash"]);
    b.admin("hubspot/delete", json!({"object": "contacts", "id": "9"}))
        .await;
    assert_eq!(digest(&b).await["count"], 49);
}

#[tokio::test]
async fn a_write_is_found_by_search_only_after_the_lag() {
    let emulator = Emulator::start(&["--search-lag-ms", "2000", "--rate-limits", "off"]);
    emulator
        .admin("hubspot/edit", edit("8", json!({"city": "Lagville"})))
        .await;
    let filter = |value: &str| json!({"filterGroups": [{"filters": [{"propertyName": "city", "operator": "EQ", "value": value}]}]});
    assert_eq!(emulator.search(filter("lagville")).await.0, 0);
    let read = emulator.get(&format!("{CONTACTS}/8?properties=city")).await;
    assert_eq!(
        read.body["properties"]["city"], "Lagville",
        "reads do not lag"
    );
    wait_until("search sees it", async || {
        emulator.search(filter("lagville")).await.0 == 1
    })
    .await;
}

#[tokio::test]
async fn activities_products_and_leads_are_objects_like_others() {
    let emulator = Emulator::start(&["--rate-limits", "off"]);
    for (name, type_id) in [
        ("notes", "0-46"),
        ("meetings", "0-47"),
        ("calls", "0-48"),
        ("emails", "0-49"),
        ("products", "0-7"),
        ("line_items", "0-8"),
        ("leads", "0-136"),
    ] {
        let base = "/crm/v3/objects";
        let listed = emulator.get(&format!("{base}/{name}?limit=100")).await;
        assert_eq!(
            listed.body["results"].as_array().unwrap().len(),
            5,
            "{name}"
        );
        let one = emulator.get(&format!("{base}/{type_id}/1")).await;
        assert_eq!(one.body["id"], "1", "{name}");
        let found = emulator
            .post(&format!("{base}/{name}/search"), json!({"limit": 1}))
            .await;
        assert_eq!(found.body["total"], 5, "{name}");
    }
    // An activity without its time is refused; one with it may be tied to a contact at once.
    let notes = "/crm/v3/objects/notes";
    let new = json!({"properties": {"hs_note_body": "Rang twice"}});
    assert_eq!(emulator.post(notes, new).await.status, 400);
    let new = json!({"properties": {"hs_note_body": "Rang twice", "hs_timestamp": "2027-01-31T12:00:00Z"},
        "associations": [{"to": {"id": "1"}, "types": [{"associationCategory": "HUBSPOT_DEFINED", "associationTypeId": 202}]}]});
    let note = emulator.post(notes, new).await;
    assert_eq!(note.status, 201, "{}", note.body);
    let id = note.body["id"].as_str().unwrap();
    let read = emulator
        .get(&format!("{notes}/{id}?associations=contacts"))
        .await;
    let tied = &read.body["associations"]["contacts"]["results"][0];
    assert_eq!(tied, &json!({"id": "1", "type": "note_to_contact"}));
}
