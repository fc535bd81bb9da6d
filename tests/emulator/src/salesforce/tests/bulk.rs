//! Bulk API 2.0: states, locators, headers, per-row results, what is counted.

use super::{body, call, org, raw, send};
use crate::salesforce::State;
use crate::salesforce::api::Reply;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

fn settings(org: &State, changes: Value) {
    org.change_settings(changes.as_object().unwrap())
        .unwrap_or_else(|_| panic!("settings {changes}"));
}

/// Starts a query job; its id.
fn start(org: &State, query: &str, more: Value) -> String {
    let mut asked = json!({"operation": "query", "query": query});
    for (key, value) in more.as_object().into_iter().flatten() {
        asked[key] = value.clone();
    }
    let (status, job) = send(org, "POST", "jobs/query", asked);
    assert_eq!(
        (status, job["state"].as_str()),
        (200, Some("UploadComplete")),
        "{job}"
    );
    job["id"].as_str().unwrap().to_owned()
}

/// Waits until the job has ended; the job.
fn ended(org: &State, path: &str) -> Value {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let (status, job) = send(org, "GET", path, Value::Null);
        assert_eq!(status, 200, "{job}");
        let state = job["state"].as_str().unwrap();
        if ["JobComplete", "Failed", "Aborted"].contains(&state) {
            return job;
        }
        assert!(Instant::now() < until, "{job}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The lines of an answer.
fn lines(org: &State, reply: Reply) -> Vec<String> {
    let mut text = reply.body;
    if let Some(mut rows) = reply.rows {
        while let Some(piece) = rows.next(org.schema(), &org.shared.people) {
            text.extend(piece);
        }
    }
    let text = String::from_utf8(text).unwrap();
    text.split_inclusive('\n').map(str::to_owned).collect()
}

fn header<'a>(reply: &'a Reply, name: &str) -> &'a str {
    let found = reply.headers.iter().find(|(known, _)| *known == name);
    found.map_or("", |(_, value)| value)
}

/// Pages of a finished query job: locator given out, rows counted, lines.
fn pages(org: &State, job: &str, size: usize) -> Vec<(String, usize, Vec<String>)> {
    let mut out = Vec::new();
    let mut path = format!("jobs/query/{job}/results?maxRecords={size}");
    loop {
        let reply = call(org, "GET", &path, &[], &Value::Null);
        assert_eq!(reply.status, 200);
        let locator = header(&reply, "sforce-locator").to_owned();
        let rows = header(&reply, "sforce-numberofrecords").parse().unwrap();
        out.push((locator.clone(), rows, lines(org, reply)));
        if locator == "null" {
            return out;
        }
        path = format!("jobs/query/{job}/results?maxRecords={size}&locator={locator}");
    }
}

#[test]
fn results_come_in_pages_by_locator_until_the_text_null_with_the_header_as_set() {
    let org = org(25);
    for every in [true, false] {
        settings(&org, json!({"bulk_header_every_page": every}));
        let job = start(&org, "SELECT Id, Name, Email FROM Contact", json!({}));
        let done = ended(&org, &format!("jobs/query/{job}"));
        assert_eq!(done["numberRecordsProcessed"], 25);
        assert_eq!(done["jobType"], "V2Query");
        let pages = pages(&org, &job, 10);
        let rows: Vec<usize> = pages.iter().map(|page| page.1).collect();
        assert_eq!(rows, [10, 10, 5]);
        assert_eq!(pages[0].0, "MTA", "the recorded form: base64 of a number");
        for (at, (_, rows, lines)) in pages.iter().enumerate() {
            let headed = lines[0] == "\"Id\",\"Name\",\"Email\"\n";
            assert_eq!(headed, every || at == 0);
            assert_eq!(lines.len(), rows + usize::from(headed));
        }
        let again = call(
            &org,
            "GET",
            &format!("jobs/query/{job}/results?maxRecords=10&locator=MTA"),
            &[],
            &Value::Null,
        );
        assert_eq!(lines(&org, again), pages[1].2, "a page can be read again");
    }
}

#[test]
fn results_are_those_of_the_time_when_the_query_ran() {
    let org = org(3);
    let job = start(&org, "SELECT Id, Title FROM Contact", json!({}));
    ended(&org, &format!("jobs/query/{job}"));
    let before = pages(&org, &job, 100);
    let change = json!({"Title": "Later"});
    let (status, _) = send(&org, "PATCH", "sobjects/Contact/003xx0000000001AAA", change);
    assert_eq!(status, 204);
    assert_eq!(pages(&org, &job, 100), before);
}

#[test]
fn delimiter_and_line_ending_are_those_asked_for_and_quotes_are_doubled() {
    let org = org(1);
    let awkward = "say \"hi\";\nnext | line";
    let (_, made) = send(&org, "POST", "sobjects/Account", json!({"Name": awkward}));
    let query = format!(
        "SELECT Name, Phone FROM Account WHERE Id = '{}'",
        made["id"].as_str().unwrap()
    );
    let format = json!({"columnDelimiter": "PIPE", "lineEnding": "CRLF"});
    let job = start(&org, &query, format);
    ended(&org, &format!("jobs/query/{job}"));
    let text = pages(&org, &job, 10).remove(0).2.concat();
    let expected = "\"Name\"|\"Phone\"\r\n\"say \"\"hi\"\";\nnext | line\"|\"\"\r\n";
    assert_eq!(text, expected);
}

