use super::*;
use crate::connectors::journal::{Journal, Told};
use crate::connectors::{Credential, ServerConfig};
use crate::model::{Change, ChangeKind};
use crate::secret::Secret;

const AT: i64 = 1_780_000_000_000;

fn journal() -> &'static dyn Journal {
    hubspot().journal().unwrap()
}

fn told(text: &str) -> Told {
    journal().told(&answer(200, text), AT).unwrap()
}

/// The only change of a file with this entry.
fn one(entry: &str) -> Change {
    let mut told = told(&format!(r#"{{"journalEvents":[{entry}]}}"#));
    assert_eq!((told.changes.len(), told.unknown), (1, 0), "{told:?}");
    told.changes.remove(0)
}

#[test]
fn the_next_place_is_asked_for_by_its_offset() {
    let config = ServerConfig::default();
    let journal = journal();
    let earliest = journal.next(&config, None);
    assert_eq!(
        earliest.target,
        "/webhooks-journal/journal/2026-03/earliest"
    );
    let next = journal.next(&config, Some("0198-a/b"));
    assert_eq!(
        next.target,
        "/webhooks-journal/journal/2026-03/offset/0198-a%2Fb/next"
    );
    let old = ServerConfig {
        api_version: "v3".to_owned(),
        ..config
    };
    assert_eq!(journal.latest(&old).target, "/webhooks/v4/journal/latest");
}

#[test]
fn a_place_leads_to_a_file_to_which_no_token_goes() {
    let text = r#"{"url":"https://files.example/x?sig=1","expiresAt":"2026-11-21T10:00:00Z","currentOffset":"0198"}"#;
    let place = journal().place(&answer(200, text)).unwrap().unwrap();
    assert_eq!(place.offset, "0198");
    let mut file = journal().file(&place);
    let token = Token {
        access: Secret::new("CANARY"),
        expires_at: None,
        instance_url: None,
        tenant: None,
        refresh_token: None,
    };
    hubspot().authorize(&ServerConfig::default(), &token, &mut file);
    assert_eq!(file.target, "https://files.example/x?sig=1");
    assert!(file.headers.iter().all(|(name, _)| name != "authorization"));
    assert_eq!(journal().place(&answer(204, "")), Ok(None));
    assert!(journal().place(&answer(200, "<html>")).is_err());
    let gone = journal().place(&answer(404, r#"{"category":"OBJECT_NOT_FOUND"}"#));
    assert_eq!(gone.unwrap_err().status, 404);
}

#[test]
fn several_places_are_read_in_every_form_that_they_may_have() {
    let request = journal().next_many(&ServerConfig::default(), "0198-a/b", 20);
    assert_eq!(
        request.unwrap().target,
        "/webhooks-journal/journal/2026-03/batch/0198-a%2Fb/next/20"
    );
    let one = |n: u32| {
        format!(
            r#"{{"url":"https://f.example/{n}","expiresAt":"2026-11-21T10:00:00Z","currentOffset":"o{n}"}}"#
        )
    };
    let both = format!("[{},{}]", one(1), one(2));
    let forms = [
        both.clone(),
        format!(r#"{{"status":"COMPLETE","results":{both}}}"#),
        format!(r#"{{"entries":{both}}}"#),
    ];
    let offsets = |text: &str| -> Vec<String> {
        let places = journal().places(&answer(200, text)).unwrap();
        places.into_iter().map(|p| p.offset).collect()
    };
    for form in forms {
        assert_eq!(offsets(&form), ["o1", "o2"], "{form}");
    }
    assert_eq!(offsets(&one(3)), ["o3"]);
    assert!(offsets("[]").is_empty());
    assert!(journal().places(&answer(204, "")).unwrap().is_empty());
    for broken in ["<html>", "3", r#"[{"url":"x"}]"#, r#"{"results":[7]}"#] {
        let error = journal().places(&answer(200, broken)).unwrap_err();
        assert_eq!(error.code, "not_journal", "{broken}");
    }
    assert_eq!(journal().places(&answer(404, "")).unwrap_err().status, 404);
}

#[test]
fn the_token_is_the_apps_own_and_for_the_journal() {
    let app = Credential::ClientCredentials {
        client_id: "app".to_owned(),
        client_secret: Secret::new("s"),
    };
    let request = hubspot()
        .token_request(&ServerConfig::default(), &app, 0)
        .unwrap()
        .unwrap();
    let form = String::from_utf8(request.body).unwrap();
    assert!(form.contains("grant_type=client_credentials"), "{form}");
    assert!(
        form.contains("scope=developer.webhooks_journal.read"),
        "{form}"
    );
}

#[test]
fn an_update_is_read_in_every_form_that_its_changes_may_have() {
    let forms = [
        r#"{"city":"Oslo"}"#,
        r#"{"city":{"value":"Oslo"}}"#,
        r#"{"city":{"oldValue":"Rome","newValue":"Oslo"}}"#,
        r#"[{"name":"city","value":"Oslo"}]"#,
        r#"[{"propertyName":"city","propertyValue":"Oslo"}]"#,
    ];
    for form in forms {
        let change = one(&format!(
            r#"{{"type":"OBJECT","portalId":1,"occurredAt":{AT},"action":"UPDATE","objectTypeId":"0-1","objectId":734931097788,"propertyChanges":{form},"publishedAt":{AT}}}"#
        ));
        assert_eq!(change.kind, ChangeKind::Update, "{form}");
        assert_eq!(
            (change.object.as_str(), change.record_id.as_str()),
            ("0-1", "734931097788")
        );
        assert_eq!(
            change.fields,
            [("city".to_owned(), Some("Oslo".to_owned()))],
            "{form}"
        );
        assert_eq!(change.occurred_at, AT);
    }
    let text = one(
        r#"{"type":"object","occurredAt":"2026-05-28T20:26:40Z","action":"update","objectType":"contact","objectId":"7","propertyChanges":{"n":3,"b":true,"gone":null,"blank":""}}"#,
    );
    assert_eq!(text.object, "0-1");
    let values: Vec<Option<&str>> = text.fields.iter().map(|(_, v)| v.as_deref()).collect();
    assert_eq!(values, [Some("3"), Some("true"), None, None]);
}

#[test]
fn what_is_not_understood_of_an_entry_is_read_at_its_record() {
    let base = |rest: &str| {
        one(&format!(
            r#"{{"type":"OBJECT","occurredAt":{AT},"objectTypeId":"0-1","objectId":7{rest}}}"#
        ))
    };
    let names = base(r#","action":"UPDATE","propertyChanges":["city","email"]"#);
    assert_eq!(
        (names.kind, names.reread),
        (
            ChangeKind::Update,
            vec!["city".to_owned(), "email".to_owned()]
        )
    );
    for hidden in [
        r#"{"ssn":"REDACTED"}"#,
        r#"{"ssn":{"value":"x","isSensitive":true}}"#,
        r#"{"ssn":{"changed":true}}"#,
    ] {
        let change = base(&format!(r#","action":"UPDATE","propertyChanges":{hidden}"#));
        assert_eq!(
            (change.fields.len(), change.reread),
            (0, vec!["ssn".to_owned()]),
            "{hidden}"
        );
    }
    for rest in [
        "",
        r#","action":"UPDATE""#,
        r#","action":"UPDATE","propertyChanges":7"#,
        r#","action":"SNAPSHOT""#,
        r#","action":"SOMETHING_NEW""#,
        r#","action":"MERGE""#,
    ] {
        assert_eq!(base(rest).kind, ChangeKind::Reread, "{rest}");
    }
    let timeless = one(
        r#"{"action":"UPDATE","objectTypeId":"0-1","objectId":7,"propertyChanges":{"city":"x"}}"#,
    );
    assert_eq!(
        (timeless.kind, timeless.occurred_at),
        (ChangeKind::Reread, AT)
    );
}

#[test]
fn entries_that_name_no_record_are_counted() {
    for file in [
        r#"{"journalEvents":[{"what":"x"},{"objectId":7},3]}"#,
        r#"[{"what":"x"},{"objectTypeId":"0-1"},null]"#,
    ] {
        let told = told(file);
        assert_eq!((told.changes.len(), told.unknown), (0, 3), "{file}");
    }
    assert_eq!(told(r#"{"version":2}"#).unknown, 1);
    assert_eq!(told(r#"{"journalEvents":[]}"#), Told::default());
}

#[test]
fn creations_removals_and_merges_keep_their_meaning() {
    let kind = |action: &str, rest: &str| {
        one(&format!(
            r#"{{"type":"OBJECT","occurredAt":{AT},"action":"{action}","objectTypeId":"0-1","objectId":7{rest}}}"#
        ))
    };
    assert_eq!(kind("CREATE", "").kind, ChangeKind::Create);
    assert_eq!(kind("DELETE", "").kind, ChangeKind::Delete);
    assert_eq!(kind("RESTORE", "").kind, ChangeKind::Restore);
    let merge = kind(
        "MERGE",
        r#","primaryObjectId":7,"mergedObjectIds":[8],"newObjectId":9"#,
    );
    assert_eq!(merge.record_id, "9");
    let losers = vec!["8".to_owned(), "7".to_owned()];
    let into = "9".to_owned();
    assert_eq!(merge.kind, ChangeKind::Merge { into, losers });
    let erased = one(
        r#"{"type":"GDPR_PRIVACY_DELETION","action":"DELETE","objectTypeId":"0-1","objectId":7}"#,
    );
    assert_eq!(erased.kind, ChangeKind::PrivacyDelete);
    let tied = told(&format!(
        r#"[{{"type":"ASSOCIATION","occurredAt":{AT},"action":"ASSOCIATION_ADDED","fromObjectTypeId":"0-1","fromObjectId":7,"toObjectTypeId":"0-2","toObjectId":9,"associationTypeId":1}}]"#
    ));
    let objects: Vec<&str> = tied.changes.iter().map(|c| c.object.as_str()).collect();
    assert_eq!(objects, ["0-1", "0-1/0-2"]);
    assert!(
        matches!(&tied.changes[0].kind, ChangeKind::Association { to, removed: false, .. } if to == "9")
    );
}

#[test]
fn an_entry_read_twice_has_the_same_identity_and_another_has_another() {
    let entry = |city: &str, published: i64| {
        let text = format!(
            r#"{{"occurredAt":{AT},"action":"UPDATE","objectTypeId":"0-1","objectId":7,"propertyChanges":{{"city":"{city}"}},"publishedAt":{published}}}"#
        );
        one(&text).identity
    };
    assert_eq!(entry("Oslo", 1), entry("Oslo", 2));
    assert_ne!(entry("Oslo", 1), entry("Rome", 1));
}

#[test]
fn files_that_are_cut_off_or_none_are_asked_for_again() {
    let file = r#"{"journalEvents":[{"objectTypeId":"0-1","objectId":7}]}"#;
    for text in [
        "",
        "<html></html>",
        "7",
        &file[..file.len() - 3],
        "{\"objectId\":7}\n{\"obj",
    ] {
        let error = journal().told(&answer(200, text), AT).unwrap_err();
        assert_eq!(
            (error.code.as_str(), error.class),
            ("not_journal", ErrorClass::Retry),
            "{text}"
        );
    }
    let lines =
        "{\"objectTypeId\":\"0-1\",\"objectId\":7}\n{\"objectTypeId\":\"0-1\",\"objectId\":8}\n";
    assert_eq!(told(lines).changes.len(), 2);
}
