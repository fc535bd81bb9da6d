//! What streams and what is polled, as it is told to the DBA.

use crm_tests::{EmulatorOptions, PATIENCE, Pair, PairOptions, wait_until};
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

/// How often Salesforce was asked for a path that ends like this.
fn asked(pair: &Pair, end: &str) -> usize {
    let path = |r: &serde_json::Value| r["path"].as_str().unwrap_or_default().to_owned();
    pair.emulator.admin("GET", "/_admin/requests?since=0", None)["requests"]
        .as_array()
        .expect("requests")
        .iter()
        .filter(|r| path(r).split('?').next().is_some_and(|p| p.ends_with(end)))
        .count()
}

fn withhold(pair: &Pair, objects: &[&str]) {
    let body = json!({"withheld": objects});
    let path = "/_admin/salesforce/settings";
    pair.emulator.admin("POST", path, Some(&body));
}

/// Two objects whose streams Salesforce refuses, by both ways; polled every second.
async fn refused() -> Pair {
    let pair = Pair::start(PairOptions {
        emulator: EmulatorOptions::default().contacts(10),
        ..PairOptions::default()
    })
    .await;
    withhold(&pair, &["Account"]);
    // Of entries in a price book Salesforce has no change events at all.
    pair.import("salesforce", &["Account", "PricebookEntry"])
        .await;
    pair.backfilled().await;
    let stands = |kind: &str, state: &str| {
        format!(
            "SELECT count(*) = 2 FROM crm.stream WHERE server = 'salesforce' AND kind = '{kind}' AND state = '{state}'
             AND refused IS NOT NULL AND last_error IS NULL"
        )
    };
    pair.db
        .wait_true(
            "both are known to be polled",
            PATIENCE,
            &stands("pubsub", "polls"),
        )
        .await;
    // By the other way too, where every try can be counted.
    pair.db
        .exec(
            "UPDATE crm.mirror SET poll_interval = '1 second';
             ALTER SERVER salesforce OPTIONS (ADD stream 'cometd')",
        )
        .await;
    pair.db
        .wait_true("and by CometD", PATIENCE, &stands("cometd", "polls"))
        .await;
    pair
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_whose_stream_is_refused_is_polled_without_an_error_and_asked_for_when_there_is_a_reason()
 {
    let pair = refused().await;
    assert_eq!(
        asked(&pair, "/subscribe"),
        1,
        "what does not exist is not asked for"
    );
    let account = pair.create("salesforce", "Account", json!({"Name": "Polled Ltd"}));
    let there = format!("SELECT count(*) = 1 FROM salesforce.account WHERE id = '{account}'");
    pair.db.wait_true("it is polled", PATIENCE, &there).await;
    // Longer than the first pauses between tries of before.
    let before = asked(&pair, "/queryAll");
    wait_until("many polls later", PATIENCE, async || {
        (asked(&pair, "/queryAll") > before + 12).then_some(())
    })
    .await;
    assert_eq!(
        asked(&pair, "/subscribe"),
        1,
        "a refusal is taken for an answer"
    );
    let told = "SELECT object, can_stream, changes_by, refused LIKE '%subscribe%', advice LIKE '%crm.refresh%', advice LIKE '%polled every%'
                FROM crm.change_source WHERE mirror IS NOT NULL ORDER BY object";
    assert_eq!(
        pair.db.table(told).await,
        [
            ["Account", "t", "poll", "t", "t", "t"],
            ["PricebookEntry", "f", "poll", "∅", "f", "t"]
        ]
    );
    let shown = "SELECT count(*) FROM crm.status WHERE kind = 'stream' AND last_error IS NOT NULL";
    assert_eq!(pair.db.one::<i64>(shown).await, 0);

    withhold(&pair, &[]);
    pair.db
        .exec("SELECT crm.refresh('salesforce.account')")
        .await;
    let later = pair.create("salesforce", "Account", json!({"Name": "Streamed Ltd"}));
    let there = format!("SELECT count(*) = 1 FROM salesforce.account WHERE id = '{later}'");
    pair.db.wait_true("it is mirrored", PATIENCE, &there).await;
    let by_stream = "SELECT changes_by = 'stream' AND advice IS NULL FROM crm.change_source WHERE object = 'Account'";
    pair.db
        .wait_true(
            "the stream that is granted now is used",
            PATIENCE,
            by_stream,
        )
        .await;
}
