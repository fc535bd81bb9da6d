//! Normal forms of match keys: what makes two records one thing.

use serde::{Deserialize, Serialize};

/// How the values of a match key are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyKind {
    /// E-mail address: surrounding space and case do not count.
    Email,
    /// Web domain: scheme, `www.`, path, port and case do not count.
    Domain,
    /// Identifier given by somebody else: surrounding space does not count.
    ExternalId,
}

/// The normal form of a match key; `None` for a value that identifies nothing.
pub fn normal_key(kind: KeyKind, text: &str) -> Option<String> {
    match kind {
        KeyKind::Email => email(text),
        KeyKind::Domain => domain_of_url(text),
        KeyKind::ExternalId => {
            let id = text.trim();
            (!id.is_empty()).then(|| id.to_owned())
        }
    }
}

fn email(text: &str) -> Option<String> {
    let address = text.trim().to_lowercase();
    let (user, host) = address.rsplit_once('@')?;
    let plausible = !user.is_empty()
        && host.contains('.')
        && !address.contains(|c: char| c.is_whitespace() || c.is_control());
    plausible.then_some(address)
}

/// The domain of a URL or of a bare host name, lower case, without `www.`.
pub fn domain_of_url(text: &str) -> Option<String> {
    let text = text.trim();
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or("");
    let host = authority.rsplit('@').next().unwrap_or("");
    let host = host.split(':').next().unwrap_or("").trim_end_matches('.');
    let host = host.to_lowercase();
    let host = host.strip_prefix("www.").unwrap_or(&host);
    let plausible = host.contains('.')
        && !host.starts_with('.')
        && !host.contains(|c: char| c.is_whitespace() || c.is_control());
    plausible.then(|| host.to_owned())
}
