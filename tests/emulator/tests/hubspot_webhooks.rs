//! Delivery of webhooks: what is sent, how often, how many at once.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{Emulator, Receiver, edit, wait_until};
use serde_json::{Value, json};

async fn connected(arguments: &[&str]) -> (Emulator, Receiver) {
    let receiver = Receiver::start().await;
    let emulator = Emulator::start(&[arguments, &["--webhook-url", &receiver.url]].concat());
    (emulator, receiver)
}

async fn edit_many(emulator: &Emulator, count: u64) {
    let body =
        json!({"crm": "hubspot", "object": "contacts", "from": 1, "count": count, "field": "city"});
    emulator.admin("edit-many", body).await;
}

#[tokio::test]
async fn a_thousand_events_come_in_batches_of_100_and_ten_at_once() {
    let (emulator, receiver) = connected(&["--contacts", "3000"]).await;
    receiver.hold(100);
    edit_many(&emulator, 3_000).await;
    let events = receiver.expect(3_000).await;
    assert_eq!(events.len(), 3_000);
    let objects: BTreeSet<u64> = events
        .iter()
        .map(|e| e["objectId"].as_u64().unwrap())
        .collect();
    assert_eq!(objects.len(), 3_000);
    let largest = receiver
        .deliveries()
        .iter()
        .map(|d| d.events.len())
        .max()
        .unwrap();
    assert!(largest <= 100, "{largest}");
    assert!(largest > 10, "events that wait travel together: {largest}");
    assert!(receiver.most_open() <= 10, "{}", receiver.most_open());
}

#[tokio::test]
async fn a_refused_batch_comes_ten_more_times_and_then_no_more() {
    let (emulator, receiver) = connected(&["--webhook-retry-ms", "1"]).await;
    receiver.answer(404);
    emulator
        .admin("hubspot/edit", edit("5", json!({"city": "Ulm"})))
        .await;
    wait_until("it is given up", async || {
        emulator.get("/_admin/webhooks").await.body["abandoned_events"] == 1
    })
    .await;
    let attempts: Vec<u64> = receiver
        .events()
        .iter()
        .map(|e| e["attemptNumber"].as_u64().unwrap())
        .collect();
    assert_eq!(attempts, (0..=10).collect::<Vec<u64>>());
    let same: BTreeSet<String> = receiver
        .events()
        .iter()
        .map(|e| e["eventId"].to_string())
        .collect();
    assert_eq!(same.len(), 1);
    let report = emulator.get("/_admin/webhooks").await.body;
    assert_eq!(
        (&report["waiting"], &report["failed_requests"]),
        (&json!(0), &json!(11))
    );
}

#[tokio::test]
async fn a_receiver_slower_than_five_seconds_counts_as_failed() {
    let (emulator, receiver) = connected(&["--webhook-retry-ms", "1"]).await;
    receiver.hold(5_500);
    emulator
        .admin("hubspot/edit", edit("5", json!({"city": "Ulm"})))
        .await;
    wait_until("the request is given up", async || {
        emulator.get("/_admin/webhooks").await.body["failed_requests"] == 1
    })
    .await;
    receiver.hold(0);
    wait_until("the retry arrives", async || {
        emulator.get("/_admin/webhooks").await.body["delivered_events"] == 1
    })
    .await;
}

/// How many events of each type, each with the keys that its shape must have.
fn counted(events: &[Value]) -> BTreeMap<String, u32> {
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for event in events {
        *counts
            .entry(event["subscriptionType"].as_str().expect("text").to_owned())
            .or_default() += 1;
        for key in [
            "eventId",
            "subscriptionId",
            "portalId",
            "appId",
            "occurredAt",
            "attemptNumber",
            "objectId",
        ] {
            assert!(event[key].is_u64(), "{key} of {event}");
        }
        let generic = event["subscriptionType"]
            .as_str()
            .expect("text")
            .starts_with("object.");
        assert_eq!(event.get("objectTypeId").is_some(), generic, "{event}");
        assert_eq!(event["changeSource"], "CRM_UI");
    }
    counts
}

