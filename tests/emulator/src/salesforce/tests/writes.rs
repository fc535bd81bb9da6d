//! Rows, collections, composite: what is refused, what is taken back, what is answered.

use super::{body, call, org, send, soql};
use serde_json::{Value, json};

const FIRST: &str = "sobjects/Contact/003xx0000000001AAA";

fn code(answer: &Value) -> &str {
    answer[0]["errorCode"].as_str().unwrap_or("none")
}

#[test]
fn each_invalid_value_has_its_own_error_and_writes_nothing() {
    let org = org(20);
    for (fields, expected) in [
        (json!({"Nope": 1}), "INVALID_FIELD"),
        (
            json!({"CreatedDate": "2024-01-01T00:00:00Z"}),
            "INVALID_FIELD_FOR_INSERT_UPDATE",
        ),
        (json!({"Name": "x"}), "INVALID_FIELD_FOR_INSERT_UPDATE"),
        (
            json!({"MailingAddress": {"city": "x"}}),
            "INVALID_FIELD_FOR_INSERT_UPDATE",
        ),
        (json!({"LastName": ""}), "REQUIRED_FIELD_MISSING"),
        (json!({"LastName": "x".repeat(81)}), "STRING_TOO_LONG"),
        (
            json!({"Level__c": "Top"}),
            "INVALID_OR_NULL_FOR_RESTRICTED_PICKLIST",
        ),
        (json!({"Email": "a b@c.de"}), "INVALID_EMAIL_ADDRESS"),
        (json!({"Score__c": 10_000}), "NUMBER_OUTSIDE_VALID_RANGE"),
        (json!({"Score__c": "many"}), "JSON_PARSER_ERROR"),
        (json!({"LastName": 5}), "JSON_PARSER_ERROR"),
        (json!({"Birthdate": "2024-02-30"}), "JSON_PARSER_ERROR"),
        (json!({"AccountId": "003xx0000000002AAA"}), "MALFORMED_ID"),
        (json!({"AccountId": "nonsense"}), "MALFORMED_ID"),
        (json!({"AccountId": "001xx00000zzzzzABC"}), "MALFORMED_ID"),
        (
            json!({"AccountId": "001xx00000zzzzz"}),
            "INSUFFICIENT_ACCESS_ON_CROSS_REFERENCE_ENTITY",
        ),
    ] {
        let (status, answer) = send(&org, "PATCH", FIRST, fields.clone());
        assert_eq!(
            (status, code(&answer)),
            (400, expected),
            "{fields}: {answer}"
        );
    }
    let (_, digest) = send(
        &org,
        "GET",
        "query?q=SELECT+COUNT()+FROM+Contact+WHERE+SystemModstamp+>+TODAY",
        Value::Null,
    );
    assert_eq!(digest["totalSize"], json!(0));
}

#[test]
fn numbers_round_to_their_scale_and_text_is_trimmed() {
    let org = org(20);
    send(
        &org,
        "PATCH",
        FIRST,
        json!({"score__C": "7.125", "Title": "  spaced  ", "Languages__c": "French;English;French"}),
    );
    let (_, row) = send(
        &org,
        "GET",
        &format!("{FIRST}?fields=Score__c,Title,Languages__c"),
        Value::Null,
    );
    assert_eq!(
        (&row["Score__c"], &row["Title"], &row["Languages__c"]),
        (&json!(7.13), &json!("spaced"), &json!("English;French"))
    );
}

#[test]
fn a_deleted_row_is_said_to_be_deleted_until_it_is_restored() {
    use crate::admin::{Actor, Crm};
    let org = org(20);
    assert_eq!(send(&org, "DELETE", FIRST, Value::Null).0, 204);
    for method in ["GET", "PATCH", "DELETE"] {
        let (status, answer) = send(&org, method, FIRST, json!({"Title": "x"}));
        assert_eq!(
            (status, code(&answer)),
            (404, "ENTITY_IS_DELETED"),
            "{method}"
        );
    }
    org.restore("Contact", "003xx0000000001AAA", &Actor::default())
        .unwrap();
    assert_eq!(send(&org, "GET", FIRST, Value::Null).0, 200);
    assert!(
        org.restore("Contact", "003xx0000000001AAA", &Actor::default())
            .is_err(),
        "only once"
    );
}

#[test]
fn a_row_changed_since_is_not_overwritten() {
    let org = org(20);
    let date = |seconds: i64| super::super::stamps::http_date(org.now() + seconds * 1_000);
    let patch = |since: &str| {
        call(
            &org,
            "PATCH",
            FIRST,
            &[("if-unmodified-since", since)],
            &json!({"Title": "x"}),
        )
        .status
    };
    assert_eq!(patch(&date(-10)), 204, "last changed long ago");
    assert_eq!(patch(&date(-10)), 412);
    assert_eq!(patch("yesterday"), 400);
    let get = call(
        &org,
        "GET",
        FIRST,
        &[("if-modified-since", &date(10))],
        &Value::Null,
    );
    assert_eq!(get.status, 304);
}

