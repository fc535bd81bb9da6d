//! Errors that arise on the way, in the terms of the model.

use std::error::Error as StdError;

use crm_core::http::{HttpRequest, Method, Purpose};
use crm_core::model::RemoteError;
use crm_core::transport;

/// Longest message, in characters.
const MAX_MESSAGE: usize = 500;

/// An error without an HTTP status, of our own code, that had no effect.
pub(crate) fn local(code: &str, message: impl AsRef<str>) -> RemoteError {
    transport::error(code, "internal", message.as_ref())
}

/// Whether the request may change something at the CRM.
pub(crate) fn is_write(request: &HttpRequest) -> bool {
    request.purpose == Purpose::Push || matches!(request.method, Method::Patch | Method::Delete)
}

/// What became of a request that got no answer head.
pub(crate) fn from_send(error: reqwest::Error, write: bool) -> RemoteError {
    let error = error.without_url();
    let text = chain(&error);
    let mut e = if let Some(e) = from_connect(&error, &text) {
        e
    } else if error.is_builder() {
        local("bad_request", text)
    } else if error.is_timeout() {
        timeout("no answer in time")
    } else if find::<hyper::Error>(&error).is_some_and(hyper::Error::is_parse) {
        local("protocol", text)
    } else {
        connection_lost(text)
    };
    let sent = !matches!(e.code.as_str(), "dns" | "tls" | "connect" | "bad_request");
    e.maybe_applied = write && sent;
    e
}

fn from_connect(error: &reqwest::Error, text: &str) -> Option<RemoteError> {
    if !error.is_connect() {
        return None;
    }
    Some(if is_tls(error) {
        local("tls", text)
    } else if text.contains("dns error") || text.contains("failed to lookup address") {
        local("dns", text)
    } else {
        let text = if error.is_timeout() {
            "no connection in time"
        } else {
            text
        };
        local("connect", text)
    })
}

/// What became of a request whose answer broke off in the body.
pub(crate) fn from_body(error: reqwest::Error, write: bool) -> RemoteError {
    let error = error.without_url();
    let mut e = if error.is_timeout() {
        timeout("the answer stopped arriving")
    } else if find::<hyper::Error>(&error).is_none_or(hyper::Error::is_parse) {
        local("protocol", chain(&error))
    } else {
        connection_lost(chain(&error))
    };
    e.maybe_applied = write;
    e
}

/// Time is up.
pub(crate) fn timeout(message: &str) -> RemoteError {
    local("timeout", message)
}

fn connection_lost(text: String) -> RemoteError {
    local("connection_lost", text)
}

/// Cuts a text to the bound, at a character.
pub(crate) fn bounded(text: &str) -> String {
    text.chars().take(MAX_MESSAGE).collect()
}

/// Whether TLS is at fault. An I/O error hides what it wraps from `source`.
pub(crate) fn is_tls(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(e) = next {
        if e.is::<rustls::Error>() {
            return true;
        }
        next = match e
            .downcast_ref::<std::io::Error>()
            .and_then(|io| io.get_ref())
        {
            Some(inner) => Some(inner),
            None => e.source(),
        };
    }
    false
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        let part = e.to_string();
        if !text.ends_with(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        source = e.source();
    }
    bounded(&text)
}

fn find<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(e) = next {
        if let Some(found) = e.downcast_ref::<E>() {
            return Some(found);
        }
        next = e.source();
    }
    None
}
