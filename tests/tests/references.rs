//! Who belongs to whom, in both CRMs: HubSpot's associations are Salesforce's reference fields.

use crm_tests::references::{another_company, counterpart, people, start, tied};
use crm_tests::{PATIENCE, Pair};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn the_main_company_is_the_account_whoever_moves_it() {
    let pair = people(30).await;
    let (ours, theirs) = pair.known_to_both().await;
    let (company, account) = another_company(&pair, &ours).await;
    pair.emulator.create(
        "hubspot",
        "contacts/companies",
        json!({"from": ours, "to": company, "type": 1}),
    );
    pair.reaches("salesforce", "Contact", &theirs, "AccountId", &account)
        .await;
    pair.quiet().await;
    let (company, account) = another_company(&pair, &ours).await;
    pair.emulator.edit(
        "salesforce",
        "Contact",
        &theirs,
        json!({"AccountId": account}),
    );
    tied(&pair, "contacts/companies", (&ours, &company), 1, true).await;
    pair.quiet().await;
    pair.emulator
        .edit("salesforce", "Contact", &theirs, json!({"AccountId": null}));
    tied(&pair, "contacts/companies", (&ours, &company), 1, false).await;
    pair.quiet().await;
    let after = pair
        .emulator
        .field("salesforce", "Contact", &theirs, "AccountId");
    assert_eq!(after, None, "what went over does not come back");
    // The flag of the pair's row, set and taken away in SQL.
    pair.db
        .exec(&format!(
            "INSERT INTO hubspot.contacts_companies (from_id, to_id) VALUES ('{ours}', '{company}')"
        ))
        .await;
    tied(&pair, "contacts/companies", (&ours, &company), 279, true).await;
    for (flag, of) in [(true, "label IS NULL"), (false, "is_primary")] {
        let set = format!(
            "UPDATE hubspot.contacts_companies SET is_primary = {flag} WHERE from_id = '{ours}' AND to_id = '{company}' AND {of} AND _deleted_at IS NULL"
        );
        pair.db.exec(&set).await;
        tied(&pair, "contacts/companies", (&ours, &company), 1, flag).await;
        let field = || {
            pair.emulator
                .field("salesforce", "Contact", &theirs, "AccountId")
        };
        let what = format!("the Account follows the flag {flag}");
        pair.cluster
            .wait_until(&what, PATIENCE, async || {
                (field() == flag.then(|| account.clone())).then_some(())
            })
            .await;
        pair.quiet().await;
        let rest = "SELECT NOT EXISTS (SELECT FROM crm.reference_due)";
        pair.db.wait_true("nothing is due", PATIENCE, rest).await;
    }
    let left: i64 = pair.db.one("SELECT count(*) FROM crm.reference_due").await;
    assert_eq!(left, 0);
}

/// Each side's change undid that of the other for ever: both were planned before either was made.
#[tokio::test(flavor = "multi_thread")]
async fn a_reference_that_changes_on_both_sides_at_once_comes_to_rest() {
    let pair = people(30).await;
    let (ours, theirs) = pair.known_to_both().await;
    let (company, account) = another_company(&pair, &ours).await;
    let rest = "SELECT NOT EXISTS (SELECT FROM crm.reference_due)";
    for _ in 0..3 {
        pair.emulator.edit(
            "salesforce",
            "Contact",
            &theirs,
            json!({"AccountId": account}),
        );
        tied(&pair, "contacts/companies", (&ours, &company), 1, true).await;
        pair.db.wait_true("nothing is due", PATIENCE, rest).await;
        pair.quiet().await;
        let before: i64 = pair.db.one("SELECT count(*) FROM crm.event").await;
        let both = format!(
            "DELETE FROM hubspot.contacts_companies WHERE from_id = '{ours}' AND to_id = '{company}' AND is_primary AND _deleted_at IS NULL;
             UPDATE salesforce.contact SET accountid = NULL WHERE id = '{theirs}';
             UPDATE salesforce.contact SET accountid = '{account}' WHERE id = '{theirs}'"
        );
        pair.db.exec(&both).await;
        // Which of the two stands is not said; that they are one is.
        crm_tests::wait_until("both sides say the same", PATIENCE, async || {
            pair.db.wait_true("nothing is due", PATIENCE, rest).await;
            pair.quiet().await;
            let all = pair
                .emulator
                .record("hubspot", "contacts--companies", &ours);
            let types = all[&company].as_array().cloned().unwrap_or_default();
            let main = types.iter().any(|t| *t == 1);
            let held = pair
                .emulator
                .field("salesforce", "Contact", &theirs, "AccountId");
            (main == (held.as_ref() == Some(&account))).then_some(())
        })
        .await;
        let lines: i64 = pair.db.one("SELECT count(*) FROM crm.event").await;
        assert!(
            lines - before < 40,
            "{} lines of the ledger",
            lines - before
        );
    }
}

