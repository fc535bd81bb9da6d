//! Change events by CometD, for networks that gRPC cannot pass: the same changes, and none lost when a conversation breaks
//! off.

use crm_tests::{PATIENCE, Pair, PairOptions, Person};
use serde_json::{Value, json};

/// Linked; Salesforce's changes come by CometD, and by nothing else for an hour.
async fn pair() -> (Pair, Vec<Person>) {
    let (pair, people) = Pair::linked(12, PairOptions::default()).await;
    pair.agree().await;
    pair.db
        .exec(
            "UPDATE crm.mirror SET poll_interval = '1 hour';
             ALTER SERVER salesforce OPTIONS (ADD stream 'cometd')",
        )
        .await;
    pair.worker_has_read().await;
    heard(&pair, &people[people.len() - 1], "It works").await;
    (pair, people)
}

/// An edit in Salesforce comes across.
async fn heard(pair: &Pair, who: &Person, title: &str) {
    pair.edit("salesforce", who, "jobtitle", title);
    pair.reaches_both(who, "jobtitle", title).await;
}

fn fault(pair: &Pair, remaining: u32, action: &Value) {
    pair.emulator.fault(json!({
        "crm": "salesforce", "method": "POST", "path_prefix": "/cometd", "remaining": remaining, "action": action,
    }));
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_every_kind_come_by_cometd_and_by_the_other_way_again() {
    let (pair, people) = pair().await;
    let before = pair.events("pubsub").await;
    let who = &people[0];
    let edit = json!({"MailingCity": "Leeds", "FirstName": "Ada", "Phone": null, "Description": "x".repeat(3_000)});
    pair.emulator
        .edit("salesforce", "Contact", &who.salesforce, edit);
    pair.reaches_both(who, "city", "Leeds").await;
    pair.reaches_both(who, "firstname", "Ada").await;
    let blank = format!(
        "SELECT phone IS NULL FROM hubspot.contacts WHERE id = '{}'",
        who.hubspot
    );
    pair.db.wait_true("a null is one", PATIENCE, &blank).await;
    // A long text of which only a difference is told.
    let text = format!("{}y", "x".repeat(3_000));
    let edit = json!({"Description": text});
    pair.emulator
        .edit("salesforce", "Contact", &who.salesforce, edit);
    let whole = format!(
        "SELECT description = repeat('x', 3000) || 'y' FROM salesforce.contact WHERE id = '{}'",
        who.salesforce
    );
    pair.db
        .wait_true("the text is whole", PATIENCE, &whole)
        .await;
    let new = pair.create_person("salesforce", "comet@example.net");
    let there = "SELECT count(*) = 1 FROM hubspot.contacts WHERE email = 'comet@example.net' AND id IS NOT NULL";
    pair.db.wait_true("a create", PATIENCE, there).await;
    pair.emulator.delete("salesforce", "Contact", &new);
    let gone = format!("SELECT _deleted_at IS NOT NULL FROM salesforce.contact WHERE id = '{new}'");
    pair.db.wait_true("a delete", PATIENCE, &gone).await;
    // Our own writes come back as such.
    pair.sql(who, "jobtitle", "By SQL").await;
    pair.reaches_both(who, "jobtitle", "By SQL").await;
    pair.agree().await;
    let sources = "SELECT count(*) > 0 FROM crm.event WHERE source = 'cometd' AND kind = 'update'";
    assert!(pair.db.one::<bool>(sources).await);
    assert_eq!(
        pair.events("pubsub").await,
        before,
        "nothing came the other way"
    );
    let log = pair.cluster.log();
    assert!(
        !log.contains("an event cannot be read"),
        "events are read, not their objects"
    );
    let shown = "SELECT stream = 'cometd' AND changes_by = 'stream' FROM crm.change_source WHERE server = 'salesforce' AND object = 'Contact'";
    assert!(pair.db.one::<bool>(shown).await);

    pair.db
        .exec("ALTER SERVER salesforce OPTIONS (DROP stream)")
        .await;
    pair.worker_has_read().await;
    heard(&pair, who, "By gRPC").await;
    pair.events_reach("pubsub", before + 1).await;
    pair.agree().await;
    let refused = pair
        .db
        .error("ALTER SERVER salesforce OPTIONS (ADD stream 'pigeon')")
        .await;
    assert!(refused.message().contains("stream"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_lost_with_its_events_loses_no_change() {
    let (pair, people) = pair().await;
    for n in 0..3 {
        // What was performed is forgotten by the server, and cut off on the way.
        fault(&pair, 2, &json!({"fail_after_write": {}}));
        for (i, who) in people.iter().take(6).enumerate() {
            pair.edit("salesforce", who, "city", &format!("Town {n}-{i}"));
        }
        for (i, who) in people.iter().take(6).enumerate() {
            pair.reaches_both(who, "city", &format!("Town {n}-{i}"))
                .await;
        }
    }
    pair.emulator.clear_faults();
    pair.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trouble_of_every_kind_ends_in_a_new_conversation() {
    let (pair, people) = pair().await;
    let who = &people[0];
    let levers = [
        "/_admin/salesforce/forget-clients",
        "/_admin/salesforce/expire-tokens",
    ];
    for (n, lever) in levers.iter().enumerate() {
        pair.emulator.admin("POST", lever, Some(&json!({})));
        heard(&pair, who, &format!("After lever {n}")).await;
    }
    let actions = [
        json!({"reject": {"status": 500}}),
        json!({"reject": {"status": 401, "body": [{"errorCode": "INVALID_SESSION_ID", "message": "Session expired or invalid"}]}}),
        json!("close"),
        json!({"garbage": "html"}),
        json!({"garbage": "truncated"}),
        json!({"garbage": "empty"}),
    ];
    for (n, action) in actions.iter().enumerate() {
        fault(&pair, 1, action);
        // The first is in the connect that is held; what follows it meets the trouble.
        heard(&pair, who, &format!("In trouble {n}")).await;
        heard(&pair, who, &format!("Out of it {n}")).await;
    }
    pair.emulator.clear_faults();
    pair.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_an_end_is_skipped_counted_and_made_good_by_reading_the_object() {
    let (pair, people) = pair().await;
    fault(&pair, 1, &json!({"garbage": "endless"}));
    // The first is in the connect that is held; the next meets the trouble.
    for (n, who) in people[..4].iter().enumerate() {
        heard(&pair, who, &format!("Edit {n}")).await;
    }
    let counted = "SELECT rejected > 0 AND last_error LIKE '%read again%' FROM crm.stream
                   WHERE server = 'salesforce' AND kind = 'cometd' AND object = 'Contact'";
    pair.db.wait_true("it is counted", PATIENCE, counted).await;
    pair.emulator.clear_faults();
    pair.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_id_that_is_no_longer_kept_loses_no_change() {
    let (pair, people) = pair().await;
    pair.db
        .exec("SELECT crm.pause('mirror', 'salesforce.contact')")
        .await;
    for who in &people[..4] {
        pair.edit("salesforce", who, "jobtitle", "While away");
    }
    let expire = "/_admin/salesforce/expire-replay-ids";
    pair.emulator.admin("POST", expire, Some(&json!({})));
    pair.db
        .exec("SELECT crm.resume('mirror', 'salesforce.contact')")
        .await;
    for who in &people[..4] {
        pair.reaches_both(who, "jobtitle", "While away").await;
    }
    heard(&pair, &people[0], "After").await;
    pair.agree().await;
}
