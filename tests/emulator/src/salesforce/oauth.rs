//! The OAuth endpoints: tokens for servers, userinfo, identity, revocation. Errors are objects here, not arrays.

use super::State;
use super::api::Reply;
use super::api::http::{bearer, parse_query};
use super::base::user_email;
use super::error::Error;
use super::session::{ORG, SYNC_USER};
use axum::http::{HeaderMap, header};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use serde_json::{Value, json};

/// Audiences a JWT may name, besides this host.
const AUDIENCES: [&str; 2] = [
    "https://login.salesforce.com",
    "https://test.salesforce.com",
];
const JWT_GRANT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
/// How far ahead a JWT may expire.
const MAX_JWT_LIFE_S: i64 = 300;

/// The RSA key that JWT assertions must verify with.
pub(crate) struct PublicKey(Vec<u8>);

impl PublicKey {
    /// Reads a PEM file with an RSA public key (`BEGIN PUBLIC KEY`).
    pub(crate) fn read(path: &str) -> Result<Self, String> {
        let text =
            std::fs::read(path).map_err(|error| format!("--jwt-public-key {path}: {error}"))?;
        let expected = || {
            format!(
                "--jwt-public-key {path}: expected a PEM file with `BEGIN PUBLIC KEY` and an RSA key"
            )
        };
        if CertificateDer::from_pem_slice(&text).is_ok() {
            return Err(expected());
        }
        let info = SubjectPublicKeyInfoDer::from_pem_slice(&text).map_err(|_| expected())?;
        inner_key(&info)
            .map(|key| Self(key.to_vec()))
            .ok_or_else(expected)
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &self.0)
            .verify(message, signature)
            .is_ok()
    }
}

/// The RSA key inside a SubjectPublicKeyInfo: SEQUENCE { algorithm, BIT STRING { key } }.
fn inner_key(info: &[u8]) -> Option<&[u8]> {
    let (0x30, body, _) = der(info)? else {
        return None;
    };
    let (0x30, _, rest) = der(body)? else {
        return None;
    };
    let (0x03, bits, _) = der(rest)? else {
        return None;
    };
    let (unused, key) = bits.split_first()?;
    (*unused == 0).then_some(key)
}

/// Tag, content and what follows of a DER element.
fn der(input: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = input.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = if *first < 0x80 {
        (usize::from(*first), rest)
    } else {
        let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        (
            digits.iter().try_fold(0usize, |sum, digit| {
                sum.checked_mul(256)?.checked_add(usize::from(*digit))
            })?,
            rest,
        )
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

struct Refused(&'static str, String);

impl Refused {
    fn reply(self) -> Reply {
        Reply::json(400, &json!({"error": self.0, "error_description": self.1}))
    }
}

fn refused(error: &'static str, text: &str) -> Refused {
    Refused(error, text.to_owned())
}

/// Everything outside `/services/data`. `base` is the URL the caller reached us by.
pub(crate) fn route(
    org: &State,
    method: &str,
    path: &str,
    query: &[(String, String)],
    headers: &HeaderMap,
    body: &[u8],
    base: &str,
) -> Reply {
    match (method, path.trim_end_matches('/')) {
        ("POST", "/services/oauth2/token") => {
            let form = parse_query(&String::from_utf8_lossy(body));
            token(org, &form, headers, base).unwrap_or_else(Refused::reply)
        }
        ("POST" | "GET", "/services/oauth2/revoke") => {
            let form = parse_query(&String::from_utf8_lossy(body));
            let token = value(&form, "token")
                .or_else(|| value(query, "token"))
                .unwrap_or_default();
            if org.sessions.revoke(token) {
                Reply::empty(200)
            } else {
                refused("unsupported_token_type", "this token type is not supported").reply()
            }
        }
        ("GET" | "POST", "/services/oauth2/userinfo") => {
            identified(org, headers, query, base, false)
        }
        ("GET", path) if path.starts_with("/id/") => identified(org, headers, query, base, true),
        _ => Error::not_found().into(),
    }
}

fn value<'a>(form: &'a [(String, String)], name: &str) -> Option<&'a str> {
    form.iter()
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.as_str())
}

