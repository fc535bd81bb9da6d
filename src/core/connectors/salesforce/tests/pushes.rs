use super::*;
use crate::connectors::CHANGED;
use crate::http::Method;
use crate::model::ErrorClass;
use crate::testing::Random;

fn write(key: &str, id: Option<&str>, values: &[(&str, FieldType, Option<&str>)]) -> Write {
    Write {
        key: key.into(),
        record_id: id.map(str::to_owned),
        unique_value: None,
        unchanged_since: None,
        values: values
            .iter()
            .map(|(n, t, v)| ((*n).to_owned(), *t, v.map(str::to_owned)))
            .collect(),
    }
}

const ID: &str = "003900K0001pPuOACU";

fn two() -> Vec<Write> {
    vec![
        write("k1", Some(ID), &[]),
        write("k2", Some("003900K0001pPuPACU"), &[]),
    ]
}

fn send(kind: WriteKind, unique: Option<&str>, writes: &[Write]) -> HttpRequest {
    salesforce().push_request(&ServerConfig::default(), "Contact", kind, unique, writes)
}

fn pushed(kind: WriteKind, writes: &[Write], status: u16, text: &str) -> Vec<WriteResult> {
    salesforce().pushed(kind, None, writes, &answer(status, text))
}

#[test]
fn values_are_sent_in_the_json_type_of_their_field() {
    let writes = [write(
        "k",
        Some(ID),
        &[
            ("Amount", FieldType::Number, Some("1234567890123456.78")),
            ("Odd", FieldType::Number, Some("+.5")),
            ("Active__c", FieldType::Boolean, Some("true")),
            ("Vip__c", FieldType::Boolean, None),
            ("Phone", FieldType::Text, None),
            ("Name", FieldType::Text, Some("a\"b\n\u{1}")),
            ("Langs__c", FieldType::MultiChoice, Some("de;en")),
            ("Opens__c", FieldType::Time, Some("10:30:00.000")),
        ],
    )];
    let request = send(WriteKind::Update, None, &writes);
    assert_eq!(request.method, Method::Patch);
    assert_eq!(request.target, "/services/data/v62.0/composite/sobjects");
    let text = String::from_utf8(request.body).unwrap();
    assert_eq!(
        text,
        format!(
            concat!(
                r#"{{"allOrNone":false,"records":[{{"attributes":{{"type":"Contact"}},"id":"{}","#,
                r#""Amount":1234567890123456.78,"Odd":"+.5","Active__c":true,"Vip__c":false,"Phone":null,"#,
                r#""Name":"a\"b\n\u0001","Langs__c":"de;en","Opens__c":"10:30:00.000Z"}}]}}"#
            ),
            ID
        )
    );
    serde_json::from_str::<serde_json::Value>(&text).unwrap();
}

#[test]
fn creates_go_by_external_id_with_attributes_first_and_no_id() {
    let mut create = write(
        "k",
        None,
        &[("LastName", FieldType::Text, Some("Lovelace"))],
    );
    create.unique_value = Some("u-1".into());
    let writes = [create];
    let upsert = send(WriteKind::Create, Some(OUR_UNIQUE), &writes);
    assert_eq!(upsert.method, Method::Patch);
    assert_eq!(
        upsert.target,
        "/services/data/v62.0/composite/sobjects/Contact/pg_crm_sync_id__c"
    );
    let text = String::from_utf8(upsert.body).unwrap();
    assert!(text.contains(
        r#"[{"attributes":{"type":"Contact"},"pg_crm_sync_id__c":"u-1","LastName":"Lovelace"}]"#
    ));
    let plain = send(WriteKind::Create, None, &writes);
    assert_eq!(plain.method, Method::Post);
    let delete = send(WriteKind::Delete, None, &two());
    assert_eq!(delete.method, Method::Delete);
    assert!(delete.target.ends_with(
        "/composite/sobjects?ids=003900K0001pPuOACU,003900K0001pPuPACU&allOrNone=false"
    ));
}

