//! A log of changes so long that it is read ahead: what is found in it is the same.

use crm_tests::{EmulatorOptions, Options, PATIENCE, Pair, PairOptions};

const PEOPLE: i64 = 2_500;

async fn live() -> Pair {
    let cluster = Options::default()
        .setting("pg_crm_sync.guard_soft_rows", "0")
        .setting("pg_crm_sync.guard_hard_rows", "0")
        .setting("pg_crm_sync.guard_window_rows", "0");
    let emulator = EmulatorOptions::default()
        .contacts(PEOPLE.unsigned_abs())
        .arg("--rate-limits", "off");
    let pair = Pair::start(PairOptions { cluster, emulator }).await;
    pair.import("hubspot", &["contacts"]).await;
    pair.backfilled().await;
    pair.db.exec("SELECT crm.go_live('hubspot.contacts')").await;
    pair
}

/// Edits of one field by SQL: how many there were, how many did not start from what the one before had left, and how
/// many rows do not show the last.
const CHAINS: &str = "
    WITH edit AS (
        SELECT e.row_id, e.seq, e.old_values[1] AS old, e.new_values[1] AS new,
               lag(e.new_values[1]) OVER w AS before, row_number() OVER w AS nth,
               lead(e.seq) OVER w IS NULL AS is_last
        FROM crm.event e WHERE e.source = 'sql' AND e.fields = ARRAY['address']
        WINDOW w AS (PARTITION BY e.row_id ORDER BY e.seq))
    SELECT count(*)::text, (count(*) FILTER (WHERE nth > 1 AND before IS DISTINCT FROM old))::text,
           (count(*) FILTER (WHERE is_last AND new IS DISTINCT FROM c.address))::text
    FROM edit JOIN hubspot.contacts c ON c._id = edit.row_id";

#[tokio::test(flavor = "multi_thread")]
async fn edits_of_a_row_are_decided_in_their_order_also_when_a_long_log_is_added_to() {
    let pair = live().await;
    // Four megabytes and more of old values, there all at once.
    pair.db
        .exec(
            "BEGIN;
             UPDATE hubspot.contacts SET address = repeat('a', 1200);
             UPDATE hubspot.contacts SET address = repeat('b', 1200);
             UPDATE hubspot.contacts SET address = repeat('c', 1200);
             COMMIT",
        )
        .await;
    for nth in 0..40 {
        let row = format!(
            "(SELECT _id FROM hubspot.contacts ORDER BY _id OFFSET {} LIMIT 1)",
            (nth * 977) % PEOPLE
        );
        pair.db
            .exec(&format!(
                "UPDATE hubspot.contacts SET address = 'late {nth}' WHERE _id = {row}"
            ))
            .await;
    }
    pair.db
        .wait_true(
            "everything is sent",
            PATIENCE * 4,
            "SELECT NOT EXISTS (SELECT FROM crm.change_0) AND NOT EXISTS (SELECT FROM crm.change_1)
             AND NOT EXISTS (SELECT FROM crm.write WHERE state IN ('queued', 'in_flight', 'unknown'))",
        )
        .await;
    let edits = (3 * PEOPLE + 40).to_string();
    assert_eq!(
        pair.db.table(CHAINS).await,
        [[edits.as_str(), "0", "0"]],
        "each edit once, from what the one before had left"
    );
    let rows = pair
        .db
        .table(
            "SELECT id, address FROM hubspot.contacts WHERE _id % 100 = 0 OR address LIKE 'late %'",
        )
        .await;
    for row in rows {
        let there = pair
            .emulator
            .field("hubspot", "contacts", &row[0], "address");
        assert_eq!(there.as_deref(), Some(row[1].as_str()), "record {}", row[0]);
    }
}
