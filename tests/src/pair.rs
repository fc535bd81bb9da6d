//! Cluster and emulator put together.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

use serde_json::json;

use crate::wait::PATIENCE;
use crate::{Cluster, Db, Emulator, EmulatorOptions, Options};

/// What a [`Pair`] starts with.
#[derive(Clone, Debug, Default)]
pub struct PairOptions {
    /// Settings of the cluster.
    pub cluster: Options,
    /// Options of the emulator.
    pub emulator: EmulatorOptions,
}

/// A cluster whose database `app` has a HubSpot server `hubspot` and a Salesforce server `salesforce`, both emulated.
pub struct Pair {
    /// A connection to database `app`.
    pub db: Db,
    /// PostgreSQL.
    pub cluster: Cluster,
    /// Both CRMs.
    pub emulator: Emulator,
}

impl Pair {
    /// Starts both and creates the servers; nothing is imported yet.
    pub async fn start(options: PairOptions) -> Self {
        let hooks = free_address();
        let settings = options
            .cluster
            .setting("pg_crm_sync.listen", &hooks)
            .setting("pg_crm_sync.webhook_public_url", &format!("http://{hooks}"));
        let cluster = Cluster::start(settings).await;
        let hook = format!("http://{hooks}/webhook/hubspot");
        let emulator = Emulator::start(&options.emulator.arg("--webhook-url", &hook));
        let db = cluster.database("app").await;
        cluster.credentials(
            "hubspot.json",
            &json!({
                "token": "pat-na1-emulator", "hosts": ["127.0.0.1"], "owner": "postgres",
                "webhook_secret": "emulator-secret",
            }),
        );
        cluster.credentials(
            "salesforce.json",
            &json!({
                "client_id": "emulator-app", "client_secret": "emulator-secret",
                "hosts": ["127.0.0.1"], "owner": "postgres",
            }),
        );
        db.exec(&servers_sql(&emulator)).await;
        Self {
            db,
            cluster,
            emulator,
        }
    }

    /// [`Self::start`], then contacts of both sides imported, linked and live.
    pub async fn contacts(options: PairOptions) -> Self {
        let pair = Self::start(options).await;
        pair.import("hubspot", &["contacts"]).await;
        pair.import("salesforce", &["Contact"]).await;
        pair.backfilled().await;
        pair.db
            .exec("SELECT crm.link('hubspot.contacts', 'salesforce.contact')")
            .await;
        pair.db.exec("SELECT crm.preview('contacts')").await;
        pair.db.exec("SELECT crm.go_live('contacts')").await;
        pair.worker_has_read().await;
        pair
    }

    /// Waits until the worker acts by what is committed now: configuration is read when a commit wakes it.
    pub async fn worker_has_read(&self) {
        let at: String = self.db.one("SELECT clock_timestamp()::text").await;
        self.db.exec("SELECT crm._wake()").await;
        let sql = format!(
            "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'pg_crm_sync session'
             AND state_change > '{at}' AND wait_event = 'Extension'"
        );
        self.db
            .wait_true("the worker has read the configuration", PATIENCE, &sql)
            .await;
    }

    /// Imports objects of a server into the schema of the same name.
    pub async fn import(&self, server: &str, objects: &[&str]) {
        let list = objects
            .iter()
            .map(|o| format!("'{o}'"))
            .collect::<Vec<_>>()
            .join(", ");
        self.db
            .exec(&format!(
                "SELECT crm.import('{server}', ARRAY[{list}], into_schema => '{server}')"
            ))
            .await;
    }

    /// Record ids, in HubSpot and in Salesforce, of a person that both know.
    pub async fn known_to_both(&self) -> (String, String) {
        let sql = "SELECT h.id, s.id FROM hubspot.contacts h JOIN salesforce.contact s ON lower(s.email) = lower(h.email) \
                   ORDER BY h._id LIMIT 1";
        let row = self
            .db
            .query_one(sql, &[])
            .await
            .expect("a person known to both");
        (row.get(0), row.get(1))
    }

    /// Waits until every mirror holds what its CRM had.
    pub async fn backfilled(&self) {
        self.db
            .wait_true(
                "the backfill is done",
                PATIENCE,
                "SELECT count(*) > 0 AND bool_and(state = 'done') FROM crm.backfill",
            )
            .await;
    }
}

/// The two statements that name the emulated accounts.
#[must_use]
pub fn servers_sql(emulator: &Emulator) -> String {
    let (http, pubsub) = (&emulator.http, &emulator.pubsub_plain);
    format!(
        "CREATE SERVER hubspot TYPE 'hubspot' FOREIGN DATA WRAPPER pg_crm_sync
             OPTIONS (credentials 'file:hubspot.json', base_url '{http}');
         CREATE SERVER salesforce TYPE 'salesforce' FOREIGN DATA WRAPPER pg_crm_sync
             OPTIONS (credentials 'file:salesforce.json', login_url '{http}', pubsub_endpoint 'http://{pubsub}')"
    )
}

/// A loopback address that was free a moment ago and that nobody is given by chance: below the ports that the kernel
/// hands out to connections, apart from those of other processes, each once.
fn free_address() -> String {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 12_000 + u16::try_from(std::process::id() % 200).expect("below 200") * 100;
    for _ in 0..100 {
        let addr = format!(
            "127.0.0.1:{}",
            first + NEXT.fetch_add(1, Ordering::Relaxed) % 100
        );
        if TcpListener::bind(&addr).is_ok() {
            return addr;
        }
    }
    panic!("no free port in {first}..{}", first + 100);
}