#[tokio::test]
async fn each_deed_raises_its_events_in_both_shapes() {
    let (emulator, receiver) = connected(&["--webhook-shape", "both"]).await;
    let fields = json!({"email": "new@example.net", "firstname": "New"});
    let made = emulator
        .admin(
            "hubspot/create",
            json!({"object": "contacts", "fields": fields}),
        )
        .await;
    let id = made["id"].as_str().unwrap();
    emulator
        .admin("hubspot/delete", json!({"object": "contacts", "id": id}))
        .await;
    emulator
        .admin("hubspot/restore", json!({"object": "contacts", "id": id}))
        .await;
    emulator
        .admin(
            "hubspot/merge",
            json!({"object": "contacts", "winner": "2", "loser": "3"}),
        )
        .await;
    emulator
        .admin(
            "hubspot/privacy-delete",
            json!({"object": "contacts", "id": id}),
        )
        .await;
    // Twice: creation, two properties, deletion, restore, merge, deletion; once: privacy deletion.
    let events = receiver.expect(15).await;
    let mut counts = counted(&events);
    for (name, count) in [
        ("creation", 1),
        ("propertyChange", 2),
        ("deletion", 2),
        ("restore", 1),
        ("merge", 1),
    ] {
        assert_eq!(
            counts.remove(&format!("contact.{name}")),
            Some(count),
            "{name}"
        );
        assert_eq!(
            counts.remove(&format!("object.{name}")),
            Some(count),
            "{name}"
        );
    }
    assert_eq!(counts.remove("contact.privacyDeletion"), Some(1));
    assert!(counts.is_empty(), "{counts:?}");
    let merge = events
        .iter()
        .find(|e| e["subscriptionType"] == "object.merge")
        .unwrap();
    assert_eq!(
        (&merge["primaryObjectId"], &merge["mergedObjectIds"]),
        (&json!(2), &json!([3]))
    );
    assert!(merge["newObjectId"].as_u64().unwrap() > 1 << 31);
}

#[tokio::test]
async fn an_association_fires_two_events_one_per_direction() {
    let (emulator, receiver) = connected(&[]).await;
    let path = "/crm/v4/objects/contacts/11/associations/default/companies/4";
    assert_eq!(emulator.call("PUT", path, Value::Null).await.status, 200);
    let events = receiver.expect(2).await;
    let ends: BTreeSet<(String, u64, u64)> = events
        .iter()
        .map(|e| {
            assert_eq!(
                (&e["associationRemoved"], &e["changeSource"]),
                (&json!(false), &json!("INTEGRATION"))
            );
            assert!(e.get("objectId").is_none());
            let kind = e["associationType"].as_str().unwrap().to_owned();
            (
                kind,
                e["fromObjectId"].as_u64().unwrap(),
                e["toObjectId"].as_u64().unwrap(),
            )
        })
        .collect();
    let expected = [
        ("COMPANY_TO_CONTACT".to_owned(), 4, 11),
        ("CONTACT_TO_COMPANY".to_owned(), 11, 4),
    ];
    assert_eq!(ends, expected.into());
    let same = emulator.call("PUT", path, Value::Null).await;
    assert_eq!(same.status, 200);
    receiver.clear();
    let gone = emulator
        .call(
            "DELETE",
            "/crm/v4/objects/companies/4/associations/contacts/11",
            Value::Null,
        )
        .await;
    assert_eq!(gone.status, 204);
    let removed = receiver.expect(2).await;
    assert_eq!(removed.len(), 2, "nothing came from the link that existed");
    assert!(removed.iter().all(|e| e["associationRemoved"] == true));
    let links = emulator
        .get("/crm/v4/objects/contacts/11/associations/companies")
        .await
        .body;
    assert!(!links.to_string().contains("\"toObjectId\":4"), "{links}");
}

#[tokio::test]
async fn what_changes_nothing_is_not_announced_and_moves_no_stamp() {
    let (emulator, receiver) = connected(&[]).await;
    let path = "/crm/v3/objects/contacts/6";
    let patch = async |city: &str| {
        emulator
            .call("PATCH", path, json!({"properties": {"city": city}}))
            .await
            .body["updatedAt"]
            .clone()
    };
    let first = patch("Bern").await;
    receiver.expect(1).await;
    assert_eq!(patch("Bern").await, first);
    let body = json!({"inputs": [{"id": "6", "properties": {"city": "Bern"}}]});
    let batch = emulator
        .post("/crm/v3/objects/contacts/batch/update", body)
        .await
        .body;
    assert_eq!(batch["results"][0]["updatedAt"], first);
    patch("Chur").await;
    let events = receiver.expect(2).await;
    let values: Vec<&Value> = events.iter().map(|e| &e["propertyValue"]).collect();
    assert_eq!(values, ["Bern", "Chur"]);
}

