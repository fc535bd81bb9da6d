//! The extension loads, says what is wrong when it cannot, and leaves nothing behind.
//!
//! These run on every supported version of PostgreSQL, so they use nothing newer than the oldest.

use crm_tests::{Cluster, Options, Stop};

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