/// Between the answer to our write and what HubSpot told of it, the pair was in no row, and the field was emptied for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_company_that_is_the_main_one_again_is_not_taken_for_untied() {
    let pair = people(30).await;
    let (ours, theirs) = pair.known_to_both().await;
    let mut been = Vec::new();
    for _ in 0..2 {
        let (company, account) = another_company(&pair, &ours).await;
        pair.emulator.edit(
            "salesforce",
            "Contact",
            &theirs,
            json!({"AccountId": account}),
        );
        tied(&pair, "contacts/companies", (&ours, &company), 1, true).await;
        pair.quiet().await;
        been.push((company, account));
    }
    pair.emulator
        .fault(json!({"stream": "webhook", "delay_ms": 1500}));
    let (company, account) = &been[0];
    let before = pair.events("webhook").await;
    pair.emulator.edit(
        "salesforce",
        "Contact",
        &theirs,
        json!({"AccountId": account}),
    );
    tied(&pair, "contacts/companies", (&ours, company), 1, true).await;
    pair.events_reach("webhook", before + 1).await;
    pair.quiet().await;
    let told = "SELECT count(*) FROM crm.event WHERE source = 'sql' AND 'AccountId' = ANY (fields)";
    assert_eq!(
        pair.db.one::<i64>(told).await,
        0,
        "nobody wrote the field but Salesforce"
    );
    let after = pair
        .emulator
        .field("salesforce", "Contact", &theirs, "AccountId");
    assert_eq!(after.as_deref(), Some(account.as_str()));
}

