//! HubSpot's errors: the table, and how an answer is led to its line.

use serde::Deserialize;
use serde_json::Value as Json;

use crate::connectors::table::{self, Rule};
use crate::http::HttpResponse;
use crate::model::{ErrorClass, RemoteError};

/// Longest `Retry-After` believed: account moves announce up to a day.
const RETRY_AFTER_MAX_MS: i64 = 86_400_000;

/// The table. First fit decides; `status` 0 and an empty code fit any, 3 to 5 a hundred.
#[rustfmt::skip]
pub(crate) const RULES: &[Rule] = &[
    Rule::new(429, "DAILY", ErrorClass::Wait, "The daily call limit of the account is used up; it resets at midnight in the account's time zone.").wait(900_000),
    Rule::new(429, "TEN_SECONDLY_ROLLING", ErrorClass::Wait, "Other programs use the same app's call budget; lower the server's rate share if this is frequent.").wait(10_000),
    Rule::new(429, "SECONDLY", ErrorClass::Wait, "The search limit of the account is reached; it recovers within a second.").wait(1_000),
    Rule::new(429, "", ErrorClass::Wait, "The account's call limit is reached; lower the server's rate share if this is frequent.").wait(10_000),
    Rule::new(423, "", ErrorClass::Wait, "HubSpot has locked the records for its own bulk processing; nothing needs to be done.").wait(2_000),
    Rule::new(477, "", ErrorClass::Wait, "HubSpot is moving the account between data centres; writes wait until it says it is done.").wait(60_000),
    Rule::new(0, "BAD_REFRESH_TOKEN", ErrorClass::Stop, "Authorize the app in HubSpot again and put the new refresh token into the credential file."),
    Rule::new(0, "invalid_grant", ErrorClass::Stop, "Authorize the app in HubSpot again and put the new refresh token into the credential file."),
    Rule::new(0, "invalid_client", ErrorClass::Stop, "Check client_id and client_secret in the credential file."),
    Rule::new(401, "EXPIRED_AUTHENTICATION", ErrorClass::Reauth, "The access token has expired; a new one is fetched."),
    Rule::new(401, "", ErrorClass::Reauth, "Check the key in the credential file; it may have been rotated or revoked in HubSpot."),
    Rule::new(403, "MISSING_SCOPES", ErrorClass::FixPermission, "Grant the named scopes to the app or service key in HubSpot, then retry."),
    Rule::new(403, "", ErrorClass::FixPermission, "The app or service key may not do this; check its scopes and the account's subscription."),
    Rule::new(0, "PROPERTY_DOESNT_EXIST", ErrorClass::FixMapping, "The property is gone in HubSpot; refresh the catalog and remove or remap the column."),
    Rule::new(0, "READ_ONLY_VALUE", ErrorClass::FixMapping, "HubSpot computes this property; map the column one way only."),
    Rule::new(0, "OBJECT_NOT_FOUND", ErrorClass::Gone, "The record was archived or merged in HubSpot; it is read again."),
    Rule::new(404, "", ErrorClass::Gone, "The record was archived or merged in HubSpot; it is read again."),
    Rule::new(0, "INVALID_OPTION", ErrorClass::FixData, "The value is not among the property's options; add the option in HubSpot or change the value."),
    Rule::new(0, "CONFLICT", ErrorClass::FixData, "Another record has this unique value; link or merge the two, or change the value."),
    Rule::new(409, "", ErrorClass::FixData, "Another record has this unique value; link or merge the two, or change the value."),
    Rule::new(413, "", ErrorClass::Split, "The batch is too large for HubSpot; it is sent in halves."),
    Rule::new(414, "", ErrorClass::FixMapping, "Too many columns for one request; import fewer columns of this object."),
    Rule::new(400, "", ErrorClass::FixData, "HubSpot refuses the value; correct it in the row named, the write is sent again on change."),
    Rule::new(405, "", ErrorClass::Stop, "The server does not know this call; check base_url and api_version."),
    Rule::new(410, "", ErrorClass::Stop, "This API version is switched off; set a newer api_version on the server."),
    Rule::new(415, "", ErrorClass::Stop, "The server does not know this call; check base_url and api_version."),
    Rule::new(408, "", ErrorClass::Retry, "HubSpot took too long; nothing needs to be done.").unsure(),
    Rule::new(500, "", ErrorClass::Retry, "HubSpot had an internal error; nothing needs to be done unless it lasts.").unsure(),
    Rule::new(502, "", ErrorClass::Retry, "HubSpot is overloaded; nothing needs to be done unless it lasts.").wait(3_000).unsure(),
    Rule::new(503, "", ErrorClass::Retry, "HubSpot is unavailable; nothing needs to be done unless it lasts.").wait(3_000),
    Rule::new(504, "", ErrorClass::Retry, "HubSpot is overloaded; nothing needs to be done unless it lasts.").wait(3_000).unsure(),
    Rule::new(520, "", ErrorClass::Retry, "HubSpot's front end got no usable answer; nothing needs to be done unless it lasts.").wait(3_000).unsure(),
    Rule::new(521, "", ErrorClass::Retry, "HubSpot is unreachable behind its front end; nothing needs to be done unless it lasts.").wait(3_000),
    Rule::new(522, "", ErrorClass::Retry, "HubSpot is unreachable behind its front end; nothing needs to be done unless it lasts.").wait(3_000),
    Rule::new(523, "", ErrorClass::Retry, "HubSpot is unreachable behind its front end; nothing needs to be done unless it lasts.").wait(3_000),
    Rule::new(524, "", ErrorClass::Retry, "HubSpot took too long; nothing needs to be done unless it lasts.").wait(3_000).unsure(),
    Rule::new(525, "", ErrorClass::Retry, "TLS between HubSpot and its front end fails; nothing needs to be done unless it lasts.").wait(3_000),
    Rule::new(526, "", ErrorClass::Retry, "TLS between HubSpot and its front end fails; nothing needs to be done unless it lasts.").wait(3_000),
    Rule::new(3, "", ErrorClass::Stop, "The server redirects, which is never followed; correct base_url."),
    Rule::new(4, "", ErrorClass::FixData, "HubSpot refuses the request; see its message."),
    Rule::new(5, "", ErrorClass::Retry, "HubSpot had an internal error; nothing needs to be done unless it lasts.").unsure(),
    Rule::new(0, "", ErrorClass::Retry, "Something between here and HubSpot answers in its place; check base_url, proxy and firewall.").unsure(),
];

