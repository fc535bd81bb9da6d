//! Salesforce's token flows: client credentials, refresh, JWT bearer.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD as BASE64, URL_SAFE_NO_PAD as BASE64URL};
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use serde::Deserialize;

use crate::connectors::text::push_json;
use crate::connectors::{Credential, ServerConfig, Token, oauth, table};
use crate::http::{HttpRequest, HttpResponse};
use crate::model::{Millis, RemoteError};
use crate::secret::Secret;

use super::errors::classify;
use super::id18;

/// Where tokens come from when the server names no My Domain.
pub(crate) const LOGIN_URL: &str = "https://login.salesforce.com";
/// Life of a JWT: a few minutes are asked for.
const JWT_LIFE_S: i64 = 180;

pub(crate) fn login_root(config: &ServerConfig) -> &str {
    [&config.login_url, &config.base_url]
        .into_iter()
        .find(|u| !u.is_empty())
        .map_or(LOGIN_URL, |u| u.trim_end_matches('/'))
}

/// The request that gets a token. `None` when the credential is one.
pub(crate) fn request(
    config: &ServerConfig,
    credential: &Credential,
    now: Millis,
) -> Result<Option<HttpRequest>, RemoteError> {
    let assertion;
    let pairs = match (credential, oauth::grant(credential)) {
        (_, Some(pairs)) => pairs,
        (
            Credential::Jwt {
                client_id,
                username,
                audience,
                private_key,
            },
            None,
        ) => {
            assertion = jwt(client_id, username, audience, private_key, now)?;
            vec![
                ("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"),
                ("assertion", assertion.as_str()),
            ]
        }
        (_, None) => return Ok(None),
    };
    let target = format!("{}/services/oauth2/token", login_root(config));
    Ok(Some(oauth::request(target, &pairs)))
}

fn bad_key(message: &str) -> RemoteError {
    table::unusable(
        "private_key",
        message,
        "Put an unencrypted RSA private key of at least 2048 bits, in PEM, into the credential file.",
    )
}

/// The DER inside a PEM, and whether it is PKCS#8.
pub(super) fn pem(text: &str) -> Option<(Vec<u8>, bool)> {
    for (label, is_pkcs8) in [("PRIVATE KEY", true), ("RSA PRIVATE KEY", false)] {
        let begin = format!("-----BEGIN {label}-----");
        let end = format!("-----END {label}-----");
        let Some((_, rest)) = text.split_once(&begin) else {
            continue;
        };
        let (inner, _) = rest.split_once(&end)?;
        let packed: String = inner.chars().filter(|c| !c.is_whitespace()).collect();
        return Some((BASE64.decode(packed).ok()?, is_pkcs8));
    }
    None
}

fn jwt(
    client_id: &str,
    username: &str,
    audience: &str,
    private_key: &Secret,
    now: Millis,
) -> Result<String, RemoteError> {
    let (der, is_pkcs8) =
        pem(private_key.expose()).ok_or_else(|| bad_key("the private key is not PEM"))?;
    let key = if is_pkcs8 {
        RsaKeyPair::from_pkcs8(&der)
    } else {
        RsaKeyPair::from_der(&der)
    }
    .map_err(|e| bad_key(&format!("the private key is refused: {e}")))?;
    let mut claims = String::from("{\"iss\":");
    push_json(&mut claims, client_id);
    claims.push_str(",\"sub\":");
    push_json(&mut claims, username);
    claims.push_str(",\"aud\":");
    push_json(
        &mut claims,
        if audience.is_empty() {
            LOGIN_URL
        } else {
            audience
        },
    );
    claims.push_str(&format!(
        ",\"exp\":{}}}",
        now.div_euclid(1_000) + JWT_LIFE_S
    ));
    let mut text = BASE64URL.encode(r#"{"alg":"RS256"}"#);
    text.push('.');
    text.push_str(&BASE64URL.encode(claims));
    let mut signature = vec![0; key.public().modulus_len()];
    // PKCS#1 v1.5 signatures are deterministic; the generator only blinds.
    key.sign(
        &RSA_PKCS1_SHA256,
        &SystemRandom::new(),
        text.as_bytes(),
        &mut signature,
    )
    .map_err(|_| bad_key("signing failed"))?;
    text.push('.');
    text.push_str(&BASE64URL.encode(signature));
    Ok(text)
}

/// Parses the token answer. Salesforce tells no lifetime: the session ends
/// when a call is answered 401.
pub(crate) fn token(response: &HttpResponse) -> Result<Token, RemoteError> {
    #[derive(Deserialize)]
    struct Answer {
        access_token: String,
        #[serde(default)]
        instance_url: Option<String>,
        #[serde(default)]
        id: Option<String>,
        #[serde(default)]
        refresh_token: Option<String>,
    }
    if !(200..300).contains(&response.status) {
        return Err(classify(response));
    }
    let advice = "Check login_url; the server there is not Salesforce.";
    let answer: Answer = oauth::answer(response, advice)?;
    let tenant = answer
        .id
        .as_deref()
        .and_then(|id| id.split("/id/").nth(1)?.split('/').next())
        .filter(|org| org.len() == 15 || org.len() == 18)
        .map(id18);
    Ok(Token {
        access: Secret::new(answer.access_token),
        expires_at: None,
        instance_url: answer
            .instance_url
            .map(|u| u.trim_end_matches('/').to_owned())
            .filter(|u| !u.is_empty()),
        tenant,
        refresh_token: answer.refresh_token.map(Secret::new),
    })
}
