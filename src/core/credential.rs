//! Credentials as text, and the hosts they may be sent to.
//!
//! Reading the file or variable is not done here. Problems are told in words
//! that never quote the content: they end up in tables and in the server log.

use crate::connectors::Credential;
use crate::secret::Secret;
use serde_json::{Map, Value};

/// A credential with what it allows.
#[derive(Debug)]
pub struct Loaded {
    /// How to log in.
    pub credential: Credential,
    /// Hosts it may be sent to; empty for those that the settings allow.
    pub hosts: Vec<String>,
    /// Owners of servers that may use it; empty for any.
    pub roles: Vec<String>,
    /// Secret of the CRM's webhooks.
    pub webhook_secret: Option<Secret>,
    /// Client id and secret of the app, beside whatever logs in.
    pub app: Option<(String, Secret)>,
}

/// Understands a credential: a JSON object, or a bare token. `reference` names
/// it in the problem.
pub fn parse(reference: &str, text: &str) -> Result<Loaded, String> {
    let trimmed = text.trim();
    if !trimmed.starts_with('{') {
        let plain = !trimmed.is_empty() && trimmed.bytes().all(|b| b.is_ascii_graphic());
        return if plain {
            Ok(Loaded {
                credential: Credential::Token {
                    token: Secret::new(trimmed),
                },
                hosts: Vec::new(),
                roles: Vec::new(),
                webhook_secret: None,
                app: None,
            })
        } else {
            Err(format!(
                "{reference} is neither a JSON object nor a bare token. Write {{\"token\": …}}."
            ))
        };
    }
    let map: Map<String, Value> = serde_json::from_str(trimmed).map_err(|error| {
        format!(
            "{reference} is not valid JSON (line {}, column {}).",
            error.line(),
            error.column()
        )
    })?;
    Ok(Loaded {
        credential: credential(reference, &map)?,
        hosts: list(reference, &map, "hosts")?,
        roles: match list(reference, &map, "roles")? {
            roles if roles.is_empty() => list(reference, &map, "owner")?,
            roles => roles,
        },
        webhook_secret: secret(&map, "webhook_secret"),
        app: secret(&map, "client_id")
            .map(|id| id.expose().to_owned())
            .zip(secret(&map, "client_secret")),
    })
}

/// The secret of webhooks in a text: the field of that name, or all of it.
pub fn parse_webhook_secret(reference: &str, text: &str) -> Result<Secret, String> {
    let found = match serde_json::from_str::<Map<String, Value>>(text) {
        Ok(map) => secret(&map, "webhook_secret"),
        Err(_) => Some(text.trim())
            .filter(|t| !t.is_empty() && !t.starts_with('{'))
            .map(Secret::new),
    };
    found.ok_or_else(|| format!("{reference} holds no webhook_secret."))
}

fn secret(map: &Map<String, Value>, key: &str) -> Option<Secret> {
    map.get(key)
        .and_then(Value::as_str)
        .filter(|value| !value.is_empty())
        .map(Secret::new)
}

fn text(reference: &str, map: &Map<String, Value>, key: &str) -> Result<String, String> {
    match map.get(key).and_then(Value::as_str) {
        Some(value) if !value.is_empty() => Ok(value.to_owned()),
        _ => Err(format!("{reference} lacks \"{key}\".")),
    }
}

/// A list of texts; a single text is a list of one.
fn list(reference: &str, map: &Map<String, Value>, key: &str) -> Result<Vec<String>, String> {
    let wrong = || format!("{reference}: \"{key}\" must be a list of texts.");
    match map.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(one)) => Ok(vec![one.clone()]),
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| item.as_str().map(str::to_owned).ok_or_else(wrong))
            .collect(),
        Some(_) => Err(wrong()),
    }
}

fn credential(reference: &str, map: &Map<String, Value>) -> Result<Credential, String> {
    if let Some(token) = secret(map, "token") {
        return Ok(Credential::Token { token });
    }
    if map.contains_key("private_key") {
        return Ok(Credential::Jwt {
            client_id: text(reference, map, "client_id")?,
            username: text(reference, map, "username")?,
            audience: text(reference, map, "audience")?,
            private_key: Secret::new(text(reference, map, "private_key")?),
        });
    }
    if let Some(refresh_token) = secret(map, "refresh_token") {
        return Ok(Credential::RefreshToken {
            client_id: text(reference, map, "client_id")?,
            client_secret: secret(map, "client_secret"),
            refresh_token,
        });
    }
    if map.contains_key("client_id") {
        return Ok(Credential::ClientCredentials {
            client_id: text(reference, map, "client_id")?,
            client_secret: Secret::new(text(reference, map, "client_secret")?),
        });
    }
    Err(format!(
        "{reference} holds no credential. Expected \"token\", or \"client_id\" with \"client_secret\", \"refresh_token\" or \"private_key\"."
    ))
}

/// The refresh token in a credential's text.
pub fn refresh_token(text: &str) -> Option<Secret> {
    secret(&serde_json::from_str(text).ok()?, "refresh_token")
}

