//! A second cluster with the same configuration must not write to the CRMs before somebody says so.

use std::time::Duration;

use crm_tests::{Cluster, Db, Options, PATIENCE, Pair, PairOptions, Person, Stop, wait_until};

async fn pair() -> (Pair, Vec<Person>) {
    let (pair, people) = Pair::linked(10, PairOptions::default()).await;
    pair.agree().await;
    (pair, people)
}

async fn fence(db: &Db) -> String {
    db.one("SELECT state || ': ' || coalesce(detail, '') FROM crm.status WHERE kind = 'fence'")
        .await
}

/// Waits until the worker of `db` has gone through its loop after everything committed before.
async fn turn(cluster: &Cluster, db: &Db) {
    cluster.session_worker(db).await;
    let answered =
        "SELECT count(*) > 0 FROM crm.server_check('hubspot', '20 s') WHERE item <> 'answer'";
    for _ in 0..2 {
        db.wait_true("the worker answers questions", PATIENCE, answered)
            .await;
    }
}

/// `other` is a second cluster with the data of `pair`: its changes stay at home until it is activated.
async fn inert_until_activated(pair: &Pair, other: &Cluster, who: &Person, reason: &str) {
    let db = other.connect("app").await;
    let told = fence(&db).await;
    assert!(told.starts_with("inert") && told.contains(reason), "{told}");
    pair.emulator.reset_counts();
    db.exec(&Pair::update(who, "jobtitle", "Typed in the copy"))
        .await;
    db.exec("INSERT INTO hubspot.contacts (email, lastname) VALUES ('made.in.copy@example.net', 'Copy')")
        .await;
    turn(other, &db).await;
    for crm in ["hubspot", "salesforce"] {
        assert_eq!(pair.writes(crm), 0, "an inert cluster writes to {crm}");
    }
    let told = fence(&db).await;
    assert!(told.starts_with("inert"), "{told}");
    let told: String = db.one("SELECT crm.activate()").await;
    assert!(told.contains("it was inert"), "{told}");
    pair.reaches_both(who, "jobtitle", "Typed in the copy")
        .await;
    let made = "SELECT count(*) = 1 FROM hubspot.contacts WHERE email = 'made.in.copy@example.net' AND id IS NOT NULL";
    db.wait_true("what was inserted is created", PATIENCE, made)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_data_directory_sends_nothing_until_activated_and_the_original_goes_on() {
    let (mut pair, people) = pair().await;
    pair.cluster.stop(Stop::Fast);
    let copy = pair.cluster.copy_stopped().await;
    inert_until_activated(&pair, &copy, &people[0], "activated elsewhere").await;
    drop(copy);

    pair.cluster.start_again().await;
    pair.db = pair.cluster.connect("app").await;
    assert_eq!(fence(&pair.db).await, "active: ");
    pair.sql(&people[1], "jobtitle", "Typed in the original")
        .await;
    pair.reaches_both(&people[1], "jobtitle", "Typed in the original")
        .await;
    pair.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_standby_sends_nothing_until_activated() {
    let (mut pair, people) = pair().await;
    let standby = pair.cluster.standby().await;
    let db = standby.connect("app").await;
    let told = fence(&db).await;
    assert!(told.contains("standby"), "{told}");
    // What the primary sends meanwhile is nothing that the standby would send again.
    pair.sql(&people[1], "jobtitle", "Before the failover")
        .await;
    pair.db.exec("SELECT crm.wait_synced('60 s')").await;
    let replayed =
        "SELECT count(*) = 1 FROM hubspot.contacts WHERE jobtitle = 'Before the failover'";
    db.wait_true("the standby follows", PATIENCE, replayed)
        .await;
    pair.cluster.stop(Stop::Immediate);
    db.exec("SELECT pg_promote(true, 60)").await;
    drop(db);
    inert_until_activated(&pair, &standby, &people[0], "activated elsewhere").await;
    drop(standby);
    pair.cluster.start_again().await;
    pair.db = pair.cluster.connect("app").await;
}

/// What a dump must carry over, row by row.
const DIGEST: &str = "SELECT string_agg(t, E'\\n' ORDER BY t) FROM (
    SELECT 'mirror ' || row(m.*)::text AS t FROM crm.mirror m UNION ALL SELECT 'column ' || row(c.*)::text FROM crm.mirror_column c
    UNION ALL SELECT 'link ' || row(l.*)::text FROM crm.link l UNION ALL SELECT 'map ' || row(f.*)::text FROM crm.field_map f
    UNION ALL SELECT 'policy ' || row(p.*)::text FROM crm.conflict_policy p UNION ALL SELECT 'event ' || row(e.*)::text FROM crm.event e
    UNION ALL SELECT 'xref ' || row(x.*)::text FROM crm.xref x UNION ALL SELECT 'backfill ' || row(b.*)::text FROM crm.backfill b
    UNION ALL SELECT 'row ' || row(h.*)::text FROM hubspot.contacts h UNION ALL SELECT 'row ' || row(s.*)::text FROM salesforce.contact s) x";

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_restored_into_a_fresh_cluster_knows_all_and_sends_nothing_until_activated() {
    let (pair, people) = pair().await;
    pair.sql(&people[1], "jobtitle", "In the ledger").await;
    pair.reaches_both(&people[1], "jobtitle", "In the ledger")
        .await;
    pair.db
        .exec("INSERT INTO crm.conflict_policy (link, field, strategy, winner) VALUES ('contacts', 'phone', 'owner', 'salesforce')")
        .await;
    pair.agree().await;
    let file = pair.cluster.socket_dir().join("app.dump");
    // Echoes may still be coming in: a dump counts when nothing changed while it was made.
    let wanted = wait_until("a dump of a state at rest", PATIENCE, async || {
        let before: String = pair.db.one(DIGEST).await;
        let mut dump = pair.cluster.program("pg_dump");
        run(dump.args(["-Fc", "-d", "app", "-f"]).arg(&file));
        (before == pair.db.one::<String>(DIGEST).await).then_some(before)
    })
    .await;

    let secrets = pair.cluster.secrets_dir().display().to_string();
    let options = Options::default().setting("pg_crm_sync.secrets_dir", &secrets);
    let fresh = Cluster::start(options).await;
    fresh
        .connect("postgres")
        .await
        .exec("CREATE DATABASE app")
        .await;
    let mut restore = fresh.program("pg_restore");
    run(restore.args(["-1", "-d", "app"]).arg(&file));
    let db = fresh.connect("app").await;
    assert_eq!(db.one::<String>(DIGEST).await, wanted);
    let records = pair.live("hubspot", "contacts");
    inert_until_activated(&pair, &fresh, &people[0], "activated elsewhere").await;
    assert_eq!(
        pair.live("hubspot", "contacts"),
        records + 1,
        "only what was inserted is new"
    );
    let doubled = "SELECT count(*) - count(DISTINCT id) FROM hubspot.contacts WHERE id IS NOT NULL";
    assert_eq!(db.one::<i64>(doubled).await, 0);
    pair.agree().await;
}

fn run(command: &mut std::process::Command) {
    let output = command.output().expect("start the program");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_put_back_in_place_is_inert_although_its_path_is_the_same() {
    let (mut pair, people) = pair().await;
    pair.cluster.restore_from_copy();
    pair.cluster.start_again().await;
    pair.db = pair.cluster.connect("app").await;
    let told = fence(&pair.db).await;
    assert!(told.contains("copied or restored"), "{told}");
    // A restart changes nothing about that.
    pair.cluster.restart(Stop::Fast).await;
    pair.db = pair.cluster.connect("app").await;
    // Its webhooks come here. Taken, they would be missing where they belong.
    let who = &people[1];
    pair.edit("hubspot", who, "city", "Typed meanwhile");
    turn(&pair.cluster, &pair.db).await;
    let city = format!(
        "SELECT city IS DISTINCT FROM 'Typed meanwhile' FROM hubspot.contacts WHERE id = '{}'",
        who.hubspot
    );
    let untouched: bool = pair.db.one(&city).await;
    assert!(untouched, "an inert cluster takes webhooks");
    inert_until_activated(&pair, &pair.cluster, &people[0], "copied or restored").await;
    pair.reaches_both(who, "city", "Typed meanwhile").await;
    pair.db
        .wait_true(
            "the activated cluster takes in what it missed",
            Duration::from_secs(30),
            "SELECT state = 'active' FROM crm.fence_status()",
        )
        .await;
}
