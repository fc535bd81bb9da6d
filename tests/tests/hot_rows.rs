//! A record that is edited all the time while nothing of it is sent: what waits stays small.

use crm_tests::{Db, EmulatorOptions, Options, PATIENCE, Pair, PairOptions};

/// Transactions of one row; more than a write names.
const EDITS: i64 = 2_500;

async fn start(guard_window_rows: &str) -> Pair {
    let cluster = Options::default().setting("pg_crm_sync.guard_window_rows", guard_window_rows);
    let emulator = EmulatorOptions::default().contacts(3);
    let pair = Pair::start(PairOptions { cluster, emulator }).await;
    pair.import("hubspot", &["contacts"]).await;
    pair.backfilled().await;
    pair
}

/// Edits the first contact, each time in a transaction of its own, and waits until that is decided. Returns the session.
async fn edit_often(pair: &Pair) -> Db {
    let other = pair.cluster.connect("app").await;
    other
        .exec(&format!(
            "DO $$ BEGIN FOR n IN 1 .. {EDITS} LOOP
                 UPDATE hubspot.contacts SET city = 'City ' || n WHERE id = '1'; COMMIT;
             END LOOP; END $$"
        ))
        .await;
    let last = format!("SELECT bool_or(vals ->> 'city' = 'City {EDITS}') IS TRUE FROM crm.write");
    pair.db.wait_true("all is decided", PATIENCE, &last).await;
    other
}

async fn causes(pair: &Pair) -> i64 {
    pair.db
        .one("SELECT sum(cardinality(txs)) FROM crm.write")
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_edited_for_weeks_in_shadow_names_its_last_transactions_only() {
    let pair = start("0").await;
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
    let pair = start("0").await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_that_the_guard_holds_for_days_names_its_first_transactions_only() {
    let pair = start("100").await;
    pair.db.exec("SELECT crm.go_live('hubspot.contacts')").await;
    let looping = edit_often(&pair).await;
    assert!(causes(&pair).await <= 1_000, "{}", causes(&pair).await);
    // Its last transaction is not among those named.
    let refused = looping.error("SELECT crm.wait_synced()").await;
    assert_eq!(refused.code().code(), "55000", "{refused:?}");
    // Nobody else waits for it.
    pair.db
        .exec("SET application_name = 'portal'; UPDATE hubspot.contacts SET phone = '+1 555' WHERE id = '2'")
        .await;
    let said: String = pair.db.one("SELECT crm.wait_synced('60 s')").await;
    assert!(said.starts_with("confirmed"), "{said}");
    pair.db.exec("SELECT crm.approve(tx) FROM crm.held").await;
    let said: String = looping.one("SELECT crm.wait_synced('60 s')").await;
    assert!(said.starts_with("confirmed"), "{said}");
    let city = pair.emulator.field("hubspot", "contacts", "1", "city");
    assert_eq!(city, Some(format!("City {EDITS}")));
}
