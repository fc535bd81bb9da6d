//! Questions to a steward about whole records: which of them are one, and what became of a create.

use crm_tests::{EmulatorOptions, PATIENCE, Pair, PairOptions, Person};
use serde_json::json;

/// Twins in Salesforce for each of these addresses in HubSpot, linked and live: the HubSpot ids and the twins'.
async fn twins(emails: &[&str]) -> (Pair, Vec<(String, [String; 2])>) {
    let pair = Pair::start(PairOptions {
        emulator: EmulatorOptions::default().contacts(20),
        ..PairOptions::default()
    })
    .await;
    let made = emails
        .iter()
        .map(|email| {
            let twins = [
                pair.create_person("salesforce", email),
                pair.create_person("salesforce", email),
            ];
            (pair.create_person("hubspot", email), twins)
        })
        .collect();
    pair.import("hubspot", &["contacts"]).await;
    pair.import("salesforce", &["Contact"]).await;
    pair.backfilled().await;
    pair.db
        .exec("SELECT crm.link('hubspot.contacts', 'salesforce.contact'); SELECT crm.go_live('contacts')")
        .await;
    pair.worker_has_read().await;
    (pair, made)
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_share_an_address_are_tied_or_kept_apart_by_one_update() {
    let (pair, made) = twins(&["one@example.com", "apart@example.com"]).await;
    let before = pair.live("salesforce", "Contact");
    assert_eq!(pair.db.one::<i64>("SELECT count(*) FROM crm.review WHERE kind = 'match' AND answers = '{match,separate}'").await, 2);
    let (one, apart) = (&made[0], &made[1]);
    for (value, why) in [
        ("7,8", "candidates"),
        ("x", "candidates"),
        ("", "candidates"),
    ] {
        let sql = format!("UPDATE crm.review SET resolution = 'match', value = '{value}'");
        let error = pair.db.error(&sql).await;
        assert_eq!(error.code().code(), "22023");
        assert!(error.message().contains(why), "{error:?}");
    }
    pair.db
        .exec(&format!(
            "UPDATE crm.review SET resolution = CASE WHEN candidates ->> 'key' LIKE 'one%' THEN 'match' ELSE 'separate' END,
                    value = CASE WHEN candidates ->> 'key' LIKE 'one%' THEN (SELECT _id::text FROM salesforce.contact WHERE id = '{}') END",
            one.1[1]
        ))
        .await;
    pair.db
        .wait_true(
            "both are answered",
            PATIENCE,
            "SELECT count(*) = 2 FROM crm.review_history WHERE kind = 'match'",
        )
        .await;
    pair.emulator
        .edit("hubspot", "contacts", &one.0, json!({"jobtitle": "Critic"}));
    pair.reaches("salesforce", "Contact", &one.1[1], "Title", "Critic")
        .await;
    let own = format!(
        "SELECT s.id IS NOT NULL AND s.id NOT IN ('{}', '{}') FROM crm.xref a JOIN crm.xref b ON b.entity = a.entity AND b.mirror <> a.mirror
         JOIN hubspot.contacts h ON h._id = a.row_id JOIN salesforce.contact s ON s._id = b.row_id
         WHERE h.id = '{}' AND a.mirror = (SELECT id FROM crm.mirror WHERE server = 'hubspot')",
        apart.1[0], apart.1[1], apart.0
    );
    pair.db
        .wait_true("the other got a counterpart of its own", PATIENCE, &own)
        .await;
    pair.quiet().await;
    assert_eq!(
        pair.live("salesforce", "Contact"),
        before + 1,
        "one and no more"
    );
    assert_eq!(
        pair.emulator
            .field("salesforce", "Contact", &one.1[0], "Title"),
        None
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_in_doubt_is_named_sent_again_or_given_up() {
    let emulator = EmulatorOptions::default()
        .contacts(20)
        .arg("--hubspot-sync-properties", "off")
        .arg("--salesforce-external-id", "off");
    let pair = Pair::contacts(PairOptions {
        emulator,
        ..PairOptions::default()
    })
    .await;
    let before = pair.live("hubspot", "contacts");
    for (n, name) in ["Again", "Never"].into_iter().enumerate() {
        pair.emulator.fault(json!({"rules": [
            {"crm": "hubspot", "method": "POST", "path_prefix": "/crm/objects/2026-03/contacts/batch/create", "action": "close"},
        ]}));
        pair.db
            .exec(&format!(
                "INSERT INTO hubspot.contacts (lastname) VALUES ('{name}')"
            ))
            .await;
        let asked = format!(
            "SELECT count(*) = {} FROM crm.review WHERE kind = 'create' AND answers = '{{made,retry,discard}}'",
            n + 1
        );
        pair.db.wait_true("it is asked", PATIENCE, &asked).await;
    }
    let error = pair
        .db
        .error("UPDATE crm.review SET resolution = 'made' WHERE kind = 'create'")
        .await;
    assert!(error.message().contains("id"), "{error:?}");
    pair.db
        .exec(
            "UPDATE crm.review r SET resolution = CASE (SELECT lastname FROM hubspot.contacts h WHERE h._id = r.row_id)
                    WHEN 'Again' THEN 'retry' ELSE 'discard' END WHERE kind = 'create'",
        )
        .await;
    pair.db
        .wait_true(
            "one is made",
            PATIENCE,
            "SELECT id IS NOT NULL FROM hubspot.contacts WHERE lastname = 'Again'",
        )
        .await;
    pair.db
        .wait_true(
            "both are answered",
            PATIENCE,
            "SELECT count(*) = 2 FROM crm.review_history WHERE kind = 'create'",
        )
        .await;
    pair.quiet().await;
    assert_eq!(pair.live("hubspot", "contacts"), before + 1);
    let given_up: i64 = pair
        .db
        .one("SELECT count(*) FROM crm.write WHERE state = 'held'")
        .await;
    assert_eq!(given_up, 0);
}

/// The row of a Salesforce record, and how many records HubSpot's row of this address is one with.
async fn tied_to(pair: &Pair, email: &str) -> Vec<String> {
    let sql = format!(
        "SELECT s.id FROM hubspot.contacts h JOIN crm.xref a ON a.row_id = h._id AND a.mirror = (SELECT left_mirror FROM crm.link)
         JOIN crm.xref b ON b.entity = a.entity AND b.mirror = (SELECT right_mirror FROM crm.link) AND b.merged_into IS NULL
         JOIN salesforce.contact s ON s._id = b.row_id WHERE h.email = '{email}'"
    );
    pair.db.table(&sql).await.concat()
}

/// Such a question stayed open, and its answer tied a row to a record that was gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_that_is_removed_or_merged_away_leaves_the_question() {
    let (pair, made) = twins(&["gone@example.com", "merged@example.com"]).await;
    let before = pair.live("salesforce", "Contact");
    pair.emulator.delete("salesforce", "Contact", &made[0].1[0]);
    let twins = json!({"object": "Contact", "winner": made[1].1[1], "loser": made[1].1[0]});
    pair.deed("salesforce", "merge", twins);
    pair.db
        .wait_true(
            "nobody need be asked",
            PATIENCE,
            "SELECT NOT EXISTS (SELECT FROM crm.review)",
        )
        .await;
    assert_eq!(
        tied_to(&pair, "gone@example.com").await,
        [made[0].1[1].clone()]
    );
    assert_eq!(
        tied_to(&pair, "merged@example.com").await,
        [made[1].1[1].clone()]
    );
    for (n, field) in [(0, "jobtitle"), (1, "jobtitle")] {
        let value = format!("Tied {n}");
        let edit = json!({ field: value });
        pair.emulator.edit("hubspot", "contacts", &made[n].0, edit);
        pair.reaches("salesforce", "Contact", &made[n].1[1], "Title", &value)
            .await;
    }
    pair.quiet().await;
    assert_eq!(pair.live("salesforce", "Contact"), before - 2);
}

/// The two that were left of four went without a counterpart, and nobody was asked.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_about_two_of_four_candidates_leaves_a_question_about_the_others() {
    let pair = Pair::start(PairOptions {
        emulator: EmulatorOptions::default().contacts(10),
        ..PairOptions::default()
    })
    .await;
    let mut ids = Vec::new();
    for n in 1..=2 {
        let left =
            json!({"email": format!("l{n}@example.com"), "lastname": "Twin", "mobilephone": "777"});
        let right =
            json!({"Email": format!("r{n}@example.com"), "LastName": "Twin", "MobilePhone": "777"});
        ids.push([
            pair.create("hubspot", "contacts", left),
            pair.create("salesforce", "Contact", right),
        ]);
    }
    pair.import("hubspot", &["contacts"]).await;
    pair.import("salesforce", &["Contact"]).await;
    pair.backfilled().await;
    pair.db
        .exec(
            "SELECT crm.link('hubspot.contacts', 'salesforce.contact');
             UPDATE crm.field_map SET match_order = NULL; UPDATE crm.field_map SET match_order = 1 WHERE left_field = 'mobilephone';
             SELECT crm.go_live('contacts')",
        )
        .await;
    pair.worker_has_read().await;
    for [left, right] in &ids {
        let answer = format!(
            "UPDATE crm.review SET resolution = 'match', value = format('%s,%s', h._id, s._id) FROM hubspot.contacts h, salesforce.contact s
             WHERE h.id = '{left}' AND s.id = '{right}' AND kind = 'match' AND resolution IS NULL
               AND candidates -> 'left' @> to_jsonb(h._id) AND candidates -> 'right' @> to_jsonb(s._id) RETURNING 1"
        );
        crm_tests::wait_until("a question is answered", PATIENCE, async || {
            (pair.db.table(&answer).await.len() == 1).then_some(())
        })
        .await;
    }
    pair.db
        .wait_true(
            "both are answered",
            PATIENCE,
            "SELECT NOT EXISTS (SELECT FROM crm.review) AND count(*) = 2 FROM crm.review_history WHERE resolution = 'match'",
        )
        .await;
    for [left, right] in &ids {
        let edit = json!({"jobtitle": right});
        pair.emulator.edit("hubspot", "contacts", left, edit);
        pair.reaches("salesforce", "Contact", right, "Title", right)
            .await;
    }
}

/// HubSpot and Salesforce disagree on a person's city while a steward is to be asked.
async fn two_cities(pair: &Pair, who: &Person) {
    pair.hubspot_takes_nothing();
    pair.edit("salesforce", who, "city", "Forcebury");
    let waits = "SELECT EXISTS (SELECT FROM crm.write WHERE vals ->> 'city' = 'Forcebury')";
    pair.db
        .wait_true("Salesforce's city waits", PATIENCE, waits)
        .await;
    pair.edit("hubspot", who, "city", "Hubville");
    let open = "SELECT EXISTS (SELECT FROM crm.review WHERE field = 'city')";
    pair.db.wait_true("it is asked", PATIENCE, open).await;
}

/// The question went without a word, and nobody knew what had become of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_question_about_a_field_of_a_record_that_is_merged_away_ends_with_a_line_that_says_so() {
    let (pair, people) = Pair::linked(4, PairOptions::default()).await;
    pair.review_cities().await;
    let (winner, loser) = (&people[1], &people[0]);
    two_cities(&pair, loser).await;
    let twins =
        json!({"object": "Contact", "winner": winner.salesforce, "loser": loser.salesforce});
    pair.deed("salesforce", "merge", twins);
    pair.db
        .wait_true(
            "the question about the field has gone",
            PATIENCE,
            "SELECT NOT EXISTS (SELECT FROM crm.review WHERE kind = 'field')",
        )
        .await;
    let said = pair
        .db
        .table(
            "SELECT kind, field, resolution, resolved_by IS NULL, because, jsonb_array_length(candidates), opened_at <= resolved_at
             FROM crm.review_history",
        )
        .await;
    let because = format!(
        "its record was merged into {} in salesforce",
        winner.salesforce
    );
    assert_eq!(said, [["field", "city", "ended", "t", &because, "2", "t"]]);
}