#[test]
fn each_row_has_its_own_verdict() {
    let writes: Vec<Write> = (0..5).map(|i| write(&i.to_string(), None, &[])).collect();
    let text = r#"[
     {"id":"003900K0001pPuO","success":true,"errors":[]},
     {"success":false,"errors":[{"statusCode":"INVALID_CROSS_REFERENCE_KEY","message":"invalid cross reference id","fields":["AccountId"]}]},
     {"success":false,"errors":[{"statusCode":"DUPLICATE_VALUE","message":"duplicate value found: Ext__c duplicates value on record with id: 003900K0001pPuP","fields":[]}]},
     {"success":false,"errors":[{"statusCode":"DUPLICATES_DETECTED","message":"Use one of these records?","duplicateResut":{"allowSave":false,"matchResults":[{"matchRecords":[{"matchConfidence":100.0,"record":{"attributes":{},"Id":"003900K0001pPuQACU"}}]}]}}]},
     {"success":false,"errors":[{"statusCode":"UNABLE_TO_LOCK_ROW","message":"unable to obtain exclusive access"}]}]"#;
    let results = pushed(WriteKind::Create, &writes, 200, text);
    assert!(matches!(&results[0], WriteResult::Done { id, created: true, .. } if id == ID));
    assert!(
        matches!(&results[1], WriteResult::Failed(e) if e.class == ErrorClass::FixData
        && e.fields == ["AccountId"])
    );
    assert!(matches!(&results[2], WriteResult::Exists { id, .. } if id == "003900K0001pPuPACU"));
    assert!(matches!(&results[3], WriteResult::Exists { id, .. } if id == "003900K0001pPuQACU"));
    assert!(
        matches!(&results[4], WriteResult::Failed(e) if e.class == ErrorClass::Retry
        && !e.maybe_applied)
    );
}

#[test]
fn upserts_tell_made_from_found() {
    let mut writes = two();
    for (i, w) in writes.iter_mut().enumerate() {
        w.unique_value = Some(i.to_string());
    }
    let text = r#"[{"id":"003900K0001pPuOACU","success":true,"errors":[],"created":true},{"id":"003900K0001pPuPACU","success":true,"errors":[],"created":false}]"#;
    let results = salesforce().pushed(
        WriteKind::Create,
        Some(OUR_UNIQUE),
        &writes,
        &answer(200, text),
    );
    assert!(matches!(
        &results[0],
        WriteResult::Done { created: true, .. }
    ));
    assert!(matches!(
        &results[1],
        WriteResult::Done { created: false, .. }
    ));
}

#[test]
fn deleting_what_is_deleted_is_done() {
    let text = r#"[{"success":false,"errors":[{"statusCode":"ENTITY_IS_DELETED","message":"entity is deleted"}]},{"success":false,"errors":[{"statusCode":"INSUFFICIENT_ACCESS_OR_READONLY","message":"m"}]}]"#;
    let results = pushed(WriteKind::Delete, &two(), 200, text);
    assert!(matches!(&results[0], WriteResult::Done { id, .. } if id == ID));
    assert!(matches!(&results[1], WriteResult::Failed(e) if e.class == ErrorClass::FixPermission));
    let results = pushed(WriteKind::Update, &two(), 200, text);
    assert!(matches!(&results[0], WriteResult::Failed(e) if e.class == ErrorClass::Gone));
}

