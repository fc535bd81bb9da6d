//! HubSpot: one account with contacts, companies, deals, tickets, tasks and a custom object, on
//! the v3/v4 paths and the dated ones, over one store.

mod account;
mod associations;
mod auth;
mod base;
mod batch;
mod controls;
mod directory;
mod error;
mod http;
mod journal;
mod limits;
mod merge;
mod model;
mod oauth;
mod objects;
mod properties;
mod render;
mod routes;
mod schemas;
mod search;
mod store;
mod webhooks;
mod write;

use std::sync::{Arc, Mutex, PoisonError, atomic::AtomicU64};

pub(crate) use controls::admin;
use error::ApiError;
use model::{OBJECTS, Table};
pub(crate) use routes::router;
use search::SearchIndex;
use store::{Ground, Live, Record};
use webhooks::Webhooks;
use write::Origin;

use crate::{
    clock::Rng,
    shared::{Shared, Side},
};

/// First id of records created after start: beyond 2^31, as real ones are.
const FIRST_NEW_ID: u64 = 734_931_097_788;

/// The HubSpot side.
pub(crate) struct State {
    pub(crate) shared: Arc<Shared>,
    pub(crate) tables: Vec<Table>,
    pub(crate) auth: auth::Auth,
    pub(crate) limits: limits::Limits,
    pub(crate) associations: associations::Associations,
    pub(crate) directory: directory::Directory,
    pub(crate) webhooks: Webhooks,
    pub(crate) correlation: AtomicU64,
    rng: Mutex<Rng>,
}

impl State {
    /// Builds the store and starts the delivery of webhooks.
    pub(crate) fn start(shared: Arc<Shared>) -> Result<Arc<State>, String> {
        let options = &shared.options;
        let mut tables = Vec::with_capacity(OBJECTS.len());
        for (index, facts) in OBJECTS.iter().enumerate() {
            let ground = Ground {
                people: shared.people.clone(),
                kind: facts.kind,
                id_base: options.hubspot_id_base,
                count: shared.people.count(facts.kind),
                app_id: options.hubspot_app_id,
            };
            let catalog = base::catalog(facts, options.hubspot_sync_properties);
            let search = SearchIndex::new(ground.clone(), options.search_lag_ms);
            let live = Live::new(ground, FIRST_NEW_ID);
            let portal = options.hubspot_portal_id;
            tables.push(Table::new(index, portal, catalog, live, search));
        }
        let state = Arc::new(State {
            tables,
            auth: auth::Auth::new(options),
            limits: limits::Limits::new(options),
            associations: associations::Associations::default(),
            directory: directory::Directory::default(),
            webhooks: Webhooks::new(options),
            correlation: AtomicU64::new(options.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            rng: Mutex::new(Rng::new(options.seed ^ 0x4855)),
            shared,
        });
        webhooks::start(Arc::clone(&state))?;
        Ok(state)
    }

    /// The object type called `name`, or the 400 for an unknown one.
    pub(crate) fn table(&self, name: &str) -> Result<&Table, ApiError> {
        self.tables
            .iter()
            .find(|t| t.is_called(name))
            .ok_or_else(|| {
                ApiError::validation(format!("Unable to infer object type from: {name}"))
            })
    }

    pub(crate) fn portal(&self) -> u64 {
        self.shared.options.hubspot_portal_id
    }

    pub(crate) fn now_ms(&self) -> i64 {
        self.shared.clock.now_ms(Side::HubSpot)
    }

    /// What writes through the API carry: the app itself.
    pub(crate) fn app_origin(&self) -> Origin {
        Origin {
            source: "INTEGRATION".into(),
            id: self.shared.options.hubspot_app_id.to_string().into(),
        }
    }

    /// Stores a record where reads and, after its lag, searches see it.
    pub(crate) fn store(&self, table: &Table, live: &mut Live, id: u64, record: Record) {
        let record = Arc::new(record);
        live.put(id, Arc::clone(&record));
        table.search.note(id, record);
    }

    /// Puts batch results into an order of their own.
    pub(crate) fn shuffle<T>(&self, items: &mut [T]) {
        self.rng
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .shuffle(items);
    }
}