#[test]
fn upserts_create_change_refuse_and_list_ambiguities() {
    let org = org(20);
    let path = "sobjects/Contact/pg_crm_sync_id__c/k%2F1".replace("%2F", "-");
    assert_eq!(
        send(
            &org,
            "PATCH",
            &format!("{path}?updateOnly=true"),
            json!({"LastName": "x"})
        )
        .0,
        404
    );
    let (status, made) = send(&org, "PATCH", &path, json!({"LastName": "x"}));
    assert_eq!((status, &made["created"]), (201, &json!(true)));
    let (status, again) = send(&org, "PATCH", &path, json!({"Title": "y"}));
    assert_eq!(
        (status, &again["created"], &again["id"]),
        (200, &json!(false), &made["id"])
    );
    assert_eq!(
        send(
            &org,
            "PATCH",
            "sobjects/Contact/Title/x",
            json!({"LastName": "x"})
        )
        .0,
        404,
        "no key field"
    );
    for _ in 0..2 {
        send(
            &org,
            "POST",
            "sobjects/Contact",
            json!({"LastName": "t", "Email": "twin@example.net"}),
        );
    }
    let (status, urls) = send(
        &org,
        "PATCH",
        "sobjects/Contact/Email/twin@example.net",
        json!({"Title": "y"}),
    );
    assert_eq!((status, urls.as_array().map(Vec::len)), (300, Some(2)));
    let twice = json!({"records": [
        {"attributes": {"type": "Contact"}, "pg_crm_sync_id__c": "d", "LastName": "x"},
        {"attributes": {"type": "Contact"}, "pg_crm_sync_id__c": "D", "LastName": "y"}]});
    let (_, rows) = send(
        &org,
        "PATCH",
        "composite/sobjects/Contact/pg_crm_sync_id__c",
        twice,
    );
    assert_eq!(rows[0]["errors"][0]["statusCode"], "DUPLICATE_VALUE");
}

#[test]
fn collections_keep_order_limits_and_rollback() {
    let org = org(20);
    let row = |name: &str| json!({"attributes": {"type": "Contact"}, "LastName": name});
    let (status, error) = send(
        &org,
        "POST",
        "composite/sobjects",
        json!({"records": vec![row("x"); 201]}),
    );
    assert_eq!((status, code(&error)), (400, "EXCEEDED_ID_LIMIT"));
    let mixed: Vec<Value> = (0..11)
        .map(|n| json!({"attributes": {"type": if n % 2 == 0 { "Contact" } else { "Account" }}}))
        .collect();
    let (status, error) = send(
        &org,
        "POST",
        "composite/sobjects",
        json!({"records": mixed}),
    );
    assert_eq!(
        (status, code(&error)),
        (400, "LIMIT_EXCEEDED"),
        "more than ten runs of one type"
    );
    let before = soql(&org, "SELECT COUNT() FROM Contact")["totalSize"].clone();
    let bad = json!({"allOrNone": true, "records": [row("a"), row(""), row("c")]});
    let (status, rows) = send(&org, "POST", "composite/sobjects", bad);
    let codes: Vec<&str> = rows
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["errors"][0]["statusCode"].as_str().unwrap())
        .collect();
    let rolled = "ALL_OR_NONE_OPERATION_ROLLED_BACK";
    assert_eq!(
        (status, codes),
        (200, vec![rolled, "REQUIRED_FIELD_MISSING", rolled])
    );
    assert_eq!(
        soql(&org, "SELECT COUNT() FROM Contact")["totalSize"],
        before
    );
    let (_, rows) = send(
        &org,
        "PATCH",
        "composite/sobjects",
        json!({"records": [
        {"attributes": {"type": "Contact"}, "id": "003xx0000zzzzzz", "Title": "x"},
        {"attributes": {"type": "Contact"}, "Id": "003xx0000000002", "Title": "x"}]}),
    );
    assert_eq!(
        rows[0]["errors"][0]["statusCode"],
        "INVALID_CROSS_REFERENCE_KEY"
    );
    assert!(
        rows[0].get("id").is_none() && rows[1]["success"] == true,
        "{rows}"
    );
    let (_, rows) = send(
        &org,
        "POST",
        "composite/sobjects/Contact",
        json!({"ids": ["003xx0000000003", "003xx0000zzzzzz"], "fields": ["Id"]}),
    );
    assert_eq!(
        (rows[0]["Id"].as_str().map(str::len), &rows[1]),
        (Some(18), &Value::Null)
    );
}

