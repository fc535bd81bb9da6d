//! What streams and what is polled, as it is told to the DBA.

use crm_tests::{EmulatorOptions, PATIENCE, Pair, PairOptions};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_nobody_selected_for_events_is_polled_and_named() {
    let pair = Pair::start(PairOptions {
        emulator: EmulatorOptions::default().contacts(10),
        ..PairOptions::default()
    })
    .await;
    let selected = json!({"selected": ["Contact"]});
    pair.emulator
        .admin("POST", "/_admin/salesforce/settings", Some(&selected));
    pair.import("salesforce", &["Contact", "Account"]).await;
    pair.backfilled().await;
    pair.db
        .exec("UPDATE crm.mirror SET poll_interval = '1 second'")
        .await;
    pair.worker_has_read().await;
    let new = |name: &str| json!({"LastName": name, "Email": format!("{name}@example.net")});
    let contact = pair.create("salesforce", "Contact", new("streamed"));
    let account = pair.create("salesforce", "Account", json!({"Name": "Polled Ltd"}));
    for (table, id) in [("contact", &contact), ("account", &account)] {
        let there = format!("SELECT count(*) = 1 FROM salesforce.{table} WHERE id = '{id}'");
        pair.db.wait_true("it is mirrored", PATIENCE, &there).await;
    }
    let told = "SELECT object, can_stream, changes_by, entities_wanted, entities_allowed, advice LIKE '%Select Account in Setup%'
                FROM crm.change_source WHERE mirror IS NOT NULL ORDER BY object";
    let by_stream = "SELECT changes_by = 'stream' FROM crm.change_source WHERE object = 'Contact'";
    pair.db
        .wait_true("events of contacts are noted", PATIENCE, by_stream)
        .await;
    assert_eq!(
        pair.db.table(told).await,
        [
            ["Account", "t", "poll", "2", "5", "t"],
            ["Contact", "t", "stream", "2", "5", "∅"]
        ]
    );
    // Objects that are not mirrored are listed too, so that one can choose.
    let others: i64 = pair
        .db
        .one("SELECT count(*) FROM crm.change_source WHERE server = 'salesforce' AND mirror IS NULL AND changes_by IS NULL")
        .await;
    assert!(others > 0);
    let checked = "SELECT item, ok FROM crm.server_check('salesforce') WHERE item LIKE 'changes of %' ORDER BY item";
    assert_eq!(
        pair.db.table(checked).await,
        [["changes of Account", "f"], ["changes of Contact", "t"]]
    );
    // The account's own count of deliveries, as the worker reads it.
    let deliveries = "SELECT bool_and(deliveries_left <= deliveries_allowed AND deliveries_allowed > 0) FROM crm.change_source WHERE server = 'salesforce'";
    pair.db
        .wait_true("deliveries are told", PATIENCE, deliveries)
        .await;
}
