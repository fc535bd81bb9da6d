//! "Why is this record not in sync?": every reason is named, and nothing is named where there is none.

use crm_tests::catalog::{mirrors, uncaptured};
use crm_tests::{Cluster, Db, Options, PATIENCE, Pair, PairOptions, Person};
use serde_json::json;

/// The answer as `(item, verdict, detail, advice)`.
async fn why(db: &Db, call: &str) -> Vec<[String; 4]> {
    let rows = db
        .table(&format!(
            "SELECT item, verdict, detail, coalesce(advice, '') FROM crm.why({call})"
        ))
        .await;
    rows.into_iter()
        .map(|r| {
            <[String; 4]>::try_from(r).unwrap_or_else(|r| panic!("four columns, not {}", r.len()))
        })
        .collect()
}

/// Asserts that the summary is `summary` and that a reason of `item` and `verdict` has these words and an advice.
fn says(answer: &[[String; 4]], summary: &str, reasons: &[(&str, &str, &str)]) {
    assert_eq!(answer[0][0], "summary", "{answer:#?}");
    assert_eq!(answer[0][1], summary, "{answer:#?}");
    for (item, verdict, words) in reasons {
        let found = answer
            .iter()
            .find(|r| r[0] == *item && r[1] == *verdict && r[2].contains(words));
        let found = found.unwrap_or_else(|| panic!("no {item}/{verdict}/{words} in {answer:#?}"));
        assert!(!found[3].is_empty(), "no advice: {found:?}");
    }
}

