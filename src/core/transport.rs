//! Errors that arise before a CRM's answer can be read: on the way, in the
//! request, in the stream of events. One table, as the connectors have theirs;
//! codes are ours, in lower case, or those of the event bus.

use crate::connectors::ErrorRule as Rule;
use crate::connectors::table;
use crate::model::{ErrorClass, RemoteError};

/// The table: one line per code.
#[rustfmt::skip]
pub const RULES: &[Rule] = &[
    Rule::new(0, "timeout", ErrorClass::Retry, "The CRM or the way to it is slow; it is tried again.").unsure(),
    Rule::new(0, "connection_lost", ErrorClass::Retry, "The connection broke before the answer was complete; it is tried again.").unsure(),
    Rule::new(0, "connect", ErrorClass::Retry, "Check host, port and firewall (the event stream needs 7443 or 443)."),
    Rule::new(0, "dns", ErrorClass::Retry, "Check the host name in the server's options and this machine's name resolution."),
    Rule::new(0, "tls", ErrorClass::Retry, "Check the certificate of the server and the option ca_file."),
    Rule::new(0, "protocol", ErrorClass::Retry, "What answers at this address does not speak HTTP, or a proxy in between damages it; check the server's URL.").unsure(),
    Rule::new(0, "body_too_large", ErrorClass::Retry, "Check that the address is the CRM's; ask for fewer records or fields at a time.").unsure(),
    Rule::new(0, "rate_limited", ErrorClass::Wait, "It is sent when the budget allows; see crm.status for the server's limits."),
    Rule::new(0, "abandoned", ErrorClass::Retry, "It is tried again; if this repeats, report it with the server log.").unsure(),
    Rule::new(0, "internal", ErrorClass::Retry, "Reading an answer failed unexpectedly; report it with the server log.").unsure(),
    Rule::new(0, "redirect", ErrorClass::Stop, "Redirects are not followed; put the final address into the server's options."),
    Rule::new(0, "bad_url", ErrorClass::Stop, "Put an https URL without user name and password into the server's options."),
    Rule::new(0, "host_not_allowed", ErrorClass::Stop, "Add the host to pg_crm_sync.allowed_hosts and to the credential file, if it is meant; plain http is for this machine only."),
    Rule::new(0, "ca_file", ErrorClass::Stop, "The file of option ca_file must hold PEM certificates."),
    Rule::new(0, "credential", ErrorClass::Stop, "Give the server a credential of a kind that its type supports."),
    Rule::new(0, "bad_credential", ErrorClass::Stop, "Check the credential for line breaks and other control characters."),
    Rule::new(0, "unknown_server", ErrorClass::Stop, "The server was dropped or its credentials could not be read."),
    Rule::new(0, "bad_request", ErrorClass::FixMapping, "This request could not be built; report it with the message."),
    Rule::new(0, "too_many_streams", ErrorClass::Stop, "Subscribe to the channel of all objects instead of one stream per object."),
    Rule::new(0, "service.auth.error", ErrorClass::Reauth, "The session has ended; a new one is opened."),
    Rule::new(0, "grpc_unauthenticated", ErrorClass::Reauth, "The session has ended; a new one is opened."),
    Rule::new(0, "subscription.fetch.replayid.corrupted", ErrorClass::Retry, "Events after this point are no longer kept; the objects are reconciled."),
    Rule::new(0, "subscription.fetch.replayid.validation.failed", ErrorClass::Retry, "Events after this point are no longer kept; the objects are reconciled."),
    Rule::new(0, "subscription.limit.exceeded", ErrorClass::Wait, "The organisation's event deliveries of 24 hours are used up; changes come by polling until then.").wait(3_600_000),
    Rule::new(0, "concurrent.client.limit.exceeded", ErrorClass::Retry, "Too many programs read the organisation's events; the stream is opened again."),
    Rule::new(0, "unknown_client", ErrorClass::Retry, "The stream is opened again."),
    Rule::new(0, "conversation_over", ErrorClass::Wait, "The CRM wants no more of this stream for now; it is opened again later, and changes come by polling until then.").wait(60_000),
    Rule::new(0, "channel_refused", ErrorClass::FixMapping, "Select the object for Change Data Capture in the CRM's setup."),
    Rule::new(0, "service.unavailable", ErrorClass::Retry, "The stream is opened again."),
    Rule::new(0, "grpc_permissiondenied", ErrorClass::FixPermission, "Grant the app's user read access to the change events."),
    Rule::new(0, "grpc_notfound", ErrorClass::FixMapping, "Select the object for Change Data Capture in the CRM's setup."),
    Rule::new(0, "grpc_invalidargument", ErrorClass::FixMapping, "Select the object for Change Data Capture in the CRM's setup."),
    Rule::new(0, "grpc_unimplemented", ErrorClass::FixMapping, "Select the object for Change Data Capture in the CRM's setup."),
    Rule::new(0, "stream", ErrorClass::Retry, "The stream is opened again."),
];

/// Whether a stream's end says that the CRM has, or shows us, no events of its
/// object: asking again changes nothing before somebody grants it.
pub fn refuses_topic(error: &RemoteError) -> bool {
    let class = matches!(
        error.class,
        ErrorClass::FixMapping | ErrorClass::FixPermission
    );
    // An endpoint that does not know the call is no Pub/Sub API at all.
    error.status == 0 && class && error.code != "grpc_unimplemented"
}

/// The error of a code; codes that the table lacks are `like`'s. Whether a write
/// may have landed is the caller's to say: here it is `false`.
pub fn error(code: &str, like: &str, message: &str) -> RemoteError {
    let known = RULES.iter().any(|r| r.code == code);
    let rule = table::find(RULES, 0, if known { code } else { like });
    let mut error = table::error(&rule, 0, code, message);
    error.maybe_applied = false;
    error
}

#[cfg(test)]
mod tests {
    use super::{error, refuses_topic};

    #[test]
    fn only_a_topic_that_is_not_there_or_not_shown_is_a_refusal() {
        let is = |code, like| refuses_topic(&error(code, like, ""));
        assert!(is("topic.notfound", "grpc_notfound"));
        assert!(is("grpc_permissiondenied", "stream"));
        assert!(is("channel_refused", "stream"));
        // A proxy, an outage, a limit and a lost log-in say nothing of the topic.
        assert!(!is("grpc_unimplemented", "stream"));
        assert!(!is("grpc_unavailable", "stream"));
        assert!(!is("subscription.limit.exceeded", "stream"));
        assert!(!is("service.auth.error", "stream"));
    }
}
