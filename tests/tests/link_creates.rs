//! New people: each appears once on the other side, whatever happens to the answer, to the order of events, or to the
//! property of ours that makes creates repeatable; and what nobody can decide is asked, not guessed.

use crm_tests::{EmulatorOptions, PATIENCE, Pair, PairOptions, wait_until};
use serde_json::{Value, json};

async fn contacts(emulator: EmulatorOptions) -> Pair {
    Pair::contacts(PairOptions {
        emulator: emulator.contacts(20),
        ..PairOptions::default()
    })
    .await
}

/// How many live records of one address there are in a CRM itself.
fn in_crm(pair: &Pair, crm: &str, email: &str) -> usize {
    live(pair, crm, email).len()
}

fn live(pair: &Pair, crm: &str, email: &str) -> Vec<Value> {
    let (object, field) = match crm {
        "hubspot" => ("contacts", "email"),
        _ => ("Contact", "Email"),
    };
    let path = format!("/_admin/{crm}/objects/{object}?limit=1000");
    let answer = pair.emulator.admin("GET", &path, None);
    let list = ["results", "records", "objects"]
        .iter()
        .find_map(|k| answer[k].as_array())
        .unwrap_or_else(|| panic!("no list in {answer}"));
    let live = list.iter().filter(|r| {
        let gone = r["archived"] == true || r["IsDeleted"] == true || r["deleted"] == true;
        let value = ["properties", "fields"]
            .iter()
            .map(|p| &r[p][field])
            .find(|v| v.is_string())
            .unwrap_or(&r[field]);
        !gone
            && value
                .as_str()
                .is_some_and(|v| v.eq_ignore_ascii_case(email))
    });
    live.cloned().collect()
}

/// Waits until nothing is on its way and nothing moved for a while.
async fn quiet(pair: &Pair) {
    let settled = "SELECT NOT EXISTS (SELECT FROM crm.write WHERE state IN ('queued', 'in_flight', 'unknown'))
        AND NOT EXISTS (SELECT FROM crm.deferred) AND NOT EXISTS (SELECT FROM crm.change_0) AND NOT EXISTS (SELECT FROM crm.change_1)";
    let (mut last, mut same) = (0, 0);
    pair.cluster
        .wait_until("nothing is on its way", PATIENCE, async || {
            let idle: bool = pair.db.one(settled).await;
            let events: i64 = pair
                .db
                .one("SELECT coalesce(sum(events + duplicates), 0)::bigint + (SELECT count(*) FROM crm.event) FROM crm.stream")
                .await;
            same = if idle && events == last { same + 1 } else { 0 };
            last = events;
            (same >= 40).then_some(())
        })
        .await;
}