fn token(
    org: &State,
    form: &[(String, String)],
    headers: &HeaderMap,
    base: &str,
) -> Result<Reply, Refused> {
    let mut refresh = None;
    match value(form, "grant_type") {
        Some("client_credentials") => client(org, form, headers, true)?,
        Some("refresh_token") => {
            client(org, form, headers, false)?;
            let given = value(form, "refresh_token").unwrap_or_default();
            let rotate = org.settings().rotate_refresh_token;
            let next = org
                .sessions
                .refresh(given, rotate)
                .ok_or_else(|| refused("invalid_grant", "expired access/refresh token"))?;
            refresh = rotate.then_some(next);
        }
        Some(JWT_GRANT) => assertion(org, value(form, "assertion").unwrap_or_default(), base)?,
        Some(_) => {
            return Err(refused(
                "unsupported_grant_type",
                "grant type not supported",
            ));
        }
        None => {
            return Err(refused(
                "invalid_request",
                "missing required code parameter: grant_type",
            ));
        }
    }
    let issued_at = org.now();
    let mut answer = json!({
        "access_token": org.sessions.issue(issued_at),
        "signature": STANDARD.encode(crate::clock::mix(issued_at.unsigned_abs()).to_be_bytes()),
        "scope": "refresh_token api",
        "instance_url": base,
        "id": format!("{base}/id/{ORG}/{SYNC_USER}"),
        "token_type": "Bearer",
        "issued_at": issued_at.to_string(),
    });
    if let Some(next) = refresh {
        answer["refresh_token"] = json!(next);
    }
    Ok(Reply::json(200, &answer).with("cache-control", "no-store".to_owned()))
}

/// Checks the app's credentials, from the form or a Basic header.
fn client(
    org: &State,
    form: &[(String, String)],
    headers: &HeaderMap,
    secret_needed: bool,
) -> Result<(), Refused> {
    let basic = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.strip_prefix("Basic "));
    let pair = basic
        .and_then(|text| STANDARD.decode(text.trim()).ok())
        .and_then(|bytes| String::from_utf8(bytes).ok());
    let (id, secret) = match pair.as_deref().and_then(|text| text.split_once(':')) {
        Some((id, secret)) => (id.to_owned(), Some(secret.to_owned())),
        None => (
            value(form, "client_id").unwrap_or_default().to_owned(),
            value(form, "client_secret").map(str::to_owned),
        ),
    };
    let options = &org.shared.options;
    if id != options.client_id {
        return Err(refused("invalid_client_id", "client identifier invalid"));
    }
    match secret {
        Some(secret) if secret != options.client_secret => {
            Err(refused("invalid_client", "invalid client credentials"))
        }
        None if secret_needed => Err(refused("invalid_client", "invalid client credentials")),
        _ => Ok(()),
    }
}

/// Checks a JWT: RS256, issuer, subject, audience, expiry; its signature when a key is set.
fn assertion(org: &State, jwt: &str, base: &str) -> Result<(), Refused> {
    let grant = |text: &str| refused("invalid_grant", text);
    let parts: Vec<&str> = jwt.split('.').collect();
    let [head, claims, signature] = parts.as_slice() else {
        return Err(grant("invalid assertion"));
    };
    let decode = |text: &str| {
        URL_SAFE_NO_PAD
            .decode(text.trim_end_matches('='))
            .map_err(|_| grant("invalid assertion"))
    };
    let object = |text: &str| {
        serde_json::from_slice::<Value>(&decode(text)?).map_err(|_| grant("invalid assertion"))
    };
    if object(head)?["alg"] != "RS256" {
        return Err(grant("algorithm not supported: RS256 is required"));
    }
    let signature = decode(signature)?;
    let message = &jwt[..head.len() + 1 + claims.len()];
    let claims = object(claims)?;
    let options = &org.shared.options;
    if claims["iss"] != options.client_id.as_str() {
        return Err(refused("invalid_client_id", "client identifier invalid"));
    }
    let audience = claims["aud"]
        .as_str()
        .unwrap_or_default()
        .trim_end_matches('/');
    if !AUDIENCES.contains(&audience) && audience != base {
        return Err(grant("audience is invalid"));
    }
    let expiry = claims["exp"].as_i64().unwrap_or(0);
    let now = org.now() / 1_000;
    if expiry <= now || expiry > now + MAX_JWT_LIFE_S {
        return Err(grant("assertion is expired or its expiry is too far ahead"));
    }
    let signed = match &org.jwt_key {
        Some(key) => key.verifies(message.as_bytes(), &signature),
        None => signature.len() >= 256,
    };
    if !signed {
        return Err(grant("invalid assertion signature"));
    }
    if claims["sub"] != options.jwt_username.as_str() {
        return Err(grant("user hasn't approved this consumer"));
    }
    Ok(())
}