async fn linked() -> (Pair, Vec<Person>) {
    let (pair, people) = Pair::linked(20, PairOptions::default()).await;
    pair.agree().await;
    (pair, people)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_at_rest_is_in_sync_and_each_switch_that_stops_it_is_named() {
    let (pair, people) = linked().await;
    let who = &people[0];
    let call = format!("'hubspot.contacts', '{}'", who.hubspot);
    let rest = why(&pair.db, &call).await;
    says(&rest, "in sync", &[]);
    assert_eq!(rest.len(), 1, "{rest:#?}");
    let all = why(&pair.db, &format!("{call}, all_checks => true")).await;
    for item in ["fence", "worker", "server", "mirror", "link", "counterpart"] {
        assert!(all.iter().any(|r| r[0] == item && r[1] == "ok"), "{item}");
    }
    // The same by the row's own number, and from the other side.
    let row: i64 = pair
        .db
        .one(&format!(
            "SELECT _id FROM hubspot.contacts WHERE id = '{}'",
            who.hubspot
        ))
        .await;
    says(
        &why(&pair.db, &format!("'hubspot.contacts', {row}")).await,
        "in sync",
        &[],
    );
    let other = format!("'salesforce.contact', '{}'", who.salesforce);
    says(&why(&pair.db, &other).await, "in sync", &[]);

    for (switch, undo, item, words) in [
        (
            "crm.pause('link', 'contacts')",
            "crm.resume('link', 'contacts')",
            "link",
            "paused",
        ),
        (
            "crm.pause('mirror', 'salesforce.contact')",
            "crm.resume('mirror', 'salesforce.contact')",
            "mirror",
            "salesforce.contact is paused",
        ),
        (
            "crm.pause('server', 'salesforce')",
            "crm.resume('server', 'salesforce')",
            "server",
            "salesforce is paused",
        ),
    ] {
        pair.db.exec(&format!("SELECT {switch}")).await;
        let answer = why(&pair.db, &call).await;
        says(&answer, "stopped", &[(item, "stops", words)]);
        assert!(answer.iter().any(|r| r[3].contains("crm.resume")));
        pair.db.exec(&format!("SELECT {undo}")).await;
    }
    pair.db
        .exec("ALTER TABLE hubspot.contacts DISABLE TRIGGER zz_crm_capture")
        .await;
    says(
        &why(&pair.db, &call).await,
        "stopped",
        &[("capture", "stops", "not seen")],
    );
    pair.db
        .exec("ALTER TABLE hubspot.contacts ENABLE TRIGGER zz_crm_capture")
        .await;
    says(&why(&pair.db, &call).await, "in sync", &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_what_was_refused_and_what_lost_are_told_with_their_cause() {
    let (pair, people) = linked().await;
    let (who, refused) = (&people[0], &people[1]);
    pair.db.exec("SELECT crm.pause('server', 'hubspot')").await;
    pair.worker_has_read().await;
    pair.sql(who, "jobtitle", "Waiting").await;
    let queued = "SELECT count(*) > 0 FROM crm.write WHERE state = 'queued'";
    pair.db.wait_true("a write waits", PATIENCE, queued).await;
    let call = format!("'hubspot.contacts', '{}'", who.hubspot);
    says(
        &why(&pair.db, &call).await,
        "stopped",
        &[
            (
                "outbox",
                "waits",
                "update of hubspot.contacts (jobtitle) is queued, 0 writes before it",
            ),
            ("server", "stops", "hubspot is paused"),
        ],
    );
    pair.db.exec("SELECT crm.resume('server', 'hubspot')").await;
    pair.agree().await;
    says(&why(&pair.db, &call).await, "in sync", &[]);

    // A value that the CRM refuses is a dead letter, and the sides differ.
    let no =
        json!([{"errorCode": "FIELD_CUSTOM_VALIDATION_EXCEPTION", "message": "Not this one."}]);
    pair.emulator.fault(
        json!({"crm": "salesforce", "method": "PATCH", "path_prefix": "/services/data/",
                               "action": {"reject": {"status": 400, "headers": {}, "body": no}}}),
    );
    pair.edit("hubspot", refused, "jobtitle", "Refused");
    let parked = "SELECT count(*) = 1 FROM crm.dead_letter";
    pair.db
        .wait_true("the write is parked", PATIENCE, parked)
        .await;
    pair.emulator.clear_faults();
    let from_there = format!("'salesforce.contact', '{}'", refused.salesforce);
    for call in [
        format!("'hubspot.contacts', '{}'", refused.hubspot),
        from_there,
    ] {
        let answer = why(&pair.db, &call).await;
        says(
            &answer,
            "not in sync",
            &[("dead letter", "stops", "Not this one.")],
        );
        assert!(
            answer
                .iter()
                .any(|r| r[3].contains("crm.dead_letter_retry"))
        );
    }
    pair.db.exec("SELECT crm.dead_letter_retry()").await;
    pair.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_map_of_one_direction_is_named_where_it_keeps_values_apart() {
    let (pair, people) = linked().await;
    pair.db
        .exec("UPDATE crm.field_map SET direction = 'to_left' WHERE left_field = 'jobtitle'")
        .await;
    pair.worker_has_read().await;
    pair.sql(&people[0], "jobtitle", "Here only").await;
    let done = "SELECT NOT EXISTS (SELECT FROM crm.write) AND EXISTS (SELECT FROM crm.event WHERE new_values @> '{Here only}')";
    pair.db.wait_true("it is sent", PATIENCE, done).await;
    for (mirror, id) in [
        ("hubspot.contacts", &people[0].hubspot),
        ("salesforce.contact", &people[0].salesforce),
    ] {
        says(
            &why(&pair.db, &format!("'{mirror}', '{id}'")).await,
            "not in sync",
            &[(
                "values",
                "differs",
                "values go from salesforce.contact.Title only",
            )],
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_an_owner_put_back_is_told_although_all_agree_again() {
    let (pair, people) = linked().await;
    let who = &people[0];
    let call = format!("'hubspot.contacts', '{}'", who.hubspot);
    pair.db
        .exec("INSERT INTO crm.conflict_policy (link, field, strategy, winner) VALUES ('contacts', 'city', 'owner', 'salesforce')")
        .await;
    pair.worker_has_read().await;
    pair.edit("hubspot", who, "city", "Usurped");
    let lost = "SELECT count(*) > 0 FROM crm.conflict WHERE field = 'city'";
    pair.db
        .wait_true("the value has lost", PATIENCE, lost)
        .await;
    pair.agree().await;
    says(
        &why(&pair.db, &call).await,
        "in sync",
        &[("decision", "note", "'Usurped' of hubspot lost")],
    );
}

async fn bare() -> (Cluster, Db) {
    let cluster = Cluster::start(Options::default()).await;
    let db = cluster.connect("postgres").await;
    db.exec("CREATE EXTENSION pg_crm_sync").await;
    mirrors(&db).await;
    (cluster, db)
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_blank_keys_ambiguous_matches_and_values_without_image_are_named() {
    let (_cluster, db) = bare().await;
    db.exec("SELECT crm.link('hubspot.contacts', 'salesforce.contact'), crm.link('hubspot.deals', 'salesforce.opportunity')")
        .await;
    uncaptured(
        &db,
        "INSERT INTO hubspot.contacts (id, email, city) VALUES ('1', NULL, 'X'), ('2', 'two@example.com', 'X'), ('3', 'three@example.com', 'X');
         INSERT INTO salesforce.contact (id, email, mailingcity) VALUES ('a', 'two@example.com', 'X'), ('b', 'TWO@example.com', 'X'), ('c', 'three@example.com', 'Y');
         INSERT INTO hubspot.deals (id, dealname, dealstage) VALUES ('9', 'Deal', 'unheard of');
         INSERT INTO salesforce.opportunity (id, name, stagename) VALUES ('o', 'Deal', 'Closed Won')",
    )
    .await;
    db.exec("UPDATE crm.mirror SET row_filter = '((city = ''Y''::text) AND ((email IS NULL) OR (email <> ''a) AND (b''::text)))' WHERE object = 'contacts'")
        .await;
    db.exec("SELECT crm._match('contacts'), crm._match('deals')")
        .await;
    // An unfinished first copy, a worker that calls nobody: the reasons of a new installation.
    says(
        &why(&db, "'hubspot.contacts', '1'").await,
        "not in sync",
        &[
            (
                "counterpart",
                "differs",
                "nothing to find it by, email is blank",
            ),
            ("filter", "note", "does not satisfy (city = 'Y'::text)"),
            ("link", "stops", "shadow"),
            ("mirror", "stops", "hubspot.contacts is in shadow"),
        ],
    );
    says(
        &why(&db, "'hubspot.contacts', '2'").await,
        "not in sync",
        &[("counterpart", "stops", "of crm.review is open")],
    );
    says(
        &why(&db, "'hubspot.contacts', '3'").await,
        "not in sync",
        &[(
            "values",
            "differs",
            "hubspot.contacts.city is 'X', salesforce.contact.MailingCity is 'Y'",
        )],
    );
    says(
        &why(&db, "'hubspot.deals', '9'").await,
        "not in sync",
        &[("values", "stops", "no counterpart for 'unheard of'")],
    );
    says(
        &why(&db, "'hubspot.contacts', '77'").await,
        "not in sync",
        &[
            ("record", "differs", "no row of record 77"),
            ("filter", "note", "takes only records that satisfy"),
        ],
    );
    let clauses = db
        .table("SELECT c FROM crm._clauses('((a = '')) AND (''::text) AND (b > (1 + 2)))') c")
        .await;
    assert_eq!(clauses, [["(a = ')) AND ('::text)"], ["(b > (1 + 2))"]]);
    let whole = db
        .table("SELECT c FROM crm._clauses('(a) AND (b)') c")
        .await;
    assert_eq!(whole, [["(a)"], ["(b)"]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_names_and_missing_rights_are_errors_with_a_hint_and_readers_see_what_they_may() {
    let (_cluster, db) = bare().await;
    uncaptured(
        &db,
        "INSERT INTO hubspot.contacts (id, email, city) VALUES ('1', 'one@example.com', 'X');
         INSERT INTO salesforce.contact (id, email, mailingcity) VALUES ('a', 'one@example.com', 'Secretville')",
    )
    .await;
    db.exec(
        "SELECT crm.link('hubspot.contacts', 'salesforce.contact'); SELECT crm._match('contacts')",
    )
    .await;
    for (call, code, words) in [
        (
            "'hubspot.contact', '1'",
            "42704",
            "Did you mean hubspot.contacts",
        ),
        ("NULL, '1'", "42704", "no mirror"),
        ("'hubspot.contacts', ''", "22023", "For example"),
        ("'hubspot.contacts', NULL::text", "22023", "For example"),
    ] {
        let error = db.error(&format!("SELECT * FROM crm.why({call})")).await;
        let all = format!("{} {}", error.message(), error.hint().unwrap_or_default());
        assert_eq!(error.code().code(), code, "{call}: {all}");
        assert!(all.contains(words), "{call}: {all}");
    }
    db.exec(
        "CREATE ROLE looker IN ROLE crm_reader; GRANT USAGE ON SCHEMA hubspot, salesforce TO looker; SET ROLE looker",
    )
    .await;
    let error = db
        .error("SELECT * FROM crm.why('hubspot.contacts', '1')")
        .await;
    assert_eq!(error.code().code(), "42501");
    assert!(error.hint().is_some_and(|h| h.contains("GRANT SELECT")));
    db.exec("RESET ROLE; GRANT SELECT ON hubspot.contacts TO looker; SET ROLE looker")
        .await;
    let answer = why(&db, "'hubspot.contacts', '1'").await;
    says(
        &answer,
        "stopped",
        &[("values", "note", "you may not read it")],
    );
    assert!(!format!("{answer:?}").contains("Secretville"));
    db.exec("RESET ROLE; CREATE ROLE nobody_special; SET ROLE nobody_special")
        .await;
    let error = db
        .error("SELECT * FROM crm.why('hubspot.contacts', '1')")
        .await;
    assert_eq!(error.code().code(), "42501");
    db.exec("RESET ROLE").await;
}
