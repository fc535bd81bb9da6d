//! What ties records of HubSpot to each other and to the account: associations as tables of their own, and the owners,
//! pipelines and stages that records name.

use crm_tests::{EmulatorOptions, PATIENCE, Pair, PairOptions};
use serde_json::json;

async fn small() -> Pair {
    Pair::start(PairOptions {
        emulator: EmulatorOptions::default().contacts(20),
        ..PairOptions::default()
    })
    .await
}

/// A report by owner or stage showed ids that nobody knows: the names are tables beside the records.
#[tokio::test(flavor = "multi_thread")]
async fn owners_and_stages_are_joined_with_the_records_that_name_them() {
    let pair = small().await;
    pair.import(
        "hubspot",
        &["deals", "owners", "deal_pipelines", "deal_stages"],
    )
    .await;
    pair.backfilled().await;
    let strangers = "SELECT count(*) FROM hubspot.deals d
        WHERE NOT EXISTS (SELECT FROM hubspot.deal_stages s JOIN hubspot.deal_pipelines p ON p.id = s.pipelineid
                          WHERE s.id = d.dealstage AND p.id = d.pipeline AND s.isclosed IS NOT NULL)
           OR NOT EXISTS (SELECT FROM hubspot.owners o WHERE o.id = d.hubspot_owner_id AND o.email IS NOT NULL)";
    assert_eq!(pair.db.one::<i64>(strangers).await, 0);
    let deals: i64 = pair.db.one("SELECT count(*) FROM hubspot.deals").await;
    assert!(deals > 0, "no deals to look at");
    // Archived owners still stand on old records: the first poll brings them, marked.
    pair.db
        .wait_true(
            "the archived owner is there",
            PATIENCE,
            "SELECT count(*) = 1 FROM hubspot.owners WHERE archived AND _deleted_at IS NOT NULL AND userid IS NULL AND useridincludinginactive IS NOT NULL",
        )
        .await;
    let often: String = pair
        .db
        .one("SELECT string_agg(DISTINCT poll_interval::text, ',') FROM crm.mirror WHERE object <> 'deals'")
        .await;
    assert_eq!(often, "01:00:00");
}

/// A stage that was renamed, one that was removed and an owner who left were shown as before for good.
#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_brings_what_changed_in_references_and_marks_what_is_gone() {
    let pair = small().await;
    pair.import("hubspot", &["owners", "ticket_stages"]).await;
    pair.backfilled().await;
    let first = "SELECT count(*) = 1 FROM hubspot.owners WHERE archived";
    pair.db
        .wait_true("the first poll is done", PATIENCE, first)
        .await;
    let admin = &pair.emulator;
    admin.edit(
        "hubspot",
        "ticket_stages",
        "1",
        json!({"label": "Brand new"}),
    );
    admin.delete("hubspot", "ticket_stages", "2");
    admin.delete("hubspot", "owners", "71001");
    for mirror in ["hubspot.ticket_stages", "hubspot.owners"] {
        pair.db
            .exec(&format!("SELECT crm.refresh('{mirror}')"))
            .await;
    }
    pair.db
        .wait_true(
            "the stages show it",
            PATIENCE,
            "SELECT bool_and(CASE id WHEN '1' THEN label = 'Brand new' WHEN '2' THEN _deleted_at IS NOT NULL ELSE _deleted_at IS NULL END)
             FROM hubspot.ticket_stages",
        )
        .await;
    pair.db
        .wait_true(
            "the owner is marked",
            PATIENCE,
            "SELECT archived AND _deleted_at IS NOT NULL AND email = 'olga.owner@example.com' FROM hubspot.owners WHERE id = '71001'",
        )
        .await;
    let kept: i64 = pair.db.one("SELECT count(*) FROM hubspot.owners").await;
    assert_eq!(kept, 4, "archived owners stay");
}

/// A row that was written here would have waited as a dead letter: HubSpot takes none of it.
#[tokio::test(flavor = "multi_thread")]
async fn references_refuse_writes_at_once_and_say_why() {
    let pair = small().await;
    pair.import("hubspot", &["owners", "deal_stages"]).await;
    pair.backfilled().await;
    for (sql, state) in [
        ("UPDATE hubspot.owners SET email = 'x@y.z'", "428C9"),
        ("INSERT INTO hubspot.owners DEFAULT VALUES", "0A000"),
        ("DELETE FROM hubspot.deal_stages", "0A000"),
    ] {
        let error = pair.db.error(sql).await;
        assert_eq!(error.code().code(), state, "{sql}: {error:?}");
        assert!(error.hint().is_some(), "{sql}: {error:?}");
    }
    let writes: i64 = pair.db.one("SELECT count(*) FROM crm.write").await;
    assert_eq!(writes, 0);
}

