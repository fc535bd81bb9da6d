use super::*;
use crate::model::ChangeKind;

const OBJECT: &str = "contacts/companies";
const LABELS: &str = r#"{"results":[{"category":"HUBSPOT_DEFINED","typeId":1,"label":"Primary"},
    {"category":"USER_DEFINED","typeId":"36","label":"Boss"},{"category":"HUBSPOT_DEFINED","typeId":279,"label":null}]}"#;

fn described() -> Vec<crate::model::RemoteField> {
    hubspot().fields(OBJECT, &answer(200, LABELS)).unwrap()
}

fn list() -> Vec<(String, FieldType)> {
    described()
        .into_iter()
        .map(|f| (f.name, f.field_type))
        .collect()
}

fn write(key: &str, record_id: Option<&str>, values: &[(&str, &str)]) -> Write {
    let value = |(n, v): &(&str, &str)| ((*n).to_owned(), FieldType::Text, Some((*v).to_owned()));
    Write {
        key: key.into(),
        record_id: record_id.map(str::to_owned),
        unique_value: None,
        unchanged_since: None,
        values: values.iter().map(value).collect(),
    }
}

const NEW: [(&str, &str); 4] = [
    ("from_id", "7"),
    ("to_id", "8"),
    ("type_id", "279"),
    ("category", "HUBSPOT_DEFINED"),
];

#[test]
fn pairs_of_objects_are_offered_with_the_account_s_own_ones() {
    let schemas = r#"{"results":[{"name":"boats","objectTypeId":"2-9","fullyQualifiedName":"p1_boats","labels":{}}]}"#;
    let objects = hubspot().objects(0, &answer(200, schemas)).unwrap();
    for (name, type_id) in [
        (OBJECT, "0-1/0-2"),
        ("companies/contacts", "0-2/0-1"),
        ("notes/deals", "0-46/0-3"),
        ("p1_boats/contacts", "2-9/0-1"),
    ] {
        let found = objects.iter().find(|o| o.name == name);
        assert_eq!(found.map(|o| o.type_id.as_str()), Some(type_id), "{name}");
    }
    let names: std::collections::BTreeSet<&str> = objects.iter().map(|o| o.name.as_str()).collect();
    assert_eq!(names.len(), objects.len(), "a name is offered twice");
}

#[test]
fn the_type_without_a_label_is_the_first_choice() {
    let fields = described();
    let types = &fields.iter().find(|f| f.name == "type_id").unwrap().options;
    assert_eq!(types[0], ("279".to_owned(), String::new()));
    assert!(types.contains(&("36".to_owned(), "Boss".to_owned())));
    let categories = &fields
        .iter()
        .find(|f| f.name == "category")
        .unwrap()
        .options;
    assert_eq!(categories[0].0, "HUBSPOT_DEFINED");
}

#[test]
fn a_read_names_each_record_once_and_goes_on_where_more_follows() {
    let ids = ["7:8:HUBSPOT_DEFINED:279", "7", "9>abc"].map(str::to_owned);
    let request = hubspot().read_request(&ServerConfig::default(), OBJECT, &list(), &ids);
    assert_eq!(
        request.target,
        "/crm/associations/2026-03/contacts/companies/batch/read"
    );
    assert_eq!(
        body(&request),
        serde_json::json!({"inputs":[{"id":"7"},{"id":"9","after":"abc"}]})
    );
    let v3 = ServerConfig {
        api_version: "v3".into(),
        ..ServerConfig::default()
    };
    let request = hubspot().read_request(&v3, OBJECT, &list(), &ids);
    assert_eq!(
        request.target,
        "/crm/v4/associations/contacts/companies/batch/read"
    );
}

#[test]
fn ids_are_numbers_or_texts_and_every_type_is_a_row() {
    for to in ["8", "\"8\""] {
        let text = format!(
            r#"{{"status":"COMPLETE","results":[{{"from":{{"id":"7"}},"to":[{{"toObjectId":{to},"associationTypes":[
                {{"category":"HUBSPOT_DEFINED","typeId":279,"label":null}},{{"category":"HUBSPOT_DEFINED","typeId":1,"label":"Primary"}},
                {{"category":"USER_DEFINED","typeId":1,"label":"First"}}]}}],"paging":{{"next":{{"after":"55"}}}}}}],
                "errors":[{{"status":"error","category":"OBJECT_NOT_FOUND","subCategory":"crm.associations.NO_ASSOCIATIONS_FOUND"}}]}}"#
        );
        let page = hubspot()
            .page(OBJECT, &list(), &answer(207, &text))
            .unwrap();
        let row = |i: usize| -> Vec<&str> {
            let record = &page.records[i];
            let mut row = vec![record.id.as_str()];
            row.extend(record.values.iter().map(|v| v.unwrap_or("-")));
            row
        };
        assert_eq!(
            row(0),
            [
                "7:8:HUBSPOT_DEFINED:279",
                "7",
                "8",
                "279",
                "HUBSPOT_DEFINED",
                "-",
                "false"
            ]
        );
        assert_eq!(
            row(1),
            [
                "7:8:HUBSPOT_DEFINED:1",
                "7",
                "8",
                "1",
                "HUBSPOT_DEFINED",
                "Primary",
                "true"
            ]
        );
        // The user's first type is not HubSpot's.
        assert_eq!(row(2)[6], "false");
        assert_eq!(page.next.as_deref(), Some("7>55"));
    }
}

