use super::super::webhook::{Accept, decode, signature_v1, signature_v2, signature_v3, verify};
use super::*;
use crate::model::ChangeKind;
use crate::testing::Random;

const SECRET: &str = "yyyyyyyy-yyyy-yyyy-yyyy-yyyyyyyyyyyy";
const URI: &str = "https://www.example.com/webhook_uri";
const V1_BODY: &str = r#"[{"eventId":1,"subscriptionId":12345,"portalId":62515,"occurredAt":1564113600000,"subscriptionType":"contact.creation","attemptNumber":0,"objectId":123,"changeSource":"CRM","changeFlag":"NEW","appId":54321}]"#;
const V1: &str = "232db2615f3d666fe21a8ec971ac7b5402d33b9a925784df3ca654d05f4817de";
const V3_BODY: &str = "{'example_field':'example_value'}";
const V3_AT: i64 = 1_693_657_560_000;
const V3: &str = "K36dawei4A+QBNolUOqo7s91KQDWQ5MXZ/QufNYuk/Y=";

fn secret() -> Secret {
    Secret::new(SECRET)
}

fn delivery(uri: &str, body: &str, headers: &[(&str, &str)]) -> Delivery {
    Delivery {
        method: "POST".into(),
        uri: uri.into(),
        headers: headers
            .iter()
            .map(|(n, v)| ((*n).into(), (*v).into()))
            .collect(),
        body: body.into(),
    }
}

fn v3(uri: &str, at: &str, signature: &str) -> Delivery {
    let headers = [
        ("x-hubspot-signature-v3", signature),
        ("x-hubspot-request-timestamp", at),
    ];
    delivery(uri, V3_BODY, &headers)
}

#[test]
fn the_published_signatures_of_all_versions_are_reproduced() {
    let s = secret();
    assert_eq!(signature_v1(&s, V1_BODY.as_bytes()), V1);
    assert_eq!(
        signature_v2(&s, "GET", URI, b""),
        "eee2dddcc73c94d699f5e395f4b9d454a069a6855fbfa152e91e88823087200e"
    );
    let v2_body = br#"{"example_field":"example_value"}"#;
    assert_eq!(
        signature_v2(&s, "POST", URI, v2_body),
        "9569219f8ba981ffa6f6f16aa0f48637d35d728c7e4d93d0d52efaa512af7900"
    );
    let v3 = |at| signature_v3(&s, "POST", URI, V3_BODY.as_bytes(), at);
    assert_eq!(v3("1693657560000"), V3);
    assert_eq!(
        v3("1700000300000"),
        "RnbPH7+UMKVkbV32P8bz450N4M56aPmcru1+D3kSDtw="
    );
}

#[test]
fn a_v3_signature_is_good_for_five_minutes_and_not_before_its_time() {
    let good = v3(URI, "1693657560000", V3);
    let at = |now| hubspot().verify(&good, &secret(), now);
    assert_eq!(at(V3_AT), Ok(()));
    assert_eq!(at(V3_AT + 300_000), Ok(()));
    assert_eq!(at(V3_AT + 300_001), Err(SignatureError::Stale));
    assert_eq!(at(V3_AT - 60_000), Ok(()));
    assert_eq!(at(V3_AT - 60_001), Err(SignatureError::Stale));
    assert_eq!(at(i64::MAX), Err(SignatureError::Stale));
    assert_eq!(at(i64::MIN), Err(SignatureError::Stale));
}

#[test]
fn a_changed_byte_secret_or_timestamp_is_a_mismatch() {
    let check = |d: &Delivery, s: &Secret| hubspot().verify(d, s, V3_AT);
    let mut changed = v3(URI, "1693657560000", V3);
    changed.body[0] ^= 1;
    assert_eq!(check(&changed, &secret()), Err(SignatureError::Mismatch));
    let later = v3(URI, "1693657560001", V3);
    assert_eq!(check(&later, &secret()), Err(SignatureError::Mismatch));
    let good = v3(URI, "1693657560000", V3);
    let other = Secret::new("other");
    assert_eq!(check(&good, &other), Err(SignatureError::Mismatch));
    let float = v3(URI, "1693657560000.0", V3);
    assert_eq!(check(&float, &secret()), Err(SignatureError::BadTimestamp));
}

