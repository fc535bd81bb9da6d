//! Errors that arise on the way, in the terms of the model.

use std::error::Error as StdError;

use crm_core::http::{HttpRequest, Method, Purpose};
use crm_core::model::{ErrorClass, RemoteError};

/// Longest message, in characters.
const MAX_MESSAGE: usize = 500;

/// An error without an HTTP status that certainly had no effect.
pub(crate) fn local(
    code: &str,
    class: ErrorClass,
    message: impl Into<String>,
    advice: &'static str,
) -> RemoteError {
    RemoteError {
        class,
        status: 0,
        code: code.to_string(),
        message: bounded(&message.into()),
        fields: Vec::new(),
        advice,
        retry_after_ms: None,
        maybe_applied: false,
    }
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
        local(
            "bad_request",
            ErrorClass::FixMapping,
            text,
            "This request could not be built; report it with the message.",
        )
    } else if error.is_timeout() {
        timeout("no answer in time")
    } else if find::<hyper::Error>(&error).is_some_and(hyper::Error::is_parse) {
        local(
            "protocol",
            ErrorClass::Retry,
            text,
            "What answers at this address does not speak HTTP; check the server's URL.",
        )
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
    let retry = ErrorClass::Retry;
    Some(if is_tls(error) {
        let advice = "Check the certificate of the server and the option ca_file.";
        local("tls", retry, text, advice)
    } else if text.contains("dns error") || text.contains("failed to lookup address") {
        local(
            "dns",
            retry,
            text,
            "Check the host name and this machine's name resolution.",
        )
    } else {
        let text = if error.is_timeout() {
            "no connection in time"
        } else {
            text
        };
        local("connect", retry, text, "Check host, port and firewall.")
    })
}

/// What became of a request whose answer broke off in the body.
pub(crate) fn from_body(error: reqwest::Error, write: bool) -> RemoteError {
    let error = error.without_url();
    let mut e = if error.is_timeout() {
        timeout("the answer stopped arriving")
    } else if find::<hyper::Error>(&error).is_none_or(hyper::Error::is_parse) {
        local(
            "protocol",
            ErrorClass::Retry,
            chain(&error),
            "The answer's compression or framing is damaged; a proxy in between may be at fault.",
        )
    } else {
        connection_lost(chain(&error))
    };
    e.maybe_applied = write;
    e
}

/// Time is up.
pub(crate) fn timeout(message: &str) -> RemoteError {
    local(
        "timeout",
        ErrorClass::Retry,
        message,
        "The CRM or the way to it is slow; it is tried again.",
    )
}

fn connection_lost(text: String) -> RemoteError {
    local(
        "connection_lost",
        ErrorClass::Retry,
        text,
        "The connection broke before the answer was complete; it is tried again.",
    )
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
