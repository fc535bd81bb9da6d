//! Tokens: `/oauth/v1/token` and its successors.

use serde_json::{Value, json};

use super::{
    auth::Grant,
    base::iso_short,
    error::ApiError,
    http::{Call, Outcome, Query, Reply, correlation},
};
use crate::clock;

const SCOPES: [&str; 12] = [
    "oauth",
    "crm.objects.contacts.read",
    "crm.objects.contacts.write",
    "crm.objects.companies.read",
    "crm.objects.companies.write",
    "crm.objects.deals.read",
    "crm.objects.deals.write",
    "crm.objects.custom.read",
    "crm.objects.custom.write",
    "crm.objects.owners.read",
    "crm.schemas.contacts.read",
    "tickets",
];
/// What a token by client credentials is for.
const JOURNAL_SCOPE: &str = "developer.webhooks_journal.read";
const USER_ID: u64 = 9_339_236;

fn is_v1(call: &Call<'_>) -> bool {
    call.target.starts_with("/oauth/v1/")
}

fn refused(call: &Call<'_>, status: &str, code: &str, message: &str) -> ApiError {
    let error = ApiError::new(400, "", message).with("status", json!(status));
    let mut error = if is_v1(call) {
        error
    } else {
        error
            .with("error", json!(code))
            .with("error_description", json!(message))
    };
    error.body.remove("category");
    error
}

/// `POST …/token`, form encoded.
pub(crate) fn token(call: &Call<'_>) -> Outcome {
    let options = &call.state.shared.options;
    let form = Query::parse(&String::from_utf8_lossy(&call.body));
    let field = |name: &str| form.get(name).unwrap_or_default();
    if field("client_id") != options.client_id || field("client_secret") != options.client_secret {
        return Err(refused(
            call,
            "BAD_CLIENT_ID",
            "invalid_client",
            "missing or unknown client id",
        ));
    }
    match field("grant_type") {
        "refresh_token" if field("refresh_token") != options.refresh_token => {
            let message = "missing or invalid refresh token";
            return Err(refused(call, "BAD_REFRESH_TOKEN", "invalid_grant", message));
        }
        "authorization_code" if field("code").is_empty() || field("redirect_uri").is_empty() => {
            let message = "missing or unknown auth code";
            return Err(refused(call, "BAD_AUTH_CODE", "invalid_grant", message));
        }
        "refresh_token" | "authorization_code" => {}
        "client_credentials" if field("scope").contains(JOURNAL_SCOPE) => {}
        other => {
            let message = format!("unsupported grant type `{other}`");
            return Err(refused(
                call,
                "BAD_GRANT_TYPE",
                "unsupported_grant_type",
                &message,
            ));
        }
    }
    let access = format!("CJ{}", correlation(call.state).replace('-', ""));
    let grant = match field("grant_type") {
        "client_credentials" => Grant::Journal,
        _ => Grant::OAuth,
    };
    (call.state.auth).issue(&access, options.hubspot_token_life_s, grant);
    let mut body = json!({"token_type": "bearer", "refresh_token": options.refresh_token,
        "access_token": access, "expires_in": options.hubspot_token_life_s});
    if !is_v1(call) {
        body["hub_id"] = json!(call.state.portal());
        body["scopes"] = json!(SCOPES);
        body["user_id"] = json!(USER_ID);
    }
    Ok(Reply::value(200, &body))
}

fn seconds_left(call: &Call<'_>, token: &str) -> Option<i64> {
    let left = (call.state.auth.expires_at(token)? - clock::real_ms()) / 1_000;
    (left > 0).then_some(left)
}

/// `GET /oauth/v1/access-tokens/{token}`.
pub(crate) fn access_token(call: &Call<'_>) -> Outcome {
    let token = call.param("token");
    let Some(left) = seconds_left(call, token) else {
        return Err(ApiError::not_found("Access token not found or expired"));
    };
    let options = &call.state.shared.options;
    let now = iso_short(clock::real_ms());
    Ok(Reply::value(
        200,
        &json!({"token": token, "user": "sync@example.com", "hub_domain": "emulator.example.com",
        "scopes": SCOPES, "signed_access_token": {"expiresAt": now, "scopes": "", "hubId": options.hubspot_portal_id,
        "userId": USER_ID, "appId": options.hubspot_app_id, "signature": "", "scopeToScopeGroupPks": "",
        "newSignature": "", "hublet": "na1"}, "token_type": "access", "user_id": USER_ID,
        "is_private_distribution": false, "hub_id": options.hubspot_portal_id, "expires_in": left,
        "app_id": options.hubspot_app_id}),
    ))
}

/// `GET /oauth/v1/refresh-tokens/{token}`.
pub(crate) fn refresh_token(call: &Call<'_>) -> Outcome {
    let options = &call.state.shared.options;
    if call.param("token") != options.refresh_token {
        return Err(ApiError::not_found("Refresh token not found"));
    }
    Ok(Reply::value(
        200,
        &json!({"token": options.refresh_token, "user": "sync@example.com",
        "hub_domain": "emulator.example.com", "scopes": SCOPES, "token_type": "refresh",
        "user_id": USER_ID, "hub_id": options.hubspot_portal_id, "client_id": options.client_id}),
    ))
}

/// `POST …/token/introspect`.
pub(crate) fn introspect(call: &Call<'_>) -> Outcome {
    let form = Query::parse(&String::from_utf8_lossy(&call.body));
    let left = seconds_left(call, form.get("token").unwrap_or_default());
    let options = &call.state.shared.options;
    let body = match left {
        None => json!({"active": false}),
        Some(left) => {
            json!({"active": true, "token_use": "access", "hub_id": options.hubspot_portal_id,
            "app_id": options.hubspot_app_id, "user_id": USER_ID, "scopes": SCOPES, "expires_in": left})
        }
    };
    Ok(Reply::value(200, &body))
}

/// `POST …/token/revoke`.
pub(crate) fn revoke(call: &Call<'_>) -> Outcome {
    let form = Query::parse(&String::from_utf8_lossy(&call.body));
    call.state
        .auth
        .issue(form.get("token").unwrap_or_default(), 0, Grant::OAuth);
    Ok(Reply::empty(204))
}

/// `POST /oauth/v2/private-apps/get/access-token-info`, body `{"tokenKey":…}`.
pub(crate) fn key_info(call: &Call<'_>) -> Outcome {
    let body = call.json()?;
    let key = body
        .get("tokenKey")
        .and_then(Value::as_str)
        .unwrap_or_default();
    match call.state.auth.check(Some(&format!("Bearer {key}"))) {
        Ok(Grant::ServiceKey) => Ok(Reply::value(
            200,
            &json!({"userId": USER_ID,
            "hubId": call.state.portal(), "appId": call.state.shared.options.hubspot_app_id,
            "scopes": SCOPES}),
        )),
        _ => Err(ApiError::not_found("No such private app token")),
    }
}
