use super::*;
use crate::connectors::bulk::{BulkWriter, Stage, UNTOUCHED};
use crate::http::Method;
use crate::model::ErrorClass;

fn bulk() -> &'static dyn BulkWriter {
    salesforce().bulk_writer().unwrap()
}

fn config() -> ServerConfig {
    ServerConfig::default()
}

fn write(id: &str, values: &[(&str, FieldType, Option<&str>)]) -> Write {
    Write {
        key: format!("w{id}"),
        record_id: Some(id.to_owned()),
        unique_value: None,
        unchanged_since: None,
        values: (values.iter())
            .map(|(n, t, v)| ((*n).to_owned(), *t, v.map(str::to_owned)))
            .collect(),
    }
}

fn create(unique: &str) -> Write {
    Write {
        record_id: None,
        unique_value: Some(unique.to_owned()),
        ..write("", &[("LastName", FieldType::Text, Some("New"))])
    }
}

const A: &str = "003xx0000000001AAA";
const B: &str = "003xx0000000002AAA";
const C: &str = "003xx0000000003AAA";

fn rows(request: &HttpRequest) -> String {
    String::from_utf8(request.body.clone()).unwrap()
}

#[test]
fn rows_say_what_to_empty_and_what_to_leave_alone() {
    let writes = [
        write(
            A,
            &[
                ("LastName", FieldType::Text, Some("O\"Neil,\nJr")),
                ("Title", FieldType::Text, None),
            ],
        ),
        write(
            B,
            &[
                ("DoNotCall", FieldType::Boolean, None),
                ("Title", FieldType::Text, Some(" ")),
                ("At__c", FieldType::Time, Some("10:30:00.000")),
            ],
        ),
    ];
    let upload = bulk().upload(&config(), "750x", WriteKind::Update, None, &writes);
    assert_eq!(upload.method, Method::Put);
    assert_eq!(
        upload.target,
        "/services/data/v62.0/jobs/ingest/750x/batches"
    );
    assert!(
        upload
            .headers
            .contains(&("content-type".into(), "text/csv; charset=UTF-8".into()))
    );
    let expected = format!(
        "\"Id\",\"LastName\",\"Title\",\"DoNotCall\",\"At__c\"\n\
         \"{A}\",\"O\"\"Neil,\nJr\",\"#N/A\",\"\",\"\"\n\
         \"{B}\",\"\",\"#N/A\",\"false\",\"10:30:00.000Z\"\n"
    );
    assert_eq!(rows(&upload), expected);
    let deletes = bulk().upload(&config(), "750x", WriteKind::Delete, None, &writes);
    assert_eq!(rows(&deletes), format!("\"Id\"\n\"{A}\"\n\"{B}\"\n"));
    let creates = [create("k-1"), create("k-2")];
    let upload = bulk().upload(
        &config(),
        "750x",
        WriteKind::Create,
        Some("pg_crm_sync_id__c"),
        &creates,
    );
    assert_eq!(
        rows(&upload),
        "\"pg_crm_sync_id__c\",\"LastName\"\n\"k-1\",\"New\"\n\"k-2\",\"New\"\n"
    );
}

#[test]
fn writes_whose_rows_would_say_something_else_or_could_not_be_told_apart_do_not_fit() {
    let fits = |kind, unique, writes: &[Write]| bulk().fits(kind, unique, writes);
    let titled = |id, title: &str| write(id, &[("Title", FieldType::Text, Some(title))]);
    let writes = [
        titled(A, "x"),
        titled(B, "#N/A"),
        titled(A, "twice the same record"),
        titled(C, ""),
    ];
    assert_eq!(
        fits(WriteKind::Update, None, &writes),
        [true, false, false, true]
    );
    let unique = Some("pg_crm_sync_id__c");
    let creates = [create("k-1")];
    assert_eq!(
        fits(WriteKind::Create, None, &creates),
        [false],
        "nothing names the row"
    );
    assert_eq!(fits(WriteKind::Create, unique, &creates), [true]);
}

