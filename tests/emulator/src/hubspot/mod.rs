//! HubSpot: placeholder until the module lands; refuses everything.

use std::sync::Arc;

use axum::Router;
use serde_json::{Map, Value};

use crate::{
    admin::{Actor, Crm, Refused},
    shared::Shared,
};

/// The HubSpot side.
pub(crate) struct State;

impl State {
    /// Builds the state and starts its background tasks.
    pub(crate) fn start(_shared: Arc<Shared>) -> Result<Arc<State>, String> {
        Ok(Arc::new(State))
    }
}

/// Routes under `/crm`, `/oauth` and so on.
pub(crate) fn router(_state: Arc<State>) -> Router {
    Router::new()
}

/// Admin routes that only HubSpot has.
pub(crate) fn admin(_state: Arc<State>) -> Router {
    Router::new()
}

fn none<T>() -> Result<T, Refused> {
    Err(Refused::NotFound("HubSpot is not served".to_owned()))
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
