//! What users may not do to a mirror, and what is noted of those who change it.

mod captured;

use captured::{log, mirror, operations};

#[tokio::test(flavor = "multi_thread")]
async fn columns_of_the_worker_and_of_the_crm_cannot_be_written() {
    let (_cluster, db) = mirror(1).await;
    for (set, column) in [
        ("_id = 9", "_id"),
        ("id = 'x'", "id"),
        ("_sync_source = 'x'", "_sync_source"),
        ("_deleted_at = now()", "_deleted_at"),
        ("_remote_modified_at = now()", "_remote_modified_at"),
        ("calc = 'x'", "calc"),
    ] {
        let error = db.error(&format!("UPDATE contacts SET {set}")).await;
        assert_eq!(error.code().code(), "428C9", "{set}");
        assert!(
            error.message().contains(&format!("\"{column}\"")),
            "{error:?}"
        );
        assert!(
            error.hint().is_some_and(|hint| hint.len() > 20),
            "{error:?}"
        );
    }
    for insert in [
        "(id) VALUES ('x')",
        "(calc) VALUES ('x')",
        "(_sync_state) VALUES ('held')",
    ] {
        assert_eq!(
            db.error(&format!("INSERT INTO contacts {insert}"))
                .await
                .code()
                .code(),
            "428C9",
            "{insert}"
        );
    }
    let error = db.error("TRUNCATE contacts").await;
    assert!(
        error.hint().is_some_and(|hint| hint.contains("DELETE")),
        "{error:?}"
    );
    assert_eq!(operations(&db).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guard_refuses_above_the_hard_limit_and_holds_above_the_soft_one() {
    let (_cluster, db) = mirror(200).await;
    db.exec("SET pg_crm_sync.guard_hard_rows = 100; SET pg_crm_sync.guard_hard_deletes = 20; SET pg_crm_sync.guard_soft_rows = 10").await;
    let error = db.error("UPDATE contacts SET n = 1 WHERE _id <= 101").await;
    assert_eq!(error.code().code(), "54000");
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains("guard_hard_rows")),
        "{error:?}"
    );
    assert!(
        error
            .detail()
            .is_some_and(|detail| detail.contains("101 rows")),
        "{error:?}"
    );
    let error = db.error("DELETE FROM contacts WHERE _id <= 21").await;
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains("guard_hard_deletes")),
        "{error:?}"
    );
    // A loop of single rows is counted like one statement.
    let error = db.error("DO $$ BEGIN FOR i IN 1..101 LOOP UPDATE contacts SET n = 2 WHERE _id = i; END LOOP; END $$").await;
    assert_eq!(error.code().code(), "54000");
    assert_eq!(
        operations(&db).await,
        [],
        "a refused statement logs nothing"
    );
    // What a savepoint took back does not count.
    db.exec("BEGIN; SAVEPOINT s; UPDATE contacts SET n = 3 WHERE _id <= 90; ROLLBACK TO s; UPDATE contacts SET n = 3 WHERE _id <= 10; COMMIT").await;
    db.exec("UPDATE contacts SET n = 4 WHERE _id <= 11").await;
    db.exec("DELETE FROM contacts WHERE _id <= 20").await;
    let held = db
        .table("SELECT rows, held FROM crm.change_tx ORDER BY tx")
        .await;
    assert_eq!(held, [["10", "f"], ["11", "t"], ["20", "t"]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_header_says_who_and_why() {
    let (cluster, db) = mirror(1).await;
    db.exec(
        "CREATE ROLE portal LOGIN; GRANT SELECT, UPDATE ON contacts TO portal;
         ALTER ROLE portal SET pg_crm_sync.application = 'portal-app'",
    )
    .await;
    let portal = cluster.connect_as("portal", "postgres").await;
    // Rights on the mirror are all that is needed: none on schema crm.
    portal.exec("SET application_name = 'web'; BEGIN; SET LOCAL pg_crm_sync.reason = 'asked by phone'; UPDATE contacts SET n = 1; COMMIT").await;
    let header = db
        .table("SELECT \"session_user\", application_name, reason, origin, rows FROM crm.change_tx")
        .await;
    assert_eq!(
        header,
        [["portal", "web", "asked by phone", "portal-app", "1"]]
    );
    assert_eq!(
        log(&db).await[0].tx,
        db.one::<i64>("SELECT tx FROM crm.change_tx").await
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordinary_user_cannot_pretend_to_be_someone_else() {
    let (cluster, db) = mirror(1).await;
    db.exec("CREATE ROLE mallory LOGIN; GRANT ALL ON contacts TO mallory; GRANT CREATE ON SCHEMA public TO mallory").await;
    let mallory = cluster.connect_as("mallory", "postgres").await;
    for attempt in [
        "SET pg_crm_sync.application = 'portal'",
        "SET pg_crm_sync.guard_hard_rows = 0",
        "SET session_replication_role = replica",
        "ALTER TABLE contacts DISABLE TRIGGER ALL",
        "INSERT INTO crm.change_tx VALUES (1, now(), 1, false, 'x', 'x')",
        "DELETE FROM crm.change_0",
        "SELECT nextval('crm.change_flush_seq')",
        "CREATE TABLE mine (_id bigint); CREATE TRIGGER t AFTER INSERT ON mine FOR EACH ROW EXECUTE FUNCTION crm._capture(7)",
        "SELECT crm._mirror_attach(7, 'contacts')",
    ] {
        assert_eq!(
            mallory.error(attempt).await.code().code(),
            "42501",
            "{attempt}"
        );
    }
}
