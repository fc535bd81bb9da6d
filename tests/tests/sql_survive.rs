//! What must survive a dump, a copy and a promotion: the configuration must, the right to write to CRMs must not.

use std::path::Path;
use std::process::Command;

use crm_tests::catalog::mirrors;
use crm_tests::{Cluster, Db, Options, PATIENCE, Stop};

async fn fence(db: &Db) -> (String, String) {
    let rows = db
        .table("SELECT state, coalesce(reason, '') FROM crm.fence_status()")
        .await;
    (rows[0][0].clone(), rows[0][1].clone())
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("start the program");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {text}");
    text
}

const DIGEST: &str = "SELECT string_agg(t, E'\\n' ORDER BY t) FROM (
    SELECT 'mirror ' || row(m.*)::text AS t FROM crm.mirror m UNION ALL SELECT 'column ' || row(c.*)::text FROM crm.mirror_column c
    UNION ALL SELECT 'link ' || row(l.*)::text FROM crm.link l UNION ALL SELECT 'map ' || row(f.*)::text FROM crm.field_map f
    UNION ALL SELECT 'policy ' || row(p.*)::text FROM crm.conflict_policy p UNION ALL SELECT 'history ' || row(h.*)::text FROM crm.policy_history h
    UNION ALL SELECT 'event ' || row(e.*)::text FROM crm.event e UNION ALL SELECT 'installation ' || id || policy_version FROM crm.installation
    UNION ALL SELECT 'server ' || srvname || srvtype || (SELECT string_agg(o, ',' ORDER BY o) FROM unnest(srvoptions) o) FROM pg_foreign_server
    UNION ALL SELECT 'row ' || row(h.*)::text FROM hubspot.contacts h UNION ALL SELECT 'state ' || server || paused FROM crm.server_state) x";