#[test]
fn what_a_job_may_not_hold_goes_otherwise() {
    let fits = |writes: &[Write]| bulk().fits(WriteKind::Update, None, writes);
    // Salesforce counts characters, 32,000 a field and 400,000 a record.
    let long = "ö".repeat(32_000);
    let longer = "x".repeat(32_001);
    let many: Vec<String> = (0..13).map(|n| format!("F{n}__c")).collect();
    let cells: Vec<_> = (many.iter())
        .map(|f| (f.as_str(), FieldType::Text, Some(&longer[1..])))
        .collect();
    let writes = [
        write(A, &[("Title", FieldType::Text, Some(&long))]),
        write(B, &[("Title", FieldType::Text, Some(&longer))]),
        write(C, &cells),
        write("003xx0000000004AAA", &cells[1..]),
    ];
    assert_eq!(fits(&writes), [true, false, false, true]);
    // A field of its own for every row: each row has a cell for all of them.
    let wide: Vec<Write> = (0..5_000)
        .map(|n| {
            write(
                &format!("003xx{n:010}AAA"),
                &[(&format!("F{n}__c"), FieldType::Text, Some("x"))],
            )
        })
        .collect();
    let taken = fits(&wide);
    let fit: Vec<Write> = (wide.into_iter().zip(&taken))
        .filter_map(|(w, t)| t.then_some(w))
        .collect();
    let upload = bulk().upload(&config(), "750x", WriteKind::Update, None, &fit);
    assert!(fit.len() > 1_000 && fit.len() < 5_000);
    assert!(upload.body.len() < 7 << 20, "{} bytes", upload.body.len());
}