#[test]
fn escapes_of_the_uri_are_decoded_before_hashing_but_the_raw_form_passes_too() {
    let raw = "https://example.com/hook?x=a%3Ab%2Fc%20d%2c&y=%41";
    let decoded = "https://example.com/hook?x=a:b/c%20d,&y=%41";
    for signed in [raw, decoded] {
        let sig = signature_v3(
            &secret(),
            "POST",
            signed,
            V3_BODY.as_bytes(),
            "1693657560000",
        );
        let d = v3(raw, "1693657560000", &sig);
        assert_eq!(hubspot().verify(&d, &secret(), V3_AT), Ok(()), "{signed}");
    }
}

#[test]
fn old_signatures_are_refused_unless_asked_for() {
    let headers = [
        ("x-hubspot-signature", V1),
        ("x-hubspot-signature-version", "v1"),
    ];
    let d = delivery(URI, V1_BODY, &headers);
    let check = |accept| verify(&d, &secret(), V3_AT, accept);
    assert_eq!(check(Accept::V3), Err(SignatureError::Missing));
    assert_eq!(check(Accept::Old), Ok(()));
    // A bad v3 signature is not excused by a good old one.
    let mut both = d.clone();
    both.headers
        .push(("x-hubspot-signature-v3".into(), "AAAA".into()));
    both.headers
        .push(("x-hubspot-request-timestamp".into(), V3_AT.to_string()));
    let verdict = verify(&both, &secret(), V3_AT, Accept::Old);
    assert_eq!(verdict, Err(SignatureError::Mismatch));
}

const GENERIC: &str = r#"[{"eventId":1,"subscriptionId":12345,"portalId":62515,"appId":54321,"occurredAt":1564113600000,"subscriptionType":"object.propertyChange","attemptNumber":0,"objectId":1246978,"objectTypeId":"0-1","propertyName":"lifecyclestage","propertyValue":"subscriber","changeSource":"CRM_UI","sourceId":"userId:9339234","isSensitive":false}]"#;

#[test]
fn legacy_and_generic_events_name_the_object_alike() {
    let generic = decode(GENERIC.as_bytes()).unwrap();
    assert_eq!(generic.len(), 1);
    let change = &generic[0];
    assert_eq!(change.object, "0-1");
    assert_eq!(change.record_id, "1246978");
    assert_eq!(change.kind, ChangeKind::Update);
    assert_eq!(
        change.fields,
        [("lifecyclestage".to_owned(), Some("subscriber".to_owned()))]
    );
    assert_eq!(change.occurred_at, 1_564_113_600_000);
    assert_eq!(change.actor, "userId:9339234");
    assert_eq!(change.mark, "CRM_UI/userId:9339234");
    assert!(change.by_others);
    let legacy = decode(V1_BODY.as_bytes()).unwrap();
    assert_eq!(legacy[0].object, "0-1");
    assert_eq!(legacy[0].kind, ChangeKind::Create);
    assert!(!legacy[0].by_others, "CRM names nobody");
}

#[test]
fn a_redelivery_has_the_same_identity_and_another_change_has_not() {
    let identity = |text: &str| decode(text.as_bytes()).unwrap()[0].identity.clone();
    let first = identity(GENERIC);
    let again = GENERIC
        .replace("\"attemptNumber\":0", "\"attemptNumber\":3")
        .replace("\"eventId\":1", "\"eventId\":77");
    assert_eq!(identity(&again), first);
    for (from, to) in [
        ("1564113600000", "1564113600001"),
        ("\"subscriber\"", "\"lead\""),
        ("1246978", "1246979"),
        ("\"lifecyclestage\"", "\"phone\""),
        ("62515", "62516"),
        ("userId:9339234", "userId:1"),
    ] {
        assert_ne!(identity(&GENERIC.replace(from, to)), first, "{from}");
    }
}

