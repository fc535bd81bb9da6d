//! Which hosts may be called at all. Checked before any connection, name
//! lookup included, for every URL whoever made it up.

use crm_core::model::RemoteError;
use reqwest::Url;

use crate::errors::local;

/// Parses an absolute URL and refuses what must not be called: hosts outside
/// `allowed` (see [`crate::ServerSpec::allowed_hosts`]), plain HTTP beyond
/// this machine, credentials in the URL.
pub(crate) fn checked(url: &str, allowed: &[String]) -> Result<Url, RemoteError> {
    let parsed = Url::parse(url).map_err(|e| local("bad_url", format!("not a URL: {e}")))?;
    let host = parsed.host_str().unwrap_or("").to_ascii_lowercase();
    let port = parsed.port_or_known_default().unwrap_or(0);
    let has_login = !parsed.username().is_empty() || parsed.password().is_some();
    if has_login || !matches!(parsed.scheme(), "https" | "http") {
        return Err(local(
            "bad_url",
            format!(
                "scheme {} or a login in the URL of host {host}",
                parsed.scheme()
            ),
        ));
    }
    if !allowed.iter().any(|a| matches(a, &host, port)) {
        return Err(local(
            "host_not_allowed",
            format!("host {host}:{port} is not among the allowed hosts"),
        ));
    }
    if parsed.scheme() == "http" && !is_loopback(&parsed) {
        return Err(local(
            "host_not_allowed",
            format!("plain http to {host}, which is not a loopback address"),
        ));
    }
    Ok(parsed)
}

fn matches(entry: &str, host: &str, port: u16) -> bool {
    let entry = entry.trim().to_ascii_lowercase();
    if entry.starts_with('.') {
        return host.len() > entry.len() && host.ends_with(&entry);
    }
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    !entry.is_empty() && (entry == host || entry == bare || entry == format!("{host}:{port}"))
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or("");
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<std::net::IpAddr>() {
        Ok(ip) => ip.is_loopback(),
        Err(_) => bare.eq_ignore_ascii_case("localhost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(url: &str, allowed: &[&str]) -> String {
        let allowed: Vec<_> = allowed.iter().map(ToString::to_string).collect();
        match checked(url, &allowed) {
            Ok(_) => "ok".into(),
            Err(e) => e.code,
        }
    }

    #[test]
    fn only_whole_names_and_true_subdomains_are_allowed() {
        let allowed = [".my.salesforce.com", "api.hubapi.com"];
        assert_eq!(verdict("https://api.hubapi.com/x", &allowed), "ok");
        assert_eq!(verdict("https://API.HubAPI.com", &allowed), "ok");
        assert_eq!(verdict("https://a.my.salesforce.com", &allowed), "ok");
        for url in [
            "https://my.salesforce.com",
            "https://evilmy.salesforce.com",
            "https://a.my.salesforce.com.evil.example",
            "https://api.hubapi.com.evil.example",
            "https://xapi.hubapi.com",
            "https://evil.example/api.hubapi.com",
            "https://evil.example#.my.salesforce.com",
            "https://evil.example?.my.salesforce.com",
        ] {
            assert_eq!(verdict(url, &allowed), "host_not_allowed", "{url}");
        }
        assert_eq!(verdict("https://api.hubapi.com", &[]), "host_not_allowed");
        assert_eq!(
            verdict("https://api.hubapi.com", &["", "."]),
            "host_not_allowed"
        );
    }

    #[test]
    fn a_login_in_the_url_or_another_scheme_is_refused() {
        assert_eq!(verdict("https://a@b.c", &["b.c"]), "bad_url");
        assert_eq!(verdict("https://a.b.c:x@evil", &[".b.c"]), "bad_url");
        assert_eq!(verdict("file:///etc/passwd", &[""]), "bad_url");
        assert_eq!(verdict("/crm/v3", &[""]), "bad_url");
    }

    #[test]
    fn plain_http_is_for_this_machine_only() {
        assert_eq!(verdict("http://127.0.0.1:8080/x", &["127.0.0.1"]), "ok");
        assert_eq!(verdict("http://127.0.0.1:80", &["127.0.0.1:80"]), "ok");
        assert_eq!(verdict("http://[::1]:80", &["::1"]), "ok");
        assert_eq!(verdict("http://localhost:1", &["localhost"]), "ok");
        assert_eq!(
            verdict("http://127.0.0.1:81", &["127.0.0.1:80"]),
            "host_not_allowed"
        );
        assert_eq!(
            verdict("http://10.0.0.1", &["10.0.0.1"]),
            "host_not_allowed"
        );
        assert_eq!(
            verdict("http://api.hubapi.com", &["api.hubapi.com"]),
            "host_not_allowed"
        );
        assert_eq!(
            verdict("http://localhost.evil", &[".evil"]),
            "host_not_allowed"
        );
    }
}
