//! CRMs that do not answer: their writes wait together, one call at a time
//! tries, and all go on as soon as one is answered.

use crm_core::model::{Millis, WriteResult};
use crm_core::outage::{self, Outage};

use crate::pg::store::streams;
use crate::pg::tx;
use crate::worker::engine::{Engine, Step};

/// Writes of the call that tries.
pub(super) const PROBE: i64 = 10;

/// What a DBA can do about it.
const ADVICE: &str = "Nothing is lost: writes wait, one call at a time tries again, at least every 30 seconds. If it lasts, look at the CRM's \
    status page and at the network with crm.server_check.";

impl Engine {
    /// Whether the server of this mirror is out of reach: when its next try may
    /// leave, if that is later.
    pub(super) fn outage(&self, mirror: i32, now: Millis) -> Option<Option<Millis>> {
        let server = &self.world.mirrors.get(&mirror)?.server;
        let next = self.outages.get(server)?.next_try()?;
        let of_server = |id: &i32| {
            let other = self.world.mirrors.get(id);
            other.is_some_and(|m| m.server == *server)
        };
        let mut watches = self.watches.iter().filter(|(id, _)| of_server(id));
        if watches.any(|(_, w)| w.pushes > 0) {
            // Its answer tells.
            return Some(Some(now + 1_000));
        }
        Some((now < next).then_some(next))
    }

    /// What the answers to one call of writes say of the server.
    pub(super) fn heard(&mut self, mirror: i32, results: &[WriteResult], now: Millis) -> Step<()> {
        let Some(server) = self.world.mirrors.get(&mirror).map(|m| m.server.clone()) else {
            return Ok(());
        };
        match outage::sign(results) {
            None => Ok(()),
            Some(true) => {
                let outage = self.outages.entry(server.clone()).or_default();
                outage.failed(now, self.next_job);
                if !outage.has_begun() {
                    return Ok(());
                }
                let message = format!("{server} does not answer: {}", outage::words(results));
                tx::in_transaction(|| {
                    streams::server_error(&server, Some((&message, ADVICE)))?;
                    Ok(())
                })
            }
            Some(false)
                if self
                    .outages
                    .remove(&server)
                    .is_some_and(|mut o| o.answered()) =>
            {
                self.may_send = true;
                self.bulk_writes_again(&server);
                tx::in_transaction(|| {
                    streams::end_outage(&server)?;
                    streams::server_error(&server, None)?;
                    Ok(())
                })
            }
            Some(false) => Ok(()),
        }
    }
}

/// By server, as far as calls to it failed.
pub(crate) type Outages = std::collections::HashMap<String, Outage>;
