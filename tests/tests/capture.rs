//! The capture trigger logs what users change on a mirror: all of it, once, in order, and nothing else.

mod captured;

use captured::{assert_chains, log, mirror, old_counts, operations, text};
use std::collections::BTreeMap;

#[tokio::test(flavor = "multi_thread")]
async fn an_update_logs_the_old_values_of_changed_columns_only() {
    let (_cluster, db) = mirror(2).await;
    db.exec("UPDATE contacts SET n = 5, name = name, notes = 'x' WHERE _id = 1")
        .await;
    let logged = log(&db).await;
    assert_eq!(logged.len(), 1);
    assert_eq!((logged[0].op.as_str(), logged[0].row), ("U", 1));
    assert_eq!(
        logged[0].old,
        BTreeMap::from([(3, Some(vec![0; 4])), (5, None)])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_changes_nothing_logs_nothing() {
    let (_cluster, db) = mirror(3).await;
    db.exec("UPDATE contacts SET n = n, name = name || '', id = id")
        .await;
    // The same text in another form: compressed before, plain after, and back.
    db.exec("UPDATE contacts SET notes = repeat('long ', 2000) WHERE _id = 1")
        .await;
    db.exec("ALTER TABLE contacts ALTER notes SET STORAGE EXTERNAL; UPDATE contacts SET notes = notes || ''").await;
    assert_eq!(operations(&db).await, [("U".into(), 1)]);
    assert_eq!(db.one::<i64>("SELECT count(*) FROM crm.change_tx").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn insert_logs_the_key_and_delete_the_whole_row() {
    let (_cluster, db) = mirror(1).await;
    db.exec("INSERT INTO contacts (n, name) VALUES (1, 'new')")
        .await;
    db.exec("DELETE FROM contacts WHERE _id = 1").await;
    let logged = log(&db).await;
    assert_eq!(
        (logged[0].op.as_str(), logged[0].row, logged[0].old.len()),
        ("I", 2, 0)
    );
    assert_eq!((logged[1].op.as_str(), logged[1].row), ("D", 1));
    let expected = BTreeMap::from([
        (2, text("r1")),
        (3, Some(vec![0; 4])),
        (4, text("name1")),
        (6, text("c")),
    ]);
    assert_eq!(logged[1].old, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_to_write_is_captured() {
    let (_cluster, db) = mirror(3).await;
    db.exec("INSERT INTO contacts (_id, n) VALUES (1, 9), (10, 9) ON CONFLICT (_id) DO UPDATE SET n = excluded.n").await;
    db.exec(
        "MERGE INTO contacts c USING (VALUES (2, 'u'), (3, 'd'), (11, 'i')) v (k, what) ON c._id = v.k
         WHEN MATCHED AND what = 'd' THEN DELETE WHEN MATCHED THEN UPDATE SET n = 8
         WHEN NOT MATCHED THEN INSERT (_id, n) VALUES (v.k, 8)",
    )
    .await;
    db.exec("WITH gone AS (DELETE FROM contacts WHERE _id = 10 RETURNING n) INSERT INTO contacts (_id, n) SELECT 12, n FROM gone").await;
    db.exec("COPY contacts (_id, n) FROM PROGRAM 'echo 13,1' (FORMAT csv)")
        .await;
    let mut seen = operations(&db).await;
    seen.sort();
    let expected = [
        ("D", 3),
        ("D", 10),
        ("I", 10),
        ("I", 11),
        ("I", 12),
        ("I", 13),
        ("U", 1),
        ("U", 2),
    ];
    assert_eq!(seen, expected.map(|(op, row)| (op.to_owned(), row)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_rolled_back_is_not_logged() {
    let (_cluster, db) = mirror(5).await;
    db.exec("BEGIN; UPDATE contacts SET n = 1; ROLLBACK").await;
    db.exec(
        "BEGIN; UPDATE contacts SET n = 1 WHERE _id = 1;
         SAVEPOINT a; UPDATE contacts SET n = 2 WHERE _id = 1; UPDATE contacts SET n = 2 WHERE _id = 2;
         SAVEPOINT b; UPDATE contacts SET n = 3 WHERE _id = 3; RELEASE b; ROLLBACK TO a;
         UPDATE contacts SET n = 4 WHERE _id = 1; RELEASE a; COMMIT",
    )
    .await;
    assert_eq!(old_counts(&db).await, [0, 1]);
    assert_eq!(
        db.table("SELECT rows, held FROM crm.change_tx").await,
        [["2", "f"]]
    );
    let _ = db
        .error("DO $$ BEGIN UPDATE contacts SET n = 7 WHERE _id = 5; RAISE EXCEPTION 'no'; END $$")
        .await;
    assert_eq!(old_counts(&db).await, [0, 1]);
}

/// More rows than the buffer holds, at two levels: what the outer level keeps back must still come first.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_buffer_inside_a_subtransaction_keeps_the_order() {
    let (_cluster, db) = mirror(3000).await;
    db.exec(
        "DO $$ BEGIN
            UPDATE contacts SET n = n + 1;
            UPDATE contacts SET n = n + 1 WHERE _id <= 700;
            BEGIN UPDATE contacts SET n = n + 1; UPDATE contacts SET n = n + 1;
            EXCEPTION WHEN division_by_zero THEN NULL; END;
            BEGIN UPDATE contacts SET n = -1; PERFORM 1 / 0;
            EXCEPTION WHEN division_by_zero THEN NULL; END;
            UPDATE contacts SET n = n + 1;
         END $$",
    )
    .await;
    assert_eq!(
        db.one::<i64>("SELECT rows::bigint FROM crm.change_tx")
            .await,
        3000 * 4 + 700
    );
    assert_chains(&db, &mut |_| None).await;
}

/// A small generator, so that a failing run can be repeated by its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn random_transaction(random: &mut Random) -> String {
    let mut sql = String::from("BEGIN;");
    let mut rows: Vec<u64> = (0..1 + random.below(5))
        .map(|_| 1 + random.below(12))
        .collect();
    // In one order everywhere, so that clients wait for each other and never deadlock.
    rows.sort_unstable();
    for row in rows {
        let update = format!("UPDATE contacts SET n = n + 1 WHERE _id = {row};");
        match random.below(4) {
            0 => sql.push_str(&format!("SAVEPOINT s; {update} ROLLBACK TO s; {update}")),
            1 => sql.push_str(&format!("SAVEPOINT s; {update} {update} RELEASE s;")),
            _ => sql.push_str(&update),
        }
    }
    sql.push_str(if random.below(5) == 0 {
        "ROLLBACK"
    } else {
        "COMMIT"
    });
    sql
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_transactions_are_logged_in_the_order_of_their_row_locks() {
    let seed = std::env::var("CRM_TEST_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.map_or(1, |d| d.as_nanos() as u64 | 1)
        });
    eprintln!("CRM_TEST_SEED={seed}");
    let (cluster, db) = mirror(12).await;
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..6u64 {
        let connection = cluster.connect("postgres").await;
        clients.spawn(async move {
            let mut random = Random(seed.wrapping_mul(client * 2 + 3) | 1);
            for _ in 0..60 {
                connection.exec(&random_transaction(&mut random)).await;
            }
        });
    }
    while let Some(done) = clients.join_next().await {
        done.expect("a client failed");
    }
    assert_chains(&db, &mut |_| Some(format!("seed {seed}"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn triggers_of_users_are_captured_at_every_depth() {
    let (_cluster, db) = mirror(2).await;
    // Fires before ours by name, and changes the same row once more.
    db.exec(
        "CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.n = 1 THEN UPDATE contacts SET n = 2 WHERE _id = NEW._id; END IF; RETURN NULL; END $$;
         CREATE TRIGGER a_again AFTER UPDATE ON contacts FOR EACH ROW EXECUTE FUNCTION again();
         UPDATE contacts SET n = 1 WHERE _id = 1",
    )
    .await;
    // Both edits are there; the inner one comes first, as its statement ended first.
    assert_eq!(old_counts(&db).await, [1, 0]);
    // A BEFORE trigger that undoes the change leaves nothing to log.
    db.exec(
        "CREATE FUNCTION undo() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN OLD; END $$;
         CREATE TRIGGER b_undo BEFORE UPDATE ON contacts FOR EACH ROW EXECUTE FUNCTION undo();
         UPDATE contacts SET n = 9",
    )
    .await;
    assert_eq!(old_counts(&db).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn cascades_are_captured() {
    let (_cluster, db) = mirror(2).await;
    db.exec(
        "CREATE TABLE owner (id integer PRIMARY KEY); INSERT INTO owner VALUES (0);
         ALTER TABLE contacts ADD FOREIGN KEY (n) REFERENCES owner ON DELETE CASCADE ON UPDATE CASCADE;
         UPDATE owner SET id = 4; DELETE FROM owner",
    )
    .await;
    let seen = operations(&db).await;
    let expected = [("U", 1), ("U", 2), ("D", 1), ("D", 2)];
    assert_eq!(seen, expected.map(|(op, row)| (op.to_owned(), row)));
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_added_and_renamed_columns_do_not_break_it() {
    let (_cluster, db) = mirror(2).await;
    db.exec("UPDATE contacts SET n = 1").await;
    // Old rows do not hold the new columns: one has a default, one is null.
    db.exec("ALTER TABLE contacts DROP COLUMN notes, ADD COLUMN city text DEFAULT 'here', ADD COLUMN age integer").await;
    db.exec("UPDATE contacts SET city = 'there', age = 3 WHERE _id = 1")
        .await;
    let last = log(&db).await.pop().expect("a change");
    assert_eq!(last.old, BTreeMap::from([(12, text("here")), (13, None)]));
    db.exec("UPDATE contacts SET name = name, city = city")
        .await;
    db.exec("DELETE FROM contacts WHERE _id = 2").await;
    let last = log(&db).await.pop().expect("a change");
    assert_eq!(last.old.get(&12), Some(&text("here")));
    assert_eq!(last.old.get(&5), None, "a dropped column");
    // A read-only column is known by its name at the time of the statement.
    db.exec("ALTER TABLE contacts RENAME calc TO free").await;
    db.exec("UPDATE contacts SET free = 'x'").await;
    assert_eq!(operations(&db).await.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn long_values_are_logged_as_a_digest() {
    let (_cluster, db) = mirror(1).await;
    db.exec("UPDATE contacts SET notes = repeat('a', 3000)")
        .await;
    db.exec("UPDATE contacts SET n = 1").await;
    assert_eq!(
        log(&db).await[1].old.len(),
        1,
        "an unchanged long value is not logged"
    );
    db.exec("UPDATE contacts SET notes = repeat('b', 2048)")
        .await;
    db.exec("UPDATE contacts SET notes = NULL").await;
    let logged = log(&db).await;
    let digest: Vec<u8> = db
        .one("SELECT substr(sha256(repeat('a', 3000)::bytea), 1, 16)")
        .await;
    assert_eq!(logged[2].old[&5], Some(digest));
    assert_eq!(logged[3].old[&5], text(&"b".repeat(2048)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_transaction_is_logged_when_it_is_prepared() {
    let (_cluster, db) = mirror(2).await;
    db.exec("BEGIN; UPDATE contacts SET n = 1 WHERE _id = 1; PREPARE TRANSACTION 'p1'")
        .await;
    assert_eq!(
        operations(&db).await,
        [],
        "not visible before COMMIT PREPARED"
    );
    db.exec("UPDATE contacts SET n = 1 WHERE _id = 2").await;
    db.exec("COMMIT PREPARED 'p1'").await;
    assert_eq!(operations(&db).await.len(), 2);
    db.exec("BEGIN; UPDATE contacts SET n = 2 WHERE _id = 1; PREPARE TRANSACTION 'p2'")
        .await;
    db.exec("ROLLBACK PREPARED 'p2'").await;
    assert_eq!(operations(&db).await.len(), 2);
    assert_chains(&db, &mut |_| None).await;
}
