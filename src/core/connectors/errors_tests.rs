//! The tables of errors: complete for what is known of both CRMs, and printed in
//! docs/errors.md (`UPDATE_DOCS=1` writes it).

use std::fmt::Write as _;
use std::path::Path;

use crate::connectors::{self, ErrorRule};
use crate::http::HttpResponse;
use crate::model::{ErrorClass, RemoteError};
use crate::transport;

fn answer(crm: &str, status: u16, body: &str) -> RemoteError {
    let response = HttpResponse {
        status,
        headers: Vec::new(),
        body: body.as_bytes().to_vec(),
    };
    connectors::by_type(crm).unwrap().classify(&response)
}

fn hubspot(status: u16, code: &str) -> RemoteError {
    let body = match code {
        "DAILY" | "TEN_SECONDLY_ROLLING" | "SECONDLY" => {
            format!(r#"{{"status":"error","errorType":"RATE_LIMIT","policyName":"{code}"}}"#)
        }
        // The code of a property stands in the message alone.
        "PROPERTY_DOESNT_EXIST" | "READ_ONLY_VALUE" | "INVALID_OPTION" | "INVALID_EMAIL" => {
            format!(
                r#"{{"status":"error","category":"VALIDATION_ERROR","message":"Property values were not valid: [{{\"isValid\":false,\"error\":\"{code}\",\"name\":\"x\"}}]"}}"#
            )
        }
        "BAD_REFRESH_TOKEN" => format!(r#"{{"status":"{code}","message":"…"}}"#),
        "" => String::new(),
        _ => format!(r#"{{"status":"error","category":"{code}","message":"…"}}"#),
    };
    answer("hubspot", status, &body)
}

fn salesforce(status: u16, code: &str) -> RemoteError {
    let body = match code {
        "" => String::new(),
        _ if code.chars().all(|c| c.is_ascii_lowercase() || c == '_') => {
            format!(r#"{{"error":"{code}","error_description":"…"}}"#)
        }
        _ => format!(r#"[{{"message":"…","errorCode":"{code}"}}]"#),
    };
    answer("salesforce", status, &body)
}

#[test]
fn every_error_that_hubspot_is_known_to_answer_has_its_class() {
    use ErrorClass::{FixData, FixMapping, FixPermission, Gone, Reauth, Retry, Split, Stop, Wait};
    for (status, code, class) in [
        (400, "VALIDATION_ERROR", FixData),
        (400, "PROPERTY_DOESNT_EXIST", FixMapping),
        (400, "READ_ONLY_VALUE", FixMapping),
        (400, "INVALID_OPTION", FixData),
        (400, "INVALID_EMAIL", FixData),
        (400, "BAD_REFRESH_TOKEN", Stop),
        (400, "invalid_grant", Stop),
        (401, "INVALID_AUTHENTICATION", Reauth),
        (401, "EXPIRED_AUTHENTICATION", Reauth),
        (403, "MISSING_SCOPES", FixPermission),
        (404, "OBJECT_NOT_FOUND", Gone),
        (404, "", Gone),
        (409, "CONFLICT", FixData),
        (413, "", Split),
        (414, "", FixMapping),
        (423, "", Wait),
        (429, "DAILY", Wait),
        (429, "TEN_SECONDLY_ROLLING", Wait),
        (429, "SECONDLY", Wait),
        (429, "", Wait),
        (477, "", Wait),
        (500, "", Retry),
        (502, "", Retry),
        (503, "", Retry),
        (504, "", Retry),
        (521, "", Retry),
        (522, "", Retry),
        (523, "", Retry),
        (524, "", Retry),
        (525, "", Retry),
        (526, "", Retry),
        (302, "", Stop),
        (418, "", FixData),
        (599, "", Retry),
    ] {
        let error = hubspot(status, code);
        assert_eq!(error.class, class, "{status} {code}: {error:?}");
        assert!(!error.advice.is_empty() && !error.code.is_empty());
    }
}

#[test]
fn every_error_that_salesforce_is_known_to_answer_has_its_class_under_each_status_seen() {
    use ErrorClass::{FixData, FixMapping, FixPermission, Gone, Reauth, Retry, Stop, Wait};
    for (statuses, code, class) in [
        (&[401][..], "INVALID_SESSION_ID", Reauth),
        (&[403], "REQUEST_LIMIT_EXCEEDED", Wait),
        (&[404], "NOT_FOUND", Gone),
        (&[404, 400], "ENTITY_IS_DELETED", Gone),
        (&[400], "INVALID_FIELD", FixMapping),
        (&[400], "INVALID_TYPE", FixMapping),
        (&[400], "MALFORMED_QUERY", Stop),
        (&[400], "MALFORMED_ID", FixData),
        (&[400], "REQUIRED_FIELD_MISSING", FixData),
        (&[400], "FIELD_CUSTOM_VALIDATION_EXCEPTION", FixData),
        (&[400], "INVALID_OR_NULL_FOR_RESTRICTED_PICKLIST", FixData),
        (&[400], "STRING_TOO_LONG", FixData),
        (&[400], "DUPLICATE_VALUE", FixData),
        (&[400], "DUPLICATES_DETECTED", FixData),
        (&[400, 403], "INVALID_CROSS_REFERENCE_KEY", FixData),
        (
            &[400, 403],
            "INSUFFICIENT_ACCESS_OR_READONLY",
            FixPermission,
        ),
        (
            &[400, 403],
            "INSUFFICIENT_ACCESS_ON_CROSS_REFERENCE_ENTITY",
            FixPermission,
        ),
        (&[400, 500], "UNABLE_TO_LOCK_ROW", Retry),
        (&[400], "ALL_OR_NONE_OPERATION_ROLLED_BACK", Retry),
        (&[400], "PROCESSING_HALTED", Retry),
        (&[412], "BATCH_PROCESSING_HALTED", Retry),
        (&[400], "JSON_PARSER_ERROR", FixData),
        (&[400], "EXCEEDED_ID_LIMIT", FixMapping),
        (&[503], "SERVER_UNAVAILABLE", Retry),
        (&[503], "SERVER_BUSY", Retry),
        (&[410], "", Stop),
        (&[412], "", Retry),
        (&[414, 431], "", FixMapping),
        (&[420], "", Wait),
        (&[428], "", Gone),
        (&[300], "", FixData),
        (&[405, 415], "", Stop),
        (&[502, 504], "", Retry),
        (&[400], "invalid_grant", Stop),
        (&[400], "invalid_client_id", Stop),
        (&[400], "invalid_client", Stop),
        (&[400], "inactive_user", Stop),
        (&[400], "rate_limit_exceeded", Wait),
    ] {
        for status in statuses {
            let error = salesforce(*status, code);
            assert_eq!(error.class, class, "{status} {code}: {error:?}");
            assert!(!error.advice.is_empty() && !error.code.is_empty());
        }
    }
}

/// The name in the docs, what a line stands for, its lines.
fn tables() -> [(&'static str, &'static [ErrorRule]); 3] {
    let of = |crm: &str| connectors::by_type(crm).unwrap().errors();
    [
        ("HubSpot", of("hubspot")),
        ("Salesforce", of("salesforce")),
        ("On the way to either", transport::RULES),
    ]
}

#[test]
fn no_line_of_a_table_hides_behind_an_earlier_one() {
    for (name, rules) in tables() {
        for (i, late) in rules.iter().enumerate() {
            let hidden = rules[..i].iter().find(|early| {
                let status = early.status == 0
                    || early.status == late.status
                    || (late.status > 9 && early.status == late.status / 100);
                status && (early.code.is_empty() || early.code.eq_ignore_ascii_case(late.code))
            });
            assert!(hidden.is_none(), "{name}: {late:?} is never reached");
        }
    }
}

#[test]
fn the_page_of_errors_says_what_the_code_does() {
    let mut page = String::from(
        "# Errors and what is done about them\n\nWhat the worker goes by, as `crm.error_class` shows it; a test keeps this page in step. Of a CRM's lines the first that fits \
         decides; a status such as `5xx` stands for the hundred, an empty cell fits any. *May have landed*: the write is read back before it is sent again. \
         Parked writes stand in `crm.dead_letter` with the CRM's words and this advice; `crm.dead_letter_cause` groups them, and \
         [`crm.dead_letter_retry_where`](sql/dead_letter.md) releases those of one cause together.\n\n| class | what is done |\n|---|---|\n",
    );
    use ErrorClass::{FixData, FixMapping, FixPermission, Gone, Reauth, Retry, Split, Stop, Wait};
    for class in [
        Retry,
        Wait,
        Reauth,
        Split,
        Gone,
        FixData,
        FixPermission,
        FixMapping,
        Stop,
    ] {
        let _ = writeln!(page, "| `{}` | {} |", class.name(), class.meaning());
    }
    for (name, rules) in tables() {
        let _ = write!(
            page,
            "\n## {name}\n\n| status | code | class | least wait | may have landed | what to do |\n|---|---|---|---|---|---|\n"
        );
        for rule in rules {
            let status = match rule.status {
                0 => String::new(),
                hundred @ 1..10 => format!("{hundred}xx"),
                status => status.to_string(),
            };
            let code = Some(rule.code)
                .filter(|c| !c.is_empty())
                .map_or(String::new(), |c| format!("`{c}`"));
            let wait = rule
                .wait_ms
                .map_or(String::new(), |ms| format!("{} s", ms / 1_000));
            let landed = if rule.maybe_applied { "yes" } else { "" };
            let _ = writeln!(
                page,
                "| {status} | {code} | `{}` | {wait} | {landed} | {} |",
                rule.class.name(),
                rule.advice
            );
        }
    }
    let path = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("run by cargo"))
        .join("../../docs/errors.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let stands = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        stands == page,
        "docs/errors.md is behind: UPDATE_DOCS=1 cargo test -p crm-core connectors::errors_tests"
    );
}