/// Contacts, companies and what ties them, live.
async fn tied(shape: &str) -> Pair {
    let pair = Pair::start(PairOptions {
        emulator: EmulatorOptions::default()
            .contacts(20)
            .arg("--webhook-shape", shape),
        ..PairOptions::default()
    })
    .await;
    pair.import("hubspot", &["contacts", "companies", "contacts_companies"])
        .await;
    pair.backfilled().await;
    pair.db
        .exec("SELECT crm.go_live('hubspot.contacts_companies')")
        .await;
    pair.worker_has_read().await;
    pair
}

/// Waits until the table shows what the CRM holds of a contact.
async fn agree(pair: &Pair, contact: &str) {
    let list = pair
        .ties(contact)
        .iter()
        .map(|t| format!("'{t}'"))
        .collect::<Vec<_>>()
        .join(",");
    let sql = format!(
        "SELECT coalesce(array_agg(to_id || ':' || type_id ORDER BY to_id || ':' || type_id), '{{}}')
                = ARRAY(SELECT u FROM unnest(ARRAY[{list}]::text[]) u ORDER BY u)
                AND coalesce(bool_and(id = concat_ws(':', from_id, to_id, category, type_id)), true)
                AND coalesce(bool_and(is_primary = (type_id = 1)), true)
         FROM hubspot.contacts_companies WHERE from_id = '{contact}' AND _deleted_at IS NULL"
    );
    pair.db
        .wait_true(
            &format!("contact {contact} is tied to {list}"),
            PATIENCE,
            &sql,
        )
        .await;
}

async fn ids(pair: &Pair, table: &str) -> Vec<String> {
    let sql = format!("SELECT id FROM hubspot.{table} ORDER BY length(id), id");
    let rows = pair.db.table(&sql).await;
    rows.into_iter().flatten().collect()
}

/// Which contact belongs to which company was known to HubSpot alone.
#[tokio::test(flavor = "multi_thread")]
async fn associations_are_copied_and_follow_what_people_tie_and_untie() {
    for shape in ["generic", "legacy"] {
        let pair = tied(shape).await;
        let (contacts, companies) = (ids(&pair, "contacts").await, ids(&pair, "companies").await);
        for contact in &contacts {
            agree(&pair, contact).await;
        }
        let (contact, company) = (&contacts[0], &companies[1]);
        let crm = &pair.emulator;
        let before = pair.ties(contact);
        crm.create(
            "hubspot",
            "contacts/companies",
            json!({"from": contact, "to": company}),
        );
        assert_ne!(pair.ties(contact), before, "{shape}");
        agree(&pair, contact).await;
        // The main company moves: HubSpot tells of the new one only.
        crm.create(
            "hubspot",
            "contacts/companies",
            json!({"from": contact, "to": company, "type": 1}),
        );
        agree(&pair, contact).await;
        crm.delete(
            "hubspot",
            "contacts/companies",
            &format!("{contact}:{company}"),
        );
        assert!(
            pair.ties(contact)
                .iter()
                .all(|t| !t.starts_with(&format!("{company}:")))
        );
        agree(&pair, contact).await;
        let writes: i64 = pair.db.one("SELECT count(*) FROM crm.write").await;
        assert_eq!(writes, 0, "{shape}: what came must not go out");
    }
}