/// `userinfo` and the identity URL.
fn identified(
    org: &State,
    headers: &HeaderMap,
    query: &[(String, String)],
    base: &str,
    identity: bool,
) -> Reply {
    let token = bearer(headers)
        .or_else(|| value(query, "oauth_token"))
        .unwrap_or_default();
    if !org.session_valid(token) {
        // Recorded as plain text, unlike everything else.
        return Reply {
            status: 403,
            headers: Vec::new(),
            body: b"Bad_OAuth_Token".to_vec(),
            rows: None,
        };
    }
    let name = user_email(1);
    let url = |path: &str| format!("{base}/services/{path}");
    let urls = json!({
        "enterprise": url("Soap/c/{version}/00Dxx0000000001"), "metadata": url("Soap/m/{version}/00Dxx0000000001"),
        "partner": url("Soap/u/{version}/00Dxx0000000001"), "rest": url("data/v{version}/"),
        "sobjects": url("data/v{version}/sobjects/"), "search": url("data/v{version}/search/"),
        "query": url("data/v{version}/query/"), "recent": url("data/v{version}/recent/"),
        "profile": format!("{base}/{SYNC_USER}"), "custom_domain": base,
    });
    let id = format!("{base}/id/{ORG}/{SYNC_USER}");
    let mut body = json!({
        "user_id": SYNC_USER.to_string(), "organization_id": ORG.to_string(), "nickname": "sync", "email": name,
        "email_verified": true, "given_name": "Integration", "family_name": "User", "active": true, "user_type": "STANDARD",
        "language": "en_US", "locale": "en_US", "utcOffset": 0, "urls": urls, "is_app_installed": true,
    });
    if identity {
        body["id"] = json!(id);
        body["username"] = json!(name);
        body["display_name"] = json!("Integration User");
        body["timezone"] = json!("GMT");
    } else {
        body["sub"] = json!(id);
        body["preferred_username"] = json!(name);
        body["name"] = json!("Integration User");
        body["zoneinfo"] = json!("GMT");
    }
    Reply::json(200, &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A key made for this test, and its signature of `head.claims`.
    const KEY: &str = "-----BEGIN PUBLIC KEY-----\n\
        MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAt3KVXiwt/aMBirpKvPC+\n\
        78PM/vbOIGEL7ayAltDrgid7UPxRvRIRmIKNIt11+BtUyEy1TfwxHp+Tre+g1/7y\n\
        rhjQ/vUeasJygz2FvFiVahJ68Dn2+YMKoeng1n1Ge3yMeqv9MoVWehOohsT/XnMh\n\
        dEtPoY+vxAE5F9ofzDUmW2YAHPhnukWffusK1mmvMyRM5zHyo22VVy+E/2RKSO4D\n\
        qx9xIXKSCejKMjYbFJ23C0QakcmqObfUHRn770PK8wem2tiAosj/zhrNbaV3cU4J\n\
        dLaVtAyXdr4XdKczRwB8EoVnObAi6s/xlkCT9M2VydJjsYB627ZTo2BLvax2f4S1\n\
        0QIDAQAB\n\
        -----END PUBLIC KEY-----\n";
    const SIGNATURE: &str = "Yu6BlacfW11snspPkqgDa0KaNVYh3NFghvJu8U58slzSSjU8+8sqwVHW/VFKIB0lQg77DBKfnXfKGvqV5BBMWhbn\
        hMeVUklNwtS6gCVEU0+qy+2Kb6uGtOiqP8W5xngmWzNdxbCZ9dMhX/z8bqseD4QtjLtkYlvc+LBeCbjmqdvrK4N6\
        sxkHQehGM3pN/XKjkpzOJK1DlVTnRcA51g50I4B5dYi5B58V3enqIMHNZscndXscBYif3JgcE9uCqPqrG4wEHx8w\
        zn8+angoJT8z1HP6OH2WiCyQXreX2chdsjr58LJKZ8dssNxHZBxa2ru56XwGNUBdufoKgDb689Cf6A==";

    #[test]
    fn a_signature_verifies_with_its_key_and_its_message_only() {
        let path = std::env::temp_dir().join(format!("crm-emulator-{}.pem", std::process::id()));
        let name = path.to_str().unwrap();
        std::fs::write(&path, KEY).unwrap();
        let key = PublicKey::read(name).unwrap_or_else(|error| panic!("{error}"));
        std::fs::write(&path, KEY.replace("PUBLIC", "PRIVATE")).unwrap();
        let wrong = PublicKey::read(name).err().unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(wrong.contains("BEGIN PUBLIC KEY"), "{wrong}");
        let signature = STANDARD.decode(SIGNATURE).unwrap();
        assert!(key.verifies(b"head.claims", &signature));
        assert!(!key.verifies(b"head.claimz", &signature));
        assert!(!key.verifies(b"head.claims", &signature[1..]));
    }

    #[test]
    fn broken_der_is_refused_not_read_past_its_end() {
        for bytes in [
            &b""[..],
            b"\x30",
            b"\x30\x05\x00",
            b"\x30\x84\xff\xff\xff\xff",
            b"\x30\x8f",
        ] {
            assert!(inner_key(bytes).is_none(), "{bytes:?}");
        }
    }
}
