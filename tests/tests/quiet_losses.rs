//! What would be lost, or overwritten, without anybody being told.

use crm_tests::{PATIENCE, Pair, PairOptions, Person};
use serde_json::json;

async fn pair() -> (Pair, Vec<Person>) {
    Pair::linked(10, PairOptions::default()).await
}

async fn count(pair: &Pair, of: &str) -> i64 {
    pair.db.one(&format!("SELECT count(*) FROM {of}")).await
}

/// The answer names the other contact, whose blank fields were filled with this one's values; that of a tied one was
/// sent again every two seconds for ever.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_another_contact_has_is_refused_and_touches_nobody_else() {
    let (pair, people) = pair().await;
    let (who, other) = (&people[0], &people[1]);
    pair.edit("hubspot", who, "fax", "+44 1");
    pair.told("hubspot", "+44 1").await;
    let record = || pair.emulator.record("hubspot", "contacts", &other.hubspot);
    let before = record();
    pair.sql(who, "email", &other.email).await;
    let refused =
        "SELECT count(*) = 1 FROM crm.dead_letter WHERE direction = 'out' AND class = 'fix_data'";
    pair.db
        .wait_true("it is a dead letter", PATIENCE, refused)
        .await;
    pair.quiet().await;
    assert_eq!(record(), before);
    assert_eq!(count(&pair, "crm.review").await, 0);
    pair.sql(who, "email", "their.own@example.org").await;
    let own = "their.own@example.org";
    pair.reaches("hubspot", "contacts", &who.hubspot, "email", own)
        .await;
    pair.reaches("salesforce", "Contact", &who.salesforce, "Email", own)
        .await;
    pair.agree().await;
    assert_eq!(count(&pair, "crm.dead_letter").await, 0);
}

/// What was decided meanwhile stood in both CRMs; the letter still held the older value and was sent over it.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_not_sent_over_what_was_written_since() {
    let (pair, people) = pair().await;
    let who = &people[0];
    let fault = json!({"statusCode": "FIELD_CUSTOM_VALIDATION_EXCEPTION", "remaining": 1, "object": "Contact", "message": "no"});
    pair.emulator
        .admin("POST", "/_admin/salesforce/row-faults", Some(&fault));
    pair.edit("hubspot", who, "jobtitle", "Older");
    let letter = "SELECT count(*) = 1 FROM crm.dead_letter";
    pair.db.wait_true("it is refused", PATIENCE, letter).await;
    pair.edit("salesforce", who, "jobtitle", "Newer");
    pair.reaches_both(who, "jobtitle", "Newer").await;
    pair.quiet().await;
    pair.db.exec("SELECT crm.dead_letter_retry()").await;
    pair.quiet().await;
    pair.agree().await;
    for crm in ["hubspot", "salesforce"] {
        let title = pair.shows(crm, who, "jobtitle");
        assert_eq!(title.as_deref(), Some("Newer"), "{crm}");
    }
    assert_eq!(count(&pair, "crm.dead_letter").await, 0);
}

/// Nothing had been sent, so the other side's edit counted as one made with knowledge of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_the_other_side_cannot_show_is_a_side_of_the_conflict() {
    let (pair, people) = pair().await;
    let who = &people[0];
    pair.db
        .exec(
            "CREATE FUNCTION public.polite(v text) RETURNS text IMMUTABLE LANGUAGE plpgsql
                 AS 'BEGIN IF v LIKE ''Ka%'' THEN RAISE ''no''; END IF; RETURN v; END';
             UPDATE crm.field_map SET to_right = 'public.polite' WHERE left_field = 'jobtitle';
             UPDATE crm.conflict_policy SET skew = '0 s';
             INSERT INTO crm.conflict_policy (link, field, strategy) VALUES ('contacts', 'jobtitle', 'review')",
        )
        .await;
    pair.worker_has_read().await;
    pair.edit("hubspot", who, "jobtitle", "Kaboom");
    pair.told("hubspot", "Kaboom").await;
    pair.edit("salesforce", who, "jobtitle", "Quiet");
    pair.told("salesforce", "Quiet").await;
    pair.quiet().await;
    let asked = "SELECT c ->> 'value' FROM crm.review, jsonb_array_elements(candidates) c WHERE kind = 'field' ORDER BY 1";
    assert_eq!(pair.db.table(asked).await, [["Kaboom"], ["Quiet"]]);
    let title = pair.shows("hubspot", who, "jobtitle");
    assert_eq!(title.as_deref(), Some("Kaboom"));
}

