//! Salesforce: placeholder until the module lands; refuses everything.

use std::{net::SocketAddr, sync::Arc};

use axum::Router;
use serde_json::{Map, Value};

use crate::{
    admin::{Actor, Crm, Refused},
    shared::Shared,
};

/// Addresses of the listeners besides plain HTTP.
#[derive(Default)]
pub(crate) struct Listening {
    pub(crate) https: Option<SocketAddr>,
    pub(crate) pubsub: Option<SocketAddr>,
    pub(crate) pubsub_plain: Option<SocketAddr>,
    /// Path of the CA certificate.
    pub(crate) ca: Option<String>,
}

/// The Salesforce side.
pub(crate) struct State;

impl State {
    /// Builds the state and starts its background tasks.
    pub(crate) fn start(_shared: Arc<Shared>) -> Result<Arc<State>, String> {
        Ok(Arc::new(State))
    }
}

/// Routes under `/services`, `/id` and so on.
pub(crate) fn router(_state: Arc<State>) -> Router {
    Router::new()
}

/// Admin routes that only Salesforce has.
pub(crate) fn admin(_state: Arc<State>) -> Router {
    Router::new()
}

/// Starts TLS and Pub/Sub listeners; `app` is what the TLS port serves.
#[expect(clippy::unused_async, reason = "listeners are bound here")]
pub(crate) async fn listen(_state: Arc<State>, _app: Router) -> Result<Listening, String> {
    Ok(Listening::default())
}

fn none<T>() -> Result<T, Refused> {
    Err(Refused::NotFound("Salesforce is not served".to_owned()))
}

impl Crm for State {
    fn edit(&self, _: &str, _: &str, _: &Map<String, Value>, _: &Actor) -> Result<Value, Refused> {
        none()
    }
    fn create(&self, _: &str, _: &Map<String, Value>, _: &Actor) -> Result<Value, Refused> {
        none()
    }
    fn delete(&self, _: &str, _: &str, _: &Actor) -> Result<Value, Refused> {
        none()
    }
    fn restore(&self, _: &str, _: &str, _: &Actor) -> Result<Value, Refused> {
        none()
    }
    fn merge(&self, _: &str, _: &str, _: &str, _: &Actor) -> Result<Value, Refused> {
        none()
    }
    fn privacy_delete(&self, _: &str, _: &str, _: &Actor) -> Result<Value, Refused> {
        none()
    }
    fn record(&self, _: &str, _: &str) -> Result<Value, Refused> {
        none()
    }
    fn overlay(&self, _: &str, _: Option<&str>, _: usize) -> Result<Value, Refused> {
        none()
    }
    fn digest(&self, _: &str, _: &[String]) -> Result<Value, Refused> {
        none()
    }
    fn base_id(&self, _: &str, _: u64) -> Result<String, Refused> {
        none()
    }
    fn expire_tokens(&self) {}
    fn set_rate_limits(&self, _: &Map<String, Value>) -> Result<Value, Refused> {
        none()
    }
    fn set_webhooks(&self, _: &Map<String, Value>) -> Result<Value, Refused> {
        none()
    }
}
