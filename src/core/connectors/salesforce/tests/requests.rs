use super::*;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;

use crate::http::Method;

/// The query of a request, decoded.
fn soql(request: &HttpRequest) -> String {
    let (_, encoded) = request.target.split_once("?q=").unwrap();
    let mut bytes = Vec::new();
    let mut rest = encoded.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first == b'%' {
            let hex = std::str::from_utf8(&rest[..2]).unwrap();
            bytes.push(u8::from_str_radix(hex, 16).unwrap());
            rest = &rest[2..];
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn some_fields() -> Vec<(String, FieldType)> {
    fields(&[("Name", FieldType::Text), ("Phone", FieldType::Text)])
}

fn config() -> ServerConfig {
    ServerConfig::default()
}

#[test]
fn pages_go_by_id_so_that_a_resumed_run_continues() {
    let list = |cursor| salesforce().list_request(&config(), "Contact", &some_fields(), cursor);
    assert!(
        list(None)
            .target
            .starts_with("/services/data/v62.0/query?q=SELECT%20")
    );
    assert_eq!(
        soql(&list(None)),
        "SELECT Id,SystemModstamp,Name,Phone FROM Contact ORDER BY Id LIMIT 2000"
    );
    assert_eq!(
        soql(&list(Some("003A"))),
        "SELECT Id,SystemModstamp,Name,Phone FROM Contact WHERE Id > '003A' ORDER BY Id LIMIT 2000"
    );
}

#[test]
fn a_poll_sees_deleted_rows_where_there_is_a_bin() {
    let since = Keyset {
        modified_at: 1_777_620_337_000,
        id: "003A".into(),
        ties: false,
    };
    let poll = |object| salesforce().poll_request(&config(), object, &[], &since);
    let contact = poll("Contact");
    assert!(contact.target.contains("/queryAll?q="));
    assert_eq!(
        soql(&contact),
        "SELECT Id,SystemModstamp,IsDeleted FROM Contact WHERE \
         (SystemModstamp = 2026-05-01T07:25:37.000Z AND Id > '003A') \
         OR SystemModstamp > 2026-05-01T07:25:37.000Z ORDER BY SystemModstamp, Id LIMIT 2000"
    );
    assert!(!soql(&poll("User")).contains("IsDeleted"));
    let start = Keyset {
        modified_at: i64::MAX,
        ..Keyset::default()
    };
    let from = salesforce().poll_request(&config(), "Contact", &[], &start);
    assert!(soql(&from).contains("SystemModstamp >= 1970-01-01T00:00:00.000Z"));
}

#[test]
fn no_value_escapes_its_literal_and_no_name_its_place() {
    let values = ["o'neil\\' OR Name != '".to_owned(), "a\nb".to_owned()];
    let find = salesforce().find_request(
        &config(),
        "Contact WHERE",
        &fields(&[("Name,(SELECT Id", FieldType::Text)]),
        "Email = '' OR Email",
        &values,
    );
    assert_eq!(
        soql(&find),
        "SELECT Id,SystemModstamp,NameSELECTId FROM ContactWHERE WHERE EmailOREmail IN \
         ('o\\'neil\\\\\\' OR Name != \\'','a\\nb') ORDER BY Id LIMIT 2000"
    );
}

#[test]
fn removed_records_are_found_in_the_bin_of_objects_that_have_one() {
    let values = ["i-1-2".to_owned()];
    let find = |object| {
        let f = fields(&[("Name", FieldType::Text)]);
        salesforce().find_removed_request(&config(), object, &f, "Key__c", &values)
    };
    let found = find("Account").unwrap();
    assert!(found.target.contains("/queryAll?"));
    assert_eq!(
        soql(&found),
        "SELECT Id,SystemModstamp,IsDeleted,Name FROM Account WHERE Key__c IN ('i-1-2') AND IsDeleted = true ORDER BY Id LIMIT 2000"
    );
    assert!(find("User").is_none());
}

#[test]
fn a_query_never_outgrows_the_uri_that_salesforce_takes() {
    let wide: Vec<(String, FieldType)> = (0..600)
        .map(|i| (format!("Some_Custom_Field_{i:03}__c"), FieldType::Text))
        .collect();
    let list = salesforce().list_request(&config(), "Account", &wide, Some("001000000000001AAA"));
    assert!(list.target.len() < 500);
    let page = r#"{"totalSize":1,"done":true,"records":[{"Id":"001000000000001AAA"}]}"#;
    let page = salesforce()
        .page("Account", &wide, &answer(200, page))
        .unwrap();
    assert!(page.ids_only);
    let read = salesforce().read_request(&config(), "Account", &wide, &["001".into()]);
    assert_eq!(body(&read)["fields"].as_array().unwrap().len(), 602);
    for len in [3, 60, 300, 20_000] {
        let values: Vec<String> = (0..250)
            .map(|i| format!("{}{i}", "'".repeat(len)))
            .collect();
        for f in [&some_fields(), &wide] {
            let fit = salesforce().find_batch("Account", f, "Website", &values);
            assert!((1..=200).contains(&fit));
            let request =
                salesforce().find_request(&config(), "Account", f, "Website", &values[..fit]);
            let removed = salesforce()
                .find_removed_request(&config(), "Account", f, "Website", &values[..fit])
                .unwrap();
            let size = request.target.len().max(removed.target.len());
            assert!(size <= 16_000 || fit == 1, "{len}: {size}");
        }
    }
}

#[test]
fn records_are_read_in_one_collection_call() {
    let ids = [
        "003000000000001AAA".to_owned(),
        "0030000000000025".to_owned(),
    ];
    let read = salesforce().read_request(&config(), "Contact", &some_fields(), &ids);
    assert_eq!(read.method, Method::Post);
    assert_eq!(
        read.target,
        "/services/data/v62.0/composite/sobjects/Contact"
    );
    assert_eq!(
        body(&read),
        serde_json::json!({"ids":ids,"fields":["Id","SystemModstamp","Name","Phone"]})
    );
}

#[test]
fn every_call_carries_our_mark() {
    let mut request = salesforce().probe(&config());
    let token = Token {
        access: Secret::new("00D!AQ"),
        expires_at: None,
        instance_url: Some("https://x.my.salesforce.com".into()),
        tenant: None,
        refresh_token: None,
    };
    let mut c = config();
    c.installation = "ab12\r\nx: y".into();
    salesforce().authorize(&c, &token, &mut request);
    let header = |n: &str| {
        let found = request.headers.iter().find(|(name, _)| name == n);
        found.map(|(_, v)| v.as_str())
    };
    assert_eq!(header("authorization"), Some("Bearer 00D!AQ"));
    assert_eq!(
        header("sforce-call-options"),
        Some("client=pg_crm_sync_ab12xy")
    );
    assert_eq!(
        salesforce().base_url(&c, Some(&token)),
        "https://x.my.salesforce.com"
    );
    c.base_url = "http://127.0.0.1:9/".into();
    assert_eq!(
        salesforce().base_url(&c, Some(&token)),
        "http://127.0.0.1:9"
    );
}

#[test]
fn api_versions_are_taken_with_or_without_v() {
    for version in ["61.0", "v61.0", " V61.0 "] {
        let mut c = config();
        c.api_version = version.into();
        let probe = salesforce().probe(&c);
        assert_eq!(probe.target, "/services/data/v61.0/limits");
    }
    let schema = event_schema(&config(), "IeRuaY6cbI_HsV8Rv1Mc5g");
    assert_eq!(
        schema.target,
        "/services/data/v62.0/event/eventSchema/IeRuaY6cbI_HsV8Rv1Mc5g?payloadFormat=COMPACT"
    );
}

fn form_of(credential: &Credential) -> Vec<(String, String)> {
    let request = salesforce()
        .token_request(&config(), credential, 1_700_000_000_000)
        .unwrap()
        .unwrap();
    assert_eq!(
        request.target,
        "https://login.salesforce.com/services/oauth2/token"
    );
    String::from_utf8(request.body)
        .unwrap()
        .split('&')
        .map(|p| p.split_once('=').unwrap())
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect()
}

#[test]
fn a_jwt_is_signed_for_three_minutes_with_either_form_of_key() {
    use ring::signature::{KeyPair, RSA_PKCS1_2048_8192_SHA256, RsaKeyPair, UnparsedPublicKey};
    let pkcs1 = include_str!("../fixtures/test_key_pkcs1.pem");
    let pkcs8 = include_str!("../fixtures/test_key_pkcs8.pem");
    let (der, _) = super::super::auth::pem(pkcs8).unwrap();
    let public = RsaKeyPair::from_pkcs8(&der).unwrap().public_key().clone();
    for pem in [pkcs1, pkcs8] {
        let form = form_of(&Credential::Jwt {
            client_id: "app".into(),
            username: "sync@example.com".into(),
            audience: String::new(),
            private_key: Secret::new(pem),
        });
        assert_eq!(
            form[0].1,
            "urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer"
        );
        let (signed, signature) = form[1].1.rsplit_once('.').unwrap();
        let (head, claims) = signed.split_once('.').unwrap();
        let text = |part| String::from_utf8(BASE64URL.decode(part).unwrap()).unwrap();
        assert_eq!(text(head), r#"{"alg":"RS256"}"#);
        assert_eq!(
            text(claims),
            r#"{"iss":"app","sub":"sync@example.com","aud":"https://login.salesforce.com","exp":1700000180}"#
        );
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &public)
            .verify(signed.as_bytes(), &BASE64URL.decode(signature).unwrap())
            .unwrap();
    }
}

#[test]
fn a_key_that_is_none_says_what_is_expected_and_shows_nothing() {
    let canary = "canary-0451";
    let pkcs8 = include_str!("../fixtures/test_key_pkcs8.pem");
    let cut = format!("{}\n-----END PRIVATE KEY-----", &pkcs8[..300]);
    for key in [canary.to_owned(), cut, String::new()] {
        let credential = Credential::Jwt {
            client_id: "app".into(),
            username: "u".into(),
            audience: "a".into(),
            private_key: Secret::new(key),
        };
        let error = salesforce()
            .token_request(&config(), &credential, 0)
            .unwrap_err();
        assert_eq!(error.code, "private_key");
        assert!(error.advice.contains("2048"));
        assert!(!format!("{error:?}").contains(canary));
    }
}

#[test]
fn the_other_flows_send_what_the_vendor_documents() {
    let form = form_of(&Credential::ClientCredentials {
        client_id: "app".into(),
        client_secret: Secret::new("s"),
    });
    let keys: Vec<&str> = form.iter().map(|(k, _)| k.as_str()).collect();
    assert_eq!(keys, ["grant_type", "client_id", "client_secret"]);
    let form = form_of(&Credential::RefreshToken {
        client_id: "app".into(),
        client_secret: None,
        refresh_token: Secret::new("r"),
    });
    let keys: Vec<&str> = form.iter().map(|(k, _)| k.as_str()).collect();
    assert_eq!(keys, ["grant_type", "client_id", "refresh_token"]);
}

#[test]
fn a_token_answer_gives_instance_organisation_and_rotated_token() {
    let text = r#"{"access_token":"00Dxx0000000001!AQ","signature":"x","scope":"api","instance_url":"https://x.my.salesforce.com/","id":"https://login.salesforce.com/id/00D5g00000CDfgh/0055g00000ABCde","token_type":"Bearer","issued_at":"1700000000000","refresh_token":"new"}"#;
    let token = salesforce().token(&answer(200, text), 0).unwrap();
    assert_eq!(
        token.instance_url.as_deref(),
        Some("https://x.my.salesforce.com")
    );
    assert_eq!(token.tenant.map(|t| t.len()), Some(18));
    assert_eq!(token.expires_at, None);
    assert_eq!(token.refresh_token.unwrap().expose(), "new");
    let refused = r#"{"error":"invalid_grant","error_description":"expired access/refresh token"}"#;
    let error = salesforce().token(&answer(400, refused), 0).unwrap_err();
    assert_eq!(error.class, crate::model::ErrorClass::Stop);
    assert_eq!(error.message, "expired access/refresh token");
}

#[test]
fn short_ids_get_the_checksum_that_salesforce_gives_them() {
    assert_eq!(id18("001900K0001pPuO"), "001900K0001pPuOACU");
    assert_eq!(id18("750Tn000004ZoR3"), "750Tn000004ZoR3IAK");
    assert_eq!(id18("012000000000000"), "012000000000000AAA");
    for kept in [
        "",
        "003",
        "001900K0001pPuOACU",
        "00190-K0001pPuO",
        "éééééééé",
    ] {
        assert_eq!(id18(kept), kept);
    }
    let reference = salesforce()
        .canonical(FieldType::Reference, "001900K0001pPuO")
        .unwrap();
    assert_eq!(reference.as_deref(), Some("001900K0001pPuOACU"));
}
