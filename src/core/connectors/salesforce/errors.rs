//! Salesforce's errors: the table, and how an answer is led to its line.

use serde::Deserialize;
use serde_json::Value as Json;

use crate::connectors::table::{self, Rule};
use crate::http::HttpResponse;
use crate::model::{ErrorClass, RemoteError};

/// Wait when too many calls run at once.
const CONCURRENT_WAIT_MS: i64 = 5_000;

/// The table. First fit decides; `status` 0 and an empty code fit any, 3 to 5 a hundred. Codes
/// come first: the same code arrives under several statuses.
#[rustfmt::skip]
pub(crate) const RULES: &[Rule] = &[
    Rule::new(0, "UNABLE_TO_LOCK_ROW", ErrorClass::Retry, "Another Salesforce user or process holds the record; nothing needs to be done."),
    Rule::new(0, "REQUEST_LIMIT_EXCEEDED", ErrorClass::Wait, "The organisation's API calls of the last 24 hours, or its concurrent long calls, are used up.").wait(300_000),
    Rule::new(0, "rate_limit_exceeded", ErrorClass::Wait, "Too many logins; the next attempt waits.").wait(60_000),
    Rule::new(0, "SERVER_UNAVAILABLE", ErrorClass::Retry, "Salesforce is under maintenance; nothing needs to be done unless it lasts.").wait(5_000),
    Rule::new(0, "SERVER_BUSY", ErrorClass::Retry, "Salesforce is overloaded; nothing needs to be done unless it lasts.").wait(5_000),
    Rule::new(0, "ALL_OR_NONE_OPERATION_ROLLED_BACK", ErrorClass::Retry, "Another row of the same call failed; this one is sent again."),
    Rule::new(0, "PROCESSING_HALTED", ErrorClass::Retry, "Another part of the same call failed; this one is sent again."),
    Rule::new(0, "BATCH_PROCESSING_HALTED", ErrorClass::Retry, "Another part of the same call failed; this one is sent again."),
    Rule::new(0, "INVALID_SESSION_ID", ErrorClass::Reauth, "The session has ended; a new one is opened."),
    Rule::new(0, "invalid_grant", ErrorClass::Stop, "Salesforce refuses the credential: authorize the app again, or check user name, audience and key of the JWT."),
    Rule::new(0, "invalid_client_id", ErrorClass::Stop, "Check client_id in the credential file."),
    Rule::new(0, "invalid_client", ErrorClass::Stop, "Check client_id and client_secret in the credential file."),
    Rule::new(0, "inactive_user", ErrorClass::Stop, "The user that the app runs as is inactive; activate it in Salesforce or name another."),
    Rule::new(0, "ENTITY_IS_DELETED", ErrorClass::Gone, "The record is in Salesforce's recycle bin; it is read again."),
    Rule::new(0, "NOT_FOUND", ErrorClass::Gone, "The record is gone in Salesforce, or the object or key field does not exist; it is read again."),
    Rule::new(0, "INVALID_FIELD", ErrorClass::FixMapping, "The field is gone, or the user may not see it; refresh the catalog and remove or remap the column."),
    Rule::new(0, "INVALID_TYPE", ErrorClass::FixMapping, "The object is gone, or the user may not see it; refresh the catalog."),
    Rule::new(0, "INVALID_FIELD_FOR_INSERT_UPDATE", ErrorClass::FixMapping, "The user may not write the named fields; grant field-level security or map them one way."),
    Rule::new(0, "MALFORMED_QUERY", ErrorClass::Stop, "Salesforce does not understand our query; report it with the message."),
    Rule::new(0, "MALFORMED_ID", ErrorClass::FixData, "An id column holds something that is no Salesforce id; correct it."),
    Rule::new(0, "REQUIRED_FIELD_MISSING", ErrorClass::FixData, "Fill the named fields, or give them a default in the field map."),
    Rule::new(0, "FIELD_CUSTOM_VALIDATION_EXCEPTION", ErrorClass::FixData, "A validation rule of the organisation refuses the row; its message says why."),
    Rule::new(0, "INVALID_OR_NULL_FOR_RESTRICTED_PICKLIST", ErrorClass::FixData, "The value is not in the picklist; add it in Salesforce or map it to one that is."),
    Rule::new(0, "STRING_TOO_LONG", ErrorClass::FixData, "Shorten the value, or lengthen the field in Salesforce."),
    Rule::new(0, "DUPLICATE_VALUE", ErrorClass::FixData, "Another record has this unique value; link or merge the two, or change the value."),
    Rule::new(0, "DUPLICATES_DETECTED", ErrorClass::FixData, "A duplicate rule finds an existing record; link to it, merge, or change the values."),
    Rule::new(0, "DUPLICATE_EXTERNAL_ID", ErrorClass::FixData, "Several records have this external id; make it unique in Salesforce."),
    Rule::new(0, "INVALID_CROSS_REFERENCE_KEY", ErrorClass::FixData, "A reference names a record that does not exist or cannot be seen; correct it."),
    Rule::new(0, "INSUFFICIENT_ACCESS_OR_READONLY", ErrorClass::FixPermission, "The app's user may not write this record; grant access in Salesforce, then retry."),
    Rule::new(0, "INSUFFICIENT_ACCESS_ON_CROSS_REFERENCE_ENTITY", ErrorClass::FixPermission, "The app's user may not see a record that this one refers to; grant access in Salesforce, then retry."),
    Rule::new(0, "JSON_PARSER_ERROR", ErrorClass::FixData, "A value does not fit its field's type; refresh the catalog."),
    Rule::new(0, "EXCEEDED_ID_LIMIT", ErrorClass::FixMapping, "Too many changes for one query; a full read of the object is needed."),
    Rule::new(401, "", ErrorClass::Reauth, "The session has ended or is not accepted; a new one is opened."),
    Rule::new(403, "", ErrorClass::FixPermission, "The app's user may not do this; check its permission sets and API access."),
    Rule::new(404, "", ErrorClass::Gone, "The record is gone in Salesforce, or the object does not exist; it is read again."),
    Rule::new(300, "", ErrorClass::FixData, "Several records have this external id; make it unique in Salesforce."),
    Rule::new(405, "", ErrorClass::Stop, "The server does not know this call; check base_url and api_version."),
    Rule::new(408, "", ErrorClass::Retry, "Salesforce took too long; nothing needs to be done.").unsure(),
    Rule::new(409, "", ErrorClass::Retry, "The call conflicts with another one; it is sent again."),
    Rule::new(410, "", ErrorClass::Stop, "This API version is switched off; set a newer api_version on the server."),
    Rule::new(412, "", ErrorClass::Retry, "The record changed since it was last seen; it is read again and the write decided anew."),
    Rule::new(413, "", ErrorClass::Split, "The batch is too large for Salesforce; it is sent in halves."),
    Rule::new(414, "", ErrorClass::FixMapping, "Too many columns for one request; import fewer columns of this object."),
    Rule::new(415, "", ErrorClass::Stop, "The server does not know this call; check base_url and api_version."),
    Rule::new(420, "", ErrorClass::Wait, "Salesforce asks to slow down.").wait(60_000),
    Rule::new(428, "", ErrorClass::Gone, "The record must be read again before it can be written."),
    Rule::new(429, "", ErrorClass::Wait, "Salesforce asks to slow down.").wait(60_000),
    Rule::new(431, "", ErrorClass::FixMapping, "Too many columns for one request; import fewer columns of this object."),
    Rule::new(500, "", ErrorClass::Retry, "Salesforce had an internal error; nothing needs to be done unless it lasts.").unsure(),
    Rule::new(502, "", ErrorClass::Retry, "Salesforce is overloaded; nothing needs to be done unless it lasts.").wait(5_000).unsure(),
    Rule::new(503, "", ErrorClass::Retry, "Salesforce is unavailable; nothing needs to be done unless it lasts.").wait(5_000),
    Rule::new(504, "", ErrorClass::Retry, "Salesforce is overloaded; nothing needs to be done unless it lasts.").wait(5_000).unsure(),
    Rule::new(400, "", ErrorClass::FixData, "Salesforce refuses the row; its message says why."),
    Rule::new(3, "", ErrorClass::Stop, "The server redirects, which is never followed; set login_url to the organisation's My Domain."),
    Rule::new(4, "", ErrorClass::FixData, "Salesforce refuses the request; see its message."),
    Rule::new(5, "", ErrorClass::Retry, "Salesforce had an internal error; nothing needs to be done unless it lasts.").unsure(),
    Rule::new(0, "", ErrorClass::Retry, "Something between here and Salesforce answers in its place; check login_url, base_url, proxy and firewall.").unsure(),
];

