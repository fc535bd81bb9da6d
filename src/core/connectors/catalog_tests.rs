//! Tests of the catalog refresh and the server check, with real connectors.

use super::*;
use crate::connectors::by_type;

fn error(status: u16, class: ErrorClass) -> RemoteError {
    RemoteError {
        class,
        status,
        code: "X".to_owned(),
        ..busy()
    }
}

#[test]
fn a_failed_list_ends_the_refresh_with_its_error() {
    let salesforce = by_type("salesforce").expect("registered");
    let (mut refresh, first) =
        CatalogRefresh::start(salesforce, ServerConfig::default(), Wanted::default());
    assert!(!first.is_empty() && !refresh.done());
    for index in 0..first.len() {
        refresh.answer(index, Err(error(500, ErrorClass::Retry)));
    }
    assert!(refresh.done() && refresh.error.is_some() && refresh.objects.is_empty());
}

#[test]
fn a_check_stops_at_the_first_closed_gate() {
    let hubspot = by_type("hubspot").expect("registered");
    let (mut check, first) =
        ServerCheck::start(hubspot, ServerConfig::default(), Vec::new(), Vec::new());
    assert_eq!(first.len(), 1);
    assert!(
        check
            .answer(0, Err(error(401, ErrorClass::Reauth)))
            .is_empty()
    );
    assert!(check.done());
    assert_eq!(check.rows.len(), 1);
    assert_eq!(
        (check.rows[0].item.as_str(), check.rows[0].ok),
        ("credentials", Some(false))
    );
}

#[test]
fn a_description_that_is_still_true_is_not_sent_again() {
    let salesforce = by_type("salesforce").expect("registered");
    let stamp = "Tue, 01 Sep 2026 08:00:00 GMT";
    let wanted = Wanted {
        objects: vec!["Account".to_owned(), "Contact".to_owned()],
        known: true,
        since: [("Account".to_owned(), stamp.to_owned())].into(),
        ..Wanted::default()
    };
    let (mut refresh, sent) = CatalogRefresh::start(salesforce, ServerConfig::default(), wanted);
    let conditions: Vec<Option<&str>> = sent
        .iter()
        .map(|r| {
            let mut headers = r.headers.iter();
            let found = headers.find(|(name, _)| name == "if-modified-since");
            found.map(|(_, value)| &**value)
        })
        .collect();
    assert_eq!(conditions, [Some(stamp), None]);
    refresh.answer(0, Err(error(304, ErrorClass::Stop)));
    let described = HttpResponse {
        status: 200,
        headers: vec![("last-modified".to_owned(), stamp.to_owned())],
        body: br#"{"fields":[{"name":"Email","type":"email"}]}"#.to_vec(),
    };
    refresh.answer(1, Ok(described));
    assert!(refresh.done() && refresh.error.is_none());
    assert_eq!(refresh.unchanged, ["Account"]);
    assert_eq!(
        refresh.described,
        [("Contact".to_owned(), stamp.to_owned())]
    );
}
