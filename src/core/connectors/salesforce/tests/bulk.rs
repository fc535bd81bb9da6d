use std::sync::Arc;

use super::*;
use crate::connectors::bulk::{BulkReader, Fields, Progress, Rows};
use crate::http::{Method, Purpose};
use crate::model::ErrorClass;
use crate::testing::Random;

fn bulk() -> &'static dyn BulkReader {
    salesforce().bulk().unwrap()
}

fn asked() -> Fields {
    Arc::new(fields(&[
        ("LastName", FieldType::Text),
        ("Score__c", FieldType::Number),
        ("SystemModstamp", FieldType::DateTime),
        ("DoNotCall", FieldType::Boolean),
    ]))
}

fn config() -> ServerConfig {
    ServerConfig::default()
}

const STARTED: &str = r#"{"id":"750Tn000004ZoR3IAK","operation":"query","object":"Contact","createdDate":"2024-04-25T15:50:37.000+0000","state":"UploadComplete","concurrencyMode":"Parallel","contentType":"CSV","apiVersion":62.0,"lineEnding":"LF","columnDelimiter":"COMMA"}"#;

fn place() -> String {
    bulk().started(&answer(200, STARTED), &asked()).unwrap()
}

/// The head of an answer with rows.
fn head(locator: &str, rows: usize) -> HttpResponse {
    let headers = [
        ("content-type", "text/csv; charset=UTF-8".to_owned()),
        ("sforce-locator", locator.to_owned()),
        ("sforce-numberofrecords", rows.to_string()),
    ];
    HttpResponse {
        status: 200,
        headers: headers.map(|(n, v)| (n.to_owned(), v)).to_vec(),
        body: Vec::new(),
    }
}

fn reader(cursor: &str, locator: &str, rows: usize) -> Box<dyn Rows> {
    let request = salesforce().list_request(&config(), "Contact", &asked(), Some(cursor));
    bulk()
        .rows(&request, &head(locator, rows), &asked())
        .unwrap()
}

/// Reads a body in pieces of at most `most` bytes.
fn read(mut rows: Box<dyn Rows>, body: &str, most: usize) -> Result<Page, RemoteError> {
    for piece in body.as_bytes().chunks(most) {
        rows.feed(piece)?;
    }
    rows.end()?;
    Ok(rows.take())
}

const HEADER: &str = "\"Id\",\"LastName\",\"Score__c\",\"SystemModstamp\",\"DoNotCall\"\n";
const ROWS: &str = "\"003xx0000000001AAA\",\"O\"\"Neil, \u{682a}\nJr\",\"1000.0\",\"2026-05-01T07:25:37.000Z\",\"true\"\n\
                    \"003xx0000000002\",\"\",\"\",\"2026-05-01T07:25:38.000+0000\",\"false\"\n";

#[test]
fn a_job_is_started_asked_about_read_and_ended() {
    let start = bulk().start(&config(), "Contact", &asked());
    assert_eq!(start.target, "/services/data/v62.0/jobs/query");
    assert_eq!(start.purpose, Purpose::Backfill);
    let query = "SELECT Id,LastName,Score__c,SystemModstamp,DoNotCall FROM Contact";
    assert_eq!(body(&start)["query"], query);
    let place = place();
    let job = "/services/data/v62.0/jobs/query/750Tn000004ZoR3IAK";
    assert_eq!(bulk().ask(&config(), &place).unwrap().target, job);
    let first = salesforce().list_request(&config(), "Contact", &asked(), Some(&place));
    assert_eq!(first.target, format!("{job}/results?maxRecords=50000"));
    let page = read(
        reader(&place, "MTAwMDA", 2),
        &format!("{HEADER}{ROWS}"),
        9_999,
    )
    .unwrap();
    let next = salesforce().list_request(&config(), "Contact", &asked(), page.next.as_deref());
    assert_eq!(
        next.target,
        format!("{job}/results?maxRecords=50000&locator=MTAwMDA")
    );
    let end = |done| bulk().end(&config(), &place, done).unwrap();
    assert_eq!(
        (end(true).method, end(true).target),
        (Method::Delete, job.to_owned())
    );
    assert_eq!(body(&end(false))["state"], "Aborted");
    // An id is a cursor of pages, not of a job.
    assert!(bulk().ask(&config(), "003xx0000000001AAA").is_none());
    assert!(bulk().fits("003xx0000000001AAA", &asked()));
}

