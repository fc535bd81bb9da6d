//! `/_admin`: what a person would do in the CRMs' own user interfaces, plus the levers of a test
//! (faults, clocks, expiry) and a look at the truth. JSON in and out; no rate limit, no log.

mod routes;

use std::sync::Arc;

pub(crate) use routes::router;
use serde_json::{Map, Value};

use crate::shared::{Shared, Side};

/// Everything the admin routes reach.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) shared: Arc<Shared>,
    pub(crate) hubspot: Arc<dyn Crm>,
    pub(crate) salesforce: Arc<dyn Crm>,
}

impl Admin {
    /// The CRM of `side`.
    pub(crate) fn crm(&self, side: Side) -> &dyn Crm {
        match side {
            Side::HubSpot => self.hubspot.as_ref(),
            Side::Salesforce => self.salesforce.as_ref(),
        }
    }
}

/// Who acts, as change events report it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Actor {
    /// A user's name, e-mail or id as text; the CRM's default user if absent.
    pub(crate) user: Option<String>,
    /// Overrides the source of the change (HubSpot `changeSource`, Salesforce `changeOrigin`);
    /// the CRM's user interface if absent.
    pub(crate) source: Option<String>,
}

/// A refused admin call: the text says what is wrong.
#[derive(Debug)]
pub(crate) enum Refused {
    /// No such object type, record or method (404).
    NotFound(String),
    /// The request makes no sense (400).
    Bad(String),
}

/// What a CRM offers to the admin routes. Calls act at once and raise the CRM's change events.
pub(crate) trait Crm: Send + Sync {
    /// Changes fields of one record as `actor`; answers the record.
    fn edit(
        &self,
        object: &str,
        id: &str,
        fields: &Map<String, Value>,
        actor: &Actor,
    ) -> Result<Value, Refused>;

    /// Creates a record; answers it with its id.
    fn create(
        &self,
        object: &str,
        fields: &Map<String, Value>,
        actor: &Actor,
    ) -> Result<Value, Refused>;

    /// Deletes (archives) a record; it can be restored.
    fn delete(&self, object: &str, id: &str, actor: &Actor) -> Result<Value, Refused>;

    /// Brings a deleted record back.
    fn restore(&self, object: &str, id: &str, actor: &Actor) -> Result<Value, Refused>;

    /// Merges `loser` into `winner`; answers the surviving record.
    fn merge(
        &self,
        object: &str,
        winner: &str,
        loser: &str,
        actor: &Actor,
    ) -> Result<Value, Refused>;

    /// Deletes a record for good, as privacy law asks.
    fn privacy_delete(&self, object: &str, id: &str, actor: &Actor) -> Result<Value, Refused>;

    /// The whole record as stored, deleted or not.
    fn record(&self, object: &str, id: &str) -> Result<Value, Refused>;

    /// Records that were written since start, in id order after `after`, at most `limit`:
    /// `{"records":[…],"next":"id"|null}`.
    fn overlay(&self, object: &str, after: Option<&str>, limit: usize) -> Result<Value, Refused>;

    /// `{"count":n,"hash":"…"}` of all live records: order-independent, over `fields`.
    fn digest(&self, object: &str, fields: &[String]) -> Result<Value, Refused>;

    /// Changes a field of an object as an administrator would: `do` is add, rename, retype, choices, remove or restore.
    fn change_schema(&self, object: &str, change: &Map<String, Value>) -> Result<Value, Refused>;

    /// Id of base record `n` (from 1) of `object`.
    fn base_id(&self, object: &str, n: u64) -> Result<String, Refused>;

    /// Makes every access token issued so far invalid.
    fn expire_tokens(&self);

    /// Sets limits, e.g. `{"burst":100,"daily":1000,"enforce":true}`; answers those in force.
    fn set_rate_limits(&self, limits: &Map<String, Value>) -> Result<Value, Refused>;

    /// Sets where and how change events are pushed; CRMs without push refuse.
    fn set_webhooks(&self, settings: &Map<String, Value>) -> Result<Value, Refused>;

    /// Lets the events up to now meet the faults that hold, before these change.
    fn pass_events(&self);
}