#[test]
fn a_job_moves_through_its_states_and_can_be_aborted_and_deleted() {
    let org = org(5);
    settings(&org, json!({"bulk_queue_ms": 60_000}));
    let job = start(&org, "SELECT Id FROM Contact", json!({}));
    let path = format!("jobs/query/{job}");
    let results = call(&org, "GET", &format!("{path}/results"), &[], &Value::Null);
    assert_eq!(results.status, 400, "no results before the end");
    settings(&org, json!({"bulk_queue_ms": 0, "bulk_work_ms": 60_000}));
    assert_eq!(
        send(&org, "GET", &path, Value::Null).1["state"],
        "InProgress"
    );
    let (status, aborted) = send(&org, "PATCH", &path, json!({"state": "Aborted"}));
    assert_eq!((status, aborted["state"].as_str()), (200, Some("Aborted")));
    assert_eq!(
        send(&org, "PATCH", &path, json!({"state": "Aborted"})).0,
        400
    );
    assert_eq!(send(&org, "DELETE", &path, Value::Null).0, 204);
    let (status, gone) = send(&org, "GET", &path, Value::Null);
    assert_eq!(
        (status, gone[0]["errorCode"].as_str()),
        (404, Some("NOT_FOUND"))
    );
    settings(&org, json!({"bulk_work_ms": 0, "bulk_fail": true}));
    let job = start(&org, "SELECT Id FROM Contact", json!({}));
    assert_eq!(ended(&org, &format!("jobs/query/{job}"))["state"], "Failed");
}

#[test]
fn another_api_version_than_the_jobs_own_is_a_conflict() {
    let org = org(5);
    let job = start(&org, "SELECT Id FROM Contact", json!({}));
    ended(&org, &format!("jobs/query/{job}"));
    let path = format!("jobs/query/{job}/results");
    assert_eq!(raw(&org, "GET", &path, &[], b"", "63.0").status, 409);
    assert_eq!(raw(&org, "GET", &path, &[], b"", "62.0").status, 200);
}

#[test]
fn what_bulk_queries_cannot_do_is_refused_when_the_job_is_made() {
    let org = org(1);
    for (query, code) in [
        ("SELECT COUNT() FROM Contact", "INVALIDJOB"),
        ("SELECT MailingAddress FROM Contact", "INVALIDJOB"),
        ("SELECT Nope FROM Contact", "INVALID_FIELD"),
        ("SELECT Id FROM", "MALFORMED_QUERY"),
    ] {
        let asked = json!({"operation": "query", "query": query});
        let (status, error) = send(&org, "POST", "jobs/query", asked);
        assert_eq!(
            (status, error[0]["errorCode"].as_str()),
            (400, Some(code)),
            "{query}"
        );
    }
    settings(&org, json!({"bulk_query_jobs": 1}));
    start(&org, "SELECT Id FROM Contact", json!({}));
    let asked = json!({"operation": "query", "query": "SELECT Id FROM Contact"});
    let (status, error) = send(&org, "POST", "jobs/query", asked);
    assert_eq!(
        (status, error[0]["errorCode"].as_str()),
        (400, Some("LIMIT_EXCEEDED"))
    );
    let limits = send(&org, "GET", "limits", Value::Null).1;
    assert_eq!(
        limits["DailyBulkV2QueryJobs"],
        json!({"Max": 1, "Remaining": 0})
    );
}

/// Starts an ingest job with this CSV and ends its upload; the job's path.
fn ingest(org: &State, job: Value, csv: &str) -> String {
    let (status, job) = send(org, "POST", "jobs/ingest", job);
    assert_eq!(
        (status, job["state"].as_str()),
        (200, Some("Open")),
        "{job}"
    );
    let path = format!("jobs/ingest/{}", job["id"].as_str().unwrap());
    assert!(job["contentUrl"].as_str().unwrap().ends_with("/batches"));
    let upload = || {
        let kind = [("content-type", "text/csv; charset=UTF-8")];
        raw(
            org,
            "PUT",
            &format!("{path}/batches"),
            &kind,
            csv.as_bytes(),
            "62.0",
        )
        .status
    };
    assert_eq!((upload(), upload()), (201, 400), "data comes once");
    let (status, closed) = send(org, "PATCH", &path, json!({"state": "UploadComplete"}));
    assert_eq!(
        (status, closed["state"].as_str()),
        (200, Some("UploadComplete"))
    );
    path
}

fn results(org: &State, path: &str, which: &str) -> Vec<String> {
    lines(
        org,
        call(org, "GET", &format!("{path}/{which}"), &[], &Value::Null),
    )
}

