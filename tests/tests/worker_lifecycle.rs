//! The launcher keeps one session worker in each database that has the extension, and gets out of everybody's way.

use crm_tests::{Cluster, Db, Options, PATIENCE, Stop};
use std::time::{Duration, Instant};

/// Databases with a session worker, sorted; the launcher as `launcher`.
const WORKERS: &str = "SELECT coalesce(string_agg(CASE WHEN backend_type = 'pg_crm_sync launcher' THEN 'launcher' ELSE datname END, ' ' ORDER BY datname NULLS FIRST), '')
    FROM pg_stat_activity WHERE backend_type LIKE 'pg_crm_sync%' AND (datname IS NOT NULL OR backend_type LIKE '%launcher')";

async fn workers_are(cluster: &Cluster, db: &Db, expected: &str) {
    let mut last = String::new();
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        last = db.one(WORKERS).await;
        if last == expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!(
        "workers are \"{last}\", expected \"{expected}\"\n{}",
        cluster.log_tail(40)
    );
}

async fn started() -> (Cluster, Db) {
    let cluster = Cluster::start(Options::default()).await;
    let db = cluster.connect("postgres").await;
    (cluster, db)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_database_with_the_extension_has_one_worker() {
    let (cluster, db) = started().await;
    workers_are(&cluster, &db, "launcher").await;
    cluster.database("app").await;
    workers_are(&cluster, &db, "launcher app").await;
    cluster.database("crm").await;
    db.exec("CREATE DATABASE other").await;
    workers_are(&cluster, &db, "launcher app crm").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_and_creating_the_extension_ends_and_starts_the_worker() {
    let (cluster, db) = started().await;
    let app = cluster.database("app").await;
    workers_are(&cluster, &db, "launcher app").await;
    app.exec("DROP EXTENSION pg_crm_sync").await;
    workers_are(&cluster, &db, "launcher").await;
    app.exec("CREATE EXTENSION pg_crm_sync").await;
    workers_are(&cluster, &db, "launcher app").await;
    // In one transaction: the worker of the old objects must not stay on them.
    app.exec("BEGIN; DROP EXTENSION pg_crm_sync; CREATE EXTENSION pg_crm_sync; COMMIT")
        .await;
    workers_are(&cluster, &db, "launcher app").await;
    // By way of the schema, not of the extension.
    app.exec("DROP SCHEMA crm CASCADE").await;
    workers_are(&cluster, &db, "launcher").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aborted_create_or_drop_changes_nothing() {
    let (cluster, db) = started().await;
    db.exec("CREATE DATABASE app").await;
    let app = cluster.connect("app").await;
    app.exec("BEGIN; CREATE EXTENSION pg_crm_sync; ROLLBACK")
        .await;
    // A committed one elsewhere shows that the launcher had its chance.
    let other = cluster.database("other").await;
    workers_are(&cluster, &db, "launcher other").await;
    let before = cluster.session_worker(&other).await;
    other
        .exec("BEGIN; DROP EXTENSION pg_crm_sync; ROLLBACK")
        .await;
    app.exec("CREATE EXTENSION pg_crm_sync").await;
    workers_are(&cluster, &db, "launcher app other").await;
    assert_eq!(
        before,
        cluster.session_worker(&other).await,
        "the worker went on undisturbed"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_that_need_an_empty_database_are_not_blocked() {
    let (cluster, db) = started().await;
    drop(cluster.database("app").await);
    workers_are(&cluster, &db, "launcher app").await;
    // The server waits five seconds for other connections before it gives up: no
    // statement may have come near that.
    for (sql, workers) in [
        ("CREATE DATABASE copy TEMPLATE app", "launcher app copy"),
        (
            "ALTER DATABASE copy RENAME TO renamed",
            "launcher app renamed",
        ),
        ("DROP DATABASE renamed", "launcher app"),
        ("DROP DATABASE app WITH (FORCE)", "launcher"),
    ] {
        let begun = Instant::now();
        db.exec(sql).await;
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(4), "{sql} took {took:?}");
        workers_are(&cluster, &db, workers).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_drop_database_brings_the_worker_back() {
    let (cluster, db) = started().await;
    let app = cluster.database("app").await;
    workers_are(&cluster, &db, "launcher app").await;
    let before = cluster.session_worker(&app).await;
    let error = db.error("DROP DATABASE app").await;
    assert_eq!(
        error.code().code(),
        "55006",
        "our own connection is in the way: {error:?}"
    );
    workers_are(&cluster, &db, "launcher app").await;
    assert_ne!(
        before,
        cluster.session_worker(&app).await,
        "it had been stopped for the statement"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_cannot_stop_the_worker_by_trying_to_drop_the_database() {
    let (cluster, db) = started().await;
    let app = cluster.database("app").await;
    let before = cluster.session_worker(&app).await;
    db.exec("CREATE ROLE stranger LOGIN").await;
    let stranger = cluster.connect_as("stranger", "postgres").await;
    let error = stranger.error("DROP DATABASE app").await;
    assert_eq!(error.code().code(), "42501");
    assert_eq!(before, cluster.session_worker(&app).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_worker_comes_back() {
    let (cluster, db) = started().await;
    let app = cluster.database("app").await;
    let session = cluster.session_worker(&app).await;
    cluster.signal(session, "TERM");
    app.wait_true(
        "another session runs",
        PATIENCE,
        &format!("SELECT bool_or(pid <> {session}) FROM pg_stat_activity WHERE backend_type = 'pg_crm_sync session'"),
    )
    .await;
    let launcher: i32 = db
        .one("SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_crm_sync launcher'")
        .await;
    let session = cluster.session_worker(&app).await;
    cluster.signal(launcher, "TERM");
    db.wait_true(
        "another launcher runs",
        PATIENCE,
        &format!("SELECT bool_or(pid <> {launcher}) FROM pg_stat_activity WHERE backend_type = 'pg_crm_sync launcher'"),
    )
    .await;
    workers_are(&cluster, &db, "launcher app").await;
    assert_eq!(
        session,
        cluster.session_worker(&app).await,
        "the session outlives its launcher"
    );
    // The new launcher looks after the session it did not start.
    cluster.signal(session, "TERM");
    app.wait_true(
        "another session runs",
        PATIENCE,
        &format!("SELECT bool_or(pid <> {session}) FROM pg_stat_activity WHERE backend_type = 'pg_crm_sync session'"),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_come_back_after_kill_9_crash_and_restart() {
    let (mut cluster, _) = started().await;
    let app = cluster.database("app").await;
    let session = cluster.session_worker(&app).await;
    // A child that is killed makes the server restart all of its processes.
    cluster.kill9(session);
    cluster
        .wait_until("the server has thrown us out", PATIENCE, async || {
            app.query_one("SELECT 1", &[]).await.err()
        })
        .await;
    let db = cluster.connect("postgres").await;
    workers_are(&cluster, &db, "launcher app").await;
    for how in [Stop::Immediate, Stop::Fast] {
        cluster.restart(how).await;
        let db = cluster.connect("postgres").await;
        workers_are(&cluster, &db, "launcher app").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fast_stop_is_fast() {
    let (mut cluster, db) = started().await;
    cluster.database("app").await;
    workers_are(&cluster, &db, "launcher app").await;
    cluster.stop_within(Stop::Fast, Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn full_worker_slots_are_survived_with_a_hint() {
    // Room for the launcher and one session, as the server's own logical
    // replication launcher takes one.
    let cluster = Cluster::start(Options::default().setting("max_worker_processes", "3")).await;
    let db = cluster.connect("postgres").await;
    cluster.database("app").await;
    cluster.database("crm").await;
    cluster
        .wait_until(
            "the log says which setting to raise",
            PATIENCE,
            async || {
                cluster
                    .log()
                    .contains("Raise max_worker_processes")
                    .then_some(())
            },
        )
        .await;
    workers_are(&cluster, &db, "launcher app").await;
    // Room is made: the other database is served without any restart.
    db.exec("DROP DATABASE app WITH (FORCE)").await;
    workers_are(&cluster, &db, "launcher crm").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_named_databases_are_served_if_any_are_named() {
    let cluster =
        Cluster::start(Options::default().setting("pg_crm_sync.databases", "crm, elsewhere")).await;
    let db = cluster.connect("postgres").await;
    cluster.database("app").await;
    cluster.database("crm").await;
    workers_are(&cluster, &db, "launcher crm").await;
    cluster.set("pg_crm_sync.databases", "");
    cluster.reload();
    workers_are(&cluster, &db, "launcher app crm").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_other_sql_objects_waits_and_says_so() {
    let (cluster, db) = started().await;
    let app = cluster.database("app").await;
    let installed: String = app
        .one("SELECT extversion FROM pg_extension WHERE extname = 'pg_crm_sync'")
        .await;
    let session = cluster.session_worker(&app).await;
    app.exec("UPDATE pg_extension SET extversion = '0.0.1' WHERE extname = 'pg_crm_sync'")
        .await;
    cluster.signal(session, "TERM");
    cluster
        .wait_until("another worker runs", PATIENCE, async || {
            (cluster.session_worker(&app).await != session).then_some(())
        })
        .await;
    cluster
        .wait_until("the log says what to run", PATIENCE, async || {
            cluster
                .log()
                .contains("ALTER EXTENSION pg_crm_sync UPDATE")
                .then_some(())
        })
        .await;
    workers_are(&cluster, &db, "launcher app").await;
    app.exec(&format!(
        "UPDATE pg_extension SET extversion = '{installed}' WHERE extname = 'pg_crm_sync'"
    ))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_worker_takes_no_transaction_ids() {
    let (cluster, db) = started().await;
    let app = cluster.database("app").await;
    workers_are(&cluster, &db, "launcher app").await;
    // Whatever a new worker writes once is written before this answers.
    app.exec("SELECT crm._wake()").await;
    let next = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint";
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'pg_crm_sync%' AND wait_event = 'Extension'";
    app.wait_true(
        "both workers sleep",
        PATIENCE,
        &format!("SELECT ({waits}) = 2"),
    )
    .await;
    let before: i64 = app.one(next).await;
    for _ in 0..20 {
        app.exec("SELECT crm._wake()").await;
        app.wait_true(
            "both workers sleep again",
            PATIENCE,
            &format!("SELECT ({waits}) = 2"),
        )
        .await;
    }
    assert_eq!(
        app.one::<i64>(next).await,
        before,
        "waking an idle worker burns transaction ids"
    );
}