/// It went on naming the row that was gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_question_about_a_field_goes_on_with_the_record_that_takes_the_merged_ones_place() {
    let (pair, people) = Pair::linked(4, PairOptions::default()).await;
    pair.review_cities().await;
    pair.db
        .exec("UPDATE crm.link SET create_right = false")
        .await;
    pair.worker_has_read().await;
    let heir = pair.create_person("hubspot", "heir@example.com");
    let row = format!("SELECT EXISTS (SELECT FROM hubspot.contacts WHERE id = '{heir}')");
    pair.db
        .wait_true("the heir has a row", PATIENCE, &row)
        .await;
    let row: i64 = pair
        .db
        .one(&format!(
            "SELECT _id FROM hubspot.contacts WHERE id = '{heir}'"
        ))
        .await;
    two_cities(&pair, &people[0]).await;
    let twins = json!({"object": "contacts", "winner": heir, "loser": people[0].hubspot});
    pair.deed("hubspot", "merge", twins);
    pair.emulator.clear_faults();
    let handed = format!(
        "SELECT count(*) = 1 FROM crm.review WHERE field = 'city' AND row_id = {row} AND EXISTS (SELECT FROM crm.event WHERE kind = 'merge')"
    );
    pair.db
        .wait_true("it is about the heir's row", PATIENCE, &handed)
        .await;
    // What the heir shows is read, and may change the question.
    pair.quiet().await;
    pair.db
        .exec("UPDATE crm.review SET value = 'Metropolis' WHERE field = 'city'")
        .await;
    pair.reaches(
        "salesforce",
        "Contact",
        &people[0].salesforce,
        "MailingCity",
        "Metropolis",
    )
    .await;
    let shown = format!(
        "SELECT city = 'Metropolis' AND NOT EXISTS (SELECT FROM crm.review WHERE field = 'city') FROM hubspot.contacts WHERE _id = {row}"
    );
    pair.db.wait_true("and is answered", PATIENCE, &shown).await;
}

