use super::*;
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

fn updates() -> Vec<Write> {
    vec![
        write("k1", Some("1"), &[("phone", FieldType::Text, Some("+1"))]),
        write("k2", Some("2"), &[("phone", FieldType::Text, None)]),
        write(
            "k3",
            Some("3"),
            &[("vip", FieldType::Boolean, Some("true"))],
        ),
    ]
}

fn pushed(kind: WriteKind, writes: &[Write], status: u16, text: &str) -> Vec<WriteResult> {
    hubspot().pushed(kind, None, writes, &answer(status, text))
}

fn classes(results: &[WriteResult]) -> Vec<ErrorClass> {
    results
        .iter()
        .map(|r| match r {
            WriteResult::Failed(e) => e.class,
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn an_update_batch_names_each_input_and_clears_with_the_empty_string() {
    let config = ServerConfig::default();
    let request = hubspot().push_request(&config, "contacts", WriteKind::Update, None, &updates());
    assert_eq!(request.target, "/crm/objects/2026-03/contacts/batch/update");
    assert_eq!(
        body(&request),
        serde_json::json!({"inputs":[
            {"objectWriteTraceId":"k1","id":"1","properties":{"phone":"+1"}},
            {"objectWriteTraceId":"k2","id":"2","properties":{"phone":""}},
            {"objectWriteTraceId":"k3","id":"3","properties":{"vip":"true"}}]})
    );
}

#[test]
fn creates_go_by_our_unique_property_where_the_account_has_it() {
    let config = ServerConfig::default();
    let mut create = write("k1", None, &[("email", FieldType::Text, Some("a@b.c"))]);
    create.unique_value = Some("u-1".into());
    let send = |unique, w: &Write| {
        let writes = std::slice::from_ref(w);
        hubspot().push_request(&config, "contacts", WriteKind::Create, unique, writes)
    };
    let upsert = send(Some(OUR_UNIQUE), &create);
    assert!(upsert.target.ends_with("/contacts/batch/upsert"));
    assert_eq!(
        body(&upsert)["inputs"][0],
        serde_json::json!({"objectWriteTraceId":"k1","idProperty":"pg_crm_sync_id","id":"u-1",
            "properties":{"pg_crm_sync_id":"u-1","email":"a@b.c"}})
    );
    let plain = send(None, &create);
    assert!(plain.target.ends_with("/contacts/batch/create"));
    assert!(body(&plain)["inputs"][0].get("id").is_none());
}

#[test]
fn results_in_any_order_find_their_writes() {
    let text = r#"{"status":"COMPLETE","results":[
      {"id":"3","properties":{"vip":true,"other":"x"},"updatedAt":"2026-03-12T07:33:46.615Z"},
      {"id":"1","properties":{"phone":"+1"},"objectWriteTraceId":"k1"},
      {"id":"2","properties":{"phone":null,"hs_lastmodifieddate":"1970-01-01T00:00:01.000Z"}}]}"#;
    let results = pushed(WriteKind::Update, &updates(), 200, text);
    let done = |i: usize| match &results[i] {
        WriteResult::Done {
            id,
            created,
            modified_at,
            echoed,
        } => (id.clone(), *created, *modified_at, echoed.clone()),
        other => panic!("{other:?}"),
    };
    assert_eq!(done(0).0, "1");
    assert_eq!(done(1).0, "2");
    assert_eq!(done(1).2, Some(1_000));
    assert_eq!(done(1).3, [("phone".to_owned(), None)]);
    assert_eq!(done(2).3, [("vip".to_owned(), Some("true".to_owned()))]);
    assert!(!done(0).1);
}

#[test]
fn a_multi_status_tells_done_failed_existing_and_unknown() {
    let writes = vec![
        write("k1", None, &[]),
        write("k2", None, &[]),
        write("k3", None, &[]),
        write("k4", None, &[]),
    ];
    let text = r#"{"status":"COMPLETE","numErrors":2,"results":[{"id":"9","properties":{},"objectWriteTraceId":"k3"}],"errors":[
      {"status":"error","category":"VALIDATION_ERROR","message":"bad option","context":{"objectWriteTraceId":["k1"]}},
      {"status":"error","category":"CONFLICT","message":"Contact already exists. Existing ID: 123","context":{"objectWriteTraceId":["k2"]}}]}"#;
    let results = pushed(WriteKind::Create, &writes, 207, text);
    assert!(
        matches!(&results[0], WriteResult::Failed(e) if e.class == ErrorClass::FixData
        && !e.maybe_applied)
    );
    assert!(matches!(&results[1], WriteResult::Exists { id, .. } if id == "123"));
    assert!(matches!(&results[2], WriteResult::Done { id, created: true, .. } if id == "9"));
    assert!(matches!(&results[3], WriteResult::Unknown(e) if e.maybe_applied));
}

