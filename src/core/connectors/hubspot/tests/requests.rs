use super::*;
use crate::http::Method;

fn config(version: &str) -> ServerConfig {
    ServerConfig {
        api_version: version.into(),
        ..ServerConfig::default()
    }
}

fn some_fields() -> Vec<(String, FieldType)> {
    fields(&[("email", FieldType::Text), ("phone", FieldType::Text)])
}

#[test]
fn paths_follow_the_version() {
    let h = hubspot();
    for (version, list, properties, schemas, probe) in [
        (
            "",
            "/crm/objects/2026-03/contacts?limit=100&archived=false&properties=email,phone",
            "/crm/properties/2026-03/contacts",
            "/crm-object-schemas/2026-03/schemas",
            "/account-info/2026-03/details",
        ),
        (
            "v3",
            "/crm/v3/objects/contacts?limit=100&archived=false&properties=email,phone",
            "/crm/v3/properties/contacts",
            "/crm-object-schemas/v3/schemas",
            "/account-info/v3/details",
        ),
    ] {
        let c = config(version);
        let l = h.list_request(&c, "contacts", &some_fields(), None);
        assert_eq!(l.target, list);
        assert_eq!(l.method, Method::Get);
        assert_eq!(h.fields_request(&c, "contacts", None).target, properties);
        assert_eq!(h.objects_requests(&c)[0].target, schemas);
        assert_eq!(h.probe(&c).target, probe);
    }
    let next = h.list_request(&config(""), "contacts", &[], Some("5&x=1"));
    assert!(next.target.ends_with("&after=5%26x%3D1"));
    let removed = h.removed_request(&config("v3"), "contacts", Some("7"));
    assert_eq!(
        removed.map(|r| r.target).as_deref(),
        Some("/crm/v3/objects/contacts?limit=100&archived=true&after=7")
    );
    let odd = h.fields_request(&config("../x"), "a/b?c", None);
    assert_eq!(odd.target, "/crm/properties/..%2Fx/a%2Fb%3Fc");
}

#[test]
fn a_poll_resumes_after_the_last_record_and_not_before_or_beyond() {
    let since = Keyset {
        modified_at: 1_773_300_830_001,
        id: "55".into(),
        ties: false,
    };
    let request = hubspot().poll_request(&config(""), "contacts", &some_fields(), &since);
    assert_eq!(request.target, "/crm/objects/2026-03/contacts/search");
    assert_eq!(
        body(&request),
        serde_json::json!({
            "filterGroups":[
                {"filters":[
                    {"propertyName":"lastmodifieddate","operator":"EQ","value":"1773300830001"},
                    {"propertyName":"hs_object_id","operator":"GT","value":"55"}]},
                {"filters":[
                    {"propertyName":"lastmodifieddate","operator":"GT","value":"1773300830001"}]}],
            "sorts":[{"propertyName":"lastmodifieddate","direction":"ASCENDING"}],
            "limit":200,
            "properties":["lastmodifieddate","email","phone"]})
    );
    let start = Keyset {
        id: String::new(),
        ..since
    };
    let request = hubspot().poll_request(&config(""), "deals", &[], &start);
    let filter = &body(&request)["filterGroups"][0]["filters"][0];
    assert_eq!(filter["operator"], "GTE");
    assert_eq!(filter["propertyName"], "hs_lastmodifieddate");
}

#[test]
fn people_are_found_by_batch_read_and_companies_by_search() {
    let values = ["A@B.c".to_owned(), "x\"y".to_owned()];
    let find =
        |object, field| hubspot().find_request(&config(""), object, &some_fields(), field, &values);
    let by_email = find("contacts", "email");
    assert!(by_email.target.contains("/batch/read?"));
    assert_eq!(body(&by_email)["idProperty"], "email");
    let by_domain = find("companies", "domain");
    assert!(by_domain.target.ends_with("/search"));
    let filter = &body(&by_domain)["filterGroups"][0]["filters"][0];
    assert_eq!(filter["operator"], "IN");
    assert_eq!(filter["values"], serde_json::json!(["a@b.c", "x\"y"]));
}