#[test]
fn rows_of_an_ingest_job_succeed_and_fail_by_themselves() {
    let org = org(3);
    let csv = "LastName,Email,Title\nOne,one@example.net,A\n,two@example.net,B\nThree,nowhere,C\n";
    let path = ingest(
        &org,
        json!({"object": "Contact", "operation": "insert"}),
        csv,
    );
    let job = ended(&org, &path);
    assert_eq!(
        (&job["numberRecordsProcessed"], &job["numberRecordsFailed"]),
        (&json!(3), &json!(2))
    );
    let good = results(&org, &path, "successfulResults");
    assert_eq!(
        good[0],
        "\"sf__Id\",\"sf__Created\",\"LastName\",\"Email\",\"Title\"\n"
    );
    assert_eq!(good.len(), 2);
    assert!(good[1].contains("\"true\",\"One\""), "{}", good[1]);
    let bad = results(&org, &path, "failedResults");
    assert!(
        bad[1].starts_with(
            "\"\",\"REQUIRED_FIELD_MISSING:Required fields are missing: [LastName]:LastName --\""
        ),
        "{}",
        bad[1]
    );
    assert!(bad[2].contains("INVALID_EMAIL_ADDRESS"), "{}", bad[2]);
    assert_eq!(
        results(&org, &path, "unprocessedRecords").len(),
        1,
        "only the header"
    );
}

#[test]
fn an_empty_cell_leaves_a_field_alone_and_na_empties_it() {
    let org = org(2);
    let id = "003xx0000000001AAA";
    let fields = json!({"Title": "Kept", "Department": "Gone"});
    send(&org, "PATCH", &format!("sobjects/Contact/{id}"), fields);
    let csv = format!("Id,Title,Department\n{id},,#N/A\n");
    let path = ingest(
        &org,
        json!({"object": "Contact", "operation": "update"}),
        &csv,
    );
    assert_eq!(ended(&org, &path)["numberRecordsFailed"], 0);
    let row = send(&org, "GET", &format!("sobjects/Contact/{id}"), Value::Null).1;
    assert_eq!(
        (&row["Title"], &row["Department"]),
        (&json!("Kept"), &Value::Null)
    );
}

#[test]
fn upsert_and_delete_work_by_key_and_id() {
    let org = org(2);
    let asked = json!({"object": "Contact", "operation": "upsert", "externalIdFieldName": "pg_crm_sync_id__c"});
    let csv = "pg_crm_sync_id__c,LastName\nk-1,First\nk-2,Second\n";
    for made in ["true", "false"] {
        let path = ingest(&org, asked.clone(), csv);
        ended(&org, &path);
        let good = results(&org, &path, "successfulresults");
        assert!(
            good[1..]
                .iter()
                .all(|line| line.contains(&format!("\"{made}\""))),
            "{good:?}"
        );
    }
    let csv = "Id\n003xx0000000001AAA\n003xx0000000001AAA\n003xx0zzzzzzzzz\n";
    let path = ingest(
        &org,
        json!({"object": "Contact", "operation": "delete"}),
        csv,
    );
    assert_eq!(ended(&org, &path)["numberRecordsFailed"], 2);
    let bad = results(&org, &path, "failedResults").concat();
    assert!(
        bad.contains("ENTITY_IS_DELETED:entity is deleted")
            && bad.contains("INVALID_CROSS_REFERENCE_KEY"),
        "{bad}"
    );
}

#[test]
fn what_an_aborted_job_did_not_reach_is_unprocessed() {
    let org = org(2);
    settings(&org, json!({"bulk_queue_ms": 60_000}));
    let csv = "LastName\nA\nB\n";
    let path = ingest(
        &org,
        json!({"object": "Contact", "operation": "insert"}),
        csv,
    );
    let early = call(
        &org,
        "GET",
        &format!("{path}/successfulResults"),
        &[],
        &Value::Null,
    );
    assert_eq!(early.status, 400, "{}", body(&early));
    send(&org, "PATCH", &path, json!({"state": "Aborted"}));
    assert_eq!(
        results(&org, &path, "unprocessedrecords").concat(),
        "\"LastName\"\n\"A\"\n\"B\"\n"
    );
    assert_eq!(results(&org, &path, "successfulResults").len(), 1);
}

#[test]
fn uploads_beyond_the_size_limit_and_of_another_type_are_refused() {
    let org = org(1);
    settings(&org, json!({"bulk_upload_bytes": 40}));
    let (_, job) = send(
        &org,
        "POST",
        "jobs/ingest",
        json!({"object": "Contact", "operation": "insert"}),
    );
    let path = format!("jobs/ingest/{}/batches", job["id"].as_str().unwrap());
    let put = |kind: &str, data: &[u8]| {
        raw(&org, "PUT", &path, &[("content-type", kind)], data, "62.0").status
    };
    assert_eq!(put("application/json", b"{}"), 415);
    assert_eq!(
        put("text/csv", &[b'x'; 31]),
        413,
        "31 bytes are 44 in base64"
    );
    assert_eq!(put("text/csv", &[b'x'; 30]), 201);
}
