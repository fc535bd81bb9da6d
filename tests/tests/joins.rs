//! Records that become one thing, whenever that happens: made on both sides at once, matched later, or changed on both
//! sides before the link went live. What one side alone knows reaches the other; of two values one stands, everywhere.

use crm_tests::{EmulatorOptions, PATIENCE, Pair, PairOptions, Person};
use serde_json::json;

fn options() -> PairOptions {
    PairOptions {
        emulator: EmulatorOptions::default().contacts(20),
        ..PairOptions::default()
    }
}

/// Waits until both records hold these values; fields by HubSpot's name.
async fn both_hold(pair: &Pair, who: &Person, values: &[(&str, &str)]) {
    for (field, value) in values {
        pair.reaches_both(who, field, value).await;
    }
    pair.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_made_on_both_sides_is_one_also_while_the_first_record_is_still_being_read() {
    let pair = Pair::contacts(options()).await;
    let records = pair.live("salesforce", "Contact");
    // Salesforce has told of its record; what stands in it takes a while.
    pair.emulator.fault(json!({
        "crm": "salesforce", "method": "POST", "path_prefix": "/services/data/v62.0/composite/sobjects/Contact", "remaining": 3,
        "action": {"hold": {"ms": 1_500}},
    }));
    let email = "both@example.com";
    let salesforce = pair.create(
        "salesforce",
        "Contact",
        json!({"Email": email, "LastName": "King", "Phone": "+44 1"}),
    );
    let told = "SELECT count(*) > 0 FROM crm.deferred WHERE change -> 'kind' ->> 'kind' = 'create'";
    pair.db
        .wait_true("the record is to be read", PATIENCE, told)
        .await;
    let hubspot = pair.create(
        "hubspot",
        "contacts",
        json!({"email": email, "lastname": "King", "jobtitle": "Poet"}),
    );
    let who = Person {
        hubspot,
        salesforce,
        email: email.to_owned(),
    };
    both_hold(&pair, &who, &[("jobtitle", "Poet"), ("phone", "+44 1")]).await;
    assert_eq!(pair.live("salesforce", "Contact"), records + 1, "no second");
    let asked: i64 = pair.db.one("SELECT count(*) FROM crm.review").await;
    assert_eq!(asked, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_made_on_the_other_side_while_our_create_waits_becomes_the_same_one() {
    let pair = Pair::contacts(options()).await;
    let records = pair.live("salesforce", "Contact");
    let busy = json!({"reject": {"status": 200, "body": [{"success": false, "errors": [
        {"statusCode": "UNABLE_TO_LOCK_ROW", "message": "unable to obtain exclusive access", "fields": []},
    ]}]}});
    pair.emulator.fault(json!({"rules": [
        {"crm": "salesforce", "method": "PATCH", "path_prefix": "/services/data", "remaining": 20, "action": busy},
    ]}));
    let email = "met@example.com";
    let hubspot = pair.create(
        "hubspot",
        "contacts",
        json!({"email": email, "lastname": "King", "jobtitle": "Poet"}),
    );
    pair.db
        .wait_true(
            "our create was put off",
            PATIENCE,
            "SELECT count(*) = 1 FROM crm.write WHERE kind = 'create' AND state = 'queued' AND attempts > 0",
        )
        .await;
    let salesforce = pair.create(
        "salesforce",
        "Contact",
        json!({"Email": email, "LastName": "King", "Phone": "+44 1"}),
    );
    let who = Person {
        hubspot,
        salesforce,
        email: email.to_owned(),
    };
    pair.db
        .wait_true(
            "the create is withdrawn",
            PATIENCE,
            "SELECT count(*) = 0 FROM crm.write WHERE kind = 'create'",
        )
        .await;
    pair.emulator.clear_faults();
    both_hold(&pair, &who, &[("jobtitle", "Poet"), ("phone", "+44 1")]).await;
    assert_eq!(pair.live("salesforce", "Contact"), records + 1, "no second");
    let asked: i64 = pair.db.one("SELECT count(*) FROM crm.review").await;
    assert_eq!(asked, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_record_and_the_one_that_it_matches_tell_each_other_what_they_know() {
    let pair = Pair::contacts(options()).await;
    let lone = "SELECT s.id, s.email FROM salesforce.contact s
                WHERE NOT EXISTS (SELECT FROM hubspot.contacts h WHERE lower(h.email) = lower(s.email)) ORDER BY s._id LIMIT 1";
    let lone = pair.db.table(lone).await.concat();
    pair.emulator.edit(
        "salesforce",
        "Contact",
        &lone[0],
        json!({"Phone": "+44 2", "Title": "Actuary"}),
    );
    let seen = format!(
        "SELECT phone = '+44 2' FROM salesforce.contact WHERE id = '{}'",
        lone[0]
    );
    pair.db.wait_true("its edit is seen", PATIENCE, &seen).await;
    pair.db
        .exec("UPDATE crm.conflict_policy SET skew = '0'")
        .await;
    pair.worker_has_read().await;
    let made = pair
        .db
        .table("SELECT 1 FROM hubspot.contacts WHERE jobtitle = 'Actuary'")
        .await;
    if !made.is_empty() {
        // The edit made a counterpart already: nothing is left to match.
        return;
    }
    let hubspot = pair.create(
        "hubspot",
        "contacts",
        json!({"email": lone[1], "lastname": "King", "mobilephone": "+44 3", "jobtitle": "Poet"}),
    );
    let who = Person {
        hubspot,
        salesforce: lone[0].clone(),
        email: lone[1].clone(),
    };
    let known = [
        ("mobilephone", "+44 3"),
        ("phone", "+44 2"),
        ("jobtitle", "Poet"),
    ];
    pair.quiet().await;
    both_hold(&pair, &who, &known).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_with_the_email_of_another_record_asks_and_overwrites_nobody() {
    let (pair, people) = Pair::linked(5, PairOptions::default()).await;
    let who = &people[0];
    let name = pair.shows("hubspot", who, "lastname");
    let email: String = pair
        .db
        .one(&format!(
            "SELECT email FROM hubspot.contacts WHERE id = '{}'",
            who.hubspot
        ))
        .await;
    pair.db
        .exec(&format!(
            "INSERT INTO hubspot.contacts (email, lastname) VALUES ('{email}', 'Overwriter')"
        ))
        .await;
    let asked =
        "SELECT count(*) = 1 FROM crm.review WHERE kind = 'create' AND mirror = 'hubspot.contacts'";
    pair.db
        .wait_true("a person is asked", PATIENCE, asked)
        .await;
    assert_eq!(pair.shows("hubspot", who, "lastname"), name);
    assert_eq!(pair.shows("salesforce", who, "lastname"), name);
    let advice = "SELECT advice FROM crm.why('hubspot.contacts', (SELECT _id FROM hubspot.contacts WHERE lastname = 'Overwriter')) WHERE item = 'outbox'";
    let advice: String = pair.db.one(advice).await;
    assert!(advice.contains("crm.resolve_create"), "{advice}");
    let kept = "SELECT count(*) FROM hubspot.contacts WHERE lastname = 'Overwriter' AND id IS NULL";
    assert_eq!(pair.db.one::<i64>(kept).await, 1);
}

/// A pair in shadow, and somebody whom both know.
async fn shadow() -> (Pair, Person) {
    let pair = Pair::start(options()).await;
    pair.import("hubspot", &["contacts"]).await;
    pair.import("salesforce", &["Contact"]).await;
    pair.backfilled().await;
    pair.db
        .exec(
            "SELECT crm.link('hubspot.contacts', 'salesforce.contact');
             UPDATE crm.conflict_policy SET skew = '0';
             SELECT crm._match('contacts')",
        )
        .await;
    pair.worker_has_read().await;
    let who = pair.people().await.remove(0);
    (pair, who)
}

async fn shown(pair: &Pair, mirror: &str, text: &str) {
    let sql = format!(
        "SELECT count(*) = 1 FROM crm.outbox WHERE state = 'would_send' AND mirror = '{mirror}' AND send::text LIKE '%{text}%'"
    );
    pair.db
        .wait_true("the write is shown", PATIENCE, &sql)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_that_leave_the_shadow_are_waited_for_like_any_other() {
    let (pair, who) = shadow().await;
    pair.edit("hubspot", &who, "city", "Bath");
    shown(&pair, "salesforce.contact", "Bath").await;
    pair.db
        .exec("SELECT crm.pause('server', 'salesforce'); SELECT crm.go_live('contacts')")
        .await;
    let stands = format!(
        "SELECT s.mailingcity = 'Bath' AND w.state = 'queued'
            AND f.state @? '$.sides[*].sent[*] ? (@.value == \"Bath\" && @.sent == \"queued\")'
         FROM salesforce.contact s JOIN crm.write w ON w.row_id = s._id AND w.record_id = s.id
         JOIN crm.field_state f ON f.entity = w.entity AND f.field = 'city' WHERE s.id = '{}'",
        who.salesforce
    );
    pair.db
        .wait_true("row, write and state agree", PATIENCE, &stands)
        .await;
    pair.db
        .exec("SELECT crm.resume('server', 'salesforce')")
        .await;
    both_hold(&pair, &who, &[("city", "Bath")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_changed_in_the_shadow_are_one_conflict_not_an_exchange_of_values() {
    let (pair, who) = shadow().await;
    pair.edit("hubspot", &who, "city", "Bath");
    shown(&pair, "salesforce.contact", "Bath").await;
    pair.edit("salesforce", &who, "city", "Wells");
    shown(&pair, "hubspot.contacts", "Wells").await;
    pair.db.exec("SELECT crm.go_live('contacts')").await;
    both_hold(&pair, &who, &[("city", "Wells")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_restored_while_its_successor_waits_to_be_made_takes_its_place() {
    let pair = Pair::contacts(options()).await;
    let email = "twice@example.com";
    let old = json!({"email": email, "lastname": "King", "jobtitle": "Poet"});
    let gone = pair.create("hubspot", "contacts", old);
    let there =
        format!("SELECT id FROM salesforce.contact WHERE email = '{email}' AND id IS NOT NULL");
    pair.db
        .wait_true(
            "its counterpart",
            PATIENCE,
            &format!("SELECT EXISTS ({there})"),
        )
        .await;
    let restored: String = pair.db.one(&there).await;
    pair.emulator.delete("hubspot", "contacts", &gone);
    pair.emulator.delete("salesforce", "Contact", &restored);
    let removed = "SELECT count(*) = 2 FROM (SELECT _deleted_at FROM hubspot.contacts WHERE email = 'twice@example.com'
        UNION ALL SELECT _deleted_at FROM salesforce.contact WHERE email = 'twice@example.com') x WHERE _deleted_at IS NOT NULL";
    pair.db.wait_true("both are gone", PATIENCE, removed).await;
    let records = pair.live("salesforce", "Contact");
    // Salesforce takes no new record for a while.
    let busy = json!({"reject": {"status": 200, "body": [{"success": false, "errors": [
        {"statusCode": "UNABLE_TO_LOCK_ROW", "message": "unable to obtain exclusive access", "fields": []},
    ]}]}});
    pair.emulator.fault(json!({"rules": [
        {"crm": "salesforce", "method": "PATCH", "path_prefix": "/services/data", "remaining": 20, "action": busy},
    ]}));
    let hubspot = pair.create(
        "hubspot",
        "contacts",
        json!({"email": email, "lastname": "King", "phone": "+44 1"}),
    );
    let waits = "SELECT count(*) = 1 FROM crm.write WHERE kind = 'create' AND state = 'queued' AND attempts > 0";
    pair.db.wait_true("our create waits", PATIENCE, waits).await;
    pair.deed(
        "salesforce",
        "restore",
        json!({"object": "Contact", "id": restored}),
    );
    let withdrawn = "SELECT count(*) = 0 FROM crm.write WHERE kind = 'create'";
    pair.db
        .wait_true("the create is withdrawn", PATIENCE, withdrawn)
        .await;
    pair.emulator.clear_faults();
    let who = Person {
        hubspot,
        salesforce: restored,
        email: email.to_owned(),
    };
    both_hold(&pair, &who, &[("jobtitle", "Poet"), ("phone", "+44 1")]).await;
    assert_eq!(pair.live("salesforce", "Contact"), records + 1, "no second");
    let asked: i64 = pair.db.one("SELECT count(*) FROM crm.review").await;
    assert_eq!(asked, 0);
}
