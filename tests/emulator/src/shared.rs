//! What both CRMs and the admin interface hold in common.

use std::sync::{Arc, OnceLock};

use tokio::sync::Notify;

use crate::{cli::Options, clock::Clock, fault::Faults, people::People, request_log::RequestLog};

/// The CRM a request, rule or clock belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Side {
    HubSpot,
    Salesforce,
}

impl Side {
    /// The name used in paths and JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Side::HubSpot => "hubspot",
            Side::Salesforce => "salesforce",
        }
    }

    /// The side called `name`, if there is one.
    pub(crate) fn parse(name: &str) -> Option<Side> {
        match name {
            "hubspot" => Some(Side::HubSpot),
            "salesforce" => Some(Side::Salesforce),
            _ => None,
        }
    }

    /// The side that serves `path`.
    pub(crate) fn of_path(path: &str) -> Side {
        if path.starts_with("/services") || path.starts_with("/cometd") || path.starts_with("/id/")
        {
            Side::Salesforce
        } else {
            Side::HubSpot
        }
    }
}

/// Options, clock, faults, log and base data: one per process.
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) clock: Clock,
    pub(crate) faults: Faults,
    pub(crate) log: RequestLog,
    pub(crate) people: People,
    stop: Notify,
    https_port: OnceLock<u16>,
}

impl Shared {
    pub(crate) fn new(options: Options) -> Arc<Shared> {
        Arc::new(Shared {
            clock: Clock::default(),
            faults: Faults::new(options.seed),
            log: RequestLog::new(options.log_requests),
            people: People::new(options.seed, options.contacts, options.shared_share),
            stop: Notify::new(),
            https_port: OnceLock::new(),
            options,
        })
    }

    /// The port of the TLS listener, once it listens: links in answers need the scheme.
    pub(crate) fn https_port(&self) -> Option<u16> {
        self.https_port.get().copied()
    }

    /// Tells the port of the TLS listener.
    pub(crate) fn set_https_port(&self, port: u16) {
        // Set once, at start.
        let _ = self.https_port.set(port);
    }

    /// Asks the process to end; a permit is kept if nobody waits yet.
    pub(crate) fn stop(&self) {
        self.stop.notify_one();
    }

    /// Completes after [`Shared::stop`].
    pub(crate) async fn stopped(&self) {
        self.stop.notified().await;
    }
}
