//! Change events: what is in them, read back from the bus by a decoder of this test's own.

use super::{call, org, send};
use crate::admin::{Actor, Crm};
use crate::salesforce::State;
use crate::salesforce::cdc::bus::Event;
use crate::salesforce::schema::Obj;
use serde_json::{Value, json};

/// The header of an event, decoded by hand.
#[derive(Debug)]
struct Header {
    entity: String,
    ids: Vec<String>,
    kind: i64,
    origin: String,
    key: String,
    sequence: i64,
    nulled: Vec<String>,
    diffs: Vec<String>,
    changed: Vec<String>,
}

struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn long(&mut self) -> i64 {
        let (mut value, mut shift) = (0u64, 0);
        loop {
            let byte = self.0[0];
            self.0 = &self.0[1..];
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return (value >> 1) as i64 ^ -((value & 1) as i64);
            }
        }
    }

    fn text(&mut self) -> String {
        let length = usize::try_from(self.long()).unwrap();
        let (text, rest) = self.0.split_at(length);
        self.0 = rest;
        String::from_utf8(text.to_vec()).unwrap()
    }

    fn list(&mut self) -> Vec<String> {
        let mut out = Vec::new();
        loop {
            let count = self.long();
            if count == 0 {
                return out;
            }
            out.extend((0..count).map(|_| self.text()));
        }
    }
}

fn header(event: &Event) -> Header {
    let mut bytes = Bytes(&event.payload);
    let (entity, ids, kind) = (bytes.text(), bytes.list(), bytes.long());
    let (origin, key, sequence) = (bytes.text(), bytes.text(), bytes.long());
    let (_at, _number, user) = (bytes.long(), bytes.long(), bytes.text());
    assert!(user.starts_with("005"));
    Header {
        entity,
        ids,
        kind,
        origin,
        key,
        sequence,
        nulled: bytes.list(),
        diffs: bytes.list(),
        changed: bytes.list(),
    }
}

fn since(org: &State, start: u64) -> Vec<Header> {
    org.bus
        .read(start, 1_000, |_| true)
        .events
        .iter()
        .map(header)
        .collect()
}

const CREATE: i64 = 0;
const UPDATE: i64 = 1;
const DELETE: i64 = 2;

#[test]
fn a_transaction_shares_its_key_and_counts_its_events() {
    let org = org(50);
    let start = org.bus.latest();
    let lead = json!({"id": org.base_id("Lead", 1).unwrap()});
    org.convert_lead(lead.as_object().unwrap()).unwrap();
    let events = since(&org, start);
    let seen: Vec<(&str, i64, i64)> = events
        .iter()
        .map(|event| (event.entity.as_str(), event.kind, event.sequence))
        .collect();
    assert_eq!(
        seen,
        [
            ("Account", CREATE, 1),
            ("Contact", CREATE, 2),
            ("Opportunity", CREATE, 3),
            ("Lead", UPDATE, 4)
        ]
    );
    assert!(events.iter().all(|event| event.key == events[0].key));
    assert!(events[0].origin.contains("SfdcInternalAPI"));
    let before = org.bus.latest();
    assert!(
        org.convert_lead(lead.as_object().unwrap()).is_err(),
        "a lead converts once"
    );
    assert!(
        since(&org, before).is_empty(),
        "what failed raises no event"
    );
}

#[test]
fn equal_changes_of_one_transaction_share_an_event() {
    let org = org(50);
    let start = org.bus.latest();
    let rows: Vec<Value> = (1..=3).map(|n| json!({"attributes": {"type": "Contact"}, "id": org.base_id("Contact", n).unwrap(), "Fax": "1"})).collect();
    send(
        &org,
        "PATCH",
        "composite/sobjects",
        json!({"records": rows}),
    );
    let events = since(&org, start);
    assert_eq!((events.len(), events[0].ids.len()), (1, 3));
    let off = json!({"merge_record_ids": false});
    org.change_settings(off.as_object().unwrap()).unwrap();
    let before = org.bus.latest();
    send(
        &org,
        "PATCH",
        "composite/sobjects",
        json!({"records": rows}),
    );
    assert_eq!(since(&org, before).len(), 3);
}

#[test]
fn a_write_that_changes_nothing_names_only_the_stamp_or_raises_nothing() {
    let org = org(50);
    let path = format!("sobjects/Contact/{}", org.base_id("Contact", 5).unwrap());
    send(&org, "PATCH", &path, json!({"Fax": "7"}));
    let start = org.bus.latest();
    send(&org, "PATCH", &path, json!({"Fax": "7"}));
    let events = since(&org, start);
    let stamp = org
        .codecs()
        .of(Obj::Contact)
        .place(super::super::schema::at::LAST_MODIFIED)
        .unwrap()
        .0;
    let only = super::super::cdc::bitmap::encode(&[stamp]).unwrap();
    assert_eq!((events.len(), &events[0].changed), (1, &vec![only]));
    let off = json!({"touch_on_noop": false});
    org.change_settings(off.as_object().unwrap()).unwrap();
    let start = org.bus.latest();
    assert_eq!(send(&org, "PATCH", &path, json!({"Fax": "7"})).0, 204);
    assert!(since(&org, start).is_empty());
}