#[test]
fn upserts_are_matched_by_our_value_and_tell_new_from_found() {
    let mut writes = vec![write("k1", None, &[]), write("k2", None, &[])];
    writes[0].unique_value = Some("u-1".into());
    writes[1].unique_value = Some("u-2".into());
    let text = r#"{"status":"COMPLETE","results":[{"id":"8","new":false,"properties":{"pg_crm_sync_id":"u-2"}},{"id":"9","new":true,"properties":{"pg_crm_sync_id":"u-1"}}]}"#;
    let results = hubspot().pushed(
        WriteKind::Create,
        Some(OUR_UNIQUE),
        &writes,
        &answer(200, text),
    );
    assert!(matches!(&results[0], WriteResult::Done { id, created: true, .. } if id == "9"));
    assert!(matches!(&results[1], WriteResult::Done { id, created: false, .. } if id == "8"));
}

#[test]
fn a_refused_batch_is_split_and_a_refused_single_write_is_parked() {
    let bad = r#"{"status":"error","category":"VALIDATION_ERROR","message":"bad"}"#;
    let all = pushed(WriteKind::Update, &updates(), 400, bad);
    assert_eq!(classes(&all), [ErrorClass::Split; 3]);
    let one = pushed(WriteKind::Update, &updates()[..1], 400, bad);
    assert_eq!(classes(&one), [ErrorClass::FixData]);
    let conflict = r#"{"status":"error","category":"CONFLICT","message":"Contact already exists. Existing ID: 123"}"#;
    let all = pushed(WriteKind::Create, &updates(), 409, conflict);
    assert_eq!(classes(&all), [ErrorClass::Split; 3]);
    let one = pushed(WriteKind::Create, &updates()[..1], 409, conflict);
    assert!(matches!(&one[0], WriteResult::Exists { id, .. } if id == "123"));
    // A changed e-mail that another contact has: nothing of this one belongs there.
    let one = pushed(WriteKind::Update, &updates()[..1], 409, conflict);
    assert_eq!(classes(&one), [ErrorClass::FixData]);
    let scope = r#"{"status":"error","category":"MISSING_SCOPES","message":"m"}"#;
    let all = pushed(WriteKind::Update, &updates(), 403, scope);
    assert_eq!(classes(&all), [ErrorClass::FixPermission; 3]);
    let limit = r#"{"errorType":"RATE_LIMIT","policyName":"SECONDLY"}"#;
    let all = pushed(WriteKind::Update, &updates(), 429, limit);
    assert_eq!(classes(&all), [ErrorClass::Wait; 3]);
}

#[test]
fn a_lost_or_cut_answer_leaves_every_write_unknown() {
    for (status, text) in [
        (200, r#"{"status":"COMPLETE","results":[{"id":"1""#),
        (200, "<html>"),
        (204, ""),
        (502, "<html>"),
        (500, "{}"),
        (504, ""),
    ] {
        let results = pushed(WriteKind::Update, &updates(), status, text);
        assert_eq!(results.len(), 3);
        for r in results {
            assert!(
                matches!(&r, WriteResult::Unknown(e) if e.maybe_applied),
                "{status} {text} {r:?}"
            );
        }
    }
}

#[test]
fn archiving_answers_nothing_and_is_done() {
    let results = pushed(WriteKind::Delete, &updates(), 204, "");
    assert!(matches!(&results[2], WriteResult::Done { id, created: false, .. } if id == "3"));
    let config = ServerConfig::default();
    let request = hubspot().push_request(&config, "contacts", WriteKind::Delete, None, &updates());
    assert_eq!(
        body(&request),
        serde_json::json!({"inputs":[{"id":"1"},{"id":"2"},{"id":"3"}]})
    );
}

#[test]
fn a_merged_record_answers_under_the_survivors_id() {
    let text = r#"{"status":"COMPLETE","results":[{"id":"1","properties":{}},{"id":"40","properties":{}},{"id":"3","properties":{}}]}"#;
    let results = pushed(WriteKind::Update, &updates(), 200, text);
    assert!(matches!(&results[1], WriteResult::Done { id, .. } if id == "40"));
    // Two of them cannot be told apart.
    let text = text.replace(r#""id":"3""#, r#""id":"50""#);
    let results = pushed(WriteKind::Update, &updates(), 200, &text);
    assert!(matches!(&results[1], WriteResult::Unknown(_)));
    assert!(matches!(&results[2], WriteResult::Unknown(_)));
}

#[test]
fn there_is_one_result_per_write_whatever_the_answer() {
    let seed = 0x5eed_0005;
    let mut random = Random::new(seed);
    let good = r#"{"status":"COMPLETE","results":[{"id":"1","properties":{"phone":"+1"},"objectWriteTraceId":"k1"}],"errors":[{"category":"CONFLICT","message":"Existing ID: 123","context":{"ids":["2"]}}]}"#;
    for round in 0..3_000 {
        let damaged = HttpResponse {
            status: [200, 201, 204, 207, 400, 409, 429, 500][random.below(8)],
            headers: Vec::new(),
            body: random.damage(good.as_bytes()),
        };
        for kind in [WriteKind::Create, WriteKind::Update, WriteKind::Delete] {
            let results = hubspot().pushed(kind, Some(OUR_UNIQUE), &updates(), &damaged);
            assert_eq!(results.len(), 3, "seed {seed:#x} round {round}");
        }
    }
}