#[test]
fn a_place_says_which_columns_the_job_reads() {
    let other: Fields = Arc::new(asked()[1..].to_vec());
    assert!(bulk().fits(&place(), &asked()) && !bulk().fits(&place(), &other));
}

#[test]
fn states_are_told_apart_and_a_failed_job_says_why() {
    let told = |state: &str, more: &str| {
        let body = STARTED.replace("UploadComplete", state);
        let body = body.replace("\"operation\"", &format!("{more}\"operation\""));
        bulk().told(&answer(200, &body)).unwrap()
    };
    assert_eq!(told("UploadComplete", ""), Progress::Waiting);
    assert_eq!(told("InProgress", ""), Progress::Waiting);
    let ready = Progress::Ready {
        rows: Some(7),
        began: Some(1_714_060_237_000),
    };
    assert_eq!(told("JobComplete", "\"numberRecordsProcessed\":7,"), ready);
    let Progress::Failed(error) = told(
        "Failed",
        "\"errorMessage\":\"INVALID_FIELD:No such column:X --\",",
    ) else {
        panic!("not failed");
    };
    assert_eq!(
        (error.code.as_str(), error.fields),
        ("INVALID_FIELD", vec!["X".to_owned()])
    );
    assert!(matches!(told("Aborted", ""), Progress::Failed(_)));
}

#[test]
fn rows_are_the_same_wherever_the_answer_is_cut_and_with_the_header_or_without() {
    let whole = read(
        reader(&place(), "null", 2),
        &format!("{HEADER}{ROWS}"),
        usize::MAX,
    )
    .unwrap();
    let first = &whole.records[0];
    assert_eq!(
        (first.id.as_str(), first.modified_at),
        ("003xx0000000001AAA", Some(1_777_620_337_000))
    );
    let values: Vec<&str> = first.values.iter().map(|v| v.unwrap_or("-")).collect();
    assert_eq!(
        values,
        [
            "O\"Neil, \u{682a}\nJr",
            "1000.0",
            "2026-05-01T07:25:37.000Z",
            "true"
        ]
    );
    assert_eq!(
        whole.records[1].id, "003xx0000000002AAA",
        "ids of 15 characters too"
    );
    assert_eq!(whole.records[1].values.get(0), None);
    assert_eq!(whole.next, None, "the text null is the end");
    for size in 1..60 {
        for header in [HEADER, ""] {
            let body = format!("{header}{ROWS}");
            let page = read(reader(&place(), "null", 2), &body, size).unwrap();
            assert_eq!(page, whole, "pieces of {size}, header {header:?}");
        }
    }
    let crlf = format!("{HEADER}{ROWS}").replace("\"\n", "\"\r\n");
    assert_eq!(read(reader(&place(), "null", 2), &crlf, 7).unwrap(), whole);
}

#[test]
fn columns_may_come_in_another_order_if_the_header_says_so() {
    let body = "\"DoNotCall\",\"Id\",\"systemmodstamp\",\"LastName\",\"Score__c\"\n\
                \"true\",\"003xx0000000001AAA\",\"\",\"Neil\",\"5\"\n";
    let page = read(reader(&place(), "null", 1), body, 5).unwrap();
    let values: Vec<&str> = page.records[0]
        .values
        .iter()
        .map(|v| v.unwrap_or("-"))
        .collect();
    assert_eq!(values, ["Neil", "5", "-", "true"]);
}

