//! Removals of which we are told late, and edits that meet them on their way.

use crm_tests::{PATIENCE, Pair, PairOptions, Person};
use serde_json::json;

async fn pair(on_delete: &str) -> (Pair, Vec<Person>) {
    let (pair, people) = Pair::linked(10, PairOptions::default()).await;
    pair.db
        .exec(&format!(
            "UPDATE crm.link SET on_left_delete = '{on_delete}', on_right_delete = '{on_delete}'"
        ))
        .await;
    pair.worker_has_read().await;
    (pair, people)
}

/// Nobody tells of what happens in a CRM until the faults are cleared.
fn goes_unheard(pair: &Pair, crm: &str) {
    let stream = if crm == "hubspot" { "webhook" } else { "cdc" };
    pair.emulator
        .fault(json!({"stream": stream, "lose": 100_000}));
}

/// Removes a person's record in a CRM, unheard, and edits the other one: the write finds it gone.
fn meet(pair: &Pair, who: &Person, crm: &str) {
    let (object, id, other) = match crm {
        "hubspot" => ("contacts", &who.hubspot, "salesforce"),
        _ => ("Contact", &who.salesforce, "hubspot"),
    };
    goes_unheard(pair, crm);
    pair.emulator.delete(crm, object, id);
    pair.edit(other, who, "city", "Newer");
}