#[test]
fn removed_records_are_found_by_our_own_property_only() {
    let values = ["i-1-2".to_owned()];
    let find = |field| {
        hubspot().find_removed_request(&config(""), "deals", &some_fields(), field, &values)
    };
    let ours = find("pg_crm_sync_id").unwrap();
    assert!(ours.target.ends_with("/batch/read?archived=true"));
    assert_eq!(body(&ours)["idProperty"], "pg_crm_sync_id");
    // A search shows none.
    assert!(find("dealname").is_none());
}

#[test]
fn a_search_never_outgrows_the_body_that_hubspot_takes() {
    for len in [3, 20, 60, 400, 5_000] {
        let values: Vec<String> = (0..150)
            .map(|i| format!("{}{i}", "é\"".repeat(len / 2)))
            .collect();
        for f in [some_fields(), Vec::new()] {
            let fit = hubspot().find_batch("companies", &f, "domain", &values);
            assert!((1..=100).contains(&fit));
            let request =
                hubspot().find_request(&config(""), "companies", &f, "domain", &values[..fit]);
            let chars = String::from_utf8(request.body).unwrap().chars().count();
            assert!(chars <= 3_000 || fit == 1, "{len}: {chars}");
        }
    }
}

#[test]
fn token_requests_are_forms_for_the_version_at_hand() {
    let credential = Credential::RefreshToken {
        client_id: "app&1".into(),
        client_secret: Some(Secret::new("s=1")),
        refresh_token: Secret::new("r 1"),
    };
    let request = |c: &ServerConfig| hubspot().token_request(c, &credential, 0);
    let v3 = request(&config("v3")).unwrap().unwrap();
    assert_eq!(v3.target, "https://api.hubapi.com/oauth/v1/token");
    assert_eq!(
        String::from_utf8(v3.body).unwrap(),
        "grant_type=refresh_token&client_id=app%261&client_secret=s%3D1&refresh_token=r%201"
    );
    let mut local = config("");
    local.login_url = "http://127.0.0.1:1/".into();
    let dated = request(&local).unwrap().unwrap();
    assert_eq!(dated.target, "http://127.0.0.1:1/oauth/2026-03/token");
    let key = Credential::Token {
        token: Secret::new("k"),
    };
    assert_eq!(hubspot().token_request(&local, &key, 0), Ok(None));
}

#[test]
fn a_token_answer_gives_expiry_and_portal() {
    let text = r#"{"token_type":"bearer","refresh_token":"r","access_token":"a","expires_in":1800,"hub_id":62515}"#;
    let token = hubspot().token(&answer(200, text), 1_000).unwrap();
    assert_eq!(token.expires_at, Some(1_801_000));
    assert_eq!(token.tenant.as_deref(), Some("62515"));
    assert_eq!(token.refresh_token.unwrap().expose(), "r");
    let broken = r#"{"access_token_":"canary-token"}"#;
    let error = hubspot().token(&answer(200, broken), 0).unwrap_err();
    assert!(!format!("{error:?}").contains("canary"));
}

#[test]
fn limits_come_from_the_headers() {
    let mut r = answer(200, "{}");
    for (n, v) in [
        ("x-hubspot-ratelimit-max", "190"),
        ("x-hubspot-ratelimit-remaining", "188"),
        ("x-hubspot-ratelimit-interval-milliseconds", "10000"),
        ("x-hubspot-ratelimit-daily", "625000"),
        ("x-hubspot-ratelimit-daily-remaining", "x"),
    ] {
        r.headers.push((n.into(), v.into()));
    }
    let hint = hubspot().limits(&r);
    assert_eq!(hint.window_max, Some(190));
    assert_eq!(hint.window_remaining, Some(188));
    assert_eq!(hint.window_ms, Some(10_000));
    assert_eq!(hint.daily_max, Some(625_000));
    assert_eq!(hint.daily_remaining, None);
}

