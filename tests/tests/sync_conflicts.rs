//! Several sides change the same person: who wins, that nothing else is lost, and that it ends.

use crm_tests::{PATIENCE, Pair, PairOptions, Person};
use serde_json::json;

async fn pair() -> (Pair, Vec<Person>) {
    Pair::linked(20, PairOptions::default()).await
}

/// The value that all three sides hold.
async fn common(pair: &Pair, who: &Person, field: &str) -> Option<String> {
    pair.agree().await;
    let value = pair.shows("hubspot", who, field);
    assert_eq!(
        value,
        pair.shows("salesforce", who, field),
        "{field} of {who:?}"
    );
    value
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_of_different_fields_on_all_sides_at_once_all_survive() {
    let (pair, people) = pair().await;
    for who in &people[..5] {
        pair.edit("hubspot", who, "jobtitle", "From HubSpot");
        pair.edit("salesforce", who, "city", "From Salesforce");
        pair.sql(who, "zip", "SQL 1").await;
    }
    for who in &people[..5] {
        pair.reaches_both(who, "jobtitle", "From HubSpot").await;
        pair.reaches_both(who, "city", "From Salesforce").await;
        pair.reaches_both(who, "zip", "SQL 1").await;
    }
    pair.agree().await;
    let conflicts: i64 = pair.db.one("SELECT count(*) FROM crm.conflict").await;
    assert_eq!(conflicts, 0, "no field was changed by two");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_is_put_back_where_it_is_not_owned_and_flows_from_its_owner() {
    let (pair, people) = pair().await;
    pair.db
        .exec("INSERT INTO crm.conflict_policy (link, field, strategy, winner) VALUES ('contacts', 'jobtitle', 'owner', 'salesforce')")
        .await;
    let who = &people[0];
    pair.edit("salesforce", who, "jobtitle", "Owned");
    pair.reaches_both(who, "jobtitle", "Owned").await;
    pair.agree().await;
    for usurper in ["hubspot", "sql"] {
        if usurper == "sql" {
            pair.sql(who, "jobtitle", "Usurped by sql").await;
        } else {
            pair.edit(usurper, who, "jobtitle", "Usurped");
        }
        let recorded = format!(
            "SELECT count(*) > 0 FROM crm.event e JOIN hubspot.contacts h ON h._id = e.row_id
             WHERE h.id = '{}' AND e.decision::text LIKE '%owner%' AND e.new_values::text LIKE '%Usurped%'",
            who.hubspot
        );
        pair.db
            .wait_true("the refusal is in the ledger", PATIENCE, &recorded)
            .await;
        pair.reaches("hubspot", "contacts", &who.hubspot, "jobtitle", "Owned")
            .await;
        let value = common(&pair, who, "jobtitle").await;
        assert_eq!(value.as_deref(), Some("Owned"), "after {usurper}");
    }
}

/// Two hundred milliseconds apart, well inside the skew tolerance: whoever wins, it is one.
#[tokio::test(flavor = "multi_thread")]
async fn three_sides_that_write_one_field_within_200_ms_converge_and_the_losers_are_recorded() {
    let (pair, people) = pair().await;
    let chosen = &people[..6];
    for who in chosen {
        pair.edit("hubspot", who, "city", "Hubville");
        pair.sql(who, "city", "Sqlton").await;
        pair.edit("salesforce", who, "city", "Forcebury");
    }
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    for who in chosen {
        pair.edit("salesforce", who, "city", "Forcebury 2");
        pair.sql(who, "city", "Sqlton 2").await;
        pair.edit("hubspot", who, "city", "Hubville 2");
    }
    for who in chosen {
        let value = common(&pair, who, "city").await;
        let value = value.expect("a city");
        assert!(
            ["Hubville", "Sqlton", "Forcebury"]
                .iter()
                .any(|v| value.starts_with(v)),
            "{value}"
        );
    }
    let recorded = "SELECT count(DISTINCT entity) FROM crm.conflict WHERE field = 'city' AND jsonb_typeof(lost) <> 'null' AND winner IS NOT NULL";
    let recorded: i64 = pair.db.one(recorded).await;
    assert_eq!(recorded, 6, "one conflict at least per person");
    // Every edit is in the ledger, also those that lost.
    for value in ["Sqlton", "Sqlton 2", "Hubville 2", "Forcebury 2"] {
        let seen: i64 = pair
            .db
            .one(&format!(
                "SELECT count(*) FROM crm.event WHERE '{value}' = ANY (new_values) AND source <> 'result'"
            ))
            .await;
        assert!(
            seen >= 6,
            "{value} stands {seen} times in crm.event, expected 6"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_writer_wins_beyond_the_skew_tolerance_also_when_its_event_comes_first() {
    let (pair, people) = pair().await;
    pair.db
        .exec("UPDATE crm.conflict_policy SET skew = '0' WHERE link = 'contacts'")
        .await;
    let who = &people[0];
    let before = pair.events("webhook").await;
    let delay = json!({"stream": "webhook", "delay_ms": 1500});
    pair.emulator.fault(delay);
    pair.edit("hubspot", who, "city", "Earlier");
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    pair.sql(who, "city", "Later").await;
    pair.reaches(
        "salesforce",
        "Contact",
        &who.salesforce,
        "MailingCity",
        "Later",
    )
    .await;
    pair.events_reach("webhook", before + 1).await;
    pair.emulator.clear_faults();
    assert_eq!(common(&pair, who, "city").await.as_deref(), Some("Later"));
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicated_and_reordered_events_change_nothing() {
    let (pair, people) = pair().await;
    for stream in ["webhook", "cdc"] {
        let fault = json!({"stream": stream, "duplicate": 1000, "reorder_window": 5});
        pair.emulator.fault(fault);
    }
    for round in 0..5 {
        for (n, who) in people[..8].iter().enumerate() {
            let crm = if n % 2 == 0 { "hubspot" } else { "salesforce" };
            pair.edit(crm, who, "jobtitle", &format!("Round {round}"));
        }
    }
    for who in &people[..8] {
        pair.reaches_both(who, "jobtitle", "Round 4").await;
    }
    pair.agree().await;
    for who in &people[..8] {
        let value = common(&pair, who, "jobtitle").await;
        assert_eq!(value.as_deref(), Some("Round 4"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_event_of_a_record_does_not_bring_its_old_value_back() {
    let (pair, people) = pair().await;
    let who = &people[0];
    let before = pair.events("webhook").await;
    pair.emulator
        .fault(json!({"stream": "webhook", "delay_ms": 2000}));
    pair.edit("hubspot", who, "city", "Old town");
    pair.emulator
        .fault(json!({"stream": "webhook", "delay_ms": 0}));
    pair.edit("hubspot", who, "city", "New town");
    pair.events_reach("webhook", before + 2).await;
    assert_eq!(
        common(&pair, who, "city").await.as_deref(),
        Some("New town")
    );
}

/// Two programs, say, that each set the field to what they think is right.
#[tokio::test(flavor = "multi_thread")]
async fn writers_that_keep_overwriting_each_other_are_stopped_by_name_until_a_person_says() {
    let (pair, people) = pair().await;
    let who = &people[0];
    let open = "SELECT count(*) > 0 FROM crm.review WHERE field = 'city'";
    let mut rounds = 0;
    while !pair.db.one::<bool>(open).await {
        rounds += 1;
        assert!(rounds < 40, "they go on and on");
        let (crm, value) = [("hubspot", "Hub"), ("salesforce", "Force")][rounds % 2];
        pair.edit(crm, who, "city", value);
        pair.cluster
            .wait_until("one value, or a question", PATIENCE, async || {
                let shown = pair.shows("hubspot", who, "city");
                let one = shown == pair.shows("salesforce", who, "city");
                (one || pair.db.one::<bool>(open).await).then_some(())
            })
            .await;
    }
    let reason: String = pair.db.one("SELECT reason FROM crm.review").await;
    for said in ["hubspot", "salesforce", "keep overwriting each other"] {
        assert!(reason.contains(said), "{reason}");
    }
    let why = format!(
        "SELECT verdict, detail LIKE '%keep overwriting each other%' FROM crm.why('hubspot.contacts', '{}') WHERE item = 'breaker'",
        who.hubspot
    );
    assert_eq!(pair.db.table(&why).await, [["stops", "t"]]);
    let status = "SELECT advice FROM crm.status WHERE kind = 'link' AND name = 'contacts'";
    let advice: String = pair.db.one(status).await;
    assert!(advice.contains("crm.review"), "{advice}");
    // Nothing more goes back and forth; all else does.
    pair.edit("salesforce", who, "city", "Force again");
    pair.edit("hubspot", who, "jobtitle", "Flows on");
    pair.reaches_both(who, "jobtitle", "Flows on").await;
    pair.quiet().await;
    let hub = pair.shows("hubspot", who, "city");
    assert_ne!(hub.as_deref(), Some("Force again"));
    let claims = "SELECT c ->> 'value' FROM crm.review, jsonb_array_elements(candidates) c WHERE c ->> 'origin' = 'hubspot'";
    let claimed: String = pair.db.one(claims).await;
    pair.db
        .exec("UPDATE crm.review SET resolution = 'hubspot'")
        .await;
    pair.reaches_both(who, "city", &claimed).await;
    pair.agree().await;
    for (crm, value) in [("salesforce", "Peace"), ("hubspot", "Peace 2")] {
        pair.edit(crm, who, "city", value);
        pair.reaches_both(who, "city", value).await;
        pair.agree().await;
    }
}

/// The first to write it had set it with SQL, whose rank is the lowest, so another's edit of the same moment took its place.
#[tokio::test(flavor = "multi_thread")]
async fn who_ranks_highest_and_writes_what_another_wrote_already_is_not_overruled() {
    let (pair, people) = pair().await;
    pair.db
        .exec("INSERT INTO crm.conflict_policy (link, field, strategy, winner) VALUES ('contacts', 'city', 'priority', 'hubspot,salesforce,local')")
        .await;
    pair.worker_has_read().await;
    let who = &people[0];
    let later = json!({"hold": {"ms": 8_000}});
    pair.emulator.fault(json!({"rules": [
        {"crm": "hubspot", "method": "POST", "path_prefix": "/crm/objects/2026-03/contacts/batch/update", "remaining": 1, "action": later},
        {"crm": "salesforce", "method": "PATCH", "path_prefix": "/services/data", "remaining": 1, "action": later},
    ]}));
    pair.sql(who, "city", "Agreed").await;
    pair.edit("hubspot", who, "city", "Agreed");
    pair.told("hubspot", "Agreed").await;
    pair.edit("salesforce", who, "city", "Alone");
    pair.told("salesforce", "Alone").await;
    pair.agree().await;
    let city = common(&pair, who, "city").await;
    assert_eq!(city.as_deref(), Some("Agreed"));
    let lost = "SELECT winner, lost -> 0 ->> 'origin', lost -> 0 ->> 'value' FROM crm.conflict WHERE both_changed";
    let lost = pair.db.table(lost).await;
    assert_eq!(lost, [["hubspot", "salesforce", "Alone"]]);
}