/// The refused write was forgotten as soon as it was refused, so the removal saw nothing in its way: where the link
/// says propagate, it removed the record with the newer edit.
#[tokio::test(flavor = "multi_thread")]
async fn an_edit_whose_write_finds_the_record_gone_is_asked_about_whichever_side_removed() {
    for (crm, rule) in [
        ("salesforce", "propagate"),
        ("hubspot", "propagate"),
        ("hubspot", "soft_delete"),
    ] {
        let (pair, people) = pair(rule).await;
        let (who, other) = (&people[0], &people[1]);
        meet(&pair, who, crm);
        let asked = format!(
            "SELECT count(*) = 1 FROM crm.review WHERE kind = 'delete' AND mirror LIKE '{crm}.%' AND reason LIKE '%city%'
             AND candidates @> '[{{\"field\": \"city\", \"value\": \"Newer\"}}]'"
        );
        let what = format!("a person is asked about {crm}'s {rule}");
        pair.db.wait_true(&what, PATIENCE, &asked).await;
        pair.emulator.clear_faults();
        pair.edit("hubspot", other, "city", "Afterwards");
        pair.reaches_both(other, "city", "Afterwards").await;
        pair.quiet().await;
        let (gone_in, kept_in) = match crm {
            "hubspot" => (
                ("contacts", &who.hubspot),
                ("salesforce", "Contact", &who.salesforce),
            ),
            _ => (
                ("Contact", &who.salesforce),
                ("hubspot", "contacts", &who.hubspot),
            ),
        };
        assert!(pair.gone(crm, gone_in.0, gone_in.1));
        assert!(!pair.gone(kept_in.0, kept_in.1, kept_in.2), "{crm} {rule}");
        let dead: i64 = pair.db.one("SELECT count(*) FROM crm.dead_letter").await;
        assert_eq!(dead, 0, "the question tells of it");
        pair.db
            .exec("UPDATE crm.review SET resolution = 'keep'")
            .await;
        let (table, email) = match crm {
            "hubspot" => ("hubspot.contacts", &who.email),
            _ => ("salesforce.contact", &who.email),
        };
        let anew = format!(
            "SELECT count(*) = 1 FROM {table} WHERE email = '{email}' AND id IS NOT NULL AND id <> '{}' AND _deleted_at IS NULL",
            gone_in.1
        );
        pair.db.wait_true("it is made anew", PATIENCE, &anew).await;
        let id: String = pair
            .db
            .one(&format!("SELECT id FROM {table} WHERE email = '{email}'"))
            .await;
        let field = if crm == "hubspot" {
            "city"
        } else {
            "MailingCity"
        };
        pair.reaches(crm, gone_in.0, &id, field, "Newer").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_lets_removals_stand_names_what_they_took_along() {
    let (pair, people) = pair("propagate").await;
    pair.db
        .exec("UPDATE crm.link SET on_delete_conflict = 'delete'")
        .await;
    pair.worker_has_read().await;
    let who = &people[0];
    meet(&pair, who, "salesforce");
    pair.cluster
        .wait_until("HubSpot's record goes, too", PATIENCE, async || {
            pair.gone("hubspot", "contacts", &who.hubspot).then_some(())
        })
        .await;
    pair.quiet().await;
    let named = "SELECT d ->> 'winner', l ->> 'origin', l ->> 'value' FROM crm.event e, jsonb_array_elements(e.decision) d, jsonb_array_elements(d -> 'losers') l
                 WHERE e.kind = 'discard'";
    let named = pair.db.table(named).await;
    assert_eq!(named, [["salesforce", "hubspot", "Newer"]]);
    let dead: i64 = pair.db.one("SELECT count(*) FROM crm.dead_letter").await;
    assert_eq!(dead, 0);
}

/// Every edit stands in the ledger, also one that is told when its record is gone: it vanished with the read that found so.
#[tokio::test(flavor = "multi_thread")]
async fn an_edit_that_is_told_after_sql_removed_the_record_stands_in_the_ledger() {
    let (pair, people) = pair("propagate").await;
    for (n, crm) in ["hubspot", "salesforce"].into_iter().enumerate() {
        let who = &people[n];
        let value = format!("Late in {crm}");
        let stream = if crm == "hubspot" { "webhook" } else { "cdc" };
        pair.emulator
            .fault(json!({"stream": stream, "delay_ms": 2_000}));
        pair.edit(crm, who, "city", &value);
        pair.emulator.fault(json!({"stream": stream}));
        let sql = format!("DELETE FROM hubspot.contacts WHERE id = '{}'", who.hubspot);
        pair.db.exec(&sql).await;
        pair.cluster
            .wait_until("both records go", PATIENCE, async || {
                (pair.gone("hubspot", "contacts", &who.hubspot)
                    && pair.gone("salesforce", "Contact", &who.salesforce))
                .then_some(())
            })
            .await;
        let told = format!(
            "SELECT count(*) = 1 FROM crm.event WHERE '{value}' = ANY (new_values) AND origin = '{crm}' AND actor <> ''
             AND (kind <> 'discard' OR decision -> 0 ->> 'step' = 'tombstone')"
        );
        pair.db
            .wait_true("the edit stands in the ledger", PATIENCE, &told)
            .await;
    }
    pair.quiet().await;
}

/// It was not sent again, because the CRM had refused it, and the sides stayed apart; or what the record had held
/// counted as the newer edit.
#[tokio::test(flavor = "multi_thread")]
async fn an_edit_that_found_its_record_removed_reaches_it_when_it_is_back() {
    for (crm, heard) in [
        ("hubspot", true),
        ("salesforce", true),
        ("hubspot", false),
        ("salesforce", false),
    ] {
        let (pair, people) = pair("propagate").await;
        let who = &people[0];
        meet(&pair, who, crm);
        let asked = "SELECT count(*) = 1 FROM crm.review WHERE kind = 'delete'";
        pair.db
            .wait_true("a person is asked", PATIENCE, asked)
            .await;
        if heard {
            pair.emulator.clear_faults();
        } else {
            let often = "UPDATE crm.mirror SET poll_interval = '1 second'";
            pair.db.exec(often).await;
        }
        let record = match crm {
            "hubspot" => json!({"object": "contacts", "id": who.hubspot}),
            _ => json!({"object": "Contact", "id": who.salesforce}),
        };
        pair.deed(crm, "restore", record);
        pair.reaches_both(who, "city", "Newer").await;
        pair.agree().await;
        let open = "SELECT count(*) FROM crm.review";
        assert_eq!(pair.db.one::<i64>(open).await, 0);
        let history = "SELECT kind, resolution, because FROM crm.review_history";
        let because = format!("its record is back in {crm}");
        let ended = ["delete", "ended", because.as_str()];
        assert_eq!(pair.db.table(history).await, [ended]);
    }
}

/// The stamp of a restore says nothing of the fields: they are as old as when the record went.
#[tokio::test(flavor = "multi_thread")]
async fn what_others_wrote_while_a_record_was_in_the_bin_reaches_it_when_it_is_back() {
    for heard in [true, false] {
        let (pair, people) = pair("ignore").await;
        let who = &people[0];
        let record = json!({"object": "contacts", "id": who.hubspot});
        pair.deed("hubspot", "delete", record.clone());
        let gone = format!(
            "SELECT _deleted_at IS NOT NULL FROM hubspot.contacts WHERE id = '{}'",
            who.hubspot
        );
        pair.db.wait_true("it is gone", PATIENCE, &gone).await;
        pair.edit("salesforce", who, "city", "Meanwhile");
        pair.told("salesforce", "Meanwhile").await;
        if !heard {
            goes_unheard(&pair, "hubspot");
            let often = "UPDATE crm.mirror SET poll_interval = '1 second'";
            pair.db.exec(often).await;
        }
        pair.deed("hubspot", "restore", record);
        pair.reaches_both(who, "city", "Meanwhile").await;
        pair.agree().await;
    }
}

/// Nothing was known of it but its id, and an empty record was made on the other side.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_sql_removed_and_its_crm_restores_finds_its_partner_again() {
    for (crm, heard) in [("hubspot", true), ("salesforce", true), ("hubspot", false)] {
        let (pair, people) = pair("unlink").await;
        let who = &people[0];
        let (table, object, id) = match crm {
            "hubspot" => ("hubspot.contacts", "contacts", &who.hubspot),
            _ => ("salesforce.contact", "Contact", &who.salesforce),
        };
        let sql = format!("DELETE FROM {table} WHERE id = '{id}'");
        pair.db.exec(&sql).await;
        pair.db.exec("SELECT crm.wait_synced('60 s')").await;
        pair.quiet().await;
        assert!(pair.gone(crm, object, id));
        if !heard {
            goes_unheard(&pair, crm);
            let often = "UPDATE crm.mirror SET poll_interval = '1 second'";
            pair.db.exec(often).await;
        }
        pair.deed(crm, "restore", json!({"object": object, "id": id}));
        pair.become_states(who, ["live", "live", "t"]).await;
        pair.sql(who, "city", "Together").await;
        pair.reaches_both(who, "city", "Together").await;
        pair.agree().await;
        for (crm, object) in [("hubspot", "contacts"), ("salesforce", "Contact")] {
            assert_eq!(pair.live(crm, object), 10, "{crm} {heard}");
        }
        if heard {
            // What was asked for about the removal may have shown it first.
            let told = "SELECT count(*) = 1 FROM crm.event WHERE kind = 'restore' AND source IN ('webhook', 'pubsub') AND actor <> ''";
            pair.db.wait_true("who restored it", PATIENCE, told).await;
        }
    }
}

/// Only a line without a name stood in the ledger where a poll had shown it first.
#[tokio::test(flavor = "multi_thread")]
async fn who_restored_a_record_is_named_when_that_is_told_after_it_was_read() {
    let (pair, people) = pair("soft_delete").await;
    let who = &people[0];
    let record = json!({"object": "contacts", "id": who.hubspot});
    pair.deed("hubspot", "delete", record.clone());
    pair.become_states(who, ["deleted", "soft_deleted", "t"])
        .await;
    let often = "UPDATE crm.mirror SET poll_interval = '1 second'";
    pair.db.exec(often).await;
    pair.worker_has_read().await;
    pair.emulator
        .fault(json!({"stream": "webhook", "delay_ms": 8_000}));
    pair.deed("hubspot", "restore", record);
    let named = "SELECT count(*) = 1 FROM crm.event WHERE kind = 'restore' AND source = 'webhook' AND actor <> ''";
    pair.db.wait_true("it is named", PATIENCE, named).await;
    pair.become_states(who, ["live", "live", "t"]).await;
    pair.quiet().await;
    let told = "SELECT source, actor <> '' FROM crm.event WHERE kind = 'restore' AND source <> 'link' ORDER BY seq";
    let told = pair.db.table(told).await;
    assert_eq!(told, [["poll", "∅"], ["webhook", "t"]]);
    let since = "SELECT crm.record_as_of('hubspot.contacts', $1, e.received_at + '1 millisecond') ->> '_deleted_at' IS NULL
                 AND crm.record_as_of('hubspot.contacts', $1, e.received_at + '1 millisecond') -> '_unknown' IS NULL
                 FROM crm.event e WHERE kind = 'restore' AND source = 'poll'";
    let since = since.replace("$1", &format!("'{}'", who.hubspot));
    assert!(
        pair.db.one::<bool>(&since).await,
        "it was live since the poll"
    );
    // The partner went with it once more: in between it was there.
    let back: String = pair.db.one("SELECT clock_timestamp()::text").await;
    pair.deed(
        "hubspot",
        "delete",
        json!({"object": "contacts", "id": who.hubspot}),
    );
    pair.emulator.fault(json!({"stream": "webhook"}));
    pair.become_states(who, ["deleted", "soft_deleted", "t"])
        .await;
    let then = format!(
        "SELECT r ->> '_deleted_at' IS NULL AND r -> '_unknown' IS NULL FROM crm.record_as_of('salesforce.contact', '{}', '{back}') r",
        who.salesforce
    );
    assert!(pair.db.one::<bool>(&then).await);
}

/// HubSpot tells in any order: the record was removed here, and by the link in Salesforce, although it was back.
#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_is_told_after_its_record_is_back_removes_nothing() {
    for by_sql in [false, true] {
        let (pair, people) = pair("propagate").await;
        let who = &people[0];
        let before = pair.events("webhook").await;
        let record = json!({"object": "contacts", "id": who.hubspot});
        pair.emulator
            .fault(json!({"stream": "webhook", "delay_ms": 2_000}));
        if by_sql {
            pair.db
                .exec("UPDATE crm.link SET on_left_delete = 'unlink', on_right_delete = 'unlink'")
                .await;
            pair.worker_has_read().await;
            let sql = format!("DELETE FROM hubspot.contacts WHERE id = '{}'", who.hubspot);
            pair.db.exec(&sql).await;
            pair.cluster
                .wait_until("it goes", PATIENCE, async || {
                    pair.gone("hubspot", "contacts", &who.hubspot).then_some(())
                })
                .await;
            pair.db
                .exec("UPDATE crm.link SET on_left_delete = 'propagate', on_right_delete = 'propagate'")
                .await;
            pair.worker_has_read().await;
        } else {
            pair.deed("hubspot", "delete", record.clone());
        }
        pair.emulator.fault(json!({"stream": "webhook"}));
        pair.deed("hubspot", "restore", record);
        pair.events_reach("webhook", before + 2).await;
        pair.quiet().await;
        pair.become_states(who, ["live", "live", "t"]).await;
        pair.agree().await;
        for (crm, object) in [("hubspot", "contacts"), ("salesforce", "Contact")] {
            assert_eq!(pair.live(crm, object), 10, "{crm}");
        }
    }
}