/// The same credential with another refresh token; all else stays as it was
/// written. `None` when the text holds no refresh token.
pub fn with_refresh_token(text: &str, token: &Secret) -> Option<String> {
    let mut map: Map<String, Value> = serde_json::from_str(text).ok()?;
    secret(&map, "refresh_token")?;
    map.insert("refresh_token".to_owned(), token.expose().into());
    let mut text = serde_json::to_string_pretty(&map).ok()?;
    text.push('\n');
    Some(text)
}

/// Hosts that a server may call: those of the setting, narrowed by the
/// credential's list and by the server's own, where they exist. Never widened.
pub fn allowed_hosts(setting: &[String], narrowing: [&[String]; 2]) -> Vec<String> {
    let mut hosts = normal(setting);
    for list in narrowing.into_iter().filter(|list| !list.is_empty()) {
        let list = normal(list);
        let mut both: Vec<String> = Vec::new();
        for (one, other) in [(&hosts, &list), (&list, &hosts)] {
            for entry in one {
                if other.iter().any(|by| covers(by, entry)) && !both.contains(entry) {
                    both.push(entry.clone());
                }
            }
        }
        hosts = both;
    }
    hosts
}

/// Lower case; `*.domain` is `.domain`.
fn normal(list: &[String]) -> Vec<String> {
    list.iter()
        .map(|host| host.trim().to_ascii_lowercase())
        .map(|host| host.strip_prefix('*').map_or(host.clone(), str::to_owned))
        .filter(|host| !host.is_empty())
        .collect()
}

/// Whether all that `entry` allows is allowed by `by`.
fn covers(by: &str, entry: &str) -> bool {
    let host = match entry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !host.ends_with(':') => {
            host
        }
        _ => entry,
    };
    by == entry || by == host || (by.starts_with('.') && host.ends_with(by))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(list: &[&str]) -> Vec<String> {
        list.iter().map(|h| (*h).to_owned()).collect()
    }

    #[test]
    fn a_credentials_own_hosts_narrow_and_never_widen() {
        let setting = hosts(&["api.example", "*.crm.example", "127.0.0.1"]);
        assert_eq!(
            allowed_hosts(&setting, [&[], &[]]),
            hosts(&["api.example", ".crm.example", "127.0.0.1"])
        );
        assert_eq!(
            allowed_hosts(
                &setting,
                [&hosts(&["acme.my.crm.example", "evil.example"]), &[]]
            ),
            hosts(&["acme.my.crm.example"])
        );
        assert_eq!(
            allowed_hosts(&setting, [&[], &hosts(&["127.0.0.1:8080"])]),
            hosts(&["127.0.0.1:8080"])
        );
        assert!(allowed_hosts(&setting, [&hosts(&[".com"]), &hosts(&["other"])]).is_empty());
    }

    #[test]
    fn problems_never_quote_the_content() {
        for text in [
            r#"{"client_id": "CANARY"}"#,
            r#"{"token": "CANARY""#,
            "CANARY \u{7f}",
            r#"{"token": ["CANARY"]}"#,
        ] {
            let problem = parse("file:x", text).expect_err("not a credential");
            assert!(
                problem.starts_with("file:x") && !problem.contains("CANARY"),
                "{problem}"
            );
        }
    }

    #[test]
    fn a_new_refresh_token_replaces_the_old_one_and_nothing_else() {
        let text = r#"{"client_id": "c", "refresh_token": "old", "note": "ours", "hosts": ["a"]}"#;
        let next = with_refresh_token(text, &Secret::new("new")).expect("holds one");
        assert_eq!(refresh_token(&next), Some(Secret::new("new")));
        let both: [Map<String, Value>; 2] =
            [text, &next].map(|t| serde_json::from_str(t).expect("an object"));
        assert!(both[0].keys().eq(both[1].keys()));
        assert_eq!(both[0]["hosts"], both[1]["hosts"]);
        for none in [
            r#"{"token": "t"}"#,
            "bare-token",
            r#"{"refresh_token": ""}"#,
        ] {
            assert_eq!(with_refresh_token(none, &Secret::new("new")), None);
        }
    }

    #[test]
    fn each_form_of_credential_is_understood() {
        let kinds = [
            (
                r#"{"token": "t", "hosts": ["a"], "roles": "r", "webhook_secret": "w"}"#,
                "Token",
            ),
            (
                r#"{"client_id": "c", "client_secret": "s"}"#,
                "ClientCredentials",
            ),
            (
                r#"{"client_id": "c", "refresh_token": "s"}"#,
                "RefreshToken",
            ),
            (
                r#"{"client_id": "c", "username": "u", "audience": "a", "private_key": "k"}"#,
                "Jwt",
            ),
            ("bare-token", "Token"),
        ];
        for (text, kind) in kinds {
            let loaded = parse("file:x", text).expect(text);
            assert!(
                format!("{:?}", loaded.credential).starts_with(kind),
                "{text}"
            );
        }
        let loaded = parse("file:x", kinds[0].0).expect("first");
        assert_eq!((loaded.hosts, loaded.roles), (hosts(&["a"]), hosts(&["r"])));
        assert!(loaded.webhook_secret.is_some());
    }
}