/// Everything of that CRM waited for the lock on the one question.
#[tokio::test(flavor = "multi_thread")]
async fn a_steward_who_has_not_committed_holds_up_one_record_only() {
    let (pair, people) = pair().await;
    pair.db
        .exec("INSERT INTO crm.conflict_policy (link, field, strategy) VALUES ('contacts', 'city', 'review')")
        .await;
    pair.worker_has_read().await;
    let (who, other) = (&people[0], &people[1]);
    pair.db.exec("SELECT crm.pause('link', 'contacts')").await;
    pair.edit("hubspot", who, "city", "Hub");
    pair.edit("salesforce", who, "city", "Force");
    pair.db.exec("SELECT crm.resume('link', 'contacts')").await;
    let asked = "SELECT count(*) = 1 FROM crm.review";
    pair.db.wait_true("it is asked", PATIENCE, asked).await;
    let steward = pair.cluster.connect("app").await;
    steward
        .exec("BEGIN; UPDATE crm.review SET resolution = 'hubspot'")
        .await;
    pair.edit("salesforce", who, "city", "Force again");
    pair.edit("salesforce", other, "jobtitle", "Flows on");
    pair.reaches_both(other, "jobtitle", "Flows on").await;
    steward.exec("ROLLBACK").await;
    let newest = "SELECT candidates::text LIKE '%Force again%' FROM crm.review";
    pair.db
        .wait_true("the question knows of the edit", PATIENCE, newest)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_is_told_after_the_value_came_back_is_not_the_last() {
    let (pair, people) = pair().await;
    let who = &people[0];
    let before = pair.shows("hubspot", who, "city").unwrap_or_default();
    pair.emulator
        .fault(json!({"stream": "webhook", "delay_ms": 2_000}));
    pair.edit("hubspot", who, "city", "Between");
    pair.emulator.fault(json!({"stream": "webhook"}));
    pair.edit("hubspot", who, "city", &before);
    pair.told("hubspot", "Between").await;
    pair.quiet().await;
    pair.agree().await;
    for crm in ["hubspot", "salesforce"] {
        let city = pair.shows(crm, who, "city").unwrap_or_default();
        assert_eq!(city, before, "{crm}");
    }
}

/// HubSpot's stages only go forward. It says that it is done and names the stage it keeps, and no event tells of it: the
/// mirror showed what was asked for, and another CRM got it.
#[tokio::test(flavor = "multi_thread")]
async fn a_stage_that_hubspot_keeps_is_not_shown_as_what_was_asked_for() {
    let pair = pair().await.0;
    let late = "SELECT id, lifecyclestage FROM hubspot.contacts WHERE lifecyclestage IN ('opportunity', 'customer')
                ORDER BY EXISTS (SELECT FROM crm.xref x WHERE x.row_id = _id AND x.mirror = (SELECT id FROM crm.mirror WHERE server = 'hubspot'))";
    let late = pair.db.table(late).await;
    for record in [&late[0], &late[late.len() - 1]] {
        let (id, stage) = (&record[0], &record[1]);
        pair.emulator.reset_counts();
        pair.db
            .exec(&format!(
                "UPDATE hubspot.contacts SET lifecyclestage = 'lead' WHERE id = '{id}'"
            ))
            .await;
        let known = format!(
            "SELECT count(*) > 0 FROM crm.event e WHERE e.record_id = '{id}' AND e.source = 'read' AND '{stage}' = ANY (e.new_values)"
        );
        pair.db
            .wait_true("the record is read", PATIENCE, &known)
            .await;
        pair.quiet().await;
        let shown = format!("SELECT lifecyclestage FROM hubspot.contacts WHERE id = '{id}'");
        assert_eq!(&pair.db.one::<String>(&shown).await, stage);
        assert_eq!(pair.writes("hubspot"), 1, "it is not sent again");
    }
    let asked = "SELECT field, reason LIKE '%kept its own%' FROM crm.review";
    assert_eq!(pair.db.table(asked).await, [["lifecyclestage", "t"]; 2]);
}