#[test]
fn merges_name_the_survivor_and_all_that_ceased() {
    let event = |extra: &str| {
        let text = format!(
            r#"[{{"portalId":1,"occurredAt":5,"subscriptionType":"contact.merge","objectId":10,"primaryObjectId":10,"mergedObjectIds":[20,"30"]{extra}}}]"#
        );
        decode(text.as_bytes()).unwrap().remove(0)
    };
    let kept = event("");
    assert_eq!(kept.record_id, "10");
    assert_eq!(
        kept.kind,
        ChangeKind::Merge {
            into: "10".into(),
            losers: vec!["20".into(), "30".into()]
        }
    );
    let made = event(r#","newObjectId":40"#);
    assert_eq!(made.record_id, "40");
    assert_eq!(
        made.kind,
        ChangeKind::Merge {
            into: "40".into(),
            losers: vec!["20".into(), "30".into(), "10".into()]
        }
    );
}

#[test]
fn associations_restores_and_privacy_deletions_are_told_apart() {
    let text = r#"[
      {"portalId":1,"occurredAt":5,"subscriptionType":"contact.associationChange","associationType":"COMPANY_TO_CONTACT","fromObjectId":7,"toObjectId":"8","associationRemoved":true},
      {"portalId":1,"occurredAt":5,"subscriptionType":"object.restore","objectTypeId":"2-77","objectId":9},
      {"portalId":1,"occurredAt":5,"subscriptionType":"contact.privacyDeletion","objectId":9},
      {"portalId":1,"occurredAt":5,"subscriptionType":"deal.deletion","objectId":3000000000},
      {"portalId":1,"occurredAt":5,"subscriptionType":"deal.somethingNew","objectId":3}]"#;
    let mut changes = decode(text.as_bytes()).unwrap();
    let read = changes.remove(1);
    assert_eq!(
        (read.object.as_str(), read.kind),
        ("0-2/0-1", ChangeKind::Reread)
    );
    assert_eq!(changes[0].object, "0-2");
    assert_eq!(changes[0].record_id, "7");
    assert_eq!(
        changes[0].kind,
        ChangeKind::Association {
            to: "8".into(),
            removed: true,
            association_type: "COMPANY_TO_CONTACT".into()
        }
    );
    assert_eq!(changes[1].kind, ChangeKind::Restore);
    assert_eq!(changes[1].object, "2-77");
    assert_eq!(changes[2].kind, ChangeKind::PrivacyDelete);
    assert_eq!(changes[3].kind, ChangeKind::Delete);
    assert_eq!(changes[3].record_id, "3000000000");
    assert_eq!(changes[4].kind, ChangeKind::Reread);
}

#[test]
fn masked_values_are_read_instead_of_stored() {
    let masked = GENERIC.replace("\"subscriber\"", "\"REDACTED\"");
    let change = decode(masked.as_bytes()).unwrap().remove(0);
    assert!(change.fields.is_empty());
    assert_eq!(change.reread, ["lifecyclestage"]);
    let cleared = GENERIC.replace("\"subscriber\"", "\"\"");
    let change = decode(cleared.as_bytes()).unwrap().remove(0);
    assert_eq!(change.fields, [("lifecyclestage".to_owned(), None)]);
}

#[test]
fn a_delivery_that_is_not_hubspots_is_an_error() {
    let one = GENERIC.trim_start_matches('[').trim_end_matches(']');
    let many = format!("[{}]", vec![one; 101].join(","));
    for bad in ["", "{}", "null", "[1]", "[{}]", "<html>", many.as_str()] {
        assert!(decode(bad.as_bytes()).is_err(), "{bad:.20}");
    }
    let full = format!("[{}]", vec![one; 100].join(","));
    assert_eq!(decode(full.as_bytes()).unwrap().len(), 100);
}

#[test]
fn damaged_deliveries_never_panic() {
    let seed = 0x5eed_0002;
    let mut random = Random::new(seed);
    for _ in 0..5_000 {
        let bytes = random.damage(GENERIC.as_bytes());
        let mut d = v3(&random.text(60), &random.text(20), &random.text(50));
        let _ = decode(&bytes);
        d.body = bytes;
        assert!(
            hubspot().verify(&d, &secret(), V3_AT).is_err(),
            "seed {seed:#x}"
        );
    }
}