/// A page of a record whose row is hidden was taken as if the row were there.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_page_shows_of_a_hidden_row_waits_until_it_is_back() {
    let (pair, people) = pair("soft_delete").await;
    let who = &people[0];
    let record = json!({"object": "contacts", "id": who.hubspot});
    pair.deed("hubspot", "delete", record.clone());
    pair.become_states(who, ["deleted", "soft_deleted", "t"])
        .await;
    goes_unheard(&pair, "salesforce");
    let often = "UPDATE crm.mirror SET poll_interval = '1 second'";
    pair.db.exec(often).await;
    pair.edit("salesforce", who, "city", "Unshown");
    let told = "SELECT count(*) > 0 FROM crm.event e, jsonb_array_elements(e.decision) d
                WHERE e.source = 'poll' AND 'Unshown' = ANY (e.new_values) AND d ->> 'field' = 'city' AND d ->> 'step' = 'tombstone'";
    pair.db.wait_true("it is told", PATIENCE, told).await;
    let shown = "SELECT count(*) FROM salesforce.contact WHERE mailingcity = 'Unshown'";
    assert_eq!(pair.db.one::<i64>(shown).await, 0);
    pair.emulator.clear_faults();
    pair.deed("hubspot", "restore", record);
    pair.become_states(who, ["live", "live", "t"]).await;
    pair.reaches_both(who, "city", "Unshown").await;
    pair.agree().await;
}
