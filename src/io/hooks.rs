//! Signatures and content of webhooks, checked where they arrive: the session
//! has the rows to write meanwhile.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crm_core::connectors::{Connector, SignatureError};
use crm_core::http::Delivery;
use crm_core::model::{Change, Millis};
use crm_core::secret::Secret;

use crate::api::{ServerSpec, WebhookSpec};

/// Longer bodies are left to the session: they would hold up everything else here.
const LARGE_BODY: usize = 256 << 10;

/// What a webhook says, or the status and reason of its refusal.
pub type Opened = Result<Vec<Change>, (u16, &'static str)>;

/// Checks and decodes a webhook. `url` is what the CRM called, where a proxy
/// stands in between.
pub fn open(
    connector: &dyn Connector,
    secret: &Secret,
    url: Option<&str>,
    mut delivery: Delivery,
    now: Millis,
) -> Opened {
    if let Some(url) = url {
        delivery.uri = url.to_owned();
    }
    connector
        .verify(&delivery, secret, now)
        .map_err(|e| match e {
            SignatureError::Missing | SignatureError::BadTimestamp => {
                (400, "signature headers missing")
            }
            SignatureError::Stale => (401, "timestamp outside the window"),
            SignatureError::Mismatch => (401, "signature differs"),
        })?;
    connector
        .decode(&delivery)
        .map_err(|_| (400, "body is not a list of events"))
}

struct Hook {
    server: u32,
    connector: &'static dyn Connector,
    spec: WebhookSpec,
}

/// The servers that take webhooks, by name.
#[derive(Default)]
pub(crate) struct Hooks(Mutex<HashMap<String, Hook>>);

impl Hooks {
    /// Knows a server as it is now.
    pub(crate) fn configure(&self, server: &ServerSpec) {
        let mut hooks = self.lock();
        hooks.retain(|_, hook| hook.server != server.id);
        if let Some(spec) = &server.webhook {
            let hook = Hook {
                server: server.id,
                connector: server.connector,
                spec: spec.clone(),
            };
            hooks.insert(spec.name.clone(), hook);
        }
    }

    /// Forgets a server.
    pub(crate) fn forget(&self, server: u32) {
        self.lock().retain(|_, hook| hook.server != server);
    }

    /// Opens a delivery for the server of this name. Given back whole where that
    /// is the session's business.
    pub(crate) fn open(
        &self,
        name: &str,
        delivery: Delivery,
        now: Millis,
    ) -> Result<Opened, Delivery> {
        if delivery.body.len() > LARGE_BODY {
            return Err(delivery);
        }
        let known = |hook: &Hook| (hook.connector, hook.spec.clone());
        let found = self.lock().get(name).map(known);
        let Some((connector, spec)) = found else {
            return Err(delivery);
        };
        let url = spec.url.as_deref();
        Ok(open(connector, &spec.secret, url, delivery, now))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Hook>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
