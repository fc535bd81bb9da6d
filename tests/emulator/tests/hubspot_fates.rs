//! What becomes of HubSpot records: merged, forgotten, linked and unlinked.

mod common;

use common::{Emulator, edit, ids};
use serde_json::json;

const CONTACTS: &str = "/crm/v3/objects/contacts";

#[tokio::test]
async fn a_merge_makes_a_new_record_that_both_old_ids_lead_to() {
    let emulator = Emulator::start(&[]);
    emulator
        .admin(
            "hubspot/edit",
            edit("3", json!({"fax": "from the loser", "city": "Loser"})),
        )
        .await;
    let loser_email =
        emulator.get(&format!("{CONTACTS}/3")).await.body["properties"]["email"].clone();
    let body = json!({"primaryObjectId": "2", "objectIdToMerge": "3"});
    let merged = emulator.post(&format!("{CONTACTS}/merge"), body).await;
    assert_eq!(merged.status, 200, "{}", merged.body);
    let id = merged.body["id"].clone();
    assert!(id != "2" && id != "3");
    for old in ["2", "3"] {
        let path = format!("{CONTACTS}/{old}?properties=fax,city,hs_merged_object_ids");
        let read = emulator.get(&path).await.body;
        assert_eq!(read["id"], id);
        assert_eq!(read["properties"]["fax"], "from the loser");
        assert_ne!(read["properties"]["city"], "Loser");
        assert_eq!(read["properties"]["hs_merged_object_ids"], "2;3");
        let body = json!({"properties": {"zip": format!("via {old}")}});
        let patched = emulator
            .call("PATCH", &format!("{CONTACTS}/{old}"), body)
            .await
            .body;
        assert_eq!(patched["id"], id, "writes to merged ids reach the survivor");
    }
    let list = emulator.get(&format!("{CONTACTS}?limit=100")).await.body;
    assert!(!ids(&list).contains(&"2".to_owned()));
    let body = json!({"inputs": [{"id": loser_email}], "idProperty": "email"});
    let read = emulator.post(&format!("{CONTACTS}/batch/read"), body).await;
    assert_eq!(read.status, 207, "the loser's address is free again");
}

#[tokio::test]
async fn what_privacy_law_deletes_is_gone_for_good() {
    let emulator = Emulator::start(&[]);
    let email = emulator.get(&format!("{CONTACTS}/12")).await.body["properties"]["email"].clone();
    let body = json!({"objectId": email, "idProperty": "email"});
    let deleted = emulator
        .post(&format!("{CONTACTS}/gdpr-delete"), body)
        .await;
    assert_eq!(deleted.status, 204);
    for path in [
        format!("{CONTACTS}/12"),
        format!("{CONTACTS}/12?archived=true"),
    ] {
        assert_eq!(emulator.get(&path).await.status, 404, "{path}");
    }
    let archived = emulator
        .get(&format!("{CONTACTS}?archived=true"))
        .await
        .body;
    assert!(ids(&archived).is_empty());
    let answer = emulator.post(
        "/_admin/hubspot/restore",
        json!({"object": "contacts", "id": "12"}),
    );
    assert_eq!(answer.await.status, 404);
    let again = emulator
        .post(CONTACTS, json!({"properties": {"email": email}}))
        .await;
    assert_eq!(again.status, 201, "the address may be used anew");
}

#[tokio::test]
async fn links_have_two_ends_one_primary_and_their_own_batches() {
    let emulator = Emulator::start(&[]);
    let base = "/crm/v4/associations/contacts/companies";
    let primary = json!({"inputs": [{"from": {"id": "11"}, "to": {"id": "4"},
        "types": [{"associationCategory": "HUBSPOT_DEFINED", "associationTypeId": 1}]}]});
    let made = emulator
        .post(&format!("{base}/batch/create"), primary)
        .await;
    assert_eq!(made.status, 201, "{}", made.body);
    let read = json!({"inputs": [{"id": "11"}, {"id": "424242"}]});
    let answer = emulator.post(&format!("{base}/batch/read"), read).await;
    assert_eq!((answer.status, &answer.body["numErrors"]), (207, &json!(1)));
    let types = |company: u64| -> Vec<u64> {
        let links = answer.body["results"][0]["to"].as_array().unwrap();
        let link = links.iter().find(|l| l["toObjectId"] == company).unwrap();
        let types = link["associationTypes"].as_array().unwrap();
        types
            .iter()
            .map(|t| t["typeId"].as_u64().unwrap())
            .collect()
    };
    assert_eq!(
        (types(4), types(2)),
        (vec![1], vec![279]),
        "there is one primary company"
    );
    let both = json!({"inputs": [{"from": {"id": "11"}, "to": {"id": "5"}, "type": "contact_to_company"}]});
    let old = emulator
        .post("/crm/v3/associations/contacts/companies/batch/create", both)
        .await;
    assert_eq!(
        old.body["results"].as_array().unwrap().len(),
        2,
        "both directions"
    );
    let gone = json!({"inputs": [{"from": {"id": "11"}, "to": [{"id": "4"}, {"id": "5"}]}]});
    assert_eq!(
        emulator
            .post(&format!("{base}/batch/archive"), gone)
            .await
            .status,
        204
    );
    let rest = emulator
        .get("/crm/objects/2026-03/contacts/11/associations/companies")
        .await
        .body;
    assert_eq!(rest["results"].as_array().unwrap().len(), 1);
    assert_eq!(
        rest["results"][0]["toObjectId"], "2",
        "text on the dated paths"
    );
    let unknown = json!({"inputs": [{"from": {"id": "11"}, "to": {"id": "999"},
        "types": [{"associationCategory": "HUBSPOT_DEFINED", "associationTypeId": 279}]}]});
    assert_eq!(
        emulator
            .post(&format!("{base}/batch/create"), unknown)
            .await
            .status,
        404
    );
}
