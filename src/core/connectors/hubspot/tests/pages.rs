use super::*;
use crate::testing::Random;

fn page(object: &str, list: &[(&str, FieldType)], text: &str) -> Page {
    hubspot()
        .page(object, &fields(list), &answer(200, text))
        .unwrap()
}

const RECORDED: &str = r#"{"results":[{"id":"734931097788","properties":{"createdate":"2026-03-12T07:33:46.615Z","email":"a@b.c","jobtitle":null,"hs_object_id":"734931097788","lastmodifieddate":"2026-03-12T07:33:50.001Z","age":"5000.00","vip":"true","born":"2026-12-31","seen":"2026-12-31T00:00:00Z","langs":"de;en","stage_date":"1773300826615"},"createdAt":"2026-03-12T07:33:46.615Z","updatedAt":"2026-03-12T07:33:46.615Z","archived":false,"url":"https://app-eu1.hubspot.com/x"}],"paging":{"next":{"after":"734931097789","link":"https://x"}}}"#;

#[test]
fn a_recorded_page_becomes_rows_in_the_order_asked() {
    let page = page(
        "contacts",
        &[
            ("vip", FieldType::Boolean),
            ("email", FieldType::Text),
            ("undefined_one", FieldType::Text),
            ("age", FieldType::Number),
            ("jobtitle", FieldType::Text),
            ("born", FieldType::Date),
            ("seen", FieldType::DateTime),
            ("stage_date", FieldType::DateTime),
            ("langs", FieldType::MultiChoice),
        ],
        RECORDED,
    );
    let record = &page.records[0];
    assert_eq!(record.id, "734931097788");
    // The property, not updatedAt: it is what a search compares with.
    assert_eq!(record.modified_at, Some(1_773_300_830_001));
    let values: Vec<&str> = record.values.iter().map(|v| v.unwrap_or("-")).collect();
    assert_eq!(
        values,
        [
            "true",
            "a@b.c",
            "-",
            "5000.00",
            "-",
            "2026-12-31",
            "2026-12-31T00:00:00.000Z",
            "2026-03-12T07:33:46.615Z",
            "de;en"
        ]
    );
    assert_eq!(page.next.as_deref(), Some("734931097789"));
    assert!(!page.ids_only);
}

