//! Meetings, products and line items.

use super::{ids, org, send, soql};
use crate::admin::Crm;
use serde_json::{Value, json};

fn made(answer: (u16, Value)) -> String {
    assert_eq!(answer.0, 201, "{}", answer.1);
    answer.1["id"].as_str().unwrap().to_owned()
}

#[test]
fn start_end_and_length_of_a_meeting_follow_one_another() {
    let org = org(50);
    let new = json!({"Subject": "Review", "StartDateTime": "2027-01-31T09:00:00Z", "DurationInMinutes": 90});
    let id = made(send(&org, "POST", "sobjects/Event", new));
    let shown = |org| {
        let (_, row) = send(org, "GET", &format!("sobjects/Event/{id}"), Value::Null);
        ["ActivityDate", "EndDateTime", "DurationInMinutes"].map(|name| row[name].clone())
    };
    let end = "2027-01-31T10:30:00.000+0000";
    assert_eq!(shown(&org), [json!("2027-01-31"), json!(end), json!(90)]);
    let later = json!({"EndDateTime": "2027-01-31T11:00:00Z"});
    assert_eq!(
        send(&org, "PATCH", &format!("sobjects/Event/{id}"), later).0,
        204
    );
    let end = "2027-01-31T11:00:00.000+0000";
    assert_eq!(shown(&org), [json!("2027-01-31"), json!(end), json!(120)]);
    let (status, error) = send(&org, "POST", "sobjects/Event", json!({"Subject": "When?"}));
    assert_eq!(
        (status, &error[0]["errorCode"]),
        (400, &json!("REQUIRED_FIELD_MISSING"))
    );
}

#[test]
fn a_line_item_belongs_to_an_opportunity_for_good_and_is_worth_what_its_parts_are() {
    let org = org(50);
    let opportunity = org.base_id("Opportunity", 1).unwrap();
    let product = org.base_id("Product2", 1).unwrap();
    let (status, error) = send(
        &org,
        "POST",
        "sobjects/OpportunityLineItem",
        json!({"Product2Id": product, "Quantity": 2, "UnitPrice": 9.5}),
    );
    assert_eq!(
        (status, &error[0]["fields"]),
        (400, &json!(["OpportunityId"]))
    );
    let (status, error) = send(
        &org,
        "POST",
        "sobjects/OpportunityLineItem",
        json!({"OpportunityId": opportunity, "Quantity": 2, "UnitPrice": 9.5}),
    );
    assert_eq!(
        (status, &error[0]["errorCode"]),
        (400, &json!("FIELD_INTEGRITY_EXCEPTION"))
    );
    let new = json!({"OpportunityId": opportunity, "Product2Id": product, "Quantity": 2, "UnitPrice": 9.5});
    let id = made(send(&org, "POST", "sobjects/OpportunityLineItem", new));
    let path = format!("sobjects/OpportunityLineItem/{id}");
    assert_eq!(send(&org, "GET", &path, Value::Null).1["TotalPrice"], 19.0);
    let moved = json!({"OpportunityId": org.base_id("Opportunity", 2).unwrap()});
    assert_eq!(send(&org, "PATCH", &path, moved).0, 400);
}

#[test]
fn line_items_and_prices_have_no_change_events_and_are_found_by_their_stamp() {
    let org = org(50);
    let (_, all) = send(&org, "GET", "sobjects", Value::Null);
    let listed = |name: &str| {
        all["sobjects"]
            .as_array()
            .unwrap()
            .iter()
            .any(|o| o["name"] == name)
    };
    assert!(listed("EventChangeEvent") && listed("Product2ChangeEvent"));
    assert!(listed("OpportunityLineItem") && !listed("OpportunityLineItemChangeEvent"));
    assert!(!listed("PricebookEntryChangeEvent"));
    let start = org.bus.latest();
    let id = org.base_id("OpportunityLineItem", 1).unwrap();
    let changed = json!({"Quantity": 3});
    assert_eq!(
        send(
            &org,
            "PATCH",
            &format!("sobjects/OpportunityLineItem/{id}"),
            changed
        )
        .0,
        204
    );
    assert!(org.bus.read(start, 10, |_| true).events.is_empty());
    let since = "SELECT Id FROM OpportunityLineItem WHERE SystemModstamp > 2026-06-01T00:00:00Z";
    assert_eq!(ids(&org, since), [id]);
    let one = soql(
        &org,
        "SELECT Opportunity.Name FROM OpportunityLineItem LIMIT 1",
    );
    assert!(
        one["records"][0]["Opportunity"]["Name"].is_string(),
        "{one}"
    );
}
