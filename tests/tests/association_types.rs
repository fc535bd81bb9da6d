//! Types of association changed in SQL: labels that are added, changed and removed, and the primary company that moves.

use crm_tests::{EmulatorOptions, PATIENCE, Pair, PairOptions};
use serde_json::json;

/// Labels that the account has, and their types from contact to company.
const BOSS: &str = "2000";
const BILLING: &str = "2002";

/// Contacts, companies and what ties them, live, with two labels of the account.
async fn labelled() -> Pair {
    let pair = Pair::start(PairOptions {
        emulator: EmulatorOptions::default().contacts(20),
        ..PairOptions::default()
    })
    .await;
    for (label, is) in [("Boss", BOSS), ("Billing", BILLING)] {
        let made = pair
            .emulator
            .create("hubspot", "contacts/companies", json!({"label": label}));
        assert_eq!(made["types"][0].to_string(), is, "{made}");
    }
    pair.import("hubspot", &["contacts", "companies", "contacts_companies"])
        .await;
    pair.backfilled().await;
    pair.db
        .exec("SELECT crm.go_live('hubspot.contacts_companies')")
        .await;
    pair.worker_has_read().await;
    pair
}

/// Waits until the CRM and the table hold these of a contact, as `to:type`, and nothing more.
async fn agree(pair: &Pair, contact: &str, ties: &[String]) {
    let mut ties = ties.to_vec();
    ties.sort();
    pair.db.exec("SELECT crm.wait_synced()").await;
    let what = format!("HubSpot ties contact {contact} to {ties:?}");
    pair.cluster
        .wait_until(&what, PATIENCE, async || {
            (pair.ties(contact) == ties).then_some(())
        })
        .await;
    let list: Vec<String> = ties.iter().map(|t| format!("'{t}'")).collect();
    let list = list.join(",");
    let sql = format!(
        "SELECT coalesce(array_agg(to_id || ':' || type_id ORDER BY to_id || ':' || type_id), '{{}}')
                = ARRAY(SELECT u FROM unnest(ARRAY[{list}]::text[]) u ORDER BY u)
                AND bool_and(id = concat_ws(':', from_id, to_id, category, type_id))
                AND bool_and(is_primary = (type_id = 1))
                AND bool_and(label IS NOT DISTINCT FROM CASE type_id WHEN 1 THEN 'Primary' WHEN {BOSS} THEN 'Boss' WHEN {BILLING} THEN 'Billing' END)
         FROM hubspot.contacts_companies WHERE from_id = '{contact}' AND _deleted_at IS NULL"
    );
    let what = format!("contact {contact} is tied to {list}");
    pair.db.wait_true(&what, PATIENCE, &sql).await;
    let idle = "SELECT NOT EXISTS (SELECT FROM crm.write) AND NOT EXISTS (SELECT FROM crm.review)";
    pair.db
        .wait_true("nothing is left to send", PATIENCE, idle)
        .await;
}

/// The first contact, the company that it is tied to, and one that it is not.
async fn people(pair: &Pair) -> (String, String, String) {
    let contact: String = pair
        .db
        .one("SELECT from_id FROM hubspot.contacts_companies WHERE is_primary ORDER BY _id LIMIT 1")
        .await;
    let with = |not: &str| {
        format!(
            "SELECT c.id FROM hubspot.companies c WHERE {not} EXISTS (SELECT FROM hubspot.contacts_companies a WHERE a.from_id = '{contact}' AND a.to_id = c.id) ORDER BY c._id LIMIT 1"
        )
    };
    let company = pair.db.one(&with("")).await;
    let other = pair.db.one(&with("NOT")).await;
    (contact, company, other)
}

/// Runs an UPDATE of a contact's associations that must touch one row.
async fn set(pair: &Pair, contact: &str, what: &str, of: &str) {
    let sql = format!(
        "UPDATE hubspot.contacts_companies SET {what} WHERE from_id = '{contact}' AND _deleted_at IS NULL AND {of}"
    );
    let rows = pair.db.execute(&sql, &[]).await;
    assert_eq!(rows.unwrap_or_else(|e| panic!("{sql}: {e:?}")), 1, "{sql}");
}

