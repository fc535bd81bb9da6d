//! The extension loads, says what is wrong when it cannot, and leaves nothing behind.
//!
//! These run on every supported version of PostgreSQL, so they use nothing newer than the oldest.

use crm_tests::{Cluster, EmulatorOptions, Options, PATIENCE, Pair, PairOptions, Stop};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn create_and_drop_extension_leave_nothing_behind() {
    let cluster = Cluster::start(Options::default()).await;
    let db = cluster.connect("postgres").await;
    let objects = "SELECT count(*) FROM pg_depend d WHERE d.deptype = 'e' AND d.refclassid = 'pg_extension'::regclass \
                   AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_crm_sync')";
    let tables = "SELECT count(*) FROM pg_class WHERE relnamespace = to_regnamespace('crm')";

    db.exec("CREATE EXTENSION pg_crm_sync").await;
    assert!(
        db.one::<i64>(objects).await > 20,
        "the extension owns its objects"
    );
    assert!(
        db.one::<i64>(tables).await > 10,
        "the tables are in schema crm"
    );
    let version: String = db
        .one("SELECT extversion FROM pg_extension WHERE extname = 'pg_crm_sync'")
        .await;
    assert_eq!(version, env!("CARGO_PKG_VERSION"));

    db.exec("DROP EXTENSION pg_crm_sync CASCADE").await;
    assert_eq!(db.one::<i64>(tables).await, 0, "nothing stays behind");
    db.exec("CREATE EXTENSION pg_crm_sync").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_preload_the_error_names_the_line_to_add() {
    let cluster = Cluster::start(Options::default().without_preload()).await;
    let db = cluster.connect("postgres").await;
    let error = db.error("LOAD 'pg_crm_sync'").await;
    let hint = error.hint().unwrap_or_default();
    assert!(hint.contains("shared_preload_libraries"), "got: {error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_extension_survives_restart_and_crash() {
    let mut cluster = Cluster::start(Options::default()).await;
    cluster.database("app").await;
    for how in [Stop::Fast, Stop::Immediate] {
        cluster.restart(how).await;
        let db = cluster.connect("app").await;
        let rows: i64 = db
            .one("SELECT count(*) FROM pg_extension WHERE extname = 'pg_crm_sync'")
            .await;
        assert_eq!(rows, 1, "after a {how:?} stop");
    }
}

/// A user who meets `crm.anything` in `\d` must find out what it is without leaving psql.
#[tokio::test(flavor = "multi_thread")]
async fn every_object_of_the_schema_has_a_comment() {
    let cluster = Cluster::start(Options::default()).await;
    let db = cluster.connect("postgres").await;
    db.exec("CREATE EXTENSION pg_crm_sync").await;
    let bare = db
        .table(
            "SELECT 'relation ' || oid::regclass FROM pg_class
             WHERE relnamespace = 'crm'::regnamespace AND relkind IN ('r', 'v', 'm', 'p')
               AND obj_description(oid, 'pg_class') IS NULL
             UNION ALL
             SELECT 'function ' || oid::regprocedure FROM pg_proc
             WHERE pronamespace = 'crm'::regnamespace AND obj_description(oid, 'pg_proc') IS NULL
             ORDER BY 1",
        )
        .await;
    assert!(bare.is_empty(), "without COMMENT: {bare:?}");
}

/// The whole path once: webhook in, CDC in, SQL out, each to both other sides.
#[tokio::test(flavor = "multi_thread")]
async fn one_change_of_each_side_reaches_the_other_two() {
    let options = PairOptions {
        emulator: EmulatorOptions::default().contacts(50),
        ..PairOptions::default()
    };
    let pair = Pair::contacts(options).await;
    let (hubspot, salesforce) = pair.known_to_both().await;
    let in_hubspot = |field: &str| pair.emulator.field("hubspot", "contacts", &hubspot, field);
    let in_salesforce = |field: &str| {
        pair.emulator
            .field("salesforce", "Contact", &salesforce, field)
    };
    let settled = async |what: &str, column: &str, field: (&str, &str), value: &str| {
        pair.cluster
            .wait_until(what, PATIENCE, async || {
                let sql = format!(
                    "SELECT (SELECT {column} FROM hubspot.contacts WHERE id = '{hubspot}') = '{value}'"
                );
                let mirrored: Option<bool> = pair.db.one(&sql).await;
                let there = Some(value.to_owned());
                (mirrored == Some(true) && in_hubspot(field.0) == there && in_salesforce(field.1) == there)
                    .then_some(())
            })
            .await;
    };

    pair.emulator
        .edit("hubspot", "contacts", &hubspot, json!({"jobtitle": "Poet"}));
    settled(
        "HubSpot's change is everywhere",
        "jobtitle",
        ("jobtitle", "Title"),
        "Poet",
    )
    .await;

    pair.emulator.edit(
        "salesforce",
        "Contact",
        &salesforce,
        json!({"MailingCity": "Bath"}),
    );
    settled(
        "Salesforce's change is everywhere",
        "city",
        ("city", "MailingCity"),
        "Bath",
    )
    .await;

    pair.db
        .exec(&format!(
            "UPDATE hubspot.contacts SET phone = '+44 20 7946 0000' WHERE id = '{hubspot}'"
        ))
        .await;
    settled(
        "SQL's change is everywhere",
        "phone",
        ("phone", "Phone"),
        "+44 20 7946 0000",
    )
    .await;
}
