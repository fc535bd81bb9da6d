//! Changes travel: from a person in either CRM and from SQL, to the other two sides, once.

use crm_tests::{PATIENCE, Pair, PairOptions, Person};
use serde_json::json;

async fn pair() -> (Pair, Vec<Person>) {
    Pair::linked(20, PairOptions::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_in_one_crm_reaches_the_other_once_and_its_echo_writes_nothing() {
    let (pair, people) = pair().await;
    let who = &people[0];
    for (from, to, kind) in [
        ("hubspot", "salesforce", "pubsub"),
        ("salesforce", "hubspot", "webhook"),
    ] {
        let value = format!("Set in {from}");
        let before = pair.events(kind).await;
        pair.emulator.reset_counts();
        pair.edit(from, who, "jobtitle", &value);
        pair.reaches_both(who, "jobtitle", &value).await;
        pair.events_reach(kind, before + 1).await;
        pair.agree().await;
        assert_eq!(pair.writes(to), 1, "one write to {to}");
        assert_eq!(pair.writes(from), 0, "none back to {from}");
        for table in ["hubspot.contacts h", "salesforce.contact h"] {
            let sql = format!(
                "SELECT h._sync_source FROM {table} WHERE h.email = '{}'",
                who.email
            );
            let source: Option<String> = pair.db.one(&sql).await;
            assert_eq!(source.as_deref(), Some(from), "_sync_source in {table}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_updates_on_either_mirror_reach_both_crms_and_wait_synced_waits_for_them() {
    let (pair, people) = pair().await;
    let who = &people[0];
    let before = (pair.events("webhook").await, pair.events("pubsub").await);
    pair.emulator.reset_counts();
    let update = format!(
        "UPDATE hubspot.contacts SET city = 'Leeds', zip = 'LS1' WHERE email = '{}'",
        who.email
    );
    pair.db.exec(&update).await;
    pair.db.exec("SELECT crm.wait_synced('60 s')").await;
    let city = pair.shows("hubspot", who, "city");
    assert_eq!(
        city.as_deref(),
        Some("Leeds"),
        "confirmed means HubSpot has it"
    );
    let city = pair.shows("salesforce", who, "city");
    assert_eq!(
        city.as_deref(),
        Some("Leeds"),
        "confirmed means Salesforce has it"
    );
    pair.events_reach("webhook", before.0 + 2).await;
    pair.events_reach("pubsub", before.1 + 1).await;
    pair.agree().await;
    assert_eq!(pair.writes("hubspot"), 1, "two columns, one call");
    assert_eq!(pair.writes("salesforce"), 1);

    let update = format!(
        "UPDATE salesforce.contact SET title = 'Poet', mailingcity = NULL WHERE email = '{}'",
        who.email
    );
    pair.db.exec(&update).await;
    pair.reaches_both(who, "jobtitle", "Poet").await;
    pair.agree().await;
    let city = pair.shows("hubspot", who, "city");
    assert_eq!(city, None, "a value can be emptied");

    pair.emulator.reset_counts();
    pair.db
        .exec("UPDATE hubspot.contacts SET city = city; SELECT crm.wait_synced('60 s')")
        .await;
    pair.quiet().await;
    let all = (pair.writes("hubspot"), pair.writes("salesforce"));
    assert_eq!(all, (0, 0), "an UPDATE that changes nothing calls nobody");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_without_a_partner_reaches_its_own_crm_only() {
    let (pair, people) = pair().await;
    let who = &people[0];
    pair.emulator.reset_counts();
    let update = format!(
        "UPDATE hubspot.contacts SET fax = '+1 555 0111' WHERE email = '{}'",
        who.email
    );
    pair.db.exec(&update).await;
    pair.reaches("hubspot", "contacts", &who.hubspot, "fax", "+1 555 0111")
        .await;
    pair.edit("hubspot", who, "company", "Acme");
    let sql = format!(
        "SELECT company = 'Acme' FROM hubspot.contacts WHERE email = '{}'",
        who.email
    );
    pair.db
        .wait_true("the mirror shows it", PATIENCE, &sql)
        .await;
    pair.agree().await;
    assert_eq!(pair.writes("salesforce"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insert_gets_one_record_and_one_id_on_each_side() {
    let (pair, _) = pair().await;
    let counts = |crm, object| pair.live(crm, object);
    let before = (
        counts("hubspot", "contacts"),
        counts("salesforce", "Contact"),
    );
    for insert in [
        "INSERT INTO hubspot.contacts (email, firstname, lastname, city) VALUES ('new.one@example.net', 'New', 'One', 'Hull')",
        "INSERT INTO salesforce.contact (email, firstname, lastname, mailingcity) VALUES ('new.two@example.net', 'New', 'Two', 'York')",
    ] {
        pair.db.exec(insert).await;
        pair.db.exec("SELECT crm.wait_synced('60 s')").await;
    }
    let paired =
        "SELECT count(*) = 2 FROM hubspot.contacts h JOIN salesforce.contact s USING (email)
                  WHERE h.email LIKE 'new.%@example.net' AND h.id IS NOT NULL AND s.id IS NOT NULL";
    pair.db
        .wait_true("both have ids on both sides", PATIENCE, paired)
        .await;
    pair.agree().await;
    let rows: i64 = pair.db.one("SELECT (SELECT count(*) FROM hubspot.contacts WHERE email LIKE 'new.%') + (SELECT count(*) FROM salesforce.contact WHERE email LIKE 'new.%')").await;
    assert_eq!(rows, 4, "no row doubled");
    let after = (
        counts("hubspot", "contacts"),
        counts("salesforce", "Contact"),
    );
    assert_eq!(after.0, before.0 + 2, "HubSpot has two more");
    assert_eq!(after.1, before.1 + 2, "Salesforce has two more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_made_in_one_crm_appears_once_in_the_other() {
    let (pair, _) = pair().await;
    let fields = json!({"email": "born.hubspot@example.net", "firstname": "Born", "lastname": "There", "jobtitle": "Seed"});
    pair.emulator.create("hubspot", "contacts", fields);
    let fields = json!({"Email": "born.salesforce@example.net", "FirstName": "Born", "LastName": "Here", "Title": "Leaf"});
    pair.emulator.create("salesforce", "Contact", fields);
    let paired = "SELECT count(*) = 2 FROM hubspot.contacts h JOIN salesforce.contact s USING (email) WHERE h.email LIKE 'born.%' AND h.id IS NOT NULL AND s.id IS NOT NULL";
    pair.db
        .wait_true("both exist on both sides", PATIENCE, paired)
        .await;
    pair.agree().await;
    let people = pair.people().await;
    let born: Vec<&Person> = people
        .iter()
        .filter(|p| p.email.starts_with("born."))
        .collect();
    assert_eq!(born.len(), 2, "linked: {born:?}");
    for who in born {
        pair.edit("hubspot", who, "city", "Bath");
        pair.reaches_both(who, "city", "Bath").await;
    }
    pair.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deletes_stay_on_their_side_unless_the_link_propagates_them() {
    let (pair, people) = pair().await;
    let gone = |crm: &str, object: &str, id: &str| pair.gone(crm, object, id);
    let (a, b, c, d) = (&people[0], &people[1], &people[2], &people[3]);
    let delete =
        |who: &Person| format!("DELETE FROM hubspot.contacts WHERE id = '{}'", who.hubspot);
    pair.db.exec(&delete(a)).await;
    pair.db.exec("SELECT crm.wait_synced('60 s')").await;
    assert!(gone("hubspot", "contacts", &a.hubspot), "a SQL DELETE");
    pair.emulator.delete("salesforce", "Contact", &b.salesforce);
    let soft = |who: &Person| {
        format!(
            "SELECT _deleted_at IS NOT NULL FROM salesforce.contact WHERE id = '{}'",
            who.salesforce
        )
    };
    pair.db
        .wait_true("a remote delete is a soft one", PATIENCE, &soft(b))
        .await;
    pair.agree().await;
    assert!(!gone("salesforce", "Contact", &a.salesforce));
    assert!(!gone("hubspot", "contacts", &b.hubspot));

    pair.db
        .exec("UPDATE crm.link SET on_left_delete = 'propagate', on_right_delete = 'propagate'")
        .await;
    pair.db.exec(&delete(c)).await;
    pair.db.exec("SELECT crm.wait_synced('60 s')").await;
    pair.emulator.delete("salesforce", "Contact", &d.salesforce);
    pair.cluster
        .wait_until("both deletes go across", PATIENCE, async || {
            let there = gone("salesforce", "Contact", &c.salesforce)
                && gone("hubspot", "contacts", &d.hubspot);
            there.then_some(())
        })
        .await;
    pair.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hubspot_merge_leaves_one_row_under_the_new_id() {
    let (pair, people) = pair().await;
    let (winner, loser) = (&people[0], &people[1]);
    let body = json!({"object": "contacts", "winner": winner.hubspot, "loser": loser.hubspot});
    let merged = pair
        .emulator
        .admin("POST", "/_admin/hubspot/merge", Some(&body));
    let id = merged["id"]
        .as_str()
        .expect("the survivor has an id")
        .to_owned();
    let sql = format!(
        "SELECT (SELECT count(*) = 1 FROM hubspot.contacts WHERE id = '{id}' AND _deleted_at IS NULL)
            AND NOT EXISTS (SELECT FROM hubspot.contacts WHERE id <> '{id}' AND id IN ('{}', '{}') AND _deleted_at IS NULL)",
        winner.hubspot, loser.hubspot
    );
    pair.db
        .wait_true("only the survivor is live", PATIENCE, &sql)
        .await;
    pair.agree().await;
    let body = json!({"jobtitle": "Survivor"});
    pair.emulator.edit("hubspot", "contacts", &id, body);
    pair.agree().await;
}