/// How many writes were answered, as `kind number`.
async fn sent(pair: &Pair) -> Vec<Vec<String>> {
    pair.db
        .table("SELECT kind, count(*)::text FROM crm.event WHERE source = 'result' GROUP BY 1 ORDER BY 1")
        .await
}

/// An UPDATE of a label was refused: people deleted and inserted rows, and lost the label where the second one failed.
#[tokio::test(flavor = "multi_thread")]
async fn a_label_is_added_changed_and_removed_by_update() {
    let pair = labelled().await;
    let (contact, company, _) = people(&pair).await;
    let of = |label: &str| format!("to_id = '{company}' AND label = '{label}'");
    let tied = |types: &[&str]| -> Vec<String> {
        let all = types.iter().chain(&["279", "1"]);
        all.map(|t| format!("{company}:{t}")).collect()
    };
    agree(&pair, &contact, &tied(&[])).await;
    let plain = format!("to_id = '{company}' AND label IS NULL");
    set(&pair, &contact, "label = 'Boss'", &plain).await;
    agree(&pair, &contact, &tied(&[BOSS])).await;
    set(&pair, &contact, "label = 'Billing'", &of("Boss")).await;
    agree(&pair, &contact, &tied(&[BILLING])).await;
    // Of the primary company a label is asked for: it stays the primary one.
    set(&pair, &contact, "label = 'Boss'", &of("Primary")).await;
    agree(&pair, &contact, &tied(&[BOSS, BILLING])).await;
    // It has that label already: one row stands for both.
    set(&pair, &contact, "label = 'Boss'", &of("Billing")).await;
    agree(&pair, &contact, &tied(&[BOSS])).await;
    set(&pair, &contact, "label = NULL", &of("Boss")).await;
    agree(&pair, &contact, &tied(&[])).await;
    assert_eq!(
        sent(&pair).await,
        [["create", "2"], ["delete", "3"], ["update", "3"]],
        "an echo went out again"
    );
}

/// The CRM tells of the new primary company only; the former one was shown as primary too.
#[tokio::test(flavor = "multi_thread")]
async fn the_primary_company_moves_by_update_and_the_former_one_loses_it() {
    let pair = labelled().await;
    let (contact, company, other) = people(&pair).await;
    let db = &pair.db;
    let insert = format!(
        "INSERT INTO hubspot.contacts_companies (from_id, to_id, label) VALUES ('{contact}', '{other}', NULL), ('{contact}', '{other}', 'Boss')"
    );
    db.exec(&insert).await;
    let tied = |more: &[String]| -> Vec<String> {
        let plain = [
            format!("{company}:279"),
            format!("{other}:279"),
            format!("{other}:{BOSS}"),
        ];
        plain.into_iter().chain(more.iter().cloned()).collect()
    };
    let main = |of: &str| tied(&[format!("{of}:1")]);
    agree(&pair, &contact, &main(&company)).await;
    // All rows of the pair are named: its label stays what it is.
    let all = format!(
        "UPDATE hubspot.contacts_companies SET is_primary = true WHERE from_id = '{contact}' AND to_id = '{other}'"
    );
    db.exec(&all).await;
    agree(&pair, &contact, &main(&other)).await;
    let back = format!("to_id = '{company}' AND label IS NULL");
    set(&pair, &contact, "is_primary = true", &back).await;
    agree(&pair, &contact, &main(&company)).await;
    let primary = format!("to_id = '{company}' AND is_primary");
    set(&pair, &contact, "is_primary = false", &primary).await;
    agree(&pair, &contact, &tied(&[])).await;
}

/// The answer was lost after the CRM had done it: the label was there twice, or the former one stayed.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_leaves_one_label() {
    let pair = labelled().await;
    let (contact, company, _) = people(&pair).await;
    let plain = format!("to_id = '{company}' AND label IS NULL");
    set(&pair, &contact, "label = 'Boss'", &plain).await;
    let tied = |label: &str| ["279", "1", label].map(|t| format!("{company}:{t}"));
    agree(&pair, &contact, &tied(BOSS)).await;
    let (mut is, mut becomes) = ("Boss", "Billing");
    for (path, faults) in [
        (
            "/batch/create",
            vec![
                json!({"fail_after_write": {}}),
                json!({"fail_after_write": {"status": 502}}),
                json!("close"),
            ],
        ),
        (
            "/batch/labels/archive",
            vec![json!({"fail_after_write": {}})],
        ),
    ] {
        for lost in faults {
            let path = format!("/crm/associations/2026-03/contacts/companies{path}");
            let rule =
                json!({"crm": "hubspot", "method": "POST", "path_prefix": path, "action": lost});
            pair.emulator.fault(rule);
            let of = format!("to_id = '{company}' AND label = '{is}'");
            set(&pair, &contact, &format!("label = '{becomes}'"), &of).await;
            std::mem::swap(&mut is, &mut becomes);
            let type_id = if is == "Boss" { BOSS } else { BILLING };
            agree(&pair, &contact, &tied(type_id)).await;
            pair.emulator.clear_faults();
        }
    }
}