#[test]
fn keys_in_another_order_in_each_record_land_in_their_columns() {
    let text = r#"{"results":[
      {"id":"1","properties":{"a":"1a","b":"1b","c":"1c"}},
      {"properties":{"c":"2c","x":"?","a":"2a","b":"2b"},"id":2},
      {"id":"3","properties":{"b":"3b"},"archived":true}]}"#;
    let t = FieldType::Text;
    let page = page("deals", &[("b", t), ("a", t), ("c", t)], text);
    let row = |i: usize| -> Vec<String> {
        let values = page.records[i].values.iter();
        values.map(|v| v.unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(row(0), ["1b", "1a", "1c"]);
    assert_eq!(row(1), ["2b", "2a", "2c"]);
    assert_eq!(row(2), ["3b", "", ""]);
    assert_eq!(page.records[1].id, "2");
    assert!(page.records[2].deleted);
    assert_eq!(page.next, None);
}

#[test]
fn an_unreadable_value_is_reported_and_spoils_no_page() {
    let text = r#"{"results":[{"id":"1","properties":{"n":"about 5","d":"soon","t":"ok"}}]}"#;
    let page = page(
        "deals",
        &[
            ("n", FieldType::Number),
            ("d", FieldType::Date),
            ("t", FieldType::Text),
        ],
        text,
    );
    let values: Vec<_> = page.records[0].values.iter().collect();
    assert_eq!(values, [None, None, Some("ok")]);
    let what: Vec<(&str, &str)> = page
        .unreadable
        .iter()
        .map(|(_, f, v)| (f.as_str(), v.as_str()))
        .collect();
    assert_eq!(what, [("n", "about 5"), ("d", "soon")]);
}

#[test]
fn numbers_given_as_json_numbers_keep_their_digits() {
    let text = r#"{"results":[{"id":"1","properties":{"n":1234567890123456.78,"m":"12"}}]}"#;
    let page = page(
        "deals",
        &[("n", FieldType::Number), ("m", FieldType::Number)],
        text,
    );
    let n: Vec<_> = page.records[0].values.iter().collect();
    assert_eq!(n[0], Some("1234567890123456.78"));
    assert_eq!(n[1], Some("12"));
}

fn stamped(ids: &[(&str, i64)], more: bool) -> String {
    let records: Vec<String> = ids
        .iter()
        .map(|(id, at)| format!(r#"{{"id":"{id}","properties":{{"hs_lastmodifieddate":"{at}"}}}}"#))
        .collect();
    let paging = if more {
        r#","paging":{"next":{"after":"200"}}"#
    } else {
        ""
    };
    format!(r#"{{"total":9,"results":[{}]{paging}}}"#, records.join(","))
}

#[test]
fn ties_that_a_page_may_have_cut_are_left_to_the_next_poll() {
    let ids = |text: &str| -> Vec<String> {
        let page = page("deals", &[], text);
        page.records.into_iter().map(|r| r.id).collect()
    };
    let list = [("7", 1), ("30", 2), ("9", 2), ("8", 3), ("5", 3)];
    assert_eq!(ids(&stamped(&list, true)), ["7", "9", "30"]);
    assert_eq!(ids(&stamped(&list, false)), ["7", "9", "30", "5", "8"]);
    // All of one stamp: nothing can be left out, or the poll would stand still.
    let list = [("30", 2), ("9", 2)];
    assert_eq!(ids(&stamped(&list, true)), ["9", "30"]);
}

/// An import writes thousands of records in one millisecond; the search sorts by stamp alone.
#[test]
fn more_records_of_one_millisecond_than_a_page_holds_are_all_polled() {
    // Ties come in an order that has nothing to do with ids, and differently each time.
    let mut there: Vec<(u64, i64)> = (1..=950).map(|id| (id * 7919 % 1009 + 1, 2)).collect();
    there.extend([(5000, 1), (5001, 3), (5002, 3)]);
    let search = |request: &crate::http::HttpRequest| {
        let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
        let number = |v: &serde_json::Value| v.as_str().unwrap().parse::<i64>().unwrap();
        let passes = |(id, at): &(u64, i64)| {
            let groups = body["filterGroups"].as_array().unwrap();
            groups.iter().any(|g| {
                g["filters"].as_array().unwrap().iter().all(|f| {
                    let id = i64::try_from(*id).unwrap();
                    let own = if f["propertyName"] == "hs_object_id" {
                        id
                    } else {
                        *at
                    };
                    let value = number(&f["value"]);
                    match f["operator"].as_str().unwrap() {
                        "EQ" => own == value,
                        "GT" => own > value,
                        _ => own >= value,
                    }
                })
            })
        };
        let mut hits: Vec<(u64, i64)> = there.iter().copied().filter(passes).collect();
        if body["sorts"][0]["propertyName"] == "hs_object_id" {
            hits.sort_unstable();
        } else {
            let n = hits.len() as u64;
            hits.sort_by_key(|(id, at)| (*at, (id * 31 + n * 17) % 1013));
        }
        let more = hits.len() > 200;
        let ids: Vec<(String, i64)> = hits
            .iter()
            .take(200)
            .map(|(i, at)| (i.to_string(), *at))
            .collect();
        let list: Vec<(&str, i64)> = ids.iter().map(|(i, at)| (i.as_str(), *at)).collect();
        page("deals", &[], &stamped(&list, more))
    };
    let mut seen = std::collections::BTreeSet::new();
    let mut asked = Keyset {
        modified_at: 1,
        ..Keyset::default()
    };
    let mut calls = 0;
    loop {
        let found = search(&hubspot().poll_request(&ServerConfig::default(), "deals", &[], &asked));
        seen.extend(found.records.iter().map(|r| r.id.parse::<u64>().unwrap()));
        calls += 1;
        match hubspot().next_keyset("contacts", &asked, &found) {
            Some(next) => asked = next,
            None => break,
        }
        assert!(calls < 12, "the poll stands still at {asked:?}");
    }
    let all: std::collections::BTreeSet<u64> = there.iter().map(|(id, _)| *id).collect();
    assert_eq!(seen, all, "after {calls} calls");
}

#[test]
fn a_batch_read_tells_missing_and_merged_records() {
    let text = r#"{"status":"COMPLETE","results":[{"id":"40","properties":{"hs_merged_object_ids":"10;20","email":"x"}}],"numErrors":1,"errors":[{"status":"error","category":"OBJECT_NOT_FOUND","message":"Could not get some CONTACT objects","context":{"ids":["77","78"]}}],"startedAt":"2026-03-12T07:33:46.615Z","completedAt":"2026-03-12T07:33:46.615Z"}"#;
    let f = fields(&[("email", FieldType::Text)]);
    let page = hubspot().page("contacts", &f, &answer(207, text)).unwrap();
    assert_eq!(page.missing, ["77", "78"]);
    let pairs = [("10", "40"), ("20", "40")].map(|(a, b)| (a.to_owned(), b.to_owned()));
    assert_eq!(page.merged, pairs);
    let asked = ["10", "77", "40", "99"].map(str::to_owned);
    assert_eq!(crate::connectors::missing(&asked, &page), ["77", "99"]);
    assert!(!page.ids_only);
}

#[test]
fn more_fields_than_a_request_holds_are_read_by_id() {
    let many: Vec<(String, FieldType)> = (0..400)
        .map(|i| (format!("some_property_number_{i:03}"), FieldType::Text))
        .collect();
    let config = ServerConfig::default();
    let list = hubspot().list_request(&config, "companies", &many, None);
    assert!(list.target.len() < 200, "{}", list.target.len());
    let since = Keyset::default();
    let poll = hubspot().poll_request(&config, "companies", &many, &since);
    assert!(poll.body.len() < 3_000);
    let one = r#"{"results":[{"id":"1","properties":{}}]}"#;
    let page = |text: &str| hubspot().page("companies", &many, &answer(200, text));
    assert!(page(one).unwrap().ids_only);
    let searched = r#"{"total":1,"results":[{"id":"1","properties":{}}]}"#;
    let searched = page(searched).unwrap();
    assert!(searched.ids_only);
    let changes = searched.rereads("companies");
    assert_eq!(changes[0].record_id, "1");
    assert_eq!(changes[0].kind, crate::model::ChangeKind::Reread);
    let again = searched.rereads("companies");
    assert_eq!(changes, again);
    let read = r#"{"status":"COMPLETE","startedAt":"x","results":[{"id":"1","properties":{}}]}"#;
    assert!(!page(read).unwrap().ids_only);
}

#[test]
fn what_is_no_page_is_an_error_with_the_right_class() {
    let page = |status, text: &str| hubspot().page("contacts", &[], &answer(status, text));
    for bad in [
        "",
        "<html>",
        "[]",
        "{}",
        r#"{"results":3}"#,
        "{\"results\":[",
        "null",
    ] {
        let error = page(200, bad).unwrap_err();
        assert_eq!(error.class, ErrorClass::Retry, "{bad}");
        assert_eq!(error.code, "not_json");
    }
    let error = page(
        401,
        r#"{"category":"EXPIRED_AUTHENTICATION","message":"m"}"#,
    )
    .unwrap_err();
    assert_eq!(error.class, ErrorClass::Reauth);
}

#[test]
fn the_error_table_follows_the_documented_answers() {
    use ErrorClass as C;
    let ten = r#"{"status":"error","message":"You have reached your ten_secondly_rolling limit.","errorType":"RATE_LIMIT","policyName":"TEN_SECONDLY_ROLLING"}"#;
    let error = hubspot().classify(&answer(429, ten));
    assert_eq!((error.class, error.retry_after_ms), (C::Wait, Some(10_000)));
    assert_eq!(error.code, "TEN_SECONDLY_ROLLING");
    let daily = ten.replace("TEN_SECONDLY_ROLLING", "DAILY");
    let error = hubspot().classify(&answer(429, &daily));
    assert!(error.retry_after_ms.unwrap() > 60_000);
    for (status, text, want) in [
        (
            400,
            r#"{"status":"error","category":"VALIDATION_ERROR","message":"bad"}"#,
            C::FixData,
        ),
        (
            400,
            r#"{"status":"BAD_REFRESH_TOKEN","message":"m"}"#,
            C::Stop,
        ),
        (401, r#"{"category":"INVALID_AUTHENTICATION"}"#, C::Reauth),
        (
            403,
            r#"{"category":"MISSING_SCOPES","message":"m"}"#,
            C::FixPermission,
        ),
        (404, "", C::Gone),
        (
            409,
            r#"{"category":"CONFLICT","message":"Contact already exists. Existing ID: 123"}"#,
            C::FixData,
        ),
        (414, "<html>", C::FixMapping),
        (423, "{}", C::Wait),
        (477, "", C::Wait),
        (502, "<html>bad gateway", C::Retry),
        (503, "", C::Retry),
        (521, "", C::Retry),
        (599, "", C::Retry),
        (418, "", C::FixData),
        (302, "", C::Stop),
    ] {
        assert_eq!(class(status, text), want, "{status} {text}");
    }
    let mut moved = answer(477, "");
    moved.headers.push(("retry-after".into(), "3600".into()));
    assert_eq!(hubspot().classify(&moved).retry_after_ms, Some(3_600_000));
}

#[test]
fn an_undefined_property_is_named_and_is_a_matter_of_mapping() {
    let text = r#"{"status":"error","category":"VALIDATION_ERROR","message":"Property values were not valid: [{\"isValid\":false,\"message\":\"Property \\\"missing\\\" does not exist\",\"error\":\"PROPERTY_DOESNT_EXIST\",\"name\":\"missing\",\"portalId\":1}]"}"#;
    let error = hubspot().classify(&answer(400, text));
    assert_eq!(error.class, ErrorClass::FixMapping);
    assert_eq!(error.code, "PROPERTY_DOESNT_EXIST");
    assert_eq!(error.fields, ["missing"]);
}

#[test]
fn an_answer_that_cannot_be_read_leaves_nothing_of_it_in_the_error() {
    for body in [
        r#"{"results":[{"id":"1","properties":{"email":"canary@example.com""#,
        r#"{"results":"canary@example.com"}"#,
        r#"["canary@example.com"]"#,
    ] {
        let response = answer(200, body);
        let page = hubspot().page("contacts", &[], &response).unwrap_err();
        let count = hubspot().count(&response).unwrap_err();
        let writes = [Write {
            key: "k".into(),
            record_id: None,
            unique_value: None,
            unchanged_since: None,
            values: Vec::new(),
        }];
        let pushed = hubspot().pushed(WriteKind::Create, None, &writes, &response);
        let event = super::super::webhook::decode(body.as_bytes()).unwrap_err();
        let all = format!("{page:?}{count:?}{pushed:?}{event:?}");
        assert!(!all.contains("canary"), "{all}");
        assert!(page.message.contains("at line 1 column"), "{page}");
    }
}

#[test]
fn a_property_without_a_word_is_told_apart_from_an_empty_one() {
    let list = [
        ("jobtitle", FieldType::Text),
        ("gone", FieldType::Text),
        ("email", FieldType::Text),
    ];
    assert_eq!(page("contacts", &list, RECORDED).absent, ["gone"]);
    let nobody = page("contacts", &list, r#"{"results":[]}"#);
    assert!(nobody.absent.is_empty(), "{nobody:?}");
}

#[test]
fn messages_are_bounded_and_printable() {
    let long = format!(r#"{{"message":"a\n\u0007{}"}}"#, "x".repeat(5_000));
    let error = hubspot().classify(&answer(400, &long));
    assert!(error.message.chars().count() <= 500);
    assert!(!error.message.contains(char::is_control));
}

#[test]
fn damaged_answers_never_panic() {
    let seed = 0x5eed_0004;
    let mut random = Random::new(seed);
    let f = fields(&[
        ("email", FieldType::Text),
        ("age", FieldType::Number),
        ("seen", FieldType::DateTime),
    ]);
    let token = r#"{"token_type":"bearer","access_token":"a","expires_in":1800,"hub_id":5}"#;
    for _ in 0..3_000 {
        for good in [RECORDED, token] {
            let damaged = HttpResponse {
                status: u16::try_from(200 + random.below(400)).unwrap(),
                headers: Vec::new(),
                body: random.damage(good.as_bytes()),
            };
            let _ = hubspot().page("contacts", &f, &damaged);
            let _ = hubspot().count(&damaged);
            let _ = hubspot().token(&damaged, i64::MAX);
            let _ = hubspot().fields("contacts", &damaged);
            let _ = hubspot().objects(0, &damaged);
            let _ = hubspot().probed(&damaged);
            let _ = hubspot().classify(&damaged);
        }
    }
    let whole = hubspot().page("contacts", &f, &answer(200, RECORDED));
    assert!(whole.is_ok(), "seed {seed:#x}");
}
