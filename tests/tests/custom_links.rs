//! An object that the account made itself, in both CRMs: found by its own name, mapped by hand, alive both ways.

use crm_tests::{EmulatorOptions, PATIENCE, Pair, PairOptions};
use serde_json::json;

const LEFT: &str = "hubspot.p62515_subscriptions";
const RIGHT: &str = "salesforce.subscription__c";

async fn linked() -> Pair {
    let pair = Pair::start(PairOptions {
        emulator: EmulatorOptions::default().contacts(30),
        ..PairOptions::default()
    })
    .await;
    pair.import("hubspot", &["2-1001"]).await;
    pair.import("salesforce", &["Subscription__c"]).await;
    pair.backfilled().await;
    pair.db
        .exec(&format!(
            r#"SELECT crm.link('{LEFT}', '{RIGHT}', name => 'subscriptions');
               INSERT INTO crm.field_map (link, left_field, right_field, value_map, match_order) VALUES
                   ('subscriptions', 'subscription_number', 'Ext__c', NULL, 1),
                   ('subscriptions', 'subscription_name', 'Name', NULL, NULL),
                   ('subscriptions', 'monthly_price', 'Price__c', NULL, NULL),
                   ('subscriptions', 'auto_renew', 'Active__c', NULL, NULL),
                   ('subscriptions', 'plan', 'Plan__c', '{{"small": "Basic", "medium": "Plus", "large": "Enterprise"}}', NULL);
               UPDATE crm.link SET on_left_delete = 'propagate', on_right_delete = 'propagate' WHERE name = 'subscriptions';
               SELECT crm.go_live('subscriptions')"#
        ))
        .await;
    pair.worker_has_read().await;
    pair
}

/// The id of the one live record of that name.
async fn id_of(pair: &Pair, table: &str, column: &str, name: &str) -> String {
    let one = format!(
        "SELECT min(id) FROM {table} WHERE {column} = '{name}' AND _deleted_at IS NULL HAVING count(id) = 1"
    );
    let what = format!("{table} has {name}");
    pair.db
        .wait_true(&what, PATIENCE, &format!("SELECT EXISTS ({one})"))
        .await;
    pair.db.one(&one).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_custom_object_is_made_changed_and_removed_from_either_side() {
    let pair = linked().await;
    let fields = json!({"subscription_name": "Gold", "subscription_number": "N-1", "plan": "large",
        "monthly_price": "99.5", "auto_renew": "true"});
    pair.emulator
        .create("hubspot", "p62515_subscriptions", fields);
    let gold = id_of(&pair, LEFT, "subscription_name", "Gold").await;
    let theirs = id_of(&pair, RIGHT, "name", "Gold").await;
    for (field, value) in [
        ("Plan__c", "Enterprise"),
        ("Ext__c", "N-1"),
        ("Active__c", "true"),
    ] {
        pair.reaches("salesforce", "Subscription__c", &theirs, field, value)
            .await;
    }
    let fields = json!({"Name": "Silver", "Ext__c": "N-2", "Plan__c": "Plus", "Active__c": false});
    pair.emulator
        .create("salesforce", "Subscription__c", fields);
    let silver = id_of(&pair, LEFT, "subscription_name", "Silver").await;
    let there = id_of(&pair, RIGHT, "name", "Silver").await;
    for (field, value) in [("plan", "medium"), ("auto_renew", "false")] {
        pair.reaches("hubspot", "p62515_subscriptions", &silver, field, value)
            .await;
    }
    pair.emulator.edit(
        "salesforce",
        "Subscription__c",
        &theirs,
        json!({"Plan__c": "Basic"}),
    );
    pair.reaches("hubspot", "p62515_subscriptions", &gold, "plan", "small")
        .await;
    pair.db
        .exec(&format!(
            "UPDATE {LEFT} SET plan = 'large' WHERE id = '{silver}'"
        ))
        .await;
    pair.reaches(
        "salesforce",
        "Subscription__c",
        &there,
        "Plan__c",
        "Enterprise",
    )
    .await;
    pair.emulator
        .delete("hubspot", "p62515_subscriptions", &gold);
    pair.emulator
        .delete("salesforce", "Subscription__c", &there);
    for (crm, object, id) in [
        ("salesforce", "Subscription__c", &theirs),
        ("hubspot", "p62515_subscriptions", &silver),
    ] {
        pair.cluster
            .wait_until(&format!("{id} is gone from {crm}"), PATIENCE, async || {
                pair.gone(crm, object, id).then_some(())
            })
            .await;
    }
}