#[test]
fn an_id_that_leads_nowhere_is_a_record_gone_and_not_a_bad_reference() {
    let class = |kind, fields: &str| {
        let text = format!(
            r#"[{{"success":false,"errors":[{{"statusCode":"INVALID_CROSS_REFERENCE_KEY","message":"invalid cross reference id","fields":[{fields}]}}]}}]"#
        );
        match &pushed(kind, &two()[..1], 200, &text)[0] {
            WriteResult::Failed(e) => e.class,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(class(WriteKind::Update, ""), ErrorClass::Gone);
    assert_eq!(class(WriteKind::Delete, ""), ErrorClass::Gone);
    let reference = class(WriteKind::Update, r#""AccountId""#);
    assert_eq!(reference, ErrorClass::FixData);
    assert_eq!(class(WriteKind::Create, ""), ErrorClass::FixData);
}

#[test]
fn a_lost_cut_or_short_answer_leaves_every_write_unknown() {
    for (status, text) in [
        (200, ""),
        (200, "<html>"),
        (200, r#"[{"id":"003900K0001pPuOACU","success":true}"#),
        (200, r#"[{"id":"003900K0001pPuOACU","success":true}]"#),
        (200, r#"[{"success":true},{"success":false}]"#),
        (500, r#"[{"errorCode":"UNKNOWN_EXCEPTION","message":"m"}]"#),
        (502, "<html>"),
        (504, ""),
    ] {
        let writes: Vec<Write> = two()
            .into_iter()
            .map(|w| Write {
                record_id: None,
                ..w
            })
            .collect();
        let results = pushed(WriteKind::Create, &writes, status, text);
        assert_eq!(results.len(), 2);
        for r in results {
            assert!(
                matches!(&r, WriteResult::Unknown(e) if e.maybe_applied),
                "{status} {text} {r:?}"
            );
        }
    }
}

#[test]
fn a_refused_call_is_split_only_if_halves_may_pass() {
    let class = |writes: &[Write], status, code: &str| {
        let text = format!(r#"[{{"errorCode":"{code}","message":"m"}}]"#);
        match &pushed(WriteKind::Update, writes, status, &text)[0] {
            WriteResult::Failed(e) => e.class,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(class(&two(), 400, "JSON_PARSER_ERROR"), ErrorClass::Split);
    assert_eq!(
        class(&two()[..1], 400, "JSON_PARSER_ERROR"),
        ErrorClass::FixData
    );
    assert_eq!(class(&two(), 401, "INVALID_SESSION_ID"), ErrorClass::Reauth);
    assert_eq!(
        class(&two(), 403, "REQUEST_LIMIT_EXCEEDED"),
        ErrorClass::Wait
    );
    assert_eq!(class(&two(), 503, "SERVER_UNAVAILABLE"), ErrorClass::Retry);
}

#[test]
fn there_is_one_result_per_write_whatever_the_answer() {
    let seed = 0x5eed_0007;
    let mut random = Random::new(seed);
    let good = r#"[{"id":"003900K0001pPuOACU","success":true,"errors":[]},{"success":false,"errors":[{"statusCode":"DUPLICATE_VALUE","message":"with id: 003900K0001pPuP"}]}]"#;
    for round in 0..3_000 {
        let damaged = HttpResponse {
            status: [200, 201, 204, 400, 401, 403, 500, 503][random.below(8)],
            headers: Vec::new(),
            body: random.damage(good.as_bytes()),
        };
        for kind in [WriteKind::Create, WriteKind::Update, WriteKind::Delete] {
            let results = salesforce().pushed(kind, None, &two(), &damaged);
            assert_eq!(results.len(), 2, "seed {seed:#x} round {round}");
        }
    }
}

#[test]
fn an_update_on_condition_goes_alone_and_tells_a_changed_record_from_a_refusal() {
    // 26 April 2024, 18:38:05.900 UTC: HTTP knows whole seconds.
    let since = 1_714_156_685_900;
    let mut one = write("k", Some(ID), &[("Phone", FieldType::Text, Some("1"))]);
    one.unchanged_since = Some(since);
    let request = send(WriteKind::Update, None, std::slice::from_ref(&one));
    assert_eq!(request.method, Method::Patch);
    let target = format!("/services/data/v62.0/sobjects/Contact/{ID}");
    assert_eq!(request.target, target);
    let condition = request
        .headers
        .iter()
        .find(|(n, _)| n == "if-unmodified-since");
    assert_eq!(condition.unwrap().1, "Fri, 26 Apr 2024 18:38:05 GMT");
    assert_eq!(request.body, br#"{"Phone":"1"}"#);

    let answered = |status: u16, text: &str| {
        let writes = std::slice::from_ref(&one);
        let mut results = pushed(WriteKind::Update, writes, status, text);
        assert_eq!(results.len(), 1);
        results.remove(0)
    };
    assert!(matches!(answered(204, ""), WriteResult::Done { id, created: false, .. } if id == ID));
    for body in [
        "",
        "[{\"message\":\"m\",\"errorCode\":\"PRECONDITION_FAILED\"}]",
    ] {
        assert!(matches!(answered(412, body), WriteResult::Failed(e)
            if e.class == ErrorClass::Retry && e.code == CHANGED && !e.maybe_applied));
    }
    let gone = r#"[{"errorCode":"ENTITY_IS_DELETED","message":"entity is deleted"}]"#;
    assert!(matches!(answered(404, gone), WriteResult::Failed(e) if e.class == ErrorClass::Gone));
    let refused = r#"[{"errorCode":"STRING_TOO_LONG","message":"m","fields":["Phone"]}]"#;
    assert!(matches!(answered(400, refused), WriteResult::Failed(e)
        if e.class == ErrorClass::FixData && e.fields == ["Phone"]));
    assert!(matches!(answered(500, "oops"), WriteResult::Unknown(_)));
    // Something else answers: nobody knows what became of it.
    assert!(matches!(answered(200, "<html>"), WriteResult::Unknown(_)));

    // Among others no condition could be told apart: they go as ever.
    let both = [one.clone(), write("k2", Some(ID), &[])];
    let request = send(WriteKind::Update, None, &both);
    assert!(request.target.ends_with("/composite/sobjects"));
    let request = send(WriteKind::Delete, None, std::slice::from_ref(&one));
    assert!(request.target.contains("/composite/sobjects?ids="));
}
