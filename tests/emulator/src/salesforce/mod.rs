//! Salesforce in memory: OAuth, REST API and the Pub/Sub API, over one store.
//!
//! [`schema`] and [`objects`] say what the org's objects are, [`base`] what their unwritten records hold, [`store`] keeps
//! what was written, [`tx`] writes, [`soql`] reads, [`api`] is REST, [`cdc`] the change events, [`oauth`] the token
//! endpoint, [`mod@admin`] what a person or a test does from the side.

mod admin;
mod api;
mod base;
mod cdc;
mod cometd;
mod deeds;
mod derive;
mod error;
mod fields;
mod ids;
mod oauth;
mod objects;
mod render;
mod sales_objects;
mod schema;
mod session;
mod settings;
mod soql;
mod stamps;
mod store;
#[cfg(test)]
mod tests;
mod tx;
mod validate;
mod value;
mod work_objects;

pub(crate) use admin::router as admin;

use crate::shared::{Shared, Side};
use crate::tls;
use error::Error;
use schema::{Obj, Schema};
use settings::Settings;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use store::Store;

/// Every route of the org that needs no administrator.
pub(crate) fn router(state: Arc<State>) -> axum::Router {
    api::http::router(Arc::clone(&state)).merge(cometd::router(state))
}

/// Addresses of the listeners besides plain HTTP.
#[derive(Default)]
pub(crate) struct Listening {
    pub(crate) https: Option<SocketAddr>,
    pub(crate) pubsub: Option<SocketAddr>,
    pub(crate) pubsub_plain: Option<SocketAddr>,
    /// Path of the CA certificate.
    pub(crate) ca: Option<String>,
}

/// Row writes that fail on request.
struct RowFault {
    error: Error,
    obj: Option<Obj>,
    skip: u64,
    remaining: u64,
}

/// The org.
pub(crate) struct State {
    shared: Arc<Shared>,
    model: RwLock<fields::Model>,
    store: RwLock<Store>,
    settings: RwLock<Settings>,
    sessions: session::Sessions,
    bus: cdc::bus::Bus,
    comets: cometd::Clients,
    cursors: api::query::Cursors,
    bulk: api::bulk::Jobs,
    running: api::running::Running,
    calls: AtomicU64,
    row_faults: Mutex<Vec<RowFault>>,
    jwt_key: Option<oauth::PublicKey>,
    /// Port of the TLS listener, once it listens.
    https_port: std::sync::OnceLock<u16>,
}

impl State {
    /// Builds the org; fails when an option names something unusable.
    pub(crate) fn start(shared: Arc<Shared>) -> Result<Arc<State>, String> {
        let schema: &'static Schema = Box::leak(Box::new(objects::schema(
            shared.options.salesforce_external_id,
        )));
        let jwt_key = shared
            .options
            .jwt_public_key
            .as_deref()
            .map(oauth::PublicKey::read)
            .transpose()?;
        let mut settings = Settings {
            enforce: shared.options.rate_limits,
            ..Settings::default()
        };
        settings
            .merge(&shared.options.salesforce_settings)
            .map_err(|error| format!("--salesforce: {error}"))?;
        Ok(Arc::new(State {
            store: RwLock::new(Store::new(schema, &shared.people)),
            sessions: session::Sessions::new(shared.options.seed, &shared.options.refresh_token),
            bus: cdc::bus::Bus::new(shared.options.seed),
            comets: cometd::Clients::new(shared.options.seed),
            cursors: api::query::Cursors::default(),
            bulk: api::bulk::Jobs::default(),
            running: api::running::Running::default(),
            calls: AtomicU64::new(0),
            row_faults: Mutex::new(Vec::new()),
            settings: RwLock::new(settings),
            jwt_key,
            https_port: std::sync::OnceLock::new(),
            model: RwLock::new(fields::Model {
                schema,
                codecs: Box::leak(Box::new(cdc::Codecs::new(schema))),
                changed_ms: crate::people::FIRST_MS,
            }),
            shared,
        }))
    }

    /// Milliseconds since 1970 by Salesforce's clock.
    fn now(&self) -> i64 {
        self.shared.clock.now_ms(Side::Salesforce)
    }

    fn settings(&self) -> RwLockReadGuard<'_, Settings> {
        self.settings.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_store(&self) -> RwLockReadGuard<'_, Store> {
        self.store.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_store(&self) -> RwLockWriteGuard<'_, Store> {
        self.store.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The error a row write must fail with, when a test asked for it.
    fn row_fault(&self, obj: Obj) -> Result<(), Error> {
        let mut faults = self
            .row_faults
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(place) = faults
            .iter()
            .position(|fault| fault.obj.is_none_or(|only| only == obj))
        else {
            return Ok(());
        };
        let fault = &mut faults[place];
        if fault.skip > 0 {
            fault.skip -= 1;
            return Ok(());
        }
        fault.remaining = fault.remaining.saturating_sub(1);
        let error = fault.error.clone();
        if fault.remaining == 0 {
            faults.remove(place);
        }
        Err(error)
    }

    /// Counts an API call; an error when the day's are used up.
    fn count_call(&self) -> Result<(), Error> {
        let (daily, enforce) = {
            let settings = self.settings();
            (settings.daily, settings.enforce)
        };
        let used = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        if enforce && used > daily {
            return Err(Error::new(
                403,
                "REQUEST_LIMIT_EXCEEDED",
                "TotalRequests Limit exceeded.",
            ));
        }
        Ok(())
    }

    /// Whether an access token is good now.
    fn session_valid(&self, token: &str) -> bool {
        let life = self.settings().session_life_ms;
        self.sessions.valid(token, self.now(), life)
    }
}

/// Starts TLS and Pub/Sub listeners; `app` is what the TLS port serves.
pub(crate) async fn listen(state: Arc<State>, app: axum::Router) -> Result<Listening, String> {
    let options = &state.shared.options;
    let identity = tls::Identity::new(options.write_ca.as_deref())?;
    let https = crate::bind(&options.tls_listen).await?;
    let pubsub = crate::bind(&options.pubsub_listen).await?;
    let plain = crate::bind(&options.pubsub_plain).await?;
    let address = |listener: &tokio::net::TcpListener| {
        listener.local_addr().map_err(|error| error.to_string())
    };
    let listening = Listening {
        https: Some(address(&https)?),
        pubsub: Some(address(&pubsub)?),
        pubsub_plain: Some(address(&plain)?),
        ca: options.write_ca.clone(),
    };
    let _ = state.https_port.set(address(&https)?.port());
    tokio::spawn(tls::serve(
        https,
        Some(identity.acceptor(&[b"http/1.1"])?),
        app,
    ));
    tokio::spawn(api::bulk::work(Arc::clone(&state)));
    let service = cdc::server::PubSub::new(Arc::clone(&state));
    tokio::spawn(tls::serve_h2(
        pubsub,
        Some(identity.acceptor(&[b"h2"])?),
        service.clone(),
    ));
    tokio::spawn(tls::serve_h2(plain, None, service));
    Ok(listening)
}
