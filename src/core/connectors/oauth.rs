//! OAuth as all CRMs do it: requests for a token, and answers with one.

use serde::de::DeserializeOwned;

use super::Credential;
use super::table::{self, Rule};
use super::text::form;
use crate::http::{HttpRequest, HttpResponse, Method, Purpose};
use crate::model::{ErrorClass, RemoteError};

/// What asks for a token with a credential that is not one of a CRM alone.
pub(crate) fn grant(credential: &Credential) -> Option<Vec<(&str, &str)>> {
    match credential {
        Credential::Token { .. } | Credential::Jwt { .. } => None,
        Credential::ClientCredentials {
            client_id,
            client_secret,
        } => Some(vec![
            ("grant_type", "client_credentials"),
            ("client_id", client_id.as_str()),
            ("client_secret", client_secret.expose()),
        ]),
        Credential::RefreshToken {
            client_id,
            client_secret,
            refresh_token,
        } => {
            let secret = client_secret
                .as_ref()
                .map(|s| ("client_secret", s.expose()));
            let first = [
                ("grant_type", "refresh_token"),
                ("client_id", client_id.as_str()),
            ];
            let last = [("refresh_token", refresh_token.expose())];
            Some(first.into_iter().chain(secret).chain(last).collect())
        }
    }
}

/// The request that sends such pairs.
pub(crate) fn request(target: String, pairs: &[(&str, &str)]) -> HttpRequest {
    HttpRequest {
        method: Method::Post,
        target,
        headers: vec![
            ("accept".into(), "application/json".into()),
            (
                "content-type".into(),
                "application/x-www-form-urlencoded".into(),
            ),
        ],
        body: form(pairs),
        purpose: Purpose::Auth,
    }
}

/// Parses an answer of success. `advice` is for one that is not the CRM's.
pub(crate) fn answer<T: DeserializeOwned>(
    response: &HttpResponse,
    advice: &'static str,
) -> Result<T, RemoteError> {
    // The parser's message may quote the body, which holds tokens: not passed on.
    serde_json::from_slice(&response.body).map_err(|_| {
        let rule = Rule::new(0, "", ErrorClass::Stop, advice);
        let message = "the token answer has no access_token";
        table::error(&rule, response.status, "not_json", message)
    })
}
