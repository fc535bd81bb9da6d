//! pg_crm_sync: HubSpot and Salesforce as PostgreSQL tables, two ways.
//!
//! This file is a table of contents: the modules, what the library does when it
//! is loaded, and the SQL files of the extension in the order they run.
//! `worker` uses `pg` and `io`, `ask` uses `pg` and the worker's path of a decision; `pg` and `io` never import each other; both use
//! `crm_core`, which knows neither.

use pgrx::prelude::*;

mod ask;
mod pg;
mod worker;

pgrx::pg_module_magic!(name, version);

extension_sql_file!("../sql/010_tables.sql", name = "tables", bootstrap);
extension_sql_file!(
    "../sql/020_servers.sql",
    name = "servers",
    requires = ["tables"]
);
extension_sql_file!(
    "../sql/025_budget.sql",
    name = "budget",
    requires = ["servers"]
);
extension_sql_file!(
    "../sql/030_capture.sql",
    name = "capture",
    requires = ["budget"]
);
extension_sql_file!(
    "../sql/040_links.sql",
    name = "links",
    requires = ["capture"]
);
extension_sql_file!(
    "../sql/042_policies.sql",
    name = "policies",
    requires = ["links"]
);
extension_sql_file!(
    "../sql/043_maps.sql",
    name = "maps",
    requires = ["policies"]
);
extension_sql_file!("../sql/044_scope.sql", name = "scope", requires = ["maps"]);
extension_sql_file!(
    "../sql/045_matching.sql",
    name = "matching",
    requires = ["scope"]
);
extension_sql_file!(
    "../sql/046_check_mapping.sql",
    name = "check_mapping",
    requires = ["matching"]
);
extension_sql_file!(
    "../sql/047_presets.sql",
    name = "presets",
    requires = ["check_mapping"]
);
extension_sql_file!(
    "../sql/048_stamps.sql",
    name = "stamps",
    requires = ["presets"]
);
extension_sql_file!(
    "../sql/049_references.sql",
    name = "references",
    requires = ["stamps"]
);
extension_sql_file!(
    "../sql/050_delivery.sql",
    name = "delivery",
    requires = ["references"]
);
extension_sql_file!(
    "../sql/055_review.sql",
    name = "review",
    requires = ["delivery"]
);
extension_sql_file!(
    "../sql/058_pairs.sql",
    name = "pairs",
    requires = ["review"]
);
extension_sql_file!("../sql/060_api.sql", name = "api", requires = ["pairs"]);
extension_sql_file!("../sql/062_ledger.sql", name = "ledger", requires = ["api"]);
extension_sql_file!(
    "../sql/063_consumers.sql",
    name = "consumers",
    requires = ["ledger"]
);
extension_sql_file!(
    "../sql/064_reconcile.sql",
    name = "reconcile",
    requires = ["consumers"]
);
extension_sql_file!(
    "../sql/065_drift.sql",
    name = "drift",
    requires = ["reconcile"]
);
extension_sql_file!("../sql/066_why.sql", name = "why", requires = ["drift"]);
extension_sql_file!("../sql/068_ask.sql", name = "ask", requires = ["why"]);
extension_sql_file!(
    "../sql/070_views.sql",
    name = "views",
    requires = ["ask", pg::api::errors::error_rules]
);
extension_sql_file!(
    "../sql/080_refusals.sql",
    name = "refusals",
    requires = ["views"]
);
extension_sql_file!("../sql/900_grants.sql", name = "grants", finalize);

/// Runs once per process: in the postmaster when preloaded, else in the backend
/// that loads the library first, which is an error with the line to add.
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    // SAFETY: both are plain globals of the server, read on its only thread.
    let (preloading, upgrading) = unsafe {
        (
            pg_sys::process_shared_preload_libraries_in_progress,
            pg_sys::IsBinaryUpgrade,
        )
    };
    if upgrading {
        return;
    }
    if !preloading {
        pg::report::refuse(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "pg_crm_sync must be loaded when the server starts".to_owned(),
            None,
            "Add pg_crm_sync to shared_preload_libraries in postgresql.conf and restart the server.",
        );
    }
    pg::guc::register();
    pg::shmem::register();
    pg::utility::register();
    pg::capture::register();
    worker::launcher::register();
}