/// Waits until an address is one tied pair whose both records exist.
async fn one_pair(pair: &Pair, email: &str) {
    let sql = format!(
        "SELECT count(*) = 1 FROM hubspot.contacts h
         JOIN crm.xref a ON a.row_id = h._id AND a.mirror = (SELECT id FROM crm.mirror WHERE object = 'contacts')
         JOIN crm.xref b ON b.entity = a.entity AND b.mirror = (SELECT id FROM crm.mirror WHERE object = 'Contact')
         JOIN salesforce.contact s ON s._id = b.row_id
         WHERE h.email = '{email}' AND s.email = '{email}' AND h.id IS NOT NULL AND s.id IS NOT NULL"
    );
    pair.db
        .wait_true(&format!("{email} is one pair"), PATIENCE, &sql)
        .await;
    quiet(pair).await;
    for crm in ["hubspot", "salesforce"] {
        assert_eq!(in_crm(pair, crm, email), 1, "{email} in {crm}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_person_appears_on_the_other_side_exactly_once() {
    let pair = contacts(EmulatorOptions::default()).await;
    pair.create_person("hubspot", "left@example.com");
    pair.create_person("salesforce", "right@example.com");
    one_pair(&pair, "left@example.com").await;
    one_pair(&pair, "right@example.com").await;
    pair.db
        .exec("INSERT INTO hubspot.contacts (email, lastname) VALUES ('sql@example.com', 'King')")
        .await;
    let said: String = pair.db.one("SELECT crm.wait_synced()").await;
    assert!(said.starts_with("confirmed"), "{said}");
    one_pair(&pair, "sql@example.com").await;
}

/// Marketing and sales type in the same visiting card. Where a CRM ends up with two records, somebody is asked.
#[tokio::test(flavor = "multi_thread")]
async fn one_person_typed_in_on_both_sides_at_once_is_not_multiplied() {
    let pair = contacts(EmulatorOptions::default()).await;
    for (n, first) in ["hubspot", "salesforce"]
        .into_iter()
        .cycle()
        .take(6)
        .enumerate()
    {
        let second = if first == "hubspot" {
            "salesforce"
        } else {
            "hubspot"
        };
        let email = format!("both{n}@example.com");
        pair.create_person(first, &email);
        tokio::time::sleep(std::time::Duration::from_millis(40 * (n as u64 / 2))).await;
        if second == "salesforce" {
            pair.create_person(second, &email);
        } else {
            // HubSpot itself refuses a second record of one address.
            let who = json!({"email": email, "firstname": "Ada", "lastname": "King"});
            pair.emulator
                .create_unless_there("hubspot", "contacts", &who);
        }
    }
    quiet(&pair).await;
    for n in 0..6 {
        let email = format!("both{n}@example.com");
        let (left, right) = (
            in_crm(&pair, "hubspot", &email),
            in_crm(&pair, "salesforce", &email),
        );
        let asked: i64 = pair
            .db
            .one(&format!(
                "SELECT count(*) FROM crm.review r WHERE r.row_id IN (SELECT _id FROM hubspot.contacts WHERE email = '{email}')
                    OR r.row_id IN (SELECT _id FROM salesforce.contact WHERE email = '{email}')"
            ))
            .await;
        assert_eq!(left, 1, "{email} in HubSpot");
        assert!(
            right == 1 || (right == 2 && asked > 0),
            "{email}: {right} in Salesforce, {asked} questions"
        );
    }
}

fn lost_answers(pair: &Pair) {
    pair.emulator.fault(json!({"rules": [
        {"crm": "hubspot", "method": "POST", "path_prefix": "/crm/", "action": {"fail_after_write": {}}},
        {"crm": "salesforce", "method": "POST", "path_prefix": "/services/data", "action": {"fail_after_write": {}}},
        {"crm": "salesforce", "method": "PATCH", "path_prefix": "/services/data", "action": {"fail_after_write": {}}},
    ]}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_whose_answer_is_lost_is_not_made_twice() {
    let pair = contacts(EmulatorOptions::default()).await;
    lost_answers(&pair);
    pair.create_person("hubspot", "left@example.com");
    pair.create_person("salesforce", "right@example.com");
    one_pair(&pair, "left@example.com").await;
    one_pair(&pair, "right@example.com").await;
}

/// The call made the record; before anybody knew, somebody changed it there.
async fn edit_of_the_newborn_stays(emulator: EmulatorOptions) {
    let pair = contacts(emulator).await;
    lost_answers(&pair);
    let email = "newborn@example.com";
    pair.create_person("salesforce", email);
    let made = || {
        Some(
            live(&pair, "hubspot", email).first()?["id"]
                .as_str()?
                .to_owned(),
        )
    };
    let id = wait_until("HubSpot made it", PATIENCE, async || made()).await;
    let field = json!({"lastname": "Changed"});
    pair.emulator.edit("hubspot", "contacts", &id, field);
    one_pair(&pair, email).await;
    let there = || pair.emulator.field("hubspot", "contacts", &id, "lastname");
    pair.db
        .wait_true(
            "the change reached the other side",
            PATIENCE,
            &format!("SELECT lastname = 'Changed' FROM salesforce.contact WHERE email = '{email}'"),
        )
        .await;
    assert_eq!(there().as_deref(), Some("Changed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_changed_in_a_record_whose_create_lost_its_answer_stays() {
    edit_of_the_newborn_stays(EmulatorOptions::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_changed_in_a_record_that_is_found_by_its_email_stays() {
    let plain = EmulatorOptions::default().arg("--hubspot-sync-properties", "off");
    edit_of_the_newborn_stays(plain).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_without_our_property_is_searched_before_anything_is_resent() {
    let pair = contacts(
        EmulatorOptions::default()
            .arg("--hubspot-sync-properties", "off")
            .arg("--salesforce-external-id", "off"),
    )
    .await;
    pair.create_person("hubspot", "plain@example.com");
    one_pair(&pair, "plain@example.com").await;
    lost_answers(&pair);
    pair.create_person("hubspot", "left@example.com");
    pair.create_person("salesforce", "right@example.com");
    one_pair(&pair, "left@example.com").await;
    one_pair(&pair, "right@example.com").await;
}

/// Two records with one address: guessing would merge two people's data.
#[tokio::test(flavor = "multi_thread")]
async fn an_ambiguous_match_is_asked_and_nothing_is_written_until_it_is_answered() {
    let pair = Pair::start(PairOptions {
        emulator: EmulatorOptions::default().contacts(20),
        ..PairOptions::default()
    })
    .await;
    let email = "twin@example.com";
    let left = pair.create_person("hubspot", email);
    let twins = [
        pair.create_person("salesforce", email),
        pair.create_person("salesforce", email),
    ];
    pair.import("hubspot", &["contacts"]).await;
    pair.import("salesforce", &["Contact"]).await;
    pair.backfilled().await;
    pair.db
        .exec("SELECT crm.link('hubspot.contacts', 'salesforce.contact'); SELECT crm.go_live('contacts')")
        .await;
    let asked = pair
        .db
        .table("SELECT link, reason, candidates ->> 'key' FROM crm.review")
        .await;
    assert_eq!(asked, [["contacts", "ambiguous match", email]]);
    pair.emulator
        .edit("hubspot", "contacts", &left, json!({"jobtitle": "Poet"}));
    pair.db
        .wait_true(
            "the edit arrived",
            PATIENCE,
            &format!("SELECT jobtitle = 'Poet' FROM hubspot.contacts WHERE id = '{left}'"),
        )
        .await;
    quiet(&pair).await;
    let titles = || {
        twins
            .clone()
            .map(|id| pair.emulator.field("salesforce", "Contact", &id, "Title"))
    };
    assert_eq!(titles(), [None, None], "nothing is written to either");
    assert_eq!(
        in_crm(&pair, "salesforce", email),
        2,
        "and no third is made"
    );

    let answer = format!(
        "SELECT crm.review_match(r.id, (SELECT _id FROM hubspot.contacts WHERE id = '{left}'),
                                 (SELECT _id FROM salesforce.contact WHERE id = '{}')) FROM crm.review r",
        twins[1]
    );
    pair.db.exec(&answer).await;
    let closed = "SELECT NOT EXISTS (SELECT FROM crm.review) AND EXISTS (SELECT FROM crm.review_history WHERE resolution = 'match')";
    pair.db
        .wait_true("the question is closed", PATIENCE, closed)
        .await;
    pair.emulator
        .edit("hubspot", "contacts", &left, json!({"jobtitle": "Critic"}));
    pair.cluster
        .wait_until("the chosen record follows", PATIENCE, async || {
            (titles() == [None, Some("Critic".to_owned())]).then_some(())
        })
        .await;
}

/// Before going live, what would happen is seen and nothing happens; afterwards exactly that happens.
#[tokio::test(flavor = "multi_thread")]
async fn shadow_shows_the_writes_that_go_live_then_sends() {
    let pair = Pair::start(PairOptions {
        emulator: EmulatorOptions::default().contacts(20),
        ..PairOptions::default()
    })
    .await;
    pair.import("hubspot", &["contacts"]).await;
    pair.import("salesforce", &["Contact"]).await;
    pair.backfilled().await;
    pair.db
        .exec("SELECT crm.link('hubspot.contacts', 'salesforce.contact')")
        .await;
    let (hubspot, salesforce) = pair.known_to_both().await;
    let city = pair.emulator.field("hubspot", "contacts", &hubspot, "city");
    pair.db
        .exec(&format!(
            "UPDATE hubspot.contacts SET city = 'Bath' WHERE id = '{hubspot}'"
        ))
        .await;
    pair.db
        .wait_true(
            "the write is shown",
            PATIENCE,
            "SELECT count(*) = 1 FROM crm.outbox WHERE state = 'would_send' AND mirror = 'hubspot.contacts' AND send ->> 'city' = 'Bath'",
        )
        .await;
    let shown: Option<String> = pair
        .db
        .one("SELECT instead_of ->> 'city' FROM crm.outbox")
        .await;
    assert_eq!(shown, city, "with the value that it replaces");
    let error = pair.db.error("SELECT crm.wait_synced('5 seconds')").await;
    assert!(
        error.message().contains("shadow") && error.hint().is_some_and(|h| h.contains("go_live")),
        "{error:?}"
    );
    assert_eq!(
        pair.emulator.field("hubspot", "contacts", &hubspot, "city"),
        city,
        "nothing was sent"
    );

    pair.db.exec("SELECT crm.go_live('contacts')").await;
    let there = || {
        (
            pair.emulator.field("hubspot", "contacts", &hubspot, "city"),
            pair.emulator
                .field("salesforce", "Contact", &salesforce, "MailingCity"),
        )
    };
    pair.cluster
        .wait_until("HubSpot has it", PATIENCE, async || {
            (there().0.as_deref() == Some("Bath")).then_some(())
        })
        .await;
    readable(&pair).await;
}

/// The views a DBA looks at first name what is there in words.
async fn readable(pair: &Pair) {
    let progress = pair
        .db
        .table("SELECT mirror, state, percent FROM crm.progress ORDER BY 1")
        .await;
    assert_eq!(
        progress,
        [
            ["hubspot.contacts", "done", "100.0"],
            ["salesforce.contact", "done", "100.0"]
        ]
    );
    let status = pair
        .db
        .table(
            "SELECT kind, name, state FROM crm.status WHERE kind IN ('worker', 'server', 'link')",
        )
        .await;
    assert_eq!(
        status,
        [
            ["worker", "app", "running"],
            ["server", "hubspot", "ok"],
            ["server", "salesforce", "ok"],
            ["link", "contacts", "live"]
        ]
    );
    quiet(pair).await;
    let said: String = pair.db.one("SELECT crm.wait_synced()").await;
    assert!(said.starts_with("confirmed"), "{said}");
    let waiting: i64 = pair.db.one("SELECT count(*) FROM crm.outbox").await;
    assert_eq!(waiting, 0);
}