#[tokio::test]
async fn lost_doubled_and_shuffled_events_are_what_was_ordered() {
    let (emulator, receiver) = connected(&["--contacts", "500"]).await;
    emulator
        .admin(
            "faults",
            json!({"stream": "webhook", "lose": 30, "duplicate": 20, "reorder_window": 10}),
        )
        .await;
    receiver.hold(20);
    edit_many(&emulator, 500).await;
    let events = receiver.expect(490).await;
    wait_until("all is sent", async || {
        emulator.get("/_admin/webhooks").await.body["waiting"] == 0
    })
    .await;
    assert_eq!(receiver.events().len(), 490);
    let mut times: BTreeMap<u64, u32> = BTreeMap::new();
    for event in &events {
        *times
            .entry(event["objectId"].as_u64().unwrap())
            .or_default() += 1;
    }
    assert_eq!(times.len(), 470, "30 are lost");
    assert_eq!(times.values().filter(|n| **n == 2).count(), 20);
    let shuffled = receiver.deliveries().iter().any(|d| {
        !d.events
            .is_sorted_by_key(|e| e["objectId"].as_u64().unwrap())
    });
    assert!(shuffled);
}

#[tokio::test]
async fn from_the_first_subscription_on_only_what_is_subscribed_is_sent() {
    let (emulator, receiver) = connected(&[]).await;
    let base = "/webhooks/v3/54321/subscriptions";
    let wish = json!({"eventType": "object.propertyChange", "objectTypeId": "0-1", "propertyName": "city"});
    let made = emulator.post(base, wish).await;
    assert_eq!(
        (made.status, &made.body["active"]),
        (201, &json!(false)),
        "new ones start paused"
    );
    let both = json!({"city": "Genf", "zip": "1200"});
    emulator
        .admin("hubspot/edit", edit("1", both.clone()))
        .await;
    let id = made.body["id"].as_str().unwrap();
    let path = format!("{base}/{id}");
    assert_eq!(
        emulator
            .call("PATCH", &path, json!({"active": true}))
            .await
            .status,
        200
    );
    emulator.admin("hubspot/edit", edit("2", both)).await;
    let events = receiver.expect(1).await;
    wait_until("all is sent", async || {
        emulator.get("/_admin/webhooks").await.body["waiting"] == 0
    })
    .await;
    assert_eq!(events.len(), 1);
    assert_eq!(
        (&events[0]["objectId"], &events[0]["propertyName"]),
        (&json!(2), &json!("city"))
    );
    assert_eq!(events[0]["subscriptionId"].to_string(), id);
    for (bad, why) in [
        (
            json!({"eventType": "object.flight", "objectTypeId": "0-1"}),
            "unknown event",
        ),
        (
            json!({"eventType": "object.propertyChange", "objectTypeId": "0-2", "propertyName": "hs_lastmodifieddate"}),
            "silent property",
        ),
        (json!({"eventType": "object.creation"}), "no object type"),
    ] {
        assert_eq!(emulator.post(base, bad).await.status, 400, "{why}");
    }
}

#[tokio::test]
async fn a_skewed_clock_dates_events_and_stamps() {
    let (emulator, receiver) = connected(&[]).await;
    let now = emulator
        .admin("clock", json!({"crm": "hubspot", "skew_ms": 3_600_000}))
        .await;
    emulator
        .admin("hubspot/edit", edit("1", json!({"city": "Later"})))
        .await;
    let event = receiver.expect(1).await.remove(0);
    let ahead = event["occurredAt"].as_i64().unwrap() - now["now_ms"].as_i64().unwrap();
    assert!((0..60_000).contains(&ahead), "{ahead}");
}

#[tokio::test]
async fn activities_have_generic_events_only_and_an_emails_subject_has_none() {
    let edit = |object: &str, fields: Value| json!({"object": object, "id": "1", "fields": fields});
    let (emulator, receiver) = connected(&["--webhook-shape", "both"]).await;
    let subject = json!({"hs_email_subject": "Offer"});
    emulator
        .admin("hubspot/edit", edit("emails", subject))
        .await;
    emulator
        .admin(
            "hubspot/edit",
            edit("calls", json!({"hs_call_title": "Offer"})),
        )
        .await;
    emulator
        .admin("hubspot/edit", edit("products", json!({"hs_sku": "S-1-B"})))
        .await;
    let events = receiver.expect(3).await;
    let mut kinds: Vec<String> = events
        .iter()
        .map(|e| {
            format!(
                "{} {}",
                e["subscriptionType"].as_str().unwrap(),
                e["propertyName"].as_str().unwrap()
            )
        })
        .collect();
    kinds.sort();
    assert_eq!(
        kinds,
        [
            "object.propertyChange hs_call_title",
            "object.propertyChange hs_sku",
            "product.propertyChange hs_sku",
        ]
    );
}