/// Rows that were inserted and deleted here stayed here.
#[tokio::test(flavor = "multi_thread")]
async fn associations_of_sql_reach_the_crm_once_and_come_back_as_they_are() {
    let pair = tied("generic").await;
    let (contacts, companies) = (ids(&pair, "contacts").await, ids(&pair, "companies").await);
    let contact = contacts.last().expect("a contact");
    let mut strange = companies.iter().filter(|c| {
        let theirs = format!("{c}:");
        pair.ties(contact).iter().all(|t| !t.starts_with(&theirs))
    });
    let company = strange.next_back().expect("a company without the contact");
    pair.emulator.reset_counts();
    let insert = format!(
        "INSERT INTO hubspot.contacts_companies (from_id, to_id) VALUES ('{contact}', '{company}')"
    );
    for round in 0..2 {
        pair.db.exec(&insert).await;
        pair.db.exec("SELECT crm.wait_synced()").await;
        assert!(
            pair.ties(contact).contains(&format!("{company}:279")),
            "round {round}"
        );
        agree(&pair, contact).await;
        let error = pair
            .db
            .error("UPDATE hubspot.contacts_companies SET to_id = from_id")
            .await;
        assert_eq!(error.code().code(), "0A000", "{error:?}");
        let delete = format!(
            "DELETE FROM hubspot.contacts_companies WHERE from_id = '{contact}' AND to_id = '{company}'"
        );
        pair.db.exec(&delete).await;
        pair.db.exec("SELECT crm.wait_synced()").await;
        assert!(
            !pair.ties(contact).contains(&format!("{company}:279")),
            "round {round}"
        );
        agree(&pair, contact).await;
    }
    let sent: String = pair
        .db
        .one("SELECT count(*) FILTER (WHERE kind = 'create') || ' ' || count(*) FILTER (WHERE kind = 'delete') FROM crm.event WHERE source = 'result'")
        .await;
    assert_eq!(sent, "2 2", "an echo went out again");
}

/// One bad id took the whole batch with it.
#[tokio::test(flavor = "multi_thread")]
async fn an_association_with_nothing_is_parked_and_the_others_of_its_batch_arrive() {
    let pair = tied("generic").await;
    let (contacts, companies) = (ids(&pair, "contacts").await, ids(&pair, "companies").await);
    let last = companies.last().expect("a company");
    pair.db
        .exec(&format!(
            "INSERT INTO hubspot.contacts_companies (from_id, to_id) VALUES ('{}', '{last}'), ('{}', '99999999'), ('{}', '{last}')",
            contacts[0], contacts[1], contacts[2]
        ))
        .await;
    pair.db
        .wait_true(
            "the bad one is parked",
            PATIENCE,
            "SELECT count(*) = 1 FROM crm.dead_letter WHERE advice IS NOT NULL AND NOT EXISTS (SELECT FROM crm.write WHERE state <> 'dead')",
        )
        .await;
    for contact in [&contacts[0], &contacts[2]] {
        assert!(
            pair.ties(contact).contains(&format!("{last}:279")),
            "{contact}"
        );
    }
    let faulty: i64 = pair
        .db
        .one("SELECT count(*) FROM hubspot.contacts_companies WHERE _sync_state = 'error' AND to_id = '99999999'")
        .await;
    assert_eq!(faulty, 1);
}

/// A webhook that never came was an association that never was.
#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_finds_associations_that_no_event_told_of() {
    let pair = tied("generic").await;
    let (contacts, companies) = (ids(&pair, "contacts").await, ids(&pair, "companies").await);
    pair.emulator.webhooks("");
    let (added, removed) = (&contacts[1], &contacts[3]);
    let last = companies.last().expect("a company");
    pair.emulator.create(
        "hubspot",
        "contacts/companies",
        json!({"from": added, "to": last}),
    );
    for tie in pair.ties(removed) {
        let to = tie.split(':').next().expect("a company");
        pair.emulator
            .delete("hubspot", "contacts/companies", &format!("{removed}:{to}"));
    }
    assert!(pair.ties(removed).is_empty());
    pair.db
        .exec("SELECT crm.refresh('hubspot.contacts_companies')")
        .await;
    agree(&pair, added).await;
    agree(&pair, removed).await;
}

/// A mirror of ties without the records that they start from would have stayed empty without a word.
#[tokio::test(flavor = "multi_thread")]
async fn associations_without_their_records_are_refused_with_what_to_write() {
    let pair = small().await;
    let sql = "SELECT crm.import('hubspot', ARRAY['contacts_companies'], into_schema => 'hubspot')";
    let error = pair.db.error(sql).await;
    let hint = error.hint().unwrap_or_default();
    assert!(
        hint.contains("'contacts', 'contacts_companies'"),
        "{error:?}"
    );
    let made: i64 = pair.db.one("SELECT count(*) FROM crm.mirror").await;
    assert_eq!(made, 0);
}