/// A policy had taken back what was on its way: the row went on showing it, and its CRM never got it.
#[tokio::test(flavor = "multi_thread")]
async fn when_a_question_ends_with_the_partner_the_row_shows_what_its_crm_has() {
    for rule in ["unlink", "ignore"] {
        let (pair, people) = Pair::linked(10, PairOptions::default()).await;
        // With `ignore` the removal crosses the edit, and the record is made again.
        let sql = format!(
            "UPDATE crm.link SET on_left_delete = '{rule}', on_right_delete = '{rule}', on_delete_conflict = 'keep'"
        );
        pair.db.exec(&sql).await;
        pair.worker_has_read().await;
        let who: &Person = &people[0];
        pair.hubspot_takes_nothing();
        pair.edit("hubspot", who, "city", "From HubSpot");
        pair.told("hubspot", "From HubSpot").await;
        let sql = format!(
            "UPDATE salesforce.contact SET mailingcity = 'From SQL' WHERE id = '{}'",
            who.salesforce
        );
        pair.db.exec(&sql).await;
        let queued = "SELECT count(*) > 0 FROM crm.write WHERE vals ->> 'city' = 'From SQL' AND state = 'queued'";
        pair.db
            .wait_true("it is on its way", PATIENCE, queued)
            .await;
        pair.review_cities().await;
        let asked = "SELECT count(*) = 1 FROM crm.review WHERE kind = 'field'";
        pair.db
            .wait_true("a person is asked", PATIENCE, asked)
            .await;
        let back = "SELECT NOT EXISTS (SELECT FROM crm.write WHERE vals ->> 'city' = 'From SQL')";
        pair.db.wait_true("it is taken back", PATIENCE, back).await;
        pair.emulator.clear_faults();
        pair.quiet().await;
        pair.emulator
            .delete("salesforce", "Contact", &who.salesforce);
        let ended = "SELECT count(*) = 1 FROM crm.review_history WHERE kind = 'field' AND resolution = 'ended'";
        pair.db
            .wait_true("nobody is asked any more", PATIENCE, ended)
            .await;
        pair.agree().await;
        let shown = "SELECT source, new_values[array_position(fields, 'city')] FROM crm.event
                     WHERE record_id = $1 AND 'city' = ANY (fields) ORDER BY seq DESC LIMIT 1";
        let shown = pair
            .db
            .table(&shown.replace("$1", &format!("'{}'", who.hubspot)))
            .await;
        assert_eq!(shown, [["read", "From HubSpot"]], "{rule}");
    }
}