#[test]
fn objects_are_the_standard_ones_and_the_accounts_own() {
    let text = r#"{"results":[{"id":"1","objectTypeId":"2-77","fullyQualifiedName":"p62515_car","name":"car","labels":{"singular":"Car","plural":null},"archived":false},{"objectTypeId":"2-78","name":"old","archived":true}]}"#;
    let objects = hubspot().objects(0, &answer(200, text)).unwrap();
    let car = objects.iter().find(|o| o.name == "p62515_car").unwrap();
    assert_eq!(car.type_id, "2-77");
    assert_eq!(car.label_plural, "car");
    assert!(car.custom);
    assert!(objects.iter().any(|o| o.name == "contacts"));
    // Without the right to see schemas the standard objects are still there.
    let forbidden = hubspot().objects(0, &answer(403, "{}")).unwrap();
    let of_car = objects.iter().filter(|o| o.name.contains("p62515_car"));
    assert_eq!(forbidden.len(), objects.len() - of_car.count());
}

#[test]
fn column_types_come_from_the_type_and_read_only_from_the_metadata() {
    let text = r#"{"results":[
      {"name":"email","label":"Email","type":"string","fieldType":"text","hasUniqueValue":false,"modificationMetadata":{"readOnlyValue":false}},
      {"name":"langs","label":"L","type":"enumeration","fieldType":"checkbox","options":[{"label":"German","value":"de"}]},
      {"name":"vip","label":"V","type":"bool","fieldType":"booleancheckbox"},
      {"name":"odd","label":"O","type":"datetime","fieldType":"text"},
      {"name":"num","label":"N","type":"number","fieldType":"calculation_rollup","calculated":true,"modificationMetadata":{"readOnlyValue":true}},
      {"name":"owner","label":"Own","type":"enumeration","fieldType":"select","referencedObjectType":"OWNER","externalOptions":true},
      {"name":"lastmodifieddate","label":"M","type":"datetime","fieldType":"date"},
      {"name":"gone","label":"G","type":"string","archived":true}]}"#;
    let all = hubspot().fields("contacts", &answer(200, text)).unwrap();
    let get = |n: &str| all.iter().find(|f| f.name == n).unwrap();
    assert!(get("email").external_id && get("email").unique);
    assert_eq!(get("langs").field_type, FieldType::MultiChoice);
    assert!(get("langs").restricted);
    assert_eq!(get("vip").field_type, FieldType::Boolean);
    assert_eq!(get("odd").field_type, FieldType::DateTime);
    assert!(get("num").read_only && get("num").calculated);
    assert_eq!(get("owner").field_type, FieldType::Reference);
    assert_eq!(get("owner").references, ["owners"]);
    assert!(!get("owner").restricted);
    assert!(get("lastmodifieddate").read_only);
    assert_eq!(all.len(), 7);
}

#[test]
fn the_probe_shows_the_account() {
    let text = r#"{"portalId":62515,"accountType":"STANDARD","timeZone":"US/Eastern","utcOffset":"-04:00"}"#;
    let shown = hubspot().probed(&answer(200, text)).unwrap();
    assert_eq!(shown[0], ("portal id".into(), "62515".into()));
    assert!(hubspot().probed(&answer(200, "{}")).is_err());
}

#[test]
fn objects_whose_name_in_paths_is_not_certain_are_called_by_their_type_id() {
    let config = ServerConfig::default();
    let target = |object: &str| hubspot().list_request(&config, object, &[], None).target;
    assert!(target("contacts").starts_with("/crm/objects/2026-03/contacts?"));
    for (name, id) in [
        ("goals", "0-74"),
        ("appointments", "0-421"),
        ("projects", "0-970"),
    ] {
        let path = format!("/crm/objects/2026-03/{id}?");
        assert!(target(name).starts_with(&path), "{}", target(name));
        let fields = hubspot().fields_request(&config, name, None).target;
        assert_eq!(fields, format!("/crm/properties/2026-03/{id}"));
    }
    assert!(target("p1_cars").starts_with("/crm/objects/2026-03/p1_cars?"));
    assert!(target("2-77").starts_with("/crm/objects/2026-03/2-77?"));
}