#[test]
fn pages_taken_before_the_end_lead_back_to_their_own_answer() {
    let place = place();
    let mut rows = reader(&place, "MTAwMDA", 2);
    rows.feed(format!("{HEADER}{ROWS}").as_bytes()).unwrap();
    assert_eq!(rows.waiting(), 2);
    assert_eq!(rows.take().next.as_deref(), Some(place.as_str()));
    rows.end().unwrap();
    let last = rows.take();
    assert!(last.records.is_empty() && last.next.unwrap().ends_with(":MTAwMDA"));
}

#[test]
fn an_answer_that_lacks_rows_or_is_no_table_is_an_error_that_passes() {
    for (announced, body) in [
        (3, format!("{HEADER}{ROWS}")),
        (1, format!("{HEADER}\"003xx0000000001AAA\",\"a\"\n")),
        (1, format!("{HEADER}\"\",\"a\",\"1\",\"\",\"true\"\n")),
        (0, "<html>busy</html>\n".to_owned()),
    ] {
        let error = read(reader(&place(), "null", announced), &body, 64).unwrap_err();
        assert_eq!(
            (error.class, error.maybe_applied),
            (ErrorClass::Retry, false),
            "{body}"
        );
        assert!(!bulk().hopeless(&error));
    }
    // A body that is no CSV is read whole, and refused by what reads pages.
    let request = salesforce().list_request(&config(), "Contact", &asked(), Some(&place()));
    let mut json = head("null", 0);
    json.headers[0].1 = "application/json".into();
    assert!(bulk().rows(&request, &json, &asked()).is_none());
}

#[test]
fn values_that_their_type_cannot_hold_are_named_with_their_record() {
    let body = format!("{HEADER}\"003xx0000000001AAA\",\"a\",\"many\",\"\",\"true\"\n");
    let page = read(reader(&place(), "null", 1), &body, 64).unwrap();
    let bad = (
        "003xx0000000001AAA".to_owned(),
        "Score__c".to_owned(),
        "many".to_owned(),
    );
    assert_eq!(page.unreadable, [bad]);
}

#[test]
fn a_row_without_end_is_refused_and_no_bytes_make_the_reader_panic() {
    let mut rows = reader(&place(), "null", 1);
    rows.feed(b"\"").unwrap();
    let endless = vec![b'x'; 1 << 20];
    let refused = (0..8).find_map(|_| rows.feed(&endless).err());
    assert!(refused.is_some(), "8 MB without an end");
    let mut random = Random::new(7);
    for _ in 0..300 {
        let size = random.below(400);
        let bytes: Vec<u8> = (0..size)
            .map(|_| b"\"\",,\n\r\\a\xe6\xa0\xaa\0"[random.below(12)])
            .collect();
        let mut rows = reader(&place(), "null", 1);
        let _ = rows.feed(&bytes).and_then(|()| rows.end());
        rows.take();
    }
}

#[test]
fn refusals_lead_to_pages_and_trouble_that_passes_does_not() {
    for (status, code, hopeless) in [
        (403, "API_DISABLED_FOR_ORG", true),
        (400, "LIMIT_EXCEEDED", true),
        (400, "MALFORMED_QUERY", true),
        (404, "NOT_FOUND", true),
        (409, "API_VERSION_MISMATCH", true),
        (405, "METHOD_NOT_ALLOWED", true),
        (401, "INVALID_SESSION_ID", false),
        (403, "REQUEST_LIMIT_EXCEEDED", false),
        (503, "SERVER_UNAVAILABLE", false),
        (500, "UNKNOWN_EXCEPTION", false),
    ] {
        let body = format!(r#"[{{"errorCode":"{code}","message":"no"}}]"#);
        let error = bulk()
            .started(&answer(status, &body), &asked())
            .unwrap_err();
        assert_eq!(bulk().hopeless(&error), hopeless, "{status} {code}");
    }
}
