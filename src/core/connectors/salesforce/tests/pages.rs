use super::*;
use crate::model::ErrorClass;
use crate::testing::Random;

const QUERY: &str = r#"{"totalSize":2000,"done":false,"nextRecordsUrl":"/services/data/v59.0/query/0r8xx5R2yF2gs3VASQ-2000","records":[
 {"attributes":{"type":"Account","url":"/x"},"Id":"001900K0001pPuOACU","SystemModstamp":"2026-05-01T07:25:37.000+0000","IsDeleted":false,"Name":"Acme \"é\" 株","AnnualRevenue":1234567890123456.78,"Active__c":true,"LastActivityDate":"2026-05-01","Score__c":1.0E7,"Langs__c":"de;en","Opens__c":"10:30:00.000Z","BillingAddress":{"city":"Leeds"},"Owner":{"attributes":{},"Name":"x"},"ParentId":null},
 {"attributes":{"type":"Account"},"Id":"001900K0001pPuP","SystemModstamp":"2026-05-01T07:25:38.000+0000","IsDeleted":true,"Name":null}]}"#;

#[test]
fn a_recorded_query_page_becomes_rows_in_the_order_asked() {
    let f = fields(&[
        ("AnnualRevenue", FieldType::Number),
        ("Name", FieldType::Text),
        ("Active__c", FieldType::Boolean),
        ("LastActivityDate", FieldType::Date),
        ("Score__c", FieldType::Number),
        ("Langs__c", FieldType::MultiChoice),
        ("Opens__c", FieldType::Time),
        ("BillingAddress", FieldType::Text),
        ("ParentId", FieldType::Reference),
        ("SystemModstamp", FieldType::DateTime),
        ("Id", FieldType::Text),
    ]);
    let page = salesforce()
        .page("Account", &f, &answer(200, QUERY))
        .unwrap();
    let first = &page.records[0];
    assert_eq!(first.id, "001900K0001pPuOACU");
    assert_eq!(first.modified_at, Some(1_777_620_337_000));
    let values: Vec<&str> = first.values.iter().map(|v| v.unwrap_or("-")).collect();
    assert_eq!(
        values,
        [
            "1234567890123456.78",
            "Acme \"é\" 株",
            "true",
            "2026-05-01",
            "1.0E7",
            "de;en",
            "10:30:00.000",
            "-",
            "-",
            "2026-05-01T07:25:37.000Z",
            "001900K0001pPuOACU"
        ]
    );
    let second = &page.records[1];
    assert!(second.deleted);
    assert_eq!(second.id, "001900K0001pPuPACU");
    assert!(second.values.get(1).is_none());
    // Not the server's cursor: it dies, the last id does not.
    assert_eq!(page.next.as_deref(), Some("001900K0001pPuPACU"));
}