/// It ended with the record that went, and the one that was made in its place stayed different without a word.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_asked_about_a_record_that_is_made_again_is_asked_again() {
    let (pair, people) = Pair::linked(10, PairOptions::default()).await;
    pair.db
        .exec("UPDATE crm.link SET on_left_delete = 'ignore', on_right_delete = 'ignore', on_delete_conflict = 'keep'")
        .await;
    pair.review_cities().await;
    let who: &Person = &people[0];
    two_cities(&pair, who).await;
    let back = "SELECT NOT EXISTS (SELECT FROM crm.write WHERE vals ->> 'city' = 'Forcebury')";
    pair.db.wait_true("it is taken back", PATIENCE, back).await;
    pair.emulator.clear_faults();
    pair.emulator
        .delete("salesforce", "Contact", &who.salesforce);
    let again = format!(
        "SELECT id <> '{}' FROM salesforce.contact WHERE email = '{}' AND id IS NOT NULL",
        who.salesforce, who.email
    );
    pair.db
        .wait_true("it is made again", PATIENCE, &again)
        .await;
    pair.quiet().await;
    let asked = "SELECT count(*) = 1 FROM crm.review WHERE kind = 'field' AND field = 'city'";
    assert!(pair.db.one::<bool>(asked).await);
    pair.db
        .exec("UPDATE crm.review SET resolution = 'hubspot' WHERE field = 'city'")
        .await;
    pair.agree().await;
    assert_eq!(
        pair.shows("hubspot", who, "city").as_deref(),
        Some("Hubville")
    );
}