/// One error: of a plain answer (`errorCode`), of a row of a collection
/// (`statusCode`), or of OAuth (`error`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ErrorItem {
    #[serde(rename = "errorCode")]
    error_code: Option<String>,
    #[serde(rename = "statusCode")]
    status_code: Option<String>,
    error: Option<String>,
    error_description: Option<String>,
    message: Option<String>,
    fields: Option<Vec<String>>,
    /// The vendor's own spelling.
    #[serde(rename = "duplicateResut", alias = "duplicateResult")]
    duplicate_result: Json,
}

impl ErrorItem {
    pub(crate) fn code(&self) -> &str {
        [&self.status_code, &self.error_code, &self.error]
            .into_iter()
            .flatten()
            .next()
            .map_or("", String::as_str)
    }

    fn message(&self) -> &str {
        [&self.message, &self.error_description]
            .into_iter()
            .flatten()
            .next()
            .map_or("", String::as_str)
    }

    pub(crate) fn remote_error(&self, status: u16) -> RemoteError {
        let rule = rule(status, self.code());
        let mut error = table::error(&rule, status, self.code(), self.message());
        // The same code for a limit of seconds: too many long calls at once.
        if self.code() == "REQUEST_LIMIT_EXCEEDED" && self.message().contains("Concurrent") {
            error.retry_after_ms = Some(CONCURRENT_WAIT_MS);
        }
        table::blame(&mut error, self.fields.iter().flatten().cloned());
        error
    }