#[test]
fn the_next_page_starts_after_the_last_id_whatever_ended_this_one() {
    let next = |head: &str| {
        let text = format!(r#"{{{head},"records":[{{"Id":"001900K0001pPuOACU"}}]}}"#);
        salesforce()
            .page("Account", &[], &answer(200, &text))
            .unwrap()
            .next
    };
    let id = Some("001900K0001pPuOACU".to_owned());
    // Shrunk by the server, full, and last.
    assert_eq!(next(r#""totalSize":2000,"done":false"#), id);
    assert_eq!(next(r#""totalSize":2000,"done":true"#), id);
    assert_eq!(next(r#""totalSize":1999,"done":true"#), None);
    let empty = r#"{"totalSize":0,"done":true,"records":[]}"#;
    let page = salesforce().page("Account", &[], &answer(200, empty));
    assert_eq!(page.unwrap().next, None);
}

#[test]
fn records_that_a_collection_read_does_not_find_are_missing() {
    let text =
        r#"[null,{"attributes":{"type":"Account"},"Id":"001900K0001pPuOACU","Name":"x"},null]"#;
    let f = fields(&[("Name", FieldType::Text)]);
    let page = salesforce()
        .page("Account", &f, &answer(200, text))
        .unwrap();
    assert_eq!(page.records.len(), 1);
    let asked = ["001A", "001900K0001pPuOACU", "001B"].map(str::to_owned);
    assert_eq!(crate::connectors::missing(&asked, &page), ["001A", "001B"]);
    assert!(!page.ids_only);
}

#[test]
fn a_count_is_the_total() {
    let text = r#"{"totalSize":12345,"done":true,"records":[]}"#;
    assert_eq!(salesforce().count(&answer(200, text)), Ok(12_345));
    assert!(salesforce().count(&answer(200, "{}")).is_err());
}

#[test]
fn the_error_table_follows_the_documented_answers() {
    use ErrorClass as C;
    let list = |code: &str| format!(r#"[{{"message":"m","errorCode":"{code}","fields":["A"]}}]"#);
    for (status, code, want) in [
        (401, "INVALID_SESSION_ID", C::Reauth),
        (403, "REQUEST_LIMIT_EXCEEDED", C::Wait),
        (404, "NOT_FOUND", C::Gone),
        (404, "ENTITY_IS_DELETED", C::Gone),
        (400, "ENTITY_IS_DELETED", C::Gone),
        (400, "INVALID_FIELD", C::FixMapping),
        (400, "INVALID_TYPE", C::FixMapping),
        (400, "MALFORMED_QUERY", C::Stop),
        (400, "MALFORMED_ID", C::FixData),
        (400, "REQUIRED_FIELD_MISSING", C::FixData),
        (400, "FIELD_CUSTOM_VALIDATION_EXCEPTION", C::FixData),
        (400, "INVALID_OR_NULL_FOR_RESTRICTED_PICKLIST", C::FixData),
        (400, "STRING_TOO_LONG", C::FixData),
        (400, "DUPLICATE_VALUE", C::FixData),
        (403, "INSUFFICIENT_ACCESS_OR_READONLY", C::FixPermission),
        (400, "UNABLE_TO_LOCK_ROW", C::Retry),
        (500, "UNABLE_TO_LOCK_ROW", C::Retry),
        (503, "SERVER_UNAVAILABLE", C::Retry),
        (400, "SOMETHING_OF_TOMORROW", C::FixData),
        (500, "SOMETHING_OF_TOMORROW", C::Retry),
    ] {
        let error = salesforce().classify(&answer(status, &list(code)));
        assert_eq!(error.class, want, "{status} {code}");
        assert_eq!(error.code, code);
        assert_eq!(error.fields, ["A"]);
    }
    for (message, wait) in [
        ("TotalRequests Limit exceeded.", 300_000),
        ("ConcurrentPerOrgLongTxn Limit exceeded.", 5_000),
    ] {
        let text = format!(r#"[{{"message":"{message}","errorCode":"REQUEST_LIMIT_EXCEEDED"}}]"#);
        let error = salesforce().classify(&answer(403, &text));
        assert_eq!(error.retry_after_ms, Some(wait));
    }
    let lock = salesforce().classify(&answer(500, &list("UNABLE_TO_LOCK_ROW")));
    assert!(!lock.maybe_applied);
    for (status, want) in [
        (300, C::FixData),
        (302, C::Stop),
        (410, C::Stop),
        (412, C::Retry),
        (414, C::FixMapping),
        (502, C::Retry),
        (503, C::Retry),
    ] {
        let error = salesforce().classify(&answer(status, ""));
        assert_eq!(error.class, want, "{status}");
    }
}

#[test]
fn limits_come_from_the_header_or_not_at_all() {
    let with = |value: &str| {
        let mut r = answer(200, "{}");
        r.headers.push(("sforce-limit-info".into(), value.into()));
        salesforce().limits(&r)
    };
    let hint = with("api-usage=22/15000");
    assert_eq!(hint.daily_max, Some(15_000));
    assert_eq!(hint.daily_remaining, Some(14_978));
    let over = with("api-usage=16000/15000; per-app-api-usage=17/250(appName=x)");
    assert_eq!(over.daily_remaining, Some(0));
    for odd in ["", "api-usage=", "api-usage=1", "api-usage=a/b"] {
        assert_eq!(with(odd), LimitHint::default());
    }
}

#[test]
fn the_catalog_has_what_can_be_mirrored() {
    let text = r#"{"encoding":"UTF-8","maxBatchSize":200,"sobjects":[
     {"name":"Account","label":"Account","labelPlural":"Accounts","keyPrefix":"001","queryable":true,"retrieveable":true,"createable":true,"updateable":true,"deletable":true},
     {"name":"AccountChangeEvent","associateEntityType":"ChangeEvent","associateParentEntity":"Account","queryable":false},
     {"name":"Emp__c","custom":true,"queryable":true,"retrieveable":true},
     {"name":"Emp__ChangeEvent","queryable":false},
     {"name":"Lead","queryable":true,"retrieveable":true,"keyPrefix":null},
     {"name":"Odd","queryable":false}]}"#;
    let objects = salesforce().objects(0, &answer(200, text)).unwrap();
    let names: Vec<(&str, bool)> = objects
        .iter()
        .map(|o| (o.name.as_str(), o.streamable))
        .collect();
    assert_eq!(
        names,
        [("Account", true), ("Emp__c", true), ("Lead", false)]
    );
}

#[test]
fn describe_gives_types_lengths_and_what_must_be_given() {
    let text = r#"{"name":"Account","fields":[
     {"name":"Id","type":"id","length":18,"nillable":false,"defaultedOnCreate":true,"idLookup":true},
     {"name":"Name","type":"string","length":255,"nillable":false,"createable":true,"updateable":true},
     {"name":"OwnerId","type":"reference","length":18,"nillable":false,"defaultedOnCreate":true,"createable":true,"updateable":true,"referenceTo":["User"]},
     {"name":"AnnualRevenue","type":"currency","precision":18,"scale":2,"nillable":true,"createable":true,"updateable":true},
     {"name":"NumberOfEmployees","type":"int","digits":8,"precision":0,"nillable":true,"createable":true,"updateable":true},
     {"name":"Rating","type":"picklist","length":255,"restrictedPicklist":true,"createable":true,"updateable":true,"nillable":true,"picklistValues":[{"active":true,"label":"Hot!","value":"Hot"},{"active":false,"label":"x","value":"x"}]},
     {"name":"Langs__c","type":"multipicklist","nillable":true,"createable":true,"updateable":true},
     {"name":"Total__c","type":"double","calculated":true,"createable":false},
     {"name":"No__c","type":"string","autoNumber":true,"createable":true},
     {"name":"Ext__c","type":"string","length":64,"externalId":true,"unique":true,"createable":true,"updateable":true,"nillable":true},
     {"name":"BillingAddress","type":"address"},
     {"name":"SystemModstamp","type":"datetime","nillable":false}]}"#;
    let all = salesforce().fields("Account", &answer(200, text)).unwrap();
    let get = |n: &str| all.iter().find(|f| f.name == n).unwrap();
    assert!(get("Name").required && !get("Name").read_only);
    assert_eq!(get("Name").max_length, Some(255));
    assert!(!get("OwnerId").required);
    assert_eq!(get("OwnerId").references, ["User"]);
    assert_eq!(get("OwnerId").field_type, FieldType::Reference);
    assert_eq!(
        (get("AnnualRevenue").precision, get("AnnualRevenue").scale),
        (Some(18), Some(2))
    );
    assert_eq!(get("NumberOfEmployees").precision, Some(8));
    assert_eq!(
        get("Rating").options,
        [("Hot".to_owned(), "Hot!".to_owned())]
    );
    assert!(get("Rating").restricted);
    assert_eq!(get("Langs__c").field_type, FieldType::MultiChoice);
    assert!(get("Total__c").read_only && get("No__c").read_only);
    assert!(get("Ext__c").external_id && get("Ext__c").unique);
    assert!(get("Id").read_only && get("SystemModstamp").read_only);
    assert!(!all.iter().any(|f| f.name == "BillingAddress"));
}

#[test]
fn the_probe_shows_what_is_left() {
    let text = r#"{"DailyApiRequests":{"Max":15000,"Remaining":14976},"PermissionSets":{"CreateCustom":{"Max":1}}}"#;
    let shown = salesforce().probed(&answer(200, text)).unwrap();
    assert_eq!(shown[0].1, "14976 of 15000");
    assert!(salesforce().probed(&answer(200, "[]")).is_err());
}

#[test]
fn there_are_no_webhooks_to_believe() {
    let d = Delivery {
        method: "POST".into(),
        uri: "https://x".into(),
        headers: Vec::new(),
        body: b"[]".to_vec(),
    };
    assert!(salesforce().decode(&d).is_err());
    let verdict = salesforce().verify(&d, &Secret::new("s"), 0);
    assert_eq!(verdict, Err(SignatureError::Missing));
}

#[test]
fn damaged_answers_never_panic() {
    let seed = 0x5eed_0006;
    let mut random = Random::new(seed);
    let f = fields(&[
        ("Name", FieldType::Text),
        ("AnnualRevenue", FieldType::Number),
        ("LastActivityDate", FieldType::Date),
    ]);
    for _ in 0..3_000 {
        let damaged = HttpResponse {
            status: u16::try_from(200 + random.below(400)).unwrap(),
            headers: vec![("sforce-limit-info".into(), random.text(30))],
            body: random.damage(QUERY.as_bytes()),
        };
        let _ = salesforce().page("Account", &f, &damaged);
        let _ = salesforce().count(&damaged);
        let _ = salesforce().token(&damaged, 0);
        let _ = salesforce().fields("Account", &damaged);
        let _ = salesforce().objects(0, &damaged);
        let _ = salesforce().probed(&damaged);
        let _ = salesforce().classify(&damaged);
        let _ = salesforce().limits(&damaged);
    }
    let whole = salesforce().page("Account", &f, &answer(200, QUERY));
    assert!(whole.is_ok(), "seed {seed:#x}");
    for bad in [
        "",
        "<html>",
        "{}",
        "null",
        "3",
        "\"x\"",
        r#"{"records":null}"#,
        "[3]",
    ] {
        let error = salesforce().page("Account", &f, &answer(200, bad));
        assert_eq!(error.unwrap_err().class, ErrorClass::Retry, "{bad}");
    }
}