#[test]
fn an_error_that_is_not_the_lack_of_associations_is_not_taken_for_it() {
    let text = r#"{"results":[],"errors":[{"status":"error","category":"RATE_LIMITS"}]}"#;
    assert!(hubspot().page(OBJECT, &list(), &answer(207, text)).is_err());
    assert!(
        hubspot()
            .page(OBJECT, &list(), &answer(200, "<html>"))
            .is_err()
    );
}

#[test]
fn types_are_added_to_pairs_and_taken_from_them() {
    let h = hubspot();
    let config = ServerConfig::default();
    let create = h.push_request(
        &config,
        OBJECT,
        WriteKind::Create,
        None,
        &[write("w1", None, &NEW)],
    );
    assert!(create.target.ends_with("/contacts/companies/batch/create"));
    let gone = [write("w2", Some("7:8:USER_DEFINED:36"), &[])];
    let delete = h.push_request(&config, OBJECT, WriteKind::Delete, None, &gone);
    assert!(
        delete
            .target
            .ends_with("/contacts/companies/batch/labels/archive")
    );
    assert_eq!(
        body(&create)["inputs"][0],
        serde_json::json!({"from":{"id":"7"},"to":{"id":"8"},"types":[{"associationCategory":"HUBSPOT_DEFINED","associationTypeId":279}]})
    );
    assert_eq!(
        body(&delete)["inputs"][0]["types"][0]["associationTypeId"],
        36
    );
    let results = h.pushed(WriteKind::Delete, None, &gone, &answer(204, ""));
    assert!(matches!(&results[..], [WriteResult::Done { id, .. }] if id == "7:8:USER_DEFINED:36"));
    // An update adds what the pair becomes, and answers that one's id.
    let to = [("type_id", "38"), ("label", "Friend")];
    let change = [write("w3", Some("7:8:USER_DEFINED:36"), &to)];
    let update = h.push_request(&config, OBJECT, WriteKind::Update, None, &change);
    assert!(update.target.ends_with("/contacts/companies/batch/create"));
    assert_eq!(
        body(&update)["inputs"][0]["types"],
        serde_json::json!([{"associationCategory":"USER_DEFINED","associationTypeId":38}])
    );
    let results = h.pushed(WriteKind::Update, None, &change, &answer(201, "{}"));
    assert!(matches!(&results[..], [WriteResult::Done { id, .. }] if id == "7:8:USER_DEFINED:38"));
}

#[test]
fn what_became_of_each_pair_is_told_by_the_errors() {
    let mut other = NEW;
    other[1].1 = "9";
    let writes = [
        write("w1", None, &NEW),
        write("w2", None, &other),
        write("w3", None, &NEW[..1]),
    ];
    let text = r#"{"status":"COMPLETE","results":[],"errors":[{"status":"error","category":"OBJECT_NOT_FOUND","message":"no company 9",
        "context":{"fromObjectId":["7"],"toObjectId":["9"]}}]}"#;
    let results = hubspot().pushed(WriteKind::Create, None, &writes, &answer(207, text));
    assert!(matches!(&results[0], WriteResult::Done { id, .. } if id == "7:8:HUBSPOT_DEFINED:279"));
    assert!(matches!(&results[1], WriteResult::Failed(e) if e.code == "OBJECT_NOT_FOUND"));
    assert!(matches!(&results[2], WriteResult::Failed(e) if e.class == ErrorClass::FixData));
    // Refused whole: halves may pass.
    let text = r#"{"status":"error","category":"OBJECT_NOT_FOUND"}"#;
    let results = hubspot().pushed(WriteKind::Create, None, &writes, &answer(404, text));
    assert!(
        results
            .iter()
            .all(|r| matches!(r, WriteResult::Failed(e) if e.class == ErrorClass::Split))
    );
}

#[test]
fn events_of_both_shapes_ask_for_the_associations_of_their_record() {
    for shape in [
        r#""subscriptionType":"contact.associationChange","associationType":"CONTACT_TO_COMPANY""#,
        r#""subscriptionType":"object.associationChange","fromObjectTypeId":"0-1","toObjectTypeId":"0-2","associationTypeId":279"#,
    ] {
        let text = format!(
            r#"[{{"portalId":1,"occurredAt":5,{shape},"fromObjectId":7,"toObjectId":8,"associationRemoved":false}}]"#
        );
        let found = super::super::webhook::decode(text.as_bytes()).unwrap();
        let told = found.iter().find(|c| c.object == "0-1/0-2");
        let told = told.unwrap_or_else(|| panic!("{found:?}"));
        assert_eq!(
            (told.record_id.as_str(), &told.kind),
            ("7", &ChangeKind::Reread)
        );
        assert_ne!(found[0].identity, told.identity);
    }
}
