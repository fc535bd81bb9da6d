//! A cluster with both CRMs, as the pieces need it.

use std::time::Duration;

use crm_tests::{Db, EmulatorOptions, Options, Pair, PairOptions};
use serde_json::Value;

/// Longest wait for anything that a piece measures.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

/// Twenty columns of a HubSpot contact: texts, a number, a boolean, a date, a stamp, choices.
pub(crate) const HUBSPOT: &str = r#"["address", "annualrevenue", "city", "company", "country", "email", "firstname",
    "hs_lead_status", "hubspot_owner_id", "jobtitle", "last_visit", "lastname", "lifecyclestage", "loyalty_points",
    "mobilephone", "phone", "renewal_date", "state", "vip", "zip"]"#;

/// Twenty columns of a Salesforce Contact, of the same kinds.
pub(crate) const SALESFORCE: &str = r#"["AccountId", "Birthdate", "Department", "DoNotCall", "Email", "FirstName",
    "HasOptedOutOfEmail", "LastName", "LeadSource", "Level__c", "MailingCity", "MailingCountry", "MailingPostalCode",
    "MailingState", "MailingStreet", "MobilePhone", "Phone", "Salutation", "Score__c", "Title"]"#;

/// A server as a DBA would set it up, durable, with nothing of the bench's making in its way.
pub(crate) fn cluster() -> Options {
    let options = match std::env::var("CRM_BENCH_EXPLAIN") {
        Err(_) => Options::default(),
        Ok(ms) => explained(&ms),
    };
    options
        .setting("fsync", "on")
        .setting("shared_buffers", "512MB")
        .setting("max_wal_size", "16GB")
        .setting("min_wal_size", "2GB")
        .setting("checkpoint_timeout", "1h")
        .setting("jit", "off")
        .setting("pg_crm_sync.guard_soft_rows", "0")
        .setting("pg_crm_sync.guard_hard_rows", "0")
        .setting("pg_crm_sync.guard_window_rows", "0")
}

/// To find out where time goes: the server log shows the plans of statements that take `ms` or longer, the worker's too.
fn explained(ms: &str) -> Options {
    Options::default()
        .setting("shared_preload_libraries", "pg_crm_sync, auto_explain")
        .setting("auto_explain.log_min_duration", ms)
        .setting("auto_explain.log_analyze", "on")
        .setting("auto_explain.log_nested_statements", "on")
}

/// An emulator without call limits, whose people are all known to both CRMs.
pub(crate) fn unlimited(contacts: u64) -> EmulatorOptions {
    EmulatorOptions::default()
        .contacts(contacts)
        .arg("--shared-share", "1")
        .arg("--rate-limits", "off")
        .arg("--hubspot-burst", "1000000")
}

pub(crate) async fn start(cluster: Options, emulator: EmulatorOptions) -> Pair {
    let pair = Pair::start(PairOptions { cluster, emulator }).await;
    recycle_log(&pair.db).await;
    // The first thing that a DBA does with a server, too.
    for server in ["hubspot", "salesforce"] {
        let sql = format!("SELECT bool_and(ok) FROM crm.server_check('{server}')");
        let _ = pair.db.one::<Option<bool>>(&sql).await;
    }
    pair
}

/// Leaves about a gigabyte of old log files to be used again, as a server that has run for a while has them: making a
/// new one stops every commit for a fraction of a second.
async fn recycle_log(db: &Db) {
    db.exec("SELECT count(pg_logical_emit_message(false, 'bench', repeat('x', 1000000))) FROM generate_series(1, 1000)")
        .await;
    db.exec("SELECT pg_switch_wal()").await;
    db.exec("CHECKPOINT").await;
}

/// Orders the mirror of one object with its twenty columns.
pub(crate) async fn import(db: &Db, server: &str, object: &str) {
    let columns = if server == "hubspot" {
        HUBSPOT
    } else {
        SALESFORCE
    };
    db.exec(&format!(
        "SELECT crm.import('{server}', ARRAY['{object}'], into_schema => '{server}', columns => '{columns}',
                           poll_interval => '1 hour')"
    ))
    .await;
}

/// Orders the mirror of one object with all its columns.
pub(crate) async fn import_all(db: &Db, server: &str, object: &str) {
    db.exec(&format!(
        "SELECT crm.import('{server}', ARRAY['{object}'], into_schema => '{server}', poll_interval => '1 hour')"
    ))
    .await;
}

/// Waits until the copies are done.
pub(crate) async fn copied(db: &Db) {
    let sql = "SELECT count(*) > 0 AND bool_and(state = 'done') FROM crm.backfill";
    db.wait_true("the copies are done", PATIENCE, sql).await;
}

/// Waits until nothing is under way: no change undrained, no write open, no event put off.
pub(crate) async fn calm(db: &Db) {
    let sql = "SELECT NOT EXISTS (SELECT FROM crm.change_0) AND NOT EXISTS (SELECT FROM crm.change_1)
               AND NOT EXISTS (SELECT FROM crm.write WHERE state IN ('queued', 'in_flight', 'unknown'))
               AND NOT EXISTS (SELECT FROM crm.deferred)";
    db.wait_true("everything is settled", PATIENCE, sql).await;
}

/// Both objects copied, linked and live.
pub(crate) async fn linked(cluster: Options, emulator: EmulatorOptions) -> Pair {
    let pair = start(cluster, emulator).await;
    import(&pair.db, "hubspot", "contacts").await;
    import(&pair.db, "salesforce", "Contact").await;
    copied(&pair.db).await;
    pair.db
        .exec(
            "ANALYZE hubspot.contacts; ANALYZE salesforce.contact;
             SELECT crm.link('hubspot.contacts', 'salesforce.contact');
             SELECT crm.go_live('contacts')",
        )
        .await;
    pair
}

/// How often each route of a CRM was called: `(method, route, status, count)`.
pub(crate) fn calls(pair: &Pair, crm: &str) -> Vec<(String, String, u64)> {
    let counts = pair.emulator.counts();
    let rows = counts["counts"].as_array().cloned().unwrap_or_default();
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    rows.iter()
        .filter(|r| r["crm"] == crm)
        .map(|r| {
            let what = format!("{} {}", text(&r["method"]), text(&r["route"]));
            (
                what,
                r["status"].to_string(),
                r["count"].as_u64().unwrap_or(0),
            )
        })
        .collect()
}

/// All calls to a CRM since the counts were reset.
pub(crate) fn total(pair: &Pair, crm: &str) -> u64 {
    calls(pair, crm).iter().map(|(_, _, n)| n).sum()
}