#[test]
fn a_job_is_made_begun_asked_and_removed() {
    let open = bulk().open(
        &config(),
        "Contact",
        WriteKind::Create,
        Some("pg_crm_sync_id__c"),
    );
    assert_eq!(open.target, "/services/data/v62.0/jobs/ingest");
    assert_eq!(body(&open)["operation"], "upsert");
    assert_eq!(body(&open)["externalIdFieldName"], "pg_crm_sync_id__c");
    let update = bulk().open(
        &config(),
        "Contact",
        WriteKind::Update,
        Some("pg_crm_sync_id__c"),
    );
    assert_eq!(body(&update)["operation"], "update");
    assert!(body(&update).get("externalIdFieldName").is_none());
    let set = |go| body(&bulk().set(&config(), "750x", go))["state"].clone();
    assert_eq!(
        (set(true), set(false)),
        ("UploadComplete".into(), "Aborted".into())
    );
    let stage = |state: &str| {
        bulk().stage(&answer(
            200,
            &format!(r#"{{"id":"750x","state":"{state}"}}"#),
        ))
    };
    assert_eq!(stage("Open"), Ok(Stage::Open));
    assert_eq!(stage("InProgress"), Ok(Stage::Waiting));
    for state in ["JobComplete", "Failed", "Aborted"] {
        assert_eq!(stage(state), Ok(Stage::Ended));
    }
    assert_eq!(bulk().results(&config(), "750x").len(), 3);
    assert_eq!(bulk().remove(&config(), "750x").method, Method::Delete);
}

#[test]
fn each_write_has_the_result_of_its_row_in_whatever_order_they_come() {
    let writes = [A, B, C, "003xx0000000004AAA"]
        .map(|id| write(id, &[("Title", FieldType::Text, Some("x"))]));
    let parts = [
        format!("\"sf__Id\",\"sf__Created\",\"Id\",\"Title\"\n\"{C}\",\"false\",\"{C}\",\"x\"\n"),
        format!(
            "\"sf__Id\",\"sf__Error\",\"Id\",\"Title\"\n\"\",\"STRING_TOO_LONG:Title: data value too large: x (max length=1):Title --\",\"{A}\",\"x\"\n"
        ),
        format!("\"Id\",\"Title\"\n\"{B}\",\"x\"\n"),
    ];
    let answers = parts.map(|part| answer(200, &part));
    let results = bulk()
        .outcomes(WriteKind::Update, None, &writes, &answers)
        .unwrap();
    let WriteResult::Failed(error) = &results[0] else {
        panic!("{results:?}")
    };
    assert_eq!(
        (error.code.as_str(), error.class),
        ("STRING_TOO_LONG", ErrorClass::FixData)
    );
    assert_eq!(error.fields, ["Title"]);
    assert!(
        matches!(&results[1], WriteResult::Failed(e) if e.code == UNTOUCHED && e.class == ErrorClass::Retry)
    );
    assert!(matches!(&results[2], WriteResult::Done { id, created: false, .. } if id == C));
    assert!(
        matches!(&results[3], WriteResult::Unknown(_)),
        "in no part: nobody knows"
    );
}

#[test]
fn creates_are_told_apart_by_our_key_and_doubles_name_what_is_there() {
    let writes = [create("k-1"), create("k-2"), create("k-3")];
    let unique = Some("pg_crm_sync_id__c");
    let parts = [
        format!(
            "\"sf__Id\",\"sf__Created\",\"pg_crm_sync_id__c\"\n\"{B}\",\"true\",\"k-2\"\n\"{C}\",\"false\",\"k-3\"\n"
        ),
        format!(
            "\"sf__Id\",\"sf__Error\",\"pg_crm_sync_id__c\"\n\"\",\"DUPLICATE_VALUE:duplicate value found: Ext__c duplicates value on record with id: {A}:Ext__c --\",\"k-1\"\n"
        ),
        "\"pg_crm_sync_id__c\"\n".to_owned(),
    ];
    let answers = parts.map(|part| answer(200, &part));
    let results = bulk()
        .outcomes(WriteKind::Create, unique, &writes, &answers)
        .unwrap();
    assert!(
        matches!(&results[0], WriteResult::Exists { id, .. } if id == A),
        "{results:?}"
    );
    assert!(matches!(&results[1], WriteResult::Done { id, created: true, .. } if id == B));
    assert!(matches!(&results[2], WriteResult::Done { id, created: false, .. } if id == C));
}

#[test]
fn a_delete_of_what_is_gone_is_done() {
    let writes = [A, B].map(|id| write(id, &[]));
    let parts = [
        "\"sf__Id\",\"sf__Created\",\"Id\"\n".to_owned(),
        format!(
            "\"sf__Id\",\"sf__Error\",\"Id\"\n\"\",\"ENTITY_IS_DELETED:entity is deleted: --\",\"{A}\"\n\"\",\"INVALID_CROSS_REFERENCE_KEY:invalid cross reference id: --\",\"{B}\"\n"
        ),
    ];
    let answers = parts.map(|part| answer(200, &part));
    let results = bulk()
        .outcomes(WriteKind::Delete, None, &writes, &answers)
        .unwrap();
    assert!(
        matches!(&results[0], WriteResult::Done { id, .. } if id == A),
        "{results:?}"
    );
    assert!(matches!(&results[1], WriteResult::Failed(e) if e.class == ErrorClass::Gone));
}

#[test]
fn results_that_are_no_table_are_asked_for_again() {
    let writes = [write(A, &[])];
    for text in [
        "<html></html>",
        "<html>\n</html>\n",
        "\"other\"\n\"x\"\n",
        "\"Id\"\n\"x\"\n",
    ] {
        let refused = bulk().outcomes(WriteKind::Update, None, &writes, &[answer(200, text)]);
        assert_eq!(refused.unwrap_err().class, ErrorClass::Retry, "{text}");
    }
    // A job without data names no columns.
    for text in ["", "\"sf__Id\",\"sf__Created\"\n"] {
        let nothing = bulk().outcomes(WriteKind::Update, None, &writes, &[answer(200, text)]);
        assert!(matches!(nothing.unwrap()[0], WriteResult::Unknown(_)));
    }
}