/// Restores a dump into the database `copy`, and lets its worker look at what there is when it has an installation
/// and nothing that comes after: rows that it makes then would collide with those of the dump.
async fn restore(cluster: &Cluster, dump: &Path) -> Db {
    let list = cluster
        .program("pg_restore")
        .arg("-l")
        .arg(dump)
        .output()
        .expect("list the dump");
    let list = String::from_utf8(list.stdout).expect("a list in UTF-8");
    let lines: Vec<&str> = list.lines().filter(|l| !l.starts_with(';')).collect();
    let last = lines
        .iter()
        .position(|l| l.contains("TABLE DATA crm installation"))
        .expect("the installation is dumped");
    let (first, rest) = lines.split_at(last + 1);
    let wanted = "TABLE DATA crm server_state";
    assert!(rest.iter().any(|l| l.contains(wanted)), "{list}");
    let copy = cluster.connect("copy").await;
    for (name, part) in [("first", first), ("rest", rest)] {
        let file = cluster.socket_dir().join(format!("{name}.list"));
        std::fs::write(&file, part.join("\n")).expect("write the list");
        cluster.account().give(&file);
        let told = run(cluster
            .program("pg_restore")
            .args(["--exit-on-error", "-d", "copy", "-L"])
            .arg(&file)
            .arg(dump));
        assert!(!told.contains("warning"), "{told}");
        copy.exec("SELECT crm._wake()").await;
        let at: String = copy.one("SELECT clock_timestamp()::text").await;
        let looked = format!(
            "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = 'copy' AND backend_type = 'pg_crm_sync session'
             AND state_change > '{at}' AND wait_event = 'Extension'"
        );
        copy.wait_true("the worker has looked", PATIENCE, &looked)
            .await;
    }
    copy
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_restores_everything_but_the_right_to_write() {
    let cluster = Cluster::start(Options::default()).await;
    let db = cluster.database("app").await;
    mirrors(&db).await;
    db.wait_true(
        "the ledger has a partition",
        PATIENCE,
        "SELECT to_regclass('crm.event_0') IS NOT NULL",
    )
    .await;
    db.exec("SELECT crm.link('hubspot.contacts', 'salesforce.contact'), crm.link('hubspot.deals', 'salesforce.opportunity');
             INSERT INTO crm.conflict_policy (link, field, strategy, winner) VALUES ('contacts', 'phone', 'owner', 'salesforce');
             SELECT crm.pause('server', 'salesforce'), crm.activate();
             INSERT INTO crm.event (seq, mirror, kind, origin, source, occurred_at, received_at) VALUES (1, 1, 'update', 'local', 'sql', now(), now());
             INSERT INTO hubspot.contacts (email, tags) VALUES ('a@b.c', '{x,y}')")
        .await;
    assert_eq!(fence(&db).await.0, "active");
    db.wait_true(
        "the worker has put the new row into the ledger",
        PATIENCE,
        "SELECT EXISTS (SELECT FROM crm.event WHERE kind = 'create') AND NOT EXISTS (SELECT FROM crm.policy_task)",
    )
    .await;
    let file = cluster.socket_dir().join("app.dump");
    run(cluster
        .program("pg_dump")
        .args(["-Fc", "-d", "app", "-f"])
        .arg(&file));
    cluster
        .connect("postgres")
        .await
        .exec("CREATE DATABASE copy")
        .await;
    let copy = restore(&cluster, &file).await;
    let wanted: String = db.one(DIGEST).await;
    assert_eq!(copy.one::<String>(DIGEST).await, wanted);
    let (state, reason) = fence(&copy).await;
    assert_eq!(state, "inert", "{reason}");
    assert!(reason.contains("elsewhere"), "{reason}");
    let advice: String = copy
        .one("SELECT advice FROM crm.status WHERE kind = 'fence'")
        .await;
    assert!(advice.contains("crm.activate()"), "{advice}");
    // What was restored works: mirrors are captured, numbers go on, rules hold.
    copy.exec("UPDATE hubspot.contacts SET phone = '1'; SELECT crm.unlink('deals'), crm.mirror_drop('hubspot.deals')")
        .await;
    let refused = copy
        .error("INSERT INTO crm.conflict_policy (link, field, strategy) VALUES ('contacts', 'phne', 'review')")
        .await;
    assert!(
        refused.hint().unwrap_or_default().contains("phone"),
        "{refused:?}"
    );
    let error = copy
        .error("UPDATE crm.backfill SET state = 'done'; SELECT crm.go_live('contacts')")
        .await;
    assert!(
        error.message().contains("may not write to CRMs"),
        "{error:?}"
    );
    copy.exec("SELECT crm.activate(); SELECT crm.import('hubspot', ARRAY['deals'], into_schema => 'hubspot')").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_data_directory_is_inert_until_activated() {
    let mut cluster = Cluster::start(Options::default()).await;
    let db = cluster.database("app").await;
    assert_eq!(fence(&db).await.0, "never");
    mirrors(&db).await;
    db.exec("SELECT crm.activate()").await;
    drop(db);
    cluster.restart(Stop::Fast).await;
    assert_eq!(
        fence(&cluster.connect("app").await).await.0,
        "active",
        "a restart is no copy"
    );

    cluster.stop(Stop::Fast);
    let (data, copy) = (cluster.data(), cluster.data().with_extension("copy"));
    run(cluster
        .account()
        .command(Path::new("cp"))
        .arg("-a")
        .arg(&data)
        .arg(&copy));
    std::fs::remove_dir_all(&data).expect("remove the original");
    std::fs::rename(&copy, &data).expect("put the copy in its place");
    cluster.start_again().await;
    let db = cluster.connect("app").await;
    let (state, reason) = fence(&db).await;
    assert_eq!(state, "inert");
    assert!(reason.contains("copied or restored"), "{reason}");
    let before: i64 = db.one(NEXT).await;
    let told: String = db.one("SELECT crm.activate()").await;
    assert!(told.contains("it was inert"), "{told}");
    assert_eq!(fence(&db).await.0, "active");
    let after: i64 = db.one(NEXT).await;
    assert!(
        after > before + 1_000_000,
        "numbers of lost rows are given again: {before}, {after}"
    );
}

/// The number of the next row.
const NEXT: &str = "SELECT nextval(pg_get_serial_sequence('hubspot.contacts', '_id'))";

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_cluster_is_inert_because_its_timeline_is_new() {
    let mut cluster = Cluster::start(Options::default()).await;
    let db = cluster.database("app").await;
    db.exec("SELECT crm.activate()").await;
    drop(db);
    cluster.stop(Stop::Fast);
    std::fs::write(cluster.data().join("standby.signal"), "").expect("make it a standby");
    cluster
        .account()
        .give(&cluster.data().join("standby.signal"));
    cluster.start_again().await;
    let db = cluster.connect("app").await;
    let (state, reason) = fence(&db).await;
    assert_eq!(state, "inert");
    assert!(reason.contains("standby"), "{reason}");
    db.exec("SELECT pg_promote()").await;
    let (state, reason) = fence(&db).await;
    assert_eq!(state, "inert");
    assert!(reason.contains("timeline is 2"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_activation_file_that_others_can_write_activates_nothing() {
    let cluster = Cluster::start(Options::default()).await;
    let db = cluster.database("app").await;
    db.exec("SELECT crm.activate()").await;
    let file: String = db.one("SHOW pg_crm_sync.activation_file").await;
    let mode = |bits| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(bits)).expect("chmod");
    };
    mode(0o666);
    let (state, reason) = fence(&db).await;
    assert_eq!(state, "inert");
    assert!(reason.contains("other users"), "{reason}");
    mode(0o600);
    std::fs::write(&file, "{").expect("damage it");
    assert!(fence(&db).await.1.contains("damaged"));
    let error = db.error("SELECT crm.activate()").await;
    assert!(
        error.hint().unwrap_or_default().contains("activation_file"),
        "{error:?}"
    );
    std::fs::remove_file(&file).expect("remove it");
    assert!(fence(&db).await.1.contains("elsewhere"));
    db.exec("SELECT crm.activate()").await;
    assert_eq!(fence(&db).await.0, "active");
}