/// An error body, or one error of a batch answer. Every key may be missing.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ErrorBody {
    pub(crate) message: Json,
    pub(crate) category: Json,
    #[serde(rename = "subCategory")]
    pub(crate) sub_category: Json,
    #[serde(rename = "policyName")]
    policy_name: Json,
    #[serde(rename = "errorType")]
    error_type: Json,
    /// At top level `error` or an OAuth code; in batch errors HTTP-like.
    status: Json,
    error: Json,
    error_description: Json,
    pub(crate) context: Json,
    errors: Json,
}

impl ErrorBody {
    pub(crate) fn message(&self) -> &str {
        self.message
            .as_str()
            .or(self.error_description.as_str())
            .unwrap_or_default()
    }

    /// The most telling code: of the first property problem, then the CRM's category.
    fn code(&self, problems: &[(String, String)]) -> String {
        if let Some((_, code)) = problems.iter().find(|(_, code)| !code.is_empty()) {
            return code.clone();
        }
        [
            &self.policy_name,
            &self.error,
            &self.category,
            &self.error_type,
            &self.status,
            &self.sub_category,
        ]
        .into_iter()
        .filter_map(Json::as_str)
        .find(|s| !s.is_empty() && *s != "error")
        .unwrap_or_default()
        .to_owned()
    }

    /// Values of a context key, as text whatever they are.
    pub(crate) fn context(&self, key: &str) -> Vec<String> {
        match self.context.get(key) {
            Some(Json::Array(items)) => items.iter().filter_map(scalar).collect(),
            Some(one) => scalar(one).into_iter().collect(),
            None => Vec::new(),
        }
    }

    /// The error of this body under a status.
    pub(crate) fn remote_error(&self, status: u16) -> RemoteError {
        let problems = property_problems(self.message());
        let code = self.code(&problems);
        let rule = rule(status, &code);
        let mut error = table::error(&rule, status, &code, self.message());
        table::blame(&mut error, problems.into_iter().map(|(name, _)| name));
        table::blame(&mut error, self.context("propertyName"));
        if let Json::Array(errors) = &self.errors {
            let named = errors
                .iter()
                .filter_map(|e| e.pointer("/context/propertyName/0"))
                .filter_map(scalar);
            table::blame(&mut error, named);
            let scopes: Vec<String> = errors
                .iter()
                .filter_map(|e| e.pointer("/context/requiredGranularScopes"))
                .filter_map(Json::as_array)
                .flatten()
                .filter_map(scalar)
                .collect();
            if !scopes.is_empty() {
                let message = format!("{} Required: {}.", error.message, scopes.join(", "));
                error.message = table::clean(&message, 500);
            }
        }
        error
    }
}

pub(crate) fn scalar(json: &Json) -> Option<String> {
    match json {
        Json::String(s) => Some(s.clone()),
        Json::Number(n) => Some(n.to_string()),
        _ => None,
    }
}

fn rule(status: u16, code: &str) -> Rule {
    table::find(RULES, status, code)
}

/// `(property, code)` of the list that validation messages end in:
/// `Property values were not valid: [{"name":…,"error":…}]`.
fn property_problems(message: &str) -> Vec<(String, String)> {
    #[derive(Deserialize)]
    struct Problem {
        #[serde(default)]
        name: String,
        #[serde(default)]
        error: String,
    }
    let Some(start) = message.find("[{") else {
        return Vec::new();
    };
    match serde_json::Deserializer::from_str(&message[start..])
        .into_iter::<Vec<Problem>>()
        .next()
    {
        Some(Ok(list)) => list.into_iter().map(|p| (p.name, p.error)).collect(),
        _ => Vec::new(),
    }
}

/// The id that a conflict names: `Contact already exists. Existing ID: 123`.
pub(crate) fn existing_id(message: &str) -> Option<String> {
    let at = message.find("Existing ID:")? + "Existing ID:".len();
    let id: String = message[at..]
        .trim_start()
        .chars()
        .take_while(char::is_ascii_digit)
        .take(20)
        .collect();
    (!id.is_empty()).then_some(id)
}

/// What an answer means that is not what was asked for.
pub(crate) fn classify(response: &HttpResponse) -> RemoteError {
    let parsed = serde_json::from_slice::<ErrorBody>(&response.body).ok();
    let mut error = match (&parsed, response.status) {
        (Some(body), status) if status >= 300 => body.remote_error(status),
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
    if let Some(ms) = retry_after(response) {
        error.retry_after_ms = Some(ms);
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

fn retry_after(response: &HttpResponse) -> Option<i64> {
    let seconds: i64 = response.header("retry-after")?.trim().parse().ok()?;
    (seconds >= 0).then(|| seconds.saturating_mul(1_000).min(RETRY_AFTER_MAX_MS))
}