#[test]
fn a_merge_deletes_the_loser_moves_its_children_and_points_to_the_winner() {
    let org = org(50);
    let (winner, loser) = (
        org.base_id("Account", 1).unwrap(),
        org.base_id("Account", 2).unwrap(),
    );
    let start = org.bus.latest();
    org.merge("Account", &winner, &loser, &Actor::default())
        .unwrap();
    let events = since(&org, start);
    assert!(
        events
            .iter()
            .any(|event| event.kind == DELETE && event.ids == [loser.clone()])
    );
    let moved = events
        .iter()
        .filter(|event| event.entity == "Contact" && event.kind == UPDATE)
        .map(|event| event.ids.len())
        .sum::<usize>();
    assert_eq!(moved, 10, "ten people worked there");
    assert_eq!(
        org.record("Account", &loser).unwrap()["MasterRecordId"],
        json!(winner)
    );
    let (status, answer) = send(
        &org,
        "GET",
        &format!("sobjects/Account/{loser}"),
        Value::Null,
    );
    assert_eq!(
        (status, &answer[0]["errorCode"]),
        (404, &json!("ENTITY_IS_DELETED"))
    );
}

#[test]
fn long_texts_come_as_diffs_and_too_large_changes_as_gaps() {
    let org = org(50);
    let path = format!("sobjects/Contact/{}", org.base_id("Contact", 3).unwrap());
    let text: Vec<String> = (0..60)
        .map(|n| format!("line {n} of the description"))
        .collect();
    send(
        &org,
        "PATCH",
        &path,
        json!({"Description": text.join("\n")}),
    );
    let start = org.bus.latest();
    send(
        &org,
        "PATCH",
        &path,
        json!({"Description": text.join("\n").replace("line 7 ", "row 7 "), "Fax": null}),
    );
    let event = &since(&org, start)[0];
    assert_eq!(event.diffs.len(), 1);
    assert!(
        event.nulled.is_empty(),
        "Fax was empty before: it did not change"
    );
    let start = org.bus.latest();
    let gap = json!({"object": "Contact", "changeType": "GAP_OVERFLOW"});
    org.gap(gap.as_object().unwrap()).unwrap();
    let event = &since(&org, start)[0];
    assert_eq!(
        (event.kind, event.ids[0].as_str(), event.origin.as_str()),
        (8, "000000000000000AAA", "")
    );
    assert!(
        org.gap(
            json!({"object": "Contact", "changeType": "UPDATE"})
                .as_object()
                .unwrap()
        )
        .is_err()
    );
}

#[test]
fn the_callers_mark_is_in_the_origin_and_only_when_sent() {
    let org = org(50);
    let path = format!("sobjects/Contact/{}", org.base_id("Contact", 3).unwrap());
    let start = org.bus.latest();
    let options = [(
        "sforce-call-options",
        "client=pg_crm_sync_x; defaultNamespace=y",
    )];
    call(&org, "PATCH", &path, &options, &json!({"Fax": "1"}));
    send(&org, "PATCH", &path, json!({"Fax": "2"}));
    let origins: Vec<String> = since(&org, start)
        .into_iter()
        .map(|event| event.origin)
        .collect();
    assert_eq!(
        origins,
        [
            "com/salesforce/api/rest/62.0;client=pg_crm_sync_x",
            "com/salesforce/api/rest/62.0"
        ]
    );
}

#[test]
fn lost_and_doubled_events_are_really_lost_and_doubled() {
    use crate::fault::{EventFault, Stream};
    let org = org(50);
    let path = format!("sobjects/Contact/{}", org.base_id("Contact", 3).unwrap());
    let start = org.bus.latest();
    let fault = EventFault {
        lose: 1,
        duplicate: 1,
        ..EventFault::default()
    };
    org.shared.faults.set_events(Stream::Cdc, fault);
    for fax in ["1", "2", "3"] {
        send(&org, "PATCH", &path, json!({ "Fax": fax }));
    }
    let events = org.bus.read(start, 10, |_| true).events;
    assert_eq!(events.len(), 3, "the first is lost, the second comes twice");
    assert_eq!(events[0].payload, events[1].payload);
    assert!(events[0].replay < events[1].replay && events[1].payload != events[2].payload);
}

#[test]
fn an_event_can_be_shown_in_plain_json() {
    let org = org(20);
    let start = org.bus.latest();
    let id = org.base_id("Contact", 1).unwrap();
    let path = format!("sobjects/Contact/{id}");
    let body = json!({"Phone": "+44 1", "MailingCity": "Leeds", "FirstName": null, "Birthdate": "1990-02-03"});
    assert_eq!(send(&org, "PATCH", &path, body).0, 204);
    let event = org.bus.read(start, 10, |_| true).events.remove(0);
    let codec = org.codecs().by_id(&event.schema_id).unwrap();
    let object = org.schema().object(event.obj);
    let plain = crate::salesforce::cdc::plain::render(object, codec, &event.payload).unwrap();
    println!("{plain:#}");
    assert_eq!(plain["Phone"], "+44 1");
    assert_eq!(plain["MailingAddress"]["City"], "Leeds");
    assert_eq!(plain["Name"]["FirstName"], Value::Null);
    assert_eq!(plain["ChangeEventHeader"]["changeType"], "UPDATE");
    let names = plain["ChangeEventHeader"]["changedFields"].to_string();
    assert!(
        names.contains("MailingAddress.City") && names.contains("Name.FirstName"),
        "{names}"
    );
}
