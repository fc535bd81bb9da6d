//! A record that is edited all the time while nothing of it is sent: what waits stays small.

use crm_tests::{EmulatorOptions, Options, PATIENCE, Pair, PairOptions};

/// Transactions of one row; more than a write names.
const EDITS: i64 = 2_500;

async fn start() -> Pair {
    let cluster = Options::default().setting("pg_crm_sync.guard_window_rows", "0");
    let emulator = EmulatorOptions::default().contacts(3);
    let pair = Pair::start(PairOptions { cluster, emulator }).await;
    pair.import("hubspot", &["contacts"]).await;
    pair.backfilled().await;
    pair
}

/// Edits the first contact, each time in a transaction of its own, and waits until that is decided.
async fn edit_often(pair: &Pair) {
    let other = pair.cluster.connect("app").await;
    other
        .exec(&format!(
            "DO $$ BEGIN FOR n IN 1 .. {EDITS} LOOP
                 UPDATE hubspot.contacts SET city = 'City ' || n WHERE id = '1'; COMMIT;
             END LOOP; END $$"
        ))
        .await;
    let last = format!("SELECT vals ->> 'city' = 'City {EDITS}' FROM crm.write");
    pair.db.wait_true("all is decided", PATIENCE, &last).await;
}

async fn causes(pair: &Pair) -> i64 {
    pair.db
        .one("SELECT sum(cardinality(txs)) FROM crm.write")
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_edited_for_weeks_in_shadow_names_its_last_transactions_only() {
    let pair = start().await;
    edit_often(&pair).await;
    let state: String = pair.db.one("SELECT state FROM crm.write").await;
    assert_eq!(state, "would_send");
    assert!(causes(&pair).await <= 1_000, "{}", causes(&pair).await);
    pair.db
        .exec("UPDATE hubspot.contacts SET phone = '1' WHERE id = '1'")
        .await;
    let refused = pair.db.error("SELECT crm.wait_synced()").await;
    assert_eq!(refused.code().code(), "55000", "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_change_is_not_told_that_it_was_sent_because_later_ones_joined_it() {
    let pair = start().await;
    pair.db
        .exec("SELECT crm.go_live('hubspot.contacts'); SELECT crm.pause('server', 'hubspot')")
        .await;
    pair.db
        .exec("UPDATE hubspot.contacts SET phone = '+1 555' WHERE id = '1'")
        .await;
    edit_often(&pair).await;
    assert!(causes(&pair).await <= 1_000, "{}", causes(&pair).await);
    let waited = pair.db.error("SELECT crm.wait_synced('1 second')").await;
    assert_eq!(waited.code().code(), "57014", "{waited:?}");
    pair.db.exec("SELECT crm.resume('server', 'hubspot')").await;
    let said: String = pair.db.one("SELECT crm.wait_synced('60 s')").await;
    assert!(said.starts_with("confirmed"), "{said}");
    let phone = pair.emulator.field("hubspot", "contacts", "1", "phone");
    assert_eq!(phone.as_deref(), Some("+1 555"));
}