    /// The record that the row duplicates, as the error names it.
    pub(crate) fn existing(&self) -> Option<String> {
        match self.code() {
            "DUPLICATE_VALUE" => id_in(self.message()),
            "DUPLICATES_DETECTED" => {
                let matches = self.duplicate_result.get("matchResults")?.as_array()?;
                matches
                    .iter()
                    .filter_map(|m| m.get("matchRecords")?.as_array())
                    .flatten()
                    .find_map(|r| r.pointer("/record/Id")?.as_str())
                    .map(super::id18)
            }
            _ => None,
        }
    }
}

/// The id after `with id:` in a message.
pub(crate) fn id_in(message: &str) -> Option<String> {
    let at = message.find("with id:")? + "with id:".len();
    let id: String = message[at..]
        .trim_start()
        .chars()
        .take_while(char::is_ascii_alphanumeric)
        .take(18)
        .collect();
    matches!(id.len(), 15 | 18).then(|| super::id18(&id))
}

fn rule(status: u16, code: &str) -> Rule {
    table::find(RULES, status, code)
}

/// Errors of a body: a list, or the single object of OAuth.
fn items(body: &[u8]) -> Vec<ErrorItem> {
    if let Ok(list) = serde_json::from_slice::<Vec<ErrorItem>>(body) {
        return list;
    }
    serde_json::from_slice::<ErrorItem>(body)
        .into_iter()
        .collect()
}

/// The error of a text such as `CODE:message:fields --`, or of any other.
pub(crate) fn row_error(text: &str) -> RemoteError {
    let (code, message) = text.split_once(':').unwrap_or(("", text));
    let code = code.trim();
    let is_code = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    if code.is_empty() || !code.chars().all(is_code) {
        return table::error(&rule(400, ""), 0, "", text);
    }
    let (message, fields) = match message.trim_end().strip_suffix("--") {
        Some(rest) => rest.rsplit_once(':').unwrap_or((rest, "")),
        None => (message, ""),
    };
    let mut error = table::error(&rule(400, code), 0, code, message);
    let fields = fields.split(',').map(|field| field.trim().to_owned());
    table::blame(&mut error, fields);
    error
}

/// What an answer means that is not what was asked for.
pub(crate) fn classify(response: &HttpResponse) -> RemoteError {
    let first = items(&response.body)
        .into_iter()
        .find(|i| !i.code().is_empty());
    let mut error = match (&first, response.status) {
        (Some(item), status) if status >= 300 => item.remote_error(status),
        (_, status) if status < 300 => {
            let kind = response.header("content-type").unwrap_or("unknown type");
            let size = response.body.len();
            let message = format!("HTTP {status}, not the answer expected: {size} bytes, {kind}");
            table::error(&rule(status, ""), status, "not_json", &message)
        }
        (_, status) => {
            let start = &response.body[..response.body.len().min(120)];
            let text = String::from_utf8_lossy(start);
            let message = format!("HTTP {status}, not the answer expected: {text}");
            table::error(&rule(status, ""), status, "", &message)
        }
    };
    if error.code.is_empty() {
        error.code = format!("http_{}", response.status);
    }
    let seconds = response
        .header("retry-after")
        .and_then(|s| s.trim().parse::<i64>().ok())
        .filter(|s| *s >= 0);
    if let Some(seconds) = seconds {
        error.retry_after_ms = Some(seconds.saturating_mul(1_000).min(86_400_000));
    }
    error
}

/// An answer with status 2xx whose body is not what the call promises.
pub(crate) fn not_expected(response: &HttpResponse, why: &serde_json::Error) -> RemoteError {
    let mut error = classify(response);
    if response.status < 300 {
        error.message = table::clean(
            &format!("{}, {}", error.message, table::where_json_fails(why)),
            500,
        );
    }
    error
}
