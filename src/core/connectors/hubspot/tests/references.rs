use super::*;

fn fields_of(object: &str) -> Vec<(String, FieldType)> {
    let described = hubspot().fields(object, &answer(200, r#"{"results":[]}"#));
    let described = described.unwrap();
    assert!(described.iter().all(|f| f.read_only), "{object}");
    described
        .into_iter()
        .map(|f| (f.name, f.field_type))
        .collect()
}

/// Id, whether it is gone, and the values that are there.
type Row = (String, bool, Vec<(String, String)>);

fn rows(object: &str, text: &str) -> Vec<Row> {
    let fields = fields_of(object);
    let page = hubspot().page(object, &fields, &answer(200, text)).unwrap();
    let named = |r: &crate::model::Record| {
        let values = fields.iter().zip(r.values.iter());
        let values = values.filter_map(|((n, _), v)| Some((n.clone(), v?.to_owned())));
        (r.id.clone(), r.deleted, values.collect())
    };
    page.records.iter().map(named).collect()
}

#[test]
fn the_catalog_offers_references_that_nobody_writes() {
    let objects = hubspot()
        .objects(0, &answer(200, r#"{"results":[]}"#))
        .unwrap();
    for name in ["owners", "deal_pipelines", "deal_stages", "ticket_stages"] {
        let found = objects.iter().find(|o| o.name == name);
        let found = found.unwrap_or_else(|| panic!("{name} is not offered"));
        assert!(!found.createable && !found.updateable && !found.deletable);
        assert!(hubspot().polls_list_all(name));
    }
    assert!(!hubspot().polls_list_all("contacts"));
    // A custom object of this name is a custom object.
    assert!(!hubspot().polls_list_all("p1_sales_pipelines"));
}

#[test]
fn owners_come_with_teams_and_archived_ones_are_marked() {
    let found = rows(
        "owners",
        r#"{"results":[{"id":"71","email":"a@b.c","type":"PERSON","firstName":"O","userId":null,"userIdIncludingInactive":933,
            "createdAt":"2026-01-01T00:00:00Z","updatedAt":"2026-01-02T00:00:00.5Z","archived":true,
            "teams":[{"id":"1","name":"B; C","primary":false},{"id":"2","name":"A","primary":true}]},{"noid":1}],
            "paging":{"next":{"after":"72"}}}"#,
    );
    let [(id, deleted, values)] = found.as_slice() else {
        panic!("{found:?}");
    };
    let value = |name: &str| {
        let found = values.iter().find(|(n, _)| n == name);
        found.map_or("-", |(_, v)| v.as_str())
    };
    assert_eq!((id.as_str(), *deleted), ("71", true));
    assert_eq!(
        (value("userId"), value("userIdIncludingInactive")),
        ("-", "933")
    );
    assert_eq!((value("teams"), value("archived")), ("A;B, C", "true"));
    assert_eq!(value("updatedAt"), "2026-01-02T00:00:00.500Z");
}

#[test]
fn stages_of_all_pipelines_are_rows_and_metadata_becomes_typed() {
    let text = r#"{"results":[{"id":"default","label":"Sales","archived":false,"stages":[
        {"id":"won","label":"Won","displayOrder":5,"metadata":{"isClosed":"true","probability":"1.0"},"updatedAt":"1970-01-01T00:00:00Z"},
        {"id":"odd","label":"Odd","metadata":{"probability":"much"}}]},
        {"id":"old","label":"Old","archived":true,"stages":[{"id":"gone","label":"Gone"}]}]}"#;
    let found = rows("deal_stages", text);
    let ids: Vec<(&str, bool)> = found.iter().map(|(id, d, _)| (id.as_str(), *d)).collect();
    assert_eq!(ids, [("won", false), ("odd", false), ("gone", true)]);
    for expected in [
        ("pipelineId", "default"),
        ("isClosed", "true"),
        ("probability", "1.0"),
        ("displayOrder", "5"),
    ] {
        let has = |(n, v): &(String, String)| (n.as_str(), v.as_str()) == expected;
        assert!(found[0].2.iter().any(has), "{expected:?} in {found:?}");
    }
    let fields = fields_of("deal_stages");
    let page = hubspot()
        .page("deal_stages", &fields, &answer(200, text))
        .unwrap();
    assert_eq!(
        page.unreadable,
        [("odd".into(), "probability".into(), "much".into())]
    );
    assert_eq!(rows("deal_pipelines", text).len(), 2);
}

#[test]
fn a_poll_of_owners_goes_through_the_active_and_then_the_archived() {
    let h = hubspot();
    let config = ServerConfig::default();
    let mut asked = Keyset::default();
    let mut targets = Vec::new();
    for after in [Some("72"), None, Some("90"), None] {
        targets.push(h.poll_request(&config, "owners", &[], &asked).target);
        let page = Page {
            next: after.map(str::to_owned),
            ..Page::default()
        };
        match h.next_keyset("owners", &asked, &page) {
            Some(next) => asked = next,
            None => break,
        }
    }
    assert_eq!(
        targets,
        [
            "/crm/owners/2026-03?limit=100&archived=false",
            "/crm/owners/2026-03?limit=100&archived=false&after=72",
            "/crm/owners/2026-03?limit=100&archived=true",
            "/crm/owners/2026-03?limit=100&archived=true&after=90",
        ]
    );
    let v3 = ServerConfig {
        api_version: "v3".into(),
        ..config
    };
    let stages = h.poll_request(&v3, "ticket_stages", &[], &Keyset::default());
    assert_eq!(stages.target, "/crm/v3/pipelines/tickets");
    let next = h.next_keyset("ticket_stages", &Keyset::default(), &Page::default());
    assert_eq!(next, None);
}