#[test]
fn composite_parts_refer_to_each_other_and_fall_together() {
    let org = org(20);
    let part = |reference: &str, url: &str, body: Value| json!({"method": "POST", "url": format!("/services/data/v62.0/sobjects/{url}"), "referenceId": reference, "body": body});
    let good = json!({"allOrNone": true, "compositeRequest": [
        part("a", "Account", json!({"Name": "Composite"})),
        part("c", "Contact", json!({"LastName": "Part", "AccountId": "@{a.id}"})),
        {"method": "GET", "url": "/services/data/v62.0/sobjects/Contact/@{c.id}?fields=AccountId", "referenceId": "g"}]});
    let (_, answer) = send(&org, "POST", "composite", good);
    let parts = &answer["compositeResponse"];
    assert_eq!(parts[0]["httpStatusCode"], 201, "{answer}");
    assert_eq!(
        parts[2]["body"]["AccountId"], parts[0]["body"]["id"],
        "a part reads what its transaction wrote"
    );
    assert!(
        parts[0]["httpHeaders"]["Location"]
            .as_str()
            .unwrap()
            .contains("/sobjects/Account/001")
    );
    let bad = json!({"allOrNone": true, "compositeRequest": [
        part("a", "Account", json!({"Name": "Fallen"})), part("c", "Contact", json!({})), part("d", "Account", json!({"Name": "Never"}))]});
    let (_, answer) = send(&org, "POST", "composite", bad);
    let codes: Vec<&str> = answer["compositeResponse"]
        .as_array()
        .unwrap()
        .iter()
        .map(|part| code(&part["body"]))
        .collect();
    assert_eq!(
        codes,
        [
            "PROCESSING_HALTED",
            "REQUIRED_FIELD_MISSING",
            "PROCESSING_HALTED"
        ]
    );
    assert_eq!(
        soql(&org, "SELECT COUNT() FROM Account WHERE Name = 'Fallen'")["totalSize"],
        0
    );
    let batch = json!({"haltOnError": true, "batchRequests": [{"method": "GET", "url": "v62.0/limits"},
        {"method": "GET", "url": "v62.0/sobjects/Nope/1"}, {"method": "GET", "url": "v62.0/limits"}]});
    let (_, answer) = send(&org, "POST", "composite/batch", batch);
    let statuses: Vec<u64> = answer["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|part| part["statusCode"].as_u64().unwrap())
        .collect();
    assert_eq!(
        (statuses, &answer["hasErrors"]),
        (vec![200, 404, 412], &json!(true))
    );
}

#[test]
fn row_faults_hit_as_many_rows_as_asked() {
    let org = org(20);
    let fault =
        json!({"statusCode": "UNABLE_TO_LOCK_ROW", "remaining": 2, "skip": 1, "object": "Contact"});
    org.add_row_fault(fault.as_object().unwrap()).unwrap();
    let status = || send(&org, "PATCH", FIRST, json!({"Title": "x"})).0;
    assert_eq!(
        [status(), status(), status(), status()],
        [204, 500, 500, 204]
    );
}

#[test]
fn the_duplicate_rule_answers_with_its_misspelt_key_and_can_be_overruled() {
    let org = org(20);
    let on = json!({"duplicate_rule": true});
    org.change_settings(on.as_object().unwrap()).unwrap();
    let (_, row) = send(&org, "GET", &format!("{FIRST}?fields=Email"), Value::Null);
    let twin = json!({"LastName": "Twin", "Email": row["Email"]});
    let (status, error) = send(&org, "POST", "sobjects/Contact", twin.clone());
    assert_eq!((status, code(&error)), (400, "DUPLICATES_DETECTED"));
    let record = &error[0]["duplicateResut"]["matchResults"][0]["matchRecords"][0]["record"];
    assert_eq!(record["Id"], "003xx0000000001AAA");
    let reply = call(
        &org,
        "POST",
        "sobjects/Contact",
        &[("sforce-duplicate-rule-header", "allowSave=true")],
        &twin,
    );
    assert_eq!(reply.status, 201, "{}", body(&reply));
}

#[test]
fn an_org_over_its_daily_calls_is_refused() {
    let org = org(10);
    let limits = json!({"daily": 2, "enforce": true});
    org.change_settings(limits.as_object().unwrap()).unwrap();
    assert!(org.count_call().is_ok() && org.count_call().is_ok());
    let error = org.count_call().unwrap_err();
    assert_eq!(
        (error.status, error.code.as_str()),
        (403, "REQUEST_LIMIT_EXCEEDED")
    );
}

#[test]
fn a_parent_can_be_named_by_its_external_id() {
    let org = org(50);
    let (_, parent) = send(
        &org,
        "PATCH",
        "sobjects/Account/pg_crm_sync_id__c/acme",
        json!({"Name": "Acme"}),
    );
    let (status, child) = send(
        &org,
        "POST",
        "sobjects/Contact",
        json!({"LastName": "x", "Account": {"pg_crm_sync_id__c": "ACME"}}),
    );
    assert_eq!(status, 201, "{child}");
    let path = format!(
        "sobjects/Contact/{}?fields=AccountId",
        child["id"].as_str().unwrap()
    );
    assert_eq!(
        send(&org, "GET", &path, Value::Null).1["AccountId"],
        parent["id"]
    );
    for (key, part) in [
        (json!({"pg_crm_sync_id__c": "nobody"}), "not found"),
        (json!({"Phone": "1"}), "not an External ID"),
        (json!({}), "attributes"),
    ] {
        let (status, error) = send(
            &org,
            "POST",
            "sobjects/Contact",
            json!({"LastName": "x", "Account": key}),
        );
        assert_eq!(status, 400);
        assert!(
            error[0]["message"].as_str().unwrap().contains(part),
            "{error}"
        );
    }
}