/// A label that the CRM refuses took the one before with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_label_is_a_dead_letter_and_the_former_one_stays() {
    let pair = labelled().await;
    let (contact, company, _) = people(&pair).await;
    let plain = format!("to_id = '{company}' AND label IS NULL");
    set(&pair, &contact, "label = 'Boss'", &plain).await;
    let tied = |label: &str| ["279", "1", label].map(|t| format!("{company}:{t}"));
    agree(&pair, &contact, &tied(BOSS)).await;
    let boss = format!("to_id = '{company}' AND label = 'Boss'");
    set(&pair, &contact, "type_id = 4711", &boss).await;
    let dead =
        "SELECT count(*) = 1 FROM crm.dead_letter WHERE advice <> '' AND error LIKE '%4711%'";
    pair.db
        .wait_true("it is a dead letter", PATIENCE, dead)
        .await;
    let mut still = tied(BOSS);
    still.sort();
    assert_eq!(pair.ties(&contact), still);
    let shown: i64 = pair
        .db
        .one("SELECT count(*) FROM hubspot.contacts_companies WHERE _sync_state = 'error' AND type_id = 4711")
        .await;
    assert_eq!(shown, 1);
    // Repaired by another edit.
    set(&pair, &contact, "label = 'Billing'", "type_id = 4711").await;
    agree(&pair, &contact, &tied(BILLING)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_association_can_become_is_refused_with_what_to_write() {
    let pair = labelled().await;
    let (contact, company, other) = people(&pair).await;
    let row = format!("WHERE from_id = '{contact}' AND to_id = '{company}' AND label IS NULL");
    for (set, state, says) in [
        (format!("to_id = '{other}'"), "0A000", "INSERT"),
        ("label = 'Nobody'".to_owned(), "22023", "schema_refresh"),
        (
            "label = 'Boss', is_primary = true".to_owned(),
            "22023",
            "one of",
        ),
        ("id = 'x'".to_owned(), "428C9", "record id"),
    ] {
        let sql = format!("UPDATE hubspot.contacts_companies SET {set} {row}");
        let error = pair.db.error(&sql).await;
        assert_eq!(error.code().code(), state, "{sql}: {error:?}");
        let hint = error.hint().unwrap_or_default();
        assert!(hint.contains(says), "{sql}: {error:?}");
    }
    // Who may not insert rows makes none by an UPDATE either.
    pair.db
        .exec("CREATE ROLE editor; GRANT USAGE ON SCHEMA hubspot TO editor; GRANT SELECT, UPDATE ON hubspot.contacts_companies TO editor")
        .await;
    let sql = format!(
        "SET ROLE editor; UPDATE hubspot.contacts_companies SET label = 'Boss' {row}; RESET ROLE"
    );
    let error = pair
        .db
        .batch_execute(&sql)
        .await
        .expect_err("editor may not");
    assert_eq!(
        error.code().map(tokio_postgres::error::SqlState::code),
        Some("42501"),
        "{error:?}"
    );
    pair.db.exec("RESET ROLE; DROP OWNED BY editor").await;
    let writes: i64 = pair.db.one("SELECT count(*) FROM crm.write").await;
    assert_eq!(writes, 0);
    // A table that is no mirror any more is like any other.
    pair.db
        .exec("SELECT crm.mirror_drop('hubspot.contacts_companies', false)")
        .await;
    let free = format!("UPDATE hubspot.contacts_companies SET label = 'Nobody', to_id = '1' {row}");
    pair.db.exec(&free).await;
}