/// A record was made with a reference to one that was not there yet, and lost it.
#[tokio::test(flavor = "multi_thread")]
async fn records_that_are_new_with_their_company_are_tied_when_both_are_there() {
    let pair = people(30).await;
    let company = pair.emulator.create(
        "hubspot",
        "companies",
        json!({"name": "New Mill", "domain": "new-mill.example"}),
    );
    let contact = pair.emulator.create(
        "hubspot",
        "contacts",
        json!({"lastname": "Miller", "email": "miller@new-mill.example"}),
    );
    let (company, contact) = (
        company["id"].as_str().expect("id"),
        contact["id"].as_str().expect("id"),
    );
    pair.emulator.create(
        "hubspot",
        "contacts/companies",
        json!({"from": contact, "to": company, "type": 1}),
    );
    let account = counterpart(&pair, "hubspot.companies", company, "salesforce.account").await;
    let theirs = counterpart(&pair, "hubspot.contacts", contact, "salesforce.contact").await;
    pair.reaches("salesforce", "Contact", &theirs, "AccountId", &account)
        .await;
    let account = pair.emulator.create(
        "salesforce",
        "Account",
        json!({"Name": "Old Mill", "Website": "https://old-mill.example"}),
    );
    let account = account["id"]
        .as_str()
        .or(account["Id"].as_str())
        .expect("id")
        .to_owned();
    let theirs = pair.emulator.create(
        "salesforce",
        "Contact",
        json!({"LastName": "Sawyer", "Email": "sawyer@old-mill.example", "AccountId": account}),
    );
    let theirs = theirs["id"]
        .as_str()
        .or(theirs["Id"].as_str())
        .expect("id")
        .to_owned();
    let row = format!("SELECT EXISTS (SELECT FROM salesforce.contact WHERE id = '{theirs}')");
    pair.db.wait_true("it arrived", PATIENCE, &row).await;
    let company = counterpart(&pair, "salesforce.account", &account, "hubspot.companies").await;
    let ours = counterpart(&pair, "salesforce.contact", &theirs, "hubspot.contacts").await;
    tied(&pair, "contacts/companies", (&ours, &company), 1, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reference_to_a_record_without_counterpart_waits_and_says_so() {
    let pair = people(30).await;
    pair.db
        .exec("UPDATE crm.link SET create_right = false WHERE name = 'companies'")
        .await;
    pair.worker_has_read().await;
    let (ours, theirs) = pair.known_to_both().await;
    let company = pair.emulator.create(
        "hubspot",
        "companies",
        json!({"name": "Late", "domain": "late.example"}),
    );
    let company = company["id"].as_str().expect("id");
    pair.emulator.create(
        "hubspot",
        "contacts/companies",
        json!({"from": ours, "to": company, "type": 1}),
    );
    let told = format!(
        "SELECT count(*) > 0 FROM crm.why('hubspot.contacts', '{ours}') WHERE item = 'reference' AND detail LIKE '%{company}%'"
    );
    pair.db
        .wait_true("crm.why says what is missing", PATIENCE, &told)
        .await;
    // Two days later it is looked for less often, and not forgotten.
    pair.db
        .exec(
            "UPDATE crm.reference_due SET at = at - interval '2 days', next_at = clock_timestamp()",
        )
        .await;
    let rare = "SELECT count(*) = 1 AND bool_and(next_at > now() + interval '50 minutes') FROM crm.reference_due";
    pair.db
        .wait_true("looked for every hour", PATIENCE, rare)
        .await;
    let account = pair.emulator.create(
        "salesforce",
        "Account",
        json!({"Name": "Late", "Website": "https://late.example"}),
    );
    let account = account["id"]
        .as_str()
        .or(account["Id"].as_str())
        .expect("id");
    counterpart(&pair, "hubspot.companies", company, "salesforce.account").await;
    pair.db
        .exec("UPDATE crm.reference_due SET next_at = clock_timestamp()")
        .await;
    pair.reaches("salesforce", "Contact", &theirs, "AccountId", account)
        .await;
}

/// One Task of Salesforce is about one person; HubSpot's task may be about several.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_about_somebody_in_both_crms() {
    let pair = start(30).await;
    pair.import("hubspot", &["contacts", "tasks", "tasks_contacts"])
        .await;
    pair.import("salesforce", &["Contact", "Task"]).await;
    pair.backfilled().await;
    pair.db
        .exec(
            "SELECT crm.link('hubspot.contacts', 'salesforce.contact'); SELECT crm.link('hubspot.tasks', 'salesforce.task');
             SELECT crm.go_live('contacts'); SELECT crm.go_live('tasks'); SELECT crm.go_live('hubspot.tasks_contacts')",
        )
        .await;
    let added = pair
        .db
        .table("SELECT association, field, parent FROM crm.link_references('tasks')")
        .await;
    assert_eq!(added, [["hubspot.tasks_contacts", "WhoId", "contacts"]]);
    pair.worker_has_read().await;
    let (ours, theirs) = pair.known_to_both().await;
    let task = pair.emulator.create(
        "hubspot",
        "tasks",
        json!({"hs_task_subject": "Ring up", "hs_timestamp": "2027-01-31T12:00:00Z", "hs_task_status": "NOT_STARTED"}),
    );
    let task = task["id"].as_str().expect("id");
    pair.emulator.create(
        "hubspot",
        "tasks/contacts",
        json!({"from": task, "to": ours}),
    );
    let there = counterpart(&pair, "hubspot.tasks", task, "salesforce.task").await;
    pair.reaches("salesforce", "Task", &there, "WhoId", &theirs)
        .await;
    pair.quiet().await;
    pair.emulator
        .edit("salesforce", "Task", &there, json!({"WhoId": null}));
    tied(&pair, "tasks/contacts", (task, &ours), 204, false).await;
    pair.quiet().await;
    pair.db
        .exec(&format!(
            "UPDATE salesforce.task SET whoid = '{theirs}' WHERE id = '{there}'"
        ))
        .await;
    tied(&pair, "tasks/contacts", (task, &ours), 204, true).await;
}

/// What a map put on the tables went with it, or every later change of them would have failed.
#[tokio::test(flavor = "multi_thread")]
async fn a_map_leaves_nothing_behind_when_its_link_or_its_associations_go() {
    let pair = people(30).await;
    let triggers = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'crm_reference_%'";
    assert_eq!(pair.db.one::<i64>(triggers).await, 4);
    pair.db
        .exec("SELECT crm.mirror_drop('hubspot.contacts_companies')")
        .await;
    let maps = "SELECT count(*) FROM crm.reference_map";
    assert_eq!(pair.db.one::<i64>(maps).await, 0);
    assert_eq!(pair.db.one::<i64>(triggers).await, 0);
    pair.import("hubspot", &["contacts_companies"]).await;
    pair.backfilled().await;
    let added = pair
        .db
        .table("SELECT field FROM crm.link_references('contacts')")
        .await;
    assert_eq!(added, [["AccountId"]]);
    assert_eq!(pair.db.one::<i64>(triggers).await, 4);
    let again = pair
        .db
        .table("SELECT field FROM crm.link_references('contacts')")
        .await;
    assert!(again.is_empty(), "{again:?}");
    pair.db.exec("SELECT crm.unlink('companies')").await;
    assert_eq!(pair.db.one::<i64>(maps).await, 0);
    assert_eq!(pair.db.one::<i64>(triggers).await, 0);
    let (_, theirs) = pair.known_to_both().await;
    pair.db
        .exec(&format!(
            "UPDATE salesforce.contact SET accountid = NULL WHERE id = '{theirs}'"
        ))
        .await;
}

/// Waits until an Account that is set in Salesforce, in the field of this name, is the main company of HubSpot.
async fn still_follows(pair: &Pair, (ours, theirs): (&str, &str), field: &str) {
    let sql = format!(
        "SELECT c.id FROM hubspot.companies c JOIN crm.xref a ON a.row_id = c._id AND a.mirror = (SELECT left_mirror FROM crm.link WHERE name = 'companies')
         WHERE NOT EXISTS (SELECT FROM hubspot.contacts_companies x WHERE x.from_id = '{ours}' AND x.to_id = c.id AND x.is_primary AND x._deleted_at IS NULL)
         ORDER BY c._id LIMIT 1"
    );
    let company: String = pair.db.one(&sql).await;
    let account = counterpart(pair, "hubspot.companies", &company, "salesforce.account").await;
    pair.emulator
        .edit("salesforce", "Contact", theirs, json!({field: account}));
    tied(pair, "contacts/companies", (ours, &company), 1, true).await;
    pair.quiet().await;
}

/// A field that got another name or type in Salesforce, or a column that got one here, was carried over no more, without a word.
#[tokio::test(flavor = "multi_thread")]
async fn a_map_follows_its_field_to_another_name_and_type() {
    let pair = people(30).await;
    let (ours, theirs) = pair.known_to_both().await;
    let who = (ours.as_str(), theirs.as_str());
    still_follows(&pair, who, "AccountId").await;
    pair.db
        .exec("ALTER TABLE salesforce.contact RENAME COLUMN accountid TO account")
        .await;
    still_follows(&pair, who, "AccountId").await;
    pair.db
        .exec("SELECT crm.schema_policy('salesforce.contact', 'add')")
        .await;
    let administer = async |change: serde_json::Value| {
        let body = json!({"object": "Contact", "fields": change});
        pair.emulator
            .admin("POST", "/_admin/salesforce/schema", Some(&body));
        pair.db
            .exec("SELECT crm.schema_refresh('salesforce')")
            .await;
    };
    administer(json!({"do": "rename", "name": "AccountId", "to": "Firm__c"})).await;
    let map = "SELECT count(*) = 1 FROM crm.reference_map WHERE field = 'Firm__c'";
    pair.db.wait_true("the map follows", PATIENCE, map).await;
    still_follows(&pair, who, "Firm__c").await;
    for (type_, column) in [("double", "numeric"), ("string", "text")] {
        administer(json!({"do": "retype", "name": "Firm__c", "type": type_})).await;
        pair.db
            .exec("SELECT crm.schema_answer(id, 'apply') FROM crm.schema_change WHERE state = 'asked'")
            .await;
        let applied = format!(
            "SELECT bool_and(state = 'applied') AND (SELECT format_type(atttypid, atttypmod) = '{column}' FROM pg_attribute
               WHERE attrelid = 'salesforce.contact'::regclass AND attname = 'account') FROM crm.schema_change"
        );
        let what = format!("the column is {column}");
        pair.db.wait_true(&what, PATIENCE, &applied).await;
    }
    still_follows(&pair, who, "Firm__c").await;
}
